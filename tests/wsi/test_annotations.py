"""Reading GeoJSON in every layout that QuPath has written, and refusing by name what is none."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from heatmaps.qupath import TileClasses, write_tiles
from wsi import annotations
from wsi.annotations import parse_annotations, read_annotations
from wsi.errors import UsageError

SQUARE = [[10, 10], [40, 10], [40, 30], [10, 30], [10, 10]]
HOLE = [[15, 15], [15, 20.25], [20, 20], [15, 15]]
AWAY = [[100.5, 100], [120, 100], [120, 130.75], [100.5, 100]]
# What QuPath 0.6 writes of an annotation, a brushed area, an ellipse and a cell: `metadata` twice in one.
EXPORT = """{"type": "FeatureCollection", "features": [
  {"type": "Feature", "id": "0b0e4c4c-5d8b-4a1c-8f7e-3c2f8d1c9a01",
   "geometry": {"type": "Polygon", "coordinates": [%(square)s, %(hole)s]},
   "properties": {"objectType": "annotation", "name": "the large one", "isLocked": true,
     "classification": {"name": "Tumor", "color": [200, 0, 0]},
     "metadata": {"ANNOTATION_DESCRIPTION": "seen by two"},
     "metadata": {"ANNOTATION_DESCRIPTION": "seen by two"}}},
  {"type": "Feature", "id": "0b0e4c4c-5d8b-4a1c-8f7e-3c2f8d1c9a02",
   "geometry": {"type": "MultiPolygon", "plane": {"c": -1, "z": 0, "t": 0},
     "coordinates": [[%(square)s], [%(away)s]]},
   "properties": {"objectType": "annotation",
     "classification": {"names": ["Tumor", "Positive"], "color": [200, 50, 50]},
     "measurements": {"Area px^2": 600.0, "Odd": "NaN"}}},
  {"type": "Feature", "id": "0b0e4c4c-5d8b-4a1c-8f7e-3c2f8d1c9a03",
   "geometry": {"type": "Polygon", "isEllipse": true, "coordinates": [%(ellipse)s]},
   "properties": {"objectType": "annotation", "color": [0, 255, 0]}},
  {"type": "Feature", "id": "0b0e4c4c-5d8b-4a1c-8f7e-3c2f8d1c9a04",
   "geometry": {"type": "Polygon", "coordinates": [%(away)s]},
   "nucleusGeometry": {"type": "Polygon", "coordinates": [[["no", "ring"]]]},
   "properties": {"objectType": "cell", "classification": "Stroma"}},
  {"type": "Feature", "id": "0b0e4c4c-5d8b-4a1c-8f7e-3c2f8d1c9a05",
   "geometry": {"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]},
   "properties": {"objectType": "annotation"}}
]}"""
ANGLE = np.linspace(0, 2 * np.pi, 97)
ELLIPSE = np.round(np.stack([500 + 80 * np.cos(ANGLE), 400 + 30 * np.sin(ANGLE)], axis=1), 2)
ELLIPSE[-1] = ELLIPSE[0]
FILLED = EXPORT % {
    "square": SQUARE,
    "hole": HOLE,
    "away": AWAY,
    "ellipse": ELLIPSE.tolist(),
}


def polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry, **properties):
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


def parse(content, path="r.geojson", **options):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return parse_annotations(data, path=path, **options)


def shells(found):
    return [part.shell.tolist() for annotation in found for part in annotation.polygons]


def distance(ring, other):
    return shapely.LinearRing(ring).hausdorff_distance(shapely.LinearRing(other))


def refused(content):
    with pytest.raises(UsageError) as caught:
        parse(content)
    assert caught.value.path == "r.geojson"
    assert caught.value.action
    return caught.value.reason


def test_an_export_of_qupath_comes_back_whole(tmp_path, caplog):
    (tmp_path / "a.geojson").write_text(FILLED)
    found = read_annotations(tmp_path / "a.geojson")
    assert [one.name for one in found] == ["Tumor", "Tumor: Positive", None, "Stroma"]
    assert [one.object_type for one in found] == ["annotation"] * 3 + ["cell"]
    assert [one.label for one in found] == ["the large one", None, None, None]
    assert [one.identity[-2:] for one in found] == ["01", "02", "03", "04"]
    square, first, second, ellipse, cell = shells(found)
    assert [square, first, second, cell] == [SQUARE, SQUARE, AWAY, AWAY]
    assert found[2].polygons[0].extent == (420, 370, 580, 430)
    assert distance(ellipse, ELLIPSE) < 0.1  # the chords of 96 points, against the curve
    assert [one.locked for one in found] == [True, False, False, False]
    assert found[1].measurements["Area px^2"] == 600
    assert np.isnan(found[1].measurements["Odd"])
    assert [ring.tolist() for ring in found[0].polygons[0].holes] == [HOLE]
    assert found[0].polygons[0].shell.dtype == np.float64
    assert [record.name for record in caplog.records] == ["wsi.annotations"]
    assert caplog.messages[0].endswith("left out, having no area: 1 MultiPoint")


def zipped(*files):
    """An archive of (name, bytes), as QuPath makes one of a single file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return packed.getvalue()


@pytest.mark.parametrize("tail", [".geojson", ".geojson.gz", ".json", ".zip"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_however_the_file_is_wrapped_it_reads_the_same(tmp_path, tail, mark):
    data = mark + FILLED.encode()
    if tail == ".zip":
        data = zipped(("__MACOSX/._a.geojson", b"\x00"), ("folder/", b""), ("folder/a.geojson", data))
    path = tmp_path / f"a{tail}"
    path.write_bytes(gzip.compress(data, mtime=0) if tail.endswith("gz") else data)
    assert shells(read_annotations(path)) == shells(parse(FILLED.encode()))


@settings(deadline=None)
@given(
    st.tuples(*[st.floats(0, 1e5)] * 2),
    st.tuples(*[st.floats(1, 1e4)] * 2),
)
def test_an_ellipse_is_the_one_in_the_box_of_what_is_written(corner, size):
    (left, top), (width, height) = corner, size
    middle = left + width / 2, top + height / 2
    few = [[left, middle[1]], [middle[0], top], [left + width, middle[1]], [middle[0], top + height]]
    (found,) = parse(feature({**polygon(few), "isEllipse": True}))
    (area,) = found.polygons
    np.testing.assert_allclose(area.extent, (left, top, left + width, top + height), rtol=1e-12, atol=1e-6)
    whole = shapely.Polygon(area.shell)
    assert whole.is_valid
    assert whole.area == pytest.approx(np.pi * width * height / 4, rel=5e-5)
    assert parse(feature(polygon(few)))[0].polygons[0].shell.tolist()[:4] == few  # and only where it says so


@pytest.mark.parametrize(
    "top",
    [
        collection(feature(polygon(SQUARE))),
        feature(polygon(SQUARE)),
        [feature(polygon(SQUARE))],
        polygon(SQUARE),
        feature({"type": "GeometryCollection", "geometries": [polygon(SQUARE)]}),
        [feature({"type": "MultiPolygon", "coordinates": [[SQUARE]]})],
        [feature(polygon([[*point, 7.5] for point in SQUARE]))],  # with heights
        [feature(polygon(SQUARE[:-1]))],  # not closed
        {**collection(feature(polygon(SQUARE))), "crs": {"type": "name", "properties": {"name": "x"}}},
        {"features": [feature(polygon(SQUARE))], "type": "FeatureCollection"},
        [{"geometry": polygon(SQUARE), "type": "Feature", "properties": None}],
    ],
)
def test_every_layout_gives_the_same_area(top, caplog):
    (found,) = parse(top)
    assert shells([found]) == [SQUARE]
    assert (found.name, found.object_type) == (None, "annotation")
    assert not caplog.records


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ({"name": "Tumor", "color": [200, 0, 0]}, "Tumor"),
        ({"name": "Tumor", "colorRGB": -3670016}, "Tumor"),
        ({"names": ["A", "B", "C"], "color": [1, 2, 3]}, "A: B: C"),
        ({"name": "A: B"}, "A: B"),
        ({"name": "A:B"}, "A: B"),
        ({"names": ["A", "B"], "color": [1, 2, 3, 99]}, "A: B"),
        (  # before 0.4: the class that another derives from lies in it
            {"name": "Positive", "colorRGB": -1, "parentClass": {"name": "Tumor", "colorRGB": -2}},
            "Tumor: Positive",
        ),
        ({"parentClass": {"parentClass": {"name": "A"}, "name": "B"}, "name": "C"}, "A: B: C"),
        ({"colorRGB": -1}, None),
        ("Tumor", "Tumor"),
        (["A", "B"], "A: B"),
        (None, None),
        ({}, None),
        ({"name": None}, None),
        (" ", None),
        ("肿瘤 🔬", "肿瘤 🔬"),
    ],
)
def test_a_classification_in_each_form(written, name):
    (found,) = parse(feature(polygon(SQUARE), classification=written))
    assert found.name == name


@pytest.mark.parametrize(
    ("member", "kind", "identity"),
    [
        ({"id": "PathAnnotationObject", "properties": {"measurements": []}}, "annotation", None),
        ({"id": "PathCellObject", "properties": {}}, "cell", None),
        ({"id": 7, "properties": {"object_type": "tile"}}, "tile", "7"),
        ({"id": "PathTileObject", "properties": {"objectType": "detection"}}, "detection", None),
        ({"properties": {"type": "annotation"}}, "annotation", None),
        ({"properties": {"objectType": "PathTileObject"}}, "tile", None),
        ({"id": "PathAnnotationObject", "properties": None}, "annotation", None),
        ({"id": "some-id"}, "annotation", "some-id"),
    ],
)
def test_the_object_type_as_each_version_writes_it(member, kind, identity):
    (found,) = parse({"type": "Feature", "geometry": polygon(SQUARE)} | member)
    assert (found.object_type, found.identity) == (kind, identity)


@pytest.mark.parametrize("key", ["childObjects", "children"])
def test_children_follow_their_parent(key):
    child = feature(polygon(AWAY), classification="inner")
    parent = feature(polygon(SQUARE), classification="outer", **{key: [child]})
    assert [one.name for one in parse([parent, feature(polygon(AWAY))])] == ["outer", "inner", None]


@given(st.tuples(st.integers(-1000, 10**6), st.integers(-1000, 10**6)))
def test_the_origin_of_the_bounds_is_added_to_every_ring(origin):
    plain, moved = parse(FILLED.encode()), parse(FILLED.encode(), bounds_origin=origin)
    for here, there in zip(plain, moved, strict=True):
        for one, other in zip(here.polygons, there.polygons, strict=True):
            for ring, shifted in zip((one.shell, *one.holes), (other.shell, *other.holes), strict=True):
                assert (ring + np.array(origin, np.float64) == shifted).all()


@pytest.mark.parametrize("bounds", [(0, 0), (120, 40.5)])
def test_our_own_tiles_come_back_where_they_were(tmp_path, bounds):
    """Also without being told the origin: the file says it."""
    origins = np.array([[0, 0], [506, 0], [1012, 506], [2800, 2000]])
    classes = TileClasses(names=("Tumor", "Not: sure"), index=np.array([0, 1, -1, 0]))
    write_tiles(
        tmp_path / "t.geojson",
        origins=origins,
        tile=(505.64, 505.64),
        slide_size=(3000, 2100),
        measurements={"p": np.linspace(0, 1, 4)},
        slide_id="S",
        classes=classes,
        bounds_origin=bounds,
    )
    for told in (bounds, (0, 0)):
        found = read_annotations(tmp_path / "t.geojson", bounds_origin=told)
        extents = np.array([one.polygons[0].extent for one in found])
        np.testing.assert_allclose(extents[:, :2], origins, atol=0.005)
        np.testing.assert_allclose(extents[:, 2:], np.minimum(origins + 505.64, (3000, 2100)), atol=0.006)
    assert [one.name for one in found] == ["Tumor", "Not: sure", None, "Tumor"]
    assert {one.object_type for one in found} == {"tile"}


@pytest.mark.parametrize(
    "written",
    [
        {"p": 0.5, "n": "NaN", "big": "Infinity", "no": None, "text": "abc", "yes": True, "whole": 3},
        [
            {"name": "p", "value": 0.5},
            {"name": "n", "value": "NaN"},
            {"name": "big", "value": "Infinity"},
            {"name": "text", "value": "abc"},
            {"name": "whole", "value": 3},
            {"name": 4, "value": 3},
            "no pair",
        ],
    ],
)
def test_measurements_are_numbers_and_text_that_stands_for_them(written):
    (found,) = parse(feature(polygon(SQUARE), measurements=written))
    assert found.measurements.keys() == {"p", "n", "big", "whole"}
    assert (found.measurements["p"], found.measurements["whole"]) == (0.5, 3)
    assert np.isnan(found.measurements["n"])
    assert found.measurements["big"] == np.inf


@pytest.mark.parametrize("written", [None, 3, "p", [], {}])
def test_measurements_in_no_known_form_are_none(written):
    assert parse(feature(polygon(SQUARE), measurements=written))[0].measurements == {}


def test_what_has_no_area_is_left_out_and_counted(caplog):
    point = {"type": "Point", "coordinates": [1, 2]}
    line = {"type": "LineString", "coordinates": [[1, 2], [3, 4]]}
    both = {"type": "GeometryCollection", "geometries": [line, polygon(SQUARE), point]}
    flat = [[[5, 5]] * 5, [[1, 1], [3, 3], [9, 9], [2, 2], [1, 1]]]  # one point, one line
    empty = [polygon(), polygon([[1, 2], [3, 4]]), *map(polygon, flat)]
    empty += [{"type": "MultiPolygon", "coordinates": []}, None]
    found = parse([feature(both), *map(feature, empty)])
    assert shells(found) == [SQUARE]
    (message,) = caplog.messages
    for part in ("1 LineString", "1 Point,", "4 Polygon without", "1 MultiPolygon w", "1 without geometry"):
        assert part in message
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf  ", "is empty"),
        (b"Image,Name\n", "is not JSON"),
        (FILLED.encode()[:300], "is not JSON, or cut off"),
        ("Größe".encode("latin-1"), "is not UTF-8"),
        (FILLED.encode("utf-16"), "is not UTF-8"),
        (b"PK\x03\x04", "is a damaged, cut or locked zip archive"),
        (zipped(("a.geojson", FILLED.encode()))[:-30], "is a damaged, cut or locked zip archive"),
        (zipped(("a.txt", b"x")), "a zip archive with no file of GeoJSON"),
        (zipped(("a.geojson", b"[]"), ("b.json", b"[]")), "a zip archive with 2 files of GeoJSON"),
        (gzip.compress(FILLED.encode(), mtime=0)[:-20], "is a damaged or cut gzip"),
        (gzip.compress(FILLED.encode(), mtime=0)[:40], "is a damaged or cut gzip"),
        (b"\x1f\x8b" + bytes(30), "is a damaged or cut gzip"),
        (b"[" * 200_000, "is nested too deep"),
        (b'[{"a": ' + b"9" * 5000 + b"}]", "is not JSON"),
        (12, "got the type int"),
        ({"type": "Topology"}, "got keys ['type']"),
        (feature(polygon(SQUARE), classification=polygon(SQUARE)), "is no name: a geometry"),
        (collection(), "holds no feature"),
        ([], "holds no feature"),
        ([feature(polygon(SQUARE)), 3], "entry 2 is no feature but of type int"),
        ([collection(feature(polygon(SQUARE)))], "entry 1 is no feature but 'FeatureCollection'"),
        (feature({"type": "Point", "coordinates": [1, 2]}), "holds no polygon, only 1 Point"),
        (feature(None), "holds no polygon, only 1 without geometry"),
        (feature({"type": "Circle", "coordinates": [1, 2]}), "type 'Circle' is not known"),
        (feature([1, 2]), "its geometry has no type"),
        (feature(polygon(SQUARE), classification=3), "its classification is no name: 3"),
        (feature({"type": "GeometryCollection", "geometries": [4]}), "needs a list of geometries"),
    ],
)
def test_what_is_no_geojson_is_refused_by_name(content, reason):
    assert reason in refused(content)


def ring_with(value):
    return [[10, 10], [40, value], [40, 30], [10, 10]]


@pytest.mark.parametrize(
    ("ring", "reason"),
    [
        (ring_with(float("nan")), "feature 2: Polygon: a coordinate is NaN"),
        (ring_with(float("inf")), "a coordinate is NaN or infinite"),
        (ring_with(1e12), "too large for any slide"),
        (ring_with(10**400), "too large for any slide"),
        (ring_with("NaN"), "a coordinate is a str"),
        (ring_with(None), "a coordinate is a NoneType"),
        (ring_with(True), "a coordinate is a bool"),
        (ring_with([1]), "nested too deep"),
        ([SQUARE], "nested too deep"),
        ([10, 10, 40, 10], "a point needs two numbers"),
        ([[10], [40], [40], [10]], "a point needs two numbers"),
        (17, "nested too little"),
    ],
)
def test_a_ring_of_what_are_no_pixels_names_its_feature(ring, reason):
    assert reason in refused([feature(polygon(SQUARE)), feature(polygon(ring))])


def test_collections_are_read_two_deep_and_refused_deeper():
    nested = polygon(SQUARE)
    for _ in range(2):
        nested = {"type": "GeometryCollection", "geometries": [nested]}
    assert shells(parse(feature(nested))) == [SQUARE]
    nested = {"type": "GeometryCollection", "geometries": [nested]}
    assert "nested 3 levels deep" in refused(feature(nested))


def test_a_fault_in_a_nucleus_does_not_matter_and_one_in_a_child_does():
    wrong = polygon(ring_with("x"))
    assert parse({**feature(polygon(SQUARE)), "nucleusGeometry": wrong})
    assert "feature 1: " in refused(feature(polygon(SQUARE), childObjects=[feature(wrong)]))


def test_files_too_large_are_refused_unread(tmp_path, monkeypatch):
    huge = tmp_path / "huge.geojson"
    huge.touch()
    os.truncate(huge, 1 << 30)
    monkeypatch.setattr(annotations, "LARGEST_FILE", 1 << 20)
    packed = tmp_path / "packed.geojson.gz"
    packed.write_bytes(gzip.compress(bytes(1 << 25)))
    archive = tmp_path / "archive.zip"
    archive.write_bytes(zipped(("a.geojson", bytes(1 << 25))))
    for path in (huge, packed, archive):
        tracemalloc.start()
        try:
            with pytest.raises(UsageError, match="larger than 1 MiB") as caught:
                read_annotations(path)
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()
        assert caught.value.path == str(path)
        assert "no measurements" in caught.value.action


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path, kind):
    path = tmp_path / "a.geojson"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(UsageError, match="cannot be read") as caught:
        read_annotations(path)
    assert caught.value.path == str(path)


def test_memory_follows_the_features_and_not_the_file(tmp_path):
    ring = np.round(np.random.default_rng(0).uniform(1e4, 1e5, (200, 2)), 2).tolist()
    measured = {f"Nucleus: channel {i} mean": i / 7 for i in range(200)}
    data = json.dumps([feature(polygon(ring), measurements=measured) for _ in range(200)]).encode()
    tracemalloc.start()
    try:
        parse(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(data)  # with the file's lists kept it would be ten times
