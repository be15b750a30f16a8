"""Laws of a study of learners: sides that are apart, and a folder that a killed training ends with too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mil.bags import Bag
from mil.features import FeatureRecipe
from mil.fewshot.meta import load_meta
from mil.fewshot.pool import Pool, pool_of
from mil.fewshot.recipe import MetaRecipe
from mil.fewshot.study import divide, headline, train_meta
from mil.fewshot.training import MetaTraining
from tiling.commit import alone
from tiling.grid import TileSpec
from wsi.errors import OutputBusyError, RecipeError, UsageError

DIM = 4
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
RECIPE = MetaRecipe(
    kinds=("maml", "fomaml", "reptile"),
    settings={"hidden": 5},
    ways=3,
    shots=(1,),
    queries=1,
    iterations=3,
    tasks_per_step=2,
    look_every=2,
    validation_tasks=2,
)
NAMES = ("a", "b", "c", "d", "e", "f", "g")


def make_pool(classes: tuple[str, ...], *, patients: int = 4, each: int = 2) -> Pool:
    """Every patient has tiles of every class."""
    rng = np.random.default_rng(len(classes))
    return pool_of(
        [
            Bag(
                f"p{patient}-{label}-{number}",
                (rng.normal(size=(1, DIM)) + label).astype(np.float32),
                np.zeros((1, 2), np.int32),
                label,
                f"p{patient}",
            )
            for patient in range(patients)
            for label in range(len(classes))
            for number in range(each)
        ],
        classes=classes,
    )


def make_slides(patients: int, classes: tuple[str, ...] = ("x", "y")) -> Pool:
    """Slides of four tiles; a patient has one class only, and two slides of it."""
    rng = np.random.default_rng(patients)
    return pool_of(
        [
            Bag(
                f"{name}{patient}-{number}",
                rng.normal(size=(4, DIM)).astype(np.float32),
                np.zeros((4, 2), np.int32),
                label,
                f"{name}{patient}",
            )
            for label, name in enumerate(classes)
            for patient in range(patients)
            for number in range(2)
        ],
        classes=classes,
    )


# Sides ---------------------------------------------------------------------------------------------------


def test_with_six_classes_a_third_is_kept_apart_and_novel_ones_from_both() -> None:
    sides = divide(make_pool(NAMES), novel=["b"], seed=3)
    assert sides.novel == ("b",)
    assert len(sides.validation_classes) == 2
    assert {*sides.base.classes, *sides.validation.classes, "b"} == set(NAMES)
    assert set(sides.base.classes).isdisjoint(sides.validation.classes)
    assert sides.validation.classes == sides.validation_classes
    assert len(sides.base) + len(sides.validation) == 6 * 8
    again = divide(make_pool(NAMES), novel=["b"], seed=3)
    assert again.validation_classes == sides.validation_classes
    assert len({divide(make_pool(NAMES), seed=seed).validation_classes for seed in range(9)}) > 3


def test_classes_for_validation_may_be_named() -> None:
    sides = divide(make_pool(NAMES), validation=["c", "a", "c"])
    assert (sides.validation_classes, sides.base.classes) == (("a", "c"), ("b", "d", "e", "f", "g"))


@pytest.mark.parametrize("seed", range(5))
def test_below_six_classes_patients_are_apart_and_each_class_is_on_both_sides(seed: int) -> None:
    for pool in (make_pool(("a", "b", "c"), patients=7), make_slides(4), make_slides(6, ("x", "y", "z"))):
        sides = divide(pool, seed=seed)
        assert sides.validation_classes == ()
        assert set(sides.base.patient_ids).isdisjoint(sides.validation.patient_ids)
        assert {*sides.base.patient_ids, *sides.validation.patient_ids} == set(pool.patient_ids)
        for side in (sides.base, sides.validation):
            for label in range(len(pool.classes)):
                assert len(set(side.patients[side.labels == label])) > 1
        ways = len(pool.classes)
        MetaTraining(sides.base, sides.validation, replace(RECIPE, ways=ways))  # tasks can be drawn


@pytest.mark.parametrize(
    ("pool", "choice", "what"),
    [
        (make_pool(NAMES), {"novel": ["z"]}, "there is no class 'z'"),
        (
            make_pool(NAMES),
            {"novel": ["a"], "validation": ["a", "b"]},
            "'a' is to be novel and for validation",
        ),
        (make_pool(NAMES), {"validation": ["a"]}, "6 classes are left to learn from and 1 for validation"),
        (make_pool(NAMES), {"novel": list(NAMES[1:])}, "1 classes are left"),
        (make_pool(("a", "b", "c"), patients=3), {}, "3 classes of 3 patients are too few"),
        (make_slides(3), {}, "2 classes of 6 patients are too few"),
    ],
)
def test_sides_that_cannot_be_are_refused(pool: Pool, choice: dict[str, list[str]], what: str) -> None:
    with pytest.raises(UsageError, match=what) as refused:
        divide(pool, **choice)  # type: ignore[arg-type]
    assert refused.value.action


# The folder ----------------------------------------------------------------------------------------------

SIDES = divide(make_pool(NAMES), novel=["g"])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True, scope="module")
def few_steps() -> Iterator[None]:
    """How many steps are tried at last is no matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mil.fewshot.training._STEPS_TRIED", (1, 2))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "meta"
    train_meta(SIDES, FEATURES, folder=folder, recipe=RECIPE)
    return folder


class KilledError(Exception):
    """As far as files go, what a power cut is."""


def kill_after(monkeypatch: pytest.MonkeyPatch, count: int) -> list[str]:
    """Have training stop when so many learners are trained; gives back those that were."""
    begun: list[str] = []
    plainly = MetaTraining.train

    def train(self, kind, *, report=None):  # type: ignore[no-untyped-def]
        if len(begun) == count:
            raise KilledError
        begun.append(kind.name)
        return plainly(self, kind, report=report)

    monkeypatch.setattr(MetaTraining, "train", train)
    return begun


def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "meta"
    with monkeypatch.context() as patch:
        assert kill_after(patch, 1) == []
        with pytest.raises(KilledError):
            train_meta(SIDES, FEATURES, folder=folder, recipe=RECIPE)
    assert not folder.exists()
    with monkeypatch.context() as patch:
        trained = kill_after(patch, 99)
        train_meta(SIDES, FEATURES, folder=folder, recipe=RECIPE)
    assert trained == ["fomaml", "reptile"]
    assert content(folder) == content(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["meta"]  # no work is left lying about


@pytest.mark.parametrize("other", ["labels", "seed", "features"])
def test_what_was_learnt_from_other_bags_or_by_other_settings_is_not_gone_on_with(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """Labels may change while no feature does: somebody moves a region, and starts again."""
    base, recipe = SIDES.base, RECIPE
    if other == "labels":
        base = replace(base, labels=(base.labels + 1) % len(base.classes))
    elif other == "features":
        base = replace(base, features=base.features + 1)
    else:
        recipe = replace(RECIPE, seed=5)
    with monkeypatch.context() as patch:
        kill_after(patch, 1)
        with pytest.raises(KilledError):
            train_meta(replace(SIDES, base=base), FEATURES, folder=tmp_path / "meta", recipe=recipe)
    train_meta(SIDES, FEATURES, folder=tmp_path / "meta", recipe=RECIPE)
    assert content(tmp_path / "meta") == content(whole)


def test_nothing_is_replaced_and_two_at_once_are_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="something is there already"):
        train_meta(SIDES, FEATURES, folder=whole, recipe=RECIPE)
    with alone(tmp_path / "meta", work=tmp_path / ".work"), pytest.raises(OutputBusyError):
        train_meta(SIDES, FEATURES, folder=tmp_path / "meta", recipe=RECIPE)
    with pytest.raises(UsageError, match="cannot be a model's name"):
        train_meta(SIDES, FEATURES, folder=tmp_path / "a b", recipe=RECIPE)


def test_one_may_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    recipe = replace(RECIPE, kinds=("reptile", "maml"))
    train_meta(SIDES, FEATURES, folder=tmp_path / "meta", recipe=recipe, report=lambda *at: seen.append(at))
    assert seen == [(2, 6), (3, 6), (5, 6), (6, 6)]


def test_the_headline_tells_what_was_kept_apart(whole: Path) -> None:
    meta, _ = load_meta(whole)
    told = headline(meta)
    assert told["judges"] == "tiles"
    assert told["validation"] == ", ".join(SIDES.validation_classes)
    assert {f"validation accuracy: {name}" for name in RECIPE.kinds} <= told.keys()
    assert "g" not in {*meta.base_classes, *meta.validation_classes}


def test_patients_apart_are_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mil.fewshot.training._TUNED", ((2, 0.1),))
    sides = divide(make_slides(4))
    recipe = replace(RECIPE, kinds=("scratch",), ways=2, head="gated_abmil")
    recipe = replace(recipe, settings={"hidden": 4, "attention": 3})
    meta = train_meta(sides, FEATURES, folder=tmp_path / "meta", recipe=recipe)
    assert headline(meta)["judges"] == "slides"
    assert headline(meta)["validation"] == "other patients of the base classes"
