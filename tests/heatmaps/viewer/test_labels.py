"""Laws of what is said of slides: it becomes labels that can be trained on, and nothing for tiles."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from heatmaps.viewer.catalogue import Catalogue
from heatmaps.viewer.labels import LABELS
from heatmaps.viewer.marks import Feedback, Place, Shown
from heatmaps.viewer.service import Service
from mil.fewshot.arguments import add_adapting, marked_slides
from mil.labels import read_labels
from tiling.marks import require_classes
from tiling.store import TileStore
from wsi.errors import OutputError, UsageError

HOSTILE = "<img src=x onerror=document.title='owned'>&\"'"
SHOWN = Shown("model", "tumour", 0.93)
TRIANGLE = [[400.0, 300.0], [700.0, 300.0], [700.0, 600.0]]


def place(name: str) -> Place:
    return Place(name, (1280, 896), (7.0, 3.0), ("normal", "tumour"))


@pytest.fixture
def feedback(tmp_path: Path) -> Feedback:
    return Feedback(tmp_path / "feedback")


def labels(feedback: Feedback) -> dict[str, str]:
    path = feedback.folder / LABELS
    if not path.exists():
        return {}
    return {row.slide_id: row.label for row in read_labels(path, to_train=False).rows}


def test_words_on_slides_are_labels_that_training_reads(feedback: Feedback) -> None:
    feedback.mark_slide(place(HOSTILE), SHOWN, right=True, name=None)
    feedback.mark_slide(place("b, c"), SHOWN, right=False, name="normal")
    unknown = feedback.mark_slide(place("d"), SHOWN, right=False, name=None)
    feedback.mark_region(place("e"), TRIANGLE, "tumour")
    assert read_labels(feedback.folder / LABELS).classes == ("normal", "tumour")
    assert labels(feedback) == {HOSTILE: "tumour", "b, c": "normal"}
    assert [feedback.label(place(name)) for name in (HOSTILE, "b, c", "d")] == ["tumour", "normal", None]
    feedback.remove(place("d"), unknown)
    feedback.undo(place("b, c"))
    assert labels(feedback) == {HOSTILE: "tumour"}
    feedback.undo(place(HOSTILE))
    assert sorted(path.name for path in feedback.folder.iterdir()) == ["e.geojson"]


def test_words_that_contradict_one_another_are_no_label(feedback: Feedback) -> None:
    here, other = place("a"), Shown("other", "normal", 0.6)
    feedback.mark_slide(here, SHOWN, right=True, name=None)
    feedback.mark_slide(here, other, right=False, name="tumour")
    assert labels(feedback) == {"a": "tumour"}
    feedback.undo(here)
    feedback.mark_slide(here, other, right=True, name=None)
    assert labels(feedback) == {}
    feedback.undo(here)
    feedback.mark_slide(here, Shown("third", "tumour", 0.6), right=False, name=None)
    assert labels(feedback) == {}


def test_what_most_tiles_are_is_no_label_of_the_slide(copied: Catalogue, scoring: Any) -> None:
    record = {"shares": {"normal": 0.9, "tumour": 0.1}}
    scoring(TileStore(copied.output, "plain"), "tiles", record=record, judges="tiles")
    service = Service(copied)
    number = [entry.slide_id for entry in copied.refresh()].index("plain")
    layer = service.exhibit(number).layer_names.index("tiles")
    told = service.change_marks(number, {"do": "slide", "layer": layer, "right": True, "class": None})
    assert told["label"] is None
    told = service.change_marks(number, {"do": "slide", "layer": 0, "right": True, "class": None})
    assert told["label"] == "tumour"
    assert labels(service.feedback) == {"plain": "tumour"}


def test_a_class_that_is_no_label_is_refused(feedback: Feedback) -> None:
    for name in ("Tumour: grade 2", "tumour", "Ignore*"):
        with pytest.raises(UsageError):
            feedback.mark_slide(place("a"), SHOWN, right=False, name=name)
    assert not feedback.path("a").exists()


def test_a_table_of_another_hand_is_not_replaced(feedback: Feedback) -> None:
    feedback.folder.mkdir()
    table = feedback.folder / LABELS
    table.write_text("slide_id,label,patient\na,tumour,p1\n")
    with pytest.raises(UsageError, match=r"labels.csv.* another name"):
        feedback.mark_slide(place("a"), SHOWN, right=True, name=None)
    assert not feedback.path("a").exists()
    assert "p1" in table.read_text()
    feedback.mark_region(place("a"), TRIANGLE, "tumour")


def test_a_file_that_cannot_be_read_costs_its_own_line_alone(feedback: Feedback) -> None:
    feedback.mark_slide(place("a"), SHOWN, right=True, name=None)
    feedback.path("b").write_text("{")
    odd = {"type": "Feature", "geometry": None, "properties": {"metadata": ["about"]}}
    feedback.path("c").write_text(json.dumps({"type": "FeatureCollection", "features": [odd]}))
    feedback.mark_slide(place("d"), SHOWN, right=True, name=None)
    assert labels(feedback) == {"a": "tumour", "d": "tumour"}


# What adapt makes of the files ---------------------------------------------------------------------------


def marked(catalogue: Catalogue, *files: Path) -> Any:
    parser = argparse.ArgumentParser()
    add_adapting(parser)
    asked = parser.parse_args(["-m", "meta", "--annotations", *map(str, files)])
    asked.out = catalogue.output.root
    return [marks for _, marks in marked_slides(asked)]


def test_adapt_passes_over_a_slide_of_which_only_the_whole_was_judged(
    catalogue: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(catalogue)
    ids = [entry.slide_id for entry in catalogue.refresh()]
    for name in ("plain", HOSTILE):
        service.change_marks(ids.index(name), {"do": "slide", "layer": 0, "right": True, "class": None})
    files = [service.feedback.path(name) for name in ("plain", HOSTILE)]
    with pytest.raises(UsageError, match="no class is marked, results are only agreed") as refused:
        require_classes(marked(catalogue, *files))
    assert str(files[0]) in str(refused.value)
    assert LABELS in str(refused.value)
    row = len(TileStore(catalogue.output, "plain")) - 1
    for tile, name in ((0, "normal"), (1, "normal"), (row, "tumour"), (row - 1, "tumour")):
        cell = service.exhibit(ids.index("plain")).footprints.own_cell(tile)
        box = [cell[:2], (cell[2], cell[1]), cell[2:], (cell[0], cell[3])]
        service.change_marks(ids.index("plain"), {"do": "region", "points": box, "class": name})
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert require_classes(marked(catalogue, *files)) == ("normal", "tumour")
    (told,) = [record.message for record in caplog.records if "says nothing of tiles" in record.message]
    assert str(files[1]) in told


# A disk that is full -------------------------------------------------------------------------------------


def test_what_could_not_be_taken_back_can_be_taken_back_later(
    feedback: Feedback, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = place("a")
    feedback.mark_region(here, TRIANGLE, "tumour")

    def full(*arguments: Any, **more: Any) -> None:
        raise OutputError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("heatmaps.viewer.marks.write_file", full)
        with pytest.raises(OutputError):
            feedback.undo(here)
        with pytest.raises(OutputError):
            feedback.mark_region(here, TRIANGLE, "normal")
    assert len(feedback.read(here)) == 1
    assert feedback.undo(here)
    assert feedback.read(here) == []
    assert not feedback.can_undo(here)
