"""Slides of which a field was lost or doubled: what is then taken for usual would give other pixels."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import tifffile

from corpus.fault import Fault, Rejected
from corpus.slide_files import pyramid
from corpus.slides import svs, tiff
from corpus.tampering import COMPRESSION, PHOTOMETRIC, TILE_OFFSETS, WIDTH, field_at, patch


def on_all_levels(tag: int, change: Callable[[Path, int], None]) -> Callable[[Path], None]:
    """Changes the entry of a field, whose position it is given, in each directory of tiles."""

    def spoil(path: Path) -> None:
        with tifffile.TiffFile(path) as file:
            pages = [number for number, page in enumerate(file.pages) if page.is_tiled]
        for page in pages:
            change(path, field_at(path, tag, page=page)[0])

    return spoil


def lost(path: Path, entry: int) -> None:
    """No reader knows the tag that it has now."""
    patch(path, entry, struct.pack("<H", 60_000))


def twice(path: Path, entry: int) -> None:
    patch(path, entry + 4, struct.pack("<I", 2))


def two_later(path: Path, entry: int) -> None:
    """The table is taken two entries further on: each tile from where another one lies."""
    (table,) = struct.unpack("<I", path.read_bytes()[entry + 8 : entry + 12])
    patch(path, entry + 8, struct.pack("<I", table + 8))


def without(
    write: Callable[[Path], Path], tag: int, change: Callable[[Path, int], None] = lost
) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = write(folder / f"{folder.name}.svs")
        on_all_levels(tag, change)(path)
        return path

    return make


SHORT = Rejected(r"is damaged: \d+ uncompressed tiles have too few bytes")
FIELDS = (
    Fault(
        "no_compression",
        "JPEG that does not say so, and counts as uncompressed",
        without(svs, COMPRESSION),
        SHORT,
    ),
    Fault("no_deflate", "the same of deflate", without(tiff, COMPRESSION), SHORT),
    Fault(
        "no_photometric",
        "JPEG that does not say whether it is RGB",
        without(pyramid, PHOTOMETRIC),
        Rejected("does not say whether its JPEG is RGB or YCbCr"),
    ),
    Fault(
        "two_compressions",
        "two values where one belongs",
        without(pyramid, COMPRESSION, twice),
        Rejected("is damaged: tag 259 has 2 values, not one"),
    ),
    Fault(
        "two_widths", "the same of the width", without(tiff, WIDTH, twice), Rejected("tag 256 has 2 values")
    ),
    Fault(
        "table_shifted",
        "a table of tiles that is taken from the wrong place",
        without(pyramid, TILE_OFFSETS, two_later),
        Rejected(r"is damaged: \d+ of 12 tiles begin within another one"),
    ),
)
