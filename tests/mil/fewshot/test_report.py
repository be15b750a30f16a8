"""From a META folder to a report: complete, the same twice, and on what was learnt from never unsaid."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mil.bags import Bag
from mil.checkpoint import Judges
from mil.features import FeatureRecipe
from mil.fewshot.evaluating import FewshotSettings
from mil.fewshot.meta import Meta, load_meta
from mil.fewshot.pool import Pool, pool_of
from mil.fewshot.recipe import MetaRecipe
from mil.fewshot.report import Source, default_folder, digest, evaluate_fewshot
from mil.fewshot.study import Sides, train_meta
from mil.fewshot.tables import blocks
from mil.fewshot.unseen import choose_pool, require_fitting
from mil.fewshot.verdicts import over_tasks
from tiling.grid import TileSpec
from wsi.errors import RecipeError, UsageError

DIM = 5
FEATURES = FeatureRecipe(
    encoder={"name": "timm:test_vit", "dim": DIM, "weights": "untrained seed 1"},
    spec=TileSpec(size_px=128, mpp=0.5),
    stain=None,
    tissue={"method": "Otsu"},
    min_tissue=0.25,
    quality={},
    pixels=None,
    exact=False,
)
SETTINGS = FewshotSettings(shots=(1, 2), queries=2, episodes=8)
FILES = {
    "report.md",
    "fewshot.json",
    "table.csv",
    "accuracy.png",
    "tasks.csv.gz",
    "patients.csv",
    "commit.json",
}


def make_pool(
    classes: Sequence[str], patients: Sequence[str], *, each: int = 3, rows: int = 1, seed: int = 0
) -> Pool:
    """Every patient has bags of every class."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(len(classes), DIM))
    return pool_of(
        [
            Bag(
                f"{patient}-slide-{label}-{number}",
                (centres[label] + rng.normal(size=(rows, DIM))).astype(np.float32),
                np.zeros((rows, 2), np.int32),
                label=label,
                patient=patient,
            )
            for patient in patients
            for label in range(len(classes))
            for number in range(each)
        ],
        classes=classes,
    )


OLD, NEW = ["a", "b", "c", "d", "e"], ["p", "q", "r", "s", "t"]


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prototypes, logistic regression and one meta-learner, of tasks of three classes."""
    folder = tmp_path_factory.mktemp("learners") / "meta"
    pool = make_pool(["one", "two", "three", "four", "five", "six"], OLD)
    sides = Sides(
        pool.only(classes=["one", "two", "three"]), pool.only(classes=["four", "five"]), ("five", "four")
    )
    recipe = MetaRecipe(
        ("fomaml",),
        settings={"hidden": 4},
        ways=3,
        shots=(1,),
        queries=2,
        iterations=2,
        tasks_per_step=2,
        look_every=1,
        validation_tasks=2,
    )
    train_meta(sides, FEATURES, folder=folder, recipe=recipe)
    return folder


@pytest.fixture(scope="module")
def card(meta: Path) -> Meta:
    return load_meta(meta)[0]


@pytest.fixture(scope="module")
def source() -> Source:
    return Source(make_pool(["six", "seven", "eight", "nine"], NEW), FEATURES, {"labels": "abc"})


@pytest.fixture(scope="module")
def report(meta: Path, source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports") / "report"
    found = evaluate_fewshot(source, meta=meta, folder=folder, settings=SETTINGS)
    assert found.made
    return folder


# The folder ----------------------------------------------------------------------------------------------


def rows_of(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode())))


def test_a_report_is_complete_and_says_who_wins(report: Path) -> None:
    assert {path.name for path in report.iterdir()} == FILES
    content = json.loads((report / "fewshot.json").read_bytes())
    assert content["tasks"]["ways"] == 3  # those of training
    assert [found["shots"] for found in content["shots"]] == [1, 2]
    names = ["prototypes", "logistic", "fomaml"]
    assert [one["method"] for one in content["shots"][0]["methods"]] == names
    text = (report / "report.md").read_text()
    for found in content["shots"]:
        assert found["words"][0] in text
        assert all(f"| {name} |" in text or f"| **{name}** |" in text for name in names)
    assert all(caution[1:] in text for caution in content["cautions"])
    lines = [line for block in blocks(content) for line in block.items()]
    assert ("  which wins", content["shots"][0]["words"][0]) in lines
    assert (report / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_every_figure_can_be_made_again_from_the_tasks(report: Path) -> None:
    tasks = rows_of(gzip.decompress((report / "tasks.csv.gz").read_bytes()))
    assert len(tasks) == 2 * 8 * 3
    accuracy: dict[tuple[str, str], Any] = {}
    for row in tasks:
        accuracy.setdefault((row["shots"], row["method"]), []).append(float(row["accuracy"]))
    for row in rows_of((report / "table.csv").read_bytes()):
        ours = np.array(accuracy[row["shots"], row["method"]])
        found = over_tasks(ours)
        assert [float(row[name]) for name in ("accuracy", "low", "high")] == [
            found.mean,
            found.low,
            found.high,
        ]
        if row["method"] == row["best_baseline"]:
            assert row["verdict"] == "the best baseline"
            continue
        difference = over_tasks(ours - accuracy[row["shots"], row["best_baseline"]])
        assert float(row["to_best_low"]) == difference.low
        assert float(row["to_best_high"]) == difference.high
    patients = rows_of((report / "patients.csv").read_bytes())
    right = sum(int(row["right: fomaml"]) for row in patients if row["shots"] == "2")
    assert right / (8 * 6) == pytest.approx(np.mean(accuracy["2", "fomaml"]))


def test_the_same_is_not_made_twice_and_another_is_refused(meta: Path, source: Source, report: Path) -> None:
    before = {path.name: path.read_bytes() for path in report.iterdir()}
    again = evaluate_fewshot(source, meta=meta, folder=report, settings=SETTINGS)
    assert not again.made
    assert again.content == json.loads(before["fewshot.json"])
    other = replace(SETTINGS, seed=1)
    with pytest.raises(RecipeError, match="made with another settings"):
        evaluate_fewshot(source, meta=meta, folder=report, settings=other)
    assert {path.name: path.read_bytes() for path in report.iterdir()} == before


def test_the_same_bytes_come_out_and_overwriting_replaces(
    meta: Path, source: Source, report: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "report"
    evaluate_fewshot(source, meta=meta, folder=folder, settings=replace(SETTINGS, shots=(1,)))
    done: list[tuple[int, int]] = []
    evaluate_fewshot(
        source,
        meta=meta,
        folder=folder,
        settings=SETTINGS,
        overwrite=True,
        report=lambda *now: done.append(now),
    )
    assert done == [(8, 16), (16, 16)]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in report.iterdir()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_damaged_report_is_made_again(meta: Path, source: Source, tmp_path: Path) -> None:
    folder, settings = tmp_path / "report", replace(SETTINGS, shots=(1,), episodes=2)
    evaluate_fewshot(source, meta=meta, folder=folder, settings=settings)
    (folder / "table.csv").write_bytes(b"")
    assert evaluate_fewshot(source, meta=meta, folder=folder, settings=settings).made
    assert (folder / "table.csv").read_bytes()


def test_what_is_no_report_is_never_touched(meta: Path, source: Source, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    for folder in (mine, meta):
        with pytest.raises(RecipeError, match="not a few-shot report"):
            evaluate_fewshot(source, meta=meta, folder=folder, settings=SETTINGS, overwrite=True)
    assert (mine / "thesis.txt").read_text() == "years"
    assert default_folder(meta).name == "meta-evaluation"


def test_other_bags_have_another_digest() -> None:
    pool = make_pool(["x", "y"], NEW)
    assert digest(pool) == digest(make_pool(["x", "y"], NEW))
    changed = replace(pool, features=pool.features + np.float32(1e-3))
    renamed = replace(pool, classes=("x", "z"))
    assert len({digest(pool), digest(changed), digest(renamed)}) == 3


# Which bags ----------------------------------------------------------------------------------------------


def test_only_new_classes_are_judged(card: Meta) -> None:
    pool, cautions = choose_pool(make_pool(["one", "six", "seven"], NEW), card, settings=SETTINGS)
    assert pool.classes == ("six", "seven")
    assert not cautions


def test_patients_of_training_are_left_out_where_others_suffice(card: Meta) -> None:
    pool, (caution,) = choose_pool(make_pool(["six", "seven"], [*OLD, *NEW]), card, settings=SETTINGS)
    assert pool.patient_ids == tuple(NEW)
    assert "left out: 5 of 10" in caution


def test_of_new_classes_they_stay_where_others_do_not_suffice_and_it_is_said(card: Meta) -> None:
    given = make_pool(["six", "seven"], [*OLD, "p"])
    pool, (caution,) = choose_pool(given, card, settings=SETTINGS)
    assert len(pool) == len(given)
    assert caution.startswith("5 of 6 patients were seen in training, with bags of other classes")


def test_with_fewer_than_two_new_classes_all_are_judged_on_new_patients_and_it_is_said(card: Meta) -> None:
    given = make_pool(["one", "two", "six"], [*OLD, *NEW])
    pool, cautions = choose_pool(given, card, settings=SETTINGS)
    assert pool.classes == ("one", "two", "six")
    assert pool.patient_ids == tuple(NEW)
    assert cautions[0].startswith("the meta-learners saw classes one, two in training")


def test_bags_that_were_learnt_from_are_refused(card: Meta) -> None:
    with pytest.raises(UsageError, match=r"no patient is new.*Label slides of other patients"):
        choose_pool(make_pool(["one", "two"], OLD), card, settings=SETTINGS)
    with pytest.raises(UsageError, match="do not suffice"):
        choose_pool(make_pool(["one", "six"], [*OLD, "p"]), card, ["one", "six"], settings=SETTINGS)


def test_classes_may_be_named_and_must_be_there(card: Meta) -> None:
    given = make_pool(["one", "six", "seven", "eight"], NEW)
    pool, cautions = choose_pool(given, card, ["eight", "one"], settings=SETTINGS)
    assert pool.classes == ("one", "eight")
    assert len(cautions) == 1
    with pytest.raises(UsageError, match="no bag is of class 'ten'"):
        choose_pool(given, card, ["ten", "one"], settings=SETTINGS)
    with pytest.raises(UsageError, match="the only class is 'six'"):
        choose_pool(given, card, ["six"], settings=SETTINGS)


def test_other_features_and_other_bags_are_refused(card: Meta) -> None:
    pool = make_pool(["six", "seven"], NEW)
    require_fitting(pool, FEATURES, card)
    other = replace(FEATURES, spec=TileSpec(size_px=128, mpp=1.0))
    with pytest.raises(UsageError, match=r"spec\.mpp"):
        require_fitting(pool, other, card)
    with pytest.raises(UsageError, match="learnt from tasks of slides, and these bags are tiles"):
        require_fitting(pool, FEATURES, replace(card, judges=Judges.SLIDES))
    with pytest.raises(UsageError, match="learnt from tasks of tiles, and these bags are slides"):
        require_fitting(make_pool(["six", "seven"], NEW, rows=2), FEATURES, card)
