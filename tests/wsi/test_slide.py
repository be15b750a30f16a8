"""One contract for every format: position, scale, white outside, pickling, refusals."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from wsi.backends import Backend, OpenSlideBackend, TiffSlideBackend
from wsi.errors import ResolutionError, SlideError
from wsi.geometry import Region
from wsi.resample import area_resample
from wsi.slide import Slide

SECTION_MPP = 1.052072
FORMATS = [
    "aperio_jpeg.svs",
    "aperio_jp2k_33005.svs",
    "generic_jpeg.tiff",
    "generic_deflate_nompp.tiff",
    "pyramid.ome.tiff",
    "philips.tiff",
    "trestle.tif",
    "leica.scn",
    "hamamatsu.ndpi",
    "hamamatsu/hamamatsu.vms",
    "dicom",
]


def picture(width: int, height: int) -> NDArray[np.uint8]:
    """A smooth picture that changes by up to 7 grey levels a pixel: a shift by half of one shows."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 17), np.sin(y / 17), np.sin((x + y) / 29)]
    return np.round(127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lossless generic TIFF, 1500 x 1000 at 0.5 µm, with a level of one third the size."""
    path = tmp_path_factory.mktemp("slide") / "pyramid.tiff"
    image = picture(1500, 1000)
    options = {
        "tile": (256, 256),
        "photometric": "rgb",
        "compression": "deflate",
        "resolutionunit": "CENTIMETER",
    }
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(image, resolution=(20_000, 20_000), **options)
        third = image[:999].reshape(333, 3, 500, 3, 3).mean((1, 3)).round().astype(np.uint8)
        tiff.write(third, subfiletype=1, **options)
    return path


def test_native_pixels_come_back_as_they_are(pyramid: Path) -> None:
    with Slide(pyramid) as slide:
        assert slide.size == (1500, 1000)
        assert slide.resolution is not None
        assert slide.resolution.source == "TIFF resolution"
        tile = slide.read(100, 200, size=(64, 48), mpp=0.5)
    assert (tile == picture(1500, 1000)[200:248, 100:164]).all()


@pytest.mark.parametrize("mpp", [0.5, 0.73, 1.0, 1.4, 1.5, 2.2, 4.0])
def test_a_tile_is_the_mean_of_its_footprint_at_every_scale(pyramid: Path, mpp: float) -> None:
    """Also where it comes from a coarser level (1.5 and up)."""
    with Slide(pyramid) as slide:
        tile = slide.read(301, 402, size=(40, 30), mpp=mpp)
    step = mpp / 0.5
    expected = area_resample(picture(1500, 1000), Region(301, 402, 40 * step, 30 * step), (40, 30))
    difference = tile.astype(int) - expected.astype(int)
    # Half a level-0 pixel would be 3.5 grey levels; a coarser level's own pixels blur the curve a little.
    assert np.abs(difference).max() <= (1 if mpp < 1.5 else 4)
    assert np.abs(difference).mean() < (0.5 if mpp < 1.5 else 1.2)


@pytest.mark.parametrize(("x", "y"), [(-100, -50), (1450, 980), (5000, 5000), (-5000, 10)])
def test_outside_the_slide_is_white_and_inside_is_not(pyramid: Path, x: int, y: int) -> None:
    with Slide(pyramid) as slide:
        tile = slide.read(x, y, size=(128, 128), mpp=0.5)
    columns, rows = np.arange(x, x + 128), np.arange(y, y + 128)
    inside = ((rows >= 0) & (rows < 1000))[:, None] & ((columns >= 0) & (columns < 1500))
    assert (tile[~inside] == 255).all()
    assert (tile[inside] < 250).all()


@pytest.mark.parametrize("mpp", [2.0, 7.9])
def test_a_thumbnail_is_the_same_read_in_blocks_or_at_once(
    pyramid: Path, mpp: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Slide(pyramid) as slide:
        whole = slide.thumbnail(mpp)
        monkeypatch.setattr("wsi.reader.BLOCK_PIXELS", 2_000)
        blocks = slide.thumbnail(mpp)
    assert whole.shape == (int(np.ceil(1000 * 0.5 / mpp)), int(np.ceil(1500 * 0.5 / mpp)), 3)
    # Half a level-0 pixel, the grain of OpenSlide's positions, shows as up to 4 grey levels on this picture.
    assert np.abs(whole.astype(int) - blocks.astype(int)).max() <= 4
    assert np.abs(whole.astype(int) - blocks.astype(int)).mean() < 1


def test_a_slide_survives_pickling_and_threads(pyramid: Path) -> None:
    with Slide(pyramid, mpp=0.25) as slide, pickle.loads(pickle.dumps(slide)) as copy:
        assert copy.resolution == slide.resolution
        with ThreadPoolExecutor(4) as pool:
            tiles = list(pool.map(lambda i: copy.read(i * 10, 0, size=(64, 64), mpp=0.25), range(40)))
        expected = [slide.read(i * 10, 0, size=(64, 64), mpp=0.25) for i in range(40)]
    assert all((a == b).all() for a, b in zip(tiles, expected, strict=True))


def test_up_sampling_is_refused_beyond_the_tolerance(pyramid: Path) -> None:
    with Slide(pyramid) as slide:
        assert slide.read(0, 0, size=(8, 8), mpp=0.48).shape == (8, 8, 3)
        with pytest.raises(ResolutionError, match=r"pyramid\.tiff.*0\.5 µm per pixel, and 0\.25.*--mpp 0\.5"):
            slide.read(0, 0, size=(8, 8), mpp=0.25)


def test_a_slide_without_mpp_opens_and_says_what_to_pass_when_read(tmp_path: Path) -> None:
    path = tmp_path / "bare.tiff"
    tifffile.imwrite(path, picture(300, 200), tile=(64, 64), photometric="rgb")
    with Slide(path) as slide:
        assert slide.resolution is None
        assert slide.size == (300, 200)
        with pytest.raises(ResolutionError, match=r"bare\.tiff.*no microns per pixel.*--mpp-override"):
            slide.read(0, 0, size=(8, 8), mpp=1.0)
    with Slide(path, mpp=0.5) as slide:
        assert slide.require_resolution().source == "override"


def test_an_absurd_resolution_is_refused_until_overridden(tmp_path: Path) -> None:
    path = tmp_path / "screen.tiff"
    tifffile.imwrite(
        path, picture(300, 200), tile=(64, 64), photometric="rgb", resolution=(72, 72), resolutionunit="INCH"
    )
    refused = pytest.raises(ResolutionError, match=r"screen\.tiff.*outside 0\.05 to 20.*--mpp-override")
    with Slide(path) as slide, refused:
        slide.thumbnail(8.0)
    with Slide(path, mpp=0.5) as slide:
        assert slide.require_resolution().mpp == 0.5


@pytest.mark.parametrize("backend", [OpenSlideBackend, TiffSlideBackend])
def test_backends_agree_on_levels_and_pixels(backend: type[Backend], pyramid: Path) -> None:
    reader = backend(pyramid)  # type: ignore[call-arg]
    try:
        assert [(level.width, level.height) for level in reader.levels] == [(1500, 1000), (500, 333)]
        assert [level.downsample_x for level in reader.levels] == [1, 3]
        whole = reader.read_level(1, 0, 0, (500, 333))
        part = reader.read_level(1, 123, 45, (70, 60))
        # OpenSlide's own positions are whole level-0 pixels: off by half of one, which shows as up to 4 here.
        tolerance = 4 if backend is OpenSlideBackend else 0
        assert np.abs(part.astype(int) - whole[45:105, 123:193].astype(int)).max() <= tolerance
        assert (reader.read_level(0, 7, 9, (50, 40)) == picture(1500, 1000)[9:49, 7:57]).all()
    finally:
        reader.close()


def test_a_read_after_a_decoding_error_still_works(pyramid: Path, tmp_path: Path) -> None:
    """OpenSlide's error sticks to its handle; ours must not."""
    damaged = tmp_path / "damaged.tiff"
    data = bytearray(pyramid.read_bytes())
    with tifffile.TiffFile(pyramid) as tiff:
        page = tiff.pages[0]
        start, length = page.dataoffsets[7], page.databytecounts[7]  # second row, second column
    data[start : start + length] = bytes(length)
    damaged.write_bytes(data)
    with Slide(damaged) as slide:
        before = slide.read(0, 0, size=(64, 64), mpp=0.5)
        with pytest.raises(SlideError, match=r"damaged\.tiff.*position \(300, 300\)"):
            slide.read(300, 300, size=(64, 64), mpp=0.5)
        assert (slide.read(0, 0, size=(64, 64), mpp=0.5) == before).all()


def real_format(data_dir: Path, name: str) -> Path:
    path = data_dir / "slides" / "formats" / name
    return sorted(path.glob("*.dcm"))[0] if name == "dicom" else path


@pytest.mark.parametrize("name", FORMATS)
def test_one_section_is_the_same_in_every_format(data_dir: Path, name: str) -> None:
    """The same tissue re-wrapped ten ways: same place, same scale, same pixels but for compression."""
    reference = Slide(real_format(data_dir, "aperio_jpeg.svs"))
    override = SECTION_MPP if "nompp" in name else None
    with reference, Slide(real_format(data_dir, name), mpp=override) as slide:
        left, top = slide.bounds_origin  # Leica's file holds the section inside a larger canvas
        assert slide.require_resolution().mpp == pytest.approx(SECTION_MPP, rel=1e-4)
        for mpp, tolerance in ((1.0521, 3.0), (4.3, 4.0), (8.0, 2.5)):
            expected = reference.read(1300, 900, size=(200, 160), mpp=mpp).astype(int)
            found = slide.read(left + 1300, top + 900, size=(200, 160), mpp=mpp).astype(int)
            assert np.abs(found - expected).mean() < tolerance
            # A shift by one output pixel would cost more than any of these formats' compression does.
            shifted = np.abs(found[:, 1:] - expected[:, :-1]).mean()
            assert np.abs(found - expected).mean() < shifted / 1.5


def test_label_and_macro_are_named_and_not_read(data_dir: Path) -> None:
    with Slide(data_dir / "slides" / "vendor" / "CMU-1-Small-Region.svs") as slide:
        assert {"label", "macro"} <= set(slide.associated)
        assert slide.require_resolution().source == "vendor property"


def test_the_tcga_slide_without_mpp_is_refused_with_what_to_pass(data_dir: Path) -> None:
    with Slide(data_dir / "slides" / "vendor" / "TCGA-CR-7395-01A-01-TS1.svs") as slide:
        with pytest.raises(ResolutionError, match="--mpp-override"):
            slide.thumbnail(8.0)
        assert len(slide.levels) == 2
