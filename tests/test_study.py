"""A whole study by commands: what is out of date, or by another model, is never taken for current."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

import cli
from mil.calibration import probabilities
from mil.checkpoint import Model, load_model
from mil.encoders import untrained_encoder
from mil.predictions import Part, read_predictions
from mil.study import held_out
from tiling.output import Output
from tiling.store import TileStore
from wsi.errors import RecipeError, UsageError
from wsi.synthetic import write_cohort

NAME = "timm:test_efficientnet"
TILING = ["--mpp", "1", "--tile-size", "64", "--method", "otsu", "--min-tissue", "0.6"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight little slides, tiled, encoded by a tiny network, and scored by a model trained on some."""
    tmp_path = tmp_path_factory.mktemp("finished")
    write_cohort(tmp_path / "slides", count=8, seed=3, size=(640, 512))
    for seed in (0, 1):
        state = untrained_encoder(NAME, seed=seed).module.state_dict()
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        save_file(tensors, tmp_path / f"weights-{seed}.safetensors")
    microtome(tmp_path, "tile", "slides", "-o", "out", *TILING)
    microtome(tmp_path, "encode", "out", "--encoder", NAME, "--weights", "weights-0.safetensors")
    train(tmp_path, "model", seed=0)
    microtome(tmp_path, "predict", "out", "-m", "model")
    microtome(tmp_path, "heatmap", "out", "-m", "model")
    return tmp_path


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path, dirs_exist_ok=True))


def microtome(folder: Path, *words: str, code: int = 0) -> None:
    paths = {"slides", "out", "model", "again", "weights-0.safetensors", "weights-1.safetensors"}
    placed = [str(folder / word) if word in paths or word.startswith("other/") else word for word in words]
    assert cli.main(placed) == code, words


def train(folder: Path, model: str, *, seed: int) -> None:
    labels = str(folder / "slides" / "labels.csv")
    words = ["--encoder", NAME, "--labels", labels, "--epochs", "1", "--seed", str(seed), "--folds", "3"]
    microtome(folder, "train", "out", *words, "-m", model)


def temperatures(model: Model) -> tuple[float, ...]:
    assert model.calibration is not None
    return model.calibration.temperatures


def test_held_out_figures_are_of_this_model_and_these_tiles(study: Path) -> None:
    labels, output = study / "slides" / "labels.csv", Output(study / "out")
    model, _ = load_model(study / "model")
    result = held_out(output, labels, model)
    external = read_predictions(study / "model" / "predictions.csv").of(Part.EXTERNAL)
    assert result.slide_ids == external[0].slide_ids
    assert result.slide_ids == tuple(model.training["external_slides"])
    said = [probabilities(entry.logits, t) for entry, t in zip(external, temperatures(model), strict=True)]
    np.testing.assert_allclose(result.probabilities, np.mean(said, axis=0), rtol=1e-12)
    assert set(result.slide_ids).isdisjoint(model.training["slides"])
    assert np.allclose(result.probabilities.sum(axis=1), 1, atol=1e-5)

    (study / "other").mkdir()
    train(study, "other/model", seed=1)
    namesake, _ = load_model(study / "other" / "model")
    with pytest.raises(RecipeError, match="by another model of the name 'model'"):
        held_out(output, labels, namesake)
    microtome(study, "heatmap", "out", "-m", "other/model", code=2)
    microtome(study, "predict", "out", "-m", "other/model", code=2)

    microtome(study, "tile", "slides", "-o", "out", *TILING, "--stain", "none", "--overwrite")
    with pytest.raises(RecipeError, match="computed from other tiles"):
        held_out(output, labels, model)
    microtome(study, "heatmap", "out", "-m", "model", code=2)


def test_a_thumbnail_at_another_scale_is_not_put_under_the_scores(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    microtome(study, "tissue", "slides", "-o", "out", "--mpp-override", "0.6", "--overwrite")
    microtome(study, "heatmap", "out", "-m", "model", "--overwrite", code=2)
    assert "is of another resolution than its tiles" in capsys.readouterr().err


def test_run_cuts_as_the_training_slides_were_cut_and_gives_their_scores(study: Path) -> None:
    two = ("synth-000", "synth-001")
    files = [str(study / "slides" / f"{slide_id}.svs") for slide_id in two]
    microtome(study, "run", *files, "-m", "model", "-o", "again", "--weights", "weights-0.safetensors")
    for slide_id in two:
        one, two = (TileStore(Output(study / name), slide_id) for name in ("out", "again"))
        assert one.tiles.recipe == two.tiles.recipe
        assert (one.scores("model")[0] == two.scores("model")[0]).all()
        found = {p.name for p in (two.folder / "heatmaps" / "model").iterdir()}
        assert {
            "overlay-normal.png",
            "overlay-tumour.png",
            "heatmap-tumour.ome.tif",
            "scores.ome.tif",
        } <= found


def test_other_weights_are_refused_before_anything_is_cut(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "slides", "-m", "model", "-o", "again", "--weights", "weights-1.safetensors"]
    microtome(study, *words, code=2)
    assert "is not the one that the model was trained with" in capsys.readouterr().err
    assert not (study / "again" / "slides").exists()


def test_one_damaged_slide_does_not_end_the_batch(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study / "out" / "slides" / "synth-000" / "tissue" / "mask.png").unlink()
    capsys.readouterr()
    microtome(study, "heatmap", "out", "-m", "model", "--json", code=1)
    outcomes = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [o["status"] for o in outcomes] == ["failed"] + ["already done"] * 7


def test_held_out_slides_that_were_trained_on_are_refused(study: Path) -> None:
    labels = study / "slides" / "labels.csv"
    model, _ = load_model(study / "model")
    text = labels.read_text()
    swapped = text.replace("train", "?").replace("test", "train").replace("?", "test")
    labels.write_text(swapped)
    with pytest.raises(UsageError, match="were trained on"):
        held_out(Output(study / "out"), labels, model)
