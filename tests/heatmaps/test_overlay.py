"""Laws of the overlay: tiles look like tiles, lie where they lie, and the slide beside them is untouched."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from heatmaps.colour import colour, colour_table
from heatmaps.overlay import draw_overlay, draw_picture
from heatmaps.raster import paint
from wsi.errors import OutputError
from wsi.picture import encode_png

SLIDE = (4096, 3072)
SCALE = 7.31
TILE = 512


@pytest.fixture(scope="module")
def thumbnail():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (round(SLIDE[1] / SCALE), round(SLIDE[0] / SCALE), 3), np.uint8)


@pytest.fixture(scope="module")
def heatmap():
    return paint(
        [[1024, 512], [1536, 512], [3584, 2560]],
        [[0.2], [0.9], [0.5]],
        channels=("tumour",),
        tile=(TILE, TILE),
        stride=(TILE, TILE),
        slide_size=SLIDE,
        slide_mpp=0.25,
    )


def under_a_tile(shape):
    y, x = ((np.indices(shape[:2]) + 0.5) * SCALE).astype(float)
    return ((y >= 512) & (y < 1024) & (x >= 1024) & (x < 2048)) | ((y >= 2560) & (x >= 3584))


def test_only_pixels_under_a_tile_change(thumbnail, heatmap):
    drawn = draw_overlay(thumbnail, heatmap, "tumour", thumbnail_scale=SCALE, alpha=1)
    slide = drawn[: thumbnail.shape[0], : thumbnail.shape[1]]
    inside = under_a_tile(thumbnail.shape)
    np.testing.assert_array_equal(slide[~inside], thumbnail[~inside])
    colours = {tuple(pixel) for pixel in slide[inside].tolist()}
    scores = np.array([0.2, 0.9, 0.5], np.float32)
    assert colours == {tuple(pixel) for pixel in colour(scores, vmin=0, vmax=1).tolist()}


def test_tiles_lie_right_where_the_slides_pixels_are_not_square():
    mpp_x, mpp_y, step = 0.25, 0.5, 4.0  # microns; the thumbnail has `step` microns per pixel
    heatmap = paint(
        [[512, 768]],
        [[1.0]],
        channels=("tumour",),
        tile=(512, 256),
        stride=(512, 256),
        slide_size=(2048, 1536),
        slide_mpp=(mpp_x + mpp_y) / 2,
    )
    white = np.full((round(1536 * mpp_y / step), round(2048 * mpp_x / step), 3), 255, np.uint8)
    drawn = draw_overlay(white, heatmap, "tumour", thumbnail_scale=step / mpp_x)[: len(white), :128]
    rows, columns = np.nonzero((drawn != 255).any(axis=2))
    assert (columns.min(), columns.max() + 1) == (512 * mpp_x / step, 1024 * mpp_x / step)
    assert (rows.min(), rows.max() + 1) == (768 * mpp_y / step, 1024 * mpp_y / step)


def test_alpha_mixes_the_colour_with_the_grey_of_the_tissue(thumbnail, heatmap):
    inside = under_a_tile(thumbnail.shape)
    grey = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY)[inside][:, None].astype(float)
    drawn = {
        alpha: draw_overlay(thumbnail, heatmap, "tumour", thumbnail_scale=SCALE, alpha=alpha)[
            : thumbnail.shape[0], : thumbnail.shape[1]
        ][inside].astype(float)
        for alpha in (0, 0.25, 1)
    }
    np.testing.assert_array_equal(drawn[0], np.broadcast_to(grey, drawn[0].shape))
    assert np.abs(drawn[0.25] - (0.25 * drawn[1] + 0.75 * drawn[0])).max() <= 0.5


def test_the_thumbnail_itself_is_not_written_to(thumbnail, heatmap):
    before = thumbnail.copy()
    draw_overlay(thumbnail, heatmap, "tumour", thumbnail_scale=SCALE)
    np.testing.assert_array_equal(thumbnail, before)


def test_the_legend_lies_below_and_holds_the_whole_bar(thumbnail, heatmap):
    drawn = draw_overlay(thumbnail, heatmap, "tumour", thumbnail_scale=SCALE)
    assert drawn.dtype == np.uint8
    assert drawn.shape[1] == thumbnail.shape[1]
    legend = drawn[thumbnail.shape[0] :]
    assert 0 < len(legend) < thumbnail.shape[0] / 5
    present = {tuple(pixel) for pixel in legend.reshape(-1, 3).tolist()}
    table = [tuple(entry) for entry in colour_table().tolist()]
    assert {table[0], table[-1]} <= present
    assert len(present & set(table)) > 50


@pytest.mark.parametrize("change", [{"vmin": -1}, {"vmax": 3}, {"channel": "stroma"}, {"title": "a"}])
def test_the_legend_tells_name_and_range(thumbnail, heatmap, change):
    def legend(channel="tumour", vmin=0.0, vmax=1.0, title=None):
        named = type(heatmap)(heatmap.values, (channel,), heatmap.scale, heatmap.scale_y, heatmap.mpp)
        drawn = draw_overlay(
            thumbnail, named, channel, thumbnail_scale=SCALE, title=title, vmin=vmin, vmax=vmax
        )
        return drawn[thumbnail.shape[0] :]

    assert not np.array_equal(legend(), legend(**change))
    np.testing.assert_array_equal(legend(), legend(title="tumour"))


@pytest.mark.parametrize("name", ["é" * 300, "tumour </script> \" ' & 1", "W" * 40])
def test_any_thumbnail_and_any_name_can_be_drawn(name):
    heatmap = paint(
        [[0, 0]],
        [[0.5]],
        channels=(name,),
        tile=(64, 64),
        stride=(64, 64),
        slide_size=(64, 64),
        slide_mpp=1,
    )
    for height, width in ((1, 1), (40, 9), (9, 3000)):
        white = np.full((height, width, 3), 255, np.uint8)
        scale = 64 / min(height, width)
        # Numbers as long as they come.
        drawn = draw_overlay(
            white, heatmap, name, thumbnail_scale=scale, vmin=-1.23456e-100, vmax=1.23456e200
        )
        assert drawn.shape[1] == max(width, 320)
        assert (drawn[:, -1] == 255).all()  # nothing runs out of the picture
        present = {tuple(pixel) for pixel in drawn[height:].reshape(-1, 3).tolist()}
        assert tuple(colour_table()[-1].tolist()) in present


@pytest.mark.parametrize(
    "change",
    [
        {"alpha": 1.5},
        {"vmin": 1.0, "vmax": 0.0},
        {"thumbnail_scale": 0},
        {"channel": "stroma"},
        {"thumbnail": np.zeros((9, 9), np.uint8)},
        {"thumbnail": np.zeros((9, 9, 3), np.float32)},
    ],
)
def test_what_cannot_be_drawn_is_refused(thumbnail, heatmap, change):
    sound = {"thumbnail": thumbnail, "heatmap": heatmap, "channel": "tumour", "thumbnail_scale": SCALE}
    with pytest.raises(ValueError, match=r"."):
        draw_overlay(**(sound | change))


def test_the_plain_picture_is_the_heatmap_in_colours_with_the_overlays_legend(thumbnail, heatmap):
    drawn = draw_picture(heatmap, "tumour", title="what it is")
    times = -(-800 // max(heatmap.shape))
    rows, columns = (times * length for length in heatmap.shape)
    pixels = colour(heatmap.channel("tumour"), vmin=0, vmax=1, gap=(255, 255, 255))
    assert times > 1
    for down in range(times):
        for right in range(times):
            np.testing.assert_array_equal(drawn[down:rows:times, right:columns:times], pixels)
    narrow = np.full((9, columns, 3), 255, np.uint8)
    laid = draw_overlay(narrow, heatmap, "tumour", thumbnail_scale=SCALE, title="what it is")
    np.testing.assert_array_equal(drawn[rows:], laid[9:])
    for change in ({"vmin": 1.0, "vmax": 0.0}, {"channel": "stroma"}):
        with pytest.raises(ValueError, match=r"."):
            draw_picture(**({"heatmap": heatmap, "channel": "tumour"} | change))


def test_png_gives_the_same_pixels_back_and_the_same_bytes_again(thumbnail):
    data = encode_png(thumbnail)
    back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(back, thumbnail)
    assert data == encode_png(thumbnail)


def test_an_image_that_is_no_png_is_an_output_error():
    with pytest.raises(OutputError, match="cannot be made a PNG"):
        encode_png(np.zeros((0, 0, 3), np.uint8))
