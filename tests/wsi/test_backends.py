"""What OpenSlide and tiffslide would get wrong: each law holds for whoever reads through `Backend`."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from wsi.backends import Backend, OpenSlideBackend, TiffSlideBackend
from wsi.errors import SlideError
from wsi.slide import Slide

PICTURE = np.random.default_rng(3).integers(1, 250, (540, 620, 3), np.uint8)
TILED: dict[str, Any] = {"tile": (128, 128), "photometric": "rgb", "compression": "deflate"}
JPEG2000_YCBCR = 33003


def write_levels(path: Path, *levels: NDArray[np.uint8], in_subifds: bool = False) -> Path:
    """A pyramid of these pictures: OpenSlide reads it, or, in SubIFDs, tiffslide."""
    with tifffile.TiffWriter(path, ome=in_subifds) as tiff:
        tiff.write(levels[0], **TILED, subifds=len(levels) - 1 if in_subifds else None)
        for level in levels[1:]:
            tiff.write(level, **TILED, subfiletype=1, metadata=None)
    return path


def leave_out(path: Path, tile: int, forge: ModuleType) -> None:
    """Make a tile of the first picture one that was never scanned."""
    with tifffile.TiffFile(path) as tiff:
        for tag in (tiff.pages[0].tags[324], tiff.pages[0].tags[325]):
            width = tag.valuebytecount // tag.count
            forge.set_bytes(path, tag.valueoffset + tile * width, bytes(width))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Any]:
    """Open a backend that is closed after the test."""
    backends: list[Backend] = []

    def open_(backend: type[OpenSlideBackend] | type[TiffSlideBackend], path: Path) -> Backend:
        backends.append(backend(path))
        return backends[-1]

    yield open_
    for backend in backends:
        backend.close()


# --- threads ---


def test_whether_a_region_is_damaged_does_not_depend_on_other_threads(
    tmp_path: Path, forge: ModuleType, opened: Any
) -> None:
    """OpenSlide's error sticks to the handle that all threads share."""
    picture = np.random.default_rng(4).integers(0, 256, (1024, 1024, 3), np.uint8)
    path, spoilt = write_levels(tmp_path / "s.tiff", picture), {9, 18, 27, 36, 45, 54}
    for index in spoilt:
        start, length = forge.tile_place(path, index)
        forge.set_bytes(path, start, bytes(length))
    backend = opened(OpenSlideBackend, path)

    def is_sound(index: int) -> bool:
        row, column = (128 * number for number in divmod(index, 8))
        try:
            pixels = backend.read_level(0, column, row, (128, 128))
        except SlideError:
            return False
        return bool((pixels == picture[row : row + 128, column : column + 128]).all())

    with ThreadPoolExecutor(8) as pool:
        for _ in range(6):
            found = pool.map(is_sound, range(64))
            assert {index for index, sound in enumerate(found) if not sound} == spoilt


def test_a_slide_that_goes_away_is_an_error_of_the_slide(
    tmp_path: Path, forge: ModuleType, opened: Any
) -> None:
    path = write_levels(tmp_path / "s.tiff", PICTURE)
    start, length = forge.tile_place(path, 0)
    forge.set_bytes(path, start, bytes(length))
    backend = opened(OpenSlideBackend, path)
    path.unlink()
    for _ in range(2):
        with pytest.raises(SlideError, match=r"s\.tiff: cannot be read at level-0 position \(0, 0\)"):
            backend.read_level(0, 0, 0, (64, 64))


# --- levels ---


@pytest.mark.parametrize("in_subifds", [False, True])
def test_a_picture_of_another_shape_is_no_level(tmp_path: Path, in_subifds: bool) -> None:
    """What comes after it in the file is read by the file's own number, not by ours."""
    half, macro, eighth = PICTURE[::2, ::2], np.zeros((80, 200, 3), np.uint8), PICTURE[::8, ::8]
    path = write_levels(tmp_path / "s.tiff", PICTURE, half, macro, eighth, in_subifds=in_subifds)
    with Slide(path, mpp=0.5) as slide:
        assert slide.backend == ("tiffslide" if in_subifds else "openslide")
        assert [level.downsample_x for level in slide.levels] == [1, 2, 8]
        assert [level.downsample_y for level in slide.levels] == [1, 2, 8]
        assert np.array_equal(slide.read(0, 0, size=(310, 270), mpp=1.0), half)
        assert np.array_equal(slide.read(0, 0, size=(77, 67), mpp=4.0), eighth[:67, :77])


@pytest.mark.parametrize("backend", [OpenSlideBackend, TiffSlideBackend])
@pytest.mark.parametrize(
    ("size", "is_level"),
    [
        ((310, 270), True),
        ((309, 271), True),
        ((312, 268), True),
        ((207, 180), True),
        ((310, 260), False),
        ((300, 270), False),
        ((155, 270), False),
    ],
)
def test_a_level_may_be_off_by_what_is_rounded(
    tmp_path: Path, opened: Any, backend: type[Backend], size: tuple[int, int], is_level: bool
) -> None:
    level = np.zeros((size[1], size[0], 3), np.uint8)
    path = write_levels(tmp_path / "s.tiff", PICTURE, level, in_subifds=backend is TiffSlideBackend)
    levels = [(level.width, level.height) for level in opened(backend, path).levels]
    assert levels == [(620, 540), size][: 2 if is_level else 1]


# --- pixels ---


@pytest.mark.parametrize("in_subifds", [False, True])
def test_what_was_never_scanned_is_white(tmp_path: Path, forge: ModuleType, in_subifds: bool) -> None:
    path = write_levels(tmp_path / "s.tiff", PICTURE, PICTURE[::2, ::2], in_subifds=in_subifds)
    leave_out(path, 6, forge)  # second row, second column
    expected = PICTURE.copy()
    expected[128:256, 128:256] = 255
    with Slide(path, mpp=0.5) as slide:
        assert slide.backend == ("tiffslide" if in_subifds else "openslide")
        assert np.array_equal(slide.read(0, 0, size=(620, 540), mpp=0.5), expected)


def test_grey_in_subifds_is_grey_in_rgb(tmp_path: Path) -> None:
    path, grey = tmp_path / "s.tiff", PICTURE[..., 0].copy()
    options = TILED | {"photometric": "minisblack"}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(grey, **options, subifds=1)
        tiff.write(grey[::2, ::2], **options, subfiletype=1, metadata=None)
    with Slide(path, mpp=0.5) as slide:
        assert slide.backend == "tiffslide"
        for mpp, step in ((0.5, 1), (1.0, 2)):
            expected = grey[::step, ::step, None].repeat(3, axis=2)
            found = slide.read(0, 0, size=(620 // step, 540 // step), mpp=mpp)
            assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "pixels",
    [
        np.ones((20, 30, 3), bool),
        np.ones((20, 30, 3), np.uint16),
        np.ones((20, 30, 2), np.uint8),
        np.ones((20, 29, 3), np.uint8),
        np.ones((20, 30), np.uint8),
    ],
)
def test_what_is_no_rgb_is_an_error_and_not_handed_on(
    tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch, pixels: NDArray[Any]
) -> None:
    backend = opened(TiffSlideBackend, write_levels(tmp_path / "s.tiff", PICTURE))
    monkeypatch.setattr(backend._slide, "read_region", lambda *_, **__: pixels)
    with pytest.raises(SlideError, match=r"s\.tiff: cannot be read .*is no 8-bit RGB of 30 x 20 pixels"):
        backend.read_level(0, 0, 0, (30, 20))


def test_colours_without_bits_that_only_tiffslide_opens_are_refused(
    tmp_path: Path, forge: ModuleType
) -> None:
    path = write_levels(tmp_path / "s.tiff", PICTURE)
    with tifffile.TiffFile(path) as tiff:
        entry = tiff.pages[0].tags[258].offset
    forge.set_bytes(path, entry, b"\x60\xea")  # no reader knows this tag
    with pytest.raises(SlideError, match=r"tiffslide takes its samples for bool.*Convert it to 8-bit RGB"):
        Slide(path)


def test_ycbcr_in_jpeg_2000_is_read_right_or_refused(tmp_path: Path, forge: ModuleType) -> None:
    """Who writes compression 33003 means YCbCr; the stream does not say so."""

    grey = np.full((256, 256, 3), 128, np.uint8)
    grey[..., 0] = np.arange(256)  # of YCbCr: neither blue nor red, so a grey ramp
    tile = forge.jpeg2000(grey)
    for description, is_read in (("Aperio Image Library v1|MPP = 0.5", True), ("", False)):
        picture = forge.Picture(
            (256, 256), (256, 256), [tile], photometric=2, compression=JPEG2000_YCBCR, description=description
        )
        path = forge.write_tiff(tmp_path / "s.svs", [picture])
        if is_read:
            with Slide(path) as slide:
                found = slide.read(0, 0, size=(256, 256), mpp=0.5).astype(int)
            assert np.abs(found - np.arange(256)[None, :, None]).max() <= 2
        else:
            with pytest.raises(SlideError, match=r"compression 33003.*Convert it to 8-bit RGB"):
                Slide(path)


# --- the file ---


def test_a_property_whose_name_is_not_utf8_is_left_out(tmp_path: Path, forge: ModuleType) -> None:
    text = b"Aperio Image Library v1\r\n256x256|MPP = 0.5|Pr\xe4parat = 12|User = J\xfcrgen|AppMag = 20\0"
    tile = forge.jpeg(PICTURE[:256, :256])
    picture = forge.Picture((256, 256), (256, 256), [tile], fields={270: (2, text)})
    with Slide(forge.write_tiff(tmp_path / "s.svs", [picture])) as slide:
        assert slide.require_resolution().mpp == 0.5
        assert slide.properties["aperio.AppMag"] == "20"
        assert slide.properties["aperio.User"].startswith("J")
        assert not any("parat" in key for key in slide.properties)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed there")
def test_a_refused_file_is_closed_at_once(tmp_path: Path, forge: ModuleType) -> None:
    stack = tmp_path / "four axes.tiff"
    tifffile.imwrite(stack, np.zeros((4, 5, 64, 64), np.uint8), photometric="minisblack", compression="zlib")
    picture = forge.Picture((64, 64), (64, 64), [b"x"], photometric=2, compression=JPEG2000_YCBCR)
    misread = forge.write_tiff(tmp_path / "misread.tiff", [picture])
    gc.disable()
    try:
        for path in (stack, misread):
            with pytest.raises(SlideError) as caught:
                Slide(path)
            assert caught.value.path == str(path)
            open_ = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
            assert str(path) not in open_
    finally:
        gc.enable()
