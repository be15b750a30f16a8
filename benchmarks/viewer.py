"""What the viewer does with a million tiles, in CPU-seconds: ``python -m benchmarks.viewer``."""

from __future__ import annotations

import gzip
import resource
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from heatmaps.viewer.layers import Footprints, pack

SIDE, STRIDE = 1000, 100
T = TypeVar("T")


def timed(name: str, work: Callable[[], T]) -> T:
    start = time.process_time()
    result = work()
    print(f"  {name:<28} {time.process_time() - start:8.3f} s")
    return result


def main() -> None:
    x, y = np.meshgrid(np.arange(SIDE) * STRIDE, np.arange(SIDE) * STRIDE)
    origins = np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.int32)
    values = np.random.default_rng(0).random(len(origins)).astype(np.float32)
    for tile in (STRIDE, 2 * STRIDE):
        print(f"{len(origins):,} tiles of {tile} px, every {STRIDE} px")
        size = (SIDE * STRIDE, SIDE * STRIDE)
        places = Footprints(origins, (float(tile),) * 2, (float(STRIDE),) * 2, size, 0.25)
        heatmap = timed("paint", lambda places=places: places.paint("score", values))
        packed = timed("pack", lambda heatmap=heatmap: pack(heatmap, "score"))
        sent = timed("gzip", lambda packed=packed: gzip.compress(packed, 1))
        timed("the tile at a place", lambda places=places: places.at(50_050, 50_050))
        timed("the 12 highest tiles", lambda places=places: places.best(values, 12))
        print(f"  in the page {len(packed) / 1e6:.1f} MB, sent {len(sent) / 1e6:.1f} MB")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
