"""Few-shot learning by commands: from marks in QuPath to a heatmap, and one clear line for what cannot be."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import cli
from mil.checkpoint import load_model
from mil.encoders import untrained_encoder
from mil.fewshot.arguments import adapted, meta_recipe
from mil.fewshot.meta import load_meta
from mil.fewshot.recipe import MetaRecipe
from tiling.output import Output
from tiling.store import TileStore
from wsi.tissue_cohort import Mixed, write_tissue_cohort

NAME = "timm:test_efficientnet"
CLASSES = ("muscle", "fibrosis", "nerve", "granulation", "lymphoid", "tumour", "glands")
NOVEL, VALIDATION = ("glands", "lymphoid"), ("granulation", "tumour")
FIRST, SECOND = "site0-p01-0", "site0-p03-0"
"""Slides that both novel classes are on."""
AT_ONCE = ["--learner", "prototypes"]
"""None is chosen by cross-validation: that is for the tests of what is chosen."""
QUICK = ["--learners", "maml", "--iterations", "4", "--look-every", "2", "--tasks-per-step", "2"]
TASKS = ["--ways", "2", "--shots", "1", "--queries", "1"]


def microtome(*words: object, code: int = 0) -> None:
    assert cli.main([str(word) for word in words]) == code, words


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight little slides of two sites, cut and encoded; learners of tiles, and learners of slides."""
    root = tmp_path_factory.mktemp("finished")
    plan = Mixed(CLASSES, per_slide=3)
    slides = write_tissue_cohort(
        root / "slides", plan=plan, sites=range(2), patients_per_site=4, seed=1, size=(768, 768)
    )
    state = untrained_encoder(NAME, seed=0).module.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, root / "weights.safetensors")
    microtome("tile", root / "slides", "-o", root / "out", "--mpp", "1", "--tile-size", "32", "--quiet")
    encoder = ["--encoder", NAME, "--weights", root / "weights.safetensors"]
    microtome("encode", root / "out", *encoder, "--quiet")
    marks = ["--annotations", root / "slides" / "annotations", "--labels", root / "slides" / "labels.csv"]
    train = ["fewshot", "train", root / "out", "--encoder", NAME, *QUICK, *TASKS]
    apart = ["--novel", *NOVEL, "--validation", *VALIDATION]
    with pytest.MonkeyPatch.context() as patch:
        _few_looks(patch)
        microtome(*train, *marks, "-m", root / "meta", *apart, "--set", "hidden=16")
    rows = [f"{one.path.stem},{'xy'[place % 2]},{one.patient}" for place, one in enumerate(slides)]
    (root / "labels.csv").write_text("\n".join(["slide_id,label,patient", *rows]) + "\n")
    small = ["--set", "hidden=8", "--set", "attention=4"]
    with pytest.MonkeyPatch.context() as patch:
        _few_looks(patch)
        microtome(*train, "--labels", root / "labels.csv", "-m", root / "of-slides", *small)
    return root


def _few_looks(patch: pytest.MonkeyPatch) -> None:
    """Look at few tasks, and try few steps: nobody waits for learners that are any good."""
    patch.setattr("mil.fewshot.training._TUNED", ((10, 0.1),))
    patch.setattr("mil.fewshot.training._STEPS_TRIED", (1, 2))
    plainly = meta_recipe

    def recipe(arguments: Namespace, *, of_tiles: bool) -> MetaRecipe:
        return replace(plainly(arguments, of_tiles=of_tiles), validation_tasks=4)

    patch.setattr("mil.fewshot.arguments.meta_recipe", recipe)


@pytest.fixture
def desk(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path, dirs_exist_ok=True))


def marks(desk: Path, slide_id: str, classes: Sequence[str] = NOVEL, *, suffix: str = "") -> Path:
    """What is known of a slide, as far as it is of these classes, as a user would have marked it."""
    content = json.loads((desk / "slides" / "annotations" / f"{slide_id}.geojson").read_text())
    content["features"] = [
        one for one in content["features"] if one["properties"]["classification"]["name"] in classes
    ]
    folder = desk / "marked"
    folder.mkdir(exist_ok=True)
    path = folder / f"{slide_id}{suffix}.geojson"
    path.write_text(json.dumps(content))
    return path


def adapt(desk: Path, *words: object, code: int = 0) -> None:
    microtome("adapt", "-o", desk / "out", "--model", desk / "meta", *words, code=code)


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def weights_of_scores(desk: Path, name: str = "adapted") -> dict[str, str]:
    """By slide: the weights that its scores are of."""
    found = {}
    for slide_id in Output(desk / "out").slides_with_tiles():
        commit = TileStore(Output(desk / "out"), slide_id).find(f"scores/{name}")
        if commit:
            found[slide_id] = commit.recipe["model"]["weights_sha256"]
    return found


# Train and evaluate --------------------------------------------------------------------------------------


def test_learners_are_trained_without_the_novel_classes(finished: Path) -> None:
    meta, learners = load_meta(finished / "meta")
    assert set(meta.base_classes) == set(CLASSES) - {*NOVEL, *VALIDATION}
    assert meta.validation_classes == VALIDATION
    assert meta.training["novel_classes"] == list(NOVEL)
    assert [method.name for method in learners.methods] == ["prototypes", "logistic", "maml"]
    assert meta.training["sites"] == 2
    of_slides, _ = load_meta(finished / "of-slides")
    assert (of_slides.judges.value, of_slides.recipe.head) == ("slides", "gated_abmil")


def test_unseen_classes_are_judged_and_the_report_is_made_once(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fewshot", "evaluate", finished / "out", "-m", finished / "meta", "-o", tmp_path / "report"]
    words += ["--annotations", finished / "slides" / "annotations", "--episodes", "4", *TASKS, "--json"]
    capsys.readouterr()
    microtome(*words)
    (first,) = told(capsys)
    assert first["status"] == "done"
    assert first["classes"] == list(NOVEL)
    microtome(*words)
    (second,) = told(capsys)
    assert second["status"] == "already done"
    assert second["shots"] == first["shots"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "nothing is labelled"),
        (["--annotations", "{}/slides/annotations", "--tiles"], "--tiles belongs to labels of slides"),
        (["--labels", "{}/labels.csv", "--rename", "a=b"], "--rename belongs to --annotations"),
        (
            ["--annotations", "{}/slides/annotations", "--rename", "glnads=x"],
            "no annotation is of this class",
        ),
        (["--annotations", "{}/slides/annotations", "--novel", "bone"], "there is no class 'bone'"),
        (["--annotations", "{}/slides/annotations", "--learners", "mamal"], "there is no learner 'mamal'"),
        (["--annotations", "{}/slides/annotations", "--alignment", "1"], "there is nothing to align"),
        (["--annotations", "{}/slides/annotations", "-m", "{}/meta"], "something is there already"),
    ],
)
def test_what_cannot_be_trained_is_one_clear_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], what: str
) -> None:
    placed = [word.replace("{}", str(finished)) for word in words]
    start = ["fewshot", "train", finished / "out", "--encoder", NAME, "-m", tmp_path / "new"]
    capsys.readouterr()
    microtome(*start, *QUICK, *TASKS, *placed, code=2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert what in lines[-1]
    assert not (tmp_path / "new").exists()


# Adapt ---------------------------------------------------------------------------------------------------


def test_a_few_marks_become_a_heatmap_and_the_same_marks_change_nothing(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = marks(desk, FIRST)
    adapt(desk, "--annotations", path)
    out = capsys.readouterr().out
    assert "picked" in out
    assert "cross-validation on" in out
    assert all(f"tried: {name}" in out for name in ("prototypes", "logistic", "maml"))
    model, _ = load_model(desk / "out" / "models" / "adapted")
    assert model.classes == NOVEL
    assert weights_of_scores(desk) == {FIRST: model.weights_sha256}
    heatmaps = desk / "out" / "slides" / FIRST / "heatmaps" / "adapted"
    files = {file.name: file.stat().st_mtime_ns for file in heatmaps.iterdir()}
    assert {"scores.ome.tif", "overlay-glands.png", "overlay-lymphoid.png"} <= files.keys()
    store = TileStore(Output(desk / "out"), FIRST)
    record = store.require("scores/adapted").record
    assert record["trained_on"] is True
    assert abs(sum(record["shares"].values()) - 1) < 1e-9
    assert store.uncertainty("adapted") is not None

    adapt(desk, "--annotations", path, "--json")
    facts, outcome = told(capsys)
    assert facts["picked"] == model.training["learner"]
    assert facts["why"] == model.training["why"]
    assert outcome["status"] == "already done"
    assert {file.name: file.stat().st_mtime_ns for file in heatmaps.iterdir()} == files
    microtome("verify", desk / "out", "--full")


def test_adapting_again_replaces_model_scores_and_heatmaps_and_nothing_stale_is_left(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second time one slide is not marked; what the first model said of it goes too."""
    one, other = marks(desk, FIRST), marks(desk, SECOND)
    adapt(desk, "--annotations", one, other, *AT_ONCE)
    old = weights_of_scores(desk)
    assert old.keys() == {FIRST, SECOND}
    adapt(desk, "--annotations", one, *AT_ONCE, code=2)
    assert "made of other marks" in capsys.readouterr().err
    assert weights_of_scores(desk) == old
    adapt(desk, "--annotations", one, "--overwrite", *AT_ONCE)
    model, _ = load_model(desk / "out" / "models" / "adapted")
    assert weights_of_scores(desk) == dict.fromkeys(old, model.weights_sha256)
    assert model.weights_sha256 not in old.values()
    for slide_id in old:
        drawn = json.loads((desk / "out" / "slides" / slide_id / "heatmaps/adapted/commit.json").read_text())
        now = TileStore(Output(desk / "out"), slide_id).require("scores/adapted").digest
        assert now in json.dumps(drawn["recipe"])
    microtome("verify", desk / "out", "--full")


def test_every_slide_is_scored_if_asked_for(desk: Path) -> None:
    words = [
        "adapt",
        "-o",
        desk / "out",
        "--model",
        desk / "meta",
        "--annotations",
        marks(desk, FIRST),
        *AT_ONCE,
    ]
    for more, count in (([], 1), (["--every-slide"], 8)):
        _, _, slides = adapted(cli.build_parser().parse_args([str(word) for word in [*words, *more]]))
        assert len(slides) == count


def test_only_marked_slides_are_scored_and_models_have_names(desk: Path) -> None:
    adapt(
        desk, "--annotations", marks(desk, FIRST), marks(desk, SECOND), "--name", "mine", "--learner", "maml"
    )
    assert set(weights_of_scores(desk, "mine")) == {FIRST, SECOND}
    model, _ = load_model(desk / "out" / "models" / "mine")
    assert (model.name, model.training["learner"]) == ("mine", "maml")
    assert model.training["why"].startswith("maml was asked for")


def test_a_few_labelled_slides_score_all(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = desk / "few.csv"
    table.write_text(f"slide_id,label\n{FIRST},new\n{SECOND},new\nsite0-p00-0,old\nsite1-p00-0,old\n")
    capsys.readouterr()
    words = ["adapt", "-o", desk / "out", "--model", desk / "of-slides", "--labels", table, "--json"]
    microtome(*words)
    facts, *outcomes = told(capsys)
    assert "cross-validation on 4 marked" in facts["why"]
    assert len(outcomes) == 8
    assert {one["status"] for one in outcomes} == {"done"}
    assert all(abs(sum(one["probabilities"].values()) - 1) < 1e-6 for one in outcomes)
    assert sum(one.get("trained_on", False) for one in outcomes) == 4


def test_a_class_may_be_renamed_and_a_file_named_otherwise(desk: Path) -> None:
    path = marks(desk, FIRST, suffix="-export")
    adapt(desk, "--annotations", path, "--slide", FIRST, "--rename", " glands = gland tissue ", *AT_ONCE)
    model, _ = load_model(desk / "out" / "models" / "adapted")
    assert model.classes == ("gland tissue", "lymphoid")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "nothing to learn from"),
        (["--annotations", "{marks}", "--labels", "{}/labels.csv"], "two things to learn from"),
        (["--annotations", "{}/nowhere.geojson"], "no slide 'nowhere' with tiles"),
        (["--annotations", "{marks}", "--slide", "nowhere"], "no slide 'nowhere' with tiles"),
        (["--annotations", "{marks}", "{other}", "--slide", FIRST], "--slide is for one annotation file"),
        (["--annotations", "{marks}", "{marks}"], f"a second file of slide '{FIRST}'"),
        (["--annotations", "{one}", "--slide", FIRST], "one class is marked, 'glands'"),
        (
            ["--annotations", "{marks}", "--rename", "glnads=x"],
            "no annotation is of this class. The files have",
        ),
        (["--annotations", "{marks}", "--rename", "glands"], "Give OLD=NEW"),
        (
            ["--annotations", "{marks}", "{other}", "--rename", "granulation=Glands"],
            "likely to be one, named in two",
        ),
        (["--annotations", "{marks}", "--learner", "nope"], "no learner 'nope' in this META"),
        (["--annotations", "{marks}", "--name", "../../x"], "cannot be a model's name"),
        (["--annotations", "{marks}", "--name", ""], "cannot be a model's name"),
        (["--annotations", "{marks}", "--most", "1"], "1 tiles of a class"),
        (["--annotations", "{marks}", "--threshold", "2"], "threshold"),
        (["--annotations", "{marks}", "-m", "{}/of-slides"], "was trained to judge slides, not tiles"),
        (["--annotations", "{marks}", "-m", "{}/out"], "holds no meta-trained learners"),
        (["--annotations", "{marks}", "-m", "{}/nowhere"], "no such folder"),
        (["--annotations", "{marks}", "-o", "{}/slides"], "holds no tiles"),
        (["--labels", "{}/labels.csv"], "was trained to judge tiles, not slides"),
        (["--labels", "{}/labels.csv", "--rename", "a=b"], "--rename belongs to --annotations"),
        (["--labels", "{}/labels.csv", "--slide", "a"], "--slide belongs to --annotations"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_made(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], what: str
) -> None:
    (tmp_path / "slides").symlink_to(finished / "slides")
    files = {
        "{marks}": marks(tmp_path, FIRST),
        "{other}": marks(tmp_path, SECOND, (*NOVEL, "granulation")),
        "{one}": marks(tmp_path, FIRST, NOVEL[:1], suffix="-one"),
    }
    placed = [str(files.get(word, word.replace("{}", str(finished)))) for word in words]
    capsys.readouterr()
    adapt(finished, *placed, code=2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert what in lines[-1]
    assert lines[-1].startswith("ERROR ")
    assert not (finished / "out" / "models").exists()
    assert not (finished / "out" / "slides" / FIRST / "heatmaps").exists()


def test_a_slide_without_features_is_named(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(desk / "out" / "slides" / FIRST / "store.zarr" / "features")
    adapt(desk, "--annotations", marks(desk, FIRST), code=2)
    error = capsys.readouterr().err
    assert f"slide '{FIRST}' has no features/" in error
    assert "Run 'microtome encode' first" in error


def test_two_runs_at_once_are_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = marks(finished, FIRST)
    with Output(finished / "out").lock():
        adapt(finished, "--annotations", path, code=75)
    assert "another run is writing here" in capsys.readouterr().err
    assert not (finished / "out" / "models").exists()


def test_a_damaged_model_is_set_aside_and_made_again(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = marks(desk, FIRST)
    adapt(desk, "--annotations", path, *AT_ONCE)
    before = weights_of_scores(desk)
    weights = desk / "out" / "models" / "adapted" / "member-0.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    adapt(desk, "--annotations", path, *AT_ONCE, code=2)
    assert "damaged: member-0.safetensors has other bytes" in capsys.readouterr().err
    microtome("verify", desk / "out", "--full", "--set-aside", code=1)
    adapt(desk, "--annotations", path, *AT_ONCE)
    assert weights_of_scores(desk) == before
