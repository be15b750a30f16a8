r"""TransMIL: a slide's tiles as a sequence that attends to itself, with positions from convolutions.

Z. Shao et al., "TransMIL: Transformer based Correlated Multiple Instance Learning for Whole Slide Image
Classification", NeurIPS 2021 (arXiv:2106.00908), algorithms 1 to 3.

.. math::

    h   &= \mathrm{ReLU}(P x) \text{ in raster order, its first tokens repeated to fill a square} \\
    s_0 &= (\mathrm{cls}, h) \\
    s_1 &= s_0 + \mathrm{Attention}(\mathrm{LN}(s_0)) \\
    s_2 &= \mathrm{PPEG}(s_1) \\
    s_3 &= s_2 + \mathrm{Attention}(\mathrm{LN}(s_2)) \\
    y   &= W \, \mathrm{LN}(s_3)_{\mathrm{cls}}

The attention is Nyström's (`mil.heads.nystrom`), with a convolution over 33 neighbouring values added to
it. PPEG lays the tokens into the square and adds depth-wise convolutions of 7, 5 and 3 to them. Both know a
tile by its place in the sequence, so the order matters: it is the raster order of `PackedBags.places`, not
that of storage. The square is one of tokens, not of the slide: where tissue has gaps, neighbours in it need
not touch.

Bags of one size are computed together, and never change one another: there is no padding, and all that is
normalised is normalised within a bag.

The attention shown is that of the class token in the last layer, the mean over heads; a repeated token's is
given back to its tile. It says what that layer read, not what the layers before had mixed into it.

::

    N  rows of all bags       L  hidden width       D  length of a feature vector
    B  bags                   C  classes            n  tiles of a bag
    b  bags of equal size     S  tokens: 1 + side * side
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.bags import PackedBags
from mil.heads.contract import Head, HeadOutput
from mil.heads.dropout import Dropout
from mil.heads.nystrom import Landmarks, attend, attention_of_first
from mil.heads.raster import raster_order
from mil.segments import at_least_float32


class TransMIL(Head):
    """See the module's text.

    Parameters
    ----------
    dim
        D.
    classes
        C.
    hidden
        L, a multiple of `heads`.
    heads
        Attention heads.
    landmarks
        At most so many in each attention.
    iterations
        Of the pseudo-inverse.
    dropout
        Share of each attention's output left out in training.
    """

    name = "transmil"
    uses_places = True

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        hidden: int = 512,
        heads: int = 8,
        landmarks: int = 256,
        iterations: int = 6,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if heads < 1 or hidden % heads or landmarks < 1:
            raise ValueError("hidden must be a multiple of heads, and landmarks at least 1")
        self.dim, self.classes = dim, classes
        self.settings = {
            "hidden": hidden,
            "heads": heads,
            "landmarks": landmarks,
            "iterations": iterations,
            "dropout": dropout,
        }
        self.P = nn.Linear(dim, hidden)
        self.cls = nn.Parameter(torch.randn(hidden))
        self.first, self.second = (
            _Layer(hidden, heads=heads, landmarks=landmarks, iterations=iterations, dropout=dropout)
            for _ in range(2)
        )
        self.ppeg = _PPEG(hidden)
        self.norm = nn.LayerNorm(hidden)
        self.W = nn.Linear(hidden, classes)

    def forward(self, bags: PackedBags) -> HeadOutput:
        """Judge bags; see `Head.forward`. K is 1; what tiles add to a logit is not a sum, so is not given."""
        order = raster_order(bags)  # (N,)
        h = torch.relu(self.P(bags.features))[order]  # (N, L)
        logits = at_least_float32(h.new_zeros((len(bags), len(self.W.weight))))
        attention = at_least_float32(h.new_zeros(len(h)))
        for members, rows in _of_equal_size(bags):
            of_members, of_tiles = self._judge(h[rows])  # (b, C), (b, n)
            logits = logits.index_copy(0, members, at_least_float32(of_members))
            attention[order[rows]] = of_tiles
        tiny = torch.finfo(attention.dtype).tiny  # the approximation may be below zero
        return HeadOutput(logits, attention.clamp(min=tiny).log()[:, None])  # (B, C), (N, 1)

    def _judge(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Of b bags ``(b, n, L)`` the logits ``(b, C)``, and the attention ``(b, n)``."""
        b, n, _ = h.shape
        side = math.isqrt(n - 1) + 1
        repeated = side * side - n
        h = torch.cat([self.cls.expand(b, 1, -1), h, h[:, :repeated]], dim=1)  # (b, S, L)
        h, _ = self.first(h)  # (b, S, L)
        h = self.ppeg(h, side)  # (b, S, L)
        h, looked = self.second(h)  # (b, S, L)
        attention = attention_of_first(*looked)  # (b, S)
        of_tiles = attention[:, 1 : n + 1].clone()  # (b, n)
        of_tiles[:, :repeated] += attention[:, n + 1 :]
        return self.W(self.norm(h[:, 0])), of_tiles


def _of_equal_size(bags: PackedBags) -> Iterator[tuple[Tensor, Tensor]]:
    """For each size n that occurs: numbers of the b bags of it, ``(b,)``, and their rows, ``(b, n)``."""
    device = bags.features.device
    sizes = torch.tensor(bags.sizes)  # (B,)
    starts = sizes.cumsum(0) - sizes  # (B,)
    for size in sorted(set(bags.sizes)):
        members = (sizes == size).nonzero().squeeze(1)  # (b,)
        rows = starts[members][:, None] + torch.arange(size)  # (b, n)
        yield members.to(device), rows.to(device)


class _Layer(nn.Module):
    """Attention with a residual: ``(b, S, L)`` to ``(b, S, L)``, and what the attention was made from."""

    def __init__(
        self, width: int, *, heads: int, landmarks: int, iterations: int, dropout: float, taps: int = 33
    ) -> None:
        super().__init__()
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.near = nn.Conv2d(heads, heads, (taps, 1), padding=(taps // 2, 0), groups=heads, bias=False)
        self.out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Landmarks | None]]:
        b, tokens, _ = x.shape
        parts = self.qkv(self.norm(x)).view(b, tokens, 3, self.heads, -1)  # (b, S, 3, h, d)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)  # (b, h, S, d) each
        landmarks = Landmarks.of(q, k, count=self.landmarks, iterations=self.iterations)
        mixed = attend(q, k, v, landmarks) + self.near(v)  # (b, h, S, d)
        y = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))  # (b, S, L)
        return y, (q, k, landmarks)


class _PPEG(nn.Module):
    """Positions from convolutions over the square of tokens; the class token passes by."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide, self.middle, self.narrow = (
            nn.Conv2d(width, width, size, groups=width) for size in (7, 5, 3)
        )

    def forward(self, x: Tensor, side: int) -> Tensor:
        b, _, width = x.shape
        grid = x[:, 1:].transpose(1, 2).reshape(b, width, side, side)  # (b, L, side, side)
        # The sum of three convolutions is one, by the sum of their kernels.
        kernel = functional.pad(self.middle.weight, [1] * 4) + functional.pad(self.narrow.weight, [2] * 4)
        kernel = kernel + self.wide.weight  # (L, 1, 7, 7)
        biases = [layer.bias for layer in (self.wide, self.middle, self.narrow)]
        bias = torch.stack([one for one in biases if one is not None]).sum(dim=0)  # (L,)
        added = functional.conv2d(grid, kernel, bias, padding=3, groups=width)
        return torch.cat([x[:, :1], (grid + added).flatten(2).transpose(1, 2)], dim=1)  # (b, S, L)
