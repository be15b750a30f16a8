"""The contact sheet: some tiles of a slide side by side, each with its place and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE_PX = 160
"""A tile's side on the sheet: larger tiles are averaged down to it, smaller ones enlarged a whole number of
times, as far as they fit."""
COLUMNS = 8
GAP_PX = 8
LINE_PX = 14
_TITLE_PX = 30
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK = (40, 40, 40)
_PAPER = 255

_Image = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class TileGroup:
    """Tiles that are shown together, and why."""

    title: str
    """Printed above them."""
    tiles: _Image
    """``(k, s, s, 3)`` uint8 RGB."""
    captions: Sequence[Sequence[str]]
    """Lines of text under each tile; as many for each."""

    def __post_init__(self) -> None:
        if self.tiles.ndim != 4 or self.tiles.shape[3] != 3 or self.tiles.dtype != np.uint8:
            raise ValueError(f"tiles are (k, s, s, 3) uint8, got {self.tiles.shape} {self.tiles.dtype}")
        if len(self.captions) != len(self.tiles):
            raise ValueError(f"{len(self.tiles)} tiles have {len(self.captions)} captions")


def contact_sheet(groups: Sequence[TileGroup]) -> _Image:
    """The groups one below the other, ``(h, w, 3)`` uint8 RGB.

    Raises
    ------
    ValueError
        There is no tile at all.
    """
    strips = [_strip(group) for group in groups if len(group.tiles)]
    if not strips:
        raise ValueError("a contact sheet needs a tile")
    return np.concatenate(strips)


def spread(origins: NDArray[np.int32], count: int) -> NDArray[np.intp]:
    """Rows of at most `count` tiles that lie evenly over the tissue, sorted.

    The tiles are strung on a curve that fills the plane, and every n-th is taken: each part of the tissue
    gives as many as its area is worth.

    References
    ----------
    G. M. Morton, "A computer oriented geodetic data base and a new technique in file sequencing", IBM 1966.
    """
    if len(origins) <= count:
        return np.arange(len(origins))
    places = origins.astype(np.int64) - origins.min(axis=0)
    places = places * 0xFFFF // max(int(places.max()), 1)
    code = np.zeros(len(origins), np.int64)
    for bit in range(16):
        for axis in (0, 1):
            code |= (places[:, axis] >> bit & 1) << (2 * bit + axis)
    steps = (np.arange(count) + 0.5) * len(origins) / count
    return np.sort(np.argsort(code, kind="stable")[steps.astype(np.intp)])


def highest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Rows of at most `count` largest values above 0, the largest first; of equal ones the first rows."""
    order = np.argsort(-values, kind="stable")[:count]
    return order[values[order] > 0]


def _strip(group: TileGroup) -> _Image:
    """A title, and rows of tiles with their captions."""
    lines = max((len(caption) for caption in group.captions), default=0)
    cell = (SIDE_PX + lines * LINE_PX + GAP_PX, SIDE_PX + GAP_PX)
    rows = -(-len(group.tiles) // COLUMNS)
    shape = (_TITLE_PX + rows * cell[0], COLUMNS * cell[1] + GAP_PX, 3)
    sheet = np.full(shape, _PAPER, np.uint8)
    _write(sheet, group.title, (GAP_PX, _TITLE_PX - 10), 0.55)
    for index, (tile, caption) in enumerate(zip(group.tiles, group.captions, strict=True)):
        top = _TITLE_PX + index // COLUMNS * cell[0]
        left = GAP_PX + index % COLUMNS * cell[1]
        picture = _fitted(tile)
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        for number, line in enumerate(caption, 1):
            _write(sheet, line, (left, top + SIDE_PX + number * LINE_PX - 3), 0.36)
    return sheet


def _fitted(tile: _Image) -> _Image:
    """The tile with a side of `SIDE_PX`, or of the largest whole multiple of its own below that."""
    size = tile.shape[0]
    if size > SIDE_PX:
        return np.asarray(cv2.resize(tile, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA))
    times = SIDE_PX // size
    return np.asarray(tile.repeat(times, axis=0).repeat(times, axis=1))


def _write(sheet: _Image, text: str, place: tuple[int, int], size: float) -> None:
    """Text with its left end on `place`; letters that OpenCV cannot draw become question marks."""
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(sheet, plain, place, _FONT, size, _INK, 1, cv2.LINE_AA)
