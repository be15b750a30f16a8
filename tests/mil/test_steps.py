"""Steps of encoding: a word on tiles that the encoder was not made for, said once."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import pytest

from mil.encoder import Encoder
from mil.features import feature_items
from mil.steps import Encoding, encode_steps
from tiling.pipeline import Job
from tiling.store import TileStore
from wsi.errors import UsageError

MakeStore = Callable[..., TileStore]


def trained_at(encoder: Encoder, mpp: float | None) -> Encoder:
    return dataclasses.replace(encoder, row=dataclasses.replace(encoder.row, mpp=mpp))


def encode(encoder: Encoder, stores: list[TileStore]) -> None:
    (step,) = encode_steps(Encoding.by(encoder))
    for store in stores:
        step.make(Job(store, None, lambda done, total: None))


@pytest.mark.parametrize(("mpp", "times"), [(None, 0), (0.5, 0), (1.0, 1), (0.25, 1)])
def test_tiles_far_from_what_the_encoder_was_trained_at_are_warned_of_once(
    mpp: float | None,
    times: int,
    make_store: MakeStore,
    tiny_encoder: Encoder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stores = [make_store("a"), make_store("b", seed=1)]
    with caplog.at_level(logging.WARNING):
        encode(trained_at(tiny_encoder, mpp), stores)
    words = [record.getMessage() for record in caplog.records]
    assert len(words) == times
    assert all("a: " in word and "trained at" in word and "tiles are at 0.5" in word for word in words)


def test_a_step_is_named_after_the_item_that_it_makes(tiny_encoder: Encoder) -> None:
    steps = encode_steps(Encoding.by(tiny_encoder), contexts=[4.0, 1.0])
    assert tuple(step.item for step in steps) == feature_items(tiny_encoder.key, [1.0, 4.0])
    with pytest.raises(UsageError, match="twice"):
        encode_steps(Encoding.by(tiny_encoder), contexts=[1.0, 1])
