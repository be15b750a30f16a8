r"""CBAM: channel attention over a slide, then attention to where in the slide.

S. Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018 (arXiv:1807.06521), equations 2 and
3, with a bag's tiles in place of a picture's positions. With MLP a hidden layer of D / reduction values,
and f a convolution of 7 x 7 over the grid of tiles:

.. math::

    g    &= \mathrm{sigm}\left( \mathrm{MLP}(\mathrm{mean}_i x_i) + \mathrm{MLP}(\max_i x_i) \right),
            \quad x'_i = g \odot x_i \\
    t_i  &= \mathrm{sigm}\left( f(\mathrm{mean}_l x'_{il}, \; \max_l x'_{il}) \right),
            \quad x''_i = t_i \, x'_i

Places without a tile count as zeros, and several tiles at one place as their mean. The authors normalise f
over the batch; here f has a bias instead, because a bag's result is to depend on no other bag.

::

    N  rows of all bags       D  length of a feature vector
    B  bags                   G  places of all bags that have a tile
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.adaptors.contract import Adaptor
from mil.adaptors.neighbours import find_neighbours
from mil.bags import PackedBags
from mil.segments import segment_max, segment_mean

_REACH = 3
"""Tiles to either side that the convolution sees: 7 in all."""


class CBAM(Adaptor):
    """See the module's text.

    Parameters
    ----------
    dim
        D.
    reduction
        How many times narrower the hidden layer is; it has 1 value at least.
    """

    name = "cbam"
    uses_places = True

    def __init__(self, dim: int, *, reduction: int = 16) -> None:
        super().__init__()
        if reduction < 1:
            raise ValueError(f"the reduction is {reduction}; at least 1 is needed")
        self.dim = self.width = dim
        self.settings = {"reduction": reduction}
        hidden = max(1, dim // reduction)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.f = nn.Conv2d(2, 1, 2 * _REACH + 1, padding=_REACH)

    def forward(self, bags: PackedBags) -> Tensor:
        """See `Adaptor.forward`."""
        mean = segment_mean(bags.features, bags.bag_of_row, len(bags))  # (B, D)
        most = segment_max(bags.features, bags.bag_of_row, len(bags))  # (B, D)
        g = torch.sigmoid(self.mlp(mean) + self.mlp(most))  # (B, D)
        x = bags.features * g[bags.bag_of_row]  # (N, D)
        maps = torch.stack([x.mean(dim=1), x.amax(dim=1)], dim=1)  # (N, 2)
        return x * torch.sigmoid(self._convolve(maps, bags))

    def _convolve(self, maps: Tensor, bags: PackedBags) -> Tensor:
        """``(N, 1)``: f of the maps ``(N, 2)``, over the tiles' places.

        Only where there are tiles, and without a grid: a slide may have a few tiles that stand far apart.
        """
        near = find_neighbours(bags, reach=_REACH)
        at_place = segment_mean(maps, near.place_of_row, len(near.neighbours))  # (G, 2)
        padded = torch.cat([at_place, at_place.new_zeros((1, 2))])  # (G + 1, 2): the last for no tile
        around = padded[near.neighbours]  # (G, 49, 2)
        kernel = self.f.weight.flatten(2).squeeze(0)  # (2, 49)
        assert self.f.bias is not None
        convolved = torch.einsum("gkm,mk->g", around, kernel) + self.f.bias  # (G,)
        return convolved[near.place_of_row, None]
