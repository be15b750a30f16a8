"""`predict_bag` and `predict_slide`: what a head says of a slide, and of each of its tiles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mil.bags import Bag, each_alone, pack
from mil.checkpoint import Model
from mil.encoder import folder_name
from mil.features import FeatureRecipe, read_bag
from mil.heads import Head
from mil.segments import segment_softmax
from tiling.commit import Commit
from tiling.store import TileStore, make_array, write_group
from tiling.versions import versions
from wsi.errors import MicrotomeError, UsageError

ROWS_PER_SLICE = 4096
"""Tiles that are scored at a time: keeps memory bounded, and changes no score."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a head says of one bag of n tiles, over C classes."""

    probabilities: NDArray[np.float32]
    """``(C,)``, summing to 1. Not calibrated: 0.8 need not be right in 8 of 10 cases."""
    tile_scores: NDArray[np.float32]
    """``(n, C)``: the probabilities of a bag that holds this tile alone.

    This says what a tile speaks for. On data with known truth it finds lesions better than attention does.
    """
    attention: NDArray[np.float32]
    """``(n,)``, summing to 1: how much each tile counted, whatever it spoke for. Not evidence of anything."""


@torch.inference_mode()
def predict_bag(head: Head, bag: Bag) -> Prediction:
    """Apply a head to a bag, in eval mode; the head is left in the mode that it was in.

    Raises
    ------
    UsageError
        The features have another length than the head takes.
    MicrotomeError
        The head gives NaN.
    """
    if bag.dim != head.dim:
        raise UsageError(
            f"slide {bag.slide_id!r} has features of length {bag.dim}, the model takes {head.dim}",
            action="Encode it with the model's encoder",
        )
    device = next(head.parameters()).device
    packed = pack([bag], device=device)
    with _in_eval_mode(head):
        output = head(packed)
        slices = [_scores_alone(head, rows) for rows in torch.split(packed.features, ROWS_PER_SLICE)]
    attention = segment_softmax(output.attention_logits, packed.bag_of_row, 1).mean(dim=1)  # (n,)
    prediction = Prediction(
        probabilities=output.logits[0].softmax(dim=0).cpu().numpy(),
        tile_scores=torch.cat(slices).cpu().numpy(),
        attention=attention.cpu().numpy(),
    )
    if not (np.isfinite(prediction.probabilities).all() and np.isfinite(prediction.tile_scores).all()):
        raise MicrotomeError(
            f"the model gives NaN for slide {bag.slide_id!r}",
            action="Train it again: its weights are damaged",
        )
    return prediction


def _scores_alone(head: Head, rows: Tensor) -> Tensor:
    """``(k, C)``: class probabilities of k rows, each as a bag of its own."""
    logits: Tensor = head(each_alone(rows)).logits  # (k, C)
    return logits.softmax(dim=1)


@contextlib.contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Dropout off inside; outside as before, so that predicting amid training does not end it."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def encoder_key(model: Model) -> str:
    """Under which name a store holds the features that the model was trained on."""
    return folder_name(str(model.features.encoder["name"]))


def check_features(store: TileStore, model: Model) -> None:
    """Refuse a store whose features the model was not trained on.

    Raises
    ------
    UsageError
        Another encoder, tile size, resolution or stain normalisation; both are named.
    """
    differences = FeatureRecipe.of(store, encoder_key(model)).differences(model.features)
    if differences:
        raise UsageError(
            f"slide {store.slide_id!r} does not fit model {model.name!r}: {'; '.join(differences[:4])}",
            path=store.output.root,
            action="Tile and encode it with the model's settings into another -o ('microtome run' does)",
        )


def predict_slide(store: TileStore, model: Model, head: Head) -> Commit:
    """Score a slide and commit ``scores/<model.name>`` to its store; does nothing where that is done.

    The item holds ``scores`` ``(n, C)`` and ``attention`` ``(n,)`` float32; the slide's own probabilities are
    in the commit's record, by class.

    Raises
    ------
    UsageError
        See `check_features`.
    RecipeError, DamagedError
        See `TileStore.begin` and `TileStore.features`.
    """
    check_features(store, model)
    key = encoder_key(model)
    recipe = {
        "step": "scores",
        "inputs": store.inputs("tiles", f"features/{key}"),
        "model": {
            "name": model.name,
            "weights_sha256": model.weights_sha256,
            "head": model.head,
            "settings": dict(model.settings),
            "classes": list(model.classes),
        },
    }
    item = f"scores/{model.name}"
    draft = store.begin(item, recipe)
    if draft is None:
        return store.require(item)
    prediction = predict_bag(head, read_bag(store, key))
    for name, values in (("scores", prediction.tile_scores), ("attention", prediction.attention)):
        array = make_array(
            draft, name, shape=values.shape, rows_per_file=len(values), dtype=np.float32, fill=np.nan
        )
        array.write_all(values)
    record = {
        "probabilities": dict(zip(model.classes, prediction.probabilities.tolist(), strict=True)),
        "tiles": len(store),
        "versions": versions("torch"),
    }
    write_group(draft, attributes={"recipe": recipe, "record": record})
    return draft.publish(record)
