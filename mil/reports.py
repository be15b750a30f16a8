"""Whether a report may go where it is to go, or is there already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiling.commit import find_damage, load_commit
from wsi.errors import DamagedError, RecipeError


def report_is_there(folder: Path, recipe: Mapping[str, Any], *, what: str, overwrite: bool) -> bool:
    """Whether this very report is there, whole; what is no report is never touched.

    Parameters
    ----------
    folder
        Where it is to go.
    recipe
        All that decides it; its ``step`` is that of all reports of this kind.
    what
        What such a report is called, for messages.
    overwrite
        Whether another report of this kind may go.

    Raises
    ------
    RecipeError
        Another report and not `overwrite`; something that is no such report.
    """
    if not folder.exists() and not folder.is_symlink():
        return False
    try:
        commit = load_commit(folder) if folder.is_dir() else None
    except DamagedError:
        commit = None
    if commit is None or commit.recipe.get("step") != recipe["step"]:
        raise RecipeError(
            f"something that is not a {what} is there already",
            path=folder,
            action="Choose another folder with -o",
        )
    if commit.recipe == recipe:
        return not any(find_damage(folder, commit, full=True))
    if overwrite:
        return False
    differing = [key.removesuffix("_sha256") for key in recipe if commit.recipe.get(key) != recipe[key]]
    raise RecipeError(
        f"a report is there that was made with another {' and '.join(differing)}",
        path=folder,
        action="Choose another folder with -o, or --overwrite to replace it",
    )
