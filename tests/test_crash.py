"""Killed at any moment, a run ends up as if nobody had touched it, and nobody ever sees half a result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

import cli
from mil.encoders import untrained_encoder
from wsi.synthetic import write_cohort

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Six little slides, and a model trained on some of them by the commands that a user types."""
    folder = tmp_path_factory.mktemp("study")
    write_cohort(folder / "slides", count=6, seed=3, size=(640, 512))
    slides, out, model = str(folder / "slides"), str(folder / "out"), str(folder / "model")
    encoder = ["--encoder", "timm:test_efficientnet"]
    state = untrained_encoder("timm:test_efficientnet", seed=0).module.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "weights.safetensors")
    assert cli.main(["tile", slides, "-o", out, "--mpp", "1", "--tile-size", "64"]) == 0
    assert cli.main(["encode", out, *encoder, "--weights", str(folder / "weights.safetensors")]) == 0
    labels = str(folder / "slides" / "labels.csv")
    assert (
        cli.main(["train", out, *encoder, "--labels", labels, "-m", model, "--epochs", "2", "--folds", "0"])
        == 0
    )
    two = folder / "two"
    two.mkdir()
    for name in ("synth-000.svs", "synth-001.svs"):
        os.link(folder / "slides" / name, two / name)
    return two, folder / "model", folder / "weights.safetensors"


def test_no_kill_changes_a_byte_or_shows_half_a_result(
    small_study: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    slides, model, weights = small_study
    labelled, randomly = 10, 4
    words = [str(slides), str(model), str(weights), str(tmp_path), str(labelled), str(randomly), "7"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "crash_driver.py"), *words],
        cwd=ROOT,
        # One thread: on tiny networks a second one only waits for the first.
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["unequal"] == []
    assert result["unreadable"] == []
    assert result["kills"] >= 10
    assert {"part-written", "part-finished", "before-publish", "after-rename"} <= set(result["labels"])
    assert result["files"] > 40
