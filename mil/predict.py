"""`predict_bag` and `predict_slide`: what a model says of a slide, and of each of its tiles.

::

    n  tiles of a slide        M  members        C  classes        K  attention branches of a head
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil.bags import Bag, each_alone, pack
from mil.checkpoint import Judges, Model
from mil.encoder import folder_name
from mil.ensemble import Ensemble, as_ensemble, check_length, in_eval_mode
from mil.features import FeatureRecipe, feature_items, read_bag
from mil.gate import Gate
from mil.heads import Head
from mil.segments import segment_softmax
from mil.uncertainty import spread
from tiling.commit import Commit
from tiling.store import TileStore, make_array, write_group
from tiling.versions import versions
from wsi.errors import MicrotomeError, UsageError

ROWS_PER_SLICE = 4096
"""Tiles that are scored at a time: keeps memory bounded, and changes no score."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a head or an ensemble says of one bag."""

    probabilities: NDArray[np.float64]
    """``(C,)``, summing to 1: the mean over members. Calibrated if the ensemble is: else 0.8 need not be
    right in 8 of 10 cases."""
    member_probabilities: NDArray[np.float64]
    """``(M, C)``: what each member says, with its temperature."""
    spread: NDArray[np.float64]
    """``(C,)``: standard deviation over members, by M - 1; 0 of a single one, who cannot disagree."""
    information: NDArray[np.float64]
    """``(1,)``: how far members disagree, as mutual information in nats; see `mil.uncertainty`."""
    tile_scores: NDArray[np.float32]
    """``(n, C)``: the probabilities of a bag that holds this tile alone, the mean over members.

    This says what a tile speaks for. On data with known truth it finds lesions better than attention does.
    A head that knows of positions judges the tile as if it stood at the slide's first place.
    """
    attention: NDArray[np.float32]
    """``(n,)``, summing to 1: how much each tile counted, whatever it spoke for, the mean over members and
    branches. Not evidence of anything."""
    uncertainty: NDArray[np.float32]
    """``(n,)``: the entropy of each tile's scores, divided by log C: 0 sure of one class, 1 no idea."""
    disagreement: NDArray[np.float32]
    """``(n,)``: the part of it that members disagree by, their mutual information divided by log C: 0 where
    all say the same, and of a single member."""


@torch.inference_mode()
def predict_bag(model: Head | Ensemble, bag: Bag) -> Prediction:
    """Apply a head or an ensemble to a bag, in eval mode; each head is left in the mode that it was in.

    Raises
    ------
    UsageError
        The features have another length than the model takes.
    MicrotomeError
        A head gives NaN.
    """
    ensemble = as_ensemble(model)
    check_length(bag, ensemble.dim)
    logits, tiles = _judge(ensemble, bag)  # (M, C)
    each = ensemble.calibrated(logits)  # (M, C)
    count = len(ensemble.members)
    return Prediction(
        probabilities=each.mean(axis=0),
        member_probabilities=each,
        spread=each.std(axis=0, ddof=1) if count > 1 else np.zeros(ensemble.classes),
        information=spread(each[:, None]).information if count > 1 else np.zeros(1),
        **tiles,
    )


def _judge(ensemble: Ensemble, bag: Bag) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float32]]]:
    """``(M, C)`` logits of the bag, and what `Prediction` says of its tiles, by the names of its fields."""
    count = len(ensemble.members)
    features = pack([bag], device=ensemble.device)
    logits = []
    scores, attention, within = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for member, temperature in zip(ensemble.members, ensemble.temperatures, strict=True):
        with in_eval_mode(member):
            output = member(features)
            weights = segment_softmax(output.attention_logits, features.bag_of_row, 1)  # (n, K)
            slices = torch.split(features.features, ROWS_PER_SLICE)
            alone = torch.cat([_scores_alone(member, rows, temperature) for rows in slices])  # (n, C)
        logits.append(output.logits.double().cpu())
        scores = scores.to(alone.device) + alone / count
        attention = attention.to(alone.device) + weights.mean(dim=1) / count
        within = within.to(alone.device) + _entropy(alone) / count
    of_bag = torch.cat(logits)  # (M, C)
    if not (scores.isfinite().all() and of_bag.isfinite().all()):
        raise _gives_nan(bag)
    total = _entropy(scores)  # (n,); of one member the very numbers of `within`
    named = {
        "tile_scores": scores,
        "attention": attention,
        "uncertainty": total.clip(0, 1).float(),  # beyond these by rounding only
        "disagreement": (total - within).clip(0, 1).float(),
    }
    return of_bag.numpy(), {name: values.cpu().numpy() for name, values in named.items()}


def _entropy(probabilities: Tensor) -> Tensor:
    """``(k, C)`` to ``(k,)`` float64: in units of the most that there can be, log C."""
    entropy: Tensor = torch.special.entr(probabilities.double()).sum(dim=1)
    return entropy / math.log(probabilities.shape[1])


def _gives_nan(bag: Bag) -> MicrotomeError:
    return MicrotomeError(
        f"the model gives NaN for slide {bag.slide_id!r}", action="Train it again: its weights are damaged"
    )


def _scores_alone(head: Head, rows: Tensor, temperature: float) -> Tensor:
    """``(k, C)``: class probabilities of k rows, each as a bag of its own."""
    logits: Tensor = head(each_alone(rows)).logits  # (k, C)
    return (logits / temperature).softmax(dim=1)


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
    found = FeatureRecipe.of(store, encoder_key(model), contexts=model.features.contexts)
    differences = found.differences(model.features)
    if differences:
        raise UsageError(
            f"slide {store.slide_id!r} does not fit model {model.name!r}: {'; '.join(differences[:4])}",
            path=store.output.root,
            action="Tile and encode it with the model's settings into another -o ('microtome run' does)",
        )


def predict_slide(store: TileStore, model: Model, head: Head | Ensemble) -> Commit:
    """Score a slide and commit ``scores/<model.name>`` to its store; does nothing where that is done.

    The item holds ``scores`` ``(n, C)``, ``attention``, ``uncertainty`` and ``disagreement`` ``(n,)``
    float32; see `Prediction`. What is said of the slide itself is in the commit's record: see `verdict`, and
    by a model that judges tiles `tissue_shares`; and ``trained_on`` where a slide of that name was among
    those for training.

    Parameters
    ----------
    store
        The slide; the caller holds the output's lock.
    model, head
        As `load_model` gave them.

    Raises
    ------
    UsageError
        See `check_features`.
    RecipeError, DamagedError
        See `TileStore.begin` and `TileStore.features`.
    """
    check_features(store, model)
    key, contexts = encoder_key(model), model.features.contexts
    recipe = {
        "step": "scores",
        "inputs": store.inputs("tiles", *feature_items(key, contexts)),
        "model": model.identity(),
    }
    item = f"scores/{model.name}"
    draft = store.begin(item, recipe)
    if draft is None:
        return store.require(item)
    prediction = predict_bag(head, read_bag(store, key, contexts=contexts))
    arrays = {
        "scores": prediction.tile_scores,
        "attention": prediction.attention,
        "uncertainty": prediction.uncertainty,
        "disagreement": prediction.disagreement,
    }
    for name, values in arrays.items():
        array = make_array(
            draft, name, shape=values.shape, rows_per_file=len(values), dtype=np.float32, fill=np.nan
        )
        array.write_all(values)
    said = tissue_shares if model.judges is Judges.TILES else verdict
    record = said(model, prediction) | {"tiles": len(store), "versions": versions("torch")}
    if store.slide_id in model.training.get("slides", ()):
        record["trained_on"] = True  # most members learned from it: this is no test of them
    write_group(draft, attributes={"recipe": recipe, "record": record})
    return draft.publish(record)


def verdict(model: Model, prediction: Prediction) -> dict[str, Any]:
    """What a model says of a slide, as JSON, by the names of the classes.

    ``probabilities`` and whether they are ``calibrated``; of an ensemble ``member_probabilities``, their
    ``spread`` and mutual ``information``; of a calibrated one the ``conformal_set`` and the gate's
    ``decision``.
    """
    said: dict[str, Any] = {
        "probabilities": _by_class(model, prediction.probabilities),
        "calibrated": model.calibration is not None,
    }
    if len(prediction.member_probabilities) > 1:
        said["spread"] = _by_class(model, prediction.spread)
        each = prediction.member_probabilities.T.tolist()
        said["member_probabilities"] = dict(zip(model.classes, each, strict=True))
        said["information"] = float(prediction.information[0])
    if model.calibration is None:
        return said
    kept = model.calibration.conformal.sets(prediction.probabilities[None])[0]  # (C,)
    decision = model.calibration.gate.decide(prediction.probabilities, kept)
    return said | {
        "conformal_set": [name for name, inside in zip(model.classes, kept, strict=True) if inside],
        "decision": {
            "status": decision.status,
            "confidence": decision.confidence,
            "reasons": list(decision.reasons),
        },
    }


def tissue_shares(model: Model, prediction: Prediction) -> dict[str, Any]:
    """What a model that judges tiles says of a slide, as JSON: of what it is made, and not what it is.

    ``shares`` by class of the tiles that score highest in it; ``expected_shares``, the mean scores;
    ``uncertain_share``, that of the tiles whose highest score is below the gate's threshold; and whether the
    scores are ``calibrated``.
    """
    scores = prediction.tile_scores
    best = np.bincount(scores.argmax(axis=1), minlength=len(model.classes))  # (C,)
    gate = model.calibration.gate if model.calibration else Gate()
    return {
        "shares": _by_class(model, best / len(scores)),
        "expected_shares": _by_class(model, scores.mean(axis=0, dtype=np.float64)),
        "uncertain_share": float((scores.max(axis=1) < gate.threshold).mean()),
        "calibrated": model.calibration is not None,
    }


def _by_class(model: Model, values: NDArray[np.float64]) -> Mapping[str, float]:
    return dict(zip(model.classes, values.tolist(), strict=True))
