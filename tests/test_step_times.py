"""The log of a run tells how long each step took; the results do not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mil.device import Precision
from mil.encoders import untrained_encoder
from mil.steps import Encoding, encode_steps
from tiling.grid import TileSpec
from tiling.manifest import SlideEntry
from tiling.output import Output
from tiling.pipeline import Step, cut_step, survey_step
from tiling.recipe import CutRecipe
from tiling.workers.run import run_slides
from tiling.workers.unit import Orders
from wsi.slide import Slide
from wsi.synthetic import write_slide


def run(output: Output, slide: Path) -> list[dict[str, object]]:
    """Tissue, tiles and features, and what the log then says of the steps."""
    recipe = CutRecipe(TileSpec(64, 1.0), tiles_per_shard=16)
    encoding = Encoding.by(untrained_encoder("timm:test_vit", seed=0), precision=Precision.FP32)
    steps: list[Step] = [survey_step(recipe.tissue), cut_step(recipe), *encode_steps(encoding)]
    orders = Orders(lambda: steps, lambda file: Slide(file.path))
    run_slides(output, [SlideEntry(slide.stem, slide)], orders, command=["run"])
    log = json.loads(sorted((output.root / "runs").glob("*.json"))[-1].read_bytes())
    return list(log["slides"][0]["steps"])


def test_each_step_is_timed_and_what_was_there_says_so(tmp_path: Path) -> None:
    write_slide(tmp_path / "s.svs", seed=0, lesion=False, size=(768, 512))
    output = Output(tmp_path / "out")
    tissue, tiles, features = run(output, tmp_path / "s.svs")
    assert [tissue["step"], tiles["step"]] == ["tissue", "tiles"]
    assert str(features["step"]).startswith("features/")
    for step, activities in (
        (tissue, {"read", "decode"}),
        (tiles, {"read", "decode", "quality", "stain", "compress", "write"}),
        (features, {"wait for tiles", "encode", "write"}),
    ):
        assert step["made"]
        assert activities <= step["activities"].keys()  # type: ignore[attr-defined]
        assert all(seconds >= 0 for seconds in step["activities"].values())  # type: ignore[attr-defined]
        assert float(step["seconds"]) > 0  # type: ignore[arg-type]
    again = run(output, tmp_path / "s.svs")
    assert not any(step["made"] for step in again)


def test_steps_that_one_thread_does_take_no_less_than_their_parts(tmp_path: Path) -> None:
    write_slide(tmp_path / "s.svs", seed=0, lesion=False, size=(768, 512))
    tissue, *_, features = run(Output(tmp_path / "out"), tmp_path / "s.svs")
    for step in (tissue, features):
        parts = np.sum(list(step["activities"].values()))  # type: ignore[attr-defined]
        assert parts <= float(step["seconds"]) + 0.01  # type: ignore[arg-type]
