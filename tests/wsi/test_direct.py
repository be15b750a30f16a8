"""Laws of the direct path: the reference's pixels in every format and colour, and damage that stays put."""

from __future__ import annotations

import errno
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

import wsi.direct
import wsi.jpeg
from wsi.backends import Backend
from wsi.direct import DirectReader
from wsi.errors import SlideError
from wsi.jpeg import TileStream
from wsi.slide import Slide

Pixels = NDArray[np.uint8]
RGB, YCBCR = 2, 6
JPEG2000_RGB = 33005
TILE = (256, 256)
ALL_LEVELS = {
    "formats/aperio_jpeg.svs",
    "formats/aperio_jp2k_33005.svs",
    "formats/generic_jpeg.tiff",
    "formats/philips.tiff",
    "formats/pyramid.ome.tiff",
    "vendor/CMU-1-Small-Region.svs",
    "vendor/TCGA-CR-7395-01A-01-TS1.svs",
}
NO_LEVEL = {
    "formats/dicom",
    "formats/generic_deflate_nompp.tiff",
    "formats/generic_none_1level.tiff",
    "formats/hamamatsu.ndpi",
    "formats/hamamatsu/hamamatsu.vms",
    "formats/leica.scn",
    "formats/trestle.tif",
    "vendor/test3-DAPI-2-387.ndpi",
}


@contextmanager
def opened(path: Path) -> Iterator[tuple[DirectReader, Backend]]:
    """The direct reader of a file and its reference, whatever the slide makes of them."""
    with Slide(path, mpp=0.5) as slide:
        direct = DirectReader(path, slide._backend)
        try:
            yield direct, slide._backend
        finally:
            direct.close()


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often a JPEG tile was decoded directly, by its reduction."""
    count: Counter[int] = Counter()
    original = TileStream.decode

    def counted(stream: TileStream, data: bytes, *, reduce: int = 1, **options: Any) -> Pixels:
        pixels = original(stream, data, reduce=reduce, **options)
        count[reduce] += 1
        return pixels

    monkeypatch.setattr(TileStream, "decode", counted)
    return count


def whole(reader: DirectReader | Backend, reference: Backend, level: int = 0) -> Pixels:
    """All of a level."""
    size = reference.levels[level].width, reference.levels[level].height
    if isinstance(reader, DirectReader):
        return reader.read(level, 0, 0, size)
    return reader.read_level(level, 0, 0, size)


def single(
    forge: ModuleType, path: Path, image: Pixels, encode: Callable[[Pixels], bytes], **more: Any
) -> Path:
    """A slide of one level."""
    tile = more.pop("tile", TILE)
    file = {name: more.pop(name) for name in ("order", "big") if name in more}
    picture = forge.Picture(image.shape[1::-1], tile, forge.cut(image, tile, encode), **more)
    forge.write_tiff(path, [picture], **file)
    return path


# --- real files ---


def real(data_dir: Path, name: str) -> Path:
    path = data_dir / "slides" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return sorted(path.glob("*.dcm"))[0] if path.is_dir() else path


@pytest.mark.parametrize("name", sorted(ALL_LEVELS))
def test_a_format_that_is_read_directly_has_the_reference_s_pixels_on_all_levels(
    data_dir: Path, name: str
) -> None:
    with opened(real(data_dir, name)) as (direct, reference):
        for number, level in enumerate(reference.levels):
            assert direct.reads(number), f"level {number} is not offered"
            size = min(level.width, 1100), min(level.height, 700)
            assert (direct.read(number, 0, 0, size) == reference.read_level(number, 0, 0, size)).all()
            # The far corner: edge tiles, and rows of tiles that are counted right. OpenSlide interpolates
            # where a level's ratio is no whole number.
            corner = level.width - min(level.width, 300), level.height - min(level.height, 300)
            size = level.width - corner[0], level.height - corner[1]
            ours = direct.read(number, *corner, size).astype(int)
            theirs = reference.read_level(number, *corner, size)
            # OpenSlide's positions are whole level-0 pixels of its own ratio: exact on level 0 only.
            assert np.abs(ours - theirs)[:-1, :-1].mean() <= (0 if number == 0 else 2)


@pytest.mark.parametrize("name", sorted(ALL_LEVELS))
def test_every_level_has_the_pixels_that_tifffile_finds_in_its_directory(data_dir: Path, name: str) -> None:
    """Exactly, on every level up to the far corner; that decoder shares no code with OpenSlide."""
    path = real(data_dir, name)
    with opened(path) as (direct, reference), tifffile.TiffFile(path) as tiff:
        for number, level in enumerate(reference.levels):
            page = tiff.series[0].levels[number].keyframe
            columns, rows = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
            for column, row in {(0, 0), (columns // 2, rows // 2), (columns - 1, rows - 1)}:
                index = row * columns + column
                tiff.filehandle.seek(page.dataoffsets[index])
                data = tiff.filehandle.read(page.databytecounts[index])
                decoded, _, _ = page.decode(data, index, jpegtables=page.jpegtables)
                x, y = column * page.tilewidth, row * page.tilelength
                width = min(page.tilewidth, level.width - x)
                height = min(page.tilelength, level.height - y)
                ours = direct.read(number, x, y, (width, height))
                assert (ours == np.asarray(decoded)[0, :height, :width]).all()


@pytest.mark.parametrize("name", sorted(NO_LEVEL))
def test_formats_of_other_kinds_are_left_to_the_reference(data_dir: Path, name: str) -> None:
    with Slide(real(data_dir, name), mpp=0.5) as slide:
        for number in range(len(slide.levels)):
            assert not any(slide._reader._offers(number, reduce, is_preview=True) for reduce in (1, 2, 8))


# --- colours, samplings, layouts ---


@pytest.mark.parametrize("tile", [(240, 240), (256, 256), (512, 512), (256, 128), (48, 16)])
@pytest.mark.parametrize("sampling", ["444", "422", "420", "440", "411"])
def test_every_sampling_and_size_of_tile_has_the_reference_s_pixels(
    tmp_path: Path,
    forge: ModuleType,
    tissue: Pixels,
    decodes: Counter[int],
    tile: tuple[int, int],
    sampling: str,
) -> None:
    path = single(forge, tmp_path / "s.tiff", tissue, lambda t: forge.jpeg(t, sampling=sampling), tile=tile)
    with opened(path) as (direct, reference):
        assert direct.reads(0)
        assert (whole(direct, reference) == whole(reference, reference)).all()
    assert decodes[1] >= -(-900 // tile[0]) * -(-700 // tile[1])


ENCODINGS: dict[str, tuple[bool, bool, Callable[[ModuleType, Pixels], bytes]]] = {
    # (whether the directory says RGB, whether it is decoded directly, the stream of a tile)
    "RGB": (True, True, lambda f, t: f.jpeg(t, stored="rgb", sampling="444")),
    "RGB, halved": (True, True, lambda f, t: f.jpeg(t, stored="rgb", sampling="420")),
    "RGB, JFIF": (True, False, lambda f, t: f.jfif(f.jpeg(t, stored="rgb", sampling="444"))),
    "RGB, Adobe RGB": (True, True, lambda f, t: f.adobe(f.jpeg(t, stored="rgb", sampling="444"), 0)),
    "RGB, Adobe YCbCr": (True, False, lambda f, t: f.adobe(f.jpeg(t, stored="rgb", sampling="444"), 1)),
    "YCbCr, JFIF": (False, True, lambda f, t: f.jfif(f.jpeg(t))),
    "YCbCr, Adobe YCbCr": (False, True, lambda f, t: f.adobe(f.jpeg(t), 1)),
    "YCbCr, Adobe RGB": (False, False, lambda f, t: f.adobe(f.jpeg(t), 0)),
    "YCbCr, progressive": (False, True, lambda f, t: f.progressive(t)),
    "RGB that is YCbCr": (True, True, lambda f, t: f.jpeg(t)),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_markers_and_the_directory_give_the_reference_s_colours(
    tmp_path: Path, forge: ModuleType, tissue: Pixels, decodes: Counter[int], name: str
) -> None:
    is_rgb, is_direct, encode = ENCODINGS[name]
    path = single(
        forge,
        tmp_path / "s.tiff",
        tissue,
        lambda tile: encode(forge, tile),
        photometric=RGB if is_rgb else YCBCR,
    )
    with Slide(path) as slide:
        found = slide.read(0, 0, size=(900, 700), mpp=0.5)
        assert (found == whole(slide._backend, slide._backend)).all()
    assert bool(decodes[1]) == is_direct


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_byte_order_and_bigtiff_and_common_tables_make_no_difference(
    tmp_path: Path, forge: ModuleType, tissue: Pixels, decodes: Counter[int], order: str, big: bool
) -> None:
    pictures = []
    for image in (tissue, forge.smaller(tissue, 2), forge.smaller(tissue, 4)):
        parts = [forge.abbreviate(tile) for tile in forge.cut(image, TILE, forge.jpeg)]
        tiles = [rest for _, rest in parts]
        pictures.append(forge.Picture(image.shape[1::-1], TILE, tiles, tables=parts[0][0]))
    path = forge.write_tiff(tmp_path / "s.tiff", pictures, order=order, big=big)
    with opened(path) as (direct, reference):
        assert len(reference.levels) == 3
        for number in range(3):
            assert direct.reads(number)
            ours = whole(direct, reference, number)
            assert (ours == whole(reference, reference, number)).all()
            assert (ours == tifffile.imread(path, key=number)).all()
    assert decodes[1] >= 12 + 4 + 1


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 300), (257, 256), (300, 4), (512, 512), (511, 513)])
def test_slivers_of_tiles_at_the_edges_are_read(
    tmp_path: Path, forge: ModuleType, tissue: Pixels, size: tuple[int, int]
) -> None:
    """Also where the sliver is the richest tile, all of it that is off the slide being noise."""
    image = np.ascontiguousarray(tissue[: size[1], : size[0]])
    tiles = forge.cut(image, TILE, forge.jpeg)
    noise = np.random.default_rng(0).integers(0, 256, (*TILE, 3), dtype=np.uint8)
    columns = -(-size[0] // 256)
    inside = (size[1] - 1) % 256 + 1, (size[0] - 1) % 256 + 1
    corner = image[-inside[0] :, -inside[1] :]
    noise[: inside[0], : inside[1]] = corner
    tiles[-1] = forge.jpeg(noise, quality=99)
    assert len(tiles) % columns == 0
    path = forge.write_tiff(tmp_path / "s.tiff", [forge.Picture(size, TILE, tiles)])
    with opened(path) as (direct, reference):
        assert direct.reads(0)
        assert (whole(direct, reference) == whole(reference, reference)).all()


def test_a_pyramid_down_to_a_few_pixels_is_read_on_all_levels(
    tmp_path: Path, forge: ModuleType, tissue: Pixels
) -> None:
    images = [tissue, *(forge.smaller(tissue, ratio) for ratio in (4, 32, 128, 256))]
    pictures = [forge.Picture(i.shape[1::-1], TILE, forge.cut(i, TILE, forge.jpeg)) for i in images]
    path = forge.write_tiff(tmp_path / "s.tiff", pictures)
    with Slide(path) as slide:
        assert slide.levels[-1].width == 3
        for level in slide.levels:
            assert slide.thumbnail(0.5 * level.downsample_x).std() > 0


@pytest.mark.parametrize("backend", ["openslide", "tiffslide"])
def test_missing_tiles_are_what_the_reference_makes_of_them(
    tmp_path: Path, forge: ModuleType, tissue: Pixels, decodes: Counter[int], backend: str
) -> None:
    tiles = forge.cut(tissue, TILE, forge.jpeg)
    tiles[5] = tiles[11] = b""
    path = forge.write_tiff(
        tmp_path / "s.tiff",
        [forge.Picture((900, 700), TILE, tiles)],
        order="<" if backend == "openslide" else ">",
    )
    with opened(path) as (direct, reference):
        ours = whole(direct, reference)
        assert (ours == whole(reference, reference)).all()
        for reduce in (2, 4, 8):
            edge = 256 // reduce
            small = direct.read(0, edge, edge, (edge, edge), reduce=reduce)
            assert (small == ours[300, 300]).all()
    assert decodes[1] >= 10


def test_a_slide_of_missing_tiles_only_is_left_to_the_reference(tmp_path: Path, forge: ModuleType) -> None:
    path = forge.write_tiff(tmp_path / "s.tiff", [forge.Picture((900, 700), TILE, [b""] * 12)])
    with Slide(path) as slide:
        assert (slide.read(0, 0, size=(900, 700), mpp=0.5) == 255).all()
        assert (slide.thumbnail(8.0) == 255).all()


@pytest.mark.parametrize("vendor", ["aperio", "generic"])
def test_jpeg_2000_is_exact_when_whole_and_close_as_a_preview(
    tmp_path: Path, forge: ModuleType, tissue: Pixels, vendor: str
) -> None:
    """Through either reference: OpenSlide knows JPEG 2000 in Aperio's files only."""
    description = "Aperio Image Library v12.0.0|MPP = 0.5" if vendor == "aperio" else ""
    path = single(
        forge, tmp_path / "s.tiff", tissue, forge.jpeg2000,
        photometric=RGB, compression=JPEG2000_RGB, description=description,
    )  # fmt: skip
    with opened(path) as (direct, reference):
        assert reference.name == ("openslide" if vendor == "aperio" else "tiffslide")
        assert direct.reads(0)
        assert not any(direct.reads(0, reduce) for reduce in (2, 4, 8))
        ours = whole(direct, reference)
        assert (ours == whole(reference, reference)).all()
        assert (ours == tissue).all()  # these tiles lose nothing
        for reduce in (2, 4, 8):
            assert direct.reads(0, reduce, is_preview=True)
            size = 900 // reduce, 700 // reduce
            small = direct.read(0, 0, 0, size, reduce=reduce)
            average = cv2.resize(
                tissue[: size[1] * reduce, : size[0] * reduce], size, interpolation=cv2.INTER_AREA
            )
            coarse = [cv2.blur(image, (9, 9)).astype(int) for image in (small, average)]
            assert np.abs(coarse[0] - coarse[1]).mean() < 2.5


@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_jpeg_2000_of_few_resolutions_is_previewed_all_the_same(
    tmp_path: Path, forge: ModuleType, tissue: Pixels, reduce: int
) -> None:
    path = single(
        forge, tmp_path / "s.tiff", tissue, lambda t: forge.jpeg2000(t, resolutions=1),
        photometric=RGB, compression=JPEG2000_RGB,
    )  # fmt: skip
    with Slide(path) as slide:
        found = slide.thumbnail(0.5 * reduce)
    assert abs(float(found[: 600 // reduce].mean()) - float(tissue[:600].mean())) < 1


# --- what the direct path declines ---


def test_a_tile_of_an_unusual_kind_goes_to_the_reference_and_its_neighbours_do_not(
    tmp_path: Path, forge: ModuleType, tissue: Pixels, decodes: Counter[int]
) -> None:
    """Two tiles with an Adobe marker that the directory contradicts."""
    tiles = forge.cut(tissue, TILE, forge.jpeg)
    tiles[5] = forge.adobe(tiles[5], 0)
    tiles[6] = forge.without(
        forge.adobe(tiles[6], 0),
        0xE0,
    )  # fmt: skip
    path = forge.write_tiff(tmp_path / "s.tiff", [forge.Picture((900, 700), TILE, tiles)])
    with opened(path) as (direct, reference):
        assert direct.reads(0)
        decodes.clear()
        assert (whole(direct, reference) == whole(reference, reference)).all()
        assert decodes == {1: 10}
        small = direct.read(0, 128, 128, (128, 128), reduce=2)  # that tile, at half scale
        average = cv2.resize(
            whole(direct, reference)[256:512, 256:512], (128, 128), interpolation=cv2.INTER_AREA
        )
        assert np.abs(small.astype(int) - average).max() <= 1


@pytest.mark.parametrize("size", [(128, 128), (512, 512), (65_500, 65_500), (256, 240)])
@pytest.mark.parametrize("index", [5, 11])
def test_a_tile_of_another_size_than_the_directory_s_is_an_error_at_its_place(
    tmp_path: Path,
    forge: ModuleType,
    tissue: Pixels,
    decodes: Counter[int],
    size: tuple[int, int],
    index: int,
) -> None:
    tiles = forge.cut(tissue, TILE, forge.jpeg)
    tiles[index] = forge.with_frame(tiles[index], size=size)
    path = forge.write_tiff(tmp_path / "s.tiff", [forge.Picture((900, 700), TILE, tiles)])
    x, y = index % 4 * 256, index // 4 * 256
    with Slide(path) as slide:
        with pytest.raises(SlideError, match=rf"position \({x}, {y}\)"):
            slide.read(x, y, size=(100, 100), mpp=0.5)
        assert slide.read(0, 0, size=(256, 256), mpp=0.5).std() > 1
    assert set(decodes) == {1}


def test_a_grey_tile_among_colours_is_an_error_or_the_reference_s(
    tmp_path: Path, forge: ModuleType, tissue: Pixels
) -> None:
    tiles = forge.cut(tissue, TILE, forge.jpeg)
    tiles[5] = bytes(imagecodecs.jpeg8_encode(tissue[256:512, 256:512, 0].copy(), 90))
    path = forge.write_tiff(tmp_path / "s.tiff", [forge.Picture((900, 700), TILE, tiles)])
    with Slide(path) as slide, pytest.raises(SlideError, match=r"position \(256, 256\)"):
        slide.read(256, 256, size=(256, 256), mpp=0.5)


def test_grey_is_left_to_the_reference(tmp_path: Path, tissue: Pixels) -> None:
    path = tmp_path / "s.tiff"
    tifffile.imwrite(path, tissue[..., 0], tile=TILE, compression="jpeg", photometric="minisblack")
    with opened(path) as (direct, _):
        assert not direct.reads(0)


@pytest.mark.parametrize(
    "segment",
    [(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"), (0xEE, b"Adobe\0\x64\0\0\0\0\x01")],
    ids=["JFIF", "Adobe"],
)
def test_tables_that_say_other_colours_than_the_directory_do_not_win(
    tmp_path: Path, forge: ModuleType, tissue: Pixels, segment: tuple[int, bytes]
) -> None:
    """Some writers leave an encoder's marker in JPEGTables: general decoders then turn RGB into pink."""
    path = single(
        forge, tmp_path / "s.tiff", tissue, lambda t: forge.jpeg(t, stored="rgb", sampling="444"),
        photometric=RGB, tables=forge.join([segment]),
    )  # fmt: skip
    with Slide(path) as slide:
        found = slide.read(0, 0, size=(900, 700), mpp=0.5)
    assert np.abs(found.astype(int) - tissue).mean() < 3


def test_headers_that_were_found_good_on_one_level_are_not_taken_for_good_on_another(
    tmp_path: Path, forge: ModuleType, tissue: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Level 0 is YCbCr with JFIF markers; level 1 says RGB, and one of its tiles has the same header."""
    small = forge.smaller(tissue, 2)[:256]
    full = forge.cut(tissue, TILE, lambda t: forge.jfif(forge.jpeg(t, sampling="444")))
    rest = forge.cut(small, TILE, lambda t: forge.jpeg(t, stored="rgb", sampling="444", quality=90))
    rest[1] = forge.jfif(
        forge.jpeg(np.full((*TILE, 3), (200, 120, 150), np.uint8), stored="rgb", sampling="444")
    )
    # One header in both: the tables of level 0, whose names of components do not matter.
    segments, _ = forge.split(full[0])
    rest[1] = forge.join(segments, forge.split(rest[1])[1])
    pictures = [
        forge.Picture((900, 512), TILE, full[:8]),
        forge.Picture((450, 256), TILE, rest, photometric=RGB),
    ]
    path = forge.write_tiff(tmp_path / "s.tiff", pictures)
    with opened(path) as (direct, reference):
        assert direct.reads(0)
        whole(direct, reference)
        assert direct.reads(1)
        asked: list[int] = []
        monkeypatch.setattr(
            direct, "_by_reference", lambda level, *_: asked.append(level) or np.zeros((*TILE, 3), np.uint8)
        )
        assert not direct.read(1, 256, 0, (190, 250)).any()
        assert asked == [1]


def test_a_level_whose_pixels_would_differ_is_left_to_the_reference(
    tmp_path: Path, forge: ModuleType, tissue: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check itself: a decoder that turns red to blue is caught on the first tile."""
    path = single(forge, tmp_path / "s.tiff", tissue, forge.jpeg)
    original = TileStream.decode

    def wrong(stream: TileStream, data: bytes, **options: Any) -> Pixels:
        return np.ascontiguousarray(original(stream, data, **options)[..., ::-1])

    monkeypatch.setattr(TileStream, "decode", wrong)
    with Slide(path) as slide:
        assert not slide._reader._offers(0, 1, is_preview=False)
        found = slide.read(0, 0, size=(900, 700), mpp=0.5)
        assert (found == whole(slide._backend, slide._backend)).all()


def test_the_check_is_not_skipped_where_the_richest_tile_cannot_tell(
    tmp_path: Path, forge: ModuleType, tissue: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is damaged, or declined: the next richest must be asked."""
    original = TileStream.decode

    def wrong(stream: TileStream, data: bytes, **options: Any) -> Pixels:
        return np.ascontiguousarray(original(stream, data, **options)[..., ::-1])

    monkeypatch.setattr(TileStream, "decode", wrong)
    for index, spoil in enumerate(
        (
            lambda data: data[: len(data) // 2].ljust(90_000, b"\0"),
            lambda data: forge.adobe(data, 0) + bytes(90_000),
        )
    ):
        tiles = forge.cut(tissue, TILE, forge.jpeg)
        tiles[5] = spoil(tiles[5])
        path = forge.write_tiff(tmp_path / f"{index}.tiff", [forge.Picture((900, 700), TILE, tiles)])
        with opened(path) as (direct, _):
            assert not direct.reads(0)


@pytest.mark.parametrize(("quality", "halved"), [(70, True), (85, True), (92, False), (97, False)])
@pytest.mark.parametrize("sampling", ["444", "422", "420"])
def test_tiles_are_decoded_at_half_scale_only_where_jpeg_itself_is_coarser(
    tmp_path: Path,
    forge: ModuleType,
    tissue: Pixels,
    decodes: Counter[int],
    sampling: str,
    quality: int,
    halved: bool,
) -> None:
    """And then they are close to what whole decoding and averaging gives; elsewhere they are that."""
    path = single(
        forge, tmp_path / "s.tiff", tissue, lambda tile: forge.jpeg(tile, sampling=sampling, quality=quality)
    )
    with Slide(path, mpp=0.5) as slide:
        usual, exact = (
            slide.read(0, 0, size=(256, 256), mpp=1.0, exact=exact).astype(float) for exact in (False, True)
        )
        slide.thumbnail(1.0)  # may always
    assert decodes[2] >= 12
    assert (usual != exact).any() == halved
    assert np.abs(usual - exact).mean() < 1.5


@pytest.mark.parametrize("marked", [0, 1])
def test_of_two_pictures_of_one_size_neither_is_taken_for_the_level(
    tmp_path: Path, tissue: Pixels, marked: int
) -> None:
    """A second focal plane may be the only one that is JPEG; whichever the reference reads is right."""
    path, blurred = tmp_path / "two.tiff", cv2.GaussianBlur(tissue, (0, 0), 0.9)
    options: dict[str, Any] = {"tile": TILE, "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(tissue, compression="deflate", **options)
        tiff.write(blurred, compression="jpeg", subfiletype=marked, **options)
        if not marked:
            tiff.write(tissue[:200, :300], compression="jpeg", **options)
    try:
        slide = Slide(path, mpp=0.5)
    except SlideError:
        return  # a stack may be refused
    with slide:
        assert not slide._reader._offers(0, 1, is_preview=False)
        assert (slide.read(0, 0, size=(900, 700), mpp=0.5) == tissue).all()


@pytest.mark.parametrize("exact", [False, True])
def test_a_footprint_is_right_to_a_quarter_of_a_level_0_pixel_on_coarse_levels_too(
    tmp_path: Path, exact: bool
) -> None:
    """Ratios close to a whole number are taken for it only where level 0 does not notice."""
    path = tmp_path / "ramp.tiff"
    ramp = np.repeat(np.linspace(0, 255, 4096, dtype=np.float32)[None], 512, axis=0)
    options: dict[str, Any] = {"tile": TILE, "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as tiff:
        for step in (1, 16):
            level = cv2.resize(ramp, (4096 // step, 512 // step), interpolation=cv2.INTER_AREA)
            pixels = np.repeat(level.round().astype(np.uint8)[..., None], 3, axis=2)
            tiff.write(pixels, subfiletype=int(step > 1), **options)
    with Slide(path, mpp=0.25) as slide:
        for off in (0.049, 0.02, 0.01, 0.002):
            scale = slide.scale(0.25 * 16 * (1 + off / 64))
            _, used = slide._reader._plane_of_tile(0, 0, (64, 16), scale, exact=exact)
            assert abs(used[0] - scale[0]) * 64 <= 0.25


# --- damage ---


def spoilt(forge: ModuleType, data: bytes, kind: str) -> bytes:
    noise = np.random.default_rng(0).bytes(len(data))
    return {
        "cut off": data[: len(data) // 2],
        "cut off by a few bytes": data[:-40],
        "zeros": bytes(len(data)),
        "zeros from the middle on": data[: len(data) // 2].ljust(len(data), b"\0"),
        "noise": noise,
        "noise after its start": data[:4] + noise[4:],
        "no picture data": data[:100],
        "one byte": data[:1],
    }[kind]


DAMAGE = [
    "cut off", "cut off by a few bytes", "zeros", "zeros from the middle on",
    "noise", "noise after its start", "no picture data", "one byte",
]  # fmt: skip


@pytest.mark.parametrize("index", [0, 5, 10])
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("codec", ["jpeg", "jpeg2000"])
def test_a_damaged_tile_is_named_by_its_place_and_costs_no_neighbour(
    tmp_path: Path, forge: ModuleType, tissue: Pixels, codec: str, kind: str, index: int
) -> None:
    tiles = forge.cut(tissue, TILE, forge.jpeg if codec == "jpeg" else forge.jpeg2000)
    more = (
        {}
        if codec == "jpeg"
        else {"photometric": RGB, "compression": JPEG2000_RGB, "description": "Aperio Image"}
    )
    sound = forge.write_tiff(tmp_path / "sound.tiff", [forge.Picture((900, 700), TILE, tiles, **more)])
    with opened(sound) as (direct, reference):
        expected = whole(direct, reference)
    tiles[index] = spoilt(forge, tiles[index], kind)
    path = forge.write_tiff(tmp_path / "s.tiff", [forge.Picture((900, 700), TILE, tiles, **more)])
    with Slide(path, mpp=0.5) as slide:
        for number in range(12):
            x, y = number % 4 * 256, number // 4 * 256
            size = min(256, 900 - x), min(256, 700 - y)
            if number == index:
                with pytest.raises(SlideError, match=rf"s\.tiff.*position \({x}, {y}\)") as caught:
                    slide.read(x, y, size=size, mpp=0.5)
                assert caught.value.action
                assert "\n" not in str(caught.value)
            else:
                tile = slide.read(x, y, size=size, mpp=0.5)
                assert (tile == expected[y : y + size[1], x : x + size[0]]).all()


@pytest.mark.parametrize("kind", ["cut off", "zeros from the middle on"])
def test_a_damaged_tile_of_a_coarser_level_is_named_by_its_place_on_level_0(
    tmp_path: Path, forge: ModuleType, tissue: Pixels, kind: str
) -> None:
    tiles = forge.cut(forge.smaller(tissue, 2), TILE, forge.jpeg)
    tiles[1] = spoilt(forge, tiles[1], kind)
    pictures = [
        forge.Picture((900, 700), TILE, forge.cut(tissue, TILE, forge.jpeg)),
        forge.Picture((450, 350), TILE, tiles),
    ]
    with Slide(forge.write_tiff(tmp_path / "s.tiff", pictures)) as slide:
        with pytest.raises(SlideError, match=r"position \(512, 0\) of level 1"):
            slide.read(600, 100, size=(50, 50), mpp=1.0)
        assert slide.read(0, 0, size=(256, 256), mpp=1.0).std() > 1


def test_a_file_cut_off_after_it_was_opened_is_an_error_at_that_place(
    tmp_path: Path, forge: ModuleType, tissue: Pixels
) -> None:
    tiles = forge.cut(tissue, TILE, forge.jpeg)
    path = forge.write_tiff(tmp_path / "s.tiff", [forge.Picture((900, 700), TILE, tiles)])
    position, _ = forge.tile_place(path, 11)
    with Slide(path) as slide:
        first = slide.read(0, 0, size=(256, 256), mpp=0.5)
        os.truncate(path, position + 100)
        with pytest.raises(SlideError, match=r"position \(768, 512\)"):
            slide.read(768, 512, size=(100, 100), mpp=0.5)
        assert (slide.read(0, 0, size=(256, 256), mpp=0.5) == first).all()


def test_a_disk_that_fails_is_a_slide_error_with_a_place(
    tmp_path: Path, forge: ModuleType, tissue: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = single(forge, tmp_path / "s.tiff", tissue, forge.jpeg)

    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with opened(path) as (direct, reference):
        assert direct.reads(0)
        monkeypatch.setattr(wsi.direct.os, "pread", failing)
        with pytest.raises(SlideError, match=r"position \(0, 0\).*Input/output"):
            whole(direct, reference)


# --- hostile files ---


@pytest.mark.parametrize("kind", ["garbage", "a huge picture", "no end", "longer than the file"])
def test_jpeg_tables_that_are_none_never_reach_the_decoder(
    tmp_path: Path, forge: ModuleType, tissue: Pixels, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Neither wrong pixels nor room for a picture of 65,500 x 65,500: the reference's answer, or an error."""
    tables, _ = forge.abbreviate(forge.jpeg(tissue[:256, :256].copy()))
    bad = {
        "garbage": b"\x13" * 700,
        "a huge picture": forge.with_frame(
            forge.progressive(tissue[:256, :256].copy()), size=(65_500, 65_500)
        ),
        "no end": tables[:-2],
        "longer than the file": tables,
    }[kind]
    tiles = [forge.abbreviate(tile)[1] for tile in forge.cut(tissue, TILE, forge.jpeg)]
    path = forge.write_tiff(tmp_path / "s.tiff", [forge.Picture((900, 700), TILE, tiles, tables=bad)])
    if kind == "longer than the file":
        with tifffile.TiffFile(path) as tiff:
            entry = tiff.pages[0].tags[347].offset
        forge.set_bytes(path, entry + 4, struct.pack("<I", 2**31))
    monkeypatch.setattr(wsi.jpeg.simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(SlideError), Slide(path) as slide:
        slide.read(0, 0, size=(100, 100), mpp=0.5)


@pytest.mark.parametrize("edge", [12_000, 60_000, 2**31 - 1])
@pytest.mark.parametrize("reduce", [1, 8])
def test_a_jpeg_2000_tile_that_claims_to_be_huge_never_reaches_the_decoder(
    tmp_path: Path,
    forge: ModuleType,
    tissue: Pixels,
    monkeypatch: pytest.MonkeyPatch,
    edge: int,
    reduce: int,
) -> None:
    data = bytearray(forge.jpeg2000(tissue[:256, :256].copy()))
    struct.pack_into(">IIIIIIII", data, 8, edge, edge, 0, 0, edge, edge, 0, 0)
    monkeypatch.setattr(
        wsi.direct.imagecodecs, "jpeg2k_decode", lambda *_, **__: pytest.fail("it was decoded")
    )
    with pytest.raises(wsi.jpeg.UnusualStreamError):
        wsi.direct._decode_jpeg2000(bytes(data), TILE, reduce)


def test_counts_of_gigabytes_are_refused_and_cost_nothing(
    tmp_path: Path, forge: ModuleType, tissue: Pixels
) -> None:
    tiles = forge.cut(tissue, TILE, forge.jpeg)
    for number in (2**32 - 1, 2**63):
        counts = {325: (16, [len(tile) for tile in tiles[:-1]] + [number])}
        picture = forge.Picture((900, 700), TILE, tiles, fields=counts)
        path = forge.write_tiff(tmp_path / "s.tiff", [picture], big=True)
        with pytest.raises(SlideError, match="beyond the end"):
            Slide(path)


def test_a_sparse_file_of_gigabytes_is_not_read_into_memory(
    tmp_path: Path, forge: ModuleType, tissue: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tile of 5 GB that does lie in the file."""
    tiles = forge.cut(tissue, TILE, forge.jpeg)
    counts = {325: (16, [*(len(tile) for tile in tiles[:-1]), 5 << 30])}
    picture = forge.Picture((900, 700), TILE, tiles, fields=counts)
    path = forge.write_tiff(tmp_path / "s.tiff", [picture], big=True)
    os.truncate(path, 6 << 30)
    asked: list[int] = []
    original = os.pread

    def spying(file: int, count: int, position: int) -> bytes:
        asked.append(count)
        return original(file, count, position)

    monkeypatch.setattr(wsi.direct.os, "pread", spying)
    with opened(path) as (direct, _):
        assert direct.reads(0)
        monkeypatch.setattr(direct, "_by_reference", lambda *_: np.zeros((256, 256, 3), np.uint8))
        assert direct.read(0, 0, 0, (256, 256)).std() > 1
        assert (direct.read(0, 768, 512, (100, 100)) == 0).all()
    assert max(asked) < 1 << 20
