"""A study: labelled slides become a model, and what it says of other slides is held against their labels.

With k folds k heads are trained; see `mil.training.splits` for who learns from what. What each says of its
own test slides is the study's honest figure; together they are the ensemble that judges new slides. Beside
card and weights (see `mil.checkpoint`) the model's folder holds::

    labels.csv            the table as it was read
    predictions.csv       logits of every member for slides it did not learn from; see `mil.predictions`
    learning-curve.png    `mil.training.curves`
    splits.csv, history.csv, metrics.json, environment.json: `mil.training.records`

A model is published whole or not at all; a study that was stopped goes on with the members that it lacks, see
`mil.training.trained`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mil.arguments import training_options
from mil.assessment.calibrating import calibrate
from mil.calibration import why_not_fitted
from mil.checkpoint import Calibration, Judges, Model, check_model_folder, describe, save_model
from mil.conformal import ConformalRule
from mil.encoder import folder_name
from mil.ensemble import Ensemble
from mil.features import BUDGET_BYTES, FeatureRecipe, common_recipe, feature_items
from mil.gate import Gate
from mil.heads import Head, build_head
from mil.labels import LabelTable, SlideLabel, Split, labels_to_csv, read_labels
from mil.predictions import Part, Predictions, predictions_to_csv
from mil.training import TrainingRecipe
from mil.training.curves import draw_learning_curve
from mil.training.figures import macro_auroc
from mil.training.members import MemberReport, Slides, train_members
from mil.training.records import environment_to_json, history_to_csv, splits_to_csv, study_figures
from mil.training.sources import Stores, open_slides, require_slides
from mil.training.splits import assign_folds, check_fold_count, check_folds
from mil.training.trained import Finished, Trained
from tiling.commit import alone, begin, canonical
from tiling.output import Output
from tiling.store import TileStore, scores_by
from wsi.errors import UsageError

FOLDS = 5
"""Folds where neither the recipe nor the table says how many."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StudyRecipe:
    """What is trained on which features, and what is held out.

    Raises
    ------
    UsageError
        A number of folds that are too few, or an `alpha` that is none.
    """

    encoder: str
    """Name of the encoder whose features are used."""
    contexts: tuple[float, ...] = ()
    """Coarser microns per pixel whose features are joined to those of each tile."""
    folds: int | None = None
    """Folds; 0 for one head of all slides, without held-out figures. None: as many as the table has, or
    `FOLDS`."""
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    """How each head is trained; its seed also decides the folds."""
    alpha: float = 0.1
    """Share of slides whose conformal set may miss the true class."""
    gate: Gate = field(default_factory=Gate)
    """How sure a model must be of a slide that nobody looks at."""

    def __post_init__(self) -> None:
        ConformalRule(self.alpha, (0.0,))  # refuses an alpha that is none
        if self.folds:
            check_fold_count(self.folds)


def train_model(
    stores: Stores,
    labels: Path,
    *,
    recipe: StudyRecipe,
    folder: Path,
    device: torch.device | None = None,
    memory_bytes: int = BUDGET_BYTES,
    report: MemberReport | None = None,
) -> Model:
    """Train heads on the slides that a label table gives for training, and publish the model as a folder.

    A study that was stopped goes on: members that it finished are not trained again unless something changed
    that decides their bytes. Until the model is published they are in ``.work`` beside `folder`.

    Parameters
    ----------
    stores
        The slides that there are; see `mil.training.sources.find_stores`. Those that the table does not name
        are counted in the card, and left out.
    labels
        See `mil.labels.read_labels`. Slides with split ``test`` are judged by all members in the
        end, and seen by none before.
    recipe
        What to train.
    folder
        Where the model goes; its last part becomes the model's name.
    device
        Where to train; by default the CPU.
    memory_bytes
        Features that are kept in memory; others are read in each epoch. It changes no result.
    report
        Called after each epoch of the members that are trained now.

    Raises
    ------
    UsageError
        The table is unsound, or slides in it have no such features; all of them are named at once. Two
        slides were not made alike. A class has too few patients. The folder is no place for a model, or
        something is there already. All this before any training.
    OutputBusyError
        Another process trains this model.
    """
    check_model_folder(folder)
    table = read_labels(labels)
    key = folder_name(recipe.encoder)
    require_slides(stores, table, items=feature_items(key, recipe.contexts))
    folds = _folds(table, recipe)
    rows, tested = table.of(Split.TRAIN), table.of(Split.TEST)
    features = common_recipe([stores[r.slide_id] for r in (*rows, *tested)], key, contexts=recipe.contexts)
    build = partial(_build, recipe.training, features, len(table.classes))
    build()  # a head that cannot be made is refused before any feature is read
    sources = open_slides(
        stores,
        (*rows, *tested),
        classes=table.classes,
        key=key,
        contexts=recipe.contexts,
        memory=memory_bytes,
    )
    slides = Slides(len(table.classes), sources[: len(rows)], sources[len(rows) :])
    device = device or torch.device("cpu")
    training = {
        **_provenance(recipe, table, folds),
        "tiles": sum(map(len, slides.training)),
        "slides_without_label": len(stores.keys() - {row.slide_id for row in table.rows}),
        "device": device.type,
    }
    # In the model's own place, but never published there: the model has parts that only its end decides.
    item, work = folder / f"{folder.name}.members", folder.parent / ".work"
    with alone(folder, work=work):
        draft = begin(item, _members_recipe(stores, table, folds, recipe, device), work=work)
        members = train_members(
            slides, folds, recipe.training, device=device, report=report, finished=Finished(draft, build)
        )
        model = _publish(folder, members, recipe=recipe, table=table, features=features, training=training)
        draft.discard()
    return model


def _members_recipe(
    stores: Stores,
    table: LabelTable,
    folds: NDArray[np.int64] | None,
    recipe: StudyRecipe,
    device: torch.device,
) -> dict[str, Any]:
    """Everything that decides the members' bytes, and nothing that is only asked of them afterwards."""
    items = ("tiles", *feature_items(folder_name(recipe.encoder), recipe.contexts))
    return {
        "step": "members",
        "training": recipe.training.as_json(),
        "labels": hashlib.sha256(labels_to_csv(table)).hexdigest(),
        "folds": None if folds is None else folds.tolist(),
        "inputs": {row.slide_id: stores[row.slide_id].inputs(*items) for row in table.rows},
        "device": device.type,
        "environment": json.loads(environment_to_json()),
    }


def _publish(
    folder: Path,
    members: Sequence[Trained],
    *,
    recipe: StudyRecipe,
    table: LabelTable,
    features: FeatureRecipe,
    training: Mapping[str, Any],
) -> Model:
    """Calibrate the members, hold them against the labels, and commit all that is known of them."""
    predictions = Predictions(table.classes, tuple(p for member in members for p in member.predictions))
    calibration = None
    if predictions.of(Part.TEST):
        fits = calibrate(predictions, alpha=recipe.alpha)
        temperatures = tuple(fit.temperature for fit in fits.members)
        calibration = Calibration(temperatures, fits.rule, recipe.gate)
    temperatures = calibration.temperatures if calibration else (1.0,) * len(members)
    figures = study_figures(predictions, temperatures)
    ensemble = Ensemble(tuple(member.head.cpu() for member in members), temperatures)
    model = describe(
        ensemble,
        name=folder.name,
        classes=table.classes,
        features=features,
        calibration=calibration,
        training={**training, "members": [_summary(member) for member in members], "figures": figures},
    )
    histories = [member.history for member in members]
    files = {
        "labels.csv": labels_to_csv(table),
        "splits.csv": splits_to_csv(table, predictions),
        "predictions.csv": predictions_to_csv(predictions),
        "history.csv": history_to_csv(histories),
        "metrics.json": canonical(figures),
        "environment.json": environment_to_json(),
        "learning-curve.png": draw_learning_curve(histories, metric=recipe.training.metric),
    }
    save_model(folder, ensemble, model, files=files)
    return model


def _build(recipe: TrainingRecipe, features: FeatureRecipe, class_count: int) -> Head:
    """A head of the study's kind, as it is before training."""
    dim = int(features.encoder["dim"]) * (1 + len(features.contexts))
    with torch.random.fork_rng(devices=[]):
        return build_head(
            recipe.head, dim=dim, classes=class_count, settings=recipe.settings, adaptor=recipe.adaptor
        )


def _folds(table: LabelTable, recipe: StudyRecipe) -> NDArray[np.int64] | None:
    """``(m,)`` fold of each slide for training; None for no folds."""
    if recipe.folds == 0:
        return None
    rows = table.of(Split.TRAIN)
    labels = [row.label for row in rows]
    patients = [row.patient or row.slide_id for row in rows]
    _warn_of_patients(table, rows)
    try:
        if not table.folds:
            count = FOLDS if recipe.folds is None else recipe.folds
            return assign_folds(labels, patients, folds=count, seed=recipe.training.seed)
        if recipe.folds not in (None, table.folds):
            raise UsageError(
                f"has {table.folds} folds of its own, and {recipe.folds} are asked for",
                action="Leave out --folds, or the column 'fold'",
            )
        check_fold_count(table.folds)
        folds = np.array([row.fold for row in rows], np.int64)
        check_folds(labels, folds, action="Change the column 'fold', or leave it out")
    except UsageError as error:
        raise UsageError(error.reason, path=table.path, action=error.action) from error
    return folds


def _warn_of_patients(table: LabelTable, rows: Sequence[SlideLabel]) -> None:
    if rows[0].patient is None:
        _log.warning("%s has no column 'patient': every slide is taken for another patient's", table.path)
        return
    labels_of: dict[str | None, set[str]] = {}
    for row in rows:
        labels_of.setdefault(row.patient, set()).add(row.label)
    mixed = [patient for patient, found in labels_of.items() if len(found) > 1]
    if mixed:
        _log.warning(
            "%s: %d patients have slides of different labels, such as %r; a patient stays in one fold",
            table.path,
            len(mixed),
            mixed[0],
        )


def _provenance(recipe: StudyRecipe, table: LabelTable, folds: NDArray[np.int64] | None) -> dict[str, Any]:
    """What was asked for, for the card; ``options`` are those of 'microtome train' that ask for the same."""
    rows = table.of(Split.TRAIN)
    count = 0 if folds is None else int(folds.max()) + 1
    return {
        "options": training_options(replace(recipe, folds=count)),
        "recipe": recipe.training.as_json(),
        "folds": count,
        "slides": [row.slide_id for row in rows],
        "external_slides": [row.slide_id for row in table.of(Split.TEST)],
        "patients": len({row.patient or row.slide_id for row in rows}),
        "class_counts": {name: sum(row.label == name for row in rows) for name in table.classes},
    }


def _summary(member: Trained) -> dict[str, Any]:
    """One member, for the card."""
    history = member.history
    found: dict[str, Any] = {
        "seed": member.seed,
        "epochs": len(history.epochs),
        "kept_epoch": history.kept.number,
        "first_loss": history.epochs[0].training_loss,
        "last_loss": history.epochs[-1].training_loss,
    }
    for entry in member.predictions:
        if entry.part is Part.VALIDATION:
            figures = history.kept.validation
            found["no_validation_auroc"] = figures is not None and figures.auroc is None
            found["not_calibrated_because"] = why_not_fitted(entry.logits, entry.labels)
    return found


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a model says of the slides that it was not trained on."""

    slide_ids: tuple[str, ...]
    """In the label table's order."""
    labels: NDArray[np.int64]
    """``(m,)``: index of the true class."""
    probabilities: NDArray[np.float64]
    """``(m, C)``, by the model's classes."""

    @property
    def auc(self) -> float | None:
        """See `mil.training.figures.macro_auroc`."""
        return macro_auroc(self.labels, self.probabilities)


def held_out(output: Output, labels: Path, model: Model) -> HeldOut:
    """The model's committed probabilities of every slide of the table's ``test`` split.

    Raises
    ------
    UsageError
        The table has no such slide, or one of them was not scored, or was trained on; or the model judges
        tiles.
    """
    if model.judges is Judges.TILES:
        raise UsageError(
            f"model {model.name!r} judges tiles: it has no verdict on a slide to hold against labels",
            action="Give a model that was trained on labels of slides",
        )
    table = read_labels(labels)
    rows = table.of(Split.TEST)
    if not rows:
        raise UsageError("has no slide with split 'test'", path=labels, action="Add a column 'split'")
    seen = set(model.training.get("slides", ())) & {row.slide_id for row in rows}
    if seen:
        raise UsageError(
            f"slides for testing were trained on: {', '.join(sorted(seen)[:5])}",
            path=labels,
            action="Train again with this table",
        )
    judged = []
    for row in rows:
        commit = scores_by(TileStore(output, row.slide_id), model.name, model.weights_sha256)
        judged.append([commit.record["probabilities"][name] for name in model.classes])
    index = {name: number for number, name in enumerate(model.classes)}
    return HeldOut(
        tuple(row.slide_id for row in rows),
        np.array([index[row.label] for row in rows], np.int64),
        np.array(judged),
    )
