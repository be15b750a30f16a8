"""Regions that the user supplies, as GeoJSON or PNG: they restrict the tissue, or stand for it.

On a `TissueMask`'s grid a pixel belongs to a region where its *centre* does: right to half a pixel, 4 µm.
Included regions are a union, excluded ones too; tissue stays where it is included and not excluded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.annotations import Annotation, Origin, parse_annotations, read_bounded
from wsi.errors import UsageError
from wsi.polygons import Mask, Polygon, fill
from wsi.slide import Slide
from wsi.tissue import TISSUE_MPP, TissueMask

LARGEST_MASK = 200_000_000
"""Pixels of a PNG: a slide of 100,000 px at an eighth has 156 million."""
LARGEST_MASK_BYTES = 4 * LARGEST_MASK
"""Bytes of its decoded pixels."""
SUFFIXES = (".geojson", ".geojson.gz", ".zip", ".json", ".png")
"""What a slide's region file may be called: its id and one of these."""

_PNG = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 2, 2: 4, 3: 4, 4: 2, 6: 4}  # by PNG's colour type, with the alpha that each may have


@dataclass(frozen=True, eq=False)
class MaskImage:
    """A mask of any resolution that covers the whole slide."""

    mask: Mask
    """``(rows, columns)`` bool."""
    slide_size: tuple[int, int]
    """Level-0 (width, height) that it covers, corner on corner."""

    def fill(self, *, shape: tuple[int, int], scale_x: float, scale_y: float) -> Mask:
        """The pixels of a grid whose centre lies on a pixel that is set; arguments as `polygons.fill`."""
        rows, inside_y = _under(shape[0], scale_y, self.mask.shape[0], self.slide_size[1])
        columns, inside_x = _under(shape[1], scale_x, self.mask.shape[1], self.slide_size[0])
        found = self.mask[np.ix_(rows, columns)]  # a copy
        found &= inside_y[:, None] & inside_x
        return found


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of one file for one slide."""

    path: Path
    """Where they came from; for messages."""
    sha256: str
    """SHA-256 of the file as it lies on disk."""
    area: tuple[Annotation, ...] | MaskImage
    """The objects of a GeoJSON file (those of `names`), or a PNG's mask."""
    names: tuple[str, ...] = ()
    """The classifications that were asked for, sorted; empty for all."""
    bounds_origin: tuple[float, float] = (0, 0)
    """Level-0 (x, y) that was added to a GeoJSON file's coordinates, unless it states its own."""

    @property
    def kind(self) -> str:
        """``"geojson"`` or ``"png"``."""
        return "png" if isinstance(self.area, MaskImage) else "geojson"

    def as_json(self) -> dict[str, Any]:
        """All that decides which pixels these regions cover, for a recipe."""
        content: dict[str, Any] = {"sha256": self.sha256, "kind": self.kind, "names": list(self.names)}
        if self.kind == "geojson":
            content["bounds_origin"] = list(self.bounds_origin)
        return content

    def fill(self, *, shape: tuple[int, int], scale_x: float, scale_y: float) -> Mask:
        """The pixels of a grid whose centre lies in the regions; arguments as `polygons.fill`."""
        if isinstance(self.area, MaskImage):
            return self.area.fill(shape=shape, scale_x=scale_x, scale_y=scale_y)
        return fill(_polygons(self.area), shape=shape, scale_x=scale_x, scale_y=scale_y)


@dataclass(frozen=True)
class RegionFiles:
    """A region file for the one slide given, or a folder with ``<slide id>.geojson`` for each slide."""

    source: Path
    """The file or the folder."""
    origin: Origin = Origin.BOUNDS
    """From where the coordinates of GeoJSON count."""

    def __post_init__(self) -> None:
        if not self.source.exists():
            raise UsageError("does not exist", path=self.source, action="Check the path of the regions")

    def check(self, slide_ids: Collection[str]) -> None:
        """Raise `UsageError` before any work: one file for many slides, or a folder with none of theirs."""
        if not self.source.is_dir():
            if len(slide_ids) > 1:
                raise UsageError(
                    f"one region file for {len(slide_ids)} slides",
                    path=self.source,
                    action="Give a folder with a file for each, such as A1.geojson for A1.svs",
                )
        elif not any(self.find(slide_id) for slide_id in slide_ids):
            raise UsageError(
                "no region file for any of the slides in this folder",
                path=self.source,
                action=f"Name them after the slides, such as A1.geojson for A1.svs ({', '.join(SUFFIXES)})",
            )

    def find(self, slide_id: str) -> Path | None:
        """The slide's region file; None where the folder holds none for it.

        Raises
        ------
        UsageError
            The folder holds several, so that it is open which of them counts.
        """
        if not self.source.is_dir():
            return self.source
        found = [p for suffix in SUFFIXES if (p := self.source / f"{slide_id}{suffix}").is_file()]
        if len(found) > 1:
            raise UsageError(
                f"several region files for the slide {slide_id}: {', '.join(p.name for p in found)}",
                path=self.source,
                action="Leave the one that counts",
            )
        return found[0] if found else None


def read_regions(
    path: Path,
    *,
    slide_size: tuple[int, int],
    bounds_origin: tuple[float, float] = (0, 0),
    names: Sequence[str] = (),
) -> Regions:
    """Read a slide's regions from GeoJSON or PNG; which it is, the content says.

    Parameters
    ----------
    slide_size
        Level-0 (width, height) of the slide.
    bounds_origin
        `Slide.bounds_origin` for what QuPath exported; see `read_annotations`. A PNG covers the whole slide.
    names
        Only annotations of these classifications (full names, such as ``"Tumor: Positive"``); all if empty.
        Every object type counts, tiles and cells too.

    Raises
    ------
    UsageError
        As `read_annotations` and `read_mask`; no annotation has such a name; every polygon lies off the
        slide, as after a wrong offset or an export at another scale.
    """
    if isinstance(names, str):
        raise ValueError(f"names are a sequence of names, got {names!r}")
    wanted = tuple(sorted({name.strip() for name in names}))
    data = read_bounded(path)
    area: tuple[Annotation, ...] | MaskImage
    if data[:4] == _PNG[:4]:
        if wanted:
            raise UsageError(
                f"is a PNG mask, which has no classes such as {wanted[0]}", path=path, action="Give GeoJSON"
            )
        area = _parse_mask(data, slide_size, path)
    else:
        every = parse_annotations(data, path=path, bounds_origin=bounds_origin)
        area = _named(every, wanted, path)
        _check_on_slide(area, slide_size, path)
    return Regions(path, hashlib.sha256(data).hexdigest(), area, wanted, bounds_origin)


def read_mask(path: Path, slide_size: tuple[int, int]) -> MaskImage:
    """Read a PNG of any size and kind that shows the whole slide: what is not black and not clear is inside.

    Grey, palette, RGB, with and without alpha, of 1 to 16 bits: a pixel is inside where any of its colours is
    above 0 and, if the file has alpha, that too. Of a palette the colours count, not their numbers.

    Raises
    ------
    UsageError
        Not a PNG, a damaged one, larger than `LARGEST_MASK`; not of the slide's aspect within a pixel; all
        of it outside.
    """
    return _parse_mask(read_bounded(path), slide_size, path)


def restrict(
    mask: TissueMask, *, include: Sequence[Regions] = (), exclude: Sequence[Regions] = ()
) -> TissueMask:
    """The tissue in any included region (anywhere, if none are given) and in no excluded one."""
    kept = mask.mask.copy()
    if include:
        kept &= _union(include, mask)
    if exclude:
        kept &= ~_union(exclude, mask)
    return dataclasses.replace(mask, mask=kept)


def regions_mask(
    slide: Slide, include: Sequence[Regions], *, exclude: Sequence[Regions] = (), mpp: float = TISSUE_MPP
) -> TissueMask:
    """The included regions without the excluded ones, taken for the tissue as they are: none is sought.

    The grid is that of `find_tissue` at `mpp`. No pixels are read.

    Raises
    ------
    ResolutionError
        The slide states no microns per pixel, or is coarser than `mpp`.
    """
    if not include:
        raise UsageError("the regions are to be the tissue, and none are given", action="Pass --include")
    scale_x, scale_y = slide.scale(mpp)
    shape = math.ceil(slide.size[1] / scale_y), math.ceil(slide.size[0] / scale_x)
    everything = TissueMask(mask=np.ones(shape, np.bool_), scale_x=scale_x, scale_y=scale_y, mpp=mpp)
    return restrict(everything, include=include, exclude=exclude)


def _union(regions: Sequence[Regions], grid: TissueMask) -> Mask:
    """What any of the regions covers, on the grid of a tissue mask."""
    rows, columns = grid.mask.shape
    found = np.zeros((rows, columns), np.bool_)
    for one in regions:
        found |= one.fill(shape=(rows, columns), scale_x=grid.scale_x, scale_y=grid.scale_y)
    return found


# GeoJSON -------------------------------------------------------------------------------------------------


def _polygons(annotations: Sequence[Annotation]) -> Iterator[Polygon]:
    return (polygon for annotation in annotations for polygon in annotation.polygons)


def _named(every: list[Annotation], wanted: tuple[str, ...], path: Path) -> tuple[Annotation, ...]:
    """The annotations of the wanted classifications, of which a slide need not have each."""
    if not wanted:
        return tuple(every)
    found = tuple(annotation for annotation in every if annotation.name in wanted)
    if not found:
        counts = Counter(annotation.name or "(no class)" for annotation in every)
        there = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items())[:20])
        raise UsageError(
            f"no annotation is classified as {' or '.join(wanted)}; there are {there}",
            path=path,
            action="Give a class as it is written there",
        )
    return found


def _check_on_slide(annotations: tuple[Annotation, ...], slide_size: tuple[int, int], path: Path) -> None:
    extents = np.array([polygon.extent for polygon in _polygons(annotations)])
    left, top, right, bottom = extents.T
    if ((left < slide_size[0]) & (top < slide_size[1]) & (right > 0) & (bottom > 0)).any():
        return
    raise UsageError(
        f"all polygons ({len(extents)}) lie off the slide: they span x {left.min():.0f} to "
        f"{right.max():.0f}, y {top.min():.0f} to {bottom.max():.0f}, and the slide x 0 to {slide_size[0]}, "
        f"y 0 to {slide_size[1]}",
        path=path,
        action="Check that the file is this slide's, that it was exported at full resolution (level-0 "
        "pixels), and from where it counts: the slide's corner, or that of its bounds",
    )


# PNG -----------------------------------------------------------------------------------------------------


def _parse_mask(data: bytes, slide_size: tuple[int, int], path: Path) -> MaskImage:
    width, height = _check_header(data, path)
    slide_width, slide_height = slide_size
    off = min(
        abs(height - width * slide_height / slide_width), abs(width - height * slide_width / slide_height)
    )
    if off > 1:
        raise UsageError(
            f"has {width} x {height} px: not the aspect of the slide, {slide_width} x {slide_height}",
            path=path,
            action="Export a mask of the whole slide, not of its bounds or of a part",
        )
    mask = _not_black(_decode(data, path))
    if not mask.any():
        raise UsageError("is black or clear all over", path=path, action="Regions are what is not black")
    return MaskImage(mask, slide_size)


def _check_header(data: bytes, path: Path) -> tuple[int, int]:
    """The (width, height) of a PNG that can be decoded in bounded memory."""
    if data[:8] != _PNG or data[12:16] != b"IHDR" or len(data) < 33 or data[25] not in _CHANNELS:
        raise UsageError("is not a PNG, or damaged", path=path, action="Give a mask as PNG")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    decoded = width * height * _CHANNELS[data[25]] * (2 if data[24] == 16 else 1)
    if width * height > LARGEST_MASK or decoded > LARGEST_MASK_BYTES:
        raise UsageError(
            f"has {width} x {height} px, {decoded >> 20} MiB decoded; at most {LARGEST_MASK // 10**6} "
            f"million pixels of {LARGEST_MASK_BYTES >> 20} MiB are read",
            path=path,
            action="Save it smaller, as 8-bit grey: the tissue's grid has 8 µm a pixel",
        )
    return width, height


def _decode(data: bytes, path: Path) -> NDArray[Any]:
    """``(h, w)`` or ``(h, w, 2 to 4)`` uint8 or uint16, palettes as colours."""
    import imagecodecs

    # cv2 writes about damaged files to standard error, and drops the transparent colour of a grey PNG.
    try:
        return np.asarray(imagecodecs.png_decode(data))
    except (RuntimeError, ValueError, MemoryError) as error:
        raise UsageError(
            f"is a damaged or cut PNG ({error})", path=path, action="Copy or save it again"
        ) from error


def _not_black(image: NDArray[Any]) -> Mask:
    """``(h, w)`` bool: any colour above 0, and the alpha where there is one."""
    if image.ndim == 2:
        return image > 0
    colours = image.shape[2] - (image.shape[2] in {2, 4})
    mask = image[..., 0] > 0
    for channel in range(1, colours):
        mask |= image[..., channel] > 0
    if colours < image.shape[2]:
        mask &= image[..., -1] > 0
    return np.asarray(mask, np.bool_)


def _under(count: int, scale: float, pixels: int, length: int) -> tuple[NDArray[np.intp], Mask]:
    """Which of the mask's pixels lies under each centre of the grid, along one axis; and whether one does."""
    centres = (np.arange(count) + 0.5) * scale
    return np.minimum((centres * pixels / length).astype(np.intp), pixels - 1), centres < length
