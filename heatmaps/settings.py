"""What a drawn heatmap can be: closed choices, and the settings that are made of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from wsi.errors import UsageError


class Overlap(Enum):
    """What a pixel under several tiles shows."""

    MEAN = "mean"
    """Their mean, weighted by the area of the pixel that each covers."""
    MAX = "max"
    """The highest of them: a small finding is not thinned out by tiles that only touch it."""


class Scale(Enum):
    """What colours stand for. Stored scores are never touched by it."""

    VALUE = "value"
    """The number itself: the same number has the same colour on every slide."""
    RANK = "rank"
    """The tile's rank among those of its slide: more contrast, and not to be compared between slides."""


class Format(Enum):
    """Kinds of files, beside the overlays and the tiles for QuPath, which are always made."""

    OME_TIFF = "ome-tiff"
    """All scores as float32 in one file, and a coloured pyramid a channel."""
    OME_ZARR = "ome-zarr"
    """All scores as float32 in one OME-Zarr."""
    PNG = "png"
    """A plain coloured picture a channel, with its legend."""


class Ngff(Enum):
    """Version of the OME-Zarr specification."""

    V04 = "0.4"
    """Zarr v2: what QuPath reads."""
    V05 = "0.5"
    """Zarr v3: what is current."""


@dataclass(frozen=True, slots=True)
class DrawSettings:
    """How a slide's scores are drawn; all of it is in the item's recipe."""

    formats: tuple[Format, ...] = (Format.OME_TIFF,)
    """Each once, in the order of `Format` whatever the order given."""
    ngff: Ngff = Ngff.V05
    """Of `Format.OME_ZARR`."""
    overlap: Overlap = Overlap.MEAN
    """Of tiles that share area."""
    scale: Scale = Scale.VALUE
    """Of the colours."""

    def __post_init__(self) -> None:
        if not self.formats:
            raise UsageError(
                "no format is named", action=f"Name some of {', '.join(f.value for f in Format)}"
            )
        object.__setattr__(self, "formats", tuple(f for f in Format if f in self.formats))

    def as_json(self) -> dict[str, object]:
        """For the recipe: what has no effect is left out, so that it cannot stand in the way."""
        written = {"overlap": self.overlap.value, "scale": self.scale.value}
        ngff = {"ngff": self.ngff.value} if Format.OME_ZARR in self.formats else {}
        return {"formats": [f.value for f in self.formats], **ngff, **written}


AS_USUAL = DrawSettings()
"""Scores and colours as OME-TIFF, the mean where tiles overlap, colours by value."""
