"""'microtome evaluate' from training to report: by the model's own calibration, in words for people."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from imagecodecs import png_decode
from safetensors.torch import save_file

import cli
from mil.assessment import calibrate
from mil.assessment.lesions import Lesions, lesion_shares
from mil.checkpoint import load_model
from mil.encoders import untrained_encoder
from mil.predictions import read_predictions
from tiling.output import Output
from tiling.store import TileStore
from wsi.errors import UsageError
from wsi.regions import RegionFiles
from wsi.synthetic import write_cohort

NAME = "timm:test_efficientnet"
TILING = ["--mpp", "1", "--tile-size", "64", "--method", "otsu", "--min-tissue", "0.6"]
FAST = ["--resamples", "200"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve little slides, eight of them for training, and two models of three members each."""
    folder = tmp_path_factory.mktemp("desk")
    write_cohort(folder / "slides", count=12, seed=3, size=(640, 512))
    state = untrained_encoder(NAME, seed=0).module.state_dict()
    weights = folder / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, weights)
    run("tile", folder / "slides", "-o", folder / "out", *TILING)
    run("encode", folder / "out", "--encoder", NAME, "--weights", weights)
    lines = (folder / "slides" / "labels.csv").read_text().splitlines()
    new = [line for line in lines[1:] if line.endswith("test")]
    (folder / "new.csv").write_text(
        "\n".join([lines[0].removesuffix(",split"), *(line[:-5] for line in new)])
    )
    (folder / "training.csv").write_text("\n".join(line for line in lines if line not in new))
    for name, labels, seed in (("model", "training.csv", "0"), ("other", "slides/labels.csv", "1")):
        words = [
            "--labels",
            folder / labels,
            "--encoder",
            NAME,
            "--epochs",
            "4",
            "--folds",
            "3",
            "--seed",
            seed,
        ]
        run("train", folder / "out", *words, "-m", folder / name, "--alpha", "0.3", "--threshold", "0.6")
    return folder


def run(*words: object, code: int = 0) -> None:
    assert cli.main([str(word) for word in words]) == code, words


def test_what_is_evaluated_is_what_predict_says(desk: Path) -> None:
    """Temperatures and the ensemble's conformal rule are those of the model's card."""
    model, _ = load_model(desk / "model")
    assert model.calibration is not None
    fits = calibrate(read_predictions(desk / "model" / "predictions.csv"), alpha=0.3)
    assert tuple(fit.temperature for fit in fits.members) == model.calibration.temperatures
    assert fits.rule == model.calibration.conformal
    run("predict", desk / "out", "-m", desk / "model")
    words = ["--labels", desk / "new.csv", "-o", desk / "new-report", "--mc-dropout", "3", *FAST]
    run("evaluate", desk / "out", "-m", desk / "model", *words)
    rows = csv.DictReader(io.StringIO((desk / "new-report" / "slides.csv").read_text()))
    for row in rows:
        place = desk / "out" / "slides" / row["slide_id"] / "store.zarr" / "scores" / "model" / "commit.json"
        said = json.loads(place.read_bytes())["record"]
        for name, value in said["probabilities"].items():
            assert float(row[f"probability: {name}"]) == pytest.approx(value, abs=1e-6)
        assert row["conformal_set"].split("; ") == (said["conformal_set"] or [""])
        assert row["decision"] == said["decision"]["status"]
        assert row["reasons"] == "; ".join(said["decision"]["reasons"])


def test_the_terminal_shows_every_figure_with_its_n_and_machines_get_json(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    run("evaluate", "-m", desk / "other", *FAST)
    shown, _ = capsys.readouterr()
    for name in ("AUROC", "AUPRC", "balanced accuracy", "F1", "accuracy", "Brier score"):
        assert re.search(rf"^{name}(, mean over classes)? +\S.*8 slides, 8 patients", shown, re.M), name
    assert "out-of-fold test slides" in shown
    assert "external test slides" in shown
    assert "8 slides, 8 patients" in shown
    assert "4 slides, 4 patients" in shown
    assert " nan" not in shown.lower()
    assert (desk / "other-evaluation" / "external-roc.png").is_file()
    run("evaluate", "-m", desk / "other", *FAST, "--json")
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["status"] == "already done"
    assert found["settings"]["alpha"] == 0.3
    assert found["settings"]["gate"]["threshold"] == 0.6
    assert found["cohorts"]["out-of-fold test slides"]["slides"]["all"]["slides"] == 8


def test_every_option_changes_the_report(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", desk / "out", "-m", desk / "model", "-o", desk / "all", *FAST, "--json"]
    more = ["--against", desk / "other", "--explain", "--mc-dropout", "2", "--alpha", "0.2"]
    more += ["--threshold", "0.7", "--seed", "5"]
    more += ["--lesions", desk / "slides" / "lesions", "--lesion-class", "tumour"]
    capsys.readouterr()
    run(*words, *more)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    settings = found["settings"]
    assert (settings["alpha"], settings["gate"]["threshold"]) == (0.2, 0.7)
    assert settings["resampling"] == {"count": 200, "seed": 5, "level": 0.95}
    assert settings["mc_dropout"] == 2
    cohort = found["cohorts"]["out-of-fold test slides"]
    assert cohort["uncertainty"]["mc_dropout"] is not None
    assert found["against"]["cohorts"]["out-of-fold test slides"]["slides"]["all"]["slides"] == 8
    told = found["explanations"]
    assert told["verdict"]
    for method in ("attention", "single", "random"):
        assert 0 <= told["methods"][method]["localisation"]["auc"]["mean"] <= 1
    assert told["methods"]["attention"]["localisation"]["prevalence"] > 0
    run(*words, "--mc-dropout", "0", code=2)
    assert "made with another" in capsys.readouterr().err
    run(*words, "--mc-dropout", "0", "--overwrite")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["explanations"] is None


def test_the_lesion_share_of_a_tile_is_that_of_the_mask_under_it(desk: Path) -> None:
    output, folder = Output(desk / "out"), desk / "slides" / "lesions"
    ill = [f"synth-{index:03d}" for index in range(1, 12, 2)]
    found = lesion_shares(output, Lesions(RegionFiles(folder), "tumour"), ill)
    assert set(found) == set(ill)
    for slide_id, share in found.items():
        mask = png_decode((folder / f"{slide_id}.png").read_bytes()) > 0
        store = TileStore(output, slide_id)
        width, height = store.record["slide_size"]
        whole = np.kron(mask, np.ones((height // mask.shape[0], width // mask.shape[1])))
        side = int(store.record["tile_level0"][0])
        for (x, y), value in zip(store.origins, share, strict=True):
            assert value == pytest.approx(whole[y : y + side, x : x + side].mean(), abs=0.02)
    with pytest.raises(UsageError, match="no region file for any"):
        lesion_shares(output, Lesions(RegionFiles(folder), "tumour"), ["unknown"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "new.csv"], "no output was given"),
        (["--explain"], "no output was given"),
        (["out", "--lesions", "slides/lesions"], "lesions stand for a class"),
        (["out", "--lesions", "slides/lesions", "--lesion-class", "tumour"], "none were asked for"),
        (["out", "--explain", "--lesions", "slides/lesions", "--lesion-class", "x"], "there is no class 'x'"),
        (["--alpha", "1.5"], "alpha is 1.5"),
        (["--threshold", "80"], "threshold is 80"),
        (["--resamples", "5"], "5 resamples are too few"),
        (["--mc-dropout", "1"], "1 passes"),
        (["--against", "nowhere"], "there is no such model"),
        (["-o", "slides"], "something that is not a report"),
        (["out", "--labels", "training.csv"], "slides that the model learnt from: synth-"),
    ],
)
def test_wrong_settings_are_one_line_and_write_nothing(
    desk: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    before = sorted(path.name for path in desk.iterdir())
    placed = [desk / word if (desk / word).exists() or word == "nowhere" else word for word in words]
    capsys.readouterr()
    run("evaluate", "-m", desk / "model", *placed, code=2)
    _, errors = capsys.readouterr()
    assert message in errors
    assert errors.count("\n") == 1
    assert sorted(path.name for path in desk.iterdir()) == before
