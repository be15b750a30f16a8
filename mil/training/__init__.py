"""Training: folds, what a step sees and lowers, which epoch is kept, and what a study leaves to be read."""

from __future__ import annotations

from mil.training.fitting import MAX_SEED, Epoch, EpochReport, TrainingRecipe, fit

__all__ = ["MAX_SEED", "Epoch", "EpochReport", "TrainingRecipe", "fit"]
