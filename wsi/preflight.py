"""What is checked before any decoder touches a file.

Readers of slides trust the file: on damaged ones some hang, some allocate gigabytes, and some go on without
a word and return half a slide. Here each file is first looked at with bounded reads and no library: that it
is a regular file, what its content is, and, for TIFF, that the directories and the tables of tiles agree
with one another and with the file's length. Damage inside a tile is left to the decoders.

The structure is that of TIFF 6.0 and BigTIFF. NDPI is classic TIFF grown past 4 GiB: the position of the
first directory takes 8 bytes, and each directory ends in the 8-byte position of the next and in the upper
halves of its values.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt

from wsi.errors import SlideError

MAX_DIRECTORIES = 512
"""Directories in one file; the largest pyramids have some tens."""
MAX_SEGMENT_BYTES = 64 * 2**20
"""Decoded bytes of one tile or strip."""
MAX_UNTILED_PIXELS = 50_000_000
"""Pixels of a picture that is not stored in tiles."""
MAX_DESCRIPTION_BYTES = 64 * 2**10
"""Bytes of the ImageDescription that are read."""

_MAX_FIELDS = 4096  # in one directory: libtiff's own limit
_CHUNK = 2**18  # table entries read at a time
_AGAIN = "Copy or download it again"
_ORIGINAL = "Give the slide file that the scanner wrote"
_TILED = "Re-save it as a tiled pyramidal TIFF"

# Numbers by their TIFF field type; 13 and 18 are positions of directories.
_NUMBERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_FIELD_BYTES = dict(zip(range(1, 19), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 4, 4, 8, 8, 8), strict=True))

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _DESCRIPTION = 256, 257, 258, 259, 270
_STRIP_OFFSETS, _SAMPLES, _STRIP_ROWS, _STRIP_COUNTS, _PLANAR = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS, _SUBIFDS = 322, 323, 324, 325, 330
_OLD_JPEG, _NDPI = 513, 65420
_JPEG = 7  # a value of _COMPRESSION
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG markers that state a picture's size

# What files that are no slides begin with, and what to say of them.
_STRANGERS = (
    (rb"\xff\xd8\xff", "is a JPEG picture", _ORIGINAL),
    (rb"\x89PNG", "is a PNG picture", _ORIGINAL),
    (rb"%PDF", "is a PDF document", _ORIGINAL),
    (rb"PK\x03\x04", "is a ZIP archive", "Unpack it first"),
    (rb"\x1f\x8b", "is a gzip archive", "Unpack it first"),
    (rb"\x00\x05\x16\x07", "is a companion file of macOS without a picture", "Give the file without '._'"),
    (rb"\x00{16}", "begins with zeros: the copy was not finished", _AGAIN),
    (
        rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)",
        "is an HTML page: the download failed",
        _AGAIN,
    ),
    (rb"(\xef\xbb\xbf)?\s*<\?xml", "is an XML text: perhaps a server's message of failure", _AGAIN),
    (rb"[\t\n\r\x20-\x7e]+\Z", "is a text", _ORIGINAL),
)
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"BM")  # what the .mrxs file beside its folder may be
_OTHER_SLIDES = (
    (0, b"ZISRAWFILE"),  # Zeiss CZI
    (0, b"SQLite format 3\0"),  # Sakura
    (0, b"[Virtual Microscope Specimen]"),  # Hamamatsu VMS
    (0, b"[Uncompressed Virtual Microscope Specimen]"),  # Hamamatsu VMU
    (128, b"DICM"),  # DICOM, part 10 of the standard
)


@dataclass(frozen=True)
class FileFacts:
    """What a look at a file without decoding it tells."""

    container: str
    """``"tiff"`` or ``"other"``."""
    subifds: bool
    """Whether the first directory points to others by SubIFDs (tag 330), as OME-TIFF pyramids do."""
    description: str
    """ImageDescription of the first directory, at most 64 KiB of it; empty where there is none."""


def check_file(path: Path) -> FileFacts:
    """Look at a file before it is opened as a slide; the content counts, not the suffix.

    Raises
    ------
    SlideError
        Missing, no regular file, empty, not a slide, incomplete, contradictory, or not safely readable.
    """
    try:
        size = _regular_size(path)
        with path.open("rb") as file:
            head = file.read(4096)
            if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                return _check_tiff(_Tiff(file, path, size))
    except SlideError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        action = "Check the path, the permissions and the disk"
        raise SlideError(f"cannot be read ({reason})", path=path, action=action) from error
    if path.suffix.lower() == ".mrxs" and head.startswith(_PICTURES):
        _check_mrxs_folder(path)
    elif not any(head[start:].startswith(magic) for start, magic in _OTHER_SLIDES):
        _refuse_stranger(path, head)
    return FileFacts(container="other", subifds=False, description="")


def _regular_size(path: Path) -> int:
    """Bytes of a regular file. Opening a pipe would wait for ever, so its kind is asked for first."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        if path.is_symlink():
            raise SlideError(
                f"is a link to {os.readlink(path)}, which does not exist",
                path=path,
                action="Restore its target",
            ) from error
        raise SlideError("does not exist", path=path, action="Check the path") from error
    if stat.S_ISDIR(status.st_mode):
        raise SlideError("is a folder", path=path, action="Give a slide file in it")
    if not stat.S_ISREG(status.st_mode):
        raise SlideError("is a pipe, socket or device, not a file", path=path, action=_ORIGINAL)
    if status.st_size == 0:
        raise SlideError("is empty (0 bytes)", path=path, action=_AGAIN)
    return status.st_size


def _check_mrxs_folder(path: Path) -> None:
    """An .mrxs file is only the cover: the slide lies in the folder of the same name."""
    folder = path.with_suffix("")
    action = f"Copy the folder {folder.name}/ beside it, whole"
    if not folder.is_dir():
        raise SlideError(f"the folder {folder.name}/ that belongs to it is missing", path=path, action=action)
    for name in ("Slidedat.ini", "Index.dat"):
        if not (folder / name).is_file():
            raise SlideError(f"{folder.name}/{name} is missing", path=path, action=action)


def _refuse_stranger(path: Path, head: bytes) -> NoReturn:
    for pattern, reason, action in _STRANGERS:
        if re.match(pattern, head):
            raise SlideError(f"{reason}, not a slide", path=path, action=action)
    found = head[:8].hex(" ")
    raise SlideError(f"is no slide of a known format (begins with {found})", path=path, action=_AGAIN)


@dataclass(frozen=True)
class _Field:
    """One entry of a directory."""

    kind: int
    """TIFF field type."""
    count: int
    """Number of values."""
    position: int
    """Of the first value in the file; short values stand in the entry itself."""
    high: int
    """NDPI: the upper half of a value that stands in the entry."""


@dataclass(frozen=True)
class _Directory:
    name: str
    """For messages."""
    fields: dict[int, _Field]
    """By tag."""
    following: int
    """Position of the next directory; 0 ends the chain."""


class _Tiff:
    """An open TIFF file, read within bounds."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.file, self.path, self.size = file, path, size
        head = self.read(0, 8, "the header")
        self.order = "<" if head[:2] == b"II" else ">"
        self.big = b"+" in head[2:4]
        self.word = "u8" if self.big else "u4"  # positions and counts
        self.first = self.number(8 if self.big else 4, self.word, "the header")
        self.ndpi = False
        if not self.big and size >= 12:
            for first in (self.first, self.number(4, "u8", "the header")):
                if self._is_ndpi(first):
                    self.ndpi, self.first = True, first

    def fail(self, reason: str, action: str = _AGAIN) -> NoReturn:
        raise SlideError(reason, path=self.path, action=action)

    def read(self, position: int, length: int, what: str) -> bytes:
        if position + length > self.size:
            self.fail(f"truncated: {what} lies beyond the end of the file ({self.size:,} bytes)")
        self.file.seek(position)
        data = self.file.read(length)
        if len(data) < length:
            self.fail("shrank while it was read", "Wait until its copy is complete")
        return data

    def number(self, position: int, dtype: str, what: str) -> int:
        return int(np.frombuffer(self.read(position, int(dtype[1]), what), self.order + dtype)[0])

    def _is_ndpi(self, position: int) -> bool:
        """Whether the directory at `position` bears Hamamatsu's tag."""
        if not 8 <= position <= self.size - 2:
            return False
        count = self.number(position, "u2", "the first directory")
        whole = min(count, (self.size - position - 2) // 12, _MAX_FIELDS)
        entries = self.read(position + 2, 12 * whole, "the first directory")
        return _NDPI in np.frombuffer(entries, self.order + "u2")[::6]

    def directory(self, position: int, name: str) -> _Directory:
        count_type, next_type = ("u8" if self.big else "u2"), ("u8" if self.ndpi else self.word)
        count = self.number(position, count_type, name)
        if not 0 < count <= _MAX_FIELDS:
            self.fail(f"{name} is damaged or cut off ({count:,} fields)")
        entry = np.dtype([("tag", "u2"), ("kind", "u2"), ("count", self.word), ("value", self.word)])
        entry = entry.newbyteorder(self.order)  # type: ignore[arg-type]  # one of "<", ">"
        start = position + int(count_type[1])
        end = start + count * entry.itemsize
        table = np.frombuffer(self.read(start, end - start, name), entry)
        following = self.number(end, next_type, name)
        highs = [0] * count
        if self.ndpi:
            highs = np.frombuffer(self.read(end + 8, 4 * count, name), self.order + "u4").tolist()
        fields = {}
        for index, ((tag, kind, length, value), high) in enumerate(zip(table.tolist(), highs, strict=True)):
            if length * _FIELD_BYTES.get(kind, 1) <= int(self.word[1]):
                value_at = start + (index + 1) * entry.itemsize - int(self.word[1])
                fields[tag] = _Field(kind, length, value_at, high << 32)
            else:
                fields[tag] = _Field(kind, length, value + (high << 32), 0)
        return _Directory(name, fields, following)

    def chunks(self, directory: _Directory, tag: int, limit: int) -> Iterator[npt.NDArray[np.uint64]]:
        """The first `limit` values of a field, some at a time, once all are known to lie in the file."""
        field, what = directory.fields[tag], f"tag {tag} of {directory.name}"
        if field.kind not in _NUMBERS:
            self.fail(f"{what} is damaged (field type {field.kind})")
        dtype = np.dtype(self.order + _NUMBERS[field.kind])
        count = min(field.count, limit)
        if field.position + count * dtype.itemsize > self.size:
            self.fail(f"truncated: {what} lies beyond the end of the file ({self.size:,} bytes)")
        for start in range(0, count, _CHUNK):
            length = min(_CHUNK, count - start) * dtype.itemsize
            data = self.read(field.position + start * dtype.itemsize, length, what)
            yield np.frombuffer(data, dtype).astype(np.uint64) + np.uint64(field.high)

    def value(self, directory: _Directory, tag: int, default: int) -> int:
        """A field's first value, or the default that TIFF gives it."""
        if tag not in directory.fields or directory.fields[tag].count == 0:
            return default
        return int(next(self.chunks(directory, tag, 1))[0])


def _check_tiff(tiff: _Tiff) -> FileFacts:
    facts = None
    for directory in _directories(tiff):
        if facts is None:
            facts = FileFacts("tiff", _SUBIFDS in directory.fields, _description(tiff, directory))
            if _WIDTH not in directory.fields:
                tiff.fail("its first directory describes no picture", _ORIGINAL)
        if _WIDTH in directory.fields:
            _check_picture(tiff, directory)
    if facts is None:
        tiff.fail("holds no directory of pictures")
    return facts


def _directories(tiff: _Tiff) -> Iterator[_Directory]:
    """Every directory once: the chain, then what its SubIFDs lead to. A chain that closes is an error."""
    seen: set[int] = set()
    waiting: list[int] = []

    def visit(position: int) -> _Directory:
        if len(seen) == MAX_DIRECTORIES:
            tiff.fail(f"has more than {MAX_DIRECTORIES} directories", _TILED)
        directory = tiff.directory(position, f"directory {len(seen)}")
        seen.add(position)
        if _SUBIFDS in directory.fields:
            for positions in tiff.chunks(directory, _SUBIFDS, MAX_DIRECTORIES):
                waiting.extend(positions.tolist())
        return directory

    position = tiff.first
    while position:
        if position in seen:
            tiff.fail("is damaged: its directories lead in a circle")
        directory = visit(position)
        position = directory.following
        yield directory
    while waiting:
        position = waiting.pop()
        if position not in seen:  # some writers chain what they also list
            directory = visit(position)
            waiting += [directory.following] if directory.following else []
            yield directory


def _description(tiff: _Tiff, directory: _Directory) -> str:
    field = directory.fields.get(_DESCRIPTION)
    if field is None:
        return ""
    what = f"the description in {directory.name}"
    if field.position + field.count > tiff.size:
        tiff.fail(f"truncated: {what} lies beyond the end of the file ({tiff.size:,} bytes)")
    text = tiff.read(field.position, min(field.count, MAX_DESCRIPTION_BYTES), what)
    return text.split(b"\0")[0].decode("utf-8", errors="replace")


def _check_picture(tiff: _Tiff, directory: _Directory) -> None:
    """Check that a picture's tiles or strips are of a bearable size, as many as it needs, and in the file."""
    name = directory.name
    width, height = tiff.value(directory, _WIDTH, 0), tiff.value(directory, _HEIGHT, 0)
    if not width or not height:
        tiff.fail(f"{name} says {width} x {height} pixels")
    samples, bits = tiff.value(directory, _SAMPLES, 1), tiff.value(directory, _BITS, 1)
    tiled = _TILE_WIDTH in directory.fields
    if tiled:
        part, offsets_tag, counts_tag = "tile", _TILE_OFFSETS, _TILE_COUNTS
        across, down = tiff.value(directory, _TILE_WIDTH, 0), tiff.value(directory, _TILE_HEIGHT, 0)
    else:
        part, offsets_tag, counts_tag = "strip", _STRIP_OFFSETS, _STRIP_COUNTS
        across, down = width, min(tiff.value(directory, _STRIP_ROWS, height), height)
    if not across or not down:
        tiff.fail(f"{name} says {part}s of {across} x {down} pixels")
    planes = max(samples, 1) if tiff.value(directory, _PLANAR, 1) == 2 else 1
    if not tiff.ndpi:  # its one strip is a JPEG with marks to start at, read in parts
        decoded = across * down * samples // planes * bits // 8
        if decoded > MAX_SEGMENT_BYTES:
            tiff.fail(f"{name} has {part}s of {across:,} x {down:,} pixels: too large to decode", _TILED)
        if not tiled and width * height > MAX_UNTILED_PIXELS:
            tiff.fail(f"{name} is {width:,} x {height:,} pixels without tiles: too large to read", _TILED)
    needed = math.ceil(width / across) * math.ceil(height / down) * planes
    _check_table(tiff, directory, part, (offsets_tag, counts_tag), needed)
    if tiled and tiff.value(directory, _COMPRESSION, 1) == _JPEG:
        _check_first_jpeg(tiff, directory, (across, down))


def _check_table(tiff: _Tiff, directory: _Directory, part: str, tags: tuple[int, int], needed: int) -> None:
    """Check that the table of tiles or strips is complete, and that what it points to lies in the file.

    A tile of no bytes is legal: scanners leave out glass.
    """
    for tag in tags:
        held = directory.fields[tag].count if tag in directory.fields else 0
        if held < needed and not (held == 0 and _OLD_JPEG in directory.fields):
            tiff.fail(f"{directory.name} needs {needed:,} {part}s and lists {held:,}")
        if held == 0:
            return
    lost = 0
    tables = (tiff.chunks(directory, tag, needed) for tag in tags)
    for offsets, counts in zip(*tables, strict=True):
        room = np.uint64(tiff.size) - np.minimum(offsets, np.uint64(tiff.size))
        wanted = np.minimum(counts, np.uint64(1)) if tiff.ndpi else counts  # NDPI's may have overflowed
        lost += int(np.count_nonzero((counts > 0) & (wanted > room)))
    if lost:
        tiff.fail(
            f"truncated: {lost:,} of {needed:,} {part}s of {directory.name} lie beyond the end of the file"
        )


def _check_first_jpeg(tiff: _Tiff, directory: _Directory, tile: tuple[int, int]) -> None:
    """Check that the first tile, if a JPEG, is no larger than a tile: a decoder would make room for it.

    Frame headers as in ITU-T T.81, B.2.2.
    """
    offset, count = (tiff.value(directory, tag, 0) for tag in (_TILE_OFFSETS, _TILE_COUNTS))
    if count == 0:
        return
    data = tiff.read(offset, min(count, 4096), f"a tile of {directory.name}")
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        if data[at + 1] in _FRAMES:
            height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            if width > tile[0] or height > tile[1]:
                found = f"a JPEG of {width} x {height} pixels as a tile of {tile[0]} x {tile[1]}"
                tiff.fail(f"{directory.name} is damaged: it has {found}")
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
