"""Laws of painting: what a heatmap says about tiles, whatever the slide."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatmaps.raster import Heatmap, paint, paint_columns, pixel_scale
from heatmaps.settings import Overlap


def grid(columns, rows, step):
    cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    return np.floor(cells * step + 0.5).astype(np.int32)


def paint_square(origins, values, *, tile, stride, slide_size, channels=("score",), overlap=Overlap.MEAN):
    return paint(
        origins,
        values,
        channels=channels,
        tile=(tile, tile),
        stride=(stride, stride),
        slide_size=slide_size,
        slide_mpp=0.25,
        overlap=overlap,
    )


def covered(start, length, scale, pixels):
    edges = np.arange(pixels) * scale
    return np.maximum(0, np.minimum(edges + scale, start + length) - np.maximum(edges, start)) / scale


def naive(heatmap, origins, values, tile, overlap=Overlap.MEAN):
    """One whole raster of covered areas per tile, one channel."""
    rows, columns, _ = heatmap.values.shape
    areas = np.array(
        [
            np.outer(covered(y, tile, heatmap.scale_y, rows), covered(x, tile, heatmap.scale, columns))
            for x, y in origins.tolist()
        ]
    )
    quarter = 0.25 * min(1.0, tile / heatmap.scale) ** 2 * (1 - 1e-6)
    if overlap is Overlap.MAX:
        best = np.where(areas >= quarter, values[:, None, None], -np.inf).max(axis=0)
        return np.where(np.isinf(best), np.nan, best)
    with np.errstate(invalid="ignore"):
        mean = np.tensordot(values, areas, axes=1) / areas.sum(axis=0)
    return np.where(areas.max(axis=0) >= quarter, mean, np.nan)


@st.composite
def scattered_tiles(draw):
    size = draw(st.tuples(st.integers(40, 400), st.integers(40, 400)))
    stride = draw(st.floats(20, 120))
    tile = stride * draw(st.sampled_from([0.5, 1.0, 1.7]))
    place = st.tuples(st.integers(0, size[0] - 1), st.integers(0, size[1] - 1))
    origins = np.array(draw(st.lists(place, min_size=1, max_size=6, unique=True)))
    values = np.array(draw(st.lists(st.floats(-5, 5), min_size=len(origins), max_size=len(origins))))
    return size, stride, tile, origins, values


@pytest.mark.parametrize("overlap", Overlap)
@settings(max_examples=40, deadline=None)
@given(case=scattered_tiles())
def test_equals_the_naive_painter(overlap, case):
    size, stride, tile, origins, values = case
    heatmap = paint_square(
        origins, values[:, None], tile=tile, stride=stride, slide_size=size, overlap=overlap
    )
    expected = naive(heatmap, origins, values, tile, overlap)
    np.testing.assert_allclose(heatmap.values[:, :, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overlap", Overlap)
@settings(max_examples=30, deadline=None)
@given(case=scattered_tiles(), seed=st.integers(0, 99))
def test_the_order_of_the_tiles_changes_no_bit(overlap, case, seed):
    size, stride, tile, origins, values = case
    order = np.random.default_rng(seed).permutation(len(origins))
    one, other = (
        paint_square(
            origins[rows], values[rows, None], tile=tile, stride=stride, slide_size=size, overlap=overlap
        ).channel("score")
        for rows in (np.arange(len(origins)), order)
    )
    assert one.tobytes() == other.tobytes()


def test_the_maximum_is_one_of_the_scores_and_never_below_the_mean():
    rng = np.random.default_rng(4)
    origins = grid(40, 30, 64)[rng.random(1200) < 0.6]
    values = rng.normal(size=(len(origins), 1)).astype(np.float32)
    mean, highest = (
        paint_square(origins, values, tile=128, stride=64, slide_size=(2800, 2200), overlap=overlap).channel(
            "score"
        )
        for overlap in Overlap
    )
    np.testing.assert_array_equal(np.isnan(mean), np.isnan(highest))
    known = ~np.isnan(mean)
    assert np.isin(highest[known], values).all()
    assert (highest[known] >= mean[known] - 1e-6).all()
    assert (highest[known] > mean[known] + 1e-3).mean() > 0.5


@settings(max_examples=40, deadline=None)
@given(scattered_tiles(), st.floats(-1e6, 1e6, width=32))
def test_a_constant_stays_that_constant(case, constant):
    size, stride, tile, origins, _ = case
    values = np.full((len(origins), 1), constant)
    painted = np.asarray(paint_square(origins, values, tile=tile, stride=stride, slide_size=size).values)
    np.testing.assert_allclose(painted[~np.isnan(painted)], constant, rtol=1e-6)
    assert not np.isnan(painted).all()


@settings(max_examples=40, deadline=None)
@given(scattered_tiles())
def test_a_tile_given_twice_changes_nothing(case):
    size, stride, tile, origins, values = case
    once = paint_square(origins, values[:, None], tile=tile, stride=stride, slide_size=size)
    twice = paint_square(
        np.concatenate([origins, origins]),
        np.concatenate([values, values])[:, None],
        tile=tile,
        stride=stride,
        slide_size=size,
    )
    np.testing.assert_allclose(twice.values, once.values, rtol=1e-6, atol=1e-7)


def test_a_partition_paints_every_pixel_with_its_own_tile():
    origins = grid(7, 5, 256)
    values = np.arange(35, dtype=np.float32)
    heatmap = paint_square(origins, values[:, None], tile=256, stride=256, slide_size=(7 * 256, 5 * 256))
    expected = values.reshape(5, 7).repeat(32, axis=0).repeat(32, axis=1)
    assert heatmap.scale == 8
    np.testing.assert_array_equal(heatmap.values[:, :, 0], expected)


def test_rounded_origins_leave_no_seams():
    stride = 505.3
    heatmap = paint_square(
        grid(9, 9, stride), np.ones((81, 1)), tile=stride, stride=stride, slide_size=(4547, 4547)
    )
    assert not np.isnan(heatmap.values).any()


def test_the_mean_over_the_painted_area_is_the_mean_of_the_tiles():
    rng = np.random.default_rng(1)
    origins = grid(20, 15, 512)[rng.random(300) < 0.5]
    values = rng.random((len(origins), 1), np.float32)
    painted = paint_square(origins, values, tile=512, stride=512, slide_size=(10_240, 7680)).values
    assert np.nanmean(painted, dtype=float) == pytest.approx(values.mean(dtype=float), rel=1e-6)


def test_overlaps_average():
    painted = paint_square(
        [[0, 0], [128, 0]], [[1.0], [3.0]], tile=256, stride=128, slide_size=(384, 256)
    ).values[:, :, 0]
    columns = np.array([1.0, 2.0, 3.0]).repeat(32)
    np.testing.assert_array_equal(painted, np.broadcast_to(columns, painted.shape))


def test_gaps_are_nan_and_never_zero():
    painted = np.asarray(
        paint_square([[512, 256]], [[0.0]], tile=256, stride=256, slide_size=(2048, 1024)).values
    )
    inside = np.zeros(painted.shape, bool)
    inside[32:64, 64:96] = True
    assert (painted[inside] == 0).all()
    assert np.isnan(painted[~inside]).all()


def test_no_tiles_paint_nothing():
    painted = paint_square(
        np.zeros((0, 2)), np.zeros((0, 1)), tile=256, stride=256, slide_size=(900, 500)
    ).values
    assert painted.shape == (63, 113, 1)
    assert np.isnan(painted).all()


@settings(max_examples=60, deadline=None)
@given(
    place=st.tuples(st.integers(0, 90_000), st.integers(0, 70_000)),
    tile=st.floats(60, 2000),
    size=st.sampled_from([(100_000, 80_000), (92_000, 72_500)]),
)
def test_one_tile_lies_where_it_lies_to_half_a_pixel(place, tile, size):
    heatmap = paint_square([place], [[1.0]], tile=tile, stride=tile, slide_size=size)
    known = ~np.isnan(heatmap.channel("score"))
    rows, columns = (np.flatnonzero(known.any(axis=axis)) for axis in (1, 0))
    for pixels, scale, start in ((columns, heatmap.scale, place[0]), (rows, heatmap.scale_y, place[1])):
        middle = (pixels.min() + pixels.max() + 1) / 2 * scale
        assert abs(middle - (start + tile / 2)) <= 0.5 * scale * (1 + 1e-6)
        assert abs(pixels.min() * scale - start) <= 0.75 * scale * (1 + 1e-6)


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(0, 9_999_000), st.integers(0, 4_999_000)), st.floats(10, 900))
def test_no_tile_is_lost_where_pixels_are_coarser_than_tiles(place, tile):
    size = (10_000_000, 100_000)
    place = (place[0], place[1] % 99_000)
    heatmap = paint_square([place], [[1.0]], tile=tile, stride=tile, slide_size=size)
    assert max(heatmap.values.shape) <= 4096
    assert np.nansum(heatmap.values) >= 1


def test_coarse_pixels_hold_the_mean_of_their_tiles():
    stride, cells = 10, 3 * 4096
    heatmap = paint_square(
        [[0, 0], [10, 0], [20, 0], [30, 0]],
        [[1.0], [2.0], [3.0], [6.0]],
        tile=stride,
        stride=stride,
        slide_size=(cells * stride, 40),
    )
    assert heatmap.scale == 40
    assert heatmap.values[0, 0, 0] == 3


def test_channels_are_painted_each_for_itself_and_nan_is_no_value():
    origins = grid(3, 1, 256)
    values = np.array([[0.1, np.nan], [0.2, 5.0], [np.nan, np.nan]])
    heatmap = paint_square(
        origins, values, tile=256, stride=256, slide_size=(768, 256), channels=("tumour", "attention")
    )
    for name, row in (("tumour", values[:, 0]), ("attention", values[:, 1])):
        np.testing.assert_array_equal(heatmap.channel(name)[0], row.astype(np.float32).repeat(32))


def test_a_tile_without_a_value_does_not_hide_its_neighbours():
    painted = paint_square(
        [[0, 0], [128, 0]], [[1.0], [np.nan]], tile=256, stride=128, slide_size=(384, 256)
    ).values[0, :, 0]
    np.testing.assert_array_equal(painted, np.array([1, 1, np.nan], np.float32).repeat(32))


def test_a_channel_is_painted_when_it_is_asked_for_and_not_kept():
    origins = grid(60, 60, 256)
    values = np.random.default_rng(3).random((len(origins), 8), np.float32)
    names = tuple(f"class {number}" for number in range(8))
    tracemalloc.start()
    try:
        heatmap = paint_square(
            origins, values, tile=256, stride=256, slide_size=(15_360, 15_360), channels=names
        )
        planes = [heatmap.channel(name)[5, 5] for name in names]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(planes, values[0])
    assert heatmap.shape == (1920, 1920)
    assert peak < 3 * heatmap.channel(names[0]).nbytes


def test_a_painted_heatmap_reads_like_an_array():
    origins, values = grid(3, 2, 256), np.arange(12.0).reshape(6, 2)
    heatmap = paint_square(
        origins, values, tile=256, stride=256, slide_size=(768, 512), channels=("one", "two")
    )
    dense = np.asarray(heatmap.values)
    assert dense.shape == heatmap.values.shape == (64, 96, 2)
    assert dense.dtype == heatmap.values.dtype == np.float32
    for index, name in enumerate(heatmap.channels):
        np.testing.assert_array_equal(dense[:, :, index], heatmap.channel(name))
        np.testing.assert_array_equal(heatmap.values[:, :, index], heatmap.channel(name))
        one = heatmap.only(name)
        assert (one.channels, one.scale, one.scale_y, one.mpp) == ((name,), 8.0, 8.0, heatmap.mpp)
        np.testing.assert_array_equal(one.channel(name), heatmap.channel(name))
    with pytest.raises(ValueError, match="cannot be had without a copy"):
        np.array(heatmap.values, copy=False)


def test_columns_by_name_are_painted_as_the_table_of_them_is():
    origins, values = grid(5, 4, 200), np.random.default_rng(6).random((20, 2)).astype(np.float32)
    frame = {"tile": (256, 256), "stride": (200, 200), "slide_size": (1100, 900), "slide_mpp": 0.5}
    table = paint(origins, values, channels=("a", "b"), **frame)
    columns = paint_columns(origins, {"a": values[:, 0], "b": values[:, 1]}, **frame)
    assert columns.channels == table.channels
    np.testing.assert_array_equal(np.asarray(columns.values), np.asarray(table.values))


def test_bands_do_not_show():
    # 4000 rows are painted in bands; a transposed slide is cut elsewhere and must give the same picture.
    rng = np.random.default_rng(2)
    origins = rng.integers(0, (8000, 30_000), (400, 2))
    values = rng.random((400, 1))
    straight = paint_square(origins, values, tile=300.7, stride=256, slide_size=(8000, 32_000)).values
    turned = paint_square(origins[:, ::-1], values, tile=300.7, stride=256, slide_size=(32_000, 8000)).values
    np.testing.assert_allclose(straight[:, :, 0], turned[:, :, 0].T, rtol=1e-6)


def test_a_tile_that_overhangs_the_slide_is_painted_to_its_edge():
    heatmap = paint_square([[0, 0], [256, 0]], [[1.0], [2.0]], tile=256, stride=256, slide_size=(259, 256))
    np.testing.assert_array_equal(heatmap.values[0, :, 0], [1.0] * 32 + [2.0])


def test_pixels_are_square_in_microns_on_an_anisotropic_slide():
    mpp_x, mpp_y, side = 0.25, 0.2, 128.0
    stride = (side / mpp_x, side / mpp_y)
    heatmap = paint(
        [[0, 0]],
        [[1.0]],
        channels=("score",),
        tile=stride,
        stride=stride,
        slide_size=(5120, 6400),
        slide_mpp=(mpp_x + mpp_y) / 2,
    )
    assert heatmap.mpp == pytest.approx(heatmap.scale * mpp_x)
    assert heatmap.mpp == pytest.approx(heatmap.scale_y * mpp_y)
    assert heatmap.values.shape == (320, 320, 1)


@given(st.floats(10, 3000), st.tuples(st.integers(1, 2_000_000), st.integers(1, 2_000_000)))
def test_the_pixel_grid_follows_the_stride_and_is_bounded(stride, size):
    scale, _ = pixel_scale(stride=(stride, stride), slide_size=size)
    power = math.log2(stride / scale)
    assert power == pytest.approx(round(power), abs=1e-9)
    assert power <= 5
    assert max(size) / scale <= 4096 * (1 + 1e-9)
    assert power == 5 or 2 * max(size) / scale > 4095  # and never coarser than it must be


def test_a_slide_of_100000_px_costs_less_than_200_mb():
    origins = grid(390, 390, 256)[::3]
    values = np.ones((len(origins), 2), np.float32)
    tracemalloc.start()
    try:
        paint_square(
            origins, values, tile=256, stride=256, slide_size=(100_000, 100_000), channels=("a", "b")
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"origins": [[0, 0, 0]]}, "origins must be"),
        ({"values": [[1.0, 2.0]]}, "values must be"),
        ({"values": [[np.inf]]}, "infinity"),
        ({"tile": (0, 256)}, "tile must be"),
        ({"stride": (256, float("nan"))}, "stride must be"),
        ({"slide_mpp": -1}, "mpp must be"),
        ({"origins": [[1024, 0]]}, "outside the slide"),
        ({"origins": [[0, -256]]}, "outside the slide"),
        ({"channels": ("a\nb",)}, "cannot name a channel"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, message):
    sound = {
        "origins": [[0, 0]],
        "values": [[1.0]],
        "channels": ("score",),
        "tile": (256, 256),
        "stride": (256, 256),
        "slide_size": (1024, 1024),
        "slide_mpp": 0.25,
    }
    assert isinstance(paint(**sound), Heatmap)
    with pytest.raises(ValueError, match=message):
        paint(**(sound | change))


def test_a_heatmap_guards_its_invariants():
    values = np.zeros((2, 3, 2), np.float32)
    heatmap = Heatmap(values, ("a", "b"), 8.0, 8.0, 2.0)
    assert heatmap.channel("b").shape == (2, 3)
    with pytest.raises(ValueError, match=r"no channel 'c'.*one of a, b"):
        heatmap.channel("c")
    for broken in (
        (values.astype(float), ("a", "b"), 8.0, 8.0, 2.0),
        (values[0], ("a", "b"), 8.0, 8.0, 2.0),
        (values, ("a",), 8.0, 8.0, 2.0),
        (values, ("a", "a"), 8.0, 8.0, 2.0),
        (values, ("a", " "), 8.0, 8.0, 2.0),
        (values, ("a", "b"), 8.0, 8.0, 0.0),
    ):
        with pytest.raises(ValueError, match=r"."):
            Heatmap(*broken)
