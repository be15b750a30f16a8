"""An output with three small slides, cut by the real pipeline, and scores as `mil.predict` commits them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heatmaps.report.chosen import choose_model
from heatmaps.report.make import CONTENT, PAGE, report_item, report_slide
from heatmaps.report.spent import RunLogs, read_runs
from tiling.codecs import Raw
from tiling.grid import TileSpec
from tiling.manifest import SlideEntry
from tiling.output import Output
from tiling.pipeline import cut_step, survey_step
from tiling.recipe import CutRecipe
from tiling.store import TileStore, make_array
from tiling.workers.run import run_slides
from tiling.workers.unit import Orders
from wsi.slide import Slide
from wsi.synthetic import write_slide

CLASSES = ("normal", "tumour")
CALIBRATION = {
    "temperatures": [1.5, 0.75, 1.0],
    "conformal": {"alpha": 0.1, "quantiles": [0.9, None]},
    "gate_threshold": 0.8,
}
VERDICT = {
    "probabilities": {"normal": 0.03125, "tumour": 0.96875},
    "member_probabilities": {"normal": [0.01, 0.02, 0.06375], "tumour": [0.99, 0.98, 0.93625]},
    "spread": {"normal": 0.0286, "tumour": 0.0286},
    "information": 0.00123,
    "calibrated": True,
    "conformal_set": ["tumour"],
    "decision": {
        "status": "confirmed",
        "confidence": 0.96875,
        "reasons": ["confidence 0.9687 is at least 0.8"],
    },
}


def cut(output: Output, slides: dict[str, Path], *, pixels: bool = True) -> None:
    """Survey and cut slides, with a log of the run."""
    recipe = CutRecipe(TileSpec(64, 1.0), stain=None, pixels=Raw() if pixels else None, tiles_per_shard=16)
    steps = [survey_step(recipe.tissue), cut_step(recipe)]
    files = [SlideEntry(name, path) for name, path in slides.items()]
    orders = Orders(lambda: steps, lambda file: Slide(file.path))
    run_slides(output, files, orders, command=["tile", "slides"])


def score(
    store: TileStore,
    name: str = "m",
    *,
    classes: tuple[str, ...] = CLASSES,
    record: dict[str, Any] | None = None,
    seed: int = 0,
    with_uncertainty: bool = True,
    **model: Any,
) -> dict[str, np.ndarray]:
    """Commit scores as `mil.predict` does; reports know nothing of how they came about."""
    rng = np.random.default_rng([seed, len(store)])
    scores = rng.dirichlet(np.full(len(classes), 0.5), len(store))
    attention = rng.random(len(store))
    arrays = {"scores": scores, "attention": attention / attention.sum()}
    if with_uncertainty:
        arrays |= {"uncertainty": rng.random(len(store)), "disagreement": rng.random(len(store))}
    arrays = {key: values.astype(np.float32) for key, values in arrays.items()}
    said = {
        "name": name, "head": "gated_abmil", "settings": {"hidden": 8, "dropout": 0.25}, "adaptor": None,
        "classes": list(classes), "calibration": CALIBRATION, "weights_sha256": f"{seed:064x}",
    }  # fmt: skip
    recipe = {"step": "scores", "inputs": store.inputs("tiles"), "model": said | model}
    with store.output.lock():
        draft = TileStore(store.output, store.slide_id, overwrite=True).begin(f"scores/{name}", recipe)
        assert draft is not None
        for key, values in arrays.items():
            make_array(
                draft, key, shape=values.shape, rows_per_file=len(values), dtype=np.float32, fill=np.nan
            ).write_all(values)
        draft.publish(VERDICT if record is None else record)
    return arrays


@pytest.fixture(scope="session")
def slide_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("slides")
    for seed, name in enumerate(("one", "two", "three")):
        write_slide(folder / f"{name}.svs", seed=seed, lesion=seed < 2, size=(768, 512))
    return {name: folder / f"{name}.svs" for name in ("one", "two", "three")}


@pytest.fixture(scope="session")
def cut_once(tmp_path_factory: pytest.TempPathFactory, slide_files: dict[str, Path]) -> Path:
    folder = tmp_path_factory.mktemp("cut") / "out"
    cut(Output(folder), slide_files)
    return folder


@pytest.fixture
def output(tmp_path: Path, cut_once: Path) -> Output:
    """Tiles of three slides, with pixels."""
    shutil.copytree(cut_once, tmp_path / "out")
    return Output(tmp_path / "out")


@pytest.fixture
def store(output: Output) -> TileStore:
    """The first of them."""
    return TileStore(output, "one")


Reported = Callable[..., tuple[dict[str, Any], str]]


def make_report(store: TileStore, logs: RunLogs | None = None, **more: Any) -> tuple[dict[str, Any], str]:
    """A slide's report: its JSON and its page."""
    chosen = choose_model(store.output, None)
    with store.output.lock():
        report_slide(store, chosen, logs or read_runs(store.output), **more)
    folder = store.path(report_item(chosen))
    return json.loads((folder / CONTENT).read_bytes()), (folder / PAGE).read_text()


@pytest.fixture(scope="session")
def reported() -> Reported:
    return make_report


@dataclass(frozen=True)
class Seen:
    """A report that tests look at, and do not change."""

    store: TileStore
    scores: dict[str, np.ndarray]
    """Nothing where no model has scored the slide."""
    content: dict[str, Any]
    html: str
    page: Any


def _seen(cut_once: Path, folder: Path, parsed: Any, *, scored: bool) -> Seen:
    shutil.copytree(cut_once, folder / "out")
    store = TileStore(Output(folder / "out"), "one")
    scores = score(store) if scored else {}
    content, html = make_report(store)
    return Seen(store, scores, content, html, parsed(html))


@pytest.fixture(scope="session")
def scored(cut_once: Path, tmp_path_factory: pytest.TempPathFactory, parsed: Any) -> Seen:
    """Of a slide with the verdict of three members."""
    return _seen(cut_once, tmp_path_factory.mktemp("scored"), parsed, scored=True)


@pytest.fixture(scope="session")
def unscored(cut_once: Path, tmp_path_factory: pytest.TempPathFactory, parsed: Any) -> Seen:
    """Of a slide that was cut, and no more."""
    return _seen(cut_once, tmp_path_factory.mktemp("unscored"), parsed, scored=False)


@pytest.fixture(scope="session")
def scoring() -> Callable[..., dict[str, np.ndarray]]:
    return score


@pytest.fixture
def cutting() -> Callable[..., None]:
    return cut
