"""Slides written byte by byte: what no library writes, scanners and accidents do."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
RGB, YCBCR = 2, 6
JPEG, JPEG2000_RGB = 7, 33005
APP0, APP14, SOF0, SOS = 0xE0, 0xEE, 0xC0, 0xDA
ADOBE = b"Adobe\x00\x64\x00\x00\x00\x00"
TABLES = (0xDB, 0xC4)  # quantisation and Huffman


@dataclass(frozen=True)
class Picture:
    """One tiled directory, its tiles given as bytes."""

    size: tuple[int, int]
    tile: tuple[int, int]
    tiles: list[bytes]
    photometric: int = YCBCR
    compression: int = JPEG
    tables: bytes = b""
    description: str = ""
    fields: dict[int, tuple[int, list[int]]] = field(default_factory=dict)
    """Further fields, or others instead: (TIFF type, values) by tag."""


def write_tiff(
    path: Path, pictures: Iterable[Picture], *, order: str = "<", big: bool = False, um: float = 0.5
) -> Path:
    """Write a chain of directories; pyramid levels of a generic TIFF are those after the first."""
    word, kind = ("Q", 16) if big else ("I", 4)
    mark = b"II" if order == "<" else b"MM"
    file = bytearray(
        mark + struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, 0) if big else (42, 0)))
    )
    link = 8 if big else 4
    for number, picture in enumerate(pictures):
        places = []
        for tile in picture.tiles:
            places.append(len(file) if tile else 0)
            file += tile
        values: dict[int, tuple[int, list[int] | bytes]] = {
            254: (4, [min(number, 1)]),
            256: (4, [picture.size[0]]),
            257: (4, [picture.size[1]]),
            258: (3, [8, 8, 8]),
            259: (3, [picture.compression]),
            262: (3, [picture.photometric]),
            277: (3, [3]),
            282: (5, [round(1e4 / um), 1]),
            283: (5, [round(1e4 / um), 1]),
            284: (3, [1]),
            296: (3, [3]),
            322: (3, [picture.tile[0]]),
            323: (3, [picture.tile[1]]),
            324: (kind, places),
            325: (4, [len(tile) for tile in picture.tiles]),
        }
        if picture.tables:
            values[347] = (7, picture.tables)
        if picture.description:
            values[270] = (2, picture.description.encode() + b"\0")
        values |= picture.fields
        link = _append(file, link, values, order, word)
    path.write_bytes(file)
    return path


def _append(
    file: bytearray, link: int, values: dict[int, tuple[int, list[int] | bytes]], order: str, word: str
) -> int:
    width = struct.calcsize(word)
    file += bytes(-len(file) % 8)
    start = len(file)
    head = struct.pack(order + ("Q" if width == 8 else "H"), len(values))
    after = start + len(head) + len(values) * (4 + 2 * width)
    entries, tail = b"", b""
    for tag, (kind, value) in sorted(values.items()):
        code = {3: "H", 4: "I", 5: "I", 16: "Q"}.get(kind, "B")
        raw = value if isinstance(value, bytes) else struct.pack(f"{order}{len(value)}{code}", *value)
        count = len(value) // 2 if kind == 5 else len(value)
        entries += struct.pack(f"{order}HH{word}", tag, kind, count)
        if len(raw) <= width:
            entries += raw.ljust(width, b"\0")
        else:
            entries += struct.pack(order + word, after + width + len(tail))
            tail += raw
    struct.pack_into(order + word, file, link, start)
    file += head + entries + bytes(width) + tail
    return after


def cut(image: Pixels, tile: tuple[int, int], encode: Callable[[Pixels], bytes]) -> list[bytes]:
    """The compressed tiles of an image, row by row; what hangs over its edge repeats that edge."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % tile[1]), (0, -width % tile[0]), (0, 0)), mode="edge")
    return [
        encode(np.ascontiguousarray(padded[y : y + tile[1], x : x + tile[0]]))
        for y in range(0, height, tile[1])
        for x in range(0, width, tile[0])
    ]


def jpeg(image: Pixels, *, stored: str = "ycbcr", sampling: str = "420", quality: int = 90) -> bytes:
    """A whole JPEG stream without any marker that says what its components are."""
    data = imagecodecs.jpeg8_encode(
        image, quality, colorspace="rgb", outcolorspace=stored, subsampling=sampling
    )
    return without(bytes(data), APP0, APP14)


def progressive(image: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90, progressive=True)
    return without(file.getvalue(), APP0)


def jpeg2000(image: Pixels, *, resolutions: int | None = None, level: int = 0) -> bytes:
    """A bare codestream, as in Aperio's files."""
    return bytes(imagecodecs.jpeg2k_encode(image, level=level, codecformat="j2k", resolutions=resolutions))


def split(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The segments of a JPEG before its picture data, and the rest from the scan's header on."""
    at, found = 2, []
    while data[at + 1] != SOS:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((data[at + 1], data[at + 4 : at + 2 + length]))
        at += 2 + length
    return found, data[at:]


def join(segments: Iterable[tuple[int, bytes]], rest: bytes = b"\xff\xd9") -> bytes:
    """A stream of these segments; without `rest` one of tables only."""
    parts = [struct.pack(">BBH", 255, marker, len(body) + 2) + body for marker, body in segments]
    return b"\xff\xd8" + b"".join(parts) + rest


def without(data: bytes, *markers: int) -> bytes:
    segments, rest = split(data)
    return join([s for s in segments if s[0] not in markers], rest)


def marked(data: bytes, *segments: tuple[int, bytes]) -> bytes:
    """The stream with these segments in front."""
    found, rest = split(data)
    return join([*segments, *found], rest)


def jfif(data: bytes) -> bytes:
    return marked(data, (APP0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"))


def adobe(data: bytes, transform: int) -> bytes:
    return marked(data, (APP14, ADOBE + bytes([transform])))


def abbreviate(data: bytes) -> tuple[bytes, bytes]:
    """(the tables, the stream without them)."""
    segments, _ = split(data)
    return join([s for s in segments if s[0] in TABLES]), without(data, *TABLES)


def with_frame(data: bytes, *, size: tuple[int, int] | None = None, **change: bytes) -> bytes:
    """The stream with another picture size, or other bytes of its frame header (by ``at_<index>``)."""
    segments, rest = split(data)
    for index, (marker, body) in enumerate(segments):
        if marker in {0xC0, 0xC1, 0xC2}:
            frame = bytearray(body)
            if size is not None:
                frame[1:5] = struct.pack(">HH", size[1], size[0])
            for where, value in change.items():
                at = int(where.removeprefix("at_"))
                frame[at : at + len(value)] = value
            segments[index] = marker, bytes(frame)
    return join(segments, rest)


def set_bytes(path: Path, position: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data)


def tile_place(path: Path, index: int, *, page: int = 0) -> tuple[int, int]:
    """(position, length) of a compressed tile of a file."""
    with tifffile.TiffFile(path) as tiff:
        found = tiff.pages[page]
        return found.dataoffsets[index], found.databytecounts[index]


def smaller(image: Pixels, ratio: int) -> Pixels:
    """Area average, the odd rows and columns left out."""
    height, width = image.shape[0] // ratio, image.shape[1] // ratio
    crop = image[: height * ratio, : width * ratio]
    return np.asarray(cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
