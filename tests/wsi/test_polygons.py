"""Filling polygons, held to a point-in-polygon test of another kind, to areas and to set algebra."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi.polygons import Polygon, contains, fill, interior_point

SHAPE = (11, 14)
POINTS = st.tuples(st.floats(-6, 20), st.floats(-6, 17)).map(lambda point: tuple(np.round(point, 3)))
RINGS = st.lists(POINTS, min_size=3, max_size=9)
FINE = st.tuples(st.integers(-12, 80), st.integers(-12, 64))  # quarters of a pixel: many ties


def closed(points, *, scale=1.0):
    ring = np.array(points, np.float64) * scale
    return np.concatenate([ring, ring[:1]])


def square(left, top, right, bottom):
    return closed([(left, top), (right, top), (right, bottom), (left, bottom)])


def filled(*polygons, shape=SHAPE, scale=1.0):
    return fill(polygons, shape=shape, scale_x=scale, scale_y=scale)


def shoelace(ring):
    x0, y0, x1, y1 = *ring[:-1].T, *ring[1:].T
    return abs(float((x0 * y1 - x1 * y0).sum())) / 2


def enclosed(ring, centres):
    """Even-odd by a ray straight up from each centre; and how far each is from the nearest edge."""
    odd, nearest = np.zeros(len(centres), bool), np.full(len(centres), np.inf)
    x, y = centres.T
    for start, end in pairwise(ring):
        way, there = end - start, centres - start
        share = np.clip(there @ way / (way @ way), 0, 1) if way.any() else np.zeros(len(centres))
        nearest = np.minimum(nearest, np.hypot(*(there - share[:, None] * way).T))
        if start[0] != end[0]:
            spans = (start[0] > x) != (end[0] > x)
            odd ^= spans & (start[1] + way[1] * (x - start[0]) / way[0] < y)
    return odd, nearest


def by_brute_force(polygon, shape, scale):
    """What is inside, and which centres are too near to an edge for rounding to leave it certain."""
    rows, columns = np.indices(shape) + 0.5
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1) * scale
    (inside, nearest), *holes = (enclosed(ring, centres) for ring in (polygon.shell, *polygon.holes))
    for odd, near in holes:
        inside, nearest = inside & ~odd, np.minimum(nearest, near)
    return inside.reshape(shape), nearest.reshape(shape) < 1e-9 * scale


@settings(deadline=None)
@given(RINGS, st.lists(RINGS, max_size=2), st.sampled_from([1.0, 32.0, 31.9488, 8 / 0.2325]))
def test_random_polygons_equal_a_brute_force_test_of_every_centre(shell, holes, scale):
    """Also where rings cross themselves, holes reach out of the shell, and points repeat."""
    polygon = Polygon(closed(shell, scale=scale), tuple(closed(hole, scale=scale) for hole in holes))
    inside, unsure = by_brute_force(polygon, SHAPE, scale)
    found = filled(polygon, scale=scale)
    assert ((found == inside) | unsure).all()


@pytest.mark.parametrize("count", [5, 60])
def test_coordinates_of_a_hundred_thousand_pixels_are_as_exact(count):
    rng = np.random.default_rng(count)
    corner = 100_000 - 32 * np.array(SHAPE[::-1])
    points = rng.uniform(-64, 32 * 18, (count, 2)).round(2)
    inside, unsure = by_brute_force(Polygon(closed(points)), SHAPE, 32.0)
    far = filled(Polygon(closed(points + corner)), shape=(3125, 3125), scale=32.0)
    assert not unsure.any()
    assert (far[-SHAPE[0] :, -SHAPE[1] :] == inside).all()


@pytest.mark.parametrize("radius", [3.3, 40.7, 300.1])
def test_the_area_approaches_the_shoelace_formula(radius):
    angle = np.linspace(0, 2 * np.pi, 700, endpoint=False)
    star = radius * (1 + 0.2 * np.sin(7 * angle))
    ring = closed(np.stack([star * np.cos(angle), star * np.sin(angle)], axis=1) + 365.4)
    count = filled(Polygon(ring), shape=(740, 740)).sum()
    border = np.hypot(*np.diff(ring, axis=0).T).sum()
    # Each border pixel is right or wrong by half at most, either way: the error goes with its root.
    assert abs(count - shoelace(ring)) <= 2 * np.sqrt(border)


def test_a_centre_on_an_edge_belongs_to_what_lies_right_and_below():
    assert np.argwhere(filled(Polygon(square(1.5, 2.5, 3.5, 4.5)))).tolist() == [
        [2, 1], [2, 2], [3, 1], [3, 2],
    ]  # fmt: skip


@given(st.lists(FINE, max_size=7), st.booleans())
def test_polygons_that_share_a_border_part_the_grid(way, lengthwise):
    """A way from edge to edge of the grid, with any loops: each centre is on exactly one side of it."""
    way = [(20, -40), *way, (30, 100)]
    left, right = [(-50, 100), (-50, -40)], [(120, 100), (120, -40)]
    sides = [closed(way + corners, scale=0.25) for corners in (left, right)]
    if lengthwise:
        sides = [np.ascontiguousarray(ring[:, ::-1]) for ring in sides]
    one, other = (filled(Polygon(ring)) for ring in sides)
    assert (one ^ other).all()


@given(RINGS, RINGS)
def test_a_hole_is_the_outer_minus_the_inner(outer, inner):
    pierced = filled(Polygon(closed(outer), (closed(inner),)))
    assert (pierced == filled(Polygon(closed(outer))) & ~filled(Polygon(closed(inner)))).all()


@given(st.lists(RINGS, max_size=4), st.randoms())
def test_many_are_a_union_in_any_order(rings, random):
    polygons = [Polygon(closed(ring)) for ring in rings]
    together = filled(*polygons)
    each = [filled(polygon) for polygon in polygons]
    assert (together == np.logical_or.reduce([np.zeros(SHAPE, bool), *each])).all()
    random.shuffle(polygons)
    assert (filled(*polygons) == together).all()


@given(st.lists(FINE, min_size=3, max_size=9), st.booleans(), st.integers(0, 8))
def test_the_way_round_and_the_first_point_do_not_matter(points, backwards, turn):
    turned = points[turn:] + points[:turn]
    again = turned[::-1] if backwards else turned
    assert (filled(Polygon(closed(points, scale=0.25))) == filled(Polygon(closed(again, scale=0.25)))).all()


@given(st.lists(FINE, min_size=3, max_size=9), st.integers(0, 4), st.integers(0, 5))
def test_moving_by_whole_pixels_moves_the_result(points, down, right):
    here = filled(Polygon(closed(points, scale=0.25)))
    there = filled(Polygon(closed(points, scale=0.25)).shifted(right, down))
    rows, columns = SHAPE
    assert (there[down:, right:] == here[: rows - down, : columns - right]).all()


@given(RINGS)
def test_a_grid_is_a_window_on_a_larger_one(points):
    polygon = Polygon(closed(points))
    assert (filled(polygon, shape=(30, 40))[: SHAPE[0], : SHAPE[1]] == filled(polygon)).all()


def test_off_the_grid_nothing_is_filled_and_around_it_all_is():
    assert not filled(Polygon(square(100, 2, 120, 5)), Polygon(square(2, -9, 5, -1))).any()
    assert filled(Polygon(square(-1e9, -1e9, 1e9, 1e9))).all()
    assert not filled(Polygon(square(3, 3, 3, 3))).any()


def test_axes_have_their_own_scale():
    found = fill([Polygon(square(20, 30, 60, 90))], shape=(10, 10), scale_x=10, scale_y=30)
    assert np.argwhere(found).tolist() == [[row, column] for row in (1, 2) for column in (2, 3, 4, 5)]


def test_memory_is_bounded_though_every_edge_crosses_every_row():
    x = np.linspace(0, 3000, 20_000)
    zigzag = closed(np.stack([x, np.where(np.arange(20_000) % 2, -5, 1500)], axis=1))
    tracemalloc.start()
    try:
        found = fill([Polygon(zigzag)], shape=(1000, 3000), scale_x=1, scale_y=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.any()
    assert peak < 120e6  # 20 million crossings of 40 bytes would be 800 MB


# Points ----------------------------------------------------------------------------------------------------


def centres(shape=SHAPE, *, scale=1.0):
    rows, columns = np.indices(shape) + 0.5
    return np.stack([columns.ravel(), rows.ravel()], axis=1) * scale


@settings(deadline=None)
@given(RINGS, st.lists(RINGS, max_size=2), st.sampled_from([1.0, 32.0, 31.9488]), st.randoms())
def test_points_are_inside_where_pixels_with_these_centres_are(shell, holes, scale, random):
    polygon = Polygon(closed(shell, scale=scale), tuple(closed(hole, scale=scale) for hole in holes))
    order = list(range(SHAPE[0] * SHAPE[1]))
    random.shuffle(order)
    found = np.zeros(len(order), bool)
    found[order] = contains([polygon], centres(scale=scale)[order])
    _, unsure = by_brute_force(polygon, SHAPE, scale)
    assert ((found.reshape(SHAPE) == filled(polygon, scale=scale)) | unsure).all()


@given(st.lists(st.tuples(FINE, FINE), min_size=1, max_size=4))
def test_points_on_an_edge_are_where_centres_on_it_are(corners):
    """Rectangles on quarters of a pixel, whose edges run through many centres."""
    boxes = [np.array([first, last]) / 4 for first, last in corners]
    polygons = [Polygon(square(*box.min(axis=0), *box.max(axis=0))) for box in boxes]
    assert (contains(polygons, centres()).reshape(SHAPE) == filled(*polygons)).all()


@given(st.lists(FINE, max_size=7), st.booleans())
def test_polygons_that_share_a_border_part_all_points(way, lengthwise):
    way = [(20, -40), *way, (30, 100)]
    sides = [
        closed(way + corners, scale=0.25) for corners in ([(-50, 100), (-50, -40)], [(120, 100), (120, -40)])
    ]
    if lengthwise:
        sides = [np.ascontiguousarray(ring[:, ::-1]) for ring in sides]
    points = centres((22, 28), scale=0.5) - 0.25  # centres, corners and the middles of edges
    one, other = (contains([Polygon(ring)], points) for ring in sides)
    assert (one ^ other)[points.min(axis=1) >= 0].all()


def test_no_points_and_no_polygons_are_no_case_of_their_own():
    assert contains([Polygon(square(0, 0, 9, 9))], np.empty((0, 2))).shape == (0,)
    assert not contains([], centres()).any()


def test_points_are_found_in_bounded_memory_though_every_edge_crosses_every_level():
    x = np.linspace(0, 3000, 20_000)
    zigzag = closed(np.stack([x, np.where(np.arange(20_000) % 2, -5, 1500)], axis=1))
    points = np.random.default_rng(0).uniform(0, 1000, (1000, 2))
    tracemalloc.start()
    try:
        found = contains([Polygon(zigzag)], points)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.any()
    assert peak < 120e6


@given(RINGS, st.lists(RINGS, max_size=1))
def test_an_interior_point_is_inside_wherever_there_is_an_inside_to_speak_of(shell, holes):
    polygon = Polygon(closed(shell), tuple(map(closed, holes)))
    left, top, right, bottom = polygon.extent
    x, y = interior_point(polygon)
    assert left <= x <= right
    assert top <= y <= bottom
    on_the_lines = [
        np.stack([np.linspace(left, right, 501), np.full(501, top + share * (bottom - top))], axis=1)
        for share in (0.5, 0.25, 0.75)
    ]
    if contains([polygon], np.concatenate(on_the_lines)).any():
        assert contains([polygon], np.array([(x, y)])).all()


def test_the_interior_point_of_a_plain_shape_is_its_centre_and_of_a_ring_on_its_band():
    assert interior_point(Polygon(square(2, 3, 8, 5))) == (5, 4)
    assert interior_point(Polygon(closed([(0, 0), (10, 0), (10, 10), (0, 10)]), (square(2, 2, 7, 8),))) == (
        8.5,
        5,
    )
    horseshoe = closed([(0, 0), (9, 0), (9, 9), (6, 9), (6, 2), (2, 2), (2, 9), (0, 9)])
    assert interior_point(Polygon(horseshoe)) == (7.5, 4.5)


@pytest.mark.parametrize(
    "ring",
    [
        np.zeros((3, 2)),
        np.zeros((4, 3)),
        np.zeros((4, 2), np.float32),
        np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64),
        closed([(0, 0), (np.nan, 0), (1, 1)]),
    ],
)
def test_what_is_no_ring_is_refused(ring):
    with pytest.raises(ValueError, match="a ring is"):
        Polygon(ring)
    with pytest.raises(ValueError, match="a ring is"):
        Polygon(square(0, 0, 1, 1), (ring,))
