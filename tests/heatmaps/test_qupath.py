"""Every demand of QuPath's reader, checked on what we write; QuPath refuses a whole file for one fault."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import uuid
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatmaps.qupath import PACKED_FROM, TileClasses, tiles_name, write_tiles
from wsi.annotations import read_annotations
from wsi.errors import OutputError

SLIDE = (3000, 2100)
ORIGINS = np.stack(np.meshgrid(np.arange(0, 2800, 506), np.arange(0, 2100, 506)), axis=-1).reshape(-1, 2)
SOUND = {
    "origins": ORIGINS,
    "tile": (505.637, 505.637),
    "slide_size": SLIDE,
    "measurements": {"Prob: tumour": np.linspace(0, 1, len(ORIGINS))},
    "slide_id": "S1",
}
HOSTILE = [
    'a "quoted" \\ name',
    "</script><script>alert(1)</script>",
    "two\nlines",
    "é µ 肿瘤 🔬",
    "\ud800",
    "{}",
]


def read_strictly(data):
    """Parse as RFC 8259 does: no NaN, no Infinity, no key twice."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    def once(pairs):
        assert len({key for key, _ in pairs}) == len(pairs), pairs
        return dict(pairs)

    return json.loads(data.decode("ascii"), parse_constant=refuse, object_pairs_hook=once)


def accept(data):
    """Return the features if QuPath 0.5 to 0.7 would read the file, each demand as found in its source."""
    collection = read_strictly(data)
    assert collection["type"] == "FeatureCollection"
    for feature in collection["features"]:
        assert set(feature) == {"type", "id", "geometry", "properties"}
        assert feature["type"] == "Feature"
        assert str(uuid.UUID(feature["id"])) == feature["id"]
        accept_geometry(feature["geometry"])
        accept_properties(feature["properties"])
    identities = [feature["id"] for feature in collection["features"]]
    assert len(set(identities)) == len(identities)
    return collection["features"]


def accept_geometry(geometry):
    assert geometry["type"] == "Polygon"
    (ring,) = geometry["coordinates"]
    assert len(ring) == 5
    assert ring[0] == ring[-1]
    points = np.array(ring)
    assert ring == [[round(x, 2), round(y, 2)] for x, y in ring]
    x, y = points[:-1].T
    area = (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2  # the shoelace formula
    assert area == pytest.approx(np.ptp(x) * np.ptp(y))  # a rectangle, and turned as RFC 7946 wants it
    assert area >= 0.01**2


def accept_properties(properties):
    # No metadata (0.5 logs a stack trace per tile), no name, nothing null.
    assert set(properties) <= {"objectType", "classification", "measurements"}
    assert properties["objectType"] == "tile"
    if "classification" in properties:
        kind = properties["classification"]
        assert set(kind) == {"name", "color"}  # without colour the whole file fails
        assert all(part.strip() == part != "" for part in kind["name"].split(": "))
        assert not set(kind["name"]) & set("\n\r")
        assert len(kind["color"]) == 3
        assert all(isinstance(value, int) and 0 <= value <= 255 for value in kind["color"])
    assert all(
        isinstance(value, float) and np.isfinite(value) for value in properties["measurements"].values()
    )


def written(path, **change):
    write_tiles(path, **(SOUND | change))
    return path.read_bytes()


def test_tiles_come_back_in_place_order_and_number(tmp_path):
    features = accept(written(tmp_path / "t.geojson"))
    assert len(features) == len(ORIGINS)
    for feature, origin, value in zip(features, ORIGINS, SOUND["measurements"]["Prob: tumour"], strict=True):
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == origin.tolist()
        np.testing.assert_allclose(ring[2], np.minimum(origin + 505.637, SLIDE), atol=0.005)
        assert np.float32(feature["properties"]["measurements"]["Prob: tumour"]) == np.float32(value)


def test_rings_are_clipped_to_the_slide(tmp_path):
    features = accept(written(tmp_path / "t.geojson"))
    points = np.concatenate([feature["geometry"]["coordinates"][0] for feature in features])
    assert points.min() == 0
    assert points.max(axis=0).tolist() == list(SLIDE)


def test_bounds_are_subtracted_and_ids_do_not_move(tmp_path):
    plain = accept(written(tmp_path / "a.geojson"))
    data = written(tmp_path / "b.geojson", bounds_origin=(120, 40.5))
    assert read_strictly(data)["bounds_origin"] == [120, 40.5]
    for here, there in zip(plain, accept(data), strict=True):
        assert here["id"] == there["id"]
        shift = np.subtract(here["geometry"]["coordinates"], there["geometry"]["coordinates"])
        np.testing.assert_allclose(shift, np.broadcast_to([120, 40.5], shift.shape), atol=0.005)


def test_what_is_not_finite_is_left_out(tmp_path):
    values = np.full(len(ORIGINS), 0.1)
    values[:4] = [np.nan, np.inf, -np.inf, 1e300]  # the last is infinite as float32, which QuPath holds
    features = accept(
        written(tmp_path / "t.geojson", measurements={"p": values, "q": np.zeros(len(ORIGINS))})
    )
    assert [feature["properties"]["measurements"] for feature in features[:5]] == [{"q": 0.0}] * 4 + [
        {"p": 0.1, "q": 0.0}
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_measurements_survive_as_float32(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("m") / "t.geojson"
    data = written(path, origins=ORIGINS[: len(values)], measurements={"p": np.array(values)})
    back = [feature["properties"]["measurements"]["p"] for feature in accept(data)]
    np.testing.assert_array_equal(np.array(back, np.float32), np.array(values, np.float32))


def test_classes_carry_their_names_and_colours(tmp_path):
    names = ("normal", "Tumour", "Stroma", "immune cells", "Necrosis", "Tumor", "gland")
    index = np.arange(len(ORIGINS)) % (len(names) + 1) - 1
    features = accept(written(tmp_path / "t.geojson", classes=TileClasses(names, index)))
    colours = {}
    for feature, place in zip(features, index, strict=True):
        kind = feature["properties"].get("classification")
        assert (kind is None) == (place == -1)
        if kind is not None:
            assert kind["name"] == names[place]
            colours[kind["name"]] = tuple(kind["color"])
    built_in = {
        "Tumor": (200, 0, 0),
        "Tumour": (200, 0, 0),
        "Stroma": (150, 200, 150),
        "immune cells": (160, 90, 160),
        "Necrosis": (50, 50, 50),
    }
    assert colours.items() >= built_in.items()
    assert len(set(colours.values())) == len(colours) - 1  # only the two spellings share one


def test_a_class_has_the_same_colour_on_a_slide_that_lacks_the_others(tmp_path):
    names = ("gland", "crypt", "vessel")
    one = written(tmp_path / "a.geojson", classes=TileClasses(names, np.full(len(ORIGINS), 2)))
    mixed = written(tmp_path / "b.geojson", classes=TileClasses(names, np.arange(len(ORIGINS)) % 3))
    assert accept(one)[2]["properties"]["classification"] == accept(mixed)[2]["properties"]["classification"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_data(tmp_path, name):
    classes = TileClasses((name,), np.zeros(len(ORIGINS), int))
    data = written(
        tmp_path / "t.geojson", slide_id=name, classes=classes, measurements={name: np.ones(len(ORIGINS))}
    )
    collection = read_strictly(data)
    assert collection["slide"] == name
    for feature in accept(data):
        assert feature["properties"]["measurements"] == {name: 1.0}
        # QuPath throws at a line break in a class name, so there it becomes a space.
        assert feature["properties"]["classification"]["name"] == name.replace("\n", " ")


@settings(max_examples=50, deadline=None)
@given(name=st.text(), slide_id=st.text(st.characters(codec=None)))
def test_any_text_is_written_well_or_refused(tmp_path_factory, name, slide_id):
    path = tmp_path_factory.mktemp("n") / "t.geojson"
    try:
        classes = TileClasses((name,), np.zeros(1, int))
    except ValueError:
        assert not name.replace(":", "").strip()
    else:
        data = written(path, origins=ORIGINS[:1], measurements={}, slide_id=slide_id, classes=classes)
        assert len(accept(data)) == 1
        assert read_strictly(data)["slide"] == slide_id


def test_ids_belong_to_slide_and_tile_alone(tmp_path):
    whole = accept(written(tmp_path / "a.geojson"))
    part = accept(
        written(
            tmp_path / "b.geojson",
            origins=ORIGINS[::-3],
            measurements={"other": np.zeros(len(ORIGINS[::-3]))},
        )
    )
    assert [feature["id"] for feature in part] == [feature["id"] for feature in whole][::-3]
    another = accept(written(tmp_path / "c.geojson", slide_id="S2"))
    wider = accept(written(tmp_path / "d.geojson", tile=(400, 400)))
    every = [feature["id"] for features in (whole, another, wider) for feature in features]
    assert len(set(every)) == len(every)


@settings(max_examples=50, deadline=None)
@given(slide_id=st.text(st.characters(codec=None)), corner=st.tuples(*[st.floats(0, 1500)] * 2))
def test_ids_are_uuids_of_version_5_as_the_library_makes_them(tmp_path_factory, slide_id, corner):
    path = tmp_path_factory.mktemp("i") / "t.geojson"
    (feature,) = accept(written(path, origins=[corner], measurements={}, slide_id=slide_id))
    box = [float(v) for v in (*corner, *np.minimum(np.array(corner) + 505.637, SLIDE))]
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, "microtome:tile")
    assert feature["id"] == str(uuid.uuid5(namespace, json.dumps([slide_id, *box])))


def test_a_packed_file_holds_the_same_and_no_clock(tmp_path, monkeypatch):
    plain = written(tmp_path / "t.geojson")
    packed = written(tmp_path / "t.geojson.gz")
    assert gzip.decompress(packed) == plain
    assert packed[:2] == b"\x1f\x8b"
    assert packed[3] == 0  # no name, no comment
    assert packed[4:8] == bytes(4)  # no time
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert written(tmp_path / "another.geojson.gz") == packed


def test_a_file_of_many_members_is_one_file(tmp_path):
    cells = np.stack(np.meshgrid(np.arange(100), np.arange(90)), axis=-1).reshape(-1, 2) * 20
    change = {"origins": cells, "tile": (20, 20), "slide_size": (2000, 1800), "measurements": {}}
    packed, plain = (written(tmp_path / name, **change) for name in ("t.geojson.gz", "t.geojson"))
    assert gzip.decompress(packed) == plain
    first = zlib.decompressobj(wbits=31)
    assert plain.startswith(first.decompress(packed))
    assert first.unused_data[:2] == packed[:2], "more than one member"
    assert len(read_annotations(tmp_path / "t.geojson.gz")) == len(cells) == len(accept(plain))


def test_files_of_many_tiles_are_packed():
    assert tiles_name(PACKED_FROM - 1) == "tiles.geojson"
    assert tiles_name(PACKED_FROM) == "tiles.geojson.gz"
    assert 5_000 <= PACKED_FROM <= 20_000


def test_parts_of_a_file_are_alike(tmp_path):
    """Tiles are written some thousands at a time; what is missing in one part is not missing in another."""
    cells = np.stack(np.meshgrid(np.arange(100), np.arange(42)), axis=-1).reshape(-1, 2) * 20
    scores = np.linspace(0, 1, len(cells))
    scores[::3] = np.nan
    index = np.arange(len(cells)) % 3 - 1
    change = {"origins": cells, "tile": (20, 20), "slide_size": (2000, 840)}
    change |= {"measurements": {"p": scores, "q": -scores}, "classes": TileClasses(("a", "b"), index)}
    features = accept(written(tmp_path / "t.geojson", **change))
    assert [feature["geometry"]["coordinates"][0][0] for feature in features] == cells.tolist()
    for feature, score, place in zip(features, scores, index, strict=True):
        told = feature["properties"]
        wanted = {} if np.isnan(score) else {"p": np.float32(score), "q": np.float32(-score)}
        assert {name: np.float32(value) for name, value in told["measurements"].items()} == wanted
        assert told.get("classification", {"name": None})["name"] == [None, "a", "b"][place + 1]


def test_the_same_tiles_give_the_same_bytes(tmp_path):
    assert written(tmp_path / "a.geojson") == written(tmp_path / "b.geojson")


def test_no_tiles_are_an_empty_collection(tmp_path):
    data = written(tmp_path / "t.geojson", origins=np.zeros((0, 2)), measurements={"p": np.zeros(0)})
    assert accept(data) == []


def test_memory_does_not_grow_with_the_file(tmp_path):
    # See test_memory.py for a million.
    cells = np.stack(np.meshgrid(np.arange(200), np.arange(200)), axis=-1).reshape(-1, 2) * 256
    scores = np.linspace(0, 1, len(cells), dtype=np.float32)
    peaks = []
    for count in (16_000, 40_000):
        change = {"origins": cells[:count], "measurements": {"p": scores[:count]}}
        place = {"tile": (256, 256), "slide_size": (51_200, 51_200)}
        tracemalloc.start()
        try:
            write_tiles(tmp_path / "t.geojson.gz", **(SOUND | place | change))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    # Arrays of numbers grow, at some 90 bytes a tile; a feature's text alone is over 300.
    assert peaks[1] - peaks[0] < 24_000 * 150


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"origins": ORIGINS[:, :1]}, "origins must be"),
        ({"origins": np.concatenate([ORIGINS[1:], ORIGINS[3:4]])}, "given twice"),
        ({"origins": ORIGINS + 3000}, "outside the slide"),
        ({"origins": ORIGINS - 600}, "outside the slide"),
        ({"measurements": {"p": np.zeros(3)}}, "must be"),
        ({"measurements": {" ": np.zeros(len(ORIGINS))}}, "not blank"),
        ({"classes": TileClasses(("a",), np.zeros(3, int))}, "3 classes"),
    ],
)
def test_what_does_not_fit_together_is_refused_and_nothing_is_written(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        written(tmp_path / "t.geojson", **change)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "index", "message"),
    [
        (("a", " a "), [0], "must differ"),
        (("a", " : "), [0], "cannot name a class"),
        (("a",), [1], "outside -1 to 0"),
        (("a",), [-2], "outside -1 to 0"),
        (("a",), [0.5], "integers"),
    ],
)
def test_classes_guard_their_invariants(names, index, message):
    with pytest.raises(ValueError, match=message):
        TileClasses(names, np.array(index))


def test_a_folder_that_is_absent_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        written(tmp_path / "absent" / "t.geojson")
