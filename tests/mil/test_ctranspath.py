"""Laws of CTransPath: its authors' file, in an old timm's names, gives the network that these stand for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mil.encoder import EncoderRow
from mil.encoders import ENCODERS, load_encoder
from mil.networks.architecture import build
from mil.networks.conv_stem import ConvStem
from mil.networks.foreign_names import swin_names
from wsi.errors import UsageError

State = dict[str, Tensor]


def swin_by_hand(state: State, x: Tensor, *, heads: tuple[int, ...], window: int) -> Tensor:
    """``(b, d)``: Swin (Liu et al. 2021) by attention among all positions, under timm's old names."""

    def linear(name: str, h: Tensor) -> Tensor:
        h = h @ state[f"{name}.weight"].T
        return h + state[f"{name}.bias"] if f"{name}.bias" in state else h

    def norm(name: str, h: Tensor) -> Tensor:
        return functional.layer_norm(h, h.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    h = functional.conv2d(x, state["patch_embed.proj.0.weight"], stride=2, padding=1)
    for conv, bn in ((3, 1), (6, 4)):
        prefix = f"patch_embed.proj.{bn}."
        mean, variance, scale, shift = (
            state[prefix + part].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        h = ((h - mean) / (variance + 1e-5).sqrt() * scale + shift).relu()
        kernel = state[f"patch_embed.proj.{conv}.weight"]
        h = functional.conv2d(h, kernel, state.get(f"patch_embed.proj.{conv}.bias"),
                              stride=2 if conv == 3 else 1, padding=kernel.shape[-1] // 2)  # fmt: skip
    h = norm("patch_embed.norm", h.permute(0, 2, 3, 1))  # (b, g, g, d)
    for stage, count in enumerate(heads):
        side = h.shape[1]
        h = h.flatten(1, 2)  # (b, g * g, d)
        for number in range(2):
            block = f"layers.{stage}.blocks.{number}."
            shift = window // 2 if number == 1 and side > window else 0
            row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
            row, column = row.flatten(), column.flatten()
            # Shifted windows are cut off at the edge: they do not wrap around.
            of_row, of_column = (
                (where - shift).div(window, rounding_mode="floor") for where in (row, column)
            )
            together = (of_row[:, None] == of_row) & (of_column[:, None] == of_column)
            by = (row[:, None] - row, column[:, None] - column)
            place = (by[0] + window - 1) * (2 * window - 1) + by[1] + window - 1
            table = state[f"{block}attn.relative_position_bias_table"]
            bias = table[place.clamp(0, len(table) - 1)].permute(2, 0, 1)  # (heads, g * g, g * g)
            bias = bias.masked_fill(~together, -torch.inf)
            q, k, v = (
                linear(f"{block}attn.qkv", norm(f"{block}norm1", h)).unflatten(-1, (3, count, -1)).unbind(2)
            )
            a = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5 + bias
            z = torch.einsum("bhij,bjhd->bihd", a.softmax(-1), v).flatten(2)
            h = h + linear(f"{block}attn.proj", z)
            z = functional.gelu(linear(f"{block}mlp.fc1", norm(f"{block}norm2", h)))
            h = h + linear(f"{block}mlp.fc2", z)
        h = h.unflatten(1, (side, side))
        if stage < len(heads) - 1:
            four = [h[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
            merged = torch.cat(four, dim=-1)
            h = linear(
                f"layers.{stage}.downsample.reduction", norm(f"layers.{stage}.downsample.norm", merged)
            )
    return norm("norm", h).mean(dim=(1, 2))


def small_swin() -> tuple[EncoderRow, State]:
    """A row like CTransPath's, and a state for it as its authors' checkpoint would be."""
    heads = [2, 4]
    row = dataclasses.replace(
        ENCODERS["ctranspath"],
        name="small",
        settings={"embed_layer": "ConvStem", "embed_dim": 16, "depths": [2, 2], "num_heads": heads,
                  "img_size": 112},
        dim=32,
        transform=dataclasses.replace(ENCODERS["ctranspath"].transform, input_size=112),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(7)
    state = {}
    for name, tensor in build(row).state_dict().items():
        old = name.replace("layers.1.downsample", "layers.0.downsample")
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator) * 0.3
            state[old] = drawn.exp() if name.endswith(("running_var", "norm.weight")) else drawn
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(16, 49, 49)
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    return row, state


@torch.inference_mode()
def test_ctranspaths_file_gives_the_network_that_its_names_stand_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row, state = small_swin()
    x = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(5))
    expected = swin_by_hand(state, x, heads=(2, 4), window=7)
    assert expected.std(dim=0).max() > 0.01  # two pictures, two vectors
    monkeypatch.setitem(ENCODERS, "small", row)
    torch.save({"model": state}, tmp_path / "ctranspath.pth")
    loaded = load_encoder("small", weights=tmp_path / "ctranspath.pth")
    torch.testing.assert_close(loaded.module(x), expected, atol=5e-5, rtol=1e-3)
    del state["patch_embed.proj.6.bias"]
    torch.save({"model": state}, tmp_path / "partial.pth")
    with pytest.raises(UsageError, match=r"1 missing \(patch_embed.proj.6.bias\)"):
        load_encoder("small", weights=tmp_path / "partial.pth")


def test_swins_names_of_today_are_left_alone() -> None:
    row, old = small_swin()
    new = swin_names(old)
    assert "layers.1.downsample.norm.weight" in new
    assert swin_names(new) == new
    assert isinstance(build(row).patch_embed, ConvStem)
