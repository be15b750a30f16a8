"""`RowReader`: some rows of a stored array, without reading the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from tiling.commit import damaged


@dataclass(frozen=True, slots=True, eq=False)
class RowReader:
    """Reads rows of an array that is an item of its own, such as features. Pickles; safe for threads.

    Made by `TileStore.open_features`, which checks the item: here it is not looked at again.
    """

    item: Path
    """The item's folder, which is the array's."""
    shape: tuple[int, int]
    """``(n, d)``."""
    rows_per_file: int
    """What is read at once, whatever is wanted of it: files are compressed and checked as a whole."""
    _array: zarr.Array[Any] = field(repr=False)

    def read(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.float16]:
        """``(k, d)`` in the order of `rows`, which may repeat; all rows for None.

        Raises
        ------
        IndexError
            There is no such row.
        DamagedError
            A file is gone or cut, or its checksum does not fit.
        """
        if rows is None:
            return self._slice(0, self.shape[0])
        wanted = np.asarray(rows, np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.shape[0]:
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {self.shape[0]}")
        out = np.empty((len(wanted), self.shape[1]), np.float16)
        files = wanted // self.rows_per_file  # (k,)
        for file in np.unique(files).tolist():
            its = np.flatnonzero(files == file)
            start = file * self.rows_per_file
            here = self._slice(start, min(start + self.rows_per_file, self.shape[0]))
            out[its] = here[wanted[its] - start]
        return out

    def _slice(self, start: int, stop: int) -> NDArray[np.float16]:
        try:
            return np.asarray(self._array[start:stop], np.float16)
        except (ValueError, OSError, RuntimeError) as error:  # a bad checksum may come as any of these
            raise damaged(self.item, f"rows cannot be read: {error}") from error


def open_rows(item: Path) -> RowReader:
    """A reader of an array that was checked to be there as committed.

    Raises
    ------
    DamagedError
        It is no array of rows.
    """
    try:
        array = zarr.open_array(LocalStore(item, read_only=True), mode="r")
        count, width = array.shape
        return RowReader(item, (count, width), int(array.chunks[0]), array)
    except (ValueError, OSError, RuntimeError) as error:
        raise damaged(item, f"rows cannot be read: {error}") from error
