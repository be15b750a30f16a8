"""The members of a study: a head a fold, and what it says of the slides that it did not learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from mil.bags import BagSource
from mil.ensemble import bag_logits
from mil.heads import Head
from mil.predictions import MemberPredictions, Part
from mil.training.fitting import Epoch, EpochReport, TrainingRecipe, fit
from mil.training.records import MemberHistory
from mil.training.splits import FoldParts, fold_parts
from mil.training.trained import Finished, Trained

MemberReport = Callable[[int, int, Epoch], None]
"""Called after each epoch with (number of the member, members in all, what is known of the epoch)."""


@dataclass(frozen=True, slots=True)
class Slides:
    """The slides of a study, opened."""

    class_count: int
    """C."""
    training: Sequence[BagSource]
    """Those that are divided into folds."""
    external: Sequence[BagSource]
    """A test set apart: no member learns from them."""


def train_members(
    slides: Slides,
    folds: NDArray[np.int64] | None,
    recipe: TrainingRecipe,
    *,
    device: torch.device | None = None,
    report: MemberReport | None = None,
    finished: Finished | None = None,
) -> list[Trained]:
    """Train a member a fold, or one of all slides, and ask each about the slides that it did not learn from.

    Parameters
    ----------
    slides
        Each with a label and a patient.
    folds
        ``(m,)`` fold of each slide for training; None for one member of all.
    recipe
        How to train each; every member has a seed of its own, drawn from this one's.
    device, report
        See `mil.training.fitting`. Nothing is reported of members that were finished before.
    finished
        Where members are kept as they are finished, and taken from instead of being trained again.
    """
    count = 1 if folds is None else int(folds.max()) + 1
    members = []
    for number in range(count):
        parts = FoldParts.without_folds(len(slides.training)) if folds is None else fold_parts(folds, number)
        # Members begin with different weights: what they agree on is less an accident of one beginning.
        seed = member_seed(recipe.seed, number)
        note = partial(report, number, count) if report else None
        member = finished.find(number) if finished else None
        if member is None:
            member = _train(number, slides, parts, replace(recipe, seed=seed), device, note)
            if finished:
                finished.keep(member)
        members.append(member)
    return members


def _train(
    number: int,
    slides: Slides,
    parts: FoldParts,
    recipe: TrainingRecipe,
    device: torch.device | None,
    report: EpochReport | None,
) -> Trained:
    epochs: list[Epoch] = []

    def note(epoch: Epoch) -> None:
        epochs.append(epoch)
        if report:
            report(epoch)

    learned, validation, test = (
        [slides.training[i] for i in chosen] for chosen in (parts.training, parts.validation, parts.test)
    )
    head = fit(
        learned,
        class_count=slides.class_count,
        recipe=recipe,
        validation=validation,
        device=device,
        report=note,
    )
    judged = ((Part.VALIDATION, validation), (Part.TEST, test), (Part.EXTERNAL, slides.external))
    predictions = tuple(_predict(head, number, part, some) for part, some in judged if some)
    return Trained(head, MemberHistory(number, tuple(epochs)), recipe.seed, predictions)


def member_seed(seed: int, number: int) -> int:
    """The seed of a member, drawn from the study's."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _predict(head: Head, member: int, part: Part, sources: Sequence[BagSource]) -> MemberPredictions:
    return MemberPredictions(
        member,
        part,
        slide_ids=tuple(source.slide_id for source in sources),
        patients=tuple(source.patient or source.slide_id for source in sources),
        labels=np.array([source.label for source in sources], np.int64),
        logits=bag_logits(head, sources),
    )
