"""Laws of the grid: tiles cover the slide exactly once, and a tile is the same tissue at every mpp."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tiling.grid import TileSpec, lay_grid
from wsi.errors import UsageError
from wsi.geometry import Resolution

scanner_mpp = st.sampled_from([0.2325, 0.25, 0.2631, 0.3611, 0.4596, 0.499, 0.5022, 1.0])
specs = st.builds(
    TileSpec,
    size_px=st.integers(32, 512),
    mpp=st.floats(0.2, 4.0),
    overlap_px=st.integers(0, 16),
)
sizes = st.tuples(st.integers(50, 20_000), st.integers(50, 20_000))


@given(size=sizes, x=scanner_mpp, y=scanner_mpp, spec=specs)
def test_every_point_of_the_slide_lies_in_a_tile_and_every_tile_on_the_slide(
    size: tuple[int, int], x: float, y: float, spec: TileSpec
) -> None:
    grid = lay_grid(size, Resolution(x, y, "override"), spec)
    for axis, count in ((0, grid.columns), (1, grid.rows)):
        starts = np.arange(count) * grid.stride[axis]
        assert starts[0] == 0
        assert starts[-1] < size[axis]
        assert starts[-1] + grid.tile[axis] >= size[axis] - 1e-3
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
