r"""Which method wins: paired differences over tasks, with intervals, and what may be said of them.

Over tasks: for values :math:`x_1 \ldots x_E`, one a task, the mean :math:`\pm z s / \sqrt E`, s their
standard deviation with E - 1. That is how sure a figure is *for tasks drawn from these very slides*: draw
enough tasks and it is as narrow as you please. It says nothing of other patients, for tasks share them: no
interval over tasks can.

Over patients: those who are asked about are drawn anew with replacement, each with all answers about them in
any task; percentiles of 2,000 draws (B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993,
chapter 13). Supports stay as they were drawn, so this is still a little too narrow; with few patients it is
much too narrow, and with one there is none.

A meta-learner *gains* where the interval over tasks of its difference to the best baseline lies above zero.
Of m meta-learners one is above by chance more easily than one alone: verdicts on them use the interval of
level 1 - 0.05 / m (Bonferroni). Numbers of shots are questions of their own. The best baseline is the one
with the best mean on the same tasks, which flatters it: a gain is claimed too seldom rather than too often,
a loss the other way round.

::

    M  methods        E  tasks        P  patients        R  resamples
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from mil.fewshot.evaluating import FewshotFigures
from mil.fewshot.recipe import KINDS
from wsi.errors import UsageError

PROTOTYPES = "prototypes"
BASELINES = (PROTOTYPES, "logistic", *(kind.name for kind in KINDS.values() if kind.outer is None))
"""What meta-learners have to beat, the simplest first."""
LEVEL = 0.95
RESAMPLES = 2000
_NUMBERS_AT_ONCE = 1 << 20  # weights of patients in memory: 8 MiB
Values = NDArray[np.float64]


class Verdict(Enum):
    """What may be said of a method beside the best baseline."""

    GAIN = "gain"
    """The interval of the difference lies above zero."""
    NONE = "no gain shown"
    """It holds zero."""
    LOSS = "loses"
    """It lies below zero."""
    SAME = "the same"
    """The difference is zero in every task."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, and an interval."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """Of a difference that is not zero in every task."""
        if self.low > 0:
            return Verdict.GAIN
        return Verdict.LOSS if self.high < 0 else Verdict.NONE


@dataclass(frozen=True, slots=True)
class Difference:
    """How a method differs from another on the same tasks."""

    other: str
    """Whose accuracy was taken away from the method's."""
    over_tasks: Estimate
    """With the 95 % interval over tasks."""
    corrected: Estimate
    """With the interval that verdicts rest on: wider where one of several meta-learners is judged."""
    over_patients: Estimate | None
    """With the 95 % interval over patients; None where only one was asked about."""
    verdict: Verdict
    """By `corrected`."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a method did with one number of shots."""

    method: str
    is_baseline: bool
    accuracy: Estimate
    """With the 95 % interval over tasks."""
    over_patients: Estimate | None
    """The same with that over patients."""
    log_loss: float
    """Mean over tasks."""
    diverged: int
    """Tasks with logits that are not finite."""
    to_prototypes: Difference | None
    """None for prototypes, and where they were not judged."""
    to_best: Difference | None
    """To the best baseline; None for itself."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """What may be said of all methods with one number of shots."""

    shots: int
    best_baseline: str
    standings: tuple[Standing, ...]
    """In the order of the methods."""
    winner: str | None
    """The meta-learner with the highest accuracy of those that gain; where all lose, or there is none, the
    best baseline; else None: nobody is shown to be best."""

    @property
    def learners(self) -> list[Standing]:
        """The meta-learners, the best first; of equals the simpler."""
        found = [one for one in self.standings if not one.is_baseline]
        return sorted(found, key=lambda one: (-one.accuracy.mean, _place(one.method)))


def rank(figures: FewshotFigures, *, seed: int = 0) -> tuple[Ranking, ...]:
    """What may be said, for each number of shots.

    Parameters
    ----------
    figures
        What the methods made of the tasks.
    seed
        Of the resampling of patients.

    Raises
    ------
    UsageError
        No baseline was judged: nothing to compare with.
    """
    if not set(BASELINES) & set(figures.methods):
        raise UsageError("no baseline was judged", action=f"Add one of {', '.join(BASELINES)}")
    return tuple(_rank(figures, row, seed) for row in range(len(figures.shots)))


def over_tasks(values: Values, *, level: float = LEVEL, comparisons: int = 1) -> Estimate:
    """The mean of values ``(E,)`` with its interval, of one of so many comparisons that are made at once."""
    z = NormalDist().inv_cdf(1 - (1 - level) / 2 / max(comparisons, 1))
    mean = float(values.mean())
    half = z * float(values.std(ddof=1)) / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half)


def resampled(right: NDArray[np.int64], asked: NDArray[np.int64], *, seed: int) -> Values | None:
    """``(R, M)`` accuracies over all answers, had other patients been asked about; None of one patient only.

    Parameters
    ----------
    right
        ``(M, P)`` right answers of each method about each patient.
    asked
        ``(P,)`` answers about each.
    """
    there = np.flatnonzero(asked)
    if len(there) < 2:
        return None
    rng = np.random.default_rng(seed)
    step = max(1, _NUMBERS_AT_ONCE // len(there))
    share = np.full(len(there), 1 / len(there))
    found = []
    for start in range(0, RESAMPLES, step):
        weights = rng.multinomial(len(there), share, size=min(step, RESAMPLES - start))  # (r, P)
        found.append((weights @ right[:, there].T) / (weights @ asked[there])[:, None])
    return np.concatenate(found)


def _rank(figures: FewshotFigures, row: int, seed: int) -> Ranking:
    comparing = _Comparing(figures, row, seed)
    standings = tuple(comparing.standing(name) for name in figures.methods)
    ranking = Ranking(figures.shots[row], comparing.best, standings, None)
    gaining = [one.method for one in ranking.learners if _verdict(one) is Verdict.GAIN]
    if gaining:
        return replace(ranking, winner=gaining[0])
    all_lose = all(_verdict(one) is Verdict.LOSS for one in ranking.learners)
    return replace(ranking, winner=comparing.best) if all_lose else ranking


def _verdict(standing: Standing) -> Verdict | None:
    return standing.to_best.verdict if standing.to_best else None


class _Comparing:
    """All of one number of shots."""

    def __init__(self, figures: FewshotFigures, row: int, seed: int) -> None:
        self._names = figures.methods
        self._accuracy, self._log_loss = figures.accuracy[row], figures.log_loss[row]  # (M, E)
        self._diverged = figures.diverged[row]  # (M,)
        self._resampled = resampled(figures.right[row], figures.asked[row], seed=seed)  # (R, M)
        self._learners = len(set(self._names) - set(BASELINES))
        known = [name for name in BASELINES if name in self._names]
        self.best = max(known, key=lambda name: self._accuracy[self._names.index(name)].mean())

    def standing(self, name: str) -> Standing:
        number = self._names.index(name)
        accuracy = over_tasks(self._accuracy[number])
        has_prototypes = PROTOTYPES in self._names and name != PROTOTYPES
        return Standing(
            method=name,
            is_baseline=name in BASELINES,
            accuracy=accuracy,
            over_patients=self._over_patients(accuracy.mean, number),
            log_loss=float(self._log_loss[number].mean()),
            diverged=int(self._diverged[number]),
            to_prototypes=self._difference(number, PROTOTYPES) if has_prototypes else None,
            to_best=self._difference(number, self.best) if name != self.best else None,
        )

    def _difference(self, number: int, other: str) -> Difference:
        theirs = self._names.index(other)
        values = self._accuracy[number] - self._accuracy[theirs]  # (E,)
        estimate = over_tasks(values)
        comparisons = 1 if self._names[number] in BASELINES else self._learners
        corrected = over_tasks(values, comparisons=comparisons)
        verdict = corrected.verdict if values.any() else Verdict.SAME
        patients = self._over_patients(estimate.mean, number, theirs)
        return Difference(other, estimate, corrected, patients, verdict)

    def _over_patients(self, mean: float, number: int, other: int | None = None) -> Estimate | None:
        if self._resampled is None:
            return None
        drawn = self._resampled[:, number]
        if other is not None:
            drawn = drawn - self._resampled[:, other]
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(drawn, [tail, 1 - tail]).tolist()
        return Estimate(mean, low, high)


def _place(name: str) -> tuple[int, str]:
    """The place of a method in tables, the simpler first."""
    order = [*BASELINES, *(kind for kind in KINDS if kind not in BASELINES)]
    return (order.index(name) if name in order else len(order)), name


# In words --------------------------------------------------------------------------------------------------


def in_words(ranking: Ranking) -> list[str]:
    """Sentences: who wins with this number of shots, and what else must be said."""
    of = {one.method: one for one in ranking.standings}
    best = of[ranking.best_baseline]
    others = [
        one.method
        for one in ranking.standings
        if one.is_baseline and one.to_best and one.to_best.verdict is not Verdict.LOSS
    ]
    beside = f" (not told apart from it: {_listed(others)})" if others else ""
    told = f"{best.method}, the best of the baselines with {best.accuracy.mean:.3f}{beside}"
    sentences = [_winner(ranking, told)]
    gaining = [one.method for one in ranking.learners if _verdict(one) is Verdict.GAIN]
    if gaining[1:]:
        sentences.append(f"likewise with a gain: {_listed(gaining[1:])}")
    for one in ranking.learners:
        patients = one.to_best.over_patients if one.to_best and _verdict(one) is Verdict.GAIN else None
        if patients and patients.low <= 0:
            sentences.append(
                f"the gain of {one.method} is one on these patients: had others been asked about, it might "
                f"have been none (95 % interval over patients {_ends(patients)})"
            )
    below = [
        one.method for one in ranking.standings if one.to_prototypes and one.to_prototypes.over_tasks.high < 0
    ]
    if below:
        sentences.append(f"below prototypes, which need no training at all: {_listed(below)}")
    diverged = [f"{one.method} in {one.diverged}" for one in ranking.standings if one.diverged]
    if diverged:
        sentences.append(f"tasks whose steps diverged, and whose answers count as wrong: {_listed(diverged)}")
    return sentences


def _winner(ranking: Ranking, told: str) -> str:
    learners = ranking.learners
    if not learners:
        return f"no meta-learner was judged; first is {told}"
    first = next((one for one in learners if one.method == ranking.winner), learners[0])
    assert first.to_best is not None  # the best baseline is no meta-learner
    by = f"{first.to_best.over_tasks.mean:+.3f} (95 % interval {_ends(first.to_best.over_tasks)}"
    many = f"; for {len(learners)} meta-learners at once {_ends(first.to_best.corrected)}"
    by += (many if len(learners) > 1 else "") + ")"
    if ranking.winner == first.method:
        return f"{first.method} wins with {first.accuracy.mean:.3f}: {by} against {told}"
    nearest = f"the nearest, {first.method}, has {by}"
    if ranking.winner:
        return f"{ranking.winner} wins: every meta-learner loses to {told}; {nearest}"
    if first.to_best.verdict is Verdict.SAME:
        nearest = f"the nearest, {first.method}, is exactly as right in every task"
    return f"no gain is shown: no meta-learner is better than {told}; {nearest}"


def _ends(estimate: Estimate) -> str:
    return f"{estimate.low:+.3f} to {estimate.high:+.3f}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
