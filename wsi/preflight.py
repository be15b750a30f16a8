"""What is checked before any decoder touches a file.

Readers of slides trust the file: on damaged ones some hang, some allocate gigabytes, and some go on without
a word and return half a slide. Here each file is first looked at with bounded reads and no library: that it
is a regular file, what its content is, and, for TIFF, that the directories and the tables of tiles agree
with one another and with the file's length, that its colours are such as every decoder gets right, and that
it holds one slide. Damage inside a tile is left to the decoders.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from wsi.errors import SlideError
from wsi.tiff import COPY_AGAIN, RGB_AGAIN, SUBIFDS, TILED_AGAIN, Directory, Tiff

MAX_SEGMENT_BYTES = 64 * 2**20
"""Decoded bytes of one tile or strip."""
MAX_UNTILED_PIXELS = 50_000_000
"""Pixels of a picture that is not stored in tiles."""
MAX_DESCRIPTION_BYTES = 64 * 2**10
"""Bytes of the ImageDescription that are read."""

_ORIGINAL = "Give the slide file that the scanner wrote"
_ONE_RGB = "Save one focal plane, or one RGB picture, as a tiled pyramid"
_UPRIGHT = "Re-save it upright, as a tiled pyramid"

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION = 254, 256, 257, 258, 259
_PHOTOMETRIC, _DESCRIPTION, _ORIENTATION = 262, 270, 274
_STRIP_OFFSETS, _SAMPLES, _STRIP_ROWS, _STRIP_COUNTS, _PLANAR = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 322, 323, 324, 325
_SAMPLE_FORMAT, _OLD_JPEG = 339, 513
_ONE_VALUE = (
    _SUBFILE, _WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _STRIP_ROWS, _PLANAR,
    _TILE_WIDTH, _TILE_HEIGHT,
)  # fmt: skip
_UNCOMPRESSED, _JPEG = 1, 7  # values of _COMPRESSION
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG markers that state a picture's size

# Values of _PHOTOMETRIC, and how many samples a pixel may then have (the fourth is opacity).
_GREY, _RGB, _YCBCR = 1, 2, 6
_SAMPLES_OF = {_GREY: {1}, _RGB: {3, 4}, _YCBCR: {3}}
_OTHER_COLOURS = {
    0: "grey in negative",
    3: "a picture with a palette",
    4: "a mask",
    5: "CMYK",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
}
_LEICA = "http://www.leica-microsystems.com/scn/"  # names its XML
_LEICA_PLANE = re.compile(r'<dimension[^>]*\s[zc]="[1-9]')  # a focal plane or channel after the first
_MAX_SORTED = 2**20  # tiles of one picture; a slide of 100,000 x 100,000 pixels has a sixth of that
_MAX_SAMPLES = 64  # whose bits and format are looked at
_UNSIGNED = {1, 4}  # values of _SAMPLE_FORMAT; 4 is "undefined"
_LOSSLESS = {1, 5, 8, 32773, 32946, 34925, 50000}  # values of _COMPRESSION
_REDUCED, _MASK = 1, 4  # bits of _SUBFILE

# What files that are no slides begin with, and what to say of them.
_STRANGERS = (
    (rb"\xff\xd8\xff", "is a JPEG picture", _ORIGINAL),
    (rb"\x89PNG", "is a PNG picture", _ORIGINAL),
    (rb"%PDF", "is a PDF document", _ORIGINAL),
    (rb"PK\x03\x04", "is a ZIP archive", "Unpack it first"),
    (rb"\x1f\x8b", "is a gzip archive", "Unpack it first"),
    (rb"\x00\x05\x16\x07", "is a companion file of macOS without a picture", "Give the file without '._'"),
    (rb"\x00{16}", "begins with zeros: the copy was not finished", COPY_AGAIN),
    (
        rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)",
        "is an HTML page: the download failed",
        COPY_AGAIN,
    ),
    (rb"(\xef\xbb\xbf)?\s*<\?xml", "is an XML text: perhaps a server's message of failure", COPY_AGAIN),
    (rb"[\t\n\r\x20-\x7e]+\Z", "is a text", _ORIGINAL),
)
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"BM")  # what the .mrxs file beside its folder may be
_HAMAMATSU = (b"[Virtual Microscope Specimen]", b"[Uncompressed Virtual Microscope Specimen]")  # VMS, VMU
_VMS_FILE = rb"(?m)^(?:ImageFile(?:\([\d,]+\))?|MapFile) *= *([^\r\n]+)"
_MRXS_FILE = rb"(?m)^FILE_\d+ *= *([^\r\n]+)"
_MAX_INDEX_BYTES = 2**20  # of a text that names a slide's other files; usual are some ten thousand
_OTHER_SLIDES = (
    (0, b"ZISRAWFILE"),  # Zeiss CZI
    (0, b"SQLite format 3\0"),  # Sakura
    *((0, magic) for magic in _HAMAMATSU),
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
    largest: tuple[int, int] = (0, 0)
    """``(width, height)`` of the largest picture that is stored in tiles, no mask; zeros for none."""


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
                return _check_tiff(Tiff(file, path, size))
        _check_other(path, head)
    except SlideError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        action = "Check the path, the permissions and the disk"
        raise SlideError(f"cannot be read ({reason})", path=path, action=action) from error
    return FileFacts(container="other", subifds=False, description="")


def _check_other(path: Path, head: bytes) -> None:
    """Check that a file that is no TIFF, and begins with `head`, is a slide, and has its other files."""
    if path.suffix.lower() == ".mrxs" and head.startswith(_PICTURES):
        _check_mrxs_folder(path)
    elif head.startswith(_HAMAMATSU):
        _check_beside(path, path, _VMS_FILE)
    elif not any(head[start:].startswith(magic) for start, magic in _OTHER_SLIDES):
        _refuse_stranger(path, head)


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
        raise SlideError("is empty (0 bytes)", path=path, action=COPY_AGAIN)
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
    _check_beside(path, folder / "Slidedat.ini", _MRXS_FILE)


def _check_beside(path: Path, index: Path, pattern: bytes) -> None:
    """Check that the files which an index names are beside it; OpenSlide does not say which one it misses."""
    with index.open("rb") as file:
        text = file.read(_MAX_INDEX_BYTES)
    for found in re.findall(pattern, text):
        name = found.strip().decode("utf-8", errors="surrogateescape")
        if not (index.parent / name).is_file():
            missing = name if index == path else f"{index.parent.name}/{name}"
            raise SlideError(
                f"{missing}, which belongs to it, is missing",
                path=path,
                action="Copy the slide again, with all its files",
            )


def _refuse_stranger(path: Path, head: bytes) -> NoReturn:
    for pattern, reason, action in _STRANGERS:
        if re.match(pattern, head):
            raise SlideError(f"{reason}, not a slide", path=path, action=action)
    found = head[:8].hex(" ")
    raise SlideError(f"is no slide of a known format (begins with {found})", path=path, action=COPY_AGAIN)


def _check_tiff(tiff: Tiff) -> FileFacts:
    facts, largest = None, (0, 0)
    tiled: list[Directory] = []  # the full pictures and, where a writer does not mark them, their levels
    for directory, chained in tiff.directories():
        kind, is_tiled = tiff.value(directory, _SUBFILE, 0), _TILE_WIDTH in directory.fields
        if facts is None:
            facts = FileFacts("tiff", SUBIFDS in directory.fields, _description(tiff, directory))
            if _WIDTH not in directory.fields:
                tiff.fail("its first directory describes no picture", _ORIGINAL)
            _check_picture(tiff, directory)
            _check_colours(tiff, directory, facts)
        elif _WIDTH in directory.fields:
            _check_picture(tiff, directory)
            if is_tiled and not kind & _MASK:  # it may be a level
                _check_colours(tiff, directory, facts)
        if is_tiled and not kind & _MASK:
            largest = max(largest, _size(tiff, directory), key=math.prod)
        if chained and is_tiled and not kind & (_REDUCED | _MASK):
            tiled.append(directory)
    if facts is None:
        tiff.fail("holds no directory of pictures")
    _check_layers(tiff, tiled, facts)
    return replace(facts, largest=largest)


def _size(tiff: Tiff, directory: Directory) -> tuple[int, int]:
    return tiff.value(directory, _WIDTH, 0), tiff.value(directory, _HEIGHT, 0)


def _check_layers(tiff: Tiff, tiled: Sequence[Directory], facts: FileFacts) -> None:
    """Refuse focal planes and channels: readers take the first, and leave out the others without a word.

    The largest size occurs once; of smaller ones there may be a level and a macro. Three grey planes of OME
    are an exception: tiffslide, which reads those with SubIFDs, takes them for RGB, and so do their writers.
    So are the areas of Leica, whose XML says where on the slide each lies, and which are planes.
    """
    if not tiled:
        return
    sizes = [_size(tiff, directory) for directory in tiled]
    largest = max(sizes, key=math.prod)
    layers = [d for d, size in zip(tiled, sizes, strict=True) if size == largest]
    grey = all(tiff.value(d, _SAMPLES, 1) == 1 for d in layers)
    rgb_in_planes = grey and len(layers) == 3 and facts.subifds and "<OME" in facts.description
    areas = _LEICA in facts.description and not _LEICA_PLANE.search(facts.description)
    if len(layers) > 1 and not rgb_in_planes and not areas:
        tiff.fail(f"is a stack of {len(layers)} images of one size, not one slide", _ONE_RGB)


def _check_colours(tiff: Tiff, directory: Directory, facts: FileFacts) -> None:
    """Check that the numbers are 8-bit grey, RGB or YCbCr, and that the picture is upright.

    Of others OpenSlide, tiffslide or both give wrong colours without a word: tiffslide takes any number for
    RGB, OpenSlide takes a fifth channel for opacity, and neither knows which of 16 bits are in use. What a
    file does not say is taken to be usual; but of JPEG both RGB and YCbCr are.
    """
    photometric = tiff.value(directory, _PHOTOMETRIC, _RGB)
    # By the specification it is one bit a sample where nothing is said, and tiffslide, which reads files with
    # SubIFDs, takes it so; but nobody writes one-bit RGB.
    unsaid = 1 if photometric == _GREY or facts.subifds else 8
    bits = tiff.values(directory, _BITS, _MAX_SAMPLES) or {unsaid}
    formats = tiff.values(directory, _SAMPLE_FORMAT, _MAX_SAMPLES)
    samples, compression = tiff.value(directory, _SAMPLES, 0), tiff.value(directory, _COMPRESSION, 0)
    found = ""
    if photometric not in _SAMPLES_OF:
        found = f"is {_OTHER_COLOURS.get(photometric, f'of photometric interpretation {photometric}')}"
    elif not formats <= _UNSIGNED:
        found = "holds signed or fractional numbers"
    elif not bits <= {8}:
        found = f"has {max(bits - {8})}-bit samples"
    elif samples and _PHOTOMETRIC in directory.fields and samples not in _SAMPLES_OF[photometric]:
        found = f"has {samples} channels that are not those of RGB"
    elif photometric == _YCBCR and compression in _LOSSLESS:
        found = "is YCbCr that is no JPEG"
    elif _PHOTOMETRIC not in directory.fields and compression == _JPEG and not tiff.ndpi:
        found = "does not say whether its JPEG is RGB or YCbCr"
    where = "" if directory.name == "directory 0" else f"{directory.name} "
    if found:
        tiff.fail(f"{where}{found}; 8-bit RGB is needed", RGB_AGAIN)
    if (orientation := tiff.value(directory, _ORIENTATION, 1)) != 1:
        # OpenSlide turns each tile by itself, or none; others none.
        tiff.fail(f"{where}is stored turned or mirrored (orientation {orientation})", _UPRIGHT)


def _description(tiff: Tiff, directory: Directory) -> str:
    field = directory.fields.get(_DESCRIPTION)
    if field is None:
        return ""
    what = f"the description in {directory.name}"
    if field.position + field.count > tiff.size:
        tiff.fail(f"truncated: {what} lies beyond the end of the file ({tiff.size:,} bytes)")
    text = tiff.read(field.position, min(field.count, MAX_DESCRIPTION_BYTES), what)
    return text.split(b"\0")[0].decode("utf-8", errors="replace")


def _check_picture(tiff: Tiff, directory: Directory) -> None:
    """Check that a picture's tiles or strips are of a bearable size, as many as it needs, and in the file."""
    name = directory.name
    for tag in directory.fields.keys() & _ONE_VALUE:
        # OpenSlide refuses such a file, and tifffile, which is asked next, takes it for uncompressed.
        if (held := directory.fields[tag].count) != 1:
            tiff.fail(f"{name} is damaged: tag {tag} has {held:,} values, not one")
    width, height = _size(tiff, directory)
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
            tiff.fail(f"{name} has {part}s of {across:,} x {down:,} pixels: too large to decode", TILED_AGAIN)
        if not tiled and width * height > MAX_UNTILED_PIXELS:
            tiff.fail(
                f"{name} is {width:,} x {height:,} pixels without tiles: too large to read", TILED_AGAIN
            )
    needed = math.ceil(width / across) * math.ceil(height / down) * planes
    plain = tiled and tiff.value(directory, _COMPRESSION, 1) == _UNCOMPRESSED
    least = across * down * max(samples, 1) // planes * bits // 8 if plain else 0
    _check_table(tiff, directory, part, (offsets_tag, counts_tag), needed, least=least)
    if tiled and tiff.value(directory, _COMPRESSION, 1) == _JPEG:
        _check_first_jpeg(tiff, directory, (across, down))


def _check_table(
    tiff: Tiff, directory: Directory, part: str, tags: tuple[int, int], needed: int, *, least: int
) -> None:
    """Check that the table of tiles or strips is complete, and that what it points to lies in the file.

    A tile of no bytes is legal: scanners leave out glass. Others have `least` bytes. A table of too many
    tiles contradicts the picture's size; readers then take other tiles, or none. Strips that are too many
    they leave out.
    """
    for tag in tags:
        held = directory.fields[tag].count if tag in directory.fields else 0
        missing = held < needed and not (held == 0 and _OLD_JPEG in directory.fields)
        if missing or (held > needed and part == "tile"):
            tiff.fail(f"{directory.name} needs {needed:,} {part}s and lists {held:,}")
        if held == 0:
            return
    lost = 0
    places: list[tuple[np.ndarray, np.ndarray]] = []
    tables = (tiff.chunks(directory, tag, needed) for tag in tags)
    for offsets, counts in zip(*tables, strict=True):
        if short := int(np.count_nonzero((counts > 0) & (counts < least))):
            # Pixels are then taken out of something else: of compressed tiles, whose field of that is gone.
            tiff.fail(f"{directory.name} is damaged: {short:,} uncompressed tiles have too few bytes")
        if part == "tile" and needed <= _MAX_SORTED and not tiff.ndpi:
            places.append((offsets, counts))
        room = np.uint64(tiff.size) - np.minimum(offsets, np.uint64(tiff.size))
        wanted = np.minimum(counts, np.uint64(1)) if tiff.ndpi else counts  # NDPI's may have overflowed
        lost += int(np.count_nonzero((counts > 0) & (wanted > room)))
    if lost:
        tiff.fail(
            f"truncated: {lost:,} of {needed:,} {part}s of {directory.name} lie beyond the end of the file"
        )
    if places and (wrong := _overlaps(*map(np.concatenate, zip(*places, strict=True)))):
        tiff.fail(f"{directory.name} is damaged: {wrong:,} of {needed:,} tiles begin within another one")


def _overlaps(offsets: np.ndarray, counts: np.ndarray) -> int:
    """How many tiles begin within another. Where a table is taken from the wrong place many do.

    Two that are the same bytes are legal: writers save glass so.
    """
    order = np.argsort(offsets[counts > 0], kind="stable")
    starts, ends = (values[counts > 0][order] for values in (offsets, offsets + counts))
    return int(np.count_nonzero((starts[1:] < ends[:-1]) & (starts[1:] > starts[:-1])))


def _check_first_jpeg(tiff: Tiff, directory: Directory, tile: tuple[int, int]) -> None:
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
