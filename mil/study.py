"""A study: labelled slides of an output become a model, and a model's scores are held against labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil.checkpoint import Model, check_model_folder, describe, save_model
from mil.encoder import folder_name
from mil.evaluation import slide_auc
from mil.features import common_recipe, read_bag
from mil.labels import LabelTable, Split, read_labels
from mil.training import EpochReport, TrainingRecipe, fit
from tiling.output import Output
from tiling.store import TileStore, scores_by
from wsi.errors import UsageError


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
        """Area under the ROC curve, the mean over classes of each against the rest.

        With two classes both are the same number. None where a class is missing or has all slides.
        """
        classes = range(self.probabilities.shape[1])
        each = [slide_auc((self.labels == c).astype(np.int64), self.probabilities[:, c]) for c in classes]
        known = [auc for auc in each if auc is not None]
        return float(np.mean(known)) if len(known) == len(each) else None


def train_model(
    output: Output,
    labels: Path,
    *,
    encoder: str,
    recipe: TrainingRecipe,
    folder: Path,
    report: EpochReport | None = None,
) -> Model:
    """Train a head on the slides that a label table gives for training, and publish it as a folder.

    Parameters
    ----------
    output
        Holds the slides' features.
    labels
        See `mil.labels.read_labels`; slides with split ``test`` are not looked at.
    encoder
        Name of the encoder whose features are used.
    recipe
        How to train.
    folder
        Where the model goes; its last part becomes the model's name.
    report
        Called after each epoch.

    Raises
    ------
    UsageError
        The table is unsound, or slides in it have no such features; all of them are named at once. Two
        slides were not made alike. The folder is no place for a model, or something is there already.
    """
    check_model_folder(folder)
    table = read_labels(labels)
    key = folder_name(encoder)
    rows = table.of(Split.TRAIN)
    stores = [TileStore(output, row.slide_id) for row in rows]
    _require_features(stores, key, table)
    features, classes = common_recipe(stores, key), table.classes
    bags = [
        read_bag(store, key, label=classes.index(row.label), patient=row.patient)
        for store, row in zip(stores, rows, strict=True)
    ]
    losses: list[float] = []

    def note(done: int, total: int, loss: float) -> None:
        losses.append(loss)
        if report:
            report(done, total, loss)

    head = fit(bags, class_count=len(classes), recipe=recipe, report=note)
    training: dict[str, Any] = {
        "recipe": recipe.as_json(),
        "slides": [row.slide_id for row in rows],
        "tiles": sum(len(bag) for bag in bags),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }
    model = describe(head, name=folder.name, classes=classes, features=features, training=training)
    save_model(folder, head, model)
    return model


def held_out(output: Output, labels: Path, model: Model) -> HeldOut:
    """The model's committed probabilities of every slide of the table's ``test`` split.

    Raises
    ------
    UsageError
        The table has no such slide, or one of them was not scored, or was trained on.
    """
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
    probabilities = []
    for row in rows:
        commit = scores_by(TileStore(output, row.slide_id), model.name, model.weights_sha256)
        probabilities.append([commit.record["probabilities"][name] for name in model.classes])
    index = {name: number for number, name in enumerate(model.classes)}
    return HeldOut(
        tuple(row.slide_id for row in rows),
        np.array([index[row.label] for row in rows], np.int64),
        np.array(probabilities),
    )


def _require_features(stores: list[TileStore], key: str, table: LabelTable) -> None:
    missing = [store.slide_id for store in stores if not store.path(f"features/{key}").exists()]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UsageError(
            f"{len(missing)} slides have no features by {key!r}: {shown}",
            path=table.path,
            action="Run 'microtome encode' first, or take them out of the table",
        )
