"""How long a million tiles take to be written for QuPath, and how much memory.

Run as ``python -m benchmarks.qupath_tiles [--tiles 1000000] [--plain]``.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from heatmaps.qupath import TileClasses, write_tiles
from tiling.quality import MEASURES

CLASSES = ("normal", "tumour")
OVERLAPPING, TILE = 64, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=1_000_000)
    parser.add_argument("--plain", action="store_true", help="not gzip'ed")
    arguments = parser.parse_args()
    side = math.ceil(math.sqrt(arguments.tiles))
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
    origins = places[: arguments.tiles] * OVERLAPPING
    rng = np.random.default_rng(0)
    names = [f"Tile score: {name}" for name in CLASSES]
    names += ["Attention", "Attention rank", "Uncertainty", "Disagreement", "Tissue share"]
    names += [f"Quality: {name}" for name in MEASURES]
    numbers = {name: rng.random(len(origins), np.float32) for name in names}
    index = (numbers[names[1]] > 0.5).astype(np.int64)
    before = memory()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("tiles.geojson" if arguments.plain else "tiles.geojson.gz")
        start = time.perf_counter()
        write_tiles(
            path,
            origins=origins,
            tile=(TILE, TILE),
            slide_size=(side * OVERLAPPING + TILE,) * 2,
            measurements=numbers,
            slide_id="a slide",
            classes=TileClasses(CLASSES, index),
        )
        seconds = time.perf_counter() - start
        size = path.stat().st_size
    print(f"{len(origins)} tiles of {len(names)} measurements: {seconds:.1f} s, {size / 2**20:.0f} MiB,")
    print(f"{memory() - before:.0f} MiB of memory above what the numbers take")


def memory() -> float:
    """The most that this process has held so far, MiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10


if __name__ == "__main__":
    main()
