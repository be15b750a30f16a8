"""Heads and bags that the tests of explanations share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from mil.bags import Bag
from mil.heads import HEADS, Head, build_head

DIM, CLASSES = 6, 3
SMALL = {"hidden": 16, "attention": 8, "heads": 2, "landmarks": 8, "classifier": 8}
"""Settings that keep heads quick, where they have them."""

MakeBag = Callable[..., Bag]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Bags this small are judged sooner by one thread than by several that wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_bag() -> MakeBag:
    """A bag of random features, in a raster four tiles wide."""

    def make(count: int = 9, *, seed: int = 0, name: str = "s", patient: str | None = None) -> Bag:
        rows = np.arange(count)
        return Bag(
            slide_id=f"{name}{seed}",
            features=np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32),
            origins=np.stack([rows % 4, rows // 4], axis=1).astype(np.int32) * 100,
            patient=patient,
        )

    return make


@pytest.fixture(params=sorted(HEADS))
def head(request: pytest.FixtureRequest) -> Head:
    """Each head, with random weights that say something."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        had = inspect.signature(HEADS[request.param]).parameters
        settings = {name: value for name, value in SMALL.items() if name in had}
        made = build_head(request.param, dim=DIM, classes=CLASSES, settings=settings).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.mul_(2)
    return made
