"""Laws of a study: nothing leaks, all can be made again, and what is refused is refused before any work."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import cli
from mil import study
from mil.arguments import study_recipe
from mil.calibration import fit_temperature, probabilities
from mil.checkpoint import load_model
from mil.ensemble import bag_logits
from mil.features import read_bag
from mil.predictions import Part, read_predictions
from mil.study import StudyRecipe, train_model
from mil.training import TrainingRecipe, members
from mil.training.figures import balanced_accuracy, macro_auroc
from mil.training.losses import Focal
from mil.training.sources import find_stores
from mil.training.stopping import Metric
from tiling.output import Output
from tiling.store import TileStore, make_array
from wsi.errors import OutputBusyError, RecipeError, UsageError

MakeStore = Callable[..., TileStore]
ROOT = Path(__file__).resolve().parents[2]
KEY, DIM = "toy", 6
QUICK = TrainingRecipe(settings={"hidden": 8, "attention": 4}, epochs=3, learning_rate=1e-2)
RECIPE = StudyRecipe(encoder=KEY, folds=3, training=QUICK)
SLIDES = 14
EXTERNAL = ("s12", "s13")


def encode(store: TileStore, features: NDArray[np.floating[Any]], *, weights: str = "none") -> None:
    """Commit features as if an encoder had made them."""
    recipe = {
        "step": "features",
        "inputs": store.inputs("tiles"),
        "encoder": {"name": KEY, "dim": features.shape[1], "weights": weights},
        "precision": "fp32",
    }
    store = TileStore(store.output, store.slide_id, overwrite=True)
    draft = store.begin(f"features/{KEY}", recipe | {"digest": repr(features.tobytes()[:16])})
    assert draft is not None
    shape = features.shape
    array = make_array(draft, "", shape=shape, rows_per_file=len(features), dtype=np.float16, fill=np.nan)
    array.write_all(features.astype(np.float16))
    draft.publish({})


def features_of(index: int) -> NDArray[np.float64]:
    """Noise; in slides of odd number, four tiles of eleven are shifted."""
    values = np.random.default_rng(index).normal(size=(11, DIM))
    values[:4] += 2.5 * (index % 2)
    return values


@dataclass(frozen=True)
class Desk:
    """An output of encoded slides, a table beside it, and training by it."""

    folder: Path

    @property
    def labels(self) -> Path:
        return self.folder / "labels.csv"

    def write(self, table: str) -> None:
        self.labels.write_text(table)

    def train(self, name: str = "model", recipe: StudyRecipe = RECIPE, **keywords: Any) -> Any:
        stores = find_stores(self.folder / "out", (), encoder=KEY)
        return train_model(stores, self.labels, recipe=recipe, folder=self.folder / name, **keywords)

    def files(self, name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.folder / name).iterdir())}

    def rows(self, name: str, file: str) -> list[dict[str, str]]:
        return list(csv.DictReader((self.folder / name / file).read_text().splitlines()))


TABLE = "slide_id,label,patient,split\n" + "".join(
    f"s{i},{'tumour' if i % 2 else 'normal'},p{i % 2}-{i // 4},{'test' if f's{i}' in EXTERNAL else 'train'}\n"
    for i in range(SLIDES)
)
"""Two slides a patient; the patients of the last two slides are for testing."""


@pytest.fixture(scope="module", autouse=True)
def curves_in_words() -> Iterator[Callable[..., bytes]]:
    """Other numbers, other bytes, without a drawing: half a second of matplotlib after each training."""
    draw = study.draw_learning_curve

    def tell(histories: object, *, metric: Metric) -> bytes:
        return repr((histories, metric)).encode()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(study, "draw_learning_curve", tell)
        yield draw


@pytest.fixture
def curves_drawn(curves_in_words: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have them."""
    monkeypatch.setattr(study, "draw_learning_curve", curves_in_words)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory, make_store_in: MakeStore) -> Path:
    folder = tmp_path_factory.mktemp("encoded")
    for index in range(SLIDES):
        encode(make_store_in(folder, f"s{index}", seed=index), features_of(index))
    return folder


@pytest.fixture
def desk(tmp_path: Path, encoded: Path) -> Desk:
    shutil.copytree(encoded, tmp_path, dirs_exist_ok=True)
    made = Desk(tmp_path)
    made.write(TABLE)
    return made


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory, encoded: Path) -> Desk:
    """One that all tests see, and none changes."""
    made = Desk(tmp_path_factory.mktemp("untouched") / "desk")
    shutil.copytree(encoded, made.folder)
    made.write(TABLE)
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, encoded: Path) -> Desk:
    """The same, with a model by `RECIPE`: what others have to be equal to."""
    made = Desk(tmp_path_factory.mktemp("trained") / "desk")
    shutil.copytree(encoded, made.folder)
    made.write(TABLE)
    made.train()
    return made


# What a folder holds ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("curves_drawn")
def test_a_model_is_published_with_all_that_is_needed_to_make_it_again(desk: Desk) -> None:
    model = desk.train()
    assert model == load_model(desk.folder / "model")[0]
    assert set(desk.files("model")) == {
        "commit.json", "model.json", "labels.csv", "splits.csv", "predictions.csv", "history.csv",
        "metrics.json", "environment.json", "learning-curve.png",
        "member-0.safetensors", "member-1.safetensors", "member-2.safetensors",
    }  # fmt: skip
    assert model.classes == ("normal", "tumour")
    assert model.training["slides"] == [f"s{i}" for i in range(12)]
    assert model.training["external_slides"] == list(EXTERNAL)
    assert model.training["class_counts"] == {"normal": 6, "tumour": 6}
    assert (model.training["patients"], model.training["tiles"], model.training["folds"]) == (6, 132, 3)
    assert desk.labels.read_text() == (desk.folder / "model" / "labels.csv").read_text()
    environment = json.loads(desk.files("model")["environment.json"])
    assert {"torch", "numpy", "microtome"} <= set(environment["packages"])
    text = b"".join(data for name, data in desk.files("model").items() if "safetensors" not in name)
    assert str(desk.folder).encode() not in text
    assert not (desk.folder / ".work").exists()


def test_two_trainings_give_the_same_bytes_wherever_features_are_kept(desk: Desk, trained: Desk) -> None:
    desk.train("b/model", memory_bytes=0)
    assert trained.files("model") == desk.files("b/model")
    desk.train("c/model", replace(RECIPE, training=replace(QUICK, seed=1)))
    assert trained.files("model")["member-0.safetensors"] != desk.files("c/model")["member-0.safetensors"]


def test_what_members_said_is_what_their_saved_weights_say(trained: Desk) -> None:
    """To the bit: so it was said in eval mode, by these weights, of these slides."""
    _, ensemble = load_model(trained.folder / "model")
    predictions = read_predictions(trained.folder / "model" / "predictions.csv")
    assert {(entry.member, entry.part) for entry in predictions.members} == {
        (member, part) for member in range(3) for part in Part
    }
    for entry in predictions.members:
        stores = [TileStore(Output(trained.folder / "out"), slide) for slide in entry.slide_ids]
        logits = bag_logits(ensemble.members[entry.member], [read_bag(store, KEY) for store in stores])
        assert (entry.logits == logits).all()


def test_each_slide_is_tested_once_and_no_patient_is_on_two_sides(trained: Desk) -> None:
    predictions = read_predictions(trained.folder / "model" / "predictions.csv")
    tested = [slide for entry in predictions.of(Part.TEST) for slide in entry.slide_ids]
    assert sorted(tested) == sorted(f"s{i}" for i in range(12))
    parts = (predictions.of(Part.VALIDATION), predictions.of(Part.TEST))
    for validation, test in zip(*parts, strict=True):
        assert not set(validation.patients) & set(test.patients)
    table = {row["slide_id"]: row["patient"] for row in csv.DictReader(TABLE.splitlines())}
    for entry in predictions.members:
        assert entry.patients == tuple(table[slide] for slide in entry.slide_ids)
    fold_of_patient = {(table[slide], e.member) for e in predictions.of(Part.TEST) for slide in e.slide_ids}
    assert len(fold_of_patient) == len({patient for patient, _ in fold_of_patient}) == 6
    assert all(entry.slide_ids == EXTERNAL for entry in predictions.of(Part.EXTERNAL))
    folds = {row["slide_id"]: row["fold"] for row in trained.rows("model", "splits.csv")}
    assert folds == {
        s: str(e.member) for e in predictions.of(Part.TEST) for s in e.slide_ids
    } | dict.fromkeys(EXTERNAL, "")


def test_a_member_knows_nothing_of_the_slides_that_it_is_tested_on(desk: Desk) -> None:
    """Other features of one slide: who is tested on it does not change by a bit, who learned from it does."""
    fold_of = [(i // 4) % 3 for i in range(12)]
    lines = [f"s{i},{'tumour' if i % 2 else 'normal'},{fold_of[i]}\n" for i in range(12)]
    desk.write("slide_id,label,fold\n" + "".join(lines))
    recipe = replace(RECIPE, folds=None)
    before = desk.train("a/model", recipe)
    assert [row["fold"] for row in desk.rows("a/model", "splits.csv")] == list(map(str, fold_of))
    encode(TileStore(Output(desk.folder / "out"), "s4"), 9 + features_of(99))  # in fold 1
    after = desk.train("b/model", recipe)
    assert before.members[1] == after.members[1]
    assert before.members[2] != after.members[2]
    encode(TileStore(Output(desk.folder / "out"), "s12"), 9 + features_of(99))  # not in the table
    assert desk.train("c/model", recipe).members == after.members


def test_temperatures_come_from_validation_and_the_rule_from_test_slides(desk: Desk, trained: Desk) -> None:
    model, _ = load_model(trained.folder / "model")
    predictions = read_predictions(trained.folder / "model" / "predictions.csv")
    assert model.calibration is not None
    temperatures = tuple(fit_temperature(e.logits, e.labels) for e in predictions.of(Part.VALIDATION))
    assert model.calibration.temperatures == temperatures
    worst: dict[str, float] = {}
    for entry, temperature in zip(predictions.of(Part.TEST), temperatures, strict=True):
        judged = probabilities(entry.logits, temperature)[np.arange(len(entry.labels)), entry.labels]
        for patient, p in zip(entry.patients, judged, strict=True):
            worst[patient] = max(worst.get(patient, 0.0), 1 - p)
    assert len(worst) == 6  # fewer than the nine that an error of a tenth needs
    assert model.calibration.conformal.quantiles == (float("inf"),)
    loose = desk.train("loose", replace(RECIPE, alpha=0.5))
    assert loose.calibration is not None
    assert loose.calibration.conformal.quantiles[0] == pytest.approx(sorted(worst.values())[3])


def test_the_figures_are_those_of_the_predictions(trained: Desk) -> None:
    model, _ = load_model(trained.folder / "model")
    figures = json.loads(trained.files("model")["metrics.json"])
    assert figures == model.training["figures"]
    predictions = read_predictions(trained.folder / "model" / "predictions.csv")
    aurocs, accuracies, external = [], [], []
    temperatures = model.calibration.temperatures if model.calibration else ()
    for entry in predictions.of(Part.TEST):
        judged = probabilities(entry.logits, temperatures[entry.member])
        aurocs.append(macro_auroc(entry.labels, judged))
        accuracies.append(balanced_accuracy(entry.labels, judged))
    out_of_fold = figures["out_of_fold"]
    assert out_of_fold["auroc"] == {"folds": aurocs, "mean": pytest.approx(np.mean(aurocs))}
    assert out_of_fold["balanced_accuracy"]["folds"] == accuracies
    for entry in predictions.of(Part.EXTERNAL):
        external.append(probabilities(entry.logits, temperatures[entry.member]))
    together = np.mean(external, axis=0)
    assert figures["external"]["auroc"] == macro_auroc(entry.labels, together)
    assert figures["external"]["slides"] == 2


@pytest.mark.usefixtures("curves_drawn")
def test_the_history_is_of_every_epoch_and_its_picture_is_one(desk: Desk) -> None:
    model = desk.train()
    rows = desk.rows("model", "history.csv")
    assert [(row["member"], row["epoch"]) for row in rows] == [(m, e) for m in "012" for e in "123"]
    kept = {row["member"]: int(row["epoch"]) for row in rows if row["kept"] == "1"}
    assert kept == {str(i): member["kept_epoch"] for i, member in enumerate(model.training["members"])}
    picture = desk.files("model")["learning-curve.png"]
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000
    desk.train("b/model")
    assert desk.files("b/model") == desk.files("model")


def test_without_folds_there_is_one_head_and_nothing_calibrated(desk: Desk) -> None:
    model = desk.train("model", replace(RECIPE, folds=0))
    assert len(model.members) == 1
    assert model.calibration is None
    assert model.training["figures"]["out_of_fold"] is None
    assert model.training["figures"]["external"]["slides"] == 2
    predictions = read_predictions(desk.folder / "model" / "predictions.csv")
    assert [(entry.part, len(entry.labels)) for entry in predictions.members] == [(Part.EXTERNAL, 2)]
    kept = [row["epoch"] for row in desk.rows("model", "history.csv") if row["kept"] == "1"]
    assert kept == ["3"]


def test_three_classes_and_slides_without_a_label(desk: Desk) -> None:
    lines = [f"s{i},{'abc'[i % 3]},p{i}\n" for i in range(12)]
    desk.write("slide_id,label,patient\n" + "".join(lines))
    model = desk.train()
    assert model.classes == ("a", "b", "c")
    assert model.training["slides_without_label"] == 2
    assert load_model(desk.folder / "model")[1].classes == 3


# The command line ------------------------------------------------------------------------------------------


def test_the_options_in_the_card_ask_for_the_same_study() -> None:
    training = TrainingRecipe(
        head="clam_mb",
        settings={"hidden": 32, "dropout": 0.5, "subtyping": True, "adaptor.reduction": 4},
        adaptor="channel_attention",
        loss=Focal(gamma=1.5),
        balance_classes=False,
        epochs=7,
        learning_rate=3e-5,
        weight_decay=0.0,
        warm_up=0.25,
        patience=0,
        metric=Metric.BALANCED_ACCURACY,
        bags_per_step=3,
        tiles_per_bag=0,
        instance_dropout=0.1,
        feature_noise=0.2,
        seed=2**63 - 1,
    )
    asked = StudyRecipe(
        encoder="uni", contexts=(1.0, 2.5), folds=4, training=training, alpha=0.2, gate=study.Gate(0.9)
    )
    for recipe in (asked, StudyRecipe(encoder="toy"), RECIPE):
        words = ["train", "out", "--labels", "l", "-m", "m", *study.training_options(recipe)]
        assert study_recipe(cli.build_parser().parse_args(words)) == recipe


@pytest.mark.parametrize(
    ("option", "default"),
    [
        ("--folds", study.FOLDS),
        ("--alpha", StudyRecipe(encoder="toy").alpha),
        ("--threshold", StudyRecipe(encoder="toy").gate.threshold),
        ("--metric", TrainingRecipe().metric.value),
        ("--loss", TrainingRecipe().loss.as_json()["name"]),
        ("--focal-gamma", Focal().gamma),
        *(
            (f"--{name.replace('_', '-')}", getattr(TrainingRecipe(), name))
            for name in (
                "learning_rate", "weight_decay", "warm_up", "patience", "bags_per_step", "tiles_per_bag",
                "instance_dropout", "feature_noise",
            )
        ),
    ],
)  # fmt: skip
def test_help_states_the_library_s_own_default(option: str, default: object) -> None:
    parser = cli.build_parser()
    command = next(a for a in parser._actions if a.choices and "train" in a.choices).choices["train"]  # type: ignore[index]
    action = command._option_string_actions[option]
    assert f"(default {default})" in action.help
    assert action.default is None


def test_the_card_s_options_and_table_make_the_model_again(desk: Desk) -> None:
    lines = (f"s{i},{'ab'[i % 2]},{i // 2 % 3}" for i in range(12))
    desk.write(table("slide_id,label,fold", *lines))
    desk.train("a/model", replace(RECIPE, folds=None, training=replace(QUICK, loss=Focal())))
    options = json.loads(desk.files("a/model")["model.json"])["training"]["options"]
    labels, again = desk.folder / "a" / "model" / "labels.csv", desk.folder / "b" / "model"
    given = ["train", str(desk.folder / "out"), "--labels", str(labels), "-m", str(again), *options]
    assert cli.main([*given, "--device", "cpu"]) == 0
    assert desk.files("a/model") == desk.files("b/model")


def words(desk: Desk, *more: str) -> list[str]:
    given = [str(desk.folder / "out"), "--labels", str(desk.labels), "-m", str(desk.folder / "model")]
    return ["train", *given, "--encoder", KEY, "--folds", "3", "--epochs", "2", "--set", "hidden=8", *more]


@pytest.mark.usefixtures("curves_drawn")
def test_training_and_predicting_by_commands(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words(desk, "--json")) == 0
    said = json.loads(capsys.readouterr().out)
    figures = json.loads(desk.files("model")["metrics.json"])
    assert said["class_counts"] == {"normal": 6, "tumour": 6}
    assert said["out_of_fold_auroc"] == figures["out_of_fold"]["auroc"]["mean"]
    assert said["external_balanced_accuracy"] == figures["external"]["balanced_accuracy"]
    assert cli.main(["predict", str(desk.folder / "out"), "-m", str(desk.folder / "model"), "--json"]) == 0
    outcomes = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(outcomes) == SLIDES
    for outcome in outcomes:
        assert outcome["calibrated"] is True
        assert outcome["decision"] == "review required"  # no class can be ruled out by six patients
        assert "the conformal set holds 2 classes, not one" in outcome["reasons"]
        assert set(outcome["spread"]) == {"normal", "tumour"}
    assert cli.main(words(desk)) == 2  # the folder is taken
    assert "a model is there already" in capsys.readouterr().err


def test_spelling_of_the_table_changes_nothing_but_its_copy(desk: Desk, trained: Desk) -> None:
    desk.labels.write_bytes(
        b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").replace(",", " , ").encode() + b"\r\n,,,\r\n"
    )
    desk.train("b/model")
    assert trained.files("model") == desk.files("b/model")


def table(header: str, *lines: str) -> str:
    return "\n".join([header, *lines, ""])


FOLDS = "slide_id,label,fold"
REFUSED = [
    ("slide_id,label,patient,split\n", "holds no slides"),
    (TABLE.replace("s3,tumour", "s3,"), "line 5 has no label"),
    (
        TABLE.replace("s3,", "nobody,").replace("s4,", "s4.svs,"),
        r"names 2 slides with no tiles .*: nobody, s4\.svs.*'s4'",
    ),
    (TABLE.replace("tumour", "normal"), "one label"),
    (TABLE.replace("p0-0,train", "p0-3,train"), "patient 'p0-3' in both train and test"),
    (TABLE.replace("tumour", "Normal"), "spells one label in two ways"),
    (TABLE.replace("p1-1", "p1-0").replace("p1-2", "p1-0"), r"class 'tumour' has 1 patient .*3 folds"),
    (
        table("slide_id,label,patient,fold", "s0,a,p,0", "s1,b,q,1", "s2,a,p,2"),
        r"patient 'p' in two folds, 0 and 2 \(lines 2, 4\)",
    ),
    (table(FOLDS, "s0,a,0", "s1,b,1", "s2,a,3"), "no slide in fold 2"),
    (table(FOLDS, "s0,a,0", "s1,b,1", "s2,a,"), r"no fold to some slides \(line 4\)"),
    (table(FOLDS, "s0,a,0", "s1,b,one"), "line 3 has fold 'one'"),
    (
        table("slide_id,label,split,fold", "s0,a,train,0", "s1,b,train,1", "s2,a,test,2"),
        r"fold to slides for testing \(line 4\)",
    ),
    (table(FOLDS, *(f"s{i},{'ab'[i % 2]},{i // 2}" for i in range(8))), "has 4 folds of its own, and 3"),
    (
        table(FOLDS, "s0,a,0", "s1,b,0", "s2,a,1", "s3,a,2"),
        "member 0 of 3 would have no slide of class 'b'",
    ),
]


@pytest.fixture
def no_fit(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, training is a failure of the test."""

    def forbidden(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("it was trained")

    return lambda: monkeypatch.setattr(members, "fit", forbidden)


def test_a_table_that_would_spoil_the_study_is_refused_by_name_before_any_work(
    desk: Desk, no_fit: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    no_fit()
    before = sorted(desk.folder.rglob("*"))
    for content, reason in REFUSED:
        desk.write(content)
        assert cli.main(words(desk)) == 2, content
        error = capsys.readouterr().err
        with pytest.raises(UsageError, match=reason):
            raise UsageError(error)
        assert f"ERROR {desk.labels}" in error
        assert sorted(desk.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--folds", "2"], "2 folds are too few"),
        (["--folds", "9"], r"class 'normal' has 3 patients .*Use --folds 3"),
        (["--head", "wizard"], "no head 'wizard'"),
        (["--set", "depth=3"], "does not take these settings"),
        (["--set", "hidden"], "--set is 'hidden'"),
        (["--set", "hidden=many"], "--set is 'hidden=many'"),
        (["--set", "attention=0"], "attention is 0, and must be a whole number from 1"),
        (["--set", "hidden=9"], "--set names a setting twice"),
        (["--adaptor", "spectacles"], "no adaptor 'spectacles'"),
        (["--focal-gamma", "1"], "--focal-gamma belongs to another loss"),
        (["--loss", "focal", "--focal-gamma", "-1"], "gamma is -1"),
        (["--context-mpp", "2"], r"with no features/toy@2"),
        (["--device", "abacus"], "no device 'abacus'"),
        (["--memory", "-1"], "--memory is -1"),
        (["--alpha", "1.5"], "alpha is 1.5"),
        (["--threshold", "2"], "threshold is 2"),
        (["--encoder", "uni"], "no features/uni"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_any_work(
    untouched: Desk,
    no_fit: Callable[[], None],
    more: list[str],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    desk = untouched
    no_fit()
    before = sorted(desk.folder.rglob("*"))
    assert cli.main(words(desk, *more)) == 2
    with pytest.raises(UsageError, match=reason):
        raise UsageError(capsys.readouterr().err)
    assert sorted(desk.folder.rglob("*")) == before


def test_a_folder_that_cannot_be_a_model_s_is_refused_before_training(
    desk: Desk, no_fit: Callable[[], None]
) -> None:
    desk.train()
    before = desk.files("model")
    no_fit()
    with pytest.raises(RecipeError, match="a model is there already"):
        desk.train()
    assert desk.files("model") == before
    with pytest.raises(UsageError, match=r"'zarr\.json' cannot be a model's name"):
        desk.train("zarr.json")
    assert not (desk.folder / "zarr.json").exists()


def test_slides_that_were_not_made_alike_are_refused_before_training(
    desk: Desk, no_fit: Callable[[], None], make_store: MakeStore
) -> None:
    encode(make_store("odd", stain=None), features_of(1))
    desk.write(TABLE + "odd,tumour,px,train\n")
    no_fit()
    with pytest.raises(UsageError, match="'odd' and 's0' were not made alike"):
        desk.train()
    shutil.rmtree(desk.folder / "out" / "slides" / "odd")
    encode(TileStore(Output(desk.folder / "out"), "s13"), features_of(13), weights="others")
    desk.write(TABLE)
    with pytest.raises(UsageError, match="'s13' and 's0' were not made alike"):
        desk.train()  # slides for testing too


# Stopped, and going on -------------------------------------------------------------------------------------


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the members that are trained from now on."""
    seeds: list[int] = []
    fit = members.fit

    def counting(*arguments: Any, **keywords: Any) -> Any:
        seeds.append(keywords["recipe"].seed)
        return fit(*arguments, **keywords)

    monkeypatch.setattr(members, "fit", counting)
    return seeds


def seeds_of(*numbers: int, seed: int = QUICK.seed) -> list[int]:
    return [members.member_seed(seed, number) for number in numbers]


def stop_in_last(desk: Desk, name: str, recipe: StudyRecipe = RECIPE) -> None:
    """Train, and die within the third member of three: two are finished."""

    def die(number: int, count: int, epoch: object) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        desk.train(name, recipe, report=die)
    assert not (desk.folder / name).exists()


def test_a_study_that_was_stopped_trains_only_the_members_that_it_lacks(
    desk: Desk, trained: Desk, fitted: list[int]
) -> None:
    stop_in_last(desk, "b/model")
    fitted.clear()
    reported = []
    desk.train("b/model", report=lambda number, count, epoch: reported.append((number, count, epoch.number)))
    assert fitted == seeds_of(2)
    assert reported == [(2, 3, 1), (2, 3, 2), (2, 3, 3)]
    assert trained.files("model") == desk.files("b/model")
    assert sorted(path.name for path in (desk.folder / "b").iterdir()) == ["model"]


@pytest.mark.parametrize("folds", [0, 3])
def test_a_study_that_was_stopped_before_its_model_was_published_trains_nothing_again(
    desk: Desk, no_fit: Callable[[], None], monkeypatch: pytest.MonkeyPatch, folds: int
) -> None:
    recipe = replace(RECIPE, folds=folds)
    desk.train("a/model", recipe)
    draw = study.draw_learning_curve

    def die(*arguments: Any, **keywords: Any) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "draw_learning_curve", die)
    with pytest.raises(KeyboardInterrupt):
        desk.train("b/model", recipe)
    assert not (desk.folder / "b" / "model").exists()
    monkeypatch.setattr(study, "draw_learning_curve", draw)
    no_fit()
    desk.train("b/model", recipe)
    assert desk.files("a/model") == desk.files("b/model")


KILLED = """
import os, sys
from pathlib import Path
import cli, mil.study, torch._dynamo  # optimisers import it, which takes seconds
for point in sys.argv[1].split():
    process = os.fork()
    if not process:
        os.environ["MICROTOME_CRASH_AT"] = point
        os._exit(cli.main(sys.argv[2:]))
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    print(f"{code}/{Path(sys.argv[sys.argv.index('-m') + 1]).exists()}", flush=True)
"""
"""Says of each run how it ended, and whether a model is there. What is imported is imported once."""


def test_a_training_that_was_killed_goes_on(desk: Desk, fitted: list[int]) -> None:
    """By SIGKILL, in a process of its own: while the second member is written, and when it is finished."""
    asked = words(desk, "--device", "cpu")
    # That run finishes one, as the first is there.
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "part-written:2 part-finished:1", *asked],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.stdout.split() == 2 * [f"{-signal.SIGKILL}/False"], killed.stderr
    assert cli.main(asked) == 0
    assert fitted == seeds_of(2)
    there = desk.files("model")
    (desk.folder / "model").rename(desk.folder / "other")
    assert cli.main(asked) == 0
    assert fitted == seeds_of(2, 0, 1, 2)
    assert there == desk.files("model")


def encode_again(desk: Desk, slide: str) -> None:
    encode(TileStore(Output(desk.folder / "out"), slide), 9 + features_of(99))


@pytest.mark.parametrize(
    ("change", "recipe"),
    [
        (lambda desk: None, replace(RECIPE, training=replace(QUICK, seed=1))),
        (lambda desk: None, replace(RECIPE, training=replace(QUICK, weight_decay=0.5))),
        (lambda desk: desk.write(TABLE.replace("s3,tumour", "s3,normal")), RECIPE),
        (lambda desk: desk.write(TABLE.replace("s13,tumour", "s13,normal")), RECIPE),  # same folds
        (lambda desk: encode_again(desk, "s4"), RECIPE),
        (lambda desk: encode_again(desk, "s12"), RECIPE),  # that one is judged, and not learned from
    ],
    ids=["seed", "setting", "label", "label for testing", "features", "features for testing"],
)
def test_members_of_another_study_are_not_gone_on_with(
    desk: Desk, fitted: list[int], change: Callable[[Desk], None], recipe: StudyRecipe
) -> None:
    stop_in_last(desk, "b/model")
    fitted.clear()
    change(desk)
    desk.train("b/model", recipe)
    assert fitted == seeds_of(0, 1, 2, seed=recipe.training.seed)
    desk.train("a/model", recipe)
    assert desk.files("a/model") == desk.files("b/model")
    assert not (desk.folder / "b" / ".work").exists()


def test_members_of_another_environment_are_not_gone_on_with(
    desk: Desk, fitted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_last(desk, "model")
    fitted.clear()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    desk.train()
    assert fitted == seeds_of(0, 1, 2)


def test_what_is_only_asked_of_members_afterwards_trains_none_again(desk: Desk, fitted: list[int]) -> None:
    other = replace(RECIPE, alpha=0.5, gate=study.Gate(0.6))
    desk.train("a/model", other)
    stop_in_last(desk, "b/model")
    fitted.clear()
    desk.train("b/model", other)
    assert fitted == seeds_of(2)
    assert desk.files("a/model") == desk.files("b/model")


@pytest.mark.parametrize(("number", "suffix"), [(0, "safetensors"), (1, "json")])
def test_a_member_that_was_damaged_meanwhile_is_trained_again(
    desk: Desk, trained: Desk, fitted: list[int], number: int, suffix: str
) -> None:
    stop_in_last(desk, "b/model")
    fitted.clear()
    (kept,) = (desk.folder / "b" / ".work").glob(f"*/member-{number}.{suffix}")
    data = bytearray(kept.read_bytes())
    data[-2] ^= 1
    kept.write_bytes(data)
    desk.train("b/model")
    assert fitted == seeds_of(number, 2)
    assert trained.files("model") == desk.files("b/model")


def test_one_model_is_trained_by_one_process_at_a_time(desk: Desk, trained: Desk, fitted: list[int]) -> None:
    """Another one beside it is nobody's business."""
    refused = []

    def train_more(number: int, count: int, epoch: Any) -> None:
        if (number, epoch.number) == (1, 1):
            with pytest.raises(OutputBusyError, match="another run is making it"):
                desk.train()
            refused.append(len(fitted))
            desk.train("other")

    desk.train(report=train_more)
    assert refused == [2]
    assert trained.files("model") == desk.files("model")
    assert desk.files("other")["member-2.safetensors"] == desk.files("model")["member-2.safetensors"]
    assert not (desk.folder / ".work").exists()
