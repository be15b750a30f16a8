"""A bounded cache of decoded tiles: each is decoded once by whoever asks first, and the others wait."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Lock

import numpy as np
from numpy.typing import NDArray

Tile = NDArray[np.uint8]


class TileCache:
    """The oldest tiles go first. For any number of threads.

    First in, first out does for tiles that are read row by row what least recently used would do: a tile is
    needed by one row, or by two that follow one another. And finding one takes no lock.

    Parameters
    ----------
    limit
        Bytes of pixels to keep; it may be changed at any time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held = 0
        self._tiles: dict[Hashable, Tile] = {}
        self._coming: dict[Hashable, Lock] = {}
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Tile]) -> Tile:
        """The tile of that key, made by `make` unless it is there; not to be written to.

        What `make` raises is not kept: whoever waited tries for himself.
        """
        while (tile := self._tiles.get(key)) is None:
            with self._lock:
                coming = self._coming.get(key)
                if coming is None:
                    if key in self._tiles:
                        continue
                    mine = self._coming[key] = Lock()
                    mine.acquire()
            if coming is None:
                return self._make(key, make, mine)
            with coming:  # until it is there, or has failed
                pass
        return tile

    def take(self, key: Hashable, make: Callable[[], Tile]) -> Tile:
        """The same for the last time: it is not kept, so that its memory, still near, serves the next one."""
        with self._lock:
            tile = self._tiles.pop(key, None)
            if tile is not None:
                self._held -= tile.nbytes
        return make() if tile is None else tile

    def _make(self, key: Hashable, make: Callable[[], Tile], mine: Lock) -> Tile:
        tile = None
        try:
            tile = make()
        finally:
            with self._lock:
                if tile is not None:
                    self._keep(key, tile)
                del self._coming[key]
            mine.release()
        return tile

    def _keep(self, key: Hashable, tile: Tile) -> None:
        self._tiles[key] = tile
        self._held += tile.nbytes
        while self._held > self.limit and len(self._tiles) > 1:
            oldest = next(iter(self._tiles))
            self._held -= self._tiles.pop(oldest).nbytes
