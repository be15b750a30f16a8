"""Laws of encoding: every tile once, the same bytes however often it was interrupted, and no NaN."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mil.device import Precision, require_precision
from mil.encode import encode_slide, encode_tiles
from mil.encoder import Encoder
from mil.encoders import load_encoder, untrained_encoder
from mil.networks.compiled import compile_encoder
from tiling.store import TileStore
from wsi.errors import DamagedError, MicrotomeError, RecipeError, UsageError

MakeStore = Callable[..., TileStore]
KEY = "timm-test_vit"
ITEM = f"features/{KEY}"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class FailsAfter(torch.nn.Module):
    """Counts batches, and breaks down after so many."""

    def __init__(self, module: torch.nn.Module, batches: int) -> None:
        super().__init__()
        self.inner, self.left, self.seen = module, batches, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.seen == self.left:
            raise KeyboardInterrupt
        self.seen += 1
        return self.inner(x)


class Overflows(torch.nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.zeros(len(x), 64)
        features[1, 3] = self.value
        return features


def test_features_are_those_of_the_encoder(make_store: MakeStore, tiny_encoder: Encoder) -> None:
    store = make_store()
    seen: list[tuple[int, int]] = []
    encode_slide(
        store, tiny_encoder, precision=Precision.FP32, batch_size=3, progress=lambda *done: seen.append(done)
    )
    features = store.features(KEY)
    assert features.dtype == np.float16
    assert features.shape == (11, 64)
    expected = tiny_encoder(torch.from_numpy(store.read_pixels(slice(0, 11)))).numpy()
    np.testing.assert_allclose(features, expected, atol=2e-3)
    assert seen == [(4, 11), (8, 11), (11, 11)]


def test_the_commit_says_what_was_done(make_store: MakeStore, tiny_encoder: Encoder) -> None:
    store = make_store()
    commit = encode_slide(store, tiny_encoder, precision=Precision.BF16)
    assert commit.recipe["encoder"] == tiny_encoder.identity()
    assert commit.recipe["precision"] == "bf16"
    assert commit.recipe["inputs"] == {"tiles": store.tiles.digest}
    assert store.find(ITEM) == commit


def test_a_second_run_computes_nothing(make_store: MakeStore, tiny_encoder: Encoder) -> None:
    store = make_store()
    first = encode_slide(store, tiny_encoder)
    idle = dataclasses.replace(tiny_encoder, module=FailsAfter(tiny_encoder.module, 0))
    assert encode_slide(store, idle) == first


@pytest.mark.parametrize("batches", [0, 1, 2, 3, 4, 5])
def test_an_interrupted_run_ends_with_the_same_bytes(
    make_store: MakeStore, tiny_encoder: Encoder, batches: int
) -> None:
    """Batches of 2 in shards of 4, 4 and 3: six of them."""
    whole, torn = make_store(folder="whole"), make_store(folder="torn")
    encode_slide(whole, tiny_encoder, batch_size=2)
    dying = FailsAfter(tiny_encoder.module, batches)
    with pytest.raises(KeyboardInterrupt):
        encode_slide(torn, dataclasses.replace(tiny_encoder, module=dying), batch_size=2)
    assert torn.find(ITEM) is None
    rest = FailsAfter(tiny_encoder.module, 99)
    encode_slide(torn, dataclasses.replace(tiny_encoder, module=rest), batch_size=2)
    assert rest.seen == 6 - batches // 2 * 2  # finished shards are kept
    assert tree(torn.folder) == tree(whole.folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 70_000.0])
def test_numbers_that_are_none_are_refused_with_encoder_and_tile(
    make_store: MakeStore, tiny_encoder: Encoder, value: float
) -> None:
    store = make_store()
    broken = dataclasses.replace(tiny_encoder, module=Overflows(value))
    with pytest.raises(MicrotomeError, match=r"timm:test_vit.*tile at \(32, 64\) of slide 'slide-1'"):
        encode_slide(store, broken)
    assert store.find(ITEM) is None


def test_another_identity_or_precision_is_refused(make_store: MakeStore, tiny_encoder: Encoder) -> None:
    store = make_store()
    encode_slide(store, tiny_encoder, precision=Precision.FP32)
    with pytest.raises(RecipeError, match="untrained seed"):
        encode_slide(store, untrained_encoder("timm:test_vit", seed=2), precision=Precision.FP32)
    with pytest.raises(RecipeError, match="precision fp32, not bf16"):
        encode_slide(store, tiny_encoder, precision=Precision.BF16)


@pytest.mark.parametrize("readers", [0, 3])
def test_reading_threads_change_no_byte(make_store: MakeStore, tiny_encoder: Encoder, readers: int) -> None:
    one, other = make_store(folder="one"), make_store(folder="other")
    encode_slide(one, tiny_encoder, batch_size=2)
    encode_slide(other, tiny_encoder, batch_size=2, readers=readers)
    assert tree(one.folder) == tree(other.folder)


def test_a_shard_that_cannot_be_read_ends_it_with_the_item_named_and_the_others_kept(
    make_store: MakeStore, tiny_encoder: Encoder
) -> None:
    store = make_store()
    path = store.path("tiles") / "pixels" / "c" / "1" / "0" / "0" / "0"
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(DamagedError) as caught:
        encode_slide(store, tiny_encoder, readers=2)
    assert caught.value.path == str(store.path("tiles"))
    path.write_bytes(whole)
    rest = FailsAfter(tiny_encoder.module, 99)
    encode_slide(store, dataclasses.replace(tiny_encoder, module=rest), readers=2)
    assert rest.seen == 2  # the first shard was finished and is kept


def test_context_at_the_tiles_own_scale_is_refused(make_store: MakeStore, tiny_encoder: Encoder) -> None:
    store = make_store()
    with pytest.raises(UsageError, match=r"'slide-1' have 0\.5 µm per pixel.*asked for at 0\.5"):
        encode_slide(store, tiny_encoder, context_mpp=0.5)
    assert store.find(f"{ITEM}@0.5") is None


def test_a_lost_shard_is_damage_never_zeros(make_store: MakeStore, tiny_encoder: Encoder) -> None:
    store = make_store()
    encode_slide(store, tiny_encoder)
    (store.path(ITEM) / "c" / "1" / "0").unlink()
    with pytest.raises(DamagedError):
        store.features(KEY)


def test_a_store_without_tiles_is_refused(make_store: MakeStore, tiny_encoder: Encoder) -> None:
    store = TileStore(make_store().output, "another")
    with pytest.raises(UsageError, match="has no tiles"):
        encode_slide(store, tiny_encoder)


def test_the_batch_size_changes_the_last_bit_at_most(make_store: MakeStore, tiny_encoder: Encoder) -> None:
    pixels = make_store().read_pixels(slice(0, 11))
    by = {n: encode_tiles(tiny_encoder, pixels, precision=Precision.FP32, batch_size=n) for n in (1, 4, 64)}
    np.testing.assert_allclose(by[1], by[4], atol=1e-5)
    np.testing.assert_allclose(by[1], by[64], atol=1e-5)


def test_encoding_is_reproducible_to_the_bit(make_store: MakeStore, tiny_encoder: Encoder) -> None:
    pixels = make_store().read_pixels(slice(0, 11))
    for precision in Precision:
        first, second = (encode_tiles(tiny_encoder, pixels, precision=precision) for _ in range(2))
        assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_half_precision_is_near_full_precision(
    make_store: MakeStore, tiny_encoder: Encoder, precision: Precision
) -> None:
    pixels = make_store().read_pixels(slice(0, 3))
    full, half = (encode_tiles(tiny_encoder, pixels, precision=p) for p in (Precision.FP32, precision))
    off = np.abs(half - full).max() / np.abs(full).max()
    assert 0 < off < {Precision.BF16: 0.03, Precision.FP16: 0.005}[precision]
    assert half.dtype == np.float32


def test_fp16_is_refused_on_a_cpu_before_any_work(make_store: MakeStore, tiny_encoder: Encoder) -> None:
    with pytest.raises(UsageError, match=r"fp16 is for GPUs.*--precision"):
        encode_slide(make_store(), tiny_encoder, precision=Precision.FP16)
    assert require_precision(Precision.FP16, torch.device("cuda")) is Precision.FP16


def test_a_compiled_encoder_gives_the_same_features_under_the_same_identity(
    make_store: MakeStore, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # no C++ compiler's time
    with torch.random.fork_rng():
        small = torch.nn.Sequential(torch.nn.AvgPool2d(20), torch.nn.Flatten(), torch.nn.Linear(192, 64))
    encoder = dataclasses.replace(tiny_encoder, module=small.eval())
    compiled = compile_encoder(encoder)
    assert compiled.module is not encoder.module
    assert compiled.identity() == encoder.identity()
    one, other = make_store(folder="one"), make_store(folder="other")
    commits = [encode_slide(one, encoder), encode_slide(other, compiled)]
    assert [commit.record["compiled"] for commit in commits] == [False, True]
    assert commits[0].recipe == commits[1].recipe
    np.testing.assert_allclose(one.features(KEY), other.features(KEY), rtol=1e-2, atol=1e-2)
    assert encode_slide(one, compiled) == commits[0]  # nothing to do: they are the same features


def test_without_a_compiler_it_is_said_before_any_work(
    tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(module: Any) -> Any:
        def fail(x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("No working C++ compiler found\nand more")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UsageError, match=r"for cpu \(No working C\+\+ compiler found\).*--compile"):
        compile_encoder(tiny_encoder)


def test_a_vit_from_a_local_file_encodes_as_any_other(make_store: MakeStore, tmp_path: Path) -> None:
    """A user's own weights: from the file to committed features, without a network."""
    untrained = untrained_encoder("vit_small_patch16_224", seed=1)
    tensors = {name: tensor.contiguous() for name, tensor in untrained.module.state_dict().items()}
    save_file(tensors, tmp_path / "own.safetensors")
    encoder = load_encoder("vit_small_patch16_224", weights=tmp_path / "own.safetensors")
    store = make_store()
    commit = encode_slide(store, encoder, precision=Precision.FP32)
    features = store.features("vit_small_patch16_224")
    assert features.shape == (11, 384)
    assert commit.recipe["encoder"]["weights"].startswith("sha256:")
    expected = untrained(torch.from_numpy(store.read_pixels(slice(0, 11)))).numpy()
    np.testing.assert_allclose(features, expected, rtol=2e-3, atol=2e-3)
