"""JPEG tiles of TIFF files, completed and decoded at full or reduced scale.

A tile is often an *abbreviated* stream (TIFF technical note 2): its tables stand once in the directory.
What its three components mean, the directory says and not the stream. `complete` mends both by bytes, so that
any decoder gives the right pixels; markers are those of ITU-T T.81, the Adobe segment that of its clause in
ISO/IEC 10918-6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import simplejpeg
from numpy.typing import NDArray

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # its last byte, the transform, follows
_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended and progressive Huffman
_JFIF, _ADOBE_MARKER, _SCAN, _QUANTISATION = 0xE0, 0xEE, 0xDA, 0xDB
_BARE = {0x00, 0x01, *range(0xD0, 0xDA), 0xFF}  # no length follows: decoders go on right behind them
_IN_TABLES = {0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE}  # Huffman, quantisation, restarts, remarks
_SAMPLINGS = {0x11, 0x21, 0x12, 0x22, 0x41, 0x14}  # of luma, 0x11 of chroma: what libjpeg-turbo's API knows
_LOSSES = ("Corrupt JPEG data", "Premature end")  # what the decoder says where picture is lost
_PADDING = 16
"""Fewer bytes than this that belong to nothing are a writer's padding; more are lost picture."""


class UnusualStreamError(ValueError):
    """The stream is not of the kind that is decoded here; another reader may know it."""


class DamagedStreamError(ValueError):
    """The stream says that some of its picture is lost."""


@dataclass(frozen=True)
class TileStream:
    """What the streams of one directory have in common."""

    size: tuple[int, int]
    """``(width, height)`` of a tile in pixels."""
    tables: bytes
    """The directory's JPEGTables, an abbreviated stream; empty where tiles are whole."""
    is_rgb: bool
    """Whether the components are RGB; else they are YCbCr."""

    def __post_init__(self) -> None:
        """Check the tables: a picture among them would be decoded instead of every tile."""
        end = 2
        for marker, start, end in _segments(self.tables):
            if marker not in _IN_TABLES:
                raise UnusualStreamError(f"has JPEG tables with more than tables in them ({marker:#x})")
            self._check_colours(marker, self.tables[start:end])
        if self.tables and self.tables[end : end + 2] != _EOI:
            raise UnusualStreamError("has JPEG tables that are cut off or none")

    def head(self, data: bytes) -> int:
        """Length of the headers of a tile's stream, up to its picture data.

        Raises
        ------
        UnusualStreamError
            Not 8-bit Huffman JPEG of three components in a usual sampling, of another size than a tile, or
            with markers that contradict the directory.
        """
        if data[:2] != _SOI:
            raise UnusualStreamError("is no JPEG")
        frame = False
        for marker, start, end in _segments(data):
            if marker in _FRAMES:
                self._check_frame(data[start : start + 15])
                frame = True
            elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                raise UnusualStreamError(f"is a JPEG of an unusual process ({marker:#x})")
            elif marker == _SCAN and frame:
                return end
            self._check_colours(marker, data[start : start + 12])
        raise UnusualStreamError("has no picture data")

    def coarseness(self, data: bytes) -> float:
        """Mean quantisation step of the first component, luma or red: what JPEG itself may be off by.

        With libjpeg's tables 23 at quality 80, 11.6 at 90 and 6 at 95; 0 where no table is found.
        """
        steps: dict[int, float] = {}
        first = 0
        for source in (self.tables, data):
            for marker, start, end in _segments(source):
                if marker == _QUANTISATION:
                    steps |= _mean_steps(source[start:end])
                elif marker in _FRAMES and end - start >= 9:
                    first = source[start + 8]
        return steps.get(first, 0.0)

    def _check_frame(self, frame: bytes) -> None:
        """Precision, height, width and number of components; of each of these name, sampling and table."""
        if len(frame) < 15 or frame[0] != 8 or frame[5] != 3:
            raise UnusualStreamError("is not 8-bit colour")
        found = int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[1:3], "big")
        if found != self.size:
            raise UnusualStreamError(f"is {found[0]} x {found[1]} pixels, a tile is {self.size}")
        if frame[7] not in _SAMPLINGS or (frame[10], frame[13]) != (0x11, 0x11):
            raise UnusualStreamError("is sampled in an unusual way")

    def _check_colours(self, marker: int, body: bytes) -> None:
        if marker == _JFIF and self.is_rgb and body[:4] == b"JFIF":
            raise UnusualStreamError("is marked JFIF, and the directory says RGB")
        if marker == _ADOBE_MARKER and body[:5] == b"Adobe" and body[11:12] != self._transform:
            raise UnusualStreamError("has an Adobe marker that contradicts the directory")

    @property
    def _transform(self) -> bytes:
        """How the Adobe marker says what the components are."""
        return b"\0" if self.is_rgb else b"\1"

    @cached_property
    def _start(self) -> bytes:
        """What a complete stream begins with."""
        end = max((end for _, _, end in _segments(self.tables)), default=2)
        return b"".join((_SOI, _ADOBE, self._transform, self.tables[2:end]))

    def complete(self, data: bytes) -> bytes:
        """A stream that stands alone: with its tables, the meaning of its components, and an end."""
        # Two ends harm nobody; none is a warning, which some writers have in every tile.
        return b"".join((self._start, memoryview(data)[2:], _EOI))

    def decode(
        self, data: bytes, *, reduce: int = 1, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Decode one tile; with `reduce` 2, 4 or 8 in the transform itself, at that fraction of its size.

        With `out`, a contiguous array of that size, it is put there.

        Returns
        -------
        ``(height / reduce, width / reduce, 3)`` uint8 RGB.

        Raises
        ------
        DamagedStreamError
            Picture data are missing or make no sense. A flipped bit that still makes sense is not seen:
            JPEG has no checksum.
        UnusualStreamError
            The decoder does not take it, for another reason.
        """
        width, height = self.size[0] // reduce, self.size[1] // reduce
        stream = self.complete(data)
        try:
            pixels = simplejpeg.decode_jpeg(stream, min_width=width, min_height=height, buffer=out)
        except ValueError as error:
            if not _is_padding(str(error)):
                lost = str(error).startswith(_LOSSES)
                raise (DamagedStreamError if lost else UnusualStreamError)(str(error)) from error
            pixels = simplejpeg.decode_jpeg(
                stream, min_width=width, min_height=height, strict=False, buffer=out
            )
        if pixels.shape != (height, width, 3):
            raise DamagedStreamError(f"decodes to {pixels.shape[1]} x {pixels.shape[0]} pixels")
        return pixels  # type: ignore[no-any-return]


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The marker of each segment and where its body starts and ends, up to what is no segment.

    Nothing is jumped over that a decoder would read: a marker without a length ends the walk.
    """
    at = 2 if data[:2] == _SOI else len(data)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in _BARE:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end < at + 4:
            return
        yield data[at + 1], at + 4, end
        at = end


def _mean_steps(body: bytes) -> dict[int, float]:
    """The mean of each table in a segment of quantisation tables (T.81, B.2.4.1), by its number."""
    found, at = {}, 0
    while at < len(body) and body[at] >> 4 <= 1:
        width = 1 + (body[at] >> 4)
        table = body[at + 1 : at + 1 + 64 * width]
        if len(table) == 64 * width:
            found[body[at] & 15] = float(np.frombuffer(table, f">u{width}").mean())
        at += 1 + 64 * width
    return found


def _is_padding(message: str) -> bool:
    """Whether the decoder's only complaint is a few bytes before the end.

    >>> _is_padding("Corrupt JPEG data: 2 extraneous bytes before marker 0xd9")
    True
    >>> _is_padding("Corrupt JPEG data: 167 extraneous bytes before marker 0xd9")
    False
    """
    words = message.split()
    if "extraneous" not in words or not message.endswith("0xd9"):
        return False
    count = words[words.index("extraneous") - 1]
    return count.isdigit() and int(count) < _PADDING
