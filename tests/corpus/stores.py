"""Stores of tiles and features without a slide or an encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.codecs import Raw
from tiling.output import Output
from tiling.shards import array_metadata, shard_path, write_shard
from tiling.store import TileStore, make_array
from wsi.durable import make_folder, write_file

DIM, KEY = 6, "enc"
IDENTITY = {"name": KEY, "dim": DIM, "weights": "sha256:0"}


def make_store(
    root: Path, slide_id: str = "slide-1", *, folder: str = "out", seed: int = 0, **recipe: Any
) -> TileStore:
    """Commit a store of random tiles: 11 of them, in shards of 4."""
    rng = np.random.default_rng(seed)
    count, size, step = 11, 16, 4
    store = TileStore(Output(root / folder), slide_id)
    stain = {"method": "Macenko", "light": 240.0}
    content = {
        "step": "tiles",
        "seed": seed,
        "spec": {"size_px": size, "mpp": 0.5, "overlap_px": 0},
        "stain": stain,
        "tissue": {"method": "Otsu"},
        "min_tissue": 0.25,
        "quality": {"min_sharpness": None, "drop_pen": False, "max_pen": 0.1},
        "pixels": {"method": "Raw"},
        "exact": False,
        "tiles_per_shard": step,
    }
    with store.output.lock():  # makes the work folder
        draft = store.begin("tiles", content | recipe)
    assert draft is not None
    origins = np.stack([np.arange(count) * 32, np.full(count, 64)], axis=1).astype(np.int32)
    places = make_array(draft, "origins", shape=(count, 2), rows_per_file=count, dtype=np.int32, fill=-1)
    places.write_all(origins)
    pixels = draft.folder / "pixels"
    make_folder(pixels)
    shape = (count, size, size, 3)
    write_file(pixels / "zarr.json", array_metadata(shape, shard_tiles=step, codec=Raw(), fill=255))
    for start in range(0, count, step):
        values = rng.integers(0, 256, (min(step, count - start), size, size, 3), np.uint8)
        write_shard(shard_path(pixels, start // step), map(Raw().encode, values), slots=step)
    draft.publish({"tiles": count})
    return store


def add_features(
    store: TileStore,
    key: str = KEY,
    *,
    seed: int = 0,
    bad: tuple[int, float] | None = None,
    count: int | None = None,
    zeros: slice = slice(0),
    tamper: Callable[[Path], object] = lambda folder: None,
    **recipe: Any,
) -> NDArray[np.float16]:
    """Commit random features, in files of four rows.

    `bad` puts a number into a row, `zeros` makes rows of zeros, and `tamper` changes what is committed.
    """
    values = np.random.default_rng(seed).normal(size=(count or len(store), DIM)).astype(np.float16)
    if bad:
        values[bad[0], 1] = bad[1]
    values[zeros] = 0
    content = {"step": "features", "inputs": store.inputs("tiles"), "encoder": IDENTITY, **recipe}
    with store.output.lock():
        draft = store.begin(f"features/{key}", content)
        assert draft is not None
        array = make_array(draft, "", shape=values.shape, rows_per_file=4, dtype=np.float16, fill=np.nan)
        for start in range(0, len(values), 4):
            rows = slice(start, min(start + 4, len(values)))
            array.write(rows, values[rows])
        tamper(draft.folder)
        draft.publish({})
    return values
