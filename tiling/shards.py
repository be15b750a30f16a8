"""Tiles in Zarr v3 shards, written tile by tile as they come, and read at random.

A shard is one file of up to `shard_tiles` chunks, a tile each, one after the other, and then the index:
offset and length of every chunk as 64-bit integers, little-endian, both 2**64 - 1 where there is none, and
their CRC-32C. That is Zarr's ``sharding_indexed`` codec (zarr-specs, version 1.0) with the index at the end,
so any Zarr v3 reader reads what is written here.

zarr-python encodes a shard only when all of it is there, in threads of its own, and its reading of single
tiles costs several times what the bytes cost; `benchmarks/storage.py` has the figures.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.codecs import TileCodec, opened, sealed
from tiling.commit import FileEntry, canonical
from wsi.durable import make_folder, replacing

_MISSING = 2**64 - 1
_TASK_TILES = 8
"""Tiles that one thread reads before it takes more: enough that opening the file does not show."""


def array_metadata(
    shape: tuple[int, int, int, int], *, shard_tiles: int, codec: TileCodec, fill: int
) -> bytes:
    """``zarr.json`` of an array of tiles ``(n, h, w, 3)`` uint8, a tile a chunk."""
    tile = shape[1:]
    index_codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = {
        "chunk_shape": [1, *tile],
        "codecs": codec.zarr_codecs(),
        "index_codecs": index_codecs,
        "index_location": "end",
    }
    content = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_tiles, *tile]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "storage_transformers": [],
    }
    return canonical(content)


def shard_path(folder: Path, shard: int) -> Path:
    """The file of a shard in the array's folder."""
    return folder.joinpath("c", str(shard), "0", "0", "0")


def write_shard(path: Path, chunks: Iterable[bytes], *, slots: int) -> FileEntry:
    """Write encoded tiles as one shard file, durably, as they come.

    Parameters
    ----------
    path
        See `shard_path`; folders are made.
    chunks
        What `TileCodec.encode` gave, in the order of the tiles; fewer than `slots` in the last shard. An
        iterator is taken one at a time, while threads make the next.
    slots
        Tiles in a full shard.

    Returns
    -------
    Size and SHA-256 of the file, from the bytes on their way: it need not be read again.
    """
    make_folder(path.parent)
    digest, size = hashlib.sha256(), 0
    index: list[int] = []
    with replacing(path) as temporary, temporary.open("wb") as stream:
        for chunk in chunks:
            index += (size, len(chunk))
            stream.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        if len(index) > 2 * slots:
            raise ValueError(f"{len(index) // 2} tiles in a shard of {slots}")
        index += [_MISSING] * (2 * slots - len(index))
        tail = sealed(struct.pack(f"<{2 * slots}Q", *index))
        stream.write(tail)
        digest.update(tail)
    return FileEntry(size + len(tail), digest.hexdigest())


def read_chunks(path: Path, *, slots: int) -> Iterator[bytes]:
    """The encoded tiles of a shard, in order; those that are missing are left out.

    Raises
    ------
    ValueError, OSError
        See `ShardReader.read`.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        index = _read_index(descriptor, slots=slots)
        for offset, size in zip(index[::2], index[1::2], strict=True):
            if offset != _MISSING:
                chunk = os.pread(descriptor, size, offset)
                opened(chunk)  # what is damaged is not to be hashed anew as if it were sound
                yield chunk
    finally:
        os.close(descriptor)


class ShardReader:
    """Reads tiles of an array by row. Pickles, and may be used by many threads at once.

    It keeps the indices of the shards that it has read from, and no file open between calls.

    Parameters
    ----------
    folder
        The array's folder, which holds ``zarr.json`` and ``c``.
    shape
        ``(n, h, w, 3)``.
    shard_tiles, codec
        As it was written.
    """

    def __init__(
        self, folder: Path, *, shape: tuple[int, int, int, int], shard_tiles: int, codec: TileCodec
    ) -> None:
        self.folder = folder
        self.shape = shape
        self.shard_tiles = shard_tiles
        self.codec = codec
        self._indices: dict[int, tuple[int, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_indices": {}}

    def __repr__(self) -> str:
        return f"<ShardReader of {self.shape[0]} tiles in {str(self.folder)!r}>"

    def read(
        self, rows: slice | Sequence[int] | NDArray[np.integer[Any]], *, pool: Executor | None = None
    ) -> NDArray[np.uint8]:
        """Tiles ``(k, h, w, 3)`` uint8, in the order of `rows`; a row may come more than once.

        Parameters
        ----------
        rows
            From 0 to n - 1.
        pool
            Threads to share the work; never those that this is called from: they would wait for themselves.

        Raises
        ------
        IndexError
            There is no such row.
        ValueError
            A shard is cut, its index or a tile does not fit its checksum, or a tile is missing. There is no
            reading of holes as background: they are damage.
        OSError
            A shard is gone or cannot be read.
        """
        wanted = self._checked(rows)
        out = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        order = np.argsort(wanted, kind="stable").tolist()  # forwards through each file
        if pool is None:
            self._fill(out, wanted, order)
            return out
        tasks = [order[i : i + _TASK_TILES] for i in range(0, len(order), _TASK_TILES)]
        for _ in pool.map(lambda places: self._fill(out, wanted, places), tasks):
            pass  # an error in a thread is raised here
        return out

    def _checked(self, rows: slice | Sequence[int] | NDArray[np.integer[Any]]) -> list[int]:
        count = self.shape[0]
        if isinstance(rows, slice):
            return list(range(*rows.indices(count)))
        array = np.asarray(rows)
        if array.size == 0:
            return []
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise IndexError(f"rows are a list of whole numbers, not {array.ndim}-d {array.dtype}")
        if array.min() < 0 or array.max() >= count:
            raise IndexError(f"rows {array.min()} to {array.max()} of {count} tiles")
        found: list[int] = array.tolist()
        return found

    def _fill(self, out: NDArray[np.uint8], wanted: list[int], places: list[int]) -> None:
        """Decode row ``wanted[place]`` into ``out[place]`` for each of `places`, which go forwards."""
        for shard, group in groupby(places, lambda place: wanted[place] // self.shard_tiles):
            path = shard_path(self.folder, shard)
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            try:
                index = self._index(shard, descriptor)
                for place in group:
                    row = wanted[place]
                    try:
                        self._read_one(descriptor, index, row % self.shard_tiles, out[place])
                    except (ValueError, OSError) as error:
                        raise ValueError(f"{path}: tile {row} of shard {shard}: {error}") from error
            finally:
                os.close(descriptor)

    def _read_one(self, descriptor: int, index: tuple[int, ...], slot: int, out: NDArray[np.uint8]) -> None:
        offset, size = index[2 * slot : 2 * slot + 2]
        if offset == _MISSING:
            raise ValueError("it is missing")
        data = os.pread(descriptor, size, offset)
        if len(data) != size:
            raise ValueError("the file ends within it")
        self.codec.decode(data, out)

    def _index(self, shard: int, descriptor: int) -> tuple[int, ...]:
        """Offset and size of every tile of a shard, sure to lie within the file."""
        if shard in self._indices:
            return self._indices[shard]
        try:
            index = _read_index(descriptor, slots=self.shard_tiles)
        except ValueError as error:
            path = shard_path(self.folder, shard)
            raise ValueError(f"{path}: the index of shard {shard}: {error}") from error
        self._indices[shard] = index
        return index


def _read_index(descriptor: int, *, slots: int) -> tuple[int, ...]:
    """Offset and size of every tile, all within the file; `ValueError` says what is wrong with it."""
    length = 16 * slots + 4
    start = os.fstat(descriptor).st_size - length
    if start < 0:
        raise ValueError("the file is too short for one")
    try:
        index = struct.unpack(f"<{2 * slots}Q", opened(os.pread(descriptor, length, start)))
    except struct.error as error:
        raise ValueError(str(error)) from error
    pairs = zip(index[::2], index[1::2], strict=True)
    if any(offset + size > start for offset, size in pairs if offset != _MISSING):
        raise ValueError("it points outside of the file")
    return index
