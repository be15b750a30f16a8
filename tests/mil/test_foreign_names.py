"""Laws of loading: other programs' files give the network that they stand for, or are refused by name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from mil.encoder import EncoderRow, Pooling
from mil.encoders import ENCODERS, load_encoder
from mil.networks.architecture import build
from mil.networks.foreign_names import dinov2_names, transformers_names, without
from mil.networks.torchvision_shim import ensure_torchvision
from wsi.errors import UsageError

State = dict[str, Tensor]
WIDTH, HEADS, DEPTH = 24, 3, 2
SIZE = 56
"""Pixels along each side of the small networks' input."""


def small(name: str, *, patch: int, **settings: Any) -> EncoderRow:
    """A row with few and narrow layers, under the name that the tests load."""
    row = ENCODERS[name]
    narrow = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "img_size": SIZE, "patch_size": patch}
    return dataclasses.replace(
        row,
        name="small",
        settings={**row.settings, **narrow, **settings},
        dim=WIDTH * (2 if row.pooling is Pooling.CLASS_AND_MEAN else 1),
        transform=dataclasses.replace(row.transform, input_size=SIZE, resized=None),
    )


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[EncoderRow, State], torch.nn.Module]:
    """Loads a state into a row by way of a file, as a user does."""

    def through_a_file(row: EncoderRow, state: State) -> torch.nn.Module:
        monkeypatch.setitem(ENCODERS, "small", row)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "w.safetensors")
        return load_encoder("small", weights=tmp_path / "w.safetensors").module

    return through_a_file


def picture(size: int = SIZE) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(5))


# ViT and DINOv2, written from the papers -----------------------------------------------------------------


def transformers_state(
    *, patch: int, dino: bool, registers: int = 0, swiglu: int = 0, grid: int | None = None, seed: int = 0
) -> State:
    """Random tensors under the names that transformers' files have."""
    generator = torch.Generator().manual_seed(seed)
    side = grid or SIZE // patch

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    state = {
        "embeddings.cls_token": draw(1, 1, WIDTH),
        "embeddings.position_embeddings": draw(1, 1 + side**2, WIDTH),
        "embeddings.patch_embeddings.projection.weight": draw(WIDTH, 3, patch, patch) * 0.3,
        "embeddings.patch_embeddings.projection.bias": draw(WIDTH),
        "layernorm.weight": 1 + draw(WIDTH),
        "layernorm.bias": draw(WIDTH),
    }
    if dino:
        state["embeddings.mask_token"] = draw(1, WIDTH)
    if registers:
        state["embeddings.register_tokens"] = draw(1, registers, WIDTH)
    hidden = swiglu or 4 * WIDTH
    norms = ("norm1", "norm2") if dino else ("layernorm_before", "layernorm_after")
    ways = ("mlp.weights_in", "mlp.weights_out") if swiglu else ("mlp.fc1", "mlp.fc2")
    first, second = ways if dino else ("intermediate.dense", "output.dense")
    for number in range(DEPTH):
        block = f"encoder.layer.{number}."
        shapes = {
            **{f"attention.attention.{role}": (WIDTH, WIDTH) for role in ("query", "key", "value")},
            "attention.output.dense": (WIDTH, WIDTH),
            first: (hidden * (2 if swiglu else 1), WIDTH),
            second: (WIDTH, hidden),
        }
        for layer, shape in shapes.items():
            state[f"{block}{layer}.weight"] = draw(*shape)
            state[f"{block}{layer}.bias"] = draw(shape[0])
        for norm in norms:
            state[f"{block}{norm}.weight"] = 1 + draw(WIDTH)
            state[f"{block}{norm}.bias"] = draw(WIDTH)
        if dino:
            state[f"{block}layer_scale1.lambda1"] = draw(WIDTH)
            state[f"{block}layer_scale2.lambda1"] = draw(WIDTH)
    return state


def tokens_by_hand(
    state: State, x: Tensor, *, patch: int, eps: float, positions: Tensor | None = None
) -> Tensor:
    """``(b, 1 + registers + patches, d)``: the network that the names stand for, in a dozen lines.

    `positions`, ``(1, 1 + patches, d)``, stand in for the state's own.
    """

    def linear(name: str, h: Tensor) -> Tensor:
        return h @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, h: Tensor) -> Tensor:
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
        return h * state[f"{name}.weight"] + state[f"{name}.bias"]

    batch, side = len(x), x.shape[-1] // patch
    cut = x.reshape(batch, 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5).reshape(batch, side**2, -1)
    kernel = state["embeddings.patch_embeddings.projection.weight"].reshape(WIDTH, -1)
    h = cut @ kernel.T + state["embeddings.patch_embeddings.projection.bias"]
    h = torch.cat([state["embeddings.cls_token"].expand(batch, -1, -1), h], dim=1)
    h = h + (state["embeddings.position_embeddings"] if positions is None else positions)
    if (registers := state.get("embeddings.register_tokens")) is not None:
        h = torch.cat([h[:, :1], registers.expand(batch, -1, -1), h[:, 1:]], dim=1)
    dino = "embeddings.mask_token" in state
    before, after = ("norm1", "norm2") if dino else ("layernorm_before", "layernorm_after")
    for number in range(DEPTH):
        block = f"encoder.layer.{number}."
        z = norm(block + before, h)
        q, k, v = (
            linear(f"{block}attention.attention.{role}", z).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for role in ("query", "key", "value")
        )
        weights = (q @ k.transpose(-1, -2) / (WIDTH / HEADS) ** 0.5).softmax(dim=-1)
        z = linear(f"{block}attention.output.dense", (weights @ v).transpose(1, 2).flatten(2))
        h = h + z * state.get(f"{block}layer_scale1.lambda1", torch.ones(()))
        z = norm(block + after, h)
        if f"{block}mlp.weights_in.weight" in state:
            gate, value = linear(f"{block}mlp.weights_in", z).chunk(2, dim=-1)
            z = linear(f"{block}mlp.weights_out", gate * gate.sigmoid() * value)
        else:
            first, second = ("mlp.fc1", "mlp.fc2") if dino else ("intermediate.dense", "output.dense")
            z = linear(block + second, functional.gelu(linear(block + first, z)))
        h = h + z * state.get(f"{block}layer_scale2.lambda1", torch.ones(()))
    return norm("layernorm", h)


CASES = [
    ("phikon", {"patch": 14, "dino": False}, {}, 1e-12),
    ("phikon-v2", {"patch": 14, "dino": True}, {}, 1e-6),
    ("midnight-12k", {"patch": 14, "dino": True, "swiglu": 64}, {"mlp_ratio": 128 / WIDTH}, 1e-6),
    ("hibou-b", {"patch": 14, "dino": True, "swiglu": 64, "registers": 4}, {"mlp_ratio": 128 / WIDTH}, 1e-6),
]


@pytest.mark.parametrize(("name", "kind", "settings", "eps"), CASES)
@torch.inference_mode()
def test_a_file_of_transformers_gives_the_network_that_its_names_stand_for(
    name: str, kind: dict[str, Any], settings: dict[str, Any], eps: float, load: Any
) -> None:
    row = small(name, patch=kind["patch"], **settings)
    state = transformers_state(**kind)
    tokens = tokens_by_hand(state, picture(), patch=kind["patch"], eps=eps)
    expected = tokens[:, 0]
    if row.pooling is Pooling.CLASS_AND_MEAN:
        expected = torch.cat([expected, tokens[:, 1 + kind.get("registers", 0) :].mean(dim=1)], dim=1)
    features = load(row, state)(picture())
    assert expected.std() > 0.1
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_the_halves_of_swiglu_and_the_places_of_query_and_key_matter(load: Any) -> None:
    """What the equality above would not show if the random network were insensitive to them."""
    name, kind, settings, _ = CASES[3]
    row, state = small(name, patch=14, **settings), transformers_state(**kind)
    features = load(row, state)(picture())
    swapped = dict(state)
    for which in ("weight", "bias"):
        gate, value = state[f"encoder.layer.0.mlp.weights_in.{which}"].chunk(2)
        swapped[f"encoder.layer.0.mlp.weights_in.{which}"] = torch.cat([value, gate])
    assert (load(row, swapped)(picture()) - features).abs().max() > 0.05
    swapped = dict(state)
    first, second = (f"encoder.layer.0.attention.attention.{role}.weight" for role in ("query", "value"))
    swapped[first], swapped[second] = state[second], state[first]
    assert (load(row, swapped)(picture()) - features).abs().max() > 0.05


def to_transformers(state: State) -> State:
    """timm's names into transformers' DINOv2, written the other way round."""
    renamed = {}
    for name, tensor in state.items():
        if "attn.qkv" in name:
            number, kind = re.findall(r"blocks\.(\d+)\.attn\.qkv\.(\w+)", name)[0]
            for role, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[f"encoder.layer.{number}.attention.attention.{role}.{kind}"] = part
            continue
        foreign = name
        for ours, theirs in (
            (r"^blocks\.", "encoder.layer."),
            (r"attn\.proj", "attention.output.dense"),
            (r"ls(\d)\.gamma", r"layer_scale\1.lambda1"),
            (r"^norm\.", "layernorm."),
            (r"^cls_token", "embeddings.cls_token"),
            (r"^pos_embed", "embeddings.position_embeddings"),
            (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
        ):
            foreign = re.sub(ours, theirs, foreign)
        renamed[foreign] = tensor
    return renamed


def test_renaming_is_undone_by_the_inverse_and_leaves_timms_names_alone() -> None:
    state = dict(build(small("phikon-v2", patch=14), seed=4).state_dict())
    foreign = to_transformers(state)
    assert not foreign.keys() & state.keys()
    for renamed in (transformers_names(foreign), transformers_names(state), dinov2_names(state)):
        assert renamed.keys() == state.keys()
        assert all(torch.equal(renamed[name], state[name]) for name in state)


@torch.inference_mode()
def test_dinov2s_own_file_is_the_same_network_as_transformers_of_it(load: Any) -> None:
    name, kind, settings, _ = CASES[3]
    row, state = small(name, patch=14, **settings), transformers_state(**kind)
    fused = {f"blocks.{n}.attn.qkv.{k}" for n in range(DEPTH) for k in ("weight", "bias")}
    own = {}
    for new, tensor in transformers_names(state).items():
        if new in fused or new.startswith("blocks."):
            own[new.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")] = tensor
        elif new not in ("cls_token", "pos_embed", "reg_token"):
            own[new] = tensor
    own |= {
        "cls_token": state["embeddings.cls_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        "register_tokens": state["embeddings.register_tokens"],
    }
    assert any("w12" in new for new in own)
    torch.testing.assert_close(load(row, own)(picture()), load(row, state)(picture()), atol=0, rtol=0)


# Positions -----------------------------------------------------------------------------------------------


def bicubic(picture: np.ndarray, size: int) -> np.ndarray:
    """``(g, g, d)`` to ``(size, size, d)``: Keys' kernel with a = -0.75, edges repeated, nothing smoothed."""

    def kernel(t: float) -> float:
        t, a = abs(t), -0.75
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    side = len(picture)
    matrix = np.zeros((size, side))
    for to in range(size):
        where = (to + 0.5) * side / size - 0.5
        for near in range(int(np.floor(where)) - 1, int(np.floor(where)) + 3):
            matrix[to, min(max(near, 0), side - 1)] += kernel(where - near)
    return np.einsum("ai,bj,ijd->abd", matrix, matrix, picture)


@torch.inference_mode()
def test_positions_of_another_size_are_resampled_as_transformers_does(load: Any) -> None:
    row = small("phikon-v2", patch=14)
    state = transformers_state(patch=14, dino=True, grid=9)  # a network for 126 pixels, used at 56
    own = state["embeddings.position_embeddings"]
    resampled = bicubic(own[0, 1:].reshape(9, 9, WIDTH).double().numpy(), SIZE // 14)
    positions = torch.cat([own[:, :1], torch.from_numpy(resampled).float().reshape(1, -1, WIDTH)], dim=1)
    module = load(row, state)
    torch.testing.assert_close(module.pos_embed, positions, atol=1e-5, rtol=1e-5)
    expected = tokens_by_hand(state, picture(), patch=14, eps=1e-6, positions=positions)[:, 0]
    torch.testing.assert_close(module(picture()), expected, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_positions_of_another_size_are_resampled_as_timm_does(load: Any) -> None:
    row = small("kaiko-vitl14", patch=14)
    state = dict(build(row, seed=1).state_dict())
    state["pos_embed"] = torch.randn(1, 81, WIDTH, generator=torch.Generator().manual_seed(2))
    planes = state["pos_embed"][0].T.reshape(WIDTH, 9, 9).numpy()
    pillow = [np.asarray(Image.fromarray(plane).resize((4, 4), Image.Resampling.BICUBIC)) for plane in planes]
    found = load(row, state).pos_embed
    expected = torch.from_numpy(np.stack(pillow)).reshape(1, WIDTH, 16).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # Pillow always smooths


def test_positions_of_another_size_are_refused_where_nobody_said_how(load: Any) -> None:
    row = small("uni", patch=14)
    state = dict(build(row).state_dict())
    state["pos_embed"] = torch.zeros(1, 1 + 81, WIDTH)
    with pytest.raises(UsageError, match=r"position embeddings are for 9 x 9 patches, and small has 4 x 4"):
        load(row, state)
    state["pos_embed"] = torch.zeros(1, 1 + 80, WIDTH)  # no square
    with pytest.raises(UsageError, match=r"1 of another shape \(pos_embed\)"):
        load(row, state)


# Refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layernorm.bias"), r"1 missing \(norm.bias\)$"),
        (
            lambda state: state.pop("encoder.layer.1.layer_scale1.lambda1"),
            r"1 missing \(blocks.1.ls1.gamma\)$",
        ),
        (
            lambda state: state.pop("encoder.layer.0.attention.attention.key.weight"),
            r"1 missing \(blocks.0.attn.qkv.weight\); "
            r"2 unexpected \(encoder.layer.0.attention.attention.query.weight, .*value.weight\)$",
        ),
        (
            lambda state: state.update({"head.mlp.0.weight": torch.zeros(1)}),
            None,
        ),  # timm's classifier: "head."
        (lambda state: state.update({"dino_head.mlp.0.weight": torch.zeros(1)}), r"1 unexpected \(dino_head"),
        (
            lambda state: state.update({"encoder.layer.2.norm1.bias": torch.zeros(1)}),
            r"1 unexpected \(blocks.2",
        ),
        (
            lambda state: state.update({"encoder.layer.0.new.bias": torch.zeros(1)}),
            r"1 unexpected \(encoder.la",
        ),
        (lambda state: state.clear() or state.update(x=torch.zeros(1)), r"missing .*; 1 unexpected \(x\)$"),
    ],
)
def test_a_partial_or_foreign_state_is_refused_by_the_names_of_its_tensors(
    change: Callable[[State], Any], message: str | None, load: Any
) -> None:
    row = small("phikon-v2", patch=14)
    state = transformers_state(patch=14, dino=True)
    change(state)
    if message is None:
        load(row, state)
        return
    with pytest.raises(UsageError) as caught:
        load(row, state)
    assert re.search(message, caught.value.reason)


def test_what_pre_training_alone_needed_is_left_out_only_where_the_row_names_it(load: Any) -> None:
    phikon = small("phikon", patch=14)
    state = transformers_state(patch=14, dino=False)
    plain = load(phikon, state).state_dict()
    more = {
        "pooler.dense.weight": torch.zeros(WIDTH, WIDTH),
        "embeddings.mask_token": torch.zeros(1, 1, WIDTH),
    }
    full = load(phikon, {**state, **more}).state_dict()
    assert all(torch.equal(full[name], plain[name]) for name in plain)
    uni = small("uni", patch=14)
    with pytest.raises(UsageError, match=r"1 unexpected \(mask_token\)"):
        load(uni, {**build(uni).state_dict(), "mask_token": torch.zeros(1, WIDTH)})


def test_names_to_leave_out_are_exact_unless_they_end_with_a_dot() -> None:
    state = {name: torch.zeros(1) for name in ("fc.weight", "fc", "fc2.weight", "layer4.0.bias", "layer4")}
    assert set(without(state, ["fc", "layer4."])) == {"fc.weight", "fc2.weight", "layer4"}
    assert set(without(state, [])) == set(state)


def test_a_file_from_before_batches_were_counted_loads(tmp_path: Path) -> None:
    network = build(ENCODERS["resnet50-layer3"], seed=1)
    state = {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}
    state["layer4.0.conv1.weight"] = torch.zeros(2, 2)
    state["fc.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "resnet50-19c8e357.pth")
    loaded = load_encoder("resnet50-layer3", weights=tmp_path / "resnet50-19c8e357.pth")
    tiles = torch.randint(
        0, 256, (1, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    assert loaded(tiles).shape == (1, 1024)
    del state["layer1.0.bn1.running_var"]
    torch.save(state, tmp_path / "partial.bin")
    with pytest.raises(UsageError, match=r"1 missing \(layer1.0.bn1.running_var\)"):
        load_encoder("resnet50-layer3", weights=tmp_path / "partial.bin")


def test_half_precision_files_are_computed_with_in_full(load: Any) -> None:
    row = small("uni", patch=14)
    state = {name: tensor.half() for name, tensor in build(row, seed=3).state_dict().items()}
    loaded = load(row, state).state_dict()
    assert all(torch.equal(loaded[name], state[name].float()) for name in state)
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}


# transformers itself, where it is installed --------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind", "settings", "eps"), CASES)
@pytest.mark.filterwarnings("default")
@torch.inference_mode()
def test_a_network_that_transformers_saved_gives_the_same_vectors(
    name: str,
    kind: dict[str, Any],
    settings: dict[str, Any],
    eps: float,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    ensure_torchvision()
    transformers = pytest.importorskip("transformers", reason="a reference that is no dependency")
    common = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
              "patch_size": kind["patch"]}  # fmt: skip
    if not kind["dino"]:
        config = transformers.ViTConfig(intermediate_size=4 * WIDTH, image_size=SIZE, **common)
        network = transformers.ViTModel(config)
    else:
        which = "Dinov2WithRegisters" if "registers" in kind else "Dinov2"
        side = (
            126 if name == "midnight-12k" else SIZE
        )  # as published: used at another size than it was built for
        config = getattr(transformers, f"{which}Config")(
            image_size=side, use_swiglu_ffn="swiglu" in kind, **common
        )
        network = getattr(transformers, f"{which}Model")(config)
    for seed, tensor in enumerate(network.parameters()):
        torch.nn.init.normal_(tensor, std=0.3, generator=torch.Generator().manual_seed(seed))
    network.eval().save_pretrained(tmp_path)
    tokens = network(picture()).last_hidden_state
    row = small(name, patch=kind["patch"], **settings)
    expected = tokens[:, 0]
    if row.pooling is Pooling.CLASS_AND_MEAN:
        expected = torch.cat([expected, tokens[:, 1:].mean(dim=1)], dim=1)
    monkeypatch.setitem(ENCODERS, "small", row)
    encoder = load_encoder("small", weights=tmp_path / "model.safetensors")
    torch.testing.assert_close(encoder.module(picture()), expected, atol=1e-5, rtol=1e-5)
