"""`RowReader`: some rows of a stored array, without reading the files that hold none of them.

Files of plain numbers and their CRC-32C, as features are stored, are read here and not through zarr-python,
which costs more than the bytes do. Those that earlier versions compressed are read through it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import LocalStore

from tiling.codecs import opened
from tiling.commit import damaged
from wsi.errors import DamagedError

_WORDS = 60  # characters of what a library says of a fault


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
    """What is read at once, whatever is wanted of it: files are checked as a whole."""
    _array: zarr.Array[Any] | None = field(repr=False)
    """None where files hold plain numbers."""

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
            return self._whole()
        wanted = np.asarray(rows, np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.shape[0]:
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {self.shape[0]}")
        out = np.empty((len(wanted), self.shape[1]), np.float16)
        files = wanted // self.rows_per_file  # (k,)
        for file in np.unique(files).tolist():
            its = np.flatnonzero(files == file)
            out[its] = self._file(file)[wanted[its] - file * self.rows_per_file]
        return out

    def _whole(self) -> NDArray[np.float16]:
        count, step = self.shape[0], self.rows_per_file
        out = np.empty(self.shape, np.float16)
        for start in range(0, count, step):
            out[start : start + step] = self._file(start // step)[: count - start]
        return out

    def _file(self, number: int) -> NDArray[np.float16]:
        """The rows of one file; of the last one there may be more than the array has."""
        start = number * self.rows_per_file
        try:
            if self._array is not None:
                return np.asarray(self._array[start : start + self.rows_per_file], np.float16)
            content = opened((self.item / "c" / str(number) / "0").read_bytes())
            return np.frombuffer(content, "<f2").reshape(self.rows_per_file, self.shape[1])
        except (ValueError, OSError, RuntimeError) as error:  # a bad checksum may come as any of these
            raise _unreadable(self.item, error) from error


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
        plain = array.dtype == np.float16 and _is_plain(array) and array.chunks[1] == width
        return RowReader(item, (count, width), int(array.chunks[0]), None if plain else array)
    except (ValueError, OSError, RuntimeError) as error:
        raise _unreadable(item, error) from error


def _unreadable(item: Path, error: Exception) -> DamagedError:
    return damaged(item, f"rows cannot be read: {str(error)[:_WORDS]}")


def _is_plain(array: zarr.Array[Any]) -> bool:
    """Whether files are little-endian numbers and their CRC-32C, in one piece."""
    codecs = getattr(array.metadata, "codecs", ())
    return [type(codec) for codec in codecs] == [BytesCodec, Crc32cCodec] and array.shards is None
