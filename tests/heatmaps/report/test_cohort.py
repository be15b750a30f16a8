"""The cohort's report adds up the slides' reports, and names what failed and whom a person has to look at."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import jsonschema
import numpy as np
import pytest

import cli
from heatmaps.report.cohort_page import MOST_COLUMNS
from heatmaps.report.content import schema_text
from heatmaps.report.html import share
from tiling.output import Output
from tiling.store import TileStore

VALIDATOR = jsonschema.Draft202012Validator(json.loads(schema_text()))
UNSURE = {
    "probabilities": {"normal": 0.5625, "tumour": 0.4375},
    "calibrated": True,
    "spread": {"normal": 0.1, "tumour": 0.1},
    "conformal_set": ["normal", "tumour"],
    "decision": {
        "status": "review required",
        "confidence": 0.5625,
        "reasons": ["confidence 0.5625 is below 0.8", "the conformal set holds 2 classes, not one"],
    },
}


@pytest.fixture
def report(output: Output, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command as a user does; gives the exit code, the cohort's JSON and its page."""

    def run(*more: str, model: str = "m") -> tuple[int, dict[str, Any], str]:
        words = ["report", str(output.root), *more]
        monkeypatch.setattr(sys, "argv", ["microtome", *words])
        code = cli.main([*words, "--json"])
        told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        folder = output.root / "reports" / model
        if told and "cohort" in told[-1]:
            assert told[-1]["cohort"] == str(folder / "cohort.html")
        return code, json.loads((folder / "cohort.json").read_bytes()), (folder / "cohort.html").read_text()

    return run


def test_the_table_is_that_of_the_slides(output: Output, scoring: Any, report: Any, parsed: Any) -> None:
    scoring(TileStore(output, "one"))
    scoring(TileStore(output, "two"), record=UNSURE)
    code, content, html = report()
    VALIDATOR.validate(content)
    assert code == 0
    names = [row["slide"] for row in content["slides"]]
    assert names == ["two", "one", "three"]  # who needs a look comes first
    page = parsed(html)
    for row in content["slides"]:
        store = TileStore(output, row["slide"])
        scores = store.find("scores/m")
        assert row["tiles"] == len(store)
        expected = dict(scores.record["probabilities"]) if scores else {}
        assert row["scores"] == expected
        cells = page.row(row["slide"])
        assert cells[0] == row["status"] == ("predicted" if scores else "tiles only")
        if scores:
            decision = scores.record["decision"]
            assert cells[2:4] == [str(share(decision["confidence"])), decision["status"]]
            assert cells[4:6] == [str(share(value)) for value in expected.values()]
        assert cells[6] == str(len(store))
    assert content["counts"]["by_decision"] == {"confirmed": 1, "review required": 1}
    assert content["counts"]["by_status"] == {"predicted": 2, "tiles only": 1}
    assert "; ".join(UNSURE["decision"]["reasons"]) in page.words


def test_scores_of_more_classes_than_a_sheet_is_wide_are_left_to_the_json(
    output: Output, scoring: Any, report: Any, parsed: Any
) -> None:
    for count in (MOST_COLUMNS, MOST_COLUMNS + 1):
        classes = tuple(f"class {number}" for number in range(count))
        record = {"probabilities": dict.fromkeys(classes, 1 / count), "calibrated": False}
        scoring(TileStore(output, "one"), classes=classes, record=record)
        _, content, html = report("--overwrite")
        row = next(row for row in content["slides"] if row["slide"] == "one")
        assert row["scores"].keys() == set(classes)
        page, narrow = parsed(html), count > MOST_COLUMNS
        assert len(page.rows[0]) == 8 + (0 if narrow else count)
        assert (f"Scores of the {count} classes are in the JSON" in page.words) == narrow


def test_distributions_count_every_scored_slide(
    output: Output, scoring: Any, report: Any, parsed: Any
) -> None:
    scoring(TileStore(output, "one"))
    scoring(TileStore(output, "two"), record=UNSURE)
    _, content, html = report()
    values = [0.96875, 0.4375]
    tumour = next(one for one in content["distributions"] if one["class"] == "tumour")
    expected = Counter(int(value * 20) for value in values)
    assert {bin_: n for bin_, n in enumerate(tumour["counts"]) if n} == expected
    assert tumour["slides"] == 2
    assert len(parsed(html).named("rect")) == sum(
        n > 0 for one in content["distributions"] for n in one["counts"]
    )


def test_time_and_software_are_added_up(output: Output, report: Any) -> None:
    _, content, _ = report(model="__tiles__")
    slides = [
        json.loads((TileStore(output, name).path("reports/__tiles__") / "report.json").read_bytes())
        for name in ("one", "two", "three")
    ]
    for step in content["time"]["steps"]:
        each = [one for slide in slides for one in slide["time"]["steps"] if one["step"] == step["step"]]
        assert step["slides"] == len(each) == 3
        assert step["seconds"] == pytest.approx(sum(one["seconds"] for one in each), abs=1e-6)
        for name, seconds in step["activities"].items():
            assert seconds == pytest.approx(sum(one["activities"].get(name, 0) for one in each), abs=1e-6)
    versions = TileStore(output, "one").record["versions"]
    assert {(one["package"], one["version"]) for one in content["software"]} == set(versions.items())
    assert {one["slides"] for one in content["software"]} == {3}


def test_a_damaged_slide_is_named_and_the_others_go_on(
    output: Output, scoring: Any, report: Any, parsed: Any
) -> None:
    for name in ("one", "two"):
        scoring(TileStore(output, name))
    (TileStore(output, "two").path("scores/m") / "scores" / "c" / "0" / "0").unlink()
    code, content, html = report()
    VALIDATOR.validate(content)
    assert code == 1
    rows = {row["slide"]: row for row in content["slides"]}
    assert content["slides"][0]["slide"] == "two"
    assert (rows["two"]["status"], rows["two"]["has_report"]) == ("failed", False)
    assert "damaged" in rows["two"]["message"]
    assert rows["two"]["message"] in parsed(html).words
    assert rows["one"]["status"] == "predicted"


def test_a_slide_whose_last_step_failed_says_so_beside_its_report(
    output: Output, scoring: Any, report: Any
) -> None:
    scoring(TileStore(output, "one"))
    slide = {"slide_id": "three", "path": "/x/three", "status": "failed", "exit_code": 1, "seconds": 1.0}
    slide |= {"reason": "/x/three: the model gives NaN", "steps": []}
    log = {"command": ["predict", "out", "-m", "m"], "slides": [slide]}
    (output.root / "runs" / "99990101T000000.000000Z-1.json").write_text(json.dumps(log))
    (output.root / "runs" / "99990102T000000.000000Z-1.json").write_text("{")
    _, content, _ = report()
    VALIDATOR.validate(content)
    row = next(row for row in content["slides"] if row["slide"] == "three")
    assert (row["status"], row["has_report"], row["message"]) == ("failed", True, "the model gives NaN")
    assert any("1 log of runs cannot be read" in words for words in content["warnings"])


def test_two_models_are_reported_side_by_side(output: Output, scoring: Any, report: Any, capsys: Any) -> None:
    scoring(TileStore(output, "one"), "a")
    scoring(TileStore(output, "one"), "b", seed=1)
    assert cli.main(["report", str(output.root)]) == 2
    assert "2 models have scored its slides: a, b" in capsys.readouterr().err
    for name in ("a", "b"):
        code, content, _ = report("-m", name, model=name)
        assert (code, content["model"]["name"]) == (0, name)
    assert json.loads((output.root / "reports" / "schema.json").read_bytes()) == json.loads(schema_text())


def test_the_same_reports_and_logs_give_the_same_cohort(output: Output, report: Any) -> None:
    _, first, page = report(model="__tiles__")
    _, second, again = report(model="__tiles__")  # by then there is one log more, of a report
    assert (first, page) == (second, again)
    time = first["time"]
    parts = [step["seconds"] for step in time["steps"]] + [time["other_seconds"]]
    assert np.isclose(time["total_seconds"], sum(parts))
