from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsi.outline import rings

MASKS = arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def signed_area(ring: np.ndarray) -> float:
    x0, y0, x1, y1 = *ring[:-1].T, *ring[1:].T
    return float((x0 * y1 - x1 * y0).sum() / 2)


@given(MASKS)
def test_rings_are_closed_simple_and_turn_at_every_point(mask: np.ndarray) -> None:
    for ring in rings(mask):
        assert (ring[0] == ring[-1]).all()
        assert len(np.unique(ring[:-1], axis=0)) == len(ring) - 1  # no ring meets itself
        steps = np.diff(np.concatenate([ring, ring[1:2]]), axis=0)
        assert ((steps != 0).sum(axis=1) == 1).all()  # along one axis,
        assert ((steps[:-1] * steps[1:]).sum(axis=1) == 0).all()  # and then along the other


@given(MASKS)
def test_areas_add_up_to_the_mask(mask: np.ndarray) -> None:
    assert sum(signed_area(ring) for ring in rings(mask)) == mask.sum()


@given(MASKS)
def test_filling_the_rings_gives_the_mask(mask: np.ndarray) -> None:
    inside = np.zeros(mask.shape, int)
    row, column = np.nonzero(np.ones_like(mask))
    x, y = column + 0.5, row + 0.5
    for ring in rings(mask):
        # A ray to the right crosses the ring's upright edges: down counts one, up takes one off.
        for (start_x, start_y), (end_x, end_y) in pairwise(ring):
            if start_x == end_x:
                crossed = (x < start_x) & (y > min(start_y, end_y)) & (y < max(start_y, end_y))
                inside[row[crossed], column[crossed]] += 1 if end_y > start_y else -1
    assert (inside == mask).all()


def test_outer_rings_run_clockwise_and_holes_the_other_way() -> None:
    framed = np.ones((5, 5), np.bool_)
    framed[2, 2] = False
    assert sorted(signed_area(ring) for ring in rings(framed)) == [-1, 25]
    assert rings(np.array([[True, True]]))[0].tolist() == [[0, 0], [2, 0], [2, 1], [0, 1], [0, 0]]
    assert rings(np.zeros((5, 5), np.bool_)) == []


def test_pixels_that_touch_by_a_corner_do_not_make_a_ring_that_meets_itself() -> None:
    checkers = np.indices((6, 6)).sum(axis=0) % 2 == 0
    found = rings(checkers)
    assert sum(signed_area(ring) for ring in found) == 18
    assert all(len(np.unique(ring[:-1], axis=0)) == len(ring) - 1 for ring in found)


@settings(deadline=None)
@given(MASKS)
def test_each_part_has_one_outer_ring_and_is_a_valid_polygon_in_one_piece(mask: np.ndarray) -> None:
    count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    for part in range(1, count):
        found = rings(parts == part)
        (shell,) = [ring for ring in found if signed_area(ring) > 0]
        polygon = shapely.Polygon(shell, [ring for ring in found if signed_area(ring) < 0])
        assert polygon.is_valid
        assert polygon.area == (parts == part).sum()
    of_all = sorted(map(signed_area, rings(mask)))
    of_each = [signed_area(ring) for part in range(1, count) for ring in rings(parts == part)]
    assert of_all == sorted(of_each)
