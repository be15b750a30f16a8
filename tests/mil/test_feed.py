"""Laws of feeding a network: nobody waits, no byte depends on it, and after an end nothing goes on."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mil.device import Precision
from mil.encoder import Encoder, Room
from mil.feed import Pace, encode_blocks, read_ahead
from wsi.errors import DeviceLostError, MicrotomeError

BLOCKS = [slice(0, 8), slice(8, 16), slice(16, 21)]
TILES = np.random.default_rng(0).integers(0, 256, (21, 16, 16, 3), np.uint8)
SECONDS = 20
"""After which what waits for another is taken to wait for ever."""


@pytest.fixture(scope="module")
def small(tiny_encoder: Encoder) -> Encoder:
    """One layer on 16 x 16 px: these laws are of time, and a real network would take the processor's."""
    with torch.random.fork_rng():
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 8)).eval()
    transform = dataclasses.replace(tiny_encoder.row.transform, input_size=16)
    row = dataclasses.replace(tiny_encoder.row, dim=8, transform=transform)
    return Encoder(row, module, "untrained", torch.device("cpu"))


class Watched(torch.nn.Module):
    """Tells before it computes, with how many batches it has computed."""

    def __init__(self, module: torch.nn.Module, tell: Callable[[int], object]) -> None:
        super().__init__()
        self.inner, self.tell, self.batches = module, tell, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.tell(self.batches)
        self.batches += 1
        return self.inner(x)


def watched(encoder: Encoder, tell: Callable[[int], object]) -> Encoder:
    return dataclasses.replace(encoder, module=Watched(encoder.module, tell))


def encode(
    encoder: Encoder, read: Callable[[slice], NDArray[np.uint8]], pace: Pace, blocks: list[slice] = BLOCKS
) -> list[tuple[slice, NDArray[np.float32]]]:
    return list(encode_blocks(encoder, blocks, read, precision=Precision.FP32, pace=pace))


def nobody_reads() -> bool:
    return not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())


@pytest.mark.parametrize("readers", [1, 3])
def test_the_next_tiles_are_read_while_the_network_computes(readers: int, small: Encoder) -> None:
    """Both wait for one another: a loop that reads and computes in turns would wait for ever."""
    meeting = threading.Barrier(2)

    def read(rows: slice) -> NDArray[np.uint8]:
        if rows.start == 12:  # of the second block: no edge stops reading
            meeting.wait(SECONDS)
        return TILES[rows]

    def tell(batches: int) -> None:
        if batches == 2:
            meeting.wait(SECONDS)

    found = encode(watched(small, tell), read, Pace(4, readers, piece_tiles=4))
    assert [rows for rows, _ in found] == BLOCKS


def test_threads_read_several_pieces_at_a_time(small: Encoder) -> None:
    meeting = threading.Barrier(3)

    def read(rows: slice) -> NDArray[np.uint8]:
        if rows.start < 6:
            meeting.wait(SECONDS)
        return TILES[rows]

    found = encode(small, read, Pace(8, 3, piece_tiles=2), [slice(0, 6)])
    assert not meeting.broken  # three were there at once
    assert [rows for rows, _ in found] == [slice(0, 6)]


@pytest.mark.parametrize("batch_size", [3, 8])
def test_neither_threads_nor_pieces_change_a_byte(batch_size: int, small: Encoder) -> None:
    expected = encode(small, TILES.__getitem__, Pace(batch_size, readers=0))
    alone = small(torch.from_numpy(TILES)).numpy()
    np.testing.assert_allclose(np.concatenate([values for _, values in expected]), alone, atol=1e-5)
    for readers in (0, 1, 4):
        for piece_tiles in (1, 3, 100):
            found = encode(small, TILES.__getitem__, Pace(batch_size, readers, piece_tiles))
            for (rows, values), (known, right) in zip(found, expected, strict=True):
                assert rows == known
                assert values.tobytes() == right.tobytes()


@pytest.mark.parametrize(("readers", "most"), [(1, 2), (3, 6)])
def test_reading_stays_a_few_pieces_ahead(readers: int, most: int, small: Encoder) -> None:
    """Of a thousand tiles: what is held does not grow with the slide."""
    lock, begun, ahead = threading.Lock(), [0], [0]

    def read(rows: slice) -> NDArray[np.uint8]:
        with lock:
            begun[0] += 1
        return np.zeros((rows.stop - rows.start, 16, 16, 3), np.uint8)

    def tell(batches: int) -> None:
        threading.Event().wait(0.002)  # a slow network: readers run as far ahead as they may
        ahead.append(begun[0] - 2 * (batches + 1))  # two pieces a batch

    blocks = [slice(start, start + 8) for start in range(0, 400, 8)]
    encode(watched(small, tell), read, Pace(8, readers, piece_tiles=4), blocks)
    assert begun[0] == 100
    assert 0 < max(ahead) <= most


@pytest.mark.parametrize("readers", [0, 1, 3])
def test_an_error_in_reading_comes_in_its_turn_and_ends_all_reading(readers: int, small: Encoder) -> None:
    seen: list[int] = []

    def read(rows: slice) -> NDArray[np.uint8]:
        seen.append(rows.start)
        if rows.start == 12:
            raise OSError("the disk is gone")
        return TILES[rows]

    pace = Pace(4, readers, piece_tiles=2)
    blocks = encode_blocks(
        small,
        [BLOCKS[0], slice(8, 1000)],
        read,
        precision=Precision.FP32,
        pace=pace,
    )
    first, _ = next(blocks)
    assert first == BLOCKS[0]  # what was read before it is not lost
    with pytest.raises(OSError, match="the disk is gone"):
        next(blocks)
    assert max(seen) <= 12 + 2 * 2 * readers
    assert nobody_reads()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_when_the_network_stops_so_does_reading(stop: type[BaseException], small: Encoder) -> None:
    def tell(batches: int) -> None:
        if batches == 1:
            raise stop

    seen: list[int] = []

    def read(rows: slice) -> NDArray[np.uint8]:
        seen.append(rows.start)
        return TILES[:1]

    with pytest.raises(stop):
        encode(watched(small, tell), read, Pace(1, 2, piece_tiles=1), [slice(0, 1000)])
    assert len(seen) <= 2 + 2 * 2
    assert nobody_reads()


def test_when_whoever_takes_has_enough_reading_stops() -> None:
    taken = read_ahead(lambda item: 2 * item, range(1000), pace=Pace(1, readers=2))
    assert [next(taken) for _ in range(3)] == [0, 2, 4]
    assert not nobody_reads()
    taken.close()
    assert nobody_reads()


def test_batches_are_as_few_and_as_even_as_they_can_be(small: Encoder) -> None:
    sizes: list[int] = []
    encoder = dataclasses.replace(small, module=Sizes(small.module, sizes))
    tiles = np.zeros((10, 16, 16, 3), np.uint8)
    encode(encoder, tiles.__getitem__, Pace(4, 0, piece_tiles=3), [slice(0, 10)])
    assert sorted(sizes) == [3, 3, 4]


class Sizes(torch.nn.Module):
    def __init__(self, module: torch.nn.Module, sizes: list[int]) -> None:
        super().__init__()
        self.inner, self.sizes = module, sizes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        return self.inner(x)


@pytest.mark.parametrize("wrong", [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_no_pace_stands_still(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="fed"):
        Pace(*wrong)


class Limited(torch.nn.Module):
    """Has memory for so many tiles at once."""

    def __init__(self, module: torch.nn.Module, most: int) -> None:
        super().__init__()
        self.inner, self.most, self.tried = module, most, list[int]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.tried.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(x)


@pytest.mark.parametrize(
    ("most", "tried"), [(8, {8, 5}), (4, {8, 4, 1}), (3, {8, 4, 2, 1}), (1, {8, 4, 2, 1})]
)
def test_where_memory_is_too_small_for_a_batch_halves_of_it_are_encoded_from_then_on(
    most: int, tried: set[int], small: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    limited = Limited(small.module, most)
    pace = Pace(8, readers=1, piece_tiles=3)
    encoder = dataclasses.replace(small, module=limited, room=Room())
    found = encode(encoder, TILES.__getitem__, pace)
    expected = encode(small, TILES.__getitem__, pace)
    assert [rows for rows, _ in found] == BLOCKS
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert set(limited.tried) == tried
    assert sum(count > most for count in limited.tried) == len(caplog.records)  # each size is refused once
    assert all("too small for" in record.getMessage() for record in caplog.records)
    refused = len(caplog.records)
    encode(encoder, TILES.__getitem__, pace)  # of the next slide
    assert len(caplog.records) == refused
    assert sum(count > most for count in limited.tried) == refused


def test_a_tile_that_does_not_fit_alone_is_an_error_that_names_the_encoder(small: Encoder) -> None:
    limited = dataclasses.replace(small, module=Limited(small.module, 0), room=Room())
    with pytest.raises(MicrotomeError, match=f"too small for {small.name} and a single tile"):
        encode(limited, TILES.__getitem__, Pace(8))


def test_a_device_that_fails_is_an_error_of_its_own_kind_and_nobody_goes_on_reading(small: Encoder) -> None:
    """Nothing works in that process any more: whoever has others must know."""

    def fail(batches: int) -> None:
        if batches == 2:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure\nCompile with ...")

    with pytest.raises(
        DeviceLostError, match=r"cpu failed \(CUDA error: unspecified launch failure\)"
    ) as lost:
        encode(watched(small, fail), TILES.__getitem__, Pace(4, readers=2))
    assert lost.value.exit_code == 75
    assert nobody_reads()
