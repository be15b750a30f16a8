"""What a person marked in the viewer stands in the report: verdicts, counts, classes, no other text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from heatmaps.report.content import schema_text
from heatmaps.report.feedback import UNREADABLE, in_words, read_feedback
from heatmaps.report.run import plan_reports
from heatmaps.viewer.marks import Feedback, Place, Shown
from tiling.output import Output
from tiling.store import TileStore

VALIDATOR = jsonschema.Draft202012Validator(json.loads(schema_text()))
PLACE = Place("one", (768, 512))
SQUARE = [(10, 10), (60, 10), (60, 60), (10, 60)]
SAID = {
    "slide": [{"verdict": "disagree", "shown": "tumour", "class": "metastasis <b>"}],
    "tiles": {"agreed": 2, "disagreed": 2, "disagreed_classes": {"stroma": 1}},
    "regions": {"necrosis": 2},
    "on_other_models": 1,
}


@pytest.fixture
def marked(output: Output) -> Output:
    """The viewer's marks on one slide: a verdict, tiles, regions, and a word on another model."""
    marks, shown = Feedback(output.root / "feedback"), Shown("m", "tumour", 0.9)
    marks.mark_slide(PLACE, shown, right=False, name="metastasis <b>")
    marks.mark_slide(PLACE, Shown("other", "tumour", 0.9), right=True, name=None)
    for left, right, name in ((0, True, None), (64, True, None), (128, False, "stroma"), (192, False, None)):
        marks.mark_tile(PLACE, (left, 0, left + 64, 64), shown, right=right, name=name)
    marks.mark_region(PLACE, SQUARE, "necrosis")
    marks.mark_region(PLACE, [(x + 100, y) for x, y in SQUARE], "necrosis")
    return output


def path_of(output: Output) -> Path:
    return output.root / "feedback" / "one.geojson"


def test_the_reports_say_what_a_person_said(marked: Output, scoring: Any, reported: Any, parsed: Any) -> None:
    for name in ("one", "two"):
        scoring(TileStore(marked, name))
    content, html = reported(TileStore(marked, "one"))
    VALIDATOR.validate(content)
    assert content["feedback"] == SAID
    page = parsed(html)
    assert "A person disagreed with tumour: metastasis <b>" in page.words
    assert page.row("tiles where a person agreed") == ["2"]
    assert page.row("tiles that are stroma") == ["1"]
    assert page.row("regions of necrosis") == ["2"]
    content, html = reported(TileStore(marked, "two"))
    assert content["feedback"] is None
    assert "Nobody has marked anything on this slide" in parsed(html).words
    plan = plan_reports(marked.root, given=None)
    page = parsed(plan.publish_cohort().read_text())
    cohort = json.loads((marked.root / "reports" / "m" / "cohort.json").read_bytes())
    VALIDATOR.validate(cohort)
    assert {row["slide"]: row["feedback"] for row in cohort["slides"]}["one"] == SAID
    assert cohort["counts"]["by_feedback"] == {"disagreed": 1}
    assert page.row("one")[4] == in_words(SAID)
    assert page.row("two")[4] == ""


def test_what_is_said_later_is_in_the_next_report_and_what_qupath_changed_counts(
    marked: Output, scoring: Any, reported: Any
) -> None:
    store = TileStore(marked, "one")
    scoring(store)
    reported(store)
    top = json.loads(path_of(marked).read_bytes())
    for feature in top["features"]:
        properties = feature["properties"]
        if properties["classification"]["name"] == "stroma":
            properties["classification"] = {"names": ["stroma", "loose"]}
        properties["name"] = properties["description"] = "Jane Doe, born 1970"
        properties["metadata"]["note"] = "Jane Doe"
    names = ["Ignore*", "x" * 200, None]
    for name in names:  # QuPath's own, one that no class can have, and none
        given = {"classification": {"name": name}} if name else {}
        extra = {"type": "Feature", "geometry": top["features"][-1]["geometry"]}
        top["features"].append(extra | {"properties": {"objectType": "annotation"} | given})
    path_of(marked).write_text(json.dumps(top))
    content, html = reported(store)  # without being asked
    assert content["feedback"]["tiles"]["disagreed_classes"] == {"stroma: loose": 1}
    assert content["feedback"]["regions"] == {"another class": 1, "necrosis": 2}
    assert "Jane" not in html
    assert "Jane" not in json.dumps(content)


@pytest.mark.parametrize("text", ["{", "7", '{"features": [7]}', '{"features": [{"type": "Feature"}]}', ""])
def test_a_file_that_cannot_be_read_is_a_warning(
    text: str, store: TileStore, reported: Any, parsed: Any
) -> None:
    path_of(store.output).parent.mkdir()
    path_of(store.output).write_text(text)
    content, html = reported(store)
    VALIDATOR.validate(content)
    assert content["feedback"] is None
    assert UNREADABLE in content["warnings"]
    assert parsed(html).words.count("cannot be read") == 2  # at the top, and where the marks would be
    assert "Nobody has marked" not in html


@pytest.mark.parametrize("text", ['{"type": "FeatureCollection", "features": []}', "[]"])
def test_no_marks_are_nothing_said(text: str, tmp_path: Path) -> None:
    path_of(Output(tmp_path)).parent.mkdir()
    path_of(Output(tmp_path)).write_text(text)
    assert read_feedback(Output(tmp_path), "one", model="m") is None
    assert read_feedback(Output(tmp_path), "two", model="m") is None
