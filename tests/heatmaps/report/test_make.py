"""A report is an item like any other: made once, the same each time, stale with what it was made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from heatmaps.report.chosen import Chosen, choose_model
from heatmaps.report.clock import SlideRun, StepSeconds
from heatmaps.report.make import PAGE, TILES_ONLY, report_slide
from heatmaps.report.spent import RunLogs, read_runs
from tiling.commit import canonical
from tiling.ensure import ensure
from tiling.output import Output, verify_items
from tiling.store import TileStore
from wsi.errors import DamagedError, RecipeError, SlideError, UsageError
from wsi.slide import Slide


def files(store: TileStore, item: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.path(item).iterdir())}


def test_equal_results_and_logs_give_equal_bytes(store: TileStore, scoring: Any, reported: Any) -> None:
    scoring(store)
    reported(store)
    first = files(store, "reports/m")
    aside = store.output.root / "aside"
    store.path("reports/m").rename(aside)
    reported(store)
    assert files(store, "reports/m") == first
    assert [r.damage or r.stale for r in verify_items(store.output, full=True) if r.item.name == "m"] == [
        (),
        (),
    ]


def test_what_is_there_is_not_made_again(store: TileStore, scoring: Any, reported: Any) -> None:
    scoring(store)
    reported(store)
    before = store.path("reports/m").joinpath(PAGE).stat().st_mtime_ns
    reported(store)
    assert store.path("reports/m").joinpath(PAGE).stat().st_mtime_ns == before


def test_a_report_of_other_scores_is_stale_and_replaced_only_when_asked(
    store: TileStore, scoring: Any, reported: Any
) -> None:
    scoring(store)
    reported(store)
    scoring(store, seed=1)
    with pytest.raises(RecipeError, match="computed from other scores/m"):
        store.require("reports/m")
    assert any(report.stale for report in verify_items(store.output) if "reports" in report.item.parts)
    with pytest.raises(RecipeError, match=r"reports/m .* was made with inputs\.scores/m"):
        reported(store)
    content, _ = reported(TileStore(store.output, store.slide_id, overwrite=True))
    assert content["model"]["weights_sha256"] == f"{1:064x}"


def test_where_there_is_more_to_say_it_is_said_without_being_asked(
    output: Output, scoring: Any, reported: Any, tmp_path: Path
) -> None:
    scoring(TileStore(output, "two"))
    store = TileStore(output, "one")
    content, _ = reported(store)
    assert content["status"] == "tiles only"
    scoring(store)  # now it is scored
    content, _ = reported(store)
    assert (content["status"], content["model"]["trained"]) == ("predicted", None)
    content, _ = reported(store, RunLogs({"one": [SlideRun("predict", 1.75, [StepSeconds("x", 1.5)])]}))
    assert content["time"]["total_seconds"] == 1.75


def test_tiles_without_stored_pixels_are_read_from_the_slide_or_it_is_said_why_not(
    tmp_path: Path, slide_files: dict[str, Path], cutting: Any, scoring: Any, reported: Any, parsed: Any
) -> None:
    with_pixels, without = Output(tmp_path / "with"), Output(tmp_path / "without")
    one = {"one": slide_files["one"]}
    cutting(with_pixels, one)
    cutting(without, one, pixels=False)
    stores = [TileStore(output, "one") for output in (with_pixels, without)]
    for store in stores:
        scoring(store)
    _, expected = reported(stores[0], RunLogs())
    content, html = reported(stores[1], RunLogs())
    assert "--slides" in content["tiles_not_pictured_because"]
    page = parsed(html)
    assert content["tiles_not_pictured_because"] in page.words
    assert not [img for img in page.named("img") if str(img["alt"]).startswith("Tile at")]
    for tile in content["tiles"][0]["highest"]:  # their numbers are there all the same
        assert page.row(str(tile["row"]))[:2] == [str(tile["x"]), str(tile["y"])]
    content, html = reported(stores[1], RunLogs(), open_slide=lambda name: Slide(slide_files[name]))
    assert content["tiles_not_pictured_because"] is None

    def pictures(text: str) -> list[Any]:
        return [img["src"] for img in parsed(text).named("img") if str(img["alt"]).startswith("Tile at")]

    assert pictures(html) == pictures(expected)
    again, _ = reported(stores[1], RunLogs())  # without the slide what is there is not made poorer
    assert again == content


def test_a_report_with_the_models_card_is_not_made_poorer_by_its_name_alone(
    store: TileStore, scoring: Any
) -> None:
    scoring(store)
    trained = {
        "members": 3,
        "folds": 3,
        "slides": 9,
        "patients": 9,
        "class_counts": None,
        "held_out": [],
        "not_calibrated_because": [],
    }
    with store.output.lock():
        with_card = report_slide(store, Chosen("m", None, trained), RunLogs())
        assert report_slide(store, Chosen("m"), RunLogs()).digest == with_card.digest
        other = report_slide(store, Chosen("m", None, trained | {"members": 2}), RunLogs())
    assert other.digest != with_card.digest


def test_another_slide_file_is_refused(
    tmp_path: Path, slide_files: dict[str, Path], cutting: Any, scoring: Any, reported: Any
) -> None:
    output = Output(tmp_path / "out")
    cutting(output, {"one": slide_files["one"]}, pixels=False)
    scoring(TileStore(output, "one"))
    with pytest.raises(SlideError, match="is not the file that the tiles"):
        reported(TileStore(output, "one"), open_slide=lambda name: Slide(slide_files["two"]))


def test_a_damaged_report_is_made_again_and_damaged_scores_are_named(
    store: TileStore, scoring: Any, reported: Any
) -> None:
    scoring(store)
    reported(store)
    chosen, logs = choose_model(store.output, None), read_runs(store.output)
    (store.path("reports/m") / PAGE).write_bytes(b"cut")
    with store.output.lock():
        assert ensure(store, "reports/m", lambda: report_slide(store, chosen, logs))
    assert store.require("reports/m")
    (store.path("scores/m") / "scores" / "c" / "0" / "0").unlink()
    with pytest.raises(DamagedError, match="scores/c/0"):
        reported(store)


def test_of_several_models_one_has_to_be_chosen(store: TileStore, scoring: Any) -> None:
    assert choose_model(store.output, None) is None
    scoring(store, "b")
    assert choose_model(store.output, None).name == "b"
    scoring(TileStore(store.output, "two"), "a")
    with pytest.raises(UsageError, match=r"2 models have scored its slides: a, b.*-m"):
        choose_model(store.output, None)
    assert choose_model(store.output, Path("somewhere/a")).name == "a"
    with pytest.raises(UsageError, match="no slide has scores by a model 'c'; there are scores by a, b"):
        choose_model(store.output, Path("c"))
    assert TILES_ONLY.startswith("__")  # which no model's name does


def card(folder: Path, **more: Any) -> Path:
    folder.mkdir()
    folds = {"auroc": {"mean": 0.75, "folds": [0.5, 1.0]}}
    folds |= {"balanced_accuracy": {"mean": 0.625, "folds": [0.5, 0.75]}}
    training = {
        "folds": 3,
        "slides": ["secret-1", "secret-2"],
        "patients": 2,
        "class_counts": {"normal": 1, "tumour": 1},
        "figures": {"out_of_fold": {"slides": 2} | folds, "external": None},
        "members": [{"not_calibrated_because": "all are of one class"}],
    }
    content = {"members": [f"{0:064x}"], "training": training, "calibration": None} | more
    (folder / "model.json").write_bytes(canonical(content))
    return folder


def test_the_card_says_how_the_model_was_trained_and_names_no_other_slide(
    store: TileStore, scoring: Any, tmp_path: Path, parsed: Any
) -> None:
    scoring(store)
    chosen = choose_model(store.output, card(tmp_path / "m"))
    assert chosen is not None
    with store.output.lock():
        report_slide(store, chosen, RunLogs())
    html = (store.path("reports/m") / PAGE).read_text()
    assert "secret-1" not in html
    page = parsed(html)
    assert page.row("training: slides") == ["2"]
    assert "AUROC 0.7500, balanced accuracy 0.6250" in page.words
    content = json.loads((store.path("reports/m") / "report.json").read_bytes())
    assert content["model"]["trained"]["held_out"][0]["auroc"] == 0.75
    assert content["model"]["trained"]["not_calibrated_because"] == ["all are of one class"]


def test_scores_by_another_model_of_the_name_are_refused(
    store: TileStore, scoring: Any, tmp_path: Path
) -> None:
    scoring(store)
    chosen = choose_model(store.output, card(tmp_path / "m", members=["other"]))
    with store.output.lock(), pytest.raises(RecipeError, match="by another model of the name 'm'"):
        report_slide(store, chosen, RunLogs())
    (tmp_path / "m" / "model.json").write_text("{")
    with pytest.raises(UsageError, match="is unreadable"):
        choose_model(store.output, tmp_path / "m")
