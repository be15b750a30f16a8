"""Every number of a report is the store's, and its JSON is what the schema says."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from typing import Any

import jsonschema
import numpy as np
import pytest

from heatmaps.report.content import schema_text
from heatmaps.report.html import share
from heatmaps.report.pictures import MOST_CHANNELS
from heatmaps.report.shown import MOST_CLASSES, TILES, exact
from heatmaps.viewer.layers import quality_layer
from tiling.qc import facts_of, summarise
from tiling.quality import MEANING, MEASURES
from tiling.quality_page import qc_page
from tiling.store import TileStore

SCHEMA = json.loads(schema_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_the_schema_is_one_and_refuses_what_is_not_a_report(scored: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    content = scored.content
    VALIDATOR.validate(content)
    for change in ({"slide": 7}, {"more": 1}, {"version": 2}, {"decision": {"status": "maybe"}}):
        assert not VALIDATOR.is_valid(content | change)
    for name in content:
        less = copy.copy(content)
        del less[name]
        assert not VALIDATOR.is_valid(less), name


def test_what_is_said_of_the_slide_is_what_was_committed(scored: Any) -> None:
    content, page = scored.content, scored.page
    record = scored.store.require("scores/m").record
    each = np.array(list(record["member_probabilities"].values()))
    for row, (name, probability) in enumerate(record["probabilities"].items()):
        told = content["prediction"]["classes"][row]
        assert (told["name"], told["probability"]) == (name, probability)
        assert (told["low"], told["high"]) == (each[row].min(), each[row].max())
        assert told["deviation"] == record["spread"][name]
        numbers = [probability, each[row].min(), each[row].max(), record["spread"][name]]
        assert page.row(name) == [f"{np.floor(n * 1e4 + 1e-9) / 1e4:.4f}" for n in numbers]
    assert content["prediction"]["likeliest"] == "tumour"
    assert content["prediction"]["members"] == 3
    assert "lowest to the highest probability that any of the 3 members" in page.words
    assert content["decision"]["status"] == record["decision"]["status"] == page.row("decision")[0]
    assert page.row("confidence") == ["0.9687"]
    assert content["calibration"]["gate_threshold"] == 0.8
    assert content["calibration"]["temperatures"] == [1.5, 0.75, 1.0]
    assert content["calibration"]["conformal_quantiles"] == [0.9, None]


def test_without_the_members_own_numbers_the_interval_is_their_deviation_and_says_so(
    store: TileStore, scoring: Any, reported: Any, parsed: Any
) -> None:
    record = {"probabilities": {"normal": 0.95, "tumour": 0.05}, "calibrated": True}
    scoring(store, record=record | {"spread": {"normal": 0.125, "tumour": 0.125}})
    content, html = reported(store)
    found = {one["name"]: (one["low"], one["high"]) for one in content["prediction"]["classes"]}
    assert found == {"normal": (0.825, 1.0), "tumour": (0.0, 0.05 + 0.125)}
    assert content["prediction"]["interval"] == "one standard deviation of members"
    assert "one standard deviation of its 3 members" in parsed(html).words
    VALIDATOR.validate(content)


def test_a_single_uncalibrated_head_has_no_interval_and_no_gate(
    store: TileStore, scoring: Any, reported: Any, parsed: Any
) -> None:
    record = {"probabilities": {"normal": 0.9, "tumour": 0.1}, "calibrated": False, "trained_on": True}
    scoring(store, record=record, calibration=None, with_uncertainty=False)
    content, html = reported(store)
    assert content["prediction"]["interval"] is None
    assert content["decision"] is content["calibration"] is None
    assert [channel["name"] for channel in content["heatmap"]] == ["normal", "tumour", "attention rank"]
    words = parsed(html).words
    for part in ("no gate", "learned from a slide of this name", "not calibrated", "no interval"):
        assert part in words
    VALIDATOR.validate(content)


def test_the_tiles_at_both_ends_are_those_of_the_store(scored: Any) -> None:
    store, arrays, content, page = scored.store, scored.scores, scored.content, scored.page
    assert [one["class"] for one in content["tiles"]] == ["tumour"]  # of two classes the likeliest
    scores = arrays["scores"][:, 1]
    by_score = sorted(range(len(scores)), key=lambda row: scores[row])
    assert len(scores) > 2 * TILES
    for end, expected in (("highest", by_score[::-1][:TILES]), ("lowest", by_score[:TILES])):
        shown = content["tiles"][0][end]
        assert [tile["row"] for tile in shown] == expected
        for tile in shown:
            row = tile["row"]
            assert [tile["x"], tile["y"]] == store.origins[row].tolist()
            assert [tile["width"], tile["height"]] == store.record["tile_level0"]
            assert np.float32(tile["scores"]["tumour"]) == scores[row]
            assert np.float32(tile["attention"]) == arrays["attention"][row]
            assert np.float32(tile["uncertainty"]) == arrays["uncertainty"][row]
            assert np.float32(tile["tissue"]) == store.tissue[row]
            alts = [attributes["alt"] for attributes in page.named("img")]
            cut_off = (
                "<0.0001" if scores[row] < 1e-4 else f"{np.floor(float(str(scores[row])) * 1e4) / 1e4:.4f}"
            )
            assert f"Tile at {tile['x']}, {tile['y']}, score {cut_off} of tumour" in alts


def test_channels_state_their_range_and_what_they_hold(scored: Any) -> None:
    arrays, content = scored.scores, scored.content
    named = {channel["name"]: channel for channel in content["heatmap"]}
    assert list(named) == ["tumour", "normal", "attention rank", "uncertainty"]
    values = {"tumour": arrays["scores"][:, 1], "normal": arrays["scores"][:, 0]}
    for name, numbers in (values | {"uncertainty": arrays["uncertainty"]}).items():
        told = named[name]
        assert (told["colours_from"], told["colours_to"], told["tiles"]) == (0.0, 1.0, len(numbers))
        assert np.float32(told["lowest"]) == numbers.min()
        assert np.float32(told["highest"]) == numbers.max()
        assert told["mean"] == pytest.approx(numbers.astype(float).mean(), rel=1e-12)


def test_quality_is_counted_from_the_store(unscored: Any) -> None:
    store, content, page = unscored.store, unscored.content, unscored.page
    quality = content["quality"]
    assert quality["tiles_kept"] == len(store.origins) == int(page.row("tiles kept")[0])
    assert quality["tiles_dropped"] == dict(Counter(store.dropped()[1]))
    assert store.quality is not None
    for column, name in enumerate(store.record["measures"]):
        for percent, told in quality["percentiles"][name].items():
            expected = np.percentile(store.quality[:, column].astype(float), int(percent[1:]))
            assert told == pytest.approx(expected, rel=6e-4)
        shown = page.row(name)[:-1]
        told = sorted(quality["percentiles"][name].items(), key=lambda pair: int(pair[0][1:]))
        assert [float(cell) for cell in shown] == [value for _, value in told]
    assert content["status"] == "tiles only"
    assert "No prediction" in page.words
    VALIDATOR.validate(content)


def test_what_was_run_names_each_item_by_its_digest(scored: Any) -> None:
    store, content, page = scored.store, scored.content, scored.page
    run = content["run"]
    assert {one["item"]: one["sha256"] for one in run["items"]} == {
        name: store.require(name).digest for name in ("tissue", "tiles", "scores/m")
    }
    assert run["slide_file"]["sample_sha256"] == store.tiles.recipe["slide"]["sample_sha256"]
    for text in (*(one["sha256"] for one in run["items"]), content["model"]["weights_sha256"]):
        assert text in page.words
    for package, version in store.record["versions"].items():
        assert version in page.row(package)
    assert re.search(r"64 px at 1 µm per pixel, 0 px overlap", page.words)


def test_the_time_is_that_of_the_logs(unscored: Any) -> None:
    store, content, page = unscored.store, unscored.content, unscored.page
    log = json.loads(next((store.output.root / "runs").glob("*.json")).read_bytes())
    steps = next(slide["steps"] for slide in log["slides"] if slide["slide_id"] == "one")
    assert [step["step"] for step in content["time"]["steps"]] == ["tissue", "tiles"]
    for told, logged in zip(content["time"]["steps"], steps, strict=True):
        assert told["seconds"] == logged["seconds"] > 0
        assert told["activities"] == logged["activities"]
        shown = [row for row in page.rows if row[0] == told["step"]][-1]
        assert float(shown[1]) == pytest.approx(told["seconds"], abs=0.051)
        left = max(0, told["seconds"] - sum(told["activities"].values()))
        assert told["unmeasured_seconds"] == pytest.approx(left, abs=2e-3)
    named = content["time"]["steps"][1]["activities"].keys()
    assert {"read", "decode", "quality", "compress", "write"} <= named
    whole = next(slide["seconds"] for slide in log["slides"] if slide["slide_id"] == "one")
    assert content["time"]["total_seconds"] == pytest.approx(whole, abs=3e-3)
    assert float(page.row("all of it")[0]) == pytest.approx(whole, abs=0.051)


def test_a_model_of_tiles_says_of_what_the_slide_is_made(
    store: TileStore, scoring: Any, reported: Any, parsed: Any
) -> None:
    classes = ("a", "b", "c")
    record = {
        "shares": {"a": 0.5, "b": 0.125, "c": 0.375},
        "expected_shares": {"a": 0.4, "b": 0.2, "c": 0.4},
        "uncertain_share": 0.0625,
        "calibrated": True,
    }
    scoring(store, classes=classes, record=record, judges="tiles")
    content, html = reported(store)
    page = parsed(html)
    assert content["prediction"] is None
    assert page.row("b") == ["0.1250", "0.2000"]
    assert "0.0625 of the tiles" in page.words
    assert [channel["name"] for channel in content["heatmap"]] == ["a", "c", "b", "uncertainty"]
    assert all(tile["attention"] is None for one in content["tiles"] for tile in one["highest"])
    VALIDATOR.validate(content)


def test_of_many_classes_the_likeliest_are_shown_and_that_is_said(
    store: TileStore, scoring: Any, reported: Any, parsed: Any
) -> None:
    classes = tuple(f"class {number}" for number in range(12))
    weights = np.random.default_rng(0).dirichlet(np.ones(12))
    record = {"probabilities": dict(zip(classes, weights.tolist(), strict=True)), "calibrated": True}
    scoring(store, classes=classes, record=record)
    content, html = reported(store)
    order = [classes[i] for i in np.argsort(-weights)]
    assert [one["class"] for one in content["tiles"]] == order[:MOST_CLASSES]
    assert [channel["name"] for channel in content["heatmap"][:-2]] == order[:MOST_CHANNELS]
    assert f"Of 12 classes the {MOST_CHANNELS} likeliest are drawn" in parsed(html).words
    assert len(content["prediction"]["classes"]) == 12
    VALIDATOR.validate(content)


@pytest.mark.parametrize("value", [0.1, 0.57, 1 / 3, 1e-8, 0.99999, 1.0, 0.0])
def test_numbers_are_cut_off_and_never_more_than_they_are(value: float) -> None:
    shown = str(share(value))
    assert shown == "&lt;0.0001" if 0 < value < 1e-4 else 0 <= value - float(shown) < 1e-4
    assert np.float32(exact(np.float32(value))) == np.float32(value)
    assert exact(np.float32(np.nan)) is None


def test_a_measure_has_one_meaning_wherever_it_is_shown(unscored: Any) -> None:
    store, page = unscored.store, unscored.page
    assert MEANING.keys() == {"tissue", *MEASURES}
    titles = {channel.name: channel.title for channel in quality_layer(store).channels}
    for name, meaning in MEANING.items():
        assert page.row(name)[-1] == meaning
        assert titles[name].endswith(meaning)
        assert meaning in qc_page(summarise(facts_of(store)), overview=None, contact=None)
