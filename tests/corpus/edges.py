"""Slides whose every pixel is known by how it was made, and whose last column and row of tiles overhang."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from corpus import forge
from corpus.forge import Pixels
from corpus.slide_files import J2K
from corpus.slides import CENTIMETRE

SIZE = (413, 299)
"""Width and height of a slide: no whole number of tiles, of blocks of 8 pixels, or of levels."""
TILE = 128
BLOCK = 8
DEFLATE, LZW, NONE = 8, 5, 1  # of TIFF


def golden(width: int, height: int, seed: int) -> Pixels:
    """``(height, width, 3)``: blocks of 8 x 8 pixels, each of a colour that follows from its place.

    JPEG keeps such blocks to a grey level or two.
    """
    row, column = np.indices((height, width)) // BLOCK
    number = (row * 64 + column + seed) * 2_654_435_761 % 2**32  # Knuth's multiplier: neighbours differ
    return np.stack([(number >> shift) % 200 + 28 for shift in (8, 15, 22)], axis=-1).astype(np.uint8)


FINE, COARSE = golden(*SIZE, seed=1), golden(SIZE[0] // 4, SIZE[1] // 4, seed=9)
"""What the two levels hold; they do not fit together, so that one is not taken for the other."""


@dataclass(frozen=True)
class Edged:
    """One way to store them."""

    make: Callable[[Path], Path]
    """Writes the file."""
    suffix: str = ".tiff"
    within: int = 0
    """Grey levels by which a decoder may be off."""
    readers: tuple[str, ...] = ("openslide", "tiffslide")
    """Which open it."""


def forged(
    encode: Callable[[Pixels], bytes], photometric: int, compression: int, description: str = ""
) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        pictures = [
            forge.Picture(
                (image.shape[1], image.shape[0]),
                (TILE, TILE),
                forge.cut(image, (TILE, TILE), encode),
                photometric,
                compression,
                description=description,
            )
            for image in (FINE, COARSE)
        ]
        return forge.write_tiff(path, pictures)

    return make


def by_tifffile(**options: object) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        with tifffile.TiffWriter(path) as file:
            for number, image in enumerate((FINE, COARSE)):
                usual = {"photometric": "rgb", "metadata": None, "subfiletype": min(number, 1), **CENTIMETRE}
                planes = "planarconfig" in options
                file.write(image.transpose(2, 0, 1).copy() if planes else image, **usual | options)
        return path

    return make


def in_subifds(path: Path) -> Path:
    with tifffile.TiffWriter(path) as file:
        usual = {
            "photometric": "rgb",
            "metadata": None,
            "tile": (TILE, TILE),
            "compression": "zlib",
            **CENTIMETRE,
        }
        file.write(FINE, subifds=1, **usual)
        file.write(COARSE, subfiletype=1, **usual)
    return path


def as_jpeg(image: Pixels) -> bytes:
    return forge.jpeg(image, sampling="444", quality=98)


EDGED = {
    "deflate": Edged(forged(lambda tile: zlib.compress(tile.tobytes()), forge.RGB, DEFLATE)),
    "none": Edged(forged(lambda tile: tile.tobytes(), forge.RGB, NONE)),
    "lzw": Edged(by_tifffile(tile=(TILE, TILE), compression="lzw")),
    "planes": Edged(
        by_tifffile(tile=(TILE, TILE), compression="zlib", planarconfig="separate"), readers=("openslide",)
    ),
    "jpeg": Edged(forged(as_jpeg, forge.YCBCR, forge.JPEG), within=2),
    "jpeg2000": Edged(forged(forge.jpeg2000, forge.RGB, forge.JPEG2000_RGB, J2K), ".svs"),
    "subifds": Edged(in_subifds, readers=("tiffslide",)),
}
