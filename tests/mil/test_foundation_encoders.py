"""Laws of the pathology encoders' rows: architecture, pooling and input as published."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mil import encoders
from mil.encoder import EncoderRow, Pooling
from mil.encoders import ENCODERS, check_mpp
from mil.foundation import FOUNDATION
from mil.networks.architecture import build, build_empty, pooled
from mil.networks.torchvision_shim import import_timm

PUBLISHED = {
    "uni": (1024, "303.4M"),
    "uni2-h": (1536, "681.4M"),
    "virchow": (2560, "631.2M"),
    "virchow2": (2560, "631.2M"),
    "phikon": (768, "85.8M"),
    "phikon-v2": (1024, "303.4M"),
    "h-optimus-0": (1536, "1.13B"),
    "h-optimus-1": (1536, "1.13B"),
    "h0-mini": (1536, "85.7M"),
    "prov-gigapath": (1536, "1.13B"),
    "hibou-b": (768, "85.7M"),
    "hibou-l": (1024, "303.7M"),
    "kaiko-vits16": (384, "21.7M"),
    "kaiko-vits8": (384, "21.7M"),
    "kaiko-vitb16": (768, "85.8M"),
    "kaiko-vitb8": (768, "85.8M"),
    "kaiko-vitl14": (1024, "303.2M"),
    "midnight-12k": (3072, "1.13B"),  # published as 1.14B, with the positions of 518 pixels: see below
    "lunit-vits16": (384, "21.7M"),
    "lunit-vits8": (384, "21.7M"),
    "ctranspath": (768, "27.5M"),
}
"""Length of the vector and number of parameters, from model cards, papers and LazySlide's table of models."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BIOPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HIBOU = ((0.7068, 0.5755, 0.7220), (0.1950, 0.2316, 0.1816))
LUNIT = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

INPUTS = {
    "uni": (IMAGENET, "bilinear"),
    "uni2-h": (IMAGENET, "bilinear"),
    "virchow": (IMAGENET, "bicubic"),
    "virchow2": (IMAGENET, "bicubic"),
    "phikon": (IMAGENET, "bilinear"),
    "phikon-v2": (IMAGENET, "bicubic"),
    "h-optimus-0": (BIOPTIMUS, "bicubic"),
    "h-optimus-1": (BIOPTIMUS, "bicubic"),
    "h0-mini": (BIOPTIMUS, "bicubic"),
    "prov-gigapath": (IMAGENET, "bicubic"),
    "hibou-b": (HIBOU, "bicubic"),
    "hibou-l": (HIBOU, "bicubic"),
    "midnight-12k": (HALF, "bilinear"),
    "ctranspath": (IMAGENET, "bilinear"),
    **{f"kaiko-vit{size}": (HALF, "bilinear") for size in ("s16", "s8", "b16", "b8", "l14")},
    **{f"lunit-vits{patch}": (LUNIT, "bicubic") for patch in (16, 8)},
}

VITS = {
    "uni": (1, 197, 24, 16, 4096, "gelu", True),
    "uni2-h": (9, 256, 24, 24, 8192, "swiglu", True),
    "virchow": (1, 257, 32, 16, 6832, "swiglu", True),
    "virchow2": (5, 261, 32, 16, 6832, "swiglu", True),
    "phikon": (1, 197, 12, 12, 3072, "gelu", False),
    "phikon-v2": (1, 197, 24, 16, 4096, "gelu", True),
    "h-optimus-0": (5, 256, 40, 24, 8192, "swiglu", True),
    "h-optimus-1": (5, 256, 40, 24, 8192, "swiglu", True),
    "h0-mini": (5, 256, 12, 12, 4096, "swiglu", True),
    "prov-gigapath": (1, 197, 40, 24, 8192, "swiglu", True),
    "hibou-b": (5, 256, 12, 12, 4096, "swiglu", True),
    "hibou-l": (5, 256, 24, 16, 5472, "swiglu", True),
    "kaiko-vits16": (1, 197, 12, 6, 1536, "gelu", False),
    "kaiko-vits8": (1, 785, 12, 6, 1536, "gelu", False),
    "kaiko-vitb16": (1, 197, 12, 12, 3072, "gelu", False),
    "kaiko-vitb8": (1, 785, 12, 12, 3072, "gelu", False),
    "kaiko-vitl14": (5, 256, 24, 16, 4096, "gelu", True),
    "midnight-12k": (1, 257, 40, 24, 8192, "swiglu", True),
    "lunit-vits16": (1, 197, 12, 6, 1536, "gelu", False),
    "lunit-vits8": (1, 785, 12, 6, 1536, "gelu", False),
}
"""Tokens before the patches, positions, blocks, attention heads, width of the first layer of the MLP (both
halves of SwiGLU), what it is, whether blocks have layer scales: a count of parameters hardly shows them."""

NAMES = [row.name for row in FOUNDATION]


def rounded(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count > 1e9 else f"{count / 1e6:.1f}M"


@cache
def empty(architecture: str) -> Any:
    """The network of rows that are alike, built once, without memory for its weights."""
    return build_empty(next(row for row in ENCODERS.values() if described(row) == architecture)).eval()


@cache
def measured(architecture: str) -> tuple[int, tuple[int, ...]]:
    """Its parameters, and the shape of what comes out."""
    row = next(row for row in ENCODERS.values() if described(row) == architecture)
    network, size = empty(architecture), row.transform.input_size
    with torch.inference_mode():
        features = pooled(row, network)(torch.empty(2, 3, size, size, device="meta"))
    assert features.is_meta  # nothing of these sizes was allocated
    return sum(tensor.numel() for tensor in network.parameters()), tuple(features.shape)


def described(row: EncoderRow) -> str:
    return json.dumps([row.timm_name, row.settings, row.pooling.value])


# The table -----------------------------------------------------------------------------------------------


def test_the_table_is_the_one_that_was_looked_up() -> None:
    assert len(NAMES) == len(set(NAMES))
    assert set(NAMES) == set(PUBLISHED) == set(INPUTS)


@pytest.mark.parametrize("name", [*NAMES, "resnet50-layer3", "resnet50", "vit_small_patch16_224"])
def test_an_architecture_gives_vectors_of_its_rows_length(name: str) -> None:
    count, shape = measured(described(ENCODERS[name]))
    assert shape == (2, ENCODERS[name].dim)
    if name in PUBLISHED:
        assert (ENCODERS[name].dim, rounded(count)) == PUBLISHED[name]


@pytest.mark.parametrize("name", sorted(VITS))
def test_a_vision_transformer_has_the_published_parts(name: str) -> None:
    network = empty(described(ENCODERS[name]))
    tokens, positions, depth, heads, width, kind, scaled = VITS[name]
    assert (network.num_prefix_tokens, network.pos_embed.shape[1]) == (tokens, positions)
    assert len(network.blocks) == depth
    for block in network.blocks:
        assert (block.attn.num_heads, block.mlp.fc1.out_features) == (heads, width)
        assert hasattr(block.ls1, "gamma") is hasattr(block.ls2, "gamma") is scaled
        if kind == "swiglu":
            assert block.mlp.fc2.in_features == width // 2
            assert isinstance(block.mlp.act, torch.nn.SiLU)
            assert block.mlp.gate_last is False  # the first half is gated
        else:
            assert block.mlp.fc2.in_features == width
            assert isinstance(block.mlp.act, torch.nn.GELU)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 2 * depth + 1
    assert {norm.eps for norm in norms} == {1e-12 if name == "phikon" else 1e-6}


def test_midnights_published_count_is_that_of_positions_for_518_pixels() -> None:
    count, _ = measured(described(ENCODERS["midnight-12k"]))
    assert rounded(count + (37**2 - 16**2) * 1536) == "1.14B"


def test_prov_gigapath_has_the_number_of_parameters_that_its_authors_notebook_prints() -> None:
    count, _ = measured(described(ENCODERS["prov-gigapath"]))
    assert count == 1134953984  # demo/run_gigapath.ipynb


@pytest.mark.parametrize("name", NAMES)
def test_input_is_that_of_the_model_card(name: str) -> None:
    (mean, std), interpolation = INPUTS[name]
    transform = ENCODERS[name].transform
    assert (transform.mean, transform.std, transform.interpolation.value) == (mean, std, interpolation)
    assert transform.input_size == 224
    assert transform.resized == (256 if name == "prov-gigapath" else None)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_says_where_it_comes_from(name: str) -> None:
    row = ENCODERS[name]
    assert row.source is not None
    assert row.licence
    assert re.search(r"\(20\d\d\)|arXiv \d{4}\.\d{5}|medRxiv", row.source.paper)
    assert row.source.hub or row.source.page
    assert row.source.hub or not row.source.gated
    assert row.mpp in (0.5, 1.0)
    assert json.loads(json.dumps(dict(row.settings))) == row.settings  # it is part of the identity


def test_the_document_has_every_row_as_it_is() -> None:
    text = (Path(encoders.__file__).parents[1] / "docs" / "encoders.md").read_text()
    lines = {
        cells[0].strip("` "): cells
        for line in text.splitlines()
        if line.startswith("| `") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 8
    }
    assert set(lines) == set(ENCODERS)
    for name, row in ENCODERS.items():
        _, dim, size, mpp, pooling, licence, gated, hub = lines[name]
        transform = row.transform
        assert int(dim) == row.dim
        assert size == (f"{transform.input_size} of {transform.resized}" if transform.resized else "224")
        values = [row.mpp, *row.other_mpp] if row.mpp else []
        assert mpp == (", ".join(f"{value:g}" for value in values) or "none")
        assert pooling == row.pooling.value
        assert licence == row.licence
        assert gated == ("yes" if row.source and row.source.gated else "no")
        if row.source and row.source.hub:
            assert hub == f"`{row.source.hub}`"


# Pooling -------------------------------------------------------------------------------------------------


def small(name: str, **settings: Any) -> EncoderRow:
    """A row's architecture with few and narrow layers."""
    row = ENCODERS[name]
    narrow = {"embed_dim": 48, "depth": 2, "num_heads": 3, **settings}
    dim = 48 * (2 if row.pooling is Pooling.CLASS_AND_MEAN else 1)
    return dataclasses.replace(row, settings={**row.settings, **narrow}, dim=dim)


@pytest.mark.parametrize(("name", "registers"), [("virchow", 0), ("virchow2", 4), ("h0-mini", 4)])
@torch.inference_mode()
def test_registers_take_no_part_in_the_mean_of_the_patches(name: str, registers: int) -> None:
    row = small(name)
    network = build(row, seed=1).eval()
    for tensor in network.parameters():
        torch.nn.init.normal_(tensor, std=0.3, generator=torch.Generator().manual_seed(2))
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    tokens = network.forward_features(x)  # type: ignore[operator]
    assert tokens.shape == (2, 1 + registers + 256, 48)
    by_hand = [
        np.concatenate([one[0], np.mean(one[1 + registers :], axis=0, dtype=np.float64)])
        for one in tokens.numpy()
    ]
    features = pooled(row, network)(x)
    np.testing.assert_allclose(features, np.stack(by_hand), atol=1e-5)
    if registers:
        with_registers = tokens[:, 1:].mean(dim=1)
        assert (features[:, 48:] - with_registers).abs().max() > 1e-3


@torch.inference_mode()
def test_the_truncated_resnet_is_the_mean_of_the_third_stage() -> None:
    row = ENCODERS["resnet50-layer3"]
    whole = import_timm().create_model("resnet50", num_classes=0).eval()
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    maps = []
    whole.layer3.register_forward_hook(lambda _, __, output: maps.append(output))
    whole(x)
    network = build(row).eval()
    network.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("layer4.")})
    features = pooled(row, network)(x)
    assert features.shape == (1, 1024)
    torch.testing.assert_close(features, maps[0].mean(dim=(2, 3)), atol=1e-5, rtol=1e-5)


# Resolution ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mpp", "fits"),
    [
        ("uni", 0.5, True),
        ("uni", 0.59, True),
        ("uni", 0.42, True),
        ("uni", 0.61, False),
        ("uni", 0.4, False),
        ("uni", 0.25, False),
        ("ctranspath", 0.5, False),
        ("ctranspath", 1.0, True),
        ("virchow2", 1.9, True),
        ("virchow2", 4.0, False),
        ("resnet50", 8.0, True),
    ],
)
def test_tiles_of_a_resolution_that_was_not_trained_at_get_a_word(name: str, mpp: float, fits: bool) -> None:
    said = check_mpp(ENCODERS[name], mpp)
    if fits:
        assert said is None
    else:
        assert said is not None
        assert said.startswith(f"{name} was trained at {ENCODERS[name].mpp:g} microns per pixel")
        assert f"the tiles are at {mpp:g}" in said


# Identity ------------------------------------------------------------------------------------------------


def test_what_decides_the_features_is_in_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    row = dataclasses.replace(small("virchow2"), name="one")
    changed = dataclasses.replace
    others = [
        row,
        changed(row, pooling=Pooling.CLASS, dim=48),
        changed(row, transform=changed(row.transform, mean=HALF[0])),
        changed(row, transform=changed(row.transform, resized=256)),
        changed(row, settings={**row.settings, "norm_eps": 1e-12}),  # the same tensors, other features
        changed(row, settings={**row.settings, "mlp_layer": "GluMlp"}),
    ]
    seen = set()
    for other in others:
        monkeypatch.setitem(ENCODERS, "one", other)
        identity = encoders.untrained_encoder("one", seed=0).identity()
        assert json.loads(json.dumps(identity)) == identity
        seen.add(json.dumps(identity))
    assert len(seen) == len(others)
