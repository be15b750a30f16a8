r"""Attention across the scales of a tile: each view is read in the light of the others.

One layer of A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017 (arXiv:1706.03762), with
normalisation first, over the S vectors of one tile and never between tiles. As all are made by one encoder,
they share the projection E; what tells them apart is the learnt e:

.. math::

    t_s  &= E x_s + e_s \\
    u    &= t + O \, \mathrm{Attention}(\mathrm{LN}(t)) \\
    x'   &= \tfrac1S \sum_s u_s

::

    N  rows of all bags       S  scales, the finest first       d  length of a scale's vector, D / S
    w  width of the result    k  attention heads
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.adaptors.contract import Adaptor, scale_width, split_scales
from mil.bags import PackedBags


class CrossScale(Adaptor):
    """See the module's text.

    Parameters
    ----------
    dim
        D = S d: the scales' vectors one after the other, the finest first.
    scales
        S.
    width
        w, a multiple of `heads`.
    heads
        k.
    """

    name = "cross_scale"

    def __init__(self, dim: int, *, scales: int = 2, width: int = 512, heads: int = 4) -> None:
        super().__init__()
        d = scale_width(dim, scales)
        if heads < 1 or width % heads:
            raise ValueError(f"a width of {width} is no multiple of {heads} heads")
        self.dim, self.width, self.scales, self.heads = dim, width, scales, heads
        self.settings = {"scales": scales, "width": width, "heads": heads}
        self.E = nn.Linear(d, width)
        self.e = nn.Parameter(torch.randn(scales, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.O = nn.Linear(width, width)

    def forward(self, bags: PackedBags) -> Tensor:
        """See `Adaptor.forward`."""
        t = self.E(split_scales(bags.features, self.scales)) + self.e  # (N, S, w)
        parts = self.qkv(self.norm(t)).unflatten(2, (3, self.heads, -1))  # (N, S, 3, k, w / k)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)  # (N, k, S, w / k) each
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=3)  # (N, k, S, S)
        u = t + self.O((weights @ v).transpose(1, 2).flatten(2))  # (N, S, w)
        pooled: Tensor = u.mean(dim=1)  # (N, w)
        return pooled
