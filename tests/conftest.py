"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real slides and data, or a skip that says how to get it."""
    folder = Path(os.environ.get("MICROTOME_DATA", ROOT.parent / "shared"))
    if not (folder / "slides").is_dir():
        pytest.skip(f"no real slides: set MICROTOME_DATA to a folder that holds slides/ (looked in {folder})")
    return folder


class SmallRun(NamedTuple):
    """What `microtome run` needs, as small as it goes."""

    slides: Path
    """Folder of two slides, of eight tiles each."""
    model: Path
    """Folder of a model of two classes that was never trained: here its bytes matter, not what it says."""
    weights: Path
    """Of its encoder."""

    def words(self, out: Path, *more: str) -> list[str]:
        """The command, with results in `out`."""
        words = ["run", str(self.slides), "-m", str(self.model), "--weights", str(self.weights)]
        return [*words, "-o", str(out), "--device", "cpu", *more]


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """Two slides and a model, made in a second: what the tests of faults run again and again."""
    import torch
    from safetensors.torch import save_file

    from mil.checkpoint import describe, save_model
    from mil.encoders import load_encoder, untrained_encoder
    from mil.features import FeatureRecipe
    from mil.heads import build_head
    from tiling.grid import TileSpec
    from tiling.recipe import CutRecipe
    from wsi.synthetic import write_slide

    folder = tmp_path_factory.mktemp("small-run")
    run = SmallRun(folder / "slides", folder / "model", folder / "weights.safetensors")
    run.slides.mkdir()
    for seed in (2, 4):
        write_slide(run.slides / f"s{seed}.svs", seed=seed, lesion=False, size=(512, 384))
    state = untrained_encoder("timm:test_efficientnet", seed=0).module.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, run.weights)
    encoder = load_encoder("timm:test_efficientnet", weights=run.weights)
    settings = CutRecipe(spec=TileSpec(size_px=64, mpp=1.0)).settings()
    features = FeatureRecipe.from_json({**settings, "encoder": encoder.identity()})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = build_head("gated_abmil", dim=features.dim, classes=2, settings={"hidden": 16, "attention": 8})
    save_model(run.model, head, describe(head, name="model", classes=("no", "yes"), features=features))
    return run
