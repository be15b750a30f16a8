"""Laws of trying a network's speed: it needs no weights, ends in time, and knows what does not fit."""

from __future__ import annotations

import time

import pytest

from mil.encoders import find_row
from mil.speed import encode_speed
from wsi.errors import MicrotomeError, UsageError


def test_a_network_is_tried_without_its_weights_and_in_time() -> None:
    start = time.monotonic()
    found = encode_speed("timm:test_vit", device="cpu", tile_px=64, seconds=0.5)
    assert time.monotonic() - start < 20  # generous: the first batch waits for the libraries
    assert found.dim == find_row("timm:test_vit").dim
    assert found.tiles >= 1
    assert found.tiles_per_second > 0
    assert found.where.startswith("cpu in ")


def test_a_network_that_does_not_fit_is_not_built() -> None:
    with pytest.raises(MicrotomeError, match=r"needs 0\.0 GiB, and 0\.0 can be had"):
        encode_speed("timm:test_vit", device="cpu", tile_px=64, seconds=0, memory=1000)
    with pytest.raises(UsageError, match="no encoder"):
        encode_speed("nonsense", device="cpu", tile_px=64, seconds=0)
