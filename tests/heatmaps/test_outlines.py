"""Laws of regions: they are where the score is above the threshold, and QuPath takes every one of them."""

from __future__ import annotations

import dataclasses
import uuid
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from heatmaps.outlines import Region, RegionRules, as_annotations, outline, valid_on_grid
from wsi.annotations import read_annotations
from wsi.errors import UsageError
from wsi.found import is_as_found
from wsi.geojson import write_annotations
from wsi.polygons import Polygon, fill

EXACT = RegionRules(simplify_um=0, least_area_um2=0, least_hole_um2=0)
SCORES = arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    elements=st.sampled_from([0.1, 0.5, 0.6, 0.9, float("nan")]),
)


@dataclasses.dataclass(frozen=True)
class Plane:
    """One channel, as a heatmap holds it."""

    scores: np.ndarray
    scale: float = 10.0
    scale_y: float = 10.0
    mpp: float = 2.5

    def channel(self, name: str) -> np.ndarray:
        return self.scores.astype(np.float32)


def regions(scores: np.ndarray, rules: RegionRules, *, over: float = 0.0, **frame: float) -> list[Region]:
    """Regions of a heatmap that reaches over the slide's edge by a share of a pixel."""
    painted = Plane(scores, **frame)
    rows, columns = scores.shape
    size = int((columns - over) * painted.scale), int((rows - over) * painted.scale_y)
    return outline(painted, "a", slide_size=size, rules=rules)


def shapes(found: list[Region]) -> list[shapely.Polygon]:
    return [shapely.Polygon(one.shell, one.holes) for region in found for one in region.polygons]


def blobs(seed: int, shape: tuple[int, int] = (120, 160)) -> np.ndarray:
    noise = np.random.default_rng(seed).random(shape).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return (smooth - smooth.min()) / np.ptp(smooth)


@settings(deadline=None)
@given(SCORES)
def test_unsimplified_regions_are_exactly_where_the_score_is_above(scores: np.ndarray) -> None:
    found = regions(scores, EXACT)
    every = [polygon for region in found for polygon in region.polygons]
    inside = fill(every, shape=scores.shape, scale_x=10, scale_y=10)
    assert (inside == (scores > 0.5)).all()  # of NaN that is false
    assert sum(region.area_um2 for region in found) == pytest.approx(inside.sum() * 2.5**2)


@settings(deadline=None)
@given(SCORES)
def test_each_region_is_in_one_piece_and_its_score_is_the_mean_over_it(scores: np.ndarray) -> None:
    count, parts = cv2.connectedComponents((scores > 0.5).astype(np.uint8), connectivity=4)
    found = regions(scores, EXACT)
    assert len(found) == count - 1
    assert [region.area_um2 for region in found] == sorted((r.area_um2 for r in found), reverse=True)
    for region in found:
        inside = fill(region.polygons, shape=scores.shape, scale_x=10, scale_y=10)
        assert len(np.unique(parts[inside])) == 1
        assert region.score == pytest.approx(scores[inside].mean(dtype=np.float64))


@settings(deadline=None, max_examples=60)
@given(
    SCORES,
    st.floats(0, 3),
    st.floats(0.02, 100),
    st.floats(0.9, 1.1),
    st.floats(0, 0.9),
    st.tuples(st.floats(-1e4, 1e4), st.floats(0, 1e4)),
)
def test_every_polygon_is_valid_on_the_grid_as_it_is_written(
    tmp_path_factory: pytest.TempPathFactory,
    scores: np.ndarray,
    simplify: float,
    scale: float,
    aspect: float,
    over: float,
    bounds: tuple[float, float],
) -> None:
    frame = {"scale": scale, "scale_y": scale * aspect, "mpp": scale / 4}
    rules = dataclasses.replace(EXACT, simplify_um=simplify * scale / 4)
    found = regions(scores, rules, over=over, **frame)
    if not found:
        return
    path = tmp_path_factory.mktemp("r") / "r.geojson"
    write_annotations(path, as_annotations(found, "a", rules=rules), bounds_origin=bounds)
    # As it stands in the file, and so as QuPath snaps it: no origin is added.
    origin_of_file = b'"bounds_origin":'
    path.write_bytes(path.read_bytes().replace(origin_of_file, b'"was":'))
    for one in read_annotations(path):
        for polygon in one.polygons:
            rings = [np.round(ring, 2) for ring in (polygon.shell, *polygon.holes)]
            for ring, written in zip(rings, (polygon.shell, *polygon.holes), strict=True):
                np.testing.assert_array_equal(ring, written)
            assert shapely.is_valid(shapely.Polygon(rings[0], rings[1:]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tolerance", [0.0, 5.0, 20.0])
def test_an_outline_is_moved_by_no_more_than_is_allowed(seed: int, tolerance: float) -> None:
    scores = blobs(seed)
    rules = dataclasses.replace(EXACT, least_area_um2=2500, least_hole_um2=2500)
    exact = shapes(regions(scores, rules))
    simple = shapes(regions(scores, dataclasses.replace(rules, simplify_um=tolerance)))
    assert len(exact) == len(simple)
    pixels = tolerance / 2.5 * 10  # in level-0 pixels
    one, other = shapely.MultiPolygon(exact), shapely.MultiPolygon(simple)
    assert one.boundary.hausdorff_distance(other.boundary) <= pixels + 0.02
    points = [shapely.get_num_coordinates(polygons).sum() for polygons in (exact, simple)]
    assert points[1] <= points[0] * (1.0 if not tolerance else 0.7)


def test_small_regions_are_left_out_and_small_holes_filled_by_square_microns() -> None:
    scores = np.zeros((30, 30), np.float32)
    scores[2:20, 2:20] = 0.75
    scores[5:8, 5:8] = 0.25  # 9 px of 2.5 µm squared: 56.25 µm²
    scores[12:16, 12:16] = 0.25  # 100 µm²
    scores[25:28, 25:28] = 0.75
    rules = RegionRules(simplify_um=0, least_area_um2=57, least_hole_um2=57)
    (found,) = regions(scores, rules)
    assert [len(one.holes) for one in found.polygons] == [1]
    assert found.area_um2 == pytest.approx((18 * 18 - 16) * 6.25)
    assert found.score == pytest.approx(0.75)  # what was filled does not count
    assert len(regions(scores, dataclasses.replace(rules, least_area_um2=56))) == 2
    (holed, _) = regions(scores, RegionRules(simplify_um=0, least_area_um2=0, least_hole_um2=56))
    assert [len(one.holes) for one in holed.polygons] == [2]


def test_nothing_reaches_over_the_slide() -> None:
    found = regions(np.ones((7, 9)), RegionRules(least_area_um2=0), over=0.63)
    (whole,) = shapes(found)
    assert whole.bounds == (0, 0, int(8.37 * 10), int(6.37 * 10))


def test_at_a_half_classes_whose_scores_add_up_to_one_do_not_overlap() -> None:
    first = blobs(7)
    both = [shapely.union_all(shapes(regions(scores, EXACT))) for scores in (first, 1 - first)]
    assert both[0].intersection(both[1]).area == 0


def test_no_tile_or_no_score_above_gives_no_region() -> None:
    assert regions(np.full((5, 5), np.nan), EXACT) == []
    assert regions(np.full((5, 5), 0.5), EXACT) == []


BOW = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
OVERLAPPING = shapely.MultiPolygon([shapely.box(0, 0, 6, 6), shapely.box(4, 4, 10, 10)])
HOLE_OUTSIDE = shapely.Polygon(shapely.box(0, 0, 5, 5).exterior, [shapely.box(7, 7, 8, 8).exterior])
THIN = shapely.box(0, 0, 10, 0.004)
SPIKE = shapely.Polygon([(0, 0), (10, 0), (10, 5), (30, 5), (10, 5.001), (10, 10), (0, 10)])


@pytest.mark.parametrize(
    ("shape", "area"), [(BOW, 50), (OVERLAPPING, 64), (HOLE_OUTSIDE, 25), (THIN, 0), (SPIKE, 100)]
)
def test_what_qupath_would_refuse_is_mended(shape: shapely.Geometry, area: float) -> None:
    """Each of these made its reader refuse the whole file, but for the last two, which it drops or trims."""
    parts = valid_on_grid(shape)
    assert all(part.is_valid and part.geom_type == "Polygon" for part in parts)
    assert sum(part.area for part in parts) == pytest.approx(area, abs=1.5)
    for one, other in ((one, other) for one in parts for other in parts if one is not other):
        assert one.intersection(other).area == 0


def test_annotations_are_locked_numbered_and_measured_and_known_as_found(tmp_path: Path) -> None:
    rules = RegionRules(simplify_um=3, least_area_um2=100, least_hole_um2=100)
    found = regions(blobs(1), rules)
    made = as_annotations(found, " gland:  left", rules=rules)
    assert [one.label for one in made] == [f"gland: left {i}" for i in range(1, len(found) + 1)]
    assert {one.name for one in made} == {"gland: left"}
    assert all(one.locked and one.object_type == "annotation" for one in made)
    identities = [one.identity or "" for one in made]
    assert len(set(identities)) == len(made) > 3
    assert [str(uuid.UUID(one)) for one in identities] == identities
    for one, region in zip(made, found, strict=True):
        assert one.measurements["Region area µm^2"] == pytest.approx(region.area_um2, abs=0.051)
        assert one.measurements["Mean tile score: gland: left"] == pytest.approx(region.score, abs=5e-5)
        assert one.measurements["Above threshold"] == 0.5
    for bounds in ((0, 0), (120, 40.5)):
        write_annotations(tmp_path / "r.geojson", made, slide_id="S", bounds_origin=bounds)
        back = read_annotations(tmp_path / "r.geojson")
        for one, other in zip(made, back, strict=True):
            assert is_as_found(other)
            told = ("name", "label", "identity", "locked", "measurements", "object_type")
            assert all(getattr(one, key) == getattr(other, key) for key in told)
            for area, again in zip(one.polygons, other.polygons, strict=True):
                assert same(area, again)


def same(one: Polygon, other: Polygon) -> bool:
    pairs = zip((one.shell, *one.holes), (other.shell, *other.holes), strict=True)
    return all(np.allclose(ring, again, rtol=0, atol=1e-6) for ring, again in pairs)


def test_rings_turn_as_rfc_7946_asks() -> None:
    for polygon in shapes(regions(blobs(4), EXACT)):
        assert polygon.exterior.is_ccw
        assert not any(hole.is_ccw for hole in polygon.interiors)


def test_regions_do_not_depend_on_the_way_of_tracing() -> None:
    rules = RegionRules(simplify_um=4, least_area_um2=50, least_hole_um2=50)
    one, other = regions(blobs(5), rules), regions(blobs(5).copy(order="F"), rules)
    assert [region.score for region in one] == [region.score for region in other]
    for region, again in zip(one, other, strict=True):
        assert all(same(*pair) for pair in zip(region.polygons, again.polygons, strict=True))


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 1.0},
        {"threshold": -0.1},
        {"threshold": float("nan")},
        {"simplify_um": -1.0},
        {"simplify_um": float("inf")},
        {"least_area_um2": float("nan")},
        {"least_hole_um2": -2.0},
    ],
)
def test_rules_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        RegionRules(**wrong)
