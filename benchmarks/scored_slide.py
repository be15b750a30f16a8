"""A slide of as many scored tiles as wanted, made in a second: there is no slide, and no model looked at it.

The stores' arrays and commits are written as `microtome tile` and `predict` write them, so every command that
starts from a store takes it for one of theirs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil.checkpoint import describe, save_model
from mil.features import FeatureRecipe
from mil.heads import build_head
from tiling.grid import TileSpec
from tiling.output import Output
from tiling.quality import MEASURES
from tiling.recipe import CutRecipe
from tiling.store import TileStore, make_array
from tiling.survey import THUMBNAIL
from wsi.durable import write_file
from wsi.picture import encode_png

Array = NDArray[Any]

CLASSES = ("normal", "tumour")
MODEL = "model"
TILE, STRIDE = 200, 100
"""Level-0 pixels: every place lies under four tiles."""


def make_scored_slide(folder: Path, *, columns: int, rows: int) -> tuple[Path, Path]:
    """Make an output of one slide with ``columns * rows`` tiles that overlap, and the model that scored them.

    Scores are smooth blobs with noise on them, uncertainty and quality are noise: hard to compress.

    Parameters
    ----------
    folder
        Where both go.
    columns, rows
        Tiles across the slide, and down.

    Returns
    -------
    The output folder and the model's.
    """
    across, down = (np.arange(count, dtype=np.int32) * STRIDE for count in (columns, rows))
    origins = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)
    output, model = Output(folder / "results"), folder / MODEL
    weights = _make_model(model)
    store = TileStore(output, "slide")
    size = columns * STRIDE + TILE - STRIDE, rows * STRIDE + TILE - STRIDE
    source = {
        "slide": {"sample_sha256": "0" * 64, "size": 1},
        "resolution": {"x": 0.25, "y": 0.25, "source": "made up"},
    }
    with output.lock():
        _make_tissue(store, source, size)
        _make_tiles(store, source, size, origins)
        _make_scores(store, weights, origins)
    return output.root, model


def _make_model(folder: Path) -> str:
    features = FeatureRecipe(
        encoder={"name": "none", "dim": 8, "weights": "none"},
        spec=TileSpec(TILE, 0.25, TILE - STRIDE),
        stain=None,
        tissue={},
        min_tissue=0,
        quality={},
        pixels=None,
        exact=False,
    )
    head = build_head("gated_abmil", dim=8, classes=len(CLASSES), settings={"hidden": 4, "attention": 2})
    card = describe(head, name=folder.name, classes=CLASSES, features=features)
    save_model(folder, head, card)
    return card.weights_sha256


def _make_tissue(store: TileStore, source: dict[str, Any], size: tuple[int, int]) -> None:
    scale = max(size) / 1000
    shape = round(size[1] / scale), round(size[0] / scale), 3
    draft = store.begin("tissue", {"step": "tissue"} | source)
    assert draft is not None
    write_file(draft.folder / THUMBNAIL, encode_png(np.full(shape, 230, np.uint8)))
    draft.publish({"thumbnail_scale": [scale, scale], "tissue_mm2": 1.0})


def _make_tiles(store: TileStore, source: dict[str, Any], size: tuple[int, int], origins: Array) -> None:
    spec = {"size_px": TILE, "mpp": 0.25, "overlap_px": TILE - STRIDE, "whole_only": False}
    recipe = {"step": "tiles", "spec": spec, "pixels": None, "tiles_per_shard": CutRecipe().shard_tiles}
    rng = np.random.default_rng(0)
    arrays = {
        "origins": origins,
        "tissue": np.ones(len(origins), np.float32),
        "quality": rng.random((len(origins), len(MEASURES)), np.float32),
    }
    record = {
        "slide_name": "slide.svs",
        "slide_size": list(size),
        "bounds_origin": [0, 0],
        "tile_level0": [float(TILE), float(TILE)],
        "stride_level0": [float(STRIDE), float(STRIDE)],
        "tiles": len(origins),
        "measures": list(MEASURES),
        "reasons": [],
        "dropped": {},
        "warnings": [],
    }
    _publish(store, "tiles", recipe | source, arrays, record)


def _make_scores(store: TileStore, weights: str, origins: Array) -> None:
    rng, count = np.random.default_rng(1), len(origins)
    blobs = 3 * np.sin(origins[:, 0] / 3000) * np.sin(origins[:, 1] / 2500)
    tumour = 1 / (1 + np.exp(rng.normal(0, 1, count) - blobs))
    attention = np.exp(blobs + rng.normal(0, 1, count))
    arrays = {
        "scores": np.stack([1 - tumour, tumour], axis=1),
        "attention": attention / attention.sum(),
        "uncertainty": rng.random(count),
        "disagreement": rng.random(count),
    }
    model = {"name": MODEL, "classes": list(CLASSES), "weights_sha256": weights}
    recipe = {"step": "scores", "inputs": store.inputs("tiles"), "model": model}
    record = {"probabilities": {"normal": 0.5, "tumour": 0.5}}
    _publish(store, f"scores/{MODEL}", recipe, {n: a.astype(np.float32) for n, a in arrays.items()}, record)


def _publish(
    store: TileStore, item: str, recipe: dict[str, Any], arrays: dict[str, Array], record: dict[str, Any]
) -> None:
    draft = store.begin(item, recipe)
    assert draft is not None
    for name, values in arrays.items():
        kind, fill = values.dtype.type, -1 if values.dtype.kind == "i" else np.nan
        make_array(
            draft, name, shape=values.shape, rows_per_file=len(values), dtype=kind, fill=fill
        ).write_all(values)
    draft.publish(record)
