"""What every adaptor takes and gives.

::

    N  rows (tiles) of all bags of a batch      D   length of a feature vector
    B  bags                                     D'  length of an adapted one
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mil.bags import PackedBags


class Adaptor(nn.Module):
    """From packed bags to other features of the same tiles, in front of any head.

    What it makes of a bag depends on no other bag of the batch, nor on the order of its rows. A subclass is
    one file, stands in `ADAPTORS`, and takes ``(dim, **settings)``; settings that do not fit `dim` are a
    ValueError.
    """

    name: str
    """What the user calls it."""
    uses_places: bool = False
    """Whether it knows where tiles stand."""
    dim: int
    """D."""
    width: int
    """D'."""
    settings: Mapping[str, int | float]
    """The hyper-parameters it was made with."""

    def forward(self, bags: PackedBags) -> Tensor:
        """``(N, D)`` features in, ``(N, D')`` out."""
        raise NotImplementedError


def split_scales(features: Tensor, scales: int) -> Tensor:
    """``(N, scales * d)``, finest first, as ``(N, scales, d)``."""
    return features.view(len(features), scales, -1)


def scale_width(dim: int, scales: int) -> int:
    """d, of D = S d.

    Raises
    ------
    ValueError
        D is no multiple of S, or S is below 2.
    """
    if scales < 2 or dim % scales:
        raise ValueError(
            f"features of length {dim} are not those of {scales} scales (2 or more of equal length)"
        )
    return dim // scales


def statistic(what: str, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The values, if they can be a statistic of features.

    Parameters
    ----------
    what
        Named in the message.
    values
        They.
    shape
        Which they are to have.

    Raises
    ------
    ValueError
        They are of another shape, or not finite.
    """
    if values.shape != shape:
        raise ValueError(f"{what}: shape {tuple(values.shape)}, and of these features it is {shape}")
    if not values.isfinite().all():
        raise ValueError(f"{what}: some values are not finite")
    return values.detach()
