"""Tiles through a network without waiting: threads read what comes next while the network computes.

Rows of a slide come in *blocks*: what is stored as one file, and resumed as a whole. A block is encoded in
batches, as even as they can be, and read in pieces, which threads share::

    block   | batch         | batch         |     read in threads    copied       computed      copied back
            | piece | piece | piece | piece |  ->  a few pieces  ->  a batch  ->  on device ->  a block

On a GPU nothing waits for the result of a batch before the next one is sent: pixels go from pinned memory
while it computes, and of a finished block the features come back while the next block is at work. What is
held at a time is two blocks of features, two batches and a few pieces, whatever the slide.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil.device import Precision
from mil.encoder import Encoder
from wsi.errors import DeviceLostError, MicrotomeError
from wsi.stopwatch import Stopwatch

if TYPE_CHECKING:
    from tiling.tiles import ReadTiles

PIECE_BYTES = 8 << 20
"""Pixels that a thread reads at a time: 42 tiles of 256 px."""
_FETCHED = 2  # pieces for each thread: one at work, one that is finished

_log = logging.getLogger(__name__)
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Pace:
    """How tiles are brought to the network. None of it is part of a recipe."""

    batch_size: int
    """Tiles that are encoded at once, at most. It may change the last bit of a feature."""
    readers: int = 1
    """Threads that read ahead; they change no byte. 0: tiles are read when they are needed."""
    piece_tiles: int = 32
    """Tiles that a thread reads at a time, at most."""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.piece_tiles) < 1 or self.readers < 0:
            raise ValueError(f"no network can be fed at {self}")


def encode_blocks(
    encoder: Encoder,
    blocks: Sequence[slice],
    read: ReadTiles,
    *,
    precision: Precision,
    pace: Pace,
    times: Stopwatch | None = None,
) -> Generator[tuple[slice, NDArray[np.float32]]]:
    """Encode blocks of tiles, one after the other.

    Parameters
    ----------
    encoder
        What encodes.
    blocks
        Ranges of rows, none of them empty.
    read
        Gives the tiles ``(k, s, s, 3)`` uint8 of a range of rows. Threads call it where `pace` has more than
        one reader.
    precision
        See `Encoder`.
    pace
        How tiles are brought to it.
    times
        Told how long this thread waits for tiles, and for the network.

    Yields
    ------
    Each block, and its features ``(k, dim)`` float32. On a GPU a block is yielded when the next one has been
    sent, elsewhere as soon as it is encoded.

    Raises
    ------
    MicrotomeError
        The GPU's memory is too small for a single tile. Where it is for a batch, halves of it are encoded.
    DeviceLostError
        The GPU failed; nothing can be computed on it in this process any more.
    Exception
        Whatever `read` raises, in its turn: blocks before it come first, and nothing after it is read.
    """
    times, network = times or Stopwatch(), _Network(encoder, precision)
    batches = [[*_split(block, pace.batch_size)] for block in blocks]
    pieces = [[*_split(rows, pace.piece_tiles)] for block in batches for rows in block]
    is_asynchronous = encoder.device.type == "cuda"
    with (
        _losses(encoder),
        contextlib.closing(read_ahead(read, (p for rows in pieces for p in rows), pace=pace)) as tiles,
    ):
        waiting: deque[tuple[slice, Callable[[], NDArray[np.float32]]]] = deque()
        parts = iter(pieces)
        for block, its in zip(blocks, batches, strict=True):
            features = [_next_batch(network, tiles, len(next(parts)), times) for _ in its]
            waiting.append((block, _sent_back(features)))
            if len(waiting) > is_asynchronous:
                yield _arrived(waiting.popleft(), times)
        for one in waiting:
            yield _arrived(one, times)


def _next_batch(
    network: _Network, tiles: Iterator[NDArray[np.uint8]], pieces: int, times: Stopwatch
) -> Tensor:
    # A function of its own: its tiles are let go before the next ones are waited for.
    with times.lap("wait for tiles"):
        batch = [next(tiles) for _ in range(pieces)]
    with times.lap("encode"):
        return network.encode(batch)


def _arrived(
    sent: tuple[slice, Callable[[], NDArray[np.float32]]], times: Stopwatch
) -> tuple[slice, NDArray[np.float32]]:
    block, take = sent
    with times.lap("encode"):
        return block, take()


def read_ahead(
    function: Callable[[_Item], _Result], items: Iterable[_Item], *, pace: Pace
) -> Generator[_Result]:
    """What `function` gives for each item, in order, while threads are at work on the next ones.

    An error is raised where its result would have come. When the iterator is closed, on an error or Ctrl-C
    too, what has not begun is given up, and what has begun is waited for: nobody reads on from a file that
    is closed.
    """
    if pace.readers == 0:
        yield from map(function, items)
        return
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(pace.readers, thread_name_prefix="read-ahead") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= _FETCHED * pace.readers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _split(rows: slice, most: int) -> Iterator[slice]:
    """A range in as few parts of `most` as it takes, and these as even as they can be.

    Odd ends are slow, and each size of batch is a shape of its own to a compiled network.
    """
    count = rows.stop - rows.start
    parts = -(-count // most)
    edges = [rows.start + count * part // parts for part in range(parts + 1)]
    return map(slice, edges[:-1], edges[1:])


class _Network:
    """An encoder that is given less at once when that was too much for its device's memory."""

    def __init__(self, encoder: Encoder, precision: Precision) -> None:
        self._encoder, self._precision, self._room = encoder, precision, encoder.room

    def encode(self, pieces: Sequence[NDArray[np.uint8]]) -> Tensor:
        """``(b, dim)`` float32 on the encoder's device, where it may still be at work."""
        if self._room.most is None:
            whole = self._tried(pieces)
            if whole is not None:
                return whole
            self._halve(sum(map(len, pieces)))
        tiles = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        parts, done = [], 0
        while done < len(tiles):
            part = self._tried([tiles[done : done + (self._room.most or 1)]])
            if part is None:
                self._halve(min(self._room.most or 1, len(tiles) - done))
            else:
                parts.append(part)
                done += len(part)
        return torch.cat(parts)

    def _tried(self, pieces: Sequence[NDArray[np.uint8]]) -> Tensor | None:
        """None where memory was too small; the error is gone by then, and what it held on to."""
        with contextlib.suppress(torch.OutOfMemoryError):
            return self._encoder(_batch(pieces, self._encoder.device), precision=self._precision)
        return None

    def _halve(self, count: int) -> None:
        """Ask for half as much from now on."""
        where = self._encoder.device
        if count == 1:
            raise MicrotomeError(
                f"the memory of {where} is too small for {self._encoder.name} and a single tile",
                action="Stop what else is using it, or encode with --device cpu",
            )
        self._room.most = count // 2
        if where.type == "cuda":
            torch.cuda.empty_cache()
        _log.warning(
            "the memory of %s is too small for %d tiles at once: %d are taken", where, count, count // 2
        )


@contextlib.contextmanager
def _losses(encoder: Encoder) -> Iterator[None]:
    """After an error of CUDA's nothing works in the same process any more: say so, whoever is told."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceLostError(
            f"{encoder.device} failed ({str(error).strip().splitlines()[0]})",
            action="Run the same command again: what is finished is kept",
        ) from error


def _batch(pieces: Sequence[NDArray[np.uint8]], device: torch.device) -> Tensor:
    """``(b, s, s, 3)`` uint8 in memory from which the device takes it quickest."""
    if device.type != "cuda":
        return torch.from_numpy(pieces[0] if len(pieces) == 1 else np.concatenate(pieces))
    shape = sum(map(len, pieces)), *pieces[0].shape[1:]
    # Pinned: the copy then runs beside the computing. Torch keeps such memory for the next batch, and not
    # before the copy has ended.
    pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    np.concatenate(pieces, out=pinned.numpy())
    return pinned


def _sent_back(features: Sequence[Tensor]) -> Callable[[], NDArray[np.float32]]:
    """Start the way back of a block's features; what is returned waits for them, and for nothing later."""
    block = torch.cat(list(features))  # (k, dim)
    if block.device.type != "cuda":
        values: NDArray[np.float32] = block.cpu().numpy()
        return lambda: values
    host = torch.empty(block.shape, dtype=block.dtype, pin_memory=True)
    host.copy_(block, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record(torch.cuda.current_stream(block.device))

    def take() -> NDArray[np.float32]:
        arrived.synchronize()
        found: NDArray[np.float32] = host.numpy().copy()
        return found

    return take
