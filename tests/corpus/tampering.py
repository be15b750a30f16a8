"""Fields of a TIFF found and changed where they stand, and files of odd pages."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, STRIP_ROWS = 256, 257, 258, 259, 262, 278
TILE_WIDTH, TILE_OFFSETS, TILE_COUNTS = 322, 324, 325


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def field_at(path: Path, tag: int, *, page: int = 0) -> tuple[int, int]:
    """Where a field's entry and its values stand in the file."""
    with tifffile.TiffFile(path) as tiff:
        found = tiff.pages[page].tags[tag]
        return found.offset, found.valueoffset


def set_value(path: Path, tag: int, value: int, *, page: int = 0) -> None:
    """Make a field of one value a LONG of another value."""
    entry, _ = field_at(path, tag, page=page)
    patch(path, entry, struct.pack("<HHII", tag, 4, 1, value))


def directory_at(path: Path, page: int) -> tuple[int, int]:
    """Where a directory begins, and where the position of the next one stands."""
    with tifffile.TiffFile(path) as tiff:
        found = tiff.pages[page]
        return found.offset, found.offset + 2 + 12 * len(found.tags)


def write_pages(path: Path, pages: list[np.ndarray], *, levels: int = 0) -> Path:
    """Pages of the chain, each with its levels in SubIFDs; a page of truth values is marked as a mask."""
    with tifffile.TiffWriter(path) as tiff:
        for page in pages:
            subfile = 4 if page.dtype == bool else 0
            photometric = "rgb" if page.ndim == 3 else "minisblack"
            options: dict[str, Any] = {"tile": (64, 64), "photometric": photometric, "metadata": None}
            tiff.write(page, **options, subfiletype=subfile, subifds=levels or None)
            for level in range(1, levels + 1):
                tiff.write(page[:: 2**level, :: 2**level], **options, subfiletype=1)
    return path


def ndpi(path: Path, *, start: int, pixels_at: int) -> Path:
    """An NDPI of one directory at `start`, whose upper halves stand behind the directory."""
    fields = [
        (256, 60000),
        (257, 60000),
        (258, 8),
        (259, 7),
        (273, pixels_at),
        (277, 3),
        (279, 1000),
        (65420, 1),
    ]
    body = struct.pack("<H", len(fields))
    body += b"".join(struct.pack("<HHII", tag, 4, 1, value % 2**32) for tag, value in fields)
    body += struct.pack("<Q", 0) + b"".join(struct.pack("<I", value >> 32) for _, value in fields)
    with path.open("wb") as file:
        file.write(b"II*\0" + struct.pack("<Q", start))
        file.seek(start)  # what is skipped takes no space
        file.write(body)
    return path
