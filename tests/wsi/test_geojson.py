"""Laws of written annotations: what is read back is what was written, and QuPath takes the file."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import numpy as np
import pytest

from wsi.annotations import Annotation, read_annotations
from wsi.errors import UsageError
from wsi.geojson import write_annotations
from wsi.polygons import Polygon, Ring


def ring(*points: tuple[float, float]) -> Ring:
    return np.array([*points, points[0]], np.float64)


def square(left: float, top: float, edge: float) -> Ring:
    return ring((left, top), (left + edge, top), (left + edge, top + edge), (left, top + edge))


PLAIN = Annotation((Polygon(square(10, 20, 30.25)),), "stroma", identity=str(uuid.UUID(int=1)))
HOLED = Annotation(
    (Polygon(square(-5.5, 0, 100), (square(1, 1, 7.01), square(40, 40, 20))), Polygon(square(300, 0, 9))),
    "Tumor: Positive",
    label="the one on the left: ä, µ",
    identity=str(uuid.UUID(int=2)),
    locked=True,
    measurements={"Area µm^2": 12.5, "count": 3},
)
UNNAMED = Annotation(
    (Polygon(square(0, 0, 1)),), None, object_type="detection", identity=str(uuid.UUID(int=3))
)


def same(one: Annotation, other: Annotation) -> bool:
    def rings(annotation: Annotation) -> list[list[Ring]]:
        return [[polygon.shell, *polygon.holes] for polygon in annotation.polygons]

    told = ("name", "object_type", "label", "identity", "locked", "measurements")
    return all(getattr(one, key) == getattr(other, key) for key in told) and all(
        np.array_equal(a, b)
        for ours, theirs in zip(rings(one), rings(other), strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def test_what_is_read_back_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    write_annotations(path, [PLAIN, HOLED, UNNAMED])
    found = read_annotations(path)
    assert all(same(one, other) for one, other in zip([PLAIN, HOLED, UNNAMED], found, strict=True))
    again = tmp_path / "b.geojson"
    write_annotations(again, found)
    assert again.read_bytes() == path.read_bytes()


def test_a_feature_has_all_that_qupath_demands(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    write_annotations(path, [HOLED, UNNAMED], colours={"Tumor: Positive": (200, 0, 0)})
    path.read_bytes().decode("ascii")
    holed, unnamed = json.loads(path.read_text())["features"]
    assert holed["properties"] == {
        "objectType": "annotation",
        "name": HOLED.label,
        "classification": {"name": "Tumor: Positive", "color": [200, 0, 0]},
        "isLocked": True,
        "measurements": {"Area µm^2": 12.5, "count": 3},
    }
    assert holed["geometry"]["type"] == "MultiPolygon"
    assert unnamed["properties"] == {"objectType": "detection"}
    assert unnamed["geometry"]["type"] == "Polygon"
    assert "null" not in path.read_text()


def test_coordinates_are_rounded_to_a_hundredth_of_a_pixel(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    write_annotations(path, [Annotation((Polygon(square(1 / 3, -0.001, 100 / 3)),), "a")])
    shell = json.loads(path.read_text())["features"][0]["geometry"]["coordinates"][0]
    assert shell[0] == [0.33, 0]
    assert shell[0] == shell[-1]
    assert "-0," not in path.read_text()


@pytest.mark.parametrize("bounds", [(0, 0), (120, 40.5), (1 / 3, 0.001)])
def test_a_file_says_from_where_it_counts_and_ids_do_not_move(
    tmp_path: Path, bounds: tuple[float, float]
) -> None:
    unnumbered = Annotation(PLAIN.polygons, "stroma")
    write_annotations(tmp_path / "a.geojson", [unnumbered, HOLED], slide_id="S", bounds_origin=bounds)
    write_annotations(tmp_path / "b.geojson", [unnumbered, HOLED])
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["slide"] == "S"
    np.testing.assert_allclose(content["bounds_origin"], bounds, atol=0.005)
    first = content["features"][0]["geometry"]["coordinates"][0][0]
    np.testing.assert_allclose(first, PLAIN.polygons[0].shell[0] - bounds, atol=0.01)
    for told in ((0.0, 0.0), (99.0, 99.0)):
        found = read_annotations(tmp_path / "a.geojson", bounds_origin=told)
        plain = read_annotations(tmp_path / "b.geojson")
        assert [one.identity for one in found] == [one.identity for one in plain]
        for one, other in zip(found, plain, strict=True):
            for area, as_it_was in zip(one.polygons, other.polygons, strict=True):
                np.testing.assert_allclose(area.shell, as_it_was.shell, atol=1e-9)


def test_measurements_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    measured = {"p": 0.5, "n": float("nan"), "i": float("inf")}
    write_annotations(tmp_path / "a.geojson", [Annotation(PLAIN.polygons, None, measurements=measured)])
    assert read_annotations(tmp_path / "a.geojson")[0].measurements == {"p": 0.5}


def test_ids_follow_from_what_an_object_holds(tmp_path: Path) -> None:
    def identity(annotation: Annotation) -> str:
        write_annotations(tmp_path / "a.geojson", [annotation])
        found = read_annotations(tmp_path / "a.geojson")[0].identity
        assert found is not None
        assert str(uuid.UUID(found)) == found
        return found

    polygons = (Polygon(square(0, 0, 5)),)
    first = identity(Annotation(polygons, "a"))
    assert first == identity(Annotation(polygons, "a"))
    others = [
        Annotation(polygons, "b"),
        Annotation(polygons, "a", identity="7"),
        Annotation(PLAIN.polygons, "a"),
    ]
    assert len({first, *map(identity, others)}) == 4


def test_a_class_has_one_colour_whatever_is_beside_it(tmp_path: Path) -> None:
    colours = []
    for beside in ([], [PLAIN]):
        write_annotations(tmp_path / "a.geojson", [*beside, HOLED])
        last = json.loads((tmp_path / "a.geojson").read_text())["features"][-1]
        colours.append(last["properties"]["classification"]["color"])
    assert colours[0] == colours[1]
    assert all(isinstance(part, int) and 0 <= part <= 255 for part in colours[0])


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ([Annotation(PLAIN.polygons, "two\nlines")], "annotation 1: QuPath cannot hold"),
        ([Annotation(PLAIN.polygons, "a:")], "annotation 1: QuPath cannot hold"),
        ([PLAIN, Annotation(PLAIN.polygons, " ")], "annotation 2: QuPath cannot hold"),
        ([Annotation((Polygon(square(0, 0, 0.004)),), "a")], "no area"),
        ([Annotation((Polygon(square(0, 0, 9), (ring((1, 1), (2, 2), (3, 3)),)),), "a")], "no area"),
        ([PLAIN, HOLED, PLAIN], str(uuid.UUID(int=1))),
    ],
)
def test_what_qupath_would_refuse_is_refused(
    tmp_path: Path, annotations: list[Annotation], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        write_annotations(tmp_path / "a.geojson", annotations)
    assert not list(tmp_path.iterdir())
