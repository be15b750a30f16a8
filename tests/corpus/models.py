"""Small models, and folders that only look like them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mil.checkpoint import Model, describe
from mil.features import FeatureRecipe
from mil.heads import Head, build_head
from tiling.commit import begin, canonical
from tiling.grid import TileSpec

FEATURES = FeatureRecipe(
    encoder={"name": "timm:test_vit", "dim": 8, "mean": [0.5, 0.5, 0.5], "weights": "untrained seed 1"},
    spec=TileSpec(size_px=128, mpp=0.5),
    stain={"method": "Macenko", "light": 240.0},
    tissue={"method": "Otsu"},
    min_tissue=0.25,
    quality={},
    pixels={"method": "Raw"},
    exact=False,
)
CLASSES = ("normal", "tumour")


def small_head(seed: int = 0) -> Head:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_head("gated_abmil", dim=8, classes=2, settings={"hidden": 6, "attention": 4})


def card(head: Head, **changes: Any) -> Model:
    model = describe(
        head, name="demo", classes=CLASSES, features=FEATURES, training={"epochs": 3, "slides": ["a", "b"]}
    )
    return dataclasses.replace(model, **changes)


def republish(folder: Path, change: Callable[[dict[str, Any]], Any], *, weights: bytes | None = None) -> Path:
    """The same model with another card or other weights, committed as if it were sound."""
    content = json.loads((folder / "model.json").read_bytes())
    change(content)
    draft = begin(folder.parent / "changed", {"step": "test"}, work=folder.parent / ".work")
    (draft.folder / "model.json").write_bytes(canonical(content))
    data = (folder / "member-0.safetensors").read_bytes() if weights is None else weights
    (draft.folder / "member-0.safetensors").write_bytes(data)
    draft.publish({})
    return draft.item
