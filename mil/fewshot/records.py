"""What stands beside the weights of an adapted model, and whether a model may go where it is to go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mil.checkpoint import Model
from mil.fewshot.choosing import Choice
from mil.training.records import table_bytes
from tiling.commit import COMMIT_FILE, find_damage, read_commit
from wsi.errors import DamagedError, RecipeError


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of a bag: of a tile also its level-0 (x, y)."""

    slide_id: str
    label: str
    x: int | None = None
    y: int | None = None


def is_there(folder: Path, model: Model, *, overwrite: bool) -> bool:
    """Whether this very model is there, every byte; what else is there is refused, unless it may go.

    Raises
    ------
    RecipeError
        Another model and not `overwrite`; a damaged one; something that is no model.
    """
    if not folder.exists() and not folder.is_symlink():
        return False
    action = "Give the new model another --name"
    try:
        commit = read_commit(folder) if (folder / COMMIT_FILE).is_file() else None
        damage = (
            [f"{one.file} {one.reason}" for one in find_damage(folder, commit, full=True)] if commit else []
        )
    except DamagedError as error:
        damage = [error.reason]
    if damage:
        raise RecipeError(
            f"a model is there that is damaged: {damage[0]}",
            path=folder,
            action=f"Move it away, as 'microtome verify --full --set-aside' does. Or: {action}",
        )
    if commit is None or commit.recipe.get("step") != "model":
        raise RecipeError("something that is not a model is there already", path=folder, action=action)
    if commit.recipe.get("model") == model.as_json():
        return True
    if not overwrite:
        raise RecipeError(
            "a model is there that was made of other marks, or by other settings",
            path=folder,
            action=f"Replace it, and what it said of slides, with --overwrite. Or: {action}",
        )
    return False


def support_csv(bags: Sequence[Row], classes: Sequence[str], chances: NDArray[np.float64]) -> bytes:
    """A line a marked bag: what it was marked as, and what the head says that did not learn from it.

    Parameters
    ----------
    bags
        n.
    classes
        C names.
    chances
        ``(n, C)`` probabilities.
    """
    header = ("slide_id", "x", "y", "label", "fold_says", *(f"probability: {name}" for name in classes))
    rows = [
        (row.slide_id, row.x, row.y, row.label, classes[int(chance.argmax())], *map(repr, chance.tolist()))
        for row, chance in zip(bags, chances, strict=True)
    ]
    return table_bytes(header, rows)


def choice_csv(choice: Choice) -> bytes:
    """A line a candidate: what it would have been worth by cross-validation on the marks."""
    header = ("learner", "balanced_accuracy", "log_loss", "temperature", "picked", "left_out_because")
    rows: list[tuple[object, ...]] = [
        (
            one.method.name,
            repr(one.balanced_accuracy),
            repr(one.log_loss),
            repr(one.temperature),
            int(one is choice.picked),
            "",
        )
        for one in choice.candidates
    ]
    rows += [(name, "", "", "", 0, reason) for name, reason in choice.left_out]
    return table_bytes(header, rows)
