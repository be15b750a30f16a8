r"""Nyström attention: every token attends to every other, through a few landmarks.

Y. Xiong et al., "Nyströmformer: A Nyström-based Algorithm for Approximating Self-Attention", AAAI 2021
(arXiv:2102.03902), equations 9 to 15. Tokens are cut into m blocks; the means of a block's queries and keys
are its landmarks. Then

.. math::

    \mathrm{softmax}\left(\tfrac{Q K^\top}{\sqrt d}\right) V \approx
    \mathrm{softmax}\left(\tfrac{Q \tilde K^\top}{\sqrt d}\right)
    \mathrm{softmax}\left(\tfrac{\tilde Q \tilde K^\top}{\sqrt d}\right)^{+}
    \mathrm{softmax}\left(\tfrac{\tilde Q K^\top}{\sqrt d}\right) V

The outer two products are attentions themselves and are computed as such, so no matrix of S x m is kept.
The pseudo-inverse is iterated (Razavi et al.) from a start that is scaled by each matrix's own norms: one
over all heads and bags, as is usual, lets the bags of a batch change one another's results.

Where S is no multiple of m the first block is the shorter one. It is often filled up with zeros; here there
is no padding, so none takes part in a landmark or a softmax. Where there are no more tokens than landmarks,
every token would be its own, and the attention is computed exactly.

::

    b  bags of equal size     h  attention heads     S  tokens of a bag
    d  width of a head        m  landmarks
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional

from mil.segments import at_least_float32


@dataclass(frozen=True, slots=True)
class Landmarks:
    """Landmarks of a bag's queries and keys, and the inverse of their attention."""

    queries: Tensor
    """``(b, h, m, d)``."""
    keys: Tensor
    """``(b, h, m, d)``."""
    inverse: Tensor
    """``(b, h, m, m)``, float32 at least."""

    @classmethod
    def of(cls, q: Tensor, k: Tensor, *, count: int, iterations: int) -> Landmarks | None:
        """At most `count` landmarks; None where there are no more tokens than that."""
        tokens = q.shape[2]
        if tokens <= count:
            return None
        block = math.ceil(tokens / count)
        queries, keys = block_means(q, block), block_means(k, block)  # (b, h, m, d)
        with _float32(q):
            core = _weights(queries, keys)  # (b, h, m, m)
            return cls(queries, keys, pseudo_inverse(core, iterations))


def attend(q: Tensor, k: Tensor, v: Tensor, landmarks: Landmarks | None) -> Tensor:
    """Attention of queries, keys and values, ``(b, h, S, d)`` each, to ``(b, h, S, d)``."""
    if landmarks is None:
        return _softmax_attention(q, k, v)
    context = _softmax_attention(landmarks.queries, k, v)  # (b, h, m, d)
    with _float32(q):
        mixed = (landmarks.inverse @ at_least_float32(context)).to(v.dtype)  # (b, h, m, d)
    return _softmax_attention(q, landmarks.keys, mixed)


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``(b, h, s, d)``: the values ``(b, h, t, d)``, weighed.

    By torch's fused kernel, which keeps no matrix of s x t. It has no second derivative and no rule for
    `vmap`, so that where `torch.func` transforms the head, the formula is written out.
    """
    if any(is_functorch_wrapped_tensor(tensor) for tensor in (q, k, v)):
        return _weights(q, k).to(v.dtype) @ v
    return functional.scaled_dot_product_attention(q, k, v)


@torch.no_grad()
def attention_of_first(q: Tensor, k: Tensor, landmarks: Landmarks | None) -> Tensor:
    """``(b, S)``, float32 at least: how much the first token attends to each, the mean over heads.

    As the product of three matrices it sums to about 1, and may be negative here and there. One head at a
    time, so that a matrix of S x m is the largest.
    """
    total = at_least_float32(q.new_zeros((len(q), 1, q.shape[2])))  # (b, 1, S)
    with _float32(q):
        for head in range(q.shape[1]):
            first, keys = q[:, head, :1], k[:, head]  # (b, 1, d), (b, S, d)
            if landmarks is None:
                total += _weights(first, keys)  # (b, 1, S)
            else:
                near = _weights(first, landmarks.keys[:, head]) @ landmarks.inverse[:, head]  # (b, 1, m)
                total += near @ _weights(landmarks.queries[:, head], keys)  # (b, 1, S)
    return total.squeeze(1) / q.shape[1]


def _float32(like: Tensor) -> torch.autocast:
    """No reduced precision inside: the inverse of nearly equal rows would not survive it."""
    return torch.autocast(like.device.type, enabled=False)


def _weights(q: Tensor, k: Tensor) -> Tensor:
    """Softmax over keys, in float32 at least: ``(..., s, d)`` and ``(..., t, d)`` to ``(..., s, t)``."""
    scale = 1 / math.sqrt(q.shape[-1])
    return (at_least_float32(q) @ at_least_float32(k).transpose(-1, -2) * scale).softmax(dim=-1)


def block_means(x: Tensor, block: int) -> Tensor:
    """Means of blocks of tokens, the first one shorter if need be: ``(b, h, S, d)`` to ``(b, h, m, d)``."""
    count = math.ceil(x.shape[2] / block)
    short = count * block - x.shape[2]
    padded = functional.pad(
        at_least_float32(x), (0, 0, short, 0)
    )  # (b, h, m * block, d): zeros, which add nothing
    sizes = padded.new_full((count, 1), block)
    sizes[0] -= short
    blocks = padded.reshape(*x.shape[:2], count, block, -1)  # (b, h, m, block, d)
    return (blocks.sum(dim=3) / sizes).to(x.dtype)


def pseudo_inverse(x: Tensor, iterations: int) -> Tensor:
    """Moore-Penrose inverse of ``(..., m, m)`` matrices, by the iteration of the paper's equation 14."""
    rows = x.abs().sum(dim=-1).amax(dim=-1)  # (...)
    columns = x.abs().sum(dim=-2).amax(dim=-1)  # (...)
    z = x.transpose(-1, -2) / (rows * columns)[..., None, None]
    one = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    for _ in range(iterations):
        xz = x @ z
        z = 0.25 * z @ (13 * one - xz @ (15 * one - xz @ (7 * one - xz)))
    return z
