"""`explain_bags`: explain a cohort by several methods, and measure how true each explanation is."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mil.bags import Bag, BagSource, each_alone
from mil.ensemble import in_eval_mode
from mil.evaluation import LESION_SHARE
from mil.evaluation.metrics import auroc_of, average_precision_of
from mil.explain.attribution import Scores
from mil.explain.estimate import Estimate, estimate_mean
from mil.explain.judge import Judge, Voice, probabilities, voices
from mil.explain.methods import METHODS, explain
from mil.explain.removal import SHARES, RemovalCurves, removal_curves
from mil.explain.report import ExplanationReport, Localisation, MethodResult
from mil.explain.settings import Effort, Sample
from wsi.errors import UsageError

COMPARED = ("attention", "random")
"""What every method is held against."""
USUAL = (
    "attention",
    "single",
    "contribution",
    "gradient_times_input",
    "integrated_gradients",
    "shapley",
    "random",
)
"""All of `METHODS` but those whose cost grows with the square of the tiles."""

CaseReport = Callable[[int, int], None]
"""Called at first and after each slide with (slides done, slides in all)."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A slide, who judges it, and what of that is to be explained."""

    model: Judge
    """A head or an ensemble, best one that did not learn from this slide."""
    bag: BagSource
    """The slide's n tiles."""
    class_index: int | None = None
    """The class whose probability is explained; None for the one that the model finds most probable."""
    lesion_share: NDArray[np.floating[Any]] | None = None
    """``(n,)``: share of each tile that shows what `class_index` names, where that is known."""

    def __post_init__(self) -> None:
        if self.lesion_share is None:
            return
        if self.class_index is None:
            raise ValueError("a known lesion stands for a class: give class_index too")
        if self.lesion_share.shape != (len(self.bag),):
            raise ValueError(f"{len(self.bag)} tiles and lesion shares of shape {self.lesion_share.shape}")


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    """A case that is explained, in memory."""

    model: Judge
    bag: Bag
    class_index: int
    lesion_share: NDArray[np.floating[Any]] | None
    cut: bool


def explain_bags(
    cases: Sequence[Case],
    *,
    classes: Sequence[str],
    methods: Sequence[str] | None = None,
    effort: Effort | None = None,
    sample: Sample | None = None,
    report: CaseReport | None = None,
) -> ExplanationReport:
    """Explain slides by several methods, and measure how far each explanation is true of the model.

    Parameters
    ----------
    cases
        The slides. A cross-validated one is given with the member that was tested on it.
    classes
        Names of the classes, in the order of the logits.
    methods
        Names of `METHODS`; None for those of `USUAL` that the heads can give. `COMPARED` are always added.
    effort, sample
        How finely each slide is explained, and how many slides and tiles.
    report
        Called at first and after each slide.

    Raises
    ------
    UsageError
        No slides, or only such of one tile; no such method, or one that these heads cannot give; features
        that do not fit the model.
    """
    effort, sample = effort or Effort(), affordable(cases, sample or Sample())
    chosen, one_tile = _choose(cases, sample)
    names = _methods(methods, [case.model for case in chosen])
    gains: dict[str, list[float]] = {name: [] for name in names}
    curves: dict[str, list[RemovalCurves]] = {name: [] for name in names}
    found: dict[str, list[tuple[float, float] | None]] = {name: [] for name in names}
    if report:
        report(0, len(chosen))
    for done, case in enumerate(chosen, start=1):
        for name in names:
            scores = explain(case.model, case.bag, case.class_index, method=name, effort=effort)
            curve = removal_curves(case.model, case.bag, scores, case.class_index)
            curves[name].append(curve)
            gains[name].append(curve.gain)
            found[name].append(_found(scores, case.lesion_share))
        if report:
            report(done, len(chosen))
    tally = _Tally(chosen, tuple(classes), sample, {name: np.array(gains[name]) for name in names})
    results = [tally.result(name, curves[name], found[name]) for name in names]
    return ExplanationReport(
        offered=len(cases),
        slide_ids=tuple(case.bag.slide_id for case in chosen),
        one_tile=one_tile,
        cut=sum(case.cut for case in chosen),
        shares=SHARES,
        methods=tuple(sorted(results, key=lambda result: -result.gain.mean)),
        effort=effort,
        sample=sample,
    )


# What is explained ------------------------------------------------------------------------------------------


def affordable(cases: Sequence[Case], sample: Sample) -> Sample:
    """The same sample with no more slides than may be judged with so many operations; see `Sample`."""
    if not cases:
        return sample
    first, tiles = cases[0].model, min(sample.tiles, max(len(case.bag) for case in cases))
    each = sum(_operations(voice, tiles) for voice in voices(first, 0))
    slides = max(sample.fewest, sample.operations // max(1, each))
    return replace(sample, slides=min(sample.slides, slides))


@torch.inference_mode()
def _operations(voice: Voice, tiles: int) -> int:
    """Floating-point operations of judging a bag of so many tiles: of its matrix products, that is."""
    from torch.utils.flop_counter import FlopCounterMode  # takes a third of a second to import

    side = math.isqrt(tiles - 1) + 1
    places = np.stack(np.divmod(np.arange(tiles), side), axis=1).astype(np.int32)
    bag = voice.pack(Bag("", np.zeros((tiles, voice.head.dim), np.float32), places))
    with in_eval_mode(voice.head), FlopCounterMode(display=False) as counter:
        voice.head(bag)
    return int(counter.get_total_flops())


def _choose(cases: Sequence[Case], sample: Sample) -> tuple[list[_Chosen], tuple[str, ...]]:
    """Draw slides, as evenly over the explained classes as these allow, and tiles of the large ones."""
    if not cases:
        raise UsageError("there are no slides to explain", action="Give at least one that was not trained on")
    order = np.random.default_rng(sample.seed).permutation(len(cases)).tolist()
    fixed = len(cases) <= sample.slides or any(case.class_index is None for case in cases)
    if not fixed:
        order = _in_turns(order, [case.class_index or 0 for case in cases])
    drawn = [cases[index] for index in sorted(order[: sample.slides])]
    one_tile = tuple(case.bag.slide_id for case in drawn if len(case.bag) < 2)
    chosen = [_read(case, sample) for case in drawn if len(case.bag) > 1]
    if not chosen:
        raise UsageError(
            "no slide has two tiles, and of one tile nothing can be taken away",
            action="Cut smaller tiles, or give other slides",
        )
    return chosen, one_tile


def _in_turns(order: list[int], class_of: Sequence[int]) -> list[int]:
    """The same slides, one of each class after the other for as long as there are some."""
    turn, seen = {}, dict.fromkeys(class_of, 0)
    for index in order:
        turn[index] = seen[class_of[index]]
        seen[class_of[index]] += 1
    return sorted(order, key=turn.__getitem__)  # stable: within a turn as drawn


def _read(case: Case, sample: Sample) -> _Chosen:
    """A case in memory, of at most so many tiles. The class is the model's own where none is asked for."""
    rows, cut = np.arange(len(case.bag)), len(case.bag) > sample.tiles
    if cut:
        rng = np.random.default_rng([sample.seed, zlib.crc32(case.bag.slide_id.encode())])
        rows = np.sort(rng.choice(rows, sample.tiles, replace=False))
    bag = case.bag.read(rows if cut else None)
    class_index = case.class_index
    if class_index is None:
        class_index = int(probabilities(case.model, bag, [torch.arange(len(bag))])[0].argmax())
    share = None if case.lesion_share is None else case.lesion_share[rows]
    return _Chosen(case.model, bag, class_index, share, cut)


def _methods(asked: Sequence[str] | None, models: Sequence[Judge]) -> tuple[str, ...]:
    """The methods to try, in the order of `METHODS`."""
    if unknown := [name for name in asked or () if name not in METHODS]:
        raise UsageError(
            f"there is no explanation {unknown[0]!r}", action=f"Use one of {', '.join(sorted(METHODS))}"
        )
    wanted = set(USUAL if asked is None else asked) | set(COMPARED)
    if asked is None:
        heads = {voice.head for model in models for voice in voices(model, 0)}
        if not all(_is_sum(Voice(head, 0)) for head in heads):
            wanted.discard("contribution")
    return tuple(name for name in METHODS if name in wanted)


@torch.inference_mode()
def _is_sum(voice: Voice) -> bool:
    """Whether a head says what each tile adds."""
    device = next(voice.head.parameters()).device
    with in_eval_mode(voice.head):
        output = voice.head(each_alone(torch.zeros((1, voice.head.dim), device=device)))
    return output.contributions is not None


# What is found ----------------------------------------------------------------------------------------------


def _found(scores: Scores, lesion_share: NDArray[np.floating[Any]] | None) -> tuple[float, float] | None:
    """AUC and average precision of finding a lesion; None without one, or without anything else."""
    if lesion_share is None:
        return None
    lesion, sure = _lesion(lesion_share)
    truth, values = lesion[sure], scores[sure]
    if truth.all() or not truth.any():
        return None
    ones = np.ones((1, len(truth)))
    return float(auroc_of(truth, values, ones)[0]), float(average_precision_of(truth, values, ones)[0])


def _lesion(share: NDArray[np.floating[Any]]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which tiles are lesion, and of which that is sure; as in `mil.evaluation.localisation_auc`."""
    lesion = share >= LESION_SHARE
    return lesion, lesion | (share == 0)


@dataclass(frozen=True, slots=True, eq=False)
class _Tally:
    """Means over the slides that were explained."""

    chosen: Sequence[_Chosen]
    classes: tuple[str, ...]
    sample: Sample
    gains: dict[str, NDArray[np.float64]]

    def result(
        self, name: str, curves: Sequence[RemovalCurves], found: Sequence[tuple[float, float] | None]
    ) -> MethodResult:
        gain, explained = self.gains[name], np.array([case.class_index for case in self.chosen])
        at = np.array([curve.at(np.array(SHARES)) for curve in curves]).mean(axis=0)  # (2, shares)
        return MethodResult(
            name=name,
            gain=self._mean(gain),
            over_random=self._mean(gain - self.gains["random"]),
            over_attention=self._mean(gain - self.gains["attention"]),
            gain_by_class={
                self.classes[index]: float(gain[explained == index].mean()) for index in np.unique(explained)
            },
            insertion=tuple(at[0].tolist()),
            deletion=tuple(at[1].tolist()),
            localisation=self._localisation(found),
        )

    def _localisation(self, found: Sequence[tuple[float, float] | None]) -> Localisation | None:
        where = [index for index, value in enumerate(found) if value is not None]
        if not where:
            return None
        auc, precision = np.array([value for value in found if value is not None]).T
        share = []
        for index in where:
            known = self.chosen[index].lesion_share
            assert known is not None
            lesion, sure = _lesion(known)
            share.append(lesion[sure].mean())
        return Localisation(self._mean(auc, where), self._mean(precision, where), float(np.mean(share)))

    def _mean(self, values: NDArray[np.float64], where: Sequence[int] | None = None) -> Estimate:
        cases = [self.chosen[index] for index in (range(len(self.chosen)) if where is None else where)]
        patients = [case.bag.patient or case.bag.slide_id for case in cases]
        return estimate_mean(values, patients, resamples=self.sample.resamples, seed=self.sample.seed)
