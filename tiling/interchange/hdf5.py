"""HDF5 files as other tools write them: written whole or not at all, read without trust."""

from __future__ import annotations

import contextlib
import filecmp
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.grid import MOST_TILES
from wsi.durable import make_folder, replacing
from wsi.errors import UsageError

MOST_NUMBERS = 65_536
"""In a row; features are some thousands long."""


@dataclass(frozen=True, eq=False, slots=True)
class Table:
    """One dataset to write: it can grow along its first axis, as both tools' can."""

    values: NDArray[Any]
    """``(n, k)``; its type is the file's."""
    rows_per_chunk: int
    """Rows of one HDF5 chunk."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the dataset."""


def write_tables(path: Path, tables: Mapping[str, Table], *, overwrite: bool) -> Path:
    """Write an HDF5 file of these datasets; the same tables give the same bytes.

    Raises
    ------
    UsageError
        Another file is there, and `overwrite` is off.
    OutputError
        It cannot be written.
    """
    import h5py  # here: only who exchanges files pays for the import

    make_folder(path.parent)
    with replacing(path) as temporary:
        with h5py.File(temporary, "w") as file:
            for name, table in tables.items():
                columns = table.values.shape[1:]
                dataset = file.create_dataset(
                    name,
                    data=table.values,
                    chunks=(table.rows_per_chunk, *columns),
                    maxshape=(None, *columns),
                    track_times=False,
                )
                for key, value in table.attributes.items():
                    dataset.attrs[key] = value
        refuse_another(path, temporary, overwrite=overwrite)
    return path


def refuse_another(path: Path, new: Path, *, overwrite: bool) -> None:
    """`UsageError` where a file of other content than `new` would be replaced, unless that is wanted."""
    if path.exists() and not overwrite and not filecmp.cmp(new, path, shallow=False):
        raise UsageError(
            "another file is there already", path=path, action="Export to another folder, or use --overwrite"
        )


@contextlib.contextmanager
def open_foreign(path: Path) -> Iterator[Any]:
    """An `h5py.File` of somebody else's, open for reading.

    Raises
    ------
    UsageError
        It is missing, not HDF5, or cut short: found on opening, or by whatever is read inside.
    """
    import h5py

    try:
        if not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISDIR(mode)):  # a pipe waits for ever
            raise refused(path, "is a pipe, socket or device, not a file")
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError as error:
        raise UsageError("there is no such file", path=path, action="Check the name") from error
    except (OSError, RuntimeError, KeyError, MemoryError) as error:
        raise UsageError(
            f"cannot be read as HDF5, or is cut short ({str(error).splitlines()[0].strip(chr(34))})",
            path=path,
            action="Copy the file again",
        ) from error


def find_dataset(file: Any, name: str, path: Path) -> Any:
    """A two-dimensional dataset whose numbers are in the file itself.

    Raises
    ------
    UsageError
        It is missing, something else, of another shape, too large, never written, or a link to another
        file's.
    """
    import h5py

    if name not in file:
        raise refused(path, f"holds no dataset {name!r}")
    own = isinstance(file.get(name, getlink=True), h5py.HardLink)
    dataset = file[name] if own else None
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise refused(path, f"{name!r} is not a dataset of its own")
    if dataset.ndim != 2 or dataset.shape[1] == 0:
        raise refused(path, f"{name!r} has the shape {dataset.shape}, not one row a tile")
    if len(dataset) > MOST_TILES:
        raise refused(path, f"{name!r} has {len(dataset):,} rows, {MOST_TILES:,} at most are possible")
    if dataset.shape[1] > MOST_NUMBERS:
        found = f"{name!r} has {dataset.shape[1]:,} numbers a row, {MOST_NUMBERS:,} at most are possible"
        raise refused(path, found)
    if len(dataset) and dataset.id.get_storage_size() == 0:
        # Its rows would read as zeros.
        raise refused(path, f"{name!r} was never written", "Make the file again with the tool that wrote it")
    return dataset


def attributes_of(dataset: Any) -> dict[str, Any]:
    """Its attributes as Python has them, without those of a type that NumPy has not: they are no tool's."""
    found = {}
    for name in dataset.attrs:
        with contextlib.suppress(TypeError):
            found[name] = plain(dataset.attrs[name])
    return found


def refused(path: Path, reason: str, action: str | None = None) -> UsageError:
    """The error for a file that is not what CLAM or TRIDENT write."""
    return UsageError(
        reason, path=path, action=action or "Give a coordinate or feature file as CLAM or TRIDENT write them"
    )


def plain(value: Any) -> Any:
    """An attribute as Python has it; None for what the tools write as the text ``'None'``."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return None if isinstance(value, str) and value in {"None", "NA", ""} else value
