"""Laws of found regions: untouched ones are told from a user's word, also after a way through QuPath."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from wsi.annotations import Annotation, read_annotations
from wsi.found import as_found, is_as_found
from wsi.geojson import write_annotations
from wsi.polygons import Polygon, Ring


def ring(*points: tuple[float, float]) -> Ring:
    return np.array([*points, points[0]], np.float64)


SHELL = ring((10, 10.25), (90.01, 10.25), (90.01, 70), (10, 70))
HOLE = ring((20, 20), (20, 30), (30.5, 30), (30.5, 20))
FOUND = as_found(Annotation((Polygon(SHELL, (HOLE,)),), "Tumor", label="Tumor 1", locked=True))


@pytest.mark.parametrize("bounds", [(0, 0), (120, 40.5), (1 / 3, 7e5)])
def test_an_untouched_region_is_known_after_it_was_written_and_read(
    tmp_path: Path, bounds: tuple[float, float]
) -> None:
    write_annotations(tmp_path / "r.geojson", [FOUND], bounds_origin=bounds)
    (back,) = read_annotations(tmp_path / "r.geojson")
    assert back.identity == FOUND.identity
    assert is_as_found(back)


def test_an_untouched_region_is_known_whatever_order_its_points_have() -> None:
    def turned(ring: Ring, by: int) -> Ring:
        points = np.roll(ring[:-1], by, axis=0)[::-1]
        return np.concatenate([points, points[:1]])

    area = Polygon(turned(SHELL, 3), (turned(HOLE, 1),))
    assert is_as_found(dataclasses.replace(FOUND, polygons=(area,), identity=str(FOUND.identity).upper()))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Stroma"},
        {"name": None},
        {"label": "seen by two"},
        {"label": None},
        {"polygons": (Polygon(SHELL + 0.01, (HOLE,)),)},
        {"polygons": (Polygon(SHELL),)},
        {"polygons": (Polygon(SHELL, (HOLE,)), Polygon(SHELL + 200))},
        {"identity": None},
        {"identity": "7"},
        {"object_type": "detection"},
    ],
)
def test_what_a_user_changed_is_his_word(change: dict[str, object]) -> None:
    assert is_as_found(FOUND)
    assert not is_as_found(dataclasses.replace(FOUND, **change))  # type: ignore[arg-type]


def test_what_says_nothing_of_the_area_changes_nothing() -> None:
    assert is_as_found(dataclasses.replace(FOUND, locked=False, measurements={"Area": 3.0}))


def test_marks_that_a_person_made_are_never_taken_for_found(tmp_path: Path) -> None:
    own = dataclasses.replace(FOUND, identity=None)
    write_annotations(tmp_path / "r.geojson", [own])
    (back,) = read_annotations(tmp_path / "r.geojson")
    assert not is_as_found(back)
    assert json.loads((tmp_path / "r.geojson").read_text())["features"][0]["properties"]["isLocked"] is True
