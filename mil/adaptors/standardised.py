r"""Features in standard deviations from their mean, value by value.

.. math::

    x'_l = (x_l - \mu_l) / \sigma_l

Penalties on weights, and steps of one length for all of them, mean the same for every value then. Mean and
deviation are constants (buffers, saved with the weights), not learnt: `Standardised.set_statistics` sets
them. Training a head does not. Where nobody sets them they are 0 and 1, and the adaptor does nothing.

::

    N  rows of all bags       D  length of a feature vector
"""

from __future__ import annotations

import torch
from torch import Tensor

from mil.adaptors.contract import Adaptor, statistic
from mil.bags import PackedBags


class Standardised(Adaptor):
    """See the module's text.

    Parameters
    ----------
    dim
        D.
    """

    name = "standardised"
    mean: Tensor
    """``(D,)``: mu."""
    deviation: Tensor
    """``(D,)``: sigma. A 0 counts as 1: what never varies becomes 0, up to rounding, and not infinite."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = self.width = dim
        self.settings = {}
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))

    def set_statistics(self, mean: Tensor, deviation: Tensor) -> None:
        """Use these from now on.

        Parameters
        ----------
        mean, deviation
            ``(D,)`` each, of any float type.

        Raises
        ------
        ValueError
            Another length, numbers that are not finite, or deviations below 0.
        """
        checked = statistic("the mean", mean, self.dim), statistic("the deviation", deviation, self.dim)
        if (deviation < 0).any():
            raise ValueError("the deviation is below 0 for some values")
        self.mean.copy_(checked[0])
        self.deviation.copy_(checked[1])

    def forward(self, bags: PackedBags) -> Tensor:
        """See `Adaptor.forward`."""
        return (bags.features - self.mean) / self.deviation.where(self.deviation > 0, 1.0)  # (N, D)
