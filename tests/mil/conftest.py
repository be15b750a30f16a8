"""Tiny stores and encoders: everything that `mil` needs, without a slide or a download."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mil.encoder import Encoder
from mil.encoders import untrained_encoder
from tiling.codecs import Raw
from tiling.output import Output
from tiling.shards import array_metadata, shard_path, write_shard
from tiling.store import TileStore, make_array
from wsi.durable import make_folder, write_file

MakeStore = Callable[..., TileStore]


@pytest.fixture
def make_store(tmp_path: Path, make_store_in: MakeStore) -> MakeStore:
    """Commit a store of random tiles: 11 of them, in shards of 4."""
    return partial(make_store_in, tmp_path)


@pytest.fixture(scope="session")
def make_store_in() -> MakeStore:
    """`make_store` for a folder that more than one test uses."""

    def make(
        root: Path, slide_id: str = "slide-1", *, folder: str = "out", seed: int = 0, **recipe: Any
    ) -> TileStore:
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

    return make


@pytest.fixture(scope="session")
def tiny_encoder() -> Encoder:
    """0.3 million random weights, 64 features."""
    return untrained_encoder("timm:test_vit", seed=1)
