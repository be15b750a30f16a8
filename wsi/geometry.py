"""The coordinate rules, said once.

- A *position* is a level-0 pixel, ``(x, y)``, x to the right and y down, (0, 0) the top-left corner.
- A *size* is ``(width, height)``.
- An *array* of pixels is ``(row, column, channel)``, RGB, uint8.
- *Resolution* is microns per pixel (mpp); magnification and level numbers stay inside `wsi`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wsi.errors import UsageError

MPP_RANGE = (0.05, 20.0)
"""Microns per pixel that a brightfield scan can have; anything else is a damaged or mislabelled tag."""
OVERRIDE_RANGE = (0.05, 100.0)
"""Microns per pixel that a user may state: wider than what a file may, for overviews of a whole glass."""


def check_override(mpp: float) -> float:
    """The microns per pixel that a user states, if a slide can have them.

    Raises
    ------
    UsageError
        They are outside `OVERRIDE_RANGE`, or no number.
    """
    low, high = OVERRIDE_RANGE
    if not low <= mpp <= high:
        raise UsageError(
            f"microns per pixel are overridden by {mpp:g}; {low:g} to {high:g} are possible",
            action="Give the true figure, such as 0.25",
        )
    return mpp


@dataclass(frozen=True, slots=True)
class Resolution:
    """Microns per level-0 pixel, and where the figure came from."""

    x: float
    """Microns per pixel along x."""
    y: float
    """Microns per pixel along y."""
    source: str
    """One of ``"vendor property"``, ``"TIFF resolution"``, ``"objective power"``, ``"override"``."""

    def __post_init__(self) -> None:
        for name, value in (("x", self.x), ("y", self.y)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"mpp-{name} is {value:g}; it must be above 0")

    @property
    def is_plausible(self) -> bool:
        """Whether a brightfield scan can have it."""
        return all(MPP_RANGE[0] <= value <= MPP_RANGE[1] for value in (self.x, self.y))

    @property
    def mpp(self) -> float:
        """The mean of both axes, for comparison and display; geometry uses each axis."""
        return (self.x + self.y) / 2

    @property
    def anisotropy(self) -> float:
        """How far the axes differ: 0.01 means by one per cent."""
        return abs(self.x - self.y) / self.mpp


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of the slide's pyramid."""

    width: int
    """Pixels along x."""
    height: int
    """Pixels along y."""
    downsample_x: float
    """Level-0 pixels per pixel of this level, along x (the true ratio, rarely a whole number)."""
    downsample_y: float
    """The same along y."""


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle on the slide in level-0 pixels; fractions are allowed, overhang too."""

    x: float
    y: float
    width: float
    height: float

    def __post_init__(self) -> None:
        if not (self.width > 0 and self.height > 0):
            raise ValueError(f"a region needs a positive size, got {self.width:g} x {self.height:g}")

    @property
    def right(self) -> float:
        """First x past the region."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """First y past the region."""
        return self.y + self.height


def footprint(size_px: int, *, mpp: float, slide_mpp: float) -> float:
    """Level-0 pixels that `size_px` pixels at `mpp` cover on a slide of `slide_mpp`.

    >>> footprint(256, mpp=0.5, slide_mpp=0.25)
    512.0
    """
    return size_px * mpp / slide_mpp
