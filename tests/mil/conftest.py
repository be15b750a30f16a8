"""Tiny stores and encoders: everything that `mil` needs, without a slide or a download."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from corpus.stores import make_store as make_store_there
from mil.encoder import Encoder
from mil.encoders import untrained_encoder
from tiling.store import TileStore

MakeStore = Callable[..., TileStore]


@pytest.fixture
def make_store(tmp_path: Path, make_store_in: MakeStore) -> MakeStore:
    """Commit a store of random tiles: 11 of them, in shards of 4."""
    return partial(make_store_in, tmp_path)


@pytest.fixture(scope="session")
def make_store_in() -> MakeStore:
    """`make_store` for a folder that more than one test uses."""
    return make_store_there


@pytest.fixture(scope="session")
def tiny_encoder() -> Encoder:
    """0.3 million random weights, 64 features."""
    return untrained_encoder("timm:test_vit", seed=1)
