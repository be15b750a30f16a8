"""Laws of the grid: tiles cover the slide exactly once, and a tile is the same tissue at every mpp."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tiling.cut import cut_slide
from tiling.grid import TileGrid, TileSpec, lay_grid
from tiling.output import Output
from tiling.recipe import CutRecipe
from tiling.store import TileStore
from wsi.errors import UsageError
from wsi.geometry import Region, Resolution
from wsi.resample import area_resample
from wsi.slide import Slide
from wsi.tissue import TissueMask

scanner_mpp = st.sampled_from([0.2325, 0.25, 0.2631, 0.3611, 0.4596, 0.499, 0.5022, 1.0])
specs = st.builds(
    TileSpec,
    size_px=st.integers(32, 512),
    mpp=st.floats(0.2, 4.0),
    overlap_px=st.integers(0, 16),
)
sizes = st.tuples(st.integers(50, 20_000), st.integers(50, 20_000))


@example(size=(2096, 50), x=0.499, y=0.2325, spec=TileSpec(42, 0.3))  # 83 tiles and 0.2 pixels
@given(size=sizes, x=scanner_mpp, y=scanner_mpp, spec=specs)
def test_every_point_of_the_slide_lies_in_a_tile_and_every_tile_on_the_slide(
    size: tuple[int, int], x: float, y: float, spec: TileSpec
) -> None:
    """To half a level-0 pixel: a last tile whose rounded origin would lie beyond the slide is left out."""
    grid = lay_grid(size, Resolution(x, y, "override"), spec)
    for axis, count in ((0, grid.columns), (1, grid.rows)):
        starts = np.arange(count) * grid.stride[axis]
        assert starts[0] == 0
        assert starts[-1] < size[axis]
        assert starts[-1] + grid.tile[axis] >= size[axis] - 0.5
        if count > 1:  # the last one is needed: without it the slide would not be covered
            assert starts[-2] + grid.tile[axis] < size[axis]


@given(size=sizes, mpp=scanner_mpp, spec=specs)
def test_origins_are_the_exact_positions_to_half_a_pixel(
    size: tuple[int, int], mpp: float, spec: TileSpec
) -> None:
    grid = lay_grid(size, Resolution(mpp, mpp, "override"), spec)
    assume(len(grid) <= 100_000)
    origins = grid.origins()
    assert origins.shape == (len(grid), 2)
    index = np.arange(len(grid))
    exact = np.stack([index % grid.columns * grid.stride[0], index // grid.columns * grid.stride[1]], axis=1)
    assert np.abs(origins - exact).max() <= 0.5


@given(spec=specs, fine=scanner_mpp, coarse=scanner_mpp)
def test_a_tile_has_the_same_micrometres_on_every_scanner(spec: TileSpec, fine: float, coarse: float) -> None:
    one = lay_grid((9000, 9000), Resolution(fine, fine, "override"), spec)
    two = lay_grid((9000, 9000), Resolution(coarse, coarse, "override"), spec)
    assert one.tile[0] * fine == pytest.approx(two.tile[0] * coarse)
    assert one.stride[1] * fine == pytest.approx(two.stride[1] * coarse)


def test_without_overlap_tiles_partition_the_plane() -> None:
    grid = lay_grid((2048, 1024), Resolution(0.25, 0.25, "override"), TileSpec(size_px=256, mpp=0.5))
    covered = np.zeros((1024, 2048), int)
    for x, y in grid.origins():
        covered[y : y + 512, x : x + 512] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("wrong", [{"size_px": 4}, {"mpp": 0.0}, {"mpp": 99.0}, {"overlap_px": 256}])
def test_a_spec_that_no_slide_can_have_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="needed"):
        TileSpec(**wrong)  # type: ignore[arg-type]


def test_a_grid_that_no_memory_holds_is_refused_with_what_to_change() -> None:
    with pytest.raises(UsageError, match=r"9,993,800,961 tiles.*less overlap"):
        lay_grid((100_000, 100_000), Resolution(1.0, 1.0, "override"), TileSpec(32, 1.0, overlap_px=31))


# Exactly once ---------------------------------------------------------------------------------------------


def scanner(x: float, y: float) -> Resolution:
    return Resolution(x, y, "override")


def covering(grid: TileGrid, axis: int, points: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many of the tiles along one axis each point lies in."""
    count = grid.columns if axis == 0 else grid.rows
    starts = np.arange(count) * grid.stride[axis]
    return (
        np.searchsorted(starts, points, "right") - np.searchsorted(starts, points - grid.tile[axis], "right")
    ).astype(np.int64)


no_overlap = st.builds(TileSpec, size_px=st.integers(32, 512), mpp=st.floats(0.2, 4.0))


@given(size=sizes, x=scanner_mpp, y=scanner_mpp, spec=no_overlap, seed=st.integers(0, 99))
def test_without_overlap_every_point_lies_in_exactly_one_tile(
    size: tuple[int, int], x: float, y: float, spec: TileSpec, seed: int
) -> None:
    grid = lay_grid(size, scanner(x, y), spec)
    assert grid.tile == grid.stride
    for axis in (0, 1):
        points = np.random.default_rng(seed).uniform(0, size[axis] - 0.5, 200)
        assert (covering(grid, axis, points) == 1).all()


@given(size=sizes, x=scanner_mpp, y=scanner_mpp, spec=no_overlap)
def test_whole_pixels_of_neighbours_neither_overlap_nor_leave_a_gap_by_more_than_one(
    size: tuple[int, int], x: float, y: float, spec: TileSpec
) -> None:
    """Origins are whole level-0 pixels: where the true border is between two, it is right to half of one."""
    grid = lay_grid(size, scanner(x, y), spec)
    assume(1 < len(grid) <= 100_000)
    origins = grid.origins()
    left, top = origins[: grid.columns, 0], origins[:: grid.columns, 1]
    for starts, length in ((left, grid.tile[0]), (top, grid.tile[1])):
        gaps = np.diff(starts) - length
        assert (np.abs(gaps) < 1).all() if len(gaps) else True
        whole = np.arange(len(starts)) * length
        assert np.abs(starts - whole).max() <= 0.5  # and it never adds up


@given(size=sizes, mpp=scanner_mpp, spec=specs)
def test_neighbours_share_the_overlap_that_was_asked_for_in_micrometres(
    size: tuple[int, int], mpp: float, spec: TileSpec
) -> None:
    grid = lay_grid(size, scanner(mpp, mpp), spec)
    for axis in (0, 1):
        shared = (grid.tile[axis] - grid.stride[axis]) * mpp
        assert shared == pytest.approx(spec.overlap_px * spec.mpp, abs=1e-6)
        assert grid.tile[axis] * mpp == pytest.approx(spec.size_px * spec.mpp)


@example(size=(2827, 2827), x=0.4596, y=0.4596, spec=TileSpec(64, 0.7))  # 29 tiles and 0.17 pixels
@given(size=sizes, x=scanner_mpp, y=scanner_mpp, spec=specs)
def test_every_tile_begins_on_the_slide(size: tuple[int, int], x: float, y: float, spec: TileSpec) -> None:
    """Only the last column and row may overhang, and by less than a tile."""
    grid = lay_grid(size, scanner(x, y), spec)
    assume(len(grid) <= 100_000)
    origins = grid.origins()
    assert (origins >= 0).all()
    assert (origins < size).all()
    over = origins + np.array(grid.tile) - size
    inner = (np.arange(len(grid)) % grid.columns < grid.columns - 1) & (
        np.arange(len(grid)) // grid.columns < grid.rows - 1
    )
    assert (over[inner] <= 0.5).all()
    assert (over < grid.tile).all()


@example(size=(1000, 999), x=0.25, y=0.25, spec=TileSpec(256, 0.25 * 1000 / 768))  # three tiles to the pixel
@given(size=sizes, x=scanner_mpp, y=scanner_mpp, spec=specs)
def test_whole_tiles_are_those_that_do_not_overhang(
    size: tuple[int, int], x: float, y: float, spec: TileSpec
) -> None:
    """To half a level-0 pixel, by which origins are rounded; and not one fewer."""
    assume(all(spec.size_px * spec.mpp / mpp <= px for mpp, px in zip((x, y), size, strict=True)))
    every = lay_grid(size, scanner(x, y), spec)
    whole = lay_grid(size, scanner(x, y), replace(spec, whole_only=True))
    assume(len(every) <= 100_000)
    assert (whole.tile, whole.stride) == (every.tile, every.stride)
    exact = [
        np.arange(n) * stride for n, stride in zip((every.columns, every.rows), every.stride, strict=True)
    ]
    fits = [
        starts + tile <= length + 1e-5 * tile
        for starts, tile, length in zip(exact, every.tile, size, strict=True)
    ]
    inside = (fits[1][:, None] & fits[0]).ravel()
    assert whole.origins().tolist() == every.origins()[inside].tolist()


def test_a_slide_smaller_than_a_whole_tile_is_refused_with_what_to_change() -> None:
    spec = TileSpec(256, 0.5, whole_only=True)
    with pytest.raises(UsageError, match=r"500 x 600 px is smaller than a whole tile.*--whole-only"):
        lay_grid((500, 600), scanner(0.25, 0.25), spec)


@given(
    mpp=scanner_mpp,
    one=st.floats(0.5, 4.0),
    two=st.floats(0.5, 4.0),
    point=st.tuples(st.floats(0, 15_000), st.floats(0, 15_000)),
)
def test_a_point_of_tissue_has_the_same_physical_position_at_every_mpp(
    mpp: float, one: float, two: float, point: tuple[float, float]
) -> None:
    """Found in a tile, by the tile's stored origin and its own pixels: right to half a level-0 pixel."""
    places = []
    for tile_mpp in (one, two):
        grid = lay_grid((16_000, 16_000), scanner(mpp, mpp), TileSpec(size_px=256, mpp=tile_mpp))
        column, row = (int(p // s) for p, s in zip(point, grid.stride, strict=True))
        origin = grid.origins()[row * grid.columns + column].astype(float)
        exact = np.array([column * grid.stride[0], row * grid.stride[1]])
        inside_px = (np.array(point) - exact) * mpp / tile_mpp  # where the grid says that it lies
        places.append(origin + inside_px * tile_mpp / mpp)
    for place in places:
        assert np.abs(place - point).max() <= 0.5 + 1e-6
    assert np.abs(places[0] - places[1]).max() <= 1 + 1e-6


# Landmarks ------------------------------------------------------------------------------------------------

LAND = (1700, 1300)
SIGMA, REACH = 8.0, 36
"""Level-0 pixels: spots so smooth that sampling at any of the scales below leaves their centroid alone."""


def spots() -> NDArray[np.float64]:
    """``(n, 2)`` level-0 positions, fractions included."""
    rng = np.random.default_rng(5)
    grid = np.stack(np.meshgrid(np.arange(60, LAND[0] - 60, 110), np.arange(60, LAND[1] - 60, 110)), -1)
    return grid.reshape(-1, 2) + rng.uniform(-15, 15, (grid.size // 2, 2))


def draw_land() -> NDArray[np.uint8]:
    image = np.full((LAND[1], LAND[0]), 230.0)
    for x, y in spots().tolist():
        left, top = int(x) - REACH, int(y) - REACH
        across, down = (np.arange(2 * REACH) + 0.5 + corner - at for corner, at in ((left, x), (top, y)))
        spot = np.exp(-(down[:, None] ** 2 + across**2) / (2 * SIGMA**2))
        image[top : top + 2 * REACH, left : left + 2 * REACH] -= 200 * spot
    return np.repeat(image.round().astype(np.uint8)[..., None], 3, axis=2)


def write_land(path: Path, mpp: float, ratios: tuple[float, ...], *, compression: str | None) -> None:
    """A pyramid whose levels are exact area averages at ratios that need not be whole."""
    base = draw_land()
    scale = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    options = {"photometric": "rgb", "tile": (128, 128), "metadata": None, **scale}
    if compression:
        options |= {"compression": compression, "compressionargs": {"level": 97}, "subsampling": (1, 1)}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(base, **options)
        for ratio in ratios:
            size = round(LAND[0] / ratio), round(LAND[1] / ratio)
            level = area_resample(base, Region(0, 0, *LAND), size)
            tiff.write(level, subfiletype=1, **options)


def centroid(ink: NDArray[np.float64], at: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    """(x, y) of the ink around a place, in pixels from the tile's corner."""
    left, top = (int(value - reach) for value in at)
    around = ink[top : top + int(2 * reach) + 2, left : left + int(2 * reach) + 2]
    rows, columns = np.indices(around.shape) + 0.5
    return np.array(
        [left + (around * columns).sum() / around.sum(), top + (around * rows).sum() / around.sum()]
    )


@pytest.mark.parametrize("compression", [None, "jpeg"])
@pytest.mark.parametrize(
    ("mpp", "ratios"), [(0.2325, (4.0, 16.0)), (0.3611, (1.7, 3.3)), (0.4596, (2.44, 5.1)), (0.25, ())]
)
def test_landmarks_are_found_where_they_were_drawn_at_every_mpp(
    mpp: float, ratios: tuple[float, ...], compression: str | None, tmp_path: Path
) -> None:
    """From nothing but a tile's pixels, its stored origin and its mpp: right to half a level-0 pixel."""
    path = tmp_path / "land.tiff"
    write_land(path, mpp, ratios, compression=compression)
    everywhere = TissueMask(mask=np.ones((100, 100), np.bool_), scale_x=40.0, scale_y=40.0, mpp=40 * mpp)
    for tile_mpp in (0.5, 0.73, 1.0, 1.61):
        store = TileStore(Output(tmp_path / f"{tile_mpp}"), "land")
        recipe = CutRecipe(spec=TileSpec(128, tile_mpp, overlap_px=40), stain=None, min_tissue=0.1)
        with store.output.lock(), Slide(path) as slide:
            assert len(slide.levels) == 1 + len(ratios)
            cut_slide(slide, store, recipe, mask=everywhere)
        scale, errors = tile_mpp / mpp, {}
        for origin, tile in zip(store.origins, store.read_pixels(slice(None)), strict=True):
            ink = 230.0 - tile[..., 0]
            for number, place in enumerate(spots()):
                expected, reach = (place - origin) / scale, 32 / scale
                if reach <= expected.min() and expected.max() <= 126 - reach:  # all of it lies on this tile
                    found = origin + centroid(ink, expected, reach) * scale
                    errors[number] = max(errors.get(number, 0), np.abs(found - place).max())
        assert len(errors) > 0.6 * len(spots())
        # Read directly, a spot is where it was drawn, but for what JPEG and rounding do to a centroid.
        # OpenSlide's own positions on coarser levels are whole level-0 pixels.
        limit = 0.52 if compression is None and len(ratios) else 0.25
        assert max(errors.values()) < limit, f"{tile_mpp} µm: {max(errors.values()):.2f} px"
