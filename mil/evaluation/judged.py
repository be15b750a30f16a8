"""Slides with a known truth and the probabilities that a model gives them: what every figure rests on.

::

    m  slides        C  classes        P  patients
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mil.calibration import check_labels
from wsi.errors import MicrotomeError, UsageError


@dataclass(frozen=True, slots=True)
class Judged:
    """Slides that a model did not learn from, each once.

    Raises
    ------
    UsageError
        No slides, a slide twice, numbers that do not fit, a label that is no class.
    MicrotomeError
        NaN among the probabilities, or rows that do not sum to 1.
    """

    classes: tuple[str, ...]
    """``C`` names, in the order of the probabilities."""
    slide_ids: tuple[str, ...]
    """``m`` names."""
    patients: tuple[str, ...]
    """``m``: whose slides they are; a slide's own name where that is unknown."""
    labels: NDArray[np.int64]
    """``(m,)``: index of the true class."""
    probabilities: NDArray[np.float64]
    """``(m, C)``, rows summing to 1."""

    def __post_init__(self) -> None:
        shape = self.probabilities.shape
        if not self.slide_ids:
            raise UsageError("there are no slides to evaluate", action="Give at least one labelled slide")
        if len(self.classes) < 2 or shape != (len(self.slide_ids), len(self.classes)):
            raise UsageError(
                f"probabilities of shape {shape} are not those of {len(self.slide_ids)} slides and "
                f"{len(self.classes)} classes",
                action="Give one row a slide and one column a class, of two or more",
            )
        if len(self.patients) != len(self.slide_ids):
            raise UsageError(
                f"there are {len(self.patients)} patients for {len(self.slide_ids)} slides",
                action="Give one a slide",
            )
        check_labels(self.labels, shape)
        if len(set(self.slide_ids)) < len(self.slide_ids):
            twice = next(name for name in self.slide_ids if self.slide_ids.count(name) > 1)
            raise UsageError(f"slide {twice!r} is judged more than once", action="Give each slide once")
        sums = self.probabilities.sum(axis=1)
        wrong = ~(np.abs(sums - 1) < 1e-4) | (self.probabilities < 0).any(axis=1)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise MicrotomeError(
                f"slide {self.slide_ids[row]!r} has {self.probabilities[row].tolist()}, which are no "
                "probabilities",
                action="Train the model again",
            )

    def __len__(self) -> int:
        return len(self.slide_ids)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """``(m,)``: index of the likeliest class, the first of several."""
        likeliest: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return likeliest

    @property
    def confidence(self) -> NDArray[np.float64]:
        """``(m,)``: probability of the likeliest class."""
        highest: NDArray[np.float64] = self.probabilities.max(axis=1)
        return highest

    @property
    def correct(self) -> NDArray[np.bool_]:
        """``(m,)``: whether the likeliest class is the true one."""
        return np.asarray(self.predicted == self.labels)

    @property
    def patient_of_row(self) -> NDArray[np.int64]:
        """``(m,)``: number of each slide's patient, from 0 to P - 1."""
        return np.unique(np.array(self.patients), return_inverse=True)[1]

    @property
    def patient_count(self) -> int:
        """P."""
        return len(set(self.patients))

    def counts(self) -> dict[str, dict[str, int]]:
        """How many slides and patients there are, in all and of each class."""
        found = {"all": {"slides": len(self), "patients": self.patient_count}}
        for index, name in enumerate(self.classes):
            rows = np.flatnonzero(self.labels == index)
            found[name] = {"slides": len(rows), "patients": len({self.patients[row] for row in rows})}
        return found

    def by_patient(self) -> Judged:
        """A row a patient and label: the mean probabilities of that patient's slides with that label."""
        keys = np.stack([self.patient_of_row, self.labels], axis=1)
        pairs, group = np.unique(keys, axis=0, return_inverse=True)  # (g, 2), (m,)
        group = group.reshape(-1)  # numpy 2.0 gives it another shape
        size = np.bincount(group)
        means = np.stack([np.bincount(group, column) / size for column in self.probabilities.T], axis=1)
        patients = tuple(
            self.patients[int(np.flatnonzero(group == number)[0])] for number in range(len(pairs))
        )
        several = {name for name in patients if patients.count(name) > 1}
        labels = pairs[:, 1]
        names = [
            f"{name}: {self.classes[label]}" if name in several else name
            for name, label in zip(patients, labels, strict=True)
        ]
        return Judged(self.classes, tuple(names), patients, labels, means)
