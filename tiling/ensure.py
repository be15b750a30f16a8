"""`ensure`: have an item, whatever state a former run left it in."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from tiling.commit import COMMIT_FILE
from tiling.store import TileStore
from wsi.errors import DamagedError, RecipeError

_log = logging.getLogger(__name__)


def ensure(store: TileStore, item: str, make: Callable[[], object], *, overwrite: bool = False) -> bool:
    """Make an item unless it is there; returns whether anything had to be made.

    A damaged item is set aside and made again. An item of another recipe is replaced if `overwrite`.
    Where `make` finds damage in an item that it reads, that one is set aside too, so that the next run
    remakes it, and the error goes on.

    Raises
    ------
    RecipeError
        An item of another recipe is there, and `overwrite` is off.
    DamagedError
        An item that this one is computed from is damaged.
    """
    path = store.path(item)
    existed = path.exists()
    try:
        make()
    except DamagedError as error:
        damaged = Path(error.path) if error.path else path
        if not damaged.is_relative_to(store.folder) or not _is_item(damaged):
            raise
        aside = store.output.set_aside(damaged)
        _log.warning("%s: %s; set aside as %s", store.slide_id, error.reason, aside)
        if damaged != path:
            raise
        make()
        return True
    except RecipeError:
        if not (overwrite and existed):
            raise
        store.output.discard(path)
        make()
        return True
    return not existed


def _is_item(folder: Path) -> bool:
    """Whether the folder is one item: a commit, or files without one; never a folder of items."""
    return (folder / COMMIT_FILE).exists() or any(child.is_file() for child in folder.glob("*"))
