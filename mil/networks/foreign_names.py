"""Checkpoints of other programs in timm's names: tensors are moved, joined or split, and otherwise kept.

Every function leaves what is in timm's names already alone, so that a row takes the original file and a file
converted by somebody else alike. What a function does not know keeps its name, and is refused by name when
the weights are loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from mil.networks.weights import State

_BLOCK = re.compile(r"(?:encoder\.)?layers?\.(\d+)\.(.+)\.(weight|bias|lambda1)")

_OUTSIDE_BLOCKS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
"""Common to ``ViTModel``, ``Dinov2Model`` and ``Dinov2WithRegistersModel`` of transformers."""

_IN_BLOCK = {
    "attention.output.dense": "attn.proj",
    # ViTModel
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    # Dinov2Model
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",  # both halves of SwiGLU, the gated one first, as timm's SwiGLUPacked
    "mlp.weights_out": "mlp.fc2",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
}

_QUERY_KEY_VALUE = ("query", "key", "value")
"""timm keeps the three as rows of one matrix, in this order."""


def transformers_names(state: State) -> State:
    """Rename ViT and DINOv2 of Hugging Face's transformers, as its files have them.

    Query, key and value, each ``(d, d)``, become one ``(3 d, d)``. With register tokens the class token's
    position is added to it; see `dinov2_names`.
    """
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[str, str]] = {}
    for name, tensor in state.items():
        match = _BLOCK.fullmatch(name)
        if match is None:
            renamed[_OUTSIDE_BLOCKS.get(name, name)] = tensor
            continue
        number, layer, kind = match.groups()
        role = layer.removeprefix("attention.attention.")
        if role in _QUERY_KEY_VALUE and role != layer:
            parts.setdefault(f"blocks.{number}.attn.qkv.{kind}", {})[role] = name
        elif layer in _IN_BLOCK:
            kind = "gamma" if kind == "lambda1" else kind
            renamed[f"blocks.{number}.{_IN_BLOCK[layer]}.{kind}"] = tensor
        else:
            renamed[name] = tensor
    for fused, names in parts.items():
        if len(names) == len(_QUERY_KEY_VALUE):
            renamed[fused] = torch.cat([state[names[role]] for role in _QUERY_KEY_VALUE])
        else:  # a part is missing: the others keep their names, and are refused by them
            renamed |= {name: state[name] for name in names.values()}
    return dinov2_names(renamed)


def dinov2_names(state: State) -> State:
    """Rename the DINOv2 program's own checkpoints, with and without register tokens.

    ``mlp.w12`` and ``mlp.w3`` are timm's ``fc1`` and ``fc2``. With register tokens timm adds positions to
    patches only (``no_embed_class``), so the class token's position is added to the class token, once and for
    all: the sum is what the network computes.
    """
    renamed = {
        name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): tensor
        for name, tensor in state.items()
    }
    if "register_tokens" in renamed and renamed.keys() >= {"cls_token", "pos_embed"}:
        renamed["reg_token"] = renamed.pop("register_tokens")
        positions = renamed["pos_embed"]  # (1, 1 + patches, d)
        renamed["cls_token"] = renamed["cls_token"].float() + positions[:, :1].float()
        renamed["pos_embed"] = positions[:, 1:]
    return renamed


def swin_names(state: State) -> State:
    """Rename a Swin transformer of timm before 0.9, as CTransPath's is.

    Merging of patches was then the last thing of a stage, and is now the first thing of the next. Masks and
    indices of the windows were kept with the weights; they follow from the architecture and are left out.
    """
    # In the new places the first stage has no merging, so a state in timm's names of today is left alone.
    old = any(name.startswith("layers.0.downsample.") for name in state)
    return {
        re.sub(r"^layers\.(\d)\.downsample\.", _next_stage, name) if old else name: tensor
        for name, tensor in state.items()
        if not name.endswith((".attn_mask", ".relative_position_index"))
    }


def _next_stage(match: re.Match[str]) -> str:
    return f"layers.{int(match[1]) + 1}.downsample."


def without(state: State, names: Iterable[str]) -> State:
    """The state without these tensors; a name that ends with a dot stands for all that begin so."""
    exact = {name for name in names if not name.endswith(".")}
    prefixes = tuple(name for name in names if name.endswith("."))
    return {
        name: tensor
        for name, tensor in state.items()
        if name not in exact and not (prefixes and name.startswith(prefixes))
    }
