"""How fast a network encodes here: a few batches of noise through one without its weights."""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import torch
from torch import nn

from mil.device import best_batch_size, best_precision, choose_device
from mil.encode import encode_tiles
from mil.encoder import Encoder, EncoderRow
from mil.encoders import find_row
from mil.networks.architecture import build_empty, pooled
from tiling.doctor.speed import EncodeSpeed
from wsi.errors import MicrotomeError

_WORKING = 1.3
"""Bytes that a network needs to compute, for each byte of its weights, at least."""
_REPEATS = 5
"""Batches of the usual size after which no more is learnt."""


def encode_speed(
    name: str, *, device: str, tile_px: int, seconds: float, memory: int | None = None
) -> EncodeSpeed:
    """How fast an encoder would be, by the clock.

    Its weights are neither needed nor fetched: speed does not depend on them. Batches grow from one tile to
    what is usual on the device, as long as the next one should end in time; so a network that needs seconds
    for a tile is measured on few.

    Parameters
    ----------
    name
        See `mil.encoders.load_encoder`.
    device
        See `mil.device.choose_device`.
    tile_px
        Pixels along each side of a tile.
    seconds
        To be done in, once the network is there. Only the first tile is computed whatever it takes.
    memory
        Bytes that can be had, for a network on a CPU; None where nobody knows.

    Raises
    ------
    UsageError
        No such encoder or device.
    MicrotomeError
        The network does not fit into the memory.
    """
    place = choose_device(device)
    encoder = _hollow(find_row(name), place, memory=memory)
    precision, usual = best_precision(place), best_batch_size(place)
    tiles = np.random.default_rng(0).integers(0, 256, (usual, tile_px, tile_px, 3), np.uint8)
    deadline = time.monotonic() + seconds  # from here on: a library that is loaded tells nothing of speed
    taken: list[tuple[int, float]] = []  # tiles of a batch, and seconds
    size = 1
    while not taken or _fits(taken, size, deadline):
        start = time.perf_counter()
        encode_tiles(encoder, tiles[:size], precision=precision, batch_size=size)
        taken.append((size, time.perf_counter() - start))
        if [of for of, _ in taken].count(usual) >= _REPEATS:
            break
        size = min(2 * size, usual) if len(taken) > 1 else 1  # the first also makes ready, and counts least
    taken = taken[1:] or taken
    largest = max(of for of, _ in taken)
    rate = largest / median(took for of, took in taken if of == largest)
    return EncodeSpeed(
        encoder.name,
        encoder.dim,
        sum(of for of, _ in taken),
        sum(took for _, took in taken),
        rate,
        f"{place} in {precision.value}, {largest} at a time",
    )


def _fits(taken: list[tuple[int, float]], size: int, deadline: float) -> bool:
    """Whether a batch of this size should be done by the deadline; larger ones take no longer a tile."""
    before, took = taken[-1]
    return time.monotonic() + took * size / before <= deadline


def _hollow(row: EncoderRow, place: torch.device, *, memory: int | None) -> Encoder:
    """The network with all weights alike, made without drawing any: a billion take a second so."""
    network = build_empty(row)
    need = sum(p.numel() * p.element_size() for p in network.parameters()) * _WORKING
    if place.type == "cpu" and memory is not None and need > memory:
        raise MicrotomeError(
            f"{row.name} needs {need / 2**30:.1f} GiB, and {memory / 2**30:.1f} can be had",
            action="Give it more memory, or name a smaller --encoder",
        )
    network = network.to_empty(device=place).eval().requires_grad_(requires_grad=False)
    for values in (*network.parameters(), *network.buffers()):
        # Small, so that nothing overflows; an index points to the first.
        values.fill_(0.01) if values.is_floating_point() else values.zero_()
    module: nn.Module = pooled(row, network)
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Encoder(row, module, "none", place)
