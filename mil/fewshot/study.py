"""`train_meta`: labelled bags become a META folder of learners that adapt to a few marked ones.

Which classes are learnt from, which decide when to stop, and which nobody may see is decided first. Learners
are trained one after the other; each that is finished is kept, and a training that was stopped goes on with
those that it lacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mil.adaptors.principal import Principal
from mil.checkpoint import Judges, check_model_name
from mil.features import FeatureRecipe
from mil.fewshot.meta import CARD_FILE, Meta, curves_to_csv, keep_learner, load_learner, write_statistics
from mil.fewshot.pool import Pool
from mil.fewshot.recipe import KINDS, MetaRecipe
from mil.fewshot.report import digest
from mil.fewshot.training import Look, MetaTraining, TrainedLearner
from mil.training.records import environment_to_json
from tiling.commit import Draft, alone, begin, canonical
from wsi.durable import write_file
from wsi.errors import RecipeError, UsageError

Progress = Callable[[int, int], None]
_LEAST_CLASSES = 6  # of which a third can be kept for validation, and tasks of four be learnt from
_LOTS = 100  # of patients: a class of few of them is on both sides in one of so many, if it can be


@dataclass(frozen=True, slots=True)
class Sides:
    """What is learnt from, and what decides when to stop."""

    base: Pool
    validation: Pool
    validation_classes: tuple[str, ...]
    """Classes of the validation tasks, none of them in `base`; empty where patients are apart instead."""
    novel: tuple[str, ...] = ()
    """Classes that neither has."""


def divide(pool: Pool, *, novel: Sequence[str] = (), validation: Sequence[str] = (), seed: int = 0) -> Sides:
    """Keep classes, or patients, apart for validation.

    With six classes or more that are not novel a third of them, drawn by the seed, are for validation, unless
    they are named. With fewer a third of the patients are, drawn so that each class keeps as many on both
    sides as may be: tasks of the same classes, of people who are not learnt from.

    Where classes are apart, patients are not: one with bags of several classes is on all sides. What is
    learnt of a class can so help with another class of the same person; who is to judge that takes patients
    whom META never saw, as `mil.fewshot.unseen` does.

    Parameters
    ----------
    pool
        All labelled bags.
    novel
        Classes that are left out altogether: to judge the learners by later.
    validation
        Classes for validation.

    Raises
    ------
    UsageError
        A class that is not there, or in both; fewer than two classes on a side.
    """
    for name in (*novel, *validation):
        if name not in pool.classes:
            raise UsageError(f"there is no class {name!r}", action=f"Name some of {', '.join(pool.classes)}")
    if both := set(novel) & set(validation):
        raise UsageError(f"{sorted(both)[0]!r} is to be novel and for validation", action="Name it once")
    rng = np.random.default_rng(seed)
    known = [name for name in pool.classes if name not in novel]
    kept = list(dict.fromkeys(validation))
    if not kept and len(known) >= _LEAST_CLASSES:
        kept = sorted(rng.choice(known, size=len(known) // 3, replace=False).tolist())
    base = [name for name in known if name not in kept]
    if len(base) < 2 or len(kept) == 1:
        raise UsageError(
            f"{len(base)} classes are left to learn from and {len(kept)} for validation; each needs two",
            action="Label more classes, or keep fewer of them back",
        )
    if kept:
        return Sides(
            pool.only(classes=base), pool.only(classes=kept), tuple(sorted(kept)), tuple(sorted(novel))
        )
    learnt_from = pool.only(classes=base)
    apart, others = _two_sides(learnt_from, rng)
    sides = learnt_from.only(patients=others), learnt_from.only(patients=apart)
    return Sides(*sides, (), tuple(sorted(novel)))


def _two_sides(pool: Pool, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """A third of the patients, or as few more as it takes, and the others; each class is on both sides.

    Of many lots the one that leaves the class with the fewest patients most.
    """
    count = len(pool.patient_ids)
    has = np.zeros((len(pool.classes), count), np.bool_)  # whether a class has a bag of a patient
    has[pool.labels, pool.patients] = True
    lots = [rng.permutation(count) for _ in range(_LOTS)]
    for apart in range(max(2, count // 3), count - 1):
        least = [min(has[:, side].sum(axis=1).min() for side in np.split(lot, [apart])) for lot in lots]
        best = int(np.argmax(least))
        if least[best] > 1:  # a task has one patient of a class to learn from, and another to ask about
            names = [pool.patient_ids[number] for number in lots[best]]
            return names[:apart], names[apart:]
    raise UsageError(
        f"{len(pool.classes)} classes of {count} patients are too few to keep some patients apart for "
        "validation: each class needs two of them on either side",
        action=f"Label {_LEAST_CLASSES} classes or more, or slides of 4 patients and more of each class",
    )


def train_meta(
    sides: Sides,
    features: FeatureRecipe,
    *,
    folder: Path,
    recipe: MetaRecipe,
    inputs: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
    report: Progress | None = None,
) -> Meta:
    """Train all learners of a recipe, and publish them as a folder.

    Parameters
    ----------
    sides, features
        Labelled bags as `divide` gave them, and what their features are.
    folder
        Where they go.
    recipe
        Which learners, and how.
    inputs
        Digests of what the bags were read from: part of what decides the bytes, as the bags themselves are.
    device
        Where to train; by default the CPU.
    report
        Called after each look at the validation tasks with the steps that are done, of how many at most.

    Raises
    ------
    UsageError
        Tasks cannot be drawn; see `EpisodeSampler`. The folder's name cannot be one.
    RecipeError
        Something is there.
    OutputBusyError
        Another process trains it.
    """
    check_model_name(folder.name)
    _require_free(folder)
    training = MetaTraining(sides.base, sides.validation, recipe, device=device)
    work = folder.parent / ".work"
    decides = {
        "step": "meta",
        "recipe": recipe.as_json(),
        "classes": [list(sides.base.classes), list(sides.validation_classes), list(sides.novel)],
        "patients": [list(sides.base.patient_ids), list(sides.validation.patient_ids)],
        "bags": [digest(sides.base), digest(sides.validation)],  # labels are in no store's digest
        "inputs": dict(inputs or {}),
        "device": (device or torch.device("cpu")).type,
        "environment": json.loads(environment_to_json()),
    }
    with alone(folder, work=work):
        _require_free(folder)  # another process may have ended just now
        draft = begin(folder, decides, work=work)
        learners = [
            _learner(draft, name, training, recipe, partial(_told, report, number, recipe))
            for number, name in enumerate(name for name in KINDS if name in recipe.kinds)
        ]
        return _publish(draft, learners, sides, features=features, recipe=recipe, front=training.front)


def _require_free(folder: Path) -> None:
    if folder.exists() or folder.is_symlink():
        raise RecipeError("something is there already", path=folder, action="Choose another folder with -m")


def _learner(
    draft: Draft,
    name: str,
    training: MetaTraining,
    recipe: MetaRecipe,
    report: Callable[[Look], None],
) -> TrainedLearner:
    """A learner as the draft has it, or trained and kept there."""
    if name in draft.parts:
        return load_learner(draft.folder, name, recipe=recipe, front=training.front)
    learner = training.train(KINDS[name], report=report)
    keep_learner(draft, learner)
    return learner


def _told(report: Progress | None, number: int, recipe: MetaRecipe, look: Look) -> None:
    if report:
        report(number * recipe.iterations + look.step, len(recipe.kinds) * recipe.iterations)


def headline(meta: Meta) -> dict[str, Any]:
    """What a user is told of it."""
    told: dict[str, Any] = {
        "judges": meta.judges.value,
        "base classes": ", ".join(meta.base_classes),
        "validation": ", ".join(meta.validation_classes) or "other patients of the base classes",
    }
    accuracies = meta.training["validation_accuracy"].items()
    return told | {f"validation accuracy: {name}": round(value, 4) for name, value in accuracies}


def _publish(
    draft: Draft,
    learners: Sequence[TrainedLearner],
    sides: Sides,
    *,
    features: FeatureRecipe,
    recipe: MetaRecipe,
    front: Principal,
) -> Meta:
    write_statistics(draft, front)
    meta = Meta(
        name=draft.item.name,
        judges=Judges.TILES if sides.base.of_tiles else Judges.SLIDES,
        features=features,
        recipe=recipe,
        base_classes=sides.base.classes,
        validation_classes=sides.validation_classes,
        patients=tuple(sorted({*sides.base.patient_ids, *sides.validation.patient_ids})),
        slides=tuple(sorted({*sides.base.slide_ids, *sides.validation.slide_ids})),
        learners={
            one.method.name: draft.parts[one.method.name][f"{one.method.name}.safetensors"].sha256
            for one in learners
        },
        training={
            "base_bags": len(sides.base),
            "validation_bags": len(sides.validation),
            "sites": len(sides.base.site_ids),
            "novel_classes": list(sides.novel),
            "validation_accuracy": {one.method.name: one.accuracy for one in learners},
            "steps": {one.method.name: one.method.steps for one in learners},
        },
    )
    write_file(draft.folder / "curves.csv", curves_to_csv(learners))
    write_file(draft.folder / "environment.json", environment_to_json())
    write_file(draft.folder / CARD_FILE, canonical(meta.as_json()))
    draft.publish({})
    return meta
