"""Made-up studies: what the members of a cross-validation say, with truths that are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from mil.checkpoint import describe, save_model
from mil.ensemble import Ensemble
from mil.features import FeatureRecipe
from mil.heads import build_head
from mil.predictions import MemberPredictions, Part, Predictions, predictions_to_csv

MakeStudy = Callable[..., Predictions]
MakeModel = Callable[..., Path]


@pytest.fixture(scope="session")
def make_study() -> MakeStudy:
    """Fold i is tested by member i and is validation of member i - 1; each member has a scale of its own."""

    def make(
        patients: int = 60,
        *,
        classes: int = 2,
        slides_a_patient: int = 1,
        folds: int = 4,
        external: int = 0,
        scales: tuple[float, ...] = (3.0, 0.5, 1.0, 2.0),
        seed: int = 0,
        signal: float = 2.0,
    ) -> Predictions:
        rng = np.random.default_rng(seed)
        count = patients * slides_a_patient
        owner = np.arange(count) // slides_a_patient
        true = rng.normal(scale=signal, size=(patients + external, classes))
        chance = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
        label = (rng.random((len(true), 1)) > chance.cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
        entries = []

        def said(member: int, part: Part, rows: np.ndarray, name: str) -> MemberPredictions:
            of = owner[rows] if name == "slide" else rows
            logits = true[of] + rng.normal(scale=0.3, size=(len(rows), classes))
            return MemberPredictions(
                member,
                part,
                tuple(f"{name}-{row}" for row in rows),
                tuple(f"patient-{one}" for one in of),
                label[of].astype(np.int64),
                logits * scales[member % len(scales)],
            )

        for member in range(folds):
            for part, fold in ((Part.VALIDATION, (member + 1) % folds), (Part.TEST, member)):
                entries.append(said(member, part, np.flatnonzero(owner % folds == fold), "slide"))
            if external:
                rows = rng.permutation(np.arange(patients, patients + external))
                entries.append(said(member, Part.EXTERNAL, rows, "new"))
        return Predictions(tuple(f"kind {index}" for index in range(classes)), tuple(entries))

    return make


RECIPE = {
    "encoder": {"name": "timm:test_vit", "dim": 64},
    "spec": {"size_px": 16, "mpp": 0.5, "overlap_px": 0},
    "stain": {"method": "Macenko", "light": 240.0},
    "tissue": {"method": "Otsu"},
    "min_tissue": 0.25,
    "quality": {},
    "pixels": None,
    "exact": False,
}


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """A model's folder with the predictions of a study, or without any."""

    def make(
        predictions: Predictions | None,
        name: str = "model",
        *,
        members: int = 4,
        seed: int = 0,
        features: FeatureRecipe | None = None,
        classes: tuple[str, ...] = ("kind 0", "kind 1"),
        files: Mapping[str, bytes] | None = None,
    ) -> Path:
        classes = predictions.classes if predictions else classes
        small = {"hidden": 16, "attention": 8}
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(seed)
            heads = [
                build_head("gated_abmil", dim=64, classes=len(classes), settings=small)
                for _ in range(members)
            ]
        ensemble = Ensemble(tuple(heads), (1.0,) * members)
        recipe = features or FeatureRecipe.from_json(RECIPE)
        folder = tmp_path / name
        kept = {"predictions.csv": predictions_to_csv(predictions)} if predictions else {}
        model = describe(ensemble, name=name, classes=classes, features=recipe)
        save_model(folder, ensemble, model, files=kept | dict(files or {}))
        return folder

    return make
