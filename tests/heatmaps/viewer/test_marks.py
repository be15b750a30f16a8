"""Laws of marks: QuPath and `adapt` read them, none is lost, each can be taken back."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heatmaps.viewer.catalogue import Catalogue, open_slides
from heatmaps.viewer.labels import LABELS
from heatmaps.viewer.marks import Feedback, Place, Shown, class_fault_free
from heatmaps.viewer.rings import checked_ring, crosses_itself
from heatmaps.viewer.service import Service
from mil.labels import read_labels
from tiling.marks import read_marks
from tiling.output import Output
from tiling.store import TileStore
from wsi.annotations import read_annotations
from wsi.errors import UsageError

ROOT = Path(__file__).resolve().parents[3]
PLACE = Place("plain", (1280, 896), (0.0, 0.0), ("normal", "tumour"))
SHOWN = Shown("model", "tumour", 0.93)
TRIANGLE = [[400.0, 300.0], [700.0, 300.0], [700.0, 600.0]]
HOSTILE = "<img src=x onerror=document.title='owned'>&\"'"


@pytest.fixture
def feedback(tmp_path: Path) -> Feedback:
    return Feedback(tmp_path / "feedback")


@pytest.fixture
def service(catalogue: Catalogue) -> Service:
    return Service(catalogue)


def features(feedback: Feedback, slide: str = "plain") -> list[dict[str, Any]]:
    return json.loads(feedback.path(slide).read_bytes())["features"]


def number(service: Service, name: str) -> int:
    return [entry.slide_id for entry in service.catalogue.refresh()].index(name)


@pytest.mark.parametrize("name", ["plain", HOSTILE])
def test_what_was_marked_is_what_adapt_reads(service: Service, results: Path, name: str) -> None:
    slide, store = number(service, name), TileStore(Output(results), name)
    scores = store.scores("model")[0]
    right, wrong, unknown = 3, len(store) - 2, len(store) // 2
    shown = [["normal", "tumour"][int(scores[row].argmax())] for row in (right, wrong, unknown)]
    service.change_marks(slide, {"do": "tile", "layer": 0, "row": right, "right": True, "class": None})
    other = "normal" if shown[1] == "tumour" else "tumour"
    service.change_marks(slide, {"do": "tile", "layer": 0, "row": wrong, "right": False, "class": other})
    service.change_marks(slide, {"do": "tile", "layer": 0, "row": unknown, "right": False, "class": None})
    told = service.change_marks(slide, {"do": "slide", "layer": 0, "right": False, "class": "normal"})
    assert service.feedback is not None
    marks = read_marks(service.feedback.path(name), store)
    named = dict(zip(marks.rows.tolist(), (marks.classes[i] for i in marks.labels), strict=True))
    assert named == {right: shown[0], wrong: other}  # these tiles alone, also where others overlap them
    assert sum(told["adapt"]["tiles"].values()) == 2
    assert [mark["about"] for mark in told["marks"]] == ["tile", "tile", "tile", "slide"]


def test_a_region_is_read_back_as_it_was_drawn(feedback: Feedback) -> None:
    place = Place("plain", (1280, 896), (100.0, 50.5), PLACE.classes)
    feedback.mark_region(place, TRIANGLE, "tumour")
    feedback.mark_region(place, [[10.123, 10], [60, 10], [60, 70]], "Invasive front: left")
    first, second = read_annotations(feedback.path("plain"))  # the file itself says where it counts from
    assert first.polygons[0].shell.tolist() == [*TRIANGLE, TRIANGLE[0]]
    assert second.polygons[0].shell[0].tolist() == pytest.approx([10.12, 10])
    assert [first.name, second.name] == ["tumour", "Invasive front: left"]
    stored = features(feedback)[0]["geometry"]["coordinates"][0]
    assert stored[0] == [300, 249.5]  # and QuPath counts from the bounds
    assert feedback.read(place)[0]["rings"][0][0] == TRIANGLE[0]


def test_every_feature_is_as_qupath_demands(feedback: Feedback) -> None:
    feedback.mark_region(PLACE, TRIANGLE, "tumour")
    feedback.mark_tile(PLACE, (0, 0, 128, 128), SHOWN, right=True, name=None)
    feedback.mark_slide(PLACE, SHOWN, right=False, name="normal")
    for feature in features(feedback):
        uuid.UUID(feature["id"])
        properties = feature["properties"]
        assert properties["objectType"] == "annotation"
        assert set(properties["classification"]) == {"name", "color"}
        assert all(isinstance(text, str) for text in properties["metadata"].values())
        assert properties.get("name") != ""
        ring = feature["geometry"]["coordinates"][0]
        assert ring[0] == ring[-1]
        assert None not in properties.values()
    text = feedback.path("plain").read_text()
    assert "NaN" not in text
    assert "tmp" not in text


def test_the_same_mark_twice_is_one_and_the_files_have_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for folder in ("one", "two"):
        feedback = Feedback(tmp_path / folder)
        for _ in range(2):
            feedback.mark_tile(PLACE, (0, 0, 128, 128), SHOWN, right=True, name=None)
        feedback.mark_region(PLACE, TRIANGLE, "tumour")
        files.append(feedback.path("plain").read_bytes())
    assert files[0] == files[1]
    assert len(json.loads(files[0])["features"]) == 2


def test_no_word_takes_the_place_of_another_unasked(feedback: Feedback) -> None:
    cell = (0.0, 0.0, 128.0, 128.0)
    first = feedback.mark_tile(PLACE, cell, SHOWN, right=True, name=None)
    with pytest.raises(UsageError, match="marked already"):
        feedback.mark_tile(PLACE, cell, SHOWN, right=False, name="normal")
    feedback.mark_slide(PLACE, SHOWN, right=True, name=None)
    with pytest.raises(UsageError, match="marked already"):
        feedback.mark_slide(PLACE, SHOWN, right=False, name=None)
    assert len(features(feedback)) == 2
    feedback.remove(PLACE, first)
    feedback.mark_tile(PLACE, cell, SHOWN, right=False, name="normal")
    assert len(features(feedback)) == 2


def test_everything_can_be_taken_back_step_by_step(feedback: Feedback) -> None:
    place = Place("plain", (1280, 896), (7.0, 3.0), PLACE.classes)
    states = [[]]
    identity = feedback.mark_region(place, TRIANGLE, "tumour")
    states.append(feedback.read(place))
    feedback.mark_region(place, [[0, 0], [50, 0], [50, 50]], "normal")
    states.append(feedback.read(place))
    feedback.remove(place, identity)
    for state in reversed(states):
        assert feedback.undo(place)
        found = {mark["id"]: mark for mark in feedback.read(place)}
        assert found == {mark["id"]: mark for mark in state}
    assert not feedback.undo(place)


def test_no_file_is_left_without_marks_which_adapt_would_refuse(feedback: Feedback) -> None:
    feedback.remove(PLACE, feedback.mark_region(PLACE, TRIANGLE, "tumour"))
    assert not feedback.path("plain").exists()
    assert feedback.read(PLACE) == []
    assert feedback.undo(PLACE)
    assert len(features(feedback)) == 1


def test_a_file_that_another_program_wrote_stays_even_without_marks(feedback: Feedback) -> None:
    identity = feedback.mark_region(PLACE, TRIANGLE, "tumour")
    path = feedback.path("plain")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"theirs": 1}))
    feedback.remove(PLACE, identity)
    assert json.loads(path.read_text())["theirs"] == 1


def test_what_others_wrote_into_the_file_stays(feedback: Feedback) -> None:
    """QuPath exports over our file: no origin any more, its own members, an object that we do not know."""
    theirs = {
        "type": "Feature",
        "id": str(uuid.uuid4()),
        "geometry": {"type": "Polygon", "coordinates": [TRIANGLE + TRIANGLE[:1]]},
        "properties": {
            "objectType": "annotation",
            "isLocked": True,
            "classification": {"name": "Stroma", "color": [1, 2, 3]},
        },
    }
    point = {
        "type": "Feature",
        "id": "x",
        "geometry": {"type": "Point", "coordinates": [1, 2]},
        "properties": {},
    }
    feedback.folder.mkdir()
    feedback.path("plain").write_text(
        json.dumps({"type": "FeatureCollection", "more": 1, "features": [theirs, point]})
    )
    place = Place("plain", (1280, 896), (5.0, 5.0), PLACE.classes)
    feedback.mark_region(place, [[10, 10], [60, 10], [60, 60]], "tumour")
    top = json.loads(feedback.path("plain").read_bytes())
    assert top["features"][:2] == [theirs, point]
    assert top["more"] == 1
    assert top["features"][2]["geometry"]["coordinates"][0][0] == [5, 5]
    assert [mark["class"] for mark in feedback.read(place)] == ["Stroma", "tumour"]
    feedback.remove(place, theirs["id"])
    feedback.undo(place)
    assert [feature["id"] for feature in features(feedback)].count(theirs["id"]) == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"type": "FeatureCollection", "features": 3}', '{"a": 1}', "\x00"]
)
def test_a_file_that_cannot_be_read_is_left_alone(feedback: Feedback, text: str) -> None:
    feedback.folder.mkdir()
    feedback.path("plain").write_text(text)
    with pytest.raises(UsageError, match="marks"):
        feedback.mark_region(PLACE, TRIANGLE, "tumour")
    assert feedback.path("plain").read_text() == text


MARK_MANY = """
import sys
from pathlib import Path
from heatmaps.viewer.labels import LABELS
from heatmaps.viewer.marks import Feedback, Place, Shown
first = int(sys.argv[2])
for i in range(first, first + 8):
    points = [[i, 0], [i + 0.5, 0], [i, 5]]
    feedback, shown = Feedback(Path(sys.argv[1])), Shown("model", "tumour", 0.9)
    feedback.mark_region(Place("plain", (1280, 896)), points, "tumour")
    feedback.mark_slide(Place(f"slide {i}", (1280, 896)), shown, right=True, name=None)
"""


def test_two_viewers_lose_no_mark_and_no_label_of_one_another(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MARK_MANY, str(tmp_path / "f")]
    processes = [subprocess.Popen([*command, str(100 * i)], cwd=ROOT) for i in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert len(features(Feedback(tmp_path / "f"))) == 16
    slides = {f"slide {100 * i + k}" for i in range(2) for k in range(8)}
    assert {row.slide_id for row in read_labels(tmp_path / "f" / LABELS, to_train=False).rows} == slides
    files = {f"{name}.geojson" for name in (*slides, "plain")}
    assert {path.name for path in (tmp_path / "f").iterdir()} == files | {LABELS}


@pytest.mark.parametrize(
    "points",
    [
        [],
        [[0, 0], [5, 5]],
        [[0, 0], [5, 5], [0, 0], [5, 5]],
        [[0, 0], [9, 9], [9, 0], [0, 9]],
        [[0, 0], [9, 0], [9, 9], [5, 0], [0, 9]],
        [[0, 0], [9, 0], [20, 0]],
        [[float("nan"), 0], [1, 1], [2, 0]],
        [[1e400, 0], [1, 1], [2, 0]],
        [["a", 0], [1, 1], [2, 0]],
        [[1, 2, 3]] * 4,
        [[-9, -9], [-5, -9], [-9, -5]],
        [[0, 0], [0.001, 0], [0, 0.001]],
        [[i, i % 7] for i in range(10_001)],
        [[0, 0], [9, 0], [9, 9], [4, 9], [4, 12], [4, 9], [0, 9]],
    ],
)
def test_an_outline_that_qupath_would_refuse_is_refused_here(feedback: Feedback, points: Any) -> None:
    with pytest.raises(UsageError):
        feedback.mark_region(PLACE, points, "tumour")
    assert not feedback.path("plain").exists()


@pytest.mark.parametrize("name", ["", "  ", "Ignore*", "a\x07b", "A: : B", "uncertainty", "x" * 101])
def test_a_class_that_would_be_passed_over_or_refused_is_refused_here(feedback: Feedback, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be called"):
        feedback.mark_region(PLACE, TRIANGLE, name)


def test_a_class_is_data_whatever_it_looks_like(feedback: Feedback) -> None:
    name = "<script>alert(1)</script> ∂ 'x' \"y\""
    feedback.mark_region(PLACE, TRIANGLE, name)
    assert read_annotations(feedback.path("plain"))[0].name == name == feedback.read(PLACE)[0]["class"]
    assert class_fault_free("A:B ") == "A: B"


def test_rings_are_told_apart_as_by_the_naive_rule() -> None:
    rng = np.random.default_rng(3)

    def crosses(ring: np.ndarray) -> bool:
        count = len(ring) - 1
        for i in range(count):
            for j in range(i + 2, count - (i == 0)):
                a, b, c, d = ring[i], ring[i + 1], ring[j], ring[j + 1]
                matrix = np.array([b - a, c - d]).T
                if abs(np.linalg.det(matrix)) > 1e-12:
                    s, t = np.linalg.solve(matrix, c - a)
                    if 0 <= s <= 1 and 0 <= t <= 1:
                        return True
        return False

    seen = set()
    for _ in range(300):
        points = rng.random((rng.integers(3, 9), 2)) * 100
        ring = np.concatenate([points, points[:1]])
        assert crosses_itself(ring) == crosses(ring)
        seen.add(crosses_itself(ring))
    assert seen == {True, False}


def test_a_ring_is_kept_on_the_slide() -> None:
    ring = checked_ring([[-50, -50], [2000, -50], [2000, 300], [10, 300]], size=(1280, 896))
    assert ring.min() == 0
    assert ring.max(axis=0).tolist() == [1280, 300]


def test_marks_that_adapt_would_refuse_say_so(service: Service) -> None:
    slide = number(service, "plain")
    box = [[300, 300], [900, 300], [900, 600], [300, 600]]
    service.change_marks(slide, {"do": "region", "points": box, "class": "tumour"})
    told = service.change_marks(slide, {"do": "region", "points": box, "class": "normal"})
    assert "two classes" in told["adapt"]["fault"]
    assert len(told["marks"]) == 2


def test_a_slide_without_results_is_marked_where_a_folder_was_given(results: Path, tmp_path: Path) -> None:
    files = {"plain": results.parent / "plain.svs"}
    opened = {"mpp": None, "trust_objective": False, "annotations": None}
    service = Service(open_slides(files, marks=tmp_path / "here", **opened))
    told = service.change_marks(0, {"do": "region", "points": TRIANGLE, "class": "tumour"})
    assert told["marks"][0]["class"] == "tumour"
    assert (tmp_path / "here" / "feedback" / "plain.geojson").is_file()
    closed = Service(open_slides(files, marks=None, **opened))
    assert closed.facts(0)["canMark"] is False
    with pytest.raises(UsageError, match="no folder"):
        closed.change_marks(0, {"do": "undo"})
    service.close()
    closed.close()
