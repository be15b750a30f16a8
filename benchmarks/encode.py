"""Tiles encoded a second, against a plain loop over the same timm network in fp32.

    python -m benchmarks.encode [--device cpu] [--threads 2] [ENCODER ...]

Weights are drawn at random: they do not change the speed. Tiles have the network's input size, so that
both sides do the same work. Ways take turns, and the best of several rounds counts, so that other work on
the machine disturbs all of them alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from mil.device import Precision, best_precision
from mil.encode import BATCH_SIZE, encode_tiles
from mil.encoders import ENCODERS, untrained_encoder
from mil.torchvision_shim import import_timm

ROUNDS = 5
TILES = 2 * BATCH_SIZE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("encoders", nargs="*", default=sorted(ENCODERS), metavar="ENCODER")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'encoder':24}{'way':14}{'tiles/s':>9}{'ratio':>8}")
    for name in options.encoders:
        speeds = measure(ways(name, options.device))
        for way, speed in speeds.items():
            print(f"{name:24}{way:14}{speed:9.1f}{speed / speeds['plain timm']:8.2f}")
    print(f"chosen by default here: {best_precision(torch.device(options.device)).value}")


def ways(name: str, device: str) -> dict[str, Callable[[], object]]:
    """Each encodes `TILES` tiles; the plain loop gets them ready as floats, at no cost to it."""
    encoder = untrained_encoder(name, seed=0, device=device)
    size = encoder.row.transform.input_size
    tiles = np.random.default_rng(0).integers(0, 256, (TILES, size, size, 3), np.uint8)
    plain = import_timm().create_model(encoder.row.timm_name, num_classes=0).eval().to(device)
    batch = torch.rand(BATCH_SIZE, 3, size, size, device=device)

    def loop() -> object:
        with torch.no_grad():
            return [plain(batch).cpu() for _ in range(TILES // BATCH_SIZE)]

    found: dict[str, Callable[[], object]] = {"plain timm": loop}
    for precision in Precision:
        found[f"ours {precision.value}"] = lambda p=precision: encode_tiles(encoder, tiles, precision=p)
    return found


def measure(found: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Tiles a second of each way."""
    best = dict.fromkeys(found, float("inf"))
    for _ in range(ROUNDS):
        for way, encode in found.items():
            start = time.perf_counter()
            encode()
            best[way] = min(best[way], time.perf_counter() - start)
    return {way: TILES / seconds for way, seconds in best.items()}


if __name__ == "__main__":
    main()
