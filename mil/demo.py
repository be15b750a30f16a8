"""`demonstrate`: the main job on slides whose lesions are known, by the commands that a user types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mil.checkpoint import load_model
from mil.evaluation import localisation_auc
from mil.gate import CONFIRMED
from mil.study import held_out
from tiling.output import Output
from tiling.store import TileStore
from wsi.errors import MicrotomeError
from wsi.synthetic import SyntheticSlide, write_cohort
from wsi.tissue import TissueMask

Command = Callable[[Sequence[str]], int]
"""Runs one command line; returns its exit code."""

SEED = 20
SLIDES = 30
SIZE = (3072, 2304)
MODEL_NAME = "demo-model"
TRAINING = ("--epochs", "20", "--learning-rate", "0.0005")
"""Half the usual epochs, larger steps: these slides are easy, and somebody is waiting."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo measured on the slides that were held out of training."""

    held_out_slides: int
    """How many there are; half have a lesion. No member was trained, stopped or calibrated by them."""
    slide_auc: float | None
    """Of the slides' tumour probability against their label."""
    confirmed: int
    """How many of them the gate confirms; the others are for review."""
    confirmed_rightly: int
    """How many of these have the label that the model says."""
    localisation_auc: float
    """Of tile scores against the known lesion, the mean over the held-out slides with one."""
    localisation_auc_worst: float
    """The lowest of these slides."""
    attention_auc: float
    """The mean for attention instead of scores, for comparison."""


def demonstrate(folder: Path, command: Command, *, say: Callable[[str], None]) -> DemoResult:
    """Write a cohort, and take it through tile, encode, train, predict, heatmap and verify.

    Parameters
    ----------
    folder
        Where slides (``slides/``), results (``results/``) and the model go. Finished results are kept.
    command
        Runs a command line of ours.
    say
        Told each command before it runs.

    Raises
    ------
    MicrotomeError
        One of the commands failed.
    """
    slides, results = folder / "slides", folder / "results"
    model, labels = folder / MODEL_NAME, slides / "labels.csv"

    def microtome(*words: str) -> None:
        say("\n$ microtome " + " ".join(words))
        if command(words):
            raise MicrotomeError("the demo stopped: the command above failed")

    say(f"Writing {SLIDES} synthetic slides, every second with a lesion, to {slides}")
    cohort = write_cohort(slides, count=SLIDES, seed=SEED, size=SIZE)
    microtome("tile", str(slides), "-o", str(results), "--mpp", "0.5", "--tile-size", "224", "--quiet")
    microtome("encode", str(results), "--quiet")
    if not model.exists():
        microtome("train", str(results), "--labels", str(labels), "-m", str(model), *TRAINING)
    microtome("predict", str(results), "-m", str(model))
    microtome("heatmap", str(results), "-m", str(model), "--quiet")
    microtome("verify", str(results), "--full")
    return measure(Output(results), labels, model, cohort)


def measure(output: Output, labels: Path, model_folder: Path, cohort: Sequence[SyntheticSlide]) -> DemoResult:
    """Hold the committed scores against labels and lesions of the held-out slides."""
    model, _ = load_model(model_folder)
    result = held_out(output, labels, model)
    truth = {slide.path.stem: slide for slide in cohort}
    by_score, by_attention, confirmed = [], [], []
    for slide_id, label, judged in zip(result.slide_ids, result.labels, result.probabilities, strict=True):
        store = TileStore(output, slide_id)
        if store.require(f"scores/{model.name}").record["decision"]["status"] == CONFIRMED:
            confirmed.append(judged.argmax() == label)
        share = lesion_share(store, truth[slide_id])
        scores, attention = store.scores(model.name)
        found = localisation_auc(scores[:, model.classes.index("tumour")], share)
        attended = localisation_auc(attention, share)
        if found is not None and attended is not None:
            by_score.append(found)
            by_attention.append(attended)
    return DemoResult(
        held_out_slides=len(result.slide_ids),
        slide_auc=result.auc,
        confirmed=len(confirmed),
        confirmed_rightly=int(sum(confirmed)),
        localisation_auc=float(np.mean(by_score)),
        localisation_auc_worst=min(by_score),
        attention_auc=float(np.mean(by_attention)),
    )


def how_to_look(folder: Path) -> str:
    """Where the demo's files are, and what opens them."""
    slide = folder / "results" / "slides" / "synth-003"
    return f"""
What was made, for one held-out slide with a lesion ({slide}):
  tissue/outline.jpg                            the tissue that was found
  heatmaps/{MODEL_NAME}/overlay-tumour.png       scores over the slide: open it in any viewer
  heatmaps/{MODEL_NAME}/heatmap-tumour.ome.tif   the same as a pyramid: QuPath, Fiji, OpenSlide viewers
  heatmaps/{MODEL_NAME}/scores.ome.tif           the numbers, float32, a channel each
  heatmaps/{MODEL_NAME}/open-in-qupath.groovy    for QuPath: open the slide, then run this script there
  store.zarr                                    tiles, features and scores for any Zarr reader
How the model was trained: {folder / MODEL_NAME / "learning-curve.png"}
The known lesion is in {folder / "slides" / "lesions" / "synth-003.png"}"""


def lesion_share(store: TileStore, slide: SyntheticSlide) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """``(n,)``: share of each tile's footprint that lies in the known lesion."""
    mask = TissueMask(slide.lesion, slide.lesion_scale, slide.lesion_scale, mpp=slide.lesion_scale)
    width, height = store.record["tile_level0"]
    return np.asarray(mask.fraction(store.origins, width=width, height=height))
