r"""Which way to learn suits this support best: cross-validation on the few labelled bags themselves.

Each candidate learns from all folds but one and judges that one. *Groups* (the regions that tiles lie in, the
patients of slides) are kept whole where every class has two, because tiles of one region look alike: else a
bag is judged by its neighbours, and the estimate flatters every candidate. With ten groups or fewer that is
leaving one out.

The candidate with the highest balanced accuracy is taken; of equals the one with the lowest log loss under
its own temperature; of equals again the simplest. So what is taken never ends below prototypes on this
estimate. That estimate of the one that was chosen among several is itself a little too good.

The temperature is fitted to Platt's targets: the true class has :math:`(n_k + 1) / (n_k + C)`, each other one
:math:`1 / (n_k + C)`, for n_k bags of the class. Few bags that are all judged rightly would otherwise ask for
endless certainty. J. Platt, "Probabilistic Outputs for Support Vector Machines", 1999, section 2.2.

::

    n  bags of the support        C  classes
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from mil.calibration import probabilities
from mil.fewshot.methods import Method, Support
from mil.training.figures import balanced_accuracy
from wsi.errors import UsageError

MOST_FOLDS = 10
BASELINE = "prototypes"
LEAST, LARGEST = 1e-4, 1e4
"""Temperatures: a few steps from zero leave small logits, and squared distances are large ones."""

Bags = NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Folds:
    """Who judges which bag."""

    of_bag: NDArray[np.int64]
    """``(n,)`` the fold of each bag, from 0."""
    keep_groups: bool
    """Whether groups are whole."""

    def __len__(self) -> int:
        return int(self.of_bag.max()) + 1

    def __iter__(self) -> Iterator[tuple[Bags, Bags]]:
        """(bags that are learnt from, bags that are judged) of each fold."""
        for fold in range(len(self)):
            yield np.flatnonzero(self.of_bag != fold), np.flatnonzero(self.of_bag == fold)


@dataclass(frozen=True, eq=False, slots=True)
class Candidate:
    """What cross-validation says of one way to learn."""

    method: Method
    """The way."""
    logits: NDArray[np.float64]
    """``(n, C)``: of each bag, by the head that did not learn from its fold."""
    balanced_accuracy: float
    """Mean over classes of the share of their bags that are judged rightly."""
    temperature: float
    """See the module's text."""
    log_loss: float
    """Mean negative logarithm of the true class's probability, under the temperature."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The candidate that is taken, and why."""

    picked: Candidate
    candidates: tuple[Candidate, ...]
    """All, the simplest first."""
    left_out: tuple[tuple[str, str], ...]
    """Names of those that could not be tried, and why."""
    folds: Folds
    why: str
    """A sentence or two for the user."""


def make_folds(labels: NDArray[np.int64], groups: NDArray[np.int64], *, most: int = MOST_FOLDS) -> Folds:
    """Deal groups, or bags where a class has one group only, to folds; each class is in two folds at least.

    Parameters
    ----------
    labels
        ``(n,)``, two bags of each class at least.
    groups
        ``(n,)`` any numbers.

    Raises
    ------
    UsageError
        A class has one bag.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        raise UsageError(
            f"there are {counts.tolist()} bags of {len(classes)} classes: nothing can be held out",
            action="Label two of each of two classes at least",
        )
    keeps = all(len(np.unique(groups[labels == label])) > 1 for label in classes)
    if keeps:
        folds = _deal(labels, groups, most)
        if all(set(labels[folds != fold]) == set(classes) for fold in range(folds.max() + 1)):
            return Folds(folds, keep_groups=True)
    return Folds(_deal(labels, np.arange(len(labels)), most), keep_groups=False)


def _deal(labels: NDArray[np.int64], groups: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """``(n,)`` folds: groups in turn, class after class, so that those of a class are in different folds."""
    names, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    order = np.lexsort((names, labels[first]))
    fold_of_group = np.empty(len(names), np.int64)
    fold_of_group[order] = np.arange(len(names)) % min(most, len(names))
    return np.asarray(fold_of_group[inverse], np.int64)


def choose(
    methods: Sequence[Method],
    support: Support,
    groups: NDArray[np.int64],
    *,
    wanted: str | None = None,
) -> Choice:
    """Try every way by cross-validation on the support, and take one.

    Parameters
    ----------
    methods
        The simplest first; among them `BASELINE`.
    support
        All labelled bags.
    groups
        ``(n,)`` which of them belong together.
    wanted
        The name of the one that is to be taken whatever the estimate says; None for the best.

    Raises
    ------
    UsageError
        Too few bags, or what is wanted is not there or cannot be tried.
    """
    labels = support.labels.cpu().numpy()
    folds = make_folds(labels, groups)
    candidates, left_out = [], []
    for method in methods:
        try:
            candidates.append(_try(method, support, labels, folds))
        except UsageError as error:
            left_out.append((method.name, error.reason))
    best = max(candidates, key=lambda one: (round(one.balanced_accuracy, 9), -round(one.log_loss, 9)))
    picked = best if wanted is None else _named(candidates, left_out, wanted)
    why = _why(picked, candidates, folds, labels, wanted=wanted is not None)
    return Choice(picked, tuple(candidates), tuple(left_out), folds, why)


def facts(choice: Choice) -> dict[str, str]:
    """What a user is told: what was picked and why, and what each candidate would have been worth."""
    told = {"picked": choice.picked.method.name, "why": choice.why}
    for one in choice.candidates:
        told[f"tried: {one.method.name}"] = (
            f"balanced accuracy {one.balanced_accuracy:.3f}, log loss {one.log_loss:.3f}"
        )
    return told | {f"left out: {name}": reason for name, reason in choice.left_out}


def _try(method: Method, support: Support, labels: NDArray[np.int64], folds: Folds) -> Candidate:
    logits = np.empty((len(labels), support.classes))
    for alike in _alike(folds):
        supports = [some_of(support, learnt) for learnt, _ in alike]
        queries = [some_of(support, judged).bags for _, judged in alike]
        for (_, judged), found in zip(alike, method.judge(supports, queries), strict=True):
            logits[judged] = found.double().cpu().numpy()
    if not np.isfinite(logits).all():
        raise UsageError("its steps diverged on these marks", action="Use another learner")
    temperature = fit_temperature_of_few(logits, labels)
    chances = probabilities(logits, temperature)[np.arange(len(labels)), labels]
    loss = float(-np.log(np.maximum(chances, np.finfo(float).tiny)).mean())
    return Candidate(method, logits, balanced_accuracy(labels, logits), temperature, loss)


def _alike(folds: Folds) -> list[list[tuple[Bags, Bags]]]:
    """The folds, those of one size together: methods compute such tasks side by side."""
    found: dict[int, list[tuple[Bags, Bags]]] = {}
    for learnt, judged in folds:
        found.setdefault(len(judged), []).append((learnt, judged))
    return list(found.values())


def some_of(support: Support, bags: Bags) -> Support:
    """A support of some of its bags, in the order asked for."""
    packed = support.bags
    starts = np.concatenate([[0], np.cumsum(packed.sizes)])
    rows = np.concatenate([np.arange(starts[bag], starts[bag + 1]) for bag in bags])
    sizes = tuple(packed.sizes[bag] for bag in bags)
    index = torch.from_numpy(rows).to(packed.features.device)
    bag_of_row = torch.from_numpy(np.repeat(np.arange(len(bags)), sizes)).to(packed.features.device)
    some = replace(
        packed,
        features=packed.features[index],
        bag_of_row=bag_of_row,
        places=packed.places[index],
        sizes=sizes,
    )
    return Support(some, support.labels[torch.from_numpy(bags).to(support.labels.device)], support.classes)


def fit_temperature_of_few(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The temperature under which Platt's targets are likeliest; see the module's text.

    Parameters
    ----------
    logits
        ``(n, C)``, of heads that did not learn from the bag.
    labels
        ``(n,)``.
    """
    from scipy.optimize import minimize_scalar  # takes a third of a second to import

    count, classes = logits.shape
    total = np.bincount(labels, minlength=classes)[labels][:, None] + classes  # (n, 1)
    targets = (1 + (total - classes) * np.eye(classes)[labels]) / total  # (n, C)

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        logs = scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True)  # exact however sure: no plateaus
        return float(-(targets * logs).sum() / count)

    bounds = (np.log(LEAST), np.log(LARGEST))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def _named(candidates: Sequence[Candidate], left_out: Sequence[tuple[str, str]], name: str) -> Candidate:
    for candidate in candidates:
        if candidate.method.name == name:
            return candidate
    if reason := dict(left_out).get(name):
        raise UsageError(f"{name} cannot be used: {reason}", action="Leave out --learner: the best is taken")
    there = ", ".join(candidate.method.name for candidate in candidates)
    raise UsageError(f"there is no learner {name!r} in this META", action=f"Use one of {there}")


def _why(
    picked: Candidate,
    candidates: Sequence[Candidate],
    folds: Folds,
    labels: NDArray[np.int64],
    *,
    wanted: bool,
) -> str:
    base = next((one for one in candidates if one.method.name == BASELINE), picked)
    name, ours, theirs = picked.method.name, picked.balanced_accuracy, base.balanced_accuracy
    held = (
        "regions or patients kept whole"
        if folds.keep_groups
        else ("single tiles or slides left out, which flatters all of them: mark two regions of each class")
    )
    said = f"{len(folds)}-fold cross-validation on {len(labels)} marked ({held})"
    if wanted:
        words = f"{name} was asked for. By {said}, its balanced accuracy is {ours:.3f}"
        if ours < theirs:
            return f"{words}, BELOW the {theirs:.3f} of {BASELINE}: they would be the better choice"
        return f"{words}, and that of {BASELINE} {theirs:.3f}"
    if picked is base:
        return f"{name}: nothing did better by {said}; balanced accuracy {ours:.3f}"
    if ours > theirs:
        return f"{name}: highest balanced accuracy, {ours:.3f} against {theirs:.3f} of {BASELINE}, by {said}"
    return (
        f"{name}: of equal balanced accuracy with {BASELINE}, {ours:.3f}, and a lower log loss, "
        f"{picked.log_loss:.3f} against {base.log_loss:.3f}, by {said}"
    )
