"""Made-up cohorts: what a model says of slides whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mil.calibration import probabilities
from mil.evaluation.judged import Judged

MakeCohort = Callable[..., Judged]


@pytest.fixture(scope="session")
def make_cohort() -> MakeCohort:
    """Slides whose labels are drawn from their probabilities, so that these are calibrated."""

    def make(
        slides: int = 60,
        *,
        classes: int = 2,
        slides_a_patient: int = 1,
        seed: int = 0,
        decimals: int = 15,
        sharpness: float = 1.5,
    ) -> Judged:
        rng = np.random.default_rng(seed)
        values = probabilities(rng.normal(scale=sharpness, size=(slides, classes)), 1.0)
        labels = (rng.random((slides, 1)) > values.cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
        values = values.round(decimals)  # ties
        values[:, -1] = 1 - values[:, :-1].sum(axis=1)
        return Judged(
            tuple(f"class {index}" for index in range(classes)),
            tuple(f"slide {index}" for index in range(slides)),
            tuple(f"patient {index // slides_a_patient}" for index in range(slides)),
            labels.astype(np.int64),
            values,
        )

    return make
