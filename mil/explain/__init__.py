"""Which tiles speak for a class, and how far that is true of the model."""

from __future__ import annotations

from mil.explain.cohort import Case, explain_bags
from mil.explain.methods import METHODS, Method, explain
from mil.explain.report import ExplanationReport
from mil.explain.settings import Effort, Sample

__all__ = [
    "METHODS",
    "Case",
    "Effort",
    "ExplanationReport",
    "Method",
    "Sample",
    "explain",
    "explain_bags",
]
