"""Laws of the picture: the tiles make up the slide, with square pixels, whatever the slide's own are."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from threading import BoundedSemaphore, Thread

import numpy as np
import pytest

from heatmaps.viewer.deepzoom import TILE_PX, DeepZoom, Frame, StillPicture, halved
from heatmaps.viewer.layers import Footprints, pack, thinned
from heatmaps.viewer.scales import as_text, colour_tables
from heatmaps.viewer.shelf import Shelf, SlideFile
from wsi.errors import SlideError, UsageError
from wsi.geometry import Resolution
from wsi.slide import Slide
from wsi.synthetic import write_slide


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deepzoom")
    return write_slide(folder / "one.svs", seed=3, lesion=True, size=(1400, 1100)).path


def assembled(picture: DeepZoom | StillPicture, level: int) -> np.ndarray:
    width, height = picture.frame.level_size(level)
    rows = [
        np.concatenate([picture.read(level, c, r) for c in range(-(-width // TILE_PX))], axis=1)
        for r in range(-(-height // TILE_PX))
    ]
    return np.concatenate(rows)


@pytest.mark.parametrize("mpp", [(0.5, 0.5), (0.5, 0.25), (0.4, 0.5)])
def test_tiles_make_up_the_slide_with_square_pixels(path: Path, mpp: tuple[float, float]) -> None:
    with Slide(path) as slide:
        slide.resolution = Resolution(*mpp, source="override")
        frame = Frame.of(slide)
        picture = DeepZoom(frame, lambda: nullcontext(slide), BoundedSemaphore(2))
        coarse = max(mpp)
        assert frame.mpp == coarse
        assert frame.scale == pytest.approx((coarse / mpp[0], coarse / mpp[1]))
        assert [n * m / coarse for n, m in zip(slide.size, mpp, strict=True)] == pytest.approx(
            frame.size, abs=1
        )
        for level in range(frame.coarsest_level, frame.finest_level + 1):
            whole = assembled(picture, level)
            assert whole.shape[1::-1] == frame.level_size(level)
            step = 1 << (frame.finest_level - level)
            wanted = slide.read(0, 0, size=frame.level_size(level), mpp=coarse * step)
            assert np.abs(whole.astype(float) - wanted).mean() < 3


@pytest.mark.parametrize("place", [(-1, 0, 0), (12, 0, 0), (11, 3, 0), (11, 0, 3), (11, -1, 0), (5, 1, 0)])
def test_a_tile_that_is_not_there_is_an_error(path: Path, place: tuple[int, int, int]) -> None:
    with Slide(path) as slide, pytest.raises(UsageError, match="no tile"):
        DeepZoom(Frame.of(slide), lambda: nullcontext(slide), BoundedSemaphore(2)).read(*place)


def test_halving_is_the_mean_and_white_beyond() -> None:
    image = np.random.default_rng(1).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    small = halved(image, 2)
    padded = np.full((8, 8, 3), 255.0)
    padded[:7, :5] = image
    wanted = [
        [padded[4 * r : 4 * r + 4, 4 * c : 4 * c + 4].mean(axis=(0, 1)) for c in (0, 1)] for r in (0, 1)
    ]
    np.testing.assert_allclose(small, wanted, atol=0.5)


def test_a_still_picture_is_that_picture() -> None:
    image = np.random.default_rng(1).integers(0, 256, (600, 700, 3), dtype=np.uint8)
    picture = StillPicture(image, (4.0, 4.0), 2.0)
    np.testing.assert_array_equal(assembled(picture, picture.frame.finest_level), image)


def test_the_shelf_holds_few_and_closes_none_that_is_read_from(path: Path, tmp_path: Path) -> None:
    shelf = Shelf(2)
    files = [SlideFile(path, mpp=0.5 + i / 10) for i in range(5)]
    with shelf.borrow(files[0]) as first:
        for file in files[1:]:
            with shelf.borrow(file):
                pass
        assert len(shelf) == 2
        assert first.read(0, 0, size=(8, 8), mpp=0.5).shape == (8, 8, 3)
    with pytest.raises(SlideError), shelf.borrow(SlideFile(tmp_path / "none.svs")):
        pass
    faults: list[Exception] = []

    def read(number: int) -> None:
        try:
            for i in range(20):
                with shelf.borrow(files[(i + number) % 5]) as slide:
                    slide.read(0, 0, size=(16, 16), mpp=1.0)
        except Exception as error:
            faults.append(error)

    threads = [Thread(target=read, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    shelf.close()
    assert len(shelf) == 0


@pytest.mark.parametrize("stride", [(256.0, 256.0), (506.9, 506.9), (128.5, 257.0)])
def test_side_by_side_tiles_are_a_pixel_each_also_where_origins_were_rounded(
    stride: tuple[float, float],
) -> None:
    columns, rows = 9, 7
    x, y = np.meshgrid(
        np.floor(np.arange(columns) * stride[0] + 0.5), np.floor(np.arange(rows) * stride[1] + 0.5)
    )
    origins = np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.int32)
    size = round(columns * stride[0]), round(rows * stride[1])
    places = Footprints(origins, stride, stride, size, 0.25)
    values = np.random.default_rng(0).random(len(origins)).astype(np.float32)
    plane, step = thinned(places.paint("a", values).channel("a"))
    assert step == 32
    np.testing.assert_array_equal(plane.reshape(rows, columns), values.reshape(rows, columns))


def test_a_packed_channel_states_its_scale() -> None:
    places = Footprints(np.array([[0, 0], [64, 0]], np.int32), (64, 64), (64, 64), (128, 64), 0.5)
    packed = pack(places.paint("a", np.array([0.25, np.nan], np.float32)), "a")
    assert b'"scale": [64.0, 64.0]' in packed
    assert np.frombuffer(packed[-8:], "<f4").tolist()[0] == 0.25


def test_every_scale_grows_lighter_evenly() -> None:
    for name, table in colour_tables().items():
        assert len(as_text(table)) == 256 * 6
        linear = np.where(table / 255 <= 0.04045, table / 255 / 12.92, ((table / 255 + 0.055) / 1.055) ** 2.4)
        lightness = 116 * np.cbrt(np.maximum(linear @ [0.2126, 0.7152, 0.0722], 1e-4)) - 16
        assert (np.diff(lightness[4:]) > -0.35).all(), name
        assert lightness[-1] - lightness[0] > 60
