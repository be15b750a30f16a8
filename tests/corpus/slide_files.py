"""Slide files that are cut off, are something else, contradict themselves, or hold damaged tiles."""

from __future__ import annotations

import base64
import io
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from corpus import forge
from corpus.fault import Fault, Processed, Rejected, Warned
from corpus.slides import (
    AS_IT_IS,
    CENTIMETRE,
    COLUMNS,
    RICH,
    ROWS,
    TILE,
    Cut,
    all_but,
    spoilt,
    svs,
    tiff,
    tissue,
)
from corpus.tampering import (
    COMPRESSION,
    HEIGHT,
    TILE_OFFSETS,
    WIDTH,
    directory_at,
    field_at,
    patch,
    set_value,
)

TRUNCATED = Rejected("truncated: .* beyond the end of the file.*Copy or download it again")
PLACE = (RICH % COLUMNS * TILE, RICH // COLUMNS * TILE)
"""Level-0 (x, y) of the tile that is spoilt."""
LEFT_OUT = Warned(
    rf"1 of \d+ tiles cannot be decoded and are left out: \({PLACE[0]}, {PLACE[1]}\)", all_but([PLACE])
)


# Cut off ---------------------------------------------------------------------------------------------------


def pyramid(path: Path, *, um: float = 0.5, spoil: Callable[[list[bytes]], None] | None = None) -> Path:
    """A generic JPEG pyramid, each directory after its tiles; `spoil` changes those of the finest level."""
    pictures = []
    for ratio in (1, 4):
        image = forge.smaller(tissue(), ratio)
        tiles = forge.cut(image, (TILE, TILE), forge.jpeg)
        if ratio == 1 and spoil:
            spoil(tiles)
        pictures.append(forge.Picture((image.shape[1], image.shape[0]), (TILE, TILE), tiles))
    return forge.write_tiff(path, pictures, um=um)


def cut_to(share: float, write: Callable[[Path], Path] = svs) -> Callable[[Path], Path]:
    """The first part of a sound file."""

    def make(folder: Path) -> Path:
        path = write(folder / f"{folder.name}.svs")
        os.truncate(path, round(path.stat().st_size * share))
        return path

    return make


def header_only(folder: Path) -> Path:
    path = tiff(folder / f"{folder.name}.svs")
    with tifffile.TiffFile(path) as file:
        os.truncate(path, min(file.pages[0].dataoffsets))
    return path


CUT_OFF = (
    *(
        Fault(f"trunc_{percent}", f"a scan of which {percent} % arrived", cut_to(percent / 100), TRUNCATED)
        for percent in (1, 25, 50, 90, 99)
    ),
    *(
        Fault(
            f"trunc_{percent}_ifd_last",
            f"{percent} % of a file whose directories stand at the end",
            cut_to(percent / 100, pyramid),
            TRUNCATED,
        )
        for percent in (50, 99)
    ),
    *(
        Fault(
            f"trunc_{percent}_ifd_first",
            f"{percent} % of a file whose directory stands at the beginning",
            cut_to(percent / 100, tiff),
            TRUNCATED,
        )
        for percent in (50, 99)
    ),
    Fault("header_only", "all directories, and no pixel", header_only, TRUNCATED),
)


# Something else --------------------------------------------------------------------------------------------


def holding(data: bytes, suffix: str = ".svs", *, before: str = "") -> Callable[[Path], Path]:
    """A file of these bytes."""

    def make(folder: Path) -> Path:
        path = folder / f"{before}{folder.name}{suffix}"
        path.write_bytes(data)
        return path

    return make


def encoded(format: str) -> bytes:  # noqa: A002
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "pink").save(file, format)
    return file.getvalue()


def mrxs(*there: str, slidedat: str = "") -> Callable[[Path], Path]:
    """The cover of a MIRAX slide, and of its folder what is named."""

    def make(folder: Path) -> Path:
        path = folder / f"{folder.name}.mrxs"
        path.write_bytes(encoded("JPEG"))
        for name in there:
            (folder / folder.name).mkdir(exist_ok=True)
            (folder / folder.name / name).write_text(slidedat if name == "Slidedat.ini" else "")
        return path

    return make


DATA_FILES = "[DATAFILE]\r\nFILE_COUNT = 2\r\nFILE_0 = Data0000.dat\r\nFILE_1 = Data0001.dat\r\n"
VMS = b"[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=1\nNoJpegRows=1\nImageFile=gone.jpg\n"
DICOM = bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00\x00\x00\x00\x00"

STRANGERS = (
    Fault("zero_byte", "an empty file", holding(b""), Rejected(r"is empty \(0 bytes\)")),
    Fault(
        "html_as_svs",
        "a login page that was downloaded in its place",
        holding(b"<!DOCTYPE html><html><body>Please log in</body></html>"),
        Rejected("is an HTML page: the download failed"),
    ),
    Fault(
        "xml_as_svs",
        "a server's message of failure",
        holding(b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"),
        Rejected("is an XML text"),
    ),
    Fault("json_as_svs", "another one", holding(b'{"error": "expired"}'), Rejected("is a text, not a slide")),
    Fault(
        "random_bytes",
        "noise",
        holding(np.random.default_rng(3).bytes(50_000)),
        Rejected(r"is no slide of a known format \(begins with "),
    ),
    Fault(
        "zeros",
        "a download that only reserved its room",
        holding(bytes(100_000)),
        Rejected("begins with zeros"),
    ),
    Fault(
        "jpeg_as_svs", "a JPEG picture", holding(encoded("JPEG")), Rejected("is a JPEG picture, not a slide")
    ),
    Fault("png_as_svs", "a PNG picture", holding(encoded("PNG")), Rejected("is a PNG picture, not a slide")),
    Fault("pdf_as_svs", "a report", holding(b"%PDF-1.7\n"), Rejected("is a PDF document")),
    Fault(
        "zip_as_svs",
        "a slide that is still packed",
        holding(b"PK\x03\x04slide.svs"),
        Rejected("Unpack it first"),
    ),
    Fault("gzip_as_svs", "another one", holding(b"\x1f\x8b\x08slide"), Rejected("Unpack it first")),
    Fault(
        "appledouble",
        "what macOS leaves beside a file",
        holding(b"\0\5\x16\7\0\2\0\0Mac OS X", before="._"),
        Rejected("cannot be a slide id.*no dot"),
    ),
    Fault(
        "mrxs_alone", "an .mrxs without its folder", mrxs(), Rejected("the folder mrxs_alone/ .* is missing")
    ),
    Fault(
        "mrxs_no_index",
        "one whose folder lacks Index.dat",
        mrxs("Slidedat.ini", slidedat=DATA_FILES),
        Rejected("mrxs_no_index/Index.dat is missing"),
    ),
    Fault(
        "mrxs_no_dat",
        "one whose folder lacks a file of data",
        mrxs("Slidedat.ini", "Index.dat", "Data0000.dat", slidedat=DATA_FILES),
        Rejected("mrxs_no_dat/Data0001.dat, .* is missing"),
    ),
    Fault(
        "vms_alone", "a .vms without its pictures", holding(VMS, ".vms"), Rejected("gone.jpg, .* is missing")
    ),
    Fault("dicom_cut", "the beginning of a DICOM file", holding(DICOM, ".dcm"), Rejected("cannot open it")),
)


# Directories that contradict themselves --------------------------------------------------------------------


def ifd_loop(path: Path) -> None:
    first, _ = directory_at(path, 0)
    _, link = directory_at(path, 2)
    patch(path, link, struct.pack("<I", first))


def subifd_loop(folder: Path) -> Path:
    """Levels in SubIFDs, the second of which leads to the first picture."""
    path = folder / f"{folder.name}.ome.tiff"
    with tifffile.TiffWriter(path) as file:
        usual = {"tile": (TILE, TILE), "photometric": "rgb", "metadata": None, **CENTIMETRE}
        file.write(tissue(), subifds=1, **usual)
        file.write(tissue()[::2, ::2], subfiletype=1, **usual)
    with tifffile.TiffFile(path) as read:
        level = read.pages[0].pages[0]
        link, first = level.offset + 2 + 12 * len(level.tags), read.pages[0].offset
    patch(path, link, struct.pack("<I", first))
    return path


def many_ifds(folder: Path, count: int = 20_000) -> Path:
    fields = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 4), (277, 1), (278, 8), (279, 1)]
    body = struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in fields)
    size = len(body) + 4
    links = [8 + (index + 1) * size for index in range(count - 1)] + [0]
    data = b"II*\0" + struct.pack("<I", 8) + b"".join(body + struct.pack("<I", link) for link in links)
    return holding(data)(folder)


def huge_header(path: Path) -> None:
    set_value(path, WIDTH, 4_000_000)
    set_value(path, HEIGHT, 4_000_000)


def count_short(path: Path) -> None:
    entry, _ = field_at(path, TILE_OFFSETS)
    patch(path, entry + 4, struct.pack("<I", COLUMNS * ROWS - 5))


def strip_bomb(folder: Path) -> Path:
    """1.2 GB of black that deflate makes 1.2 MB of."""
    black = np.zeros((20_000, 1_000, 3), np.uint8)
    return tiff(folder / f"{folder.name}.tiff", np.tile(black, (1, 2, 1)), tile=None, rowsperstrip=20_000)


def strip_rows(folder: Path) -> Path:
    return tiff(
        folder / f"{folder.name}.tiff",
        np.zeros((8_000, 8_000), np.uint8),
        tile=None,
        rowsperstrip=16,
        photometric="minisblack",
    )


def beyond(path: Path) -> None:
    _, link = directory_at(path, 2)
    patch(path, link, struct.pack("<I", 2**31))


def codec(number: int) -> Callable[[Path], None]:
    """Says that the tiles are compressed in that way, on all levels."""

    def spoil(path: Path) -> None:
        with tifffile.TiffFile(path) as file:
            pages = [n for n, page in enumerate(file.pages) if page.is_tiled]
        for page in pages:
            entry, _ = field_at(path, COMPRESSION, page=page)
            patch(path, entry, struct.pack("<HHII", COMPRESSION, 3, 1, number))

    return spoil


CONTRADICTIONS = (
    Fault(
        "ifd_loop", "directories in a circle", spoilt(ifd_loop), Rejected("its directories lead in a circle")
    ),
    Fault("subifd_loop", "levels that lead back to the picture", subifd_loop, Processed()),
    Fault("ifd_past_eof", "a directory beyond the end", spoilt(beyond), TRUNCATED),
    Fault("many_ifds", "20,000 directories", many_ifds, Rejected("has more than 512 directories")),
    Fault(
        "huge_header",
        "a small file that says 4,000,000 x 4,000,000 pixels",
        spoilt(huge_header),
        Rejected(r"needs 976,562,500 tiles and lists 12"),
    ),
    Fault(
        "zero_dim",
        "a picture of no width",
        spoilt(lambda p: set_value(p, WIDTH, 0)),
        Rejected("says 0 x 384 pixels"),
    ),
    Fault(
        "tile_count_short",
        "a table of too few tiles",
        spoilt(count_short),
        Rejected("needs 12 tiles and lists 7"),
    ),
    Fault(
        "strip_bomb",
        "120 MB in one strip of a small file",
        strip_bomb,
        Rejected("too large to decode.*tiled"),
    ),
    Fault("strip_rows", "64 megapixels without tiles", strip_rows, Rejected("too large to read.*tiled")),
    Fault(
        "unknown_codec",
        "a compression that nobody knows",
        spoilt(codec(60_000)),
        Rejected("60000 is not a known COMPRESSION"),
    ),
    Fault(
        "webp_codec",
        "one that OpenSlide does not read",
        spoilt(codec(50_001)),
        Rejected("more than 5% of it cannot be decoded on any level"),
    ),
)


# Damaged tiles ---------------------------------------------------------------------------------------------


def in_tile(change: Callable[[bytes], bytes], index: int = RICH) -> Callable[[Path], None]:
    """Changes the bytes of a tile of the finest level; it keeps its length."""

    def spoil(path: Path) -> None:
        start, length = forge.tile_place(path, index)
        data = path.read_bytes()[start : start + length]
        changed = change(data)
        assert len(changed) == length
        patch(path, start, changed)

    return spoil


def garbage(data: bytes) -> bytes:
    head = data.index(b"\xff\xda") + 14
    return data[:head] + np.random.default_rng(1).bytes(len(data) - head)


def half_lost(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def flip(place: int, bit: int) -> Callable[[bytes], bytes]:
    """One bit of the picture's data."""

    def change(data: bytes) -> bytes:
        at = data.index(b"\xff\xda") + 14 + place
        return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]

    return change


def swap_size(size: tuple[int, int]) -> Callable[[list[bytes]], None]:
    def spoil(tiles: list[bytes]) -> None:
        tiles[RICH] = forge.with_frame(tiles[RICH], size=size)

    return spoil


def past_eof(path: Path) -> None:
    _, offsets = field_at(path, TILE_OFFSETS)
    patch(path, offsets + 4 * RICH, struct.pack("<I", 2**31))


def sparse(folder: Path) -> Path:
    def spoil(tiles: list[bytes]) -> None:
        tiles[RICH] = b""

    return pyramid(folder / f"{folder.name}.tiff", spoil=spoil)


J2K = "Aperio Image Library v12\r\n512x384 (128x128) J2K/KDU Q=70|MPP = 0.5"


def jp2k(folder: Path, levels: tuple[int, ...] = (1, 4)) -> Path:
    """JPEG 2000 as Aperio writes it; the rest of one tile are zeros."""
    pictures = []
    for ratio in levels:
        image = forge.smaller(tissue(), ratio)
        tiles = forge.cut(image, (TILE, TILE), forge.jpeg2000)
        if ratio == 1:
            head = len(tiles[RICH]) // 3
            tiles[RICH] = tiles[RICH][:head] + bytes(len(tiles[RICH]) - head)
        size = (image.shape[1], image.shape[0])
        pictures.append(
            forge.Picture(size, (TILE, TILE), tiles, forge.RGB, forge.JPEG2000_RGB, description=J2K)
        )
    return forge.write_tiff(folder / f"{folder.name}.svs", pictures)


def forged(change: Callable[[list[bytes]], None]) -> Callable[[Path], Path]:
    return lambda folder: pyramid(folder / f"{folder.name}.tiff", spoil=change)


def no_black(cut: Cut) -> None:
    """No tile is darker than tissue can be."""
    for place, tile in cut.tiles().items():
        assert np.frombuffer(tile, np.uint8).mean() > 60, place


DAMAGE = (
    Fault(
        "tile_zeroed", "a tile of zeros", spoilt(in_tile(lambda d: bytes(len(d)))), LEFT_OUT, words=AS_IT_IS
    ),
    Fault(
        "tile_garbage",
        "a tile of noise behind a good header",
        spoilt(in_tile(garbage)),
        LEFT_OUT,
        words=AS_IT_IS,
    ),
    Fault(
        "tile_half_lost",
        "a tile whose second half is zeros",
        spoilt(in_tile(half_lost)),
        LEFT_OUT,
        words=AS_IT_IS,
    ),
    Fault(
        "tile_cut",
        "a tile that ends early",
        spoilt(in_tile(lambda d: d[:200] + b"\xff\xd9" + bytes(len(d) - 202))),
        LEFT_OUT,
        words=AS_IT_IS,
    ),
    Fault(
        "tile_offset_past_eof",
        "a tile beyond the end",
        spoilt(past_eof),
        Rejected("1 of 12 tiles .* beyond the end"),
    ),
    Fault("tile_sparse", "a tile that was never scanned", sparse, Processed(holds=no_black), words=AS_IT_IS),
    Fault(
        "tile_wrong_dims",
        "a JPEG of half the size of its tile",
        forged(swap_size((64, 64))),
        Warned("1 of .* left out"),
        words=AS_IT_IS,
    ),
    Fault(
        "tile_jpeg_bomb",
        "a JPEG of 65,500 x 65,500 pixels as a tile",
        forged(swap_size((65_500, 65_500))),
        Warned("1 of .* left out"),
        words=AS_IT_IS,
    ),
    Fault("jp2k_broken", "a damaged tile of JPEG 2000", jp2k, Warned("1 of .* left out"), words=AS_IT_IS),
    Fault(
        "one_level_damaged",
        "one, where no coarser level shows its place",
        lambda f: jp2k(f, (1,)),
        Rejected("more than 5% of it cannot be decoded on any level: .*damaged"),
    ),
    Fault(
        "all_tiles_lost",
        "a scan whose tiles are all zeros",
        forged(lambda t: t.__setitem__(slice(None), [bytes(len(x)) for x in t])),
        Rejected("7 of 7 tiles cannot be decoded"),
    ),
)

# What a file knows of a patient ----------------------------------------------------------------------------

SOURCE, PATIENT = b"|Source = synthetic", b"|Name = DOE JANE 17"


def with_a_patient(folder: Path) -> Path:
    """A name in the description, and on the pictures of the label and of the whole glass."""
    path = svs(folder / f"{folder.name}.svs", label_image=True)
    data = path.read_bytes()
    assert data.count(SOURCE) == 4
    path.write_bytes(data.replace(SOURCE, PATIENT))
    return path


def says_nothing_of_the_patient(cut: Cut) -> None:
    """Neither the words nor a piece of the pictures is in any file of the output."""
    path = cut.out.parent / "in" / cut.slide_id / f"{cut.slide_id}.svs"
    data, secrets = path.read_bytes(), [b"DOE JANE", b"JANE 17"]
    with tifffile.TiffFile(path) as file:
        for page in file.pages[4:]:  # label and macro
            places = zip(page.dataoffsets, page.databytecounts, strict=True)
            # The end of each strip, for any JPEG begins alike; but not where it shows nothing, as others do.
            ends = [data[start + count - 40 : start + count - 8] for start, count in places]
            secrets += [end for end in ends if len(set(end)) > 20]
    assert len(secrets) > 10
    written = [file.read_bytes() for file in cut.out.rglob("*") if file.is_file()]
    packed = [text for content in written for text in re.findall(rb"base64,([\w+/=]+)", content)]
    written += map(base64.b64decode, packed)  # the pictures of a page
    assert packed
    assert len(written) > 10
    assert not [secret for secret in secrets for content in written if secret in content]


PRIVACY = (
    Fault(
        "phi_svs",
        "a patient's name in the description and on the label",
        with_a_patient,
        Processed(holds=says_nothing_of_the_patient),
    ),
)
