"""`ensure`: have an item, whatever state a former run left it in."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from tiling.commit import Commit
from tiling.store import TileStore
from wsi.errors import DamagedError

_log = logging.getLogger(__name__)


def ensure(store: TileStore, item: str, make: Callable[[], object]) -> bool:
    """Make an item unless it is there; returns whether anything had to be made.

    A damaged item is set aside and made again. Where `make` finds damage in an item that it reads, that one
    is set aside too, so that the next run remakes it, and the error goes on.

    Raises
    ------
    RecipeError
        An item of another recipe is there, and the store does not overwrite.
    DamagedError
        An item that this one is computed from is damaged.
    """
    before = find_whole(store, item)
    with setting_aside(store):
        make()
    after = store.find(item)
    return before is None or after is None or before.digest != after.digest


def find_whole(store: TileStore, item: str) -> Commit | None:
    """The item's commit; a damaged item is set aside, and is then none."""
    try:
        return store.find(item)
    except DamagedError as error:
        _set_aside(store, store.path(item), error)
        return None


@contextlib.contextmanager
def setting_aside(store: TileStore) -> Iterator[None]:
    """Where damage is found in an item of the slide, set that one aside; the error goes on."""
    try:
        yield
    except DamagedError as error:
        culprit = Path(error.path or "")
        if store.output.is_item(culprit):
            _set_aside(store, culprit, error)
        raise


def _set_aside(store: TileStore, culprit: Path, error: DamagedError) -> None:
    aside = store.output.set_aside(culprit)
    _log.warning("%s: %s; set aside as %s", store.slide_id, error.reason, aside)
