"""Tiny stores and encoders: everything that `mil` needs, without a slide or a download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mil.encoders import Encoder, untrained_encoder
from tiling.output import Output
from tiling.store import TileStore, make_array

MakeStore = Callable[..., TileStore]


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    """Commit a store of random tiles: 11 of them, in shards of 4."""

    def make(slide_id: str = "slide-1", *, folder: str = "out", seed: int = 0, **recipe: Any) -> TileStore:
        rng = np.random.default_rng(seed)
        count, size, step = 11, 16, 4
        store = TileStore(Output(tmp_path / folder), slide_id)
        stain = {"method": "Macenko", "light": 240.0}
        content = {
            "step": "tiles",
            "seed": seed,
            "spec": {"size_px": size, "mpp": 0.5, "overlap_px": 0},
            "stain": stain,
            "tissue": {"method": "Otsu"},
            "min_tissue": 0.25,
            "tiles_per_shard": step,
        }
        with store.output.lock():  # makes the work folder
            draft = store.begin("tiles", content | recipe)
        assert draft is not None
        origins = np.stack([np.arange(count) * 32, np.full(count, 64)], axis=1).astype(np.int32)
        places = make_array(draft, "origins", shape=(count, 2), rows_per_file=count, dtype=np.int32, fill=-1)
        places.write_all(origins)
        pixels = make_array(
            draft, "pixels", shape=(count, size, size, 3), rows_per_file=step, dtype=np.uint8, fill=255
        )
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            values = rng.integers(0, 256, (rows.stop - rows.start, size, size, 3), np.uint8)
            draft.finish_part(f"pixels/{start}", [pixels.write(rows, values)])
        draft.publish({"tiles": count})
        return store

    return make


@pytest.fixture(scope="session")
def tiny_encoder() -> Encoder:
    """0.3 million random weights, 64 features."""
    return untrained_encoder("timm:test_vit", seed=1)
