"""`explain_bags`: which explanation of a cohort can be believed, by what its tiles do to the model's word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil.bags import BagSource
from mil.explain.judge import Judge
from mil.explain.settings import Effort, Sample

CaseReport = Callable[[int, int], None]
"""Called after each slide with (slides done, slides in all)."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A slide, who judges it, and what of that is to be explained."""

    model: Judge
    """A head or an ensemble that did not learn from this slide."""
    bag: BagSource
    """The slide's features."""
    class_index: int | None = None
    """The class whose probability is explained; None for the one that the model finds most probable."""
    lesion_share: NDArray[np.floating[Any]] | None = None
    """``(n,)``: share of each tile that shows what `class_index` names, where that is known."""

    def __post_init__(self) -> None:
        if self.lesion_share is not None and self.class_index is None:
            raise ValueError("a known lesion stands for a class: give class_index too")


def explain_bags(
    cases: Sequence[Case],
    *,
    classes: Sequence[str],
    methods: Sequence[str] | None = None,
    effort: Effort | None = None,
    sample: Sample | None = None,
    report: CaseReport | None = None,
) -> ExplanationReport:
    """Explain slides by several methods, and measure how far each explanation is true of the model.

    Parameters
    ----------
    cases
        The slides. A cross-validated one is given with the member that was tested on it.
    classes
        Names of the classes, in the order of the logits.
    methods
        Names of `METHODS`; None for all that the heads can give and that take minutes on a cohort.
        ``random`` and ``attention`` are always among them, for comparison.
    effort, sample
        How finely each slide is explained, and how many slides and tiles.
    report
        Called after each slide.

    Raises
    ------
    UsageError
        No slides, no such method, or one that these heads cannot give; features that do not fit the model.
    """
    raise NotImplementedError


@dataclass(frozen=True, slots=True)
class ExplanationReport:
    """What was explained, and how the methods fared."""

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        raise NotImplementedError

    @property
    def verdict(self) -> str:
        """Which method is best here, in one or two sentences."""
        raise NotImplementedError
