"""The decision gate: which slides the model may speak for, and which a person has to look at."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from wsi.errors import MicrotomeError, UsageError

REVIEW, CONFIRMED = "review required", "confirmed"


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done with a slide, and the numbers that led there."""

    review: bool
    """Whether a person has to look."""
    confidence: float
    """The calibrated probability of the likeliest class."""
    reasons: tuple[str, ...]
    """What was compared, one sentence each; those that ask for review where any does."""

    @property
    def status(self) -> str:
        """``review required`` or ``confirmed``."""
        return REVIEW if self.review else CONFIRMED


@dataclass(frozen=True, slots=True)
class Gate:
    """Confirms a slide that the model is sure of, and whose conformal set agrees. Apply it after calibration.

    Raises
    ------
    UsageError
        The threshold is no probability.
    """

    threshold: float = 0.8
    """Least calibrated probability of the likeliest class; 0 to 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise UsageError(
                f"the threshold is {self.threshold}; it must lie between 0 and 1",
                action="Correct --threshold",
            )

    def decide(self, probabilities: ArrayLike, conformal_set: ArrayLike) -> Decision:
        """Judge one slide.

        It is confirmed if its confidence is at least the threshold *and* its conformal set holds one class,
        the likeliest. An empty set is as ambiguous as a full one: the slide is unlike those of calibration.

        Parameters
        ----------
        probabilities
            ``(C,)``, calibrated.
        conformal_set
            ``(C,)`` bool: the classes that are not ruled out.

        Raises
        ------
        UsageError
            Shapes that do not fit.
        MicrotomeError
            NaN among the probabilities.

        Examples
        --------
        >>> Gate().decide([0.1, 0.9], [False, True]).status
        'confirmed'
        >>> Gate().decide([0.1, 0.9], [True, True]).reasons
        ('the conformal set holds 2 classes, not one',)
        """
        values, kept = np.asarray(probabilities, np.float64), np.asarray(conformal_set, np.bool_)
        if values.ndim != 1 or values.shape != kept.shape or not len(values):
            raise UsageError(
                f"probabilities of shape {values.shape} and a set of shape {kept.shape} are not one slide's",
                action="Give both for the same classes",
            )
        if not np.isfinite(values).all():
            raise MicrotomeError("there is NaN among the probabilities", action="Train the model again")
        confidence, best = float(values.max()), int(values.argmax())
        shown = f"{math.floor(confidence * 1e4) / 1e4:.4f}"  # never rounded up to the threshold
        against = []
        if confidence < self.threshold:
            against.append(f"confidence {shown} is below {self.threshold:g}")
        if kept.sum() != 1:
            held = (
                f"{kept.sum()} classes, not one" if kept.any() else "no class: no calibration slide was alike"
            )
            against.append(f"the conformal set holds {held}")
        elif not kept[best]:
            against.append("the conformal set holds one class, and it is not the likeliest")
        if against:
            return Decision(True, confidence, tuple(against))
        agreeing = (
            f"confidence {shown} is at least {self.threshold:g}",
            "the conformal set holds that class alone",
        )
        return Decision(False, confidence, agreeing)
