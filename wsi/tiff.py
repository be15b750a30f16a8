"""TIFF directories, read within bounds and without a library: what `wsi.preflight` looks at.

The structure is that of TIFF 6.0 and BigTIFF. NDPI is classic TIFF grown past 4 GiB: the position of the
first directory takes 8 bytes, and each directory ends in the 8-byte position of the next and in the upper
halves of its values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt

from wsi.errors import SlideError

COPY_AGAIN = "Copy or download it again"
TILED_AGAIN = "Re-save it as a tiled pyramidal TIFF"
RGB_AGAIN = "Convert it to 8-bit RGB, as a tiled pyramid"
MAX_DIRECTORIES = 512
"""Directories in one file; the largest pyramids have some tens."""
SUBIFDS = 330
"""The tag that lists further directories: the levels of an OME-TIFF pyramid."""
NDPI = 65420
"""The tag that only Hamamatsu's files bear."""

_MAX_FIELDS = 4096  # in one directory: libtiff's own limit
_CHUNK = 2**18  # table entries read at a time

# Numbers by their TIFF field type; 13 and 18 are positions of directories.
_NUMBERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_FIELD_BYTES = dict(zip(range(1, 19), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 4, 4, 8, 8, 8), strict=True))


@dataclass(frozen=True)
class Field:
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
class Directory:
    """A directory of a file: what one picture is, and where its pixels are."""

    name: str
    """For messages."""
    fields: dict[int, Field]
    """By tag."""
    following: int
    """Position of the next directory; 0 ends the chain."""


class Tiff:
    """An open TIFF file, read within bounds; `SlideError` where it ends too early or contradicts itself."""

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

    def fail(self, reason: str, action: str = COPY_AGAIN) -> NoReturn:
        """Refuse the file."""
        raise SlideError(reason, path=self.path, action=action)

    def read(self, position: int, length: int, what: str) -> bytes:
        """Bytes of the file; `what` they are is for the message where they lie beyond its end."""
        if position + length > self.size:
            self.fail(f"truncated: {what} lies beyond the end of the file ({self.size:,} bytes)")
        self.file.seek(position)
        data = self.file.read(length)
        if len(data) < length:
            self.fail("shrank while it was read", "Wait until its copy is complete")
        return data

    def number(self, position: int, dtype: str, what: str) -> int:
        """One number of a NumPy type such as ``"u4"``, in the file's byte order."""
        return int(np.frombuffer(self.read(position, int(dtype[1]), what), self.order + dtype)[0])

    def _is_ndpi(self, position: int) -> bool:
        """Whether the directory at `position` bears Hamamatsu's tag."""
        if not 8 <= position <= self.size - 2:
            return False
        count = self.number(position, "u2", "the first directory")
        whole = min(count, (self.size - position - 2) // 12, _MAX_FIELDS)
        entries = self.read(position + 2, 12 * whole, "the first directory")
        return NDPI in np.frombuffer(entries, self.order + "u2")[::6]

    def directory(self, position: int, name: str) -> Directory:
        """The directory that begins at `position`."""
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
                fields[tag] = Field(kind, length, value_at, high << 32)
            else:
                fields[tag] = Field(kind, length, value + (high << 32), 0)
        return Directory(name, fields, following)

    def chunks(self, directory: Directory, tag: int, limit: int) -> Iterator[npt.NDArray[np.uint64]]:
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

    def values(self, directory: Directory, tag: int, limit: int) -> set[int]:
        """The different ones among a field's first values; none where the field is absent."""
        if tag not in directory.fields:
            return set()
        return {int(value) for chunk in self.chunks(directory, tag, limit) for value in chunk}

    def value(self, directory: Directory, tag: int, default: int) -> int:
        """A field's first value, or the default that TIFF gives it."""
        if tag not in directory.fields or directory.fields[tag].count == 0:
            return default
        return int(next(self.chunks(directory, tag, 1))[0])

    def directories(self) -> Iterator[tuple[Directory, bool]]:
        """Every directory once, and whether it is in the chain: that comes first, then what SubIFDs lead to.

        A chain that closes is an error.
        """
        seen: set[int] = set()
        waiting: list[int] = []

        def visit(position: int) -> Directory:
            if len(seen) == MAX_DIRECTORIES:
                self.fail(f"has more than {MAX_DIRECTORIES} directories", TILED_AGAIN)
            directory = self.directory(position, f"directory {len(seen)}")
            seen.add(position)
            if SUBIFDS in directory.fields:
                for positions in self.chunks(directory, SUBIFDS, MAX_DIRECTORIES):
                    waiting.extend(positions.tolist())
            return directory

        position = self.first
        while position:
            if position in seen:
                self.fail("is damaged: its directories lead in a circle")
            directory = visit(position)
            position = directory.following
            yield directory, True
        while waiting:
            position = waiting.pop()
            if position not in seen:  # some writers chain what they also list
                directory = visit(position)
                waiting += [directory.following] if directory.following else []
                yield directory, False
