"""A mean over slides, and how far it would differ with other patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Share of resamples within an interval."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over m slides, with the percentile interval of a bootstrap of patients."""

    mean: float
    """Over slides."""
    low: float | None
    """Lower end of the 95 % interval; None with one patient, which says nothing of others."""
    high: float | None
    """Upper end; likewise."""
    slides: int
    """m."""

    @property
    def positive(self) -> bool:
        """Whether it is above zero with all of its interval."""
        return self.low is not None and self.low > 0

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f} [of one patient]"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_json(self) -> dict[str, Any]:
        """For a report."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "slides": self.slides}


def estimate_mean(
    values: NDArray[np.float64], patients: Sequence[str], *, resamples: int, seed: int
) -> Estimate:
    """The mean of ``(m,)`` values, one a slide. Patients are drawn with all their slides.

    The same patients and seed give the same draws: intervals of several methods are of the same cohorts.
    """
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    if len(names) < 2:
        return Estimate(float(np.mean(values)), None, None, len(values))
    slides = np.bincount(patient).astype(np.float64)  # (p,)
    sums = np.bincount(patient, weights=values)  # (p,)
    even = np.full(len(names), 1 / len(names))
    drawn = np.random.default_rng(seed).multinomial(len(names), even, size=resamples)  # (r, p)
    means = drawn @ sums / (drawn @ slides)  # (r,)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(np.mean(values)), float(low), float(high), len(values))
