"""Where the features of a study are: which slides a user means, and opening them for training."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mil.bags import BagSource
from mil.encoder import folder_name
from mil.features import keep_in_memory, open_bag
from mil.labels import LabelTable, SlideLabel
from tiling.output import ZARR_FOLDER, Output
from tiling.store import TileStore
from wsi.errors import UsageError

Stores = Mapping[str, TileStore]
"""By slide id."""


def find_stores(output: Path | None, patterns: Sequence[str], *, encoder: str) -> Stores:
    """The slides of an output, and those that patterns match.

    Parameters
    ----------
    output
        A folder that was given to ``-o``, or None.
    patterns
        Glob patterns, with ``**`` for folders of any depth. A match may be an output folder, a slide's folder
        in one, its ``store.zarr``, or a features item in that; anything else that is matched is left alone.
    encoder
        Whose features are meant: of features items, only its own count.

    Raises
    ------
    UsageError
        A pattern matches no slide, or two outputs hold a slide of the same name.
    """
    key = folder_name(encoder)
    found: dict[str, TileStore] = {}
    if output is not None:
        _add(found, (TileStore(Output(output), slide_id) for slide_id in Output(output).slides_with_tiles()))
    for pattern in patterns:
        matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
        stores = [store for match in matches for store in _stores_at(match, key)]
        if not stores:
            raise _matches_nothing(pattern, matches, key)
        _add(found, stores)
    return found


def _stores_at(path: Path, key: str) -> list[TileStore]:
    """The slides that a match stands for."""
    path = path.resolve()  # "." and links would hide the names that tell what it is
    if path.parent.name == "features" and path.parent.parent.name == ZARR_FOLDER:
        return _stores_at(path.parent.parent, key) if path.name == key else []
    if path.name == ZARR_FOLDER:
        path = path.parent
    if path.parent.name == "slides" and (path / ZARR_FOLDER).is_dir():
        return [TileStore(Output(path.parent.parent), path.name)]
    if (path / "slides").is_dir():
        output = Output(path)
        return [TileStore(output, slide_id) for slide_id in output.slides_with_tiles()]
    return []


def _matches_nothing(pattern: str, matches: Sequence[Path], key: str) -> UsageError:
    if not matches:
        return UsageError(f"--features {pattern!r} matches nothing", action="Check the path, and quote it")
    others = sorted({path.name for path in matches if path.parent.name == "features"})
    if others:
        return UsageError(
            f"--features {pattern!r} matches features by {', '.join(map(repr, others))}, and not by {key!r}",
            action="Say which encoder with --encoder",
        )
    return UsageError(
        f"--features {pattern!r} matches no slide of an output, but {matches[0]}",
        action="Match folders that were given to -o, slides in them, their store.zarr, or features in that",
    )


def _add(found: dict[str, TileStore], stores: Iterable[TileStore]) -> None:
    for store in stores:
        other = found.setdefault(store.slide_id, store)
        if other.folder.resolve() != store.folder.resolve():
            raise UsageError(
                f"slide {store.slide_id!r} is in two outputs, {other.output.root} and {store.output.root}",
                action="Leave one of them out",
            )


def require_slides(stores: Stores, table: LabelTable, *, items: Sequence[str]) -> None:
    """Refuse a table that names slides which are not there, or lack features; all are counted at once.

    Parameters
    ----------
    stores
        Those that are there.
    table
        Its slides for training and for testing.
    items
        Items that each must have; see `mil.features.feature_items`.

    Raises
    ------
    UsageError
        See above.
    """
    names = [row.slide_id for row in table.rows]
    unknown = [name for name in names if name not in stores]
    if unknown:
        suffixed = [Path(name).stem for name in unknown if Path(name).stem in stores]
        raise UsageError(
            f"names {_count(unknown)} with no tiles and no features here: {_first(unknown)}",
            path=table.path,
            action=f"Write slide ids without the file's suffix, such as {suffixed[0]!r}"
            if suffixed
            else "Correct the ids, tile and encode these slides, or take them out of the table",
        )
    for item in items:
        missing = [name for name in names if not stores[name].path(item).exists()]
        if missing:
            raise UsageError(
                f"names {_count(missing)} with no {item}: {_first(missing)}",
                path=table.path,
                action="Run 'microtome encode' first, or take them out of the table",
            )


def open_slides(
    stores: Stores,
    rows: Sequence[SlideLabel],
    *,
    classes: Sequence[str],
    key: str,
    contexts: Sequence[float],
    memory: int,
) -> list[BagSource]:
    """A source a row of the table, those kept in memory that fit into so many bytes.

    Raises
    ------
    UsageError, DamagedError, RecipeError
        See `mil.features.open_bag`.
    """
    sources: list[BagSource] = [
        open_bag(
            stores[row.slide_id],
            key,
            contexts=contexts,
            label=classes.index(row.label),
            patient=row.patient or row.slide_id,
        )
        for row in rows
    ]
    return list(keep_in_memory(sources, budget_bytes=memory))


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} slide{'s' if len(names) > 1 else ''}"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
