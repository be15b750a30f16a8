"""Calibration: whether a confidence of 0.8 is right in eight of ten cases, and what chance alone would show.

C. Guo et al., ICML 2017 (arXiv:1706.04599), section 2, for the diagram and the expected calibration error; J.
Bröcker, L. Smith, "Increasing the Reliability of Reliability Diagrams", Weather and Forecasting 22, 2007, for
the consistency bars: what a *perfectly calibrated* model of the same confidences would show. Its expected
calibration error is far from 0 where slides are few (about 0.12 of 50, 0.03 of 1,000), so the two are to be
read side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mil.evaluation.judged import Judged
from mil.evaluation.metrics import BINS, bin_of, calibration_error

SIMULATIONS = 2000
"""Draws of labels from the probabilities themselves."""


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The slides whose confidence lies between two bounds."""

    low: float
    """Included."""
    high: float
    """Not included, but for 1."""
    count: int
    """Slides; at least one."""
    confidence: float
    """Their mean confidence."""
    accuracy: float
    """Share of them that are right."""
    expected_low: float
    """With perfect calibration their accuracy would be at least this, in 97.5 of 100 such cohorts."""
    expected_high: float
    """And at most this."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """How confidence and accuracy go together."""

    error: float
    """Expected calibration error."""
    null_mean: float
    """Its mean for a perfectly calibrated model with these confidences."""
    null_low: float
    """2.5 of 100 such models have less."""
    null_high: float
    """2.5 of 100 have more."""
    bins: tuple[ReliabilityBin, ...]
    """Those that hold slides, by confidence."""


def reliability(
    judged: Judged, *, seed: int = 0, bins: int = BINS, simulations: int = SIMULATIONS
) -> Reliability:
    """Compare confidence and accuracy, with what chance alone would show.

    Slides are taken for independent in the simulation: where patients have several, chance shows more than
    that.
    """
    confidence, correct = judged.confidence, judged.correct
    rng = np.random.default_rng(seed)
    place = np.eye(bins)[bin_of(confidence, bins=bins)]  # (m, bins)
    counts = place.sum(axis=0)
    simulated = rng.random((simulations, len(judged))) < confidence  # (s, m): right by a model that knows
    hits = simulated @ place  # (s, bins)
    errors = np.abs(hits - confidence @ place).sum(axis=1) / len(judged)  # (s,)
    low, high = np.quantile(hits, [0.025, 0.975], axis=0)  # (bins,)
    held = [
        ReliabilityBin(
            low=index / bins,
            high=(index + 1) / bins,
            count=int(counts[index]),
            confidence=float(confidence @ place[:, index] / counts[index]),
            accuracy=float(correct @ place[:, index] / counts[index]),
            expected_low=float(low[index] / counts[index]),
            expected_high=float(high[index] / counts[index]),
        )
        for index in np.flatnonzero(counts).tolist()
    ]
    null_low, null_high = np.quantile(errors, [0.025, 0.975]).tolist()
    error = float(calibration_error(confidence, correct, np.ones((1, len(judged))), bins=bins)[0])
    return Reliability(error, float(errors.mean()), null_low, null_high, tuple(held))
