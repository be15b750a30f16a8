"""Laws of the pre-flight: damaged files are refused by name, sound ones pass, nothing waits or grows."""

from __future__ import annotations

import os
import re
import socket
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from corpus.tampering import (
    HEIGHT,
    STRIP_ROWS,
    TILE_COUNTS,
    TILE_OFFSETS,
    TILE_WIDTH,
    WIDTH,
    directory_at,
    field_at,
    ndpi,
    patch,
    set_value,
    write_pages,
)
from wsi.errors import SlideError
from wsi.preflight import FileFacts, check_file
from wsi.slide import Slide
from wsi.synthetic import write_huge_slide, write_slide

PICTURE = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)


def refusal(path: Path) -> str:
    """The reason for which a file is refused, whose message has all its parts."""
    with pytest.raises(SlideError) as caught:
        check_file(path)
    error = caught.value
    assert str(path) in str(error)
    assert "\n" not in str(error)
    assert error.action
    assert len(error.reason) + len(error.action) < 200
    return error.reason


def file_of(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture
def tiled(tmp_path: Path) -> Path:
    """A sound classic TIFF of three directories: a JPEG pyramid."""
    path = tmp_path / "slide.svs"
    with tifffile.TiffWriter(path) as tiff:
        for step in (1, 2, 4):
            tiff.write(
                PICTURE[::step, ::step], tile=(128, 128), compression="jpeg", photometric="rgb", metadata=None
            )
    return path


# --- sound files ---


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize(
    "layout",
    [
        {"tile": (64, 64)},
        {"tile": (64, 64), "compression": "jpeg"},
        {"tile": (64, 64), "planarconfig": "separate"},
        {"rowsperstrip": 7, "compression": "zlib"},
        {"rowsperstrip": 2**32 - 1},
    ],
    ids=["tiles", "jpeg", "planes", "strips", "one-strip"],
)
def test_every_layout_of_tiff_passes(
    tmp_path: Path, byteorder: str, bigtiff: bool, layout: dict[str, object]
) -> None:
    path = tmp_path / "s.tiff"
    picture = PICTURE.transpose(2, 0, 1) if "planarconfig" in layout else PICTURE
    tifffile.imwrite(
        path, picture, byteorder=byteorder, bigtiff=bigtiff, photometric="rgb", metadata=None,
        description="a slide", **layout,
    )  # fmt: skip
    largest = (400, 300) if "tile" in layout else (0, 0)
    assert check_file(path) == FileFacts("tiff", subifds=False, description="a slide", largest=largest)


def test_subifds_are_seen_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "s.ome.tiff"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(PICTURE, tile=(64, 64), subifds=2, photometric="rgb")
        tiff.write(PICTURE[::2, ::2], tile=(64, 64), subfiletype=1, photometric="rgb")
        tiff.write(PICTURE[::4, ::4], tile=(64, 64), subfiletype=1, photometric="rgb")
    assert check_file(path).subifds
    with tifffile.TiffFile(path) as tiff:
        entry = tiff.pages[0].pages[1].tags[WIDTH].offset
    patch(path, entry, struct.pack("<HHII", WIDTH, 4, 1, 4000))
    assert re.search(r"needs \d+ tiles and lists \d+", refusal(path))


def test_a_tile_of_no_bytes_is_legal(tiled: Path) -> None:
    _, counts = field_at(tiled, TILE_COUNTS)
    _, offsets = field_at(tiled, TILE_OFFSETS)
    patch(tiled, counts, bytes(4))
    patch(tiled, offsets, b"\xff" * 4)
    check_file(tiled)


def test_the_suffix_does_not_matter(tiled: Path) -> None:
    for name in ("slide.ndpi", "slide.mrxs", "slide", "slide.jpg"):
        check_file(tiled.rename(tiled.with_name(name)))
        tiled.with_name(name).rename(tiled)


def test_a_link_to_a_slide_is_followed(tiled: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.svs"
    link.symlink_to(tiled)
    check_file(link)


def test_synthetic_slides_pass(tmp_path: Path) -> None:
    for suffix in (".svs", ".tiff"):
        slide = write_slide(tmp_path / f"s{suffix}", seed=0, lesion=False, size=(512, 512), label_image=True)
        assert check_file(slide.path).description.startswith("Aperio" if suffix == ".svs" else "")


def test_a_huge_slide_takes_little_time(tmp_path: Path) -> None:
    path = write_huge_slide(tmp_path / "huge.svs", tissue_px=1024)

    def seconds() -> float:
        begin = time.perf_counter()
        check_file(path)
        return time.perf_counter() - begin

    assert min(seconds() for _ in range(3)) < 0.1


def test_no_real_slide_is_refused(data_dir: Path) -> None:
    suffixes = {".svs", ".tif", ".tiff", ".ndpi", ".scn", ".dcm", ".vms"}
    slides = [path for path in (data_dir / "slides").rglob("*") if path.suffix in suffixes]
    assert len(slides) > 30
    for path in slides:
        facts = check_file(path)
        assert facts.container == ("other" if path.suffix in {".dcm", ".vms"} else "tiff")
        assert facts.subifds == path.name.endswith(".ome.tiff")


def test_a_long_description_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "s.tiff"
    tifffile.imwrite(path, PICTURE, description="x" * 8_000_000, metadata=None)
    assert check_file(path).description == "x" * 65536


# --- colours ---

GREY = PICTURE[..., 0].copy()
PALETTE = np.arange(768, dtype=np.uint16).reshape(3, 256)


@pytest.mark.parametrize(
    ("pixels", "options", "expected"),
    [
        (PICTURE, {"photometric": "rgb"}, PICTURE),
        (PICTURE.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}, PICTURE),
        (GREY, {"photometric": "minisblack"}, GREY[..., None].repeat(3, axis=2)),
        (
            np.dstack([PICTURE, np.full_like(GREY, 255)]),
            {"photometric": "rgb", "extrasamples": ["unassalpha"]},
            PICTURE,
        ),
    ],
    ids=["rgb", "planes", "grey", "rgba"],
)
def test_colours_that_pass_are_read_right(
    tmp_path: Path, pixels: np.ndarray, options: dict[str, Any], expected: np.ndarray
) -> None:
    path = tmp_path / "s.tiff"
    tifffile.imwrite(path, pixels, tile=(128, 128), metadata=None, **options)
    with Slide(path, mpp=0.5) as slide:
        assert np.array_equal(slide.read(0, 0, size=(400, 300), mpp=0.5), expected)


@pytest.mark.parametrize(
    ("pixels", "options", "found"),
    [
        (np.dstack([PICTURE, GREY]), {"photometric": "separated"}, "is CMYK"),
        (PICTURE, {"photometric": "cielab"}, "is CIELab"),
        (PICTURE, {"photometric": "icclab"}, "is ICCLab"),
        (PICTURE, {"photometric": 10}, "is ITULab"),
        (GREY, {"photometric": "palette", "colormap": PALETTE}, "is a picture with a palette"),
        (GREY, {"photometric": "mask"}, "is a mask"),
        (GREY, {"photometric": "miniswhite"}, "is grey in negative"),
        (GREY, {"photometric": "cfa"}, "is of photometric interpretation 32803"),
        (PICTURE, {"photometric": "ycbcr", "compression": "zlib"}, "is YCbCr that is no JPEG"),
        (PICTURE.astype(np.uint16), {"photometric": "rgb"}, "has 16-bit samples"),
        (GREY > 127, {"photometric": "minisblack"}, "has 1-bit samples"),
        (PICTURE.view(np.int8), {"photometric": "rgb"}, "holds signed or fractional numbers"),
        (PICTURE.astype(np.float32), {"photometric": "rgb"}, "holds signed or fractional numbers"),
        (
            np.dstack([PICTURE, GREY, GREY]),
            {"photometric": "rgb", "extrasamples": [0, 0]},
            "has 5 channels that are not those of RGB",
        ),
        (
            np.stack([GREY] * 5),
            {"photometric": "minisblack", "planarconfig": "separate"},
            "has 5 channels that are not those of RGB",
        ),
    ],
)
def test_colours_that_a_decoder_gets_wrong_are_refused_by_name(
    tmp_path: Path, pixels: np.ndarray, options: dict[str, Any], found: str
) -> None:
    path = tmp_path / "s.tiff"
    tifffile.imwrite(path, pixels, tile=(128, 128), metadata=None, **options)
    assert refusal(path) == f"{found}; 8-bit RGB is needed"


@pytest.mark.parametrize("tag", [258, 277])
def test_what_a_file_does_not_say_of_its_colours_is_taken_to_be_usual(tiled: Path, tag: int) -> None:
    entry, _ = field_at(tiled, tag)
    patch(tiled, entry, struct.pack("<H", 60000))  # no reader knows this tag
    check_file(tiled)


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_a_picture_stored_turned_or_mirrored_is_refused(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "s.tiff"
    for value, page in ((1, 0), (orientation, 0), (orientation, 1)):
        with tifffile.TiffWriter(path) as tiff:
            for number, step in enumerate((1, 2)):
                turn = [(274, 3, 1, value, True)] if number == page else []
                tiff.write(PICTURE[::step, ::step], tile=(64, 64), metadata=None, extratags=turn)
        if value == 1:
            check_file(path)
        else:
            where = f"directory {page} " if page else ""
            assert refusal(path) == f"{where}is stored turned or mirrored (orientation {orientation})"


@pytest.mark.parametrize("chained", [True, False])
def test_the_colours_of_every_level_are_checked(tmp_path: Path, chained: bool) -> None:
    path, half = tmp_path / "s.tiff", PICTURE[::2, ::2]
    options: dict[str, Any] = {"tile": (64, 64), "metadata": None}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(PICTURE, **options, photometric="rgb", subifds=None if chained else 1)
        tiff.write(half.astype(np.uint16), **options, photometric="rgb", subfiletype=1)
    assert refusal(path) == "directory 1 has 16-bit samples; 8-bit RGB is needed"


@pytest.mark.parametrize("level", [0, 1])
def test_colours_without_bits_are_refused_where_tiffslide_would_read_them(tmp_path: Path, level: int) -> None:
    """It takes them for truth values: every pixel is 0 or 1."""
    path = write_pages(tmp_path / "s.tiff", [PICTURE], levels=1)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0].pages[0] if level else tiff.pages[0]
        entry = page.tags[258].offset
    patch(path, entry, struct.pack("<H", 60000))  # no reader knows this tag
    where = "directory 1 " if level else ""
    assert refusal(path) == f"{where}has 1-bit samples; 8-bit RGB is needed"


def test_a_stack_of_planes_or_channels_is_refused(tmp_path: Path) -> None:
    path, half = tmp_path / "s.tiff", PICTURE[::2, ::2]
    reason = "is a stack of {} images of one size, not one slide"
    assert refusal(write_pages(path, [PICTURE] * 3)) == reason.format(3)
    assert refusal(write_pages(path, [GREY] * 5)) == reason.format(5)
    assert refusal(write_pages(path, [PICTURE] * 2 + [half] * 2)) == reason.format(2)
    assert refusal(write_pages(path, [PICTURE] * 2, levels=1)) == reason.format(2)
    assert refusal(write_pages(path, [GREY] * 3, levels=1)) == reason.format(3)


def test_a_macro_does_not_hide_a_stack(tmp_path: Path) -> None:
    path, macro = tmp_path / "s.tiff", PICTURE[::3, ::4]
    reason = "is a stack of 2 images of one size, not one slide"
    assert refusal(write_pages(path, [PICTURE] * 2 + [macro])) == reason
    assert refusal(write_pages(path, [macro] + [PICTURE] * 2)) == reason
    assert refusal(write_pages(path, [PICTURE, PICTURE[::2, ::2], PICTURE, macro])) == reason
    with tifffile.TiffWriter(path, ome=True) as tiff:
        options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb"}
        stack = np.stack([PICTURE, PICTURE[::-1]])
        tiff.write(stack, **options, metadata={"axes": "ZYXS"}, subifds=1)
        tiff.write(stack[:, ::2, ::2].copy(), **options, subfiletype=1)
        tiff.write(macro, **options, metadata={"axes": "YXS"})
    assert refusal(path) == reason
    check_file(write_pages(path, [PICTURE, macro, macro], levels=1))


@pytest.mark.parametrize(("plane", "passes"), [("", True), (' z="0"', True), (' z="1"', False)])
def test_areas_of_leica_are_no_stack_but_its_planes_are(tmp_path: Path, plane: str, passes: bool) -> None:
    path = tmp_path / "s.scn"
    text = f'<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><dimension ifd="1"{plane}/></scn>'
    with tifffile.TiffWriter(path) as tiff:
        for number, page in enumerate([PICTURE[::3, ::4], PICTURE, PICTURE]):
            tiff.write(page, tile=(64, 64), metadata=None, description=None if number else text)
    if passes:
        check_file(path)
    else:
        assert refusal(path) == "is a stack of 2 images of one size, not one slide"


def test_a_pyramid_a_mask_and_rgb_in_planes_are_no_stacks(tmp_path: Path) -> None:
    path, half = tmp_path / "s.tiff", PICTURE[::2, ::2]
    check_file(write_pages(path, [PICTURE, half, half]))
    check_file(write_pages(path, [PICTURE, GREY > 127]))
    check_file(write_pages(path, [PICTURE], levels=2))
    planes = [PICTURE[..., channel].copy() for channel in range(3)]
    with tifffile.TiffWriter(path, ome=True) as tiff:
        options: dict[str, Any] = {"tile": (64, 64), "photometric": "minisblack"}
        tiff.write(np.stack(planes), **options, metadata={"axes": "CYX"}, subifds=1)
        tiff.write(np.stack(planes)[:, ::2, ::2].copy(), **options, subfiletype=1)
        tiff.write(PICTURE[::3, ::4], tile=(64, 64), photometric="rgb", metadata={"axes": "YXS"})  # a macro
    with Slide(path, mpp=0.5) as slide:
        assert np.array_equal(slide.read(0, 0, size=(400, 300), mpp=0.5), PICTURE)


# --- files that are no slides ---


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"\n<!DOCTYPE html><html><body>Log in", "is an HTML page: the download failed"),
        (b"<HTML><head>", "is an HTML page: the download failed"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "is an XML text"),
        (b'{"error": "token expired"}', "is a text, not a slide"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "is a JPEG picture, not a slide"),
        (b"\x89PNG\r\n\x1a\n", "is a PNG picture"),
        (b"PK\x03\x04slide.svs", "is a ZIP archive"),
        (b"\x1f\x8b\x08slide", "is a gzip archive"),
        (bytes(4096), "begins with zeros: the copy was not finished"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X", "is a companion file of macOS"),
        (b"\x8f\xa2\x17\x90\xfe\xdc\xba\x98", r"no slide of a known format \(begins with 8f a2 17"),
    ],
)
def test_other_content_is_called_what_it_is(tmp_path: Path, data: bytes, reason: str) -> None:
    assert re.search(reason, refusal(file_of(tmp_path / "s.svs", data)))


def test_a_missing_file_a_folder_and_a_dangling_link(tmp_path: Path) -> None:
    assert refusal(tmp_path / "s.svs") == "does not exist"
    assert refusal(tmp_path) == "is a folder"
    (tmp_path / "link.svs").symlink_to("gone.svs")
    assert refusal(tmp_path / "link.svs") == "is a link to gone.svs, which does not exist"
    (tmp_path / "a.svs").symlink_to("b.svs")
    (tmp_path / "b.svs").symlink_to("a.svs")
    assert refusal(tmp_path / "a.svs").startswith("cannot be read (")
    assert refusal(tmp_path / ("n" * 300)).startswith("cannot be read (")


@pytest.mark.timeout(10)
def test_a_pipe_a_socket_and_a_device_are_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.svs")
    assert refusal(tmp_path / "pipe.svs").startswith("is a pipe, socket or device")
    assert refusal(Path("/dev/zero")).startswith("is a pipe, socket or device")
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.svs")
        assert refusal(Path("socket.svs")).startswith("is a pipe, socket or device")


def test_an_mrxs_needs_its_folder(tmp_path: Path) -> None:
    path = file_of(tmp_path / "case 1.mrxs", b"\xff\xd8\xff\xe0 cover")
    folder = tmp_path / "case 1"
    assert refusal(path) == "the folder case 1/ that belongs to it is missing"
    folder.mkdir()
    assert refusal(path) == "case 1/Slidedat.ini is missing"
    (folder / "Slidedat.ini").touch()
    assert refusal(path) == "case 1/Index.dat is missing"
    (folder / "Index.dat").touch()
    assert check_file(path) == FileFacts("other", subifds=False, description="")
    assert "HTML" in refusal(file_of(path, b"<html>"))


@pytest.mark.parametrize(
    "data", [b"\0" * 128 + b"DICM\2\0", b"[Virtual Microscope Specimen]\nNoLayers=1", b"ZISRAWFILE\0\0"]
)
def test_other_containers_pass(tmp_path: Path, data: bytes) -> None:
    assert check_file(file_of(tmp_path / "s", data)).container == "other"


# --- damaged TIFF ---


@pytest.mark.parametrize("fraction", [0.0001, 0.01, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["tiled", "huge"])
def test_a_file_cut_anywhere_is_truncated(
    tmp_path: Path, request: pytest.FixtureRequest, fraction: float, kind: str
) -> None:
    path = (
        request.getfixturevalue("tiled")
        if kind == "tiled"
        else write_huge_slide(tmp_path / "s", tissue_px=512)
    )
    os.truncate(path, max(int(path.stat().st_size * fraction), 5))
    assert refusal(path).startswith("truncated: ")


def test_a_directory_beyond_the_end(tiled: Path) -> None:
    _, link = directory_at(tiled, 1)
    patch(tiled, link, struct.pack("<I", 2**31))
    assert refusal(tiled).startswith("truncated: directory 2 lies beyond the end of the file")


def test_a_tile_beyond_the_end(tiled: Path) -> None:
    _, offsets = field_at(tiled, TILE_OFFSETS, page=1)
    patch(tiled, offsets, struct.pack("<I", tiled.stat().st_size - 1))
    assert refusal(tiled) == "truncated: 1 of 4 tiles of directory 1 lie beyond the end of the file"


@pytest.mark.timeout(10)
@pytest.mark.parametrize("target", [0, 1, 2])
def test_a_circle_of_directories(tiled: Path, target: int) -> None:
    first, _ = directory_at(tiled, target)
    _, link = directory_at(tiled, 2)
    patch(tiled, link, struct.pack("<I", first))
    assert refusal(tiled) == "is damaged: its directories lead in a circle"


@pytest.mark.parametrize("count", [512, 513, 20_000])
def test_too_many_directories(tmp_path: Path, count: int) -> None:
    fields = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 4), (277, 1), (278, 8), (279, 1)]
    body = struct.pack("<H", len(fields)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields
    )
    size = len(body) + 4
    links = [8 + (index + 1) * size for index in range(count - 1)] + [0]
    data = b"II*\0" + struct.pack("<I", 8) + b"".join(body + struct.pack("<I", link) for link in links)
    path = file_of(tmp_path / "s.tiff", data)
    if count <= 512:
        check_file(path)
    else:
        assert refusal(path) == "has more than 512 directories"


def test_a_header_without_directories(tmp_path: Path) -> None:
    assert "no directory" in refusal(file_of(tmp_path / "s.tiff", b"II*\0" + bytes(8)))


@pytest.mark.parametrize("fields", [0, 5000])
def test_a_directory_of_an_absurd_number_of_fields(tiled: Path, fields: int) -> None:
    start, _ = directory_at(tiled, 1)
    patch(tiled, start, struct.pack("<H", fields))
    assert refusal(tiled) == f"directory 1 is damaged or cut off ({fields:,} fields)"


@pytest.mark.parametrize("held", [7, 11, 13, 65_289])
@pytest.mark.parametrize("tag", [TILE_OFFSETS, TILE_COUNTS])
def test_a_table_of_another_size_than_the_grid(tiled: Path, tag: int, held: int) -> None:
    """Of tables that are too long tiffslide makes a black slide."""
    entry, _ = field_at(tiled, tag)
    patch(tiled, entry + 4, struct.pack("<I", held))
    assert refusal(tiled) == f"directory 0 needs 12 tiles and lists {held:,}"


def test_a_table_that_fits_another_picture_of_the_same_file(tiled: Path) -> None:
    set_value(tiled, HEIGHT, 20, page=1)
    assert refusal(tiled) == "directory 1 needs 2 tiles and lists 4"


def test_strips_that_are_too_many_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "s.tiff"
    tifffile.imwrite(path, PICTURE, rowsperstrip=7, compression="zlib", photometric="rgb", metadata=None)
    set_value(path, STRIP_ROWS, 10)
    check_file(path)


@pytest.mark.parametrize("table", [12, 976_562_500, 10**9])
def test_an_absurd_size_is_refused_without_making_room_for_it(tiled: Path, table: int) -> None:
    set_value(tiled, WIDTH, 4_000_000)
    set_value(tiled, HEIGHT, 4_000_000)
    for tag in (TILE_OFFSETS, TILE_COUNTS):
        entry, _ = field_at(tiled, tag)
        patch(tiled, entry + 4, struct.pack("<I", table))
    tracemalloc.start()
    reason = refusal(tiled)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    lists = "needs 976,562,500 tiles and lists (12|1,000,000,000)$"
    assert re.search(f"{lists}|truncated: tag 324 of directory 0", reason)
    assert peak < 2**20


@pytest.mark.parametrize(
    ("tag", "value", "reason"),
    [
        (WIDTH, 0, "says 0 x 300 pixels"),
        (TILE_WIDTH, 0, "says tiles of 0 x 128 pixels"),
        (TILE_WIDTH, 2**20, r"tiles of 1,048,576 x 128 pixels: too large to decode"),
    ],
)
def test_impossible_numbers(tiled: Path, tag: int, value: int, reason: str) -> None:
    set_value(tiled, tag, value)
    assert re.search(reason, refusal(tiled))


def test_one_huge_strip_and_a_huge_picture_without_tiles(tmp_path: Path) -> None:
    path = tmp_path / "s.tiff"
    black = np.zeros((5000, 5000, 3), np.uint8)
    tifffile.imwrite(path, black, rowsperstrip=5000, compression="zlib", metadata=None)
    assert re.search("strips of 5,000 x 5,000 pixels: too large to decode", refusal(path))
    tifffile.imwrite(
        path, np.zeros((8000, 8000), np.uint8), rowsperstrip=16, compression="zlib", metadata=None
    )
    assert re.search("8,000 x 8,000 pixels without tiles: too large to read", refusal(path))


def test_a_jpeg_larger_than_its_tile(tiled: Path) -> None:
    with tifffile.TiffFile(tiled) as tiff:
        start = tiff.pages[0].dataoffsets[0]
    frame = start + tiled.read_bytes()[start:].index(b"\xff\xc0")
    patch(tiled, frame + 5, struct.pack(">HH", 65500, 65500))
    assert re.search("has a JPEG of 65500 x 65500 pixels as a tile of 128 x 128", refusal(tiled))


def test_damage_inside_a_tile_is_left_to_the_decoder(tiled: Path) -> None:
    with tifffile.TiffFile(tiled) as tiff:
        start, length = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    patch(tiled, start, bytes(length))
    check_file(tiled)


def test_ndpi_of_more_than_4_gib(tmp_path: Path) -> None:
    start = 5 * 2**30 + 17
    assert check_file(ndpi(tmp_path / "s.ndpi", start=start, pixels_at=start - 4096)).container == "tiff"
    beyond = ndpi(tmp_path / "t.ndpi", start=start, pixels_at=start + 2**33)
    assert refusal(beyond).startswith("truncated: 1 of 1 strips")
    os.truncate(beyond, start + 20)
    assert "cut off" in refusal(beyond)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "damage",
    [
        lambda rng, data: data[: rng.integers(4, len(data))],
        lambda rng, data: flipped(rng, data, among=len(data)),
        lambda rng, data: flipped(rng, data, among=600),
    ],
    ids=["cut", "flip", "flip-directory"],
)
def test_any_damage_is_refused_or_passed_never_more(
    tiled: Path, damage: Callable[[np.random.Generator, bytes], bytes]
) -> None:
    """Whatever the bytes, the outcome is facts or a `SlideError`, in bounded memory."""
    sound, rng = tiled.read_bytes(), np.random.default_rng(7)
    refused = 0
    tracemalloc.start()
    for _ in range(200):
        tiled.write_bytes(damage(rng, sound))
        try:
            check_file(tiled)
        except SlideError:
            refused += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused > 0
    assert peak < 16 * 2**20


def flipped(rng: np.random.Generator, data: bytes, *, among: int) -> bytes:
    changed = np.frombuffer(data, np.uint8).copy()
    changed[rng.integers(4, among, 5)] = rng.integers(0, 256, 5)
    return changed.tobytes()
