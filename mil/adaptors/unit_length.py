r"""Features as directions from a centre: all have length 1.

Y. Wang et al., "SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning", 2019
(arXiv:1911.04623), section 3.2: centring, and normalisation to unit length (CL2N).

.. math::

    x' = (x - c) / \lVert x - c \rVert_2

A tile at the centre has no direction, and becomes zero. The centre is a constant (a buffer, saved with the
weights), not learnt: `UnitLength.set_statistics` sets it, to the mean of the tiles that classes are told
apart on. Training a head does not. Where nobody sets it, it is 0, and only lengths become 1.

::

    N  rows of all bags       D  length of a feature vector
"""

from __future__ import annotations

import torch
from torch import Tensor

from mil.adaptors.contract import Adaptor, statistic
from mil.bags import PackedBags


class UnitLength(Adaptor):
    """See the module's text.

    Parameters
    ----------
    dim
        D.
    """

    name = "unit_length"
    centre: Tensor
    """``(D,)``: c."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = self.width = dim
        self.settings = {}
        self.register_buffer("centre", torch.zeros(dim))

    def set_statistics(self, centre: Tensor) -> None:
        """Use this centre from now on.

        Parameters
        ----------
        centre
            ``(D,)`` of any float type.

        Raises
        ------
        ValueError
            Another length, or numbers that are not finite.
        """
        self.centre.copy_(statistic("the centre", centre, (self.dim,)))

    def forward(self, bags: PackedBags) -> Tensor:
        """See `Adaptor.forward`."""
        x = bags.features - self.centre  # (N, D)
        # The largest value keeps squares within a float's range; it cancels, so no gradient goes through it.
        peak = x.detach().abs().amax(dim=1, keepdim=True)  # (N, 1)
        scaled = x / peak.where(peak > 0, 1.0)  # (N, D)
        squares = scaled.square().sum(dim=1, keepdim=True)  # (N, 1): at least 1, or 0 at the centre
        return scaled * squares.where(squares > 0, 1.0).rsqrt()  # (N, D)
