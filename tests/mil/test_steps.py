"""Steps of encoding: a word on tiles that the encoder was not made for, said once."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import pytest

from mil.device import Precision
from mil.encode import begin_features
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


@pytest.mark.parametrize("begun", [Precision.BF16, Precision.FP32])
def test_features_that_one_machine_began_are_gone_on_with_by_others_in_its_precision(
    begun: Precision, make_store: MakeStore, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is the fastest for those others, who make parts or the rest of them."""
    store, best = make_store("a"), Precision.FP32 if begun is Precision.BF16 else Precision.BF16
    monkeypatch.setattr("mil.encode.best_precision", lambda device: begun)
    step, *_ = encode_steps(Encoding.by(tiny_encoder))
    assert step.parts is not None
    (part, *_) = step.parts.missing(Job(store, None))
    monkeypatch.setattr("mil.encode.best_precision", lambda device: best)
    step.parts.make(Job(store, None, helper="another"), part)
    assert part not in step.parts.missing(Job(store, None))
    step.make(Job(store, None))
    assert store.require(step.item).recipe["precision"] == begun.value
    # What the machine itself would take decides where nothing was begun.
    other = make_store("b", seed=1)
    step.make(Job(other, None))
    assert other.require(step.item).recipe["precision"] == best.value


def test_a_precision_that_this_device_does_not_have_is_begun_anew(
    make_store: MakeStore, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, (step,) = make_store("a"), encode_steps(Encoding.by(tiny_encoder))
    with monkeypatch.context() as on_a_gpu:
        on_a_gpu.setattr("mil.encode.require_precision", lambda precision, device: precision)
        assert begin_features(store, tiny_encoder, precision=Precision.FP16) is not None
    step.make(Job(store, None))
    assert store.require(step.item).recipe["precision"] != "fp16"


def test_an_encoder_is_loaded_by_those_who_prepare_for_it_and_once(tiny_encoder: Encoder) -> None:
    loaded: list[str] = []

    def load() -> Encoder:
        loaded.append("once")
        return tiny_encoder

    steps = encode_steps(Encoding(tiny_encoder.name, load), contexts=[1.0, 4.0])
    assert not loaded
    for step in steps:
        step.prepare()
    assert loaded == ["once"]
