"""What a study leaves beside its weights, as the bytes of small files that people and programs read.

::

    splits.csv            each slide's patient, label and fold
    history.csv           each member's losses and figures, epoch by epoch
    metrics.json          `study_figures`
    environment.json      versions of what computed it; no clock, machine or path
"""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mil.calibration import probabilities
from mil.labels import LabelTable, Split
from mil.predictions import MemberPredictions, Part, Predictions
from mil.training.figures import balanced_accuracy, macro_auroc
from mil.training.fitting import Epoch
from tiling.commit import canonical
from tiling.versions import versions

_DECIDING = ("torch", "scikit-learn", "scipy", "safetensors", "timm", "matplotlib")


@dataclass(frozen=True, slots=True)
class MemberHistory:
    """How one member came about."""

    member: int
    """Its number; that of the fold that it is tested on."""
    epochs: tuple[Epoch, ...]
    """All that were trained."""

    @property
    def kept(self) -> Epoch:
        """The epoch whose weights it has."""
        return [epoch for epoch in self.epochs if epoch.best][-1]


def splits_to_csv(table: LabelTable, predictions: Predictions) -> bytes:
    """A line a slide: the fold is that of the member who is tested on it; blank where nobody is."""
    fold_of = {slide: entry.member for entry in predictions.of(Part.TEST) for slide in entry.slide_ids}
    rows = [
        (row.slide_id, row.patient or row.slide_id, row.label, side.value, fold_of.get(row.slide_id, ""))
        for side in Split
        for row in table.of(side)
    ]
    return table_bytes(("slide_id", "patient", "label", "split", "fold"), rows)


def history_to_csv(histories: Sequence[MemberHistory]) -> bytes:
    """A line an epoch of each member; ``kept`` is 1 for the one whose weights the member has."""
    rows = []
    for history in histories:
        for epoch in history.epochs:
            figures = epoch.validation
            judged = (figures.loss, figures.auroc, figures.balanced_accuracy) if figures else (None,) * 3
            numbers = (epoch.learning_rate, epoch.training_loss, *judged)
            shown = ("" if number is None else repr(number) for number in numbers)
            rows.append((history.member, epoch.number, *shown, int(epoch is history.kept)))
    names = ("learning_rate", "training_loss", "validation_loss", "validation_auroc")
    return table_bytes(("member", "epoch", *names, "validation_balanced_accuracy", "kept"), rows)


def environment_to_json() -> bytes:
    """Versions of Python and of the packages that decide numbers, and the threads that torch sums with."""
    content = {
        "python": platform.python_version(),
        "packages": versions(*_DECIDING),
        "torch_threads": torch.get_num_threads(),
    }
    return canonical(content)


def study_figures(predictions: Predictions, temperatures: Sequence[float]) -> dict[str, Any]:
    """AUROC and balanced accuracy out of fold and on the external test set; null where there is none.

    Out of fold each member is judged by its own test slides: ``folds`` has a figure a member, ``mean`` is the
    mean of those that exist (there is no AUROC of slides of one class). On external slides the ensemble is
    judged. Intervals are `microtome evaluate`'s.
    """
    return {
        "out_of_fold": _over_folds(predictions.of(Part.TEST), temperatures),
        "external": _of_ensemble(predictions.of(Part.EXTERNAL), temperatures),
    }


def headline(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """The means of `study_figures`, by names such as ``out_of_fold_auroc``; no part without slides."""
    said: dict[str, float | None] = {}
    for part, found in figures.items():
        for name in ("auroc", "balanced_accuracy") if found else ():
            value = found[name]
            said[f"{part}_{name}"] = value["mean"] if isinstance(value, Mapping) else value
    return said


def _over_folds(entries: Sequence[MemberPredictions], temperatures: Sequence[float]) -> dict[str, Any] | None:
    if not entries:
        return None
    judged = [(entry.labels, probabilities(entry.logits, temperatures[entry.member])) for entry in entries]
    each: dict[str, list[float | None]] = {
        "auroc": [macro_auroc(*one) for one in judged],
        "balanced_accuracy": [balanced_accuracy(*one) for one in judged],
    }
    slides = sum(len(entry.labels) for entry in entries)
    return {"slides": slides} | {n: {"mean": _mean(f), "folds": f} for n, f in each.items()}


def _of_ensemble(
    entries: Sequence[MemberPredictions], temperatures: Sequence[float]
) -> dict[str, Any] | None:
    if not entries:
        return None
    each = [probabilities(entry.logits, temperatures[entry.member]) for entry in entries]
    labels, together = entries[0].labels, np.mean(each, axis=0)
    return {
        "slides": len(labels),
        "auroc": macro_auroc(labels, together),
        "balanced_accuracy": balanced_accuracy(labels, together),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def table_bytes(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A table as bytes: UTF-8, a line a row, ends of one kind on every machine."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()
