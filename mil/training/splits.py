"""Folds: which slides a member of the ensemble learns from, is stopped and calibrated by, and is tested on.

For fold i of k, the test part is fold i, the validation part fold i + 1 (after the last comes the first), and
the rest are for training. So each slide is tested on once, by a member that neither learned from it nor was
chosen by it. All slides of a patient are in one fold.

::

    m  slides        k  folds        C  classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.errors import UsageError

LEAST_FOLDS = 3
"""One to test on, one to stop by, and one to learn from."""


@dataclass(frozen=True, slots=True)
class FoldParts:
    """The three parts of one fold, as indices of slides, ascending."""

    training: tuple[int, ...]
    """Learned from."""
    validation: tuple[int, ...]
    """They choose the epoch and the temperature."""
    test: tuple[int, ...]
    """They decide nothing."""

    @classmethod
    def without_folds(cls, count: int) -> FoldParts:
        """All slides for training."""
        return cls(tuple(range(count)), (), ())


def fold_parts(fold_of_slide: NDArray[np.int64], fold: int) -> FoldParts:
    """The parts of one fold.

    Parameters
    ----------
    fold_of_slide
        ``(m,)``, 0 to k - 1.
    fold
        Which one is tested on.

    Examples
    --------
    >>> fold_parts(np.array([0, 1, 2, 0, 1, 2]), 2)
    FoldParts(training=(1, 4), validation=(0, 3), test=(2, 5))
    """
    following = (fold + 1) % (int(fold_of_slide.max()) + 1)
    slides = range(len(fold_of_slide))
    return FoldParts(
        training=tuple(i for i in slides if fold_of_slide[i] not in (fold, following)),
        validation=tuple(i for i in slides if fold_of_slide[i] == following),
        test=tuple(i for i in slides if fold_of_slide[i] == fold),
    )


def assign_folds(
    labels: Sequence[str], patients: Sequence[str], *, folds: int, seed: int
) -> NDArray[np.int64]:
    """Divide patients into folds with about equal shares of each class.

    scikit-learn's `StratifiedGroupKFold`: patients in a random order, those of the most uneven classes first,
    each goes where it evens out the classes most. Its random numbers are NumPy's Mersenne Twister, the same
    on every platform.

    Parameters
    ----------
    labels
        ``m`` classes.
    patients
        ``m``: whose slides they are.
    folds
        k, at least `LEAST_FOLDS`.
    seed
        Of the order of patients.

    Returns
    -------
    ``(m,)``, 0 to k - 1.

    Raises
    ------
    UsageError
        A class has fewer patients than there are folds, or is missing in a training part; it is named.
    """
    check_fold_count(folds)
    _refuse_small_classes(labels, patients, folds)
    from sklearn.model_selection import StratifiedGroupKFold  # takes a second to import

    # Ours is a seed of 63 bits; the old generator that scikit-learn takes has seeds of 32.
    generator = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=generator)
    assigned = np.full(len(labels), -1, np.int64)
    for fold, (_, test) in enumerate(splitter.split(np.zeros(len(labels)), labels, groups=patients)):
        assigned[test] = fold
    check_folds(labels, assigned, action="Use another --seed, or give folds of your own in a column 'fold'")
    return assigned


def check_fold_count(folds: int) -> None:
    """Refuse fewer folds than `LEAST_FOLDS`."""
    if folds < LEAST_FOLDS:
        raise UsageError(
            f"{folds} folds are too few: one is tested on, one is for validation, and the rest to learn from",
            action=f"Use --folds {LEAST_FOLDS} or more, or --folds 0 for one model of all slides",
        )


def check_folds(labels: Sequence[str], fold_of_slide: NDArray[np.int64], *, action: str) -> None:
    """Refuse folds that leave a member without a class to learn, or without slides to be tested on.

    Raises
    ------
    UsageError
        The fold and the class are named; it ends with `action`.
    """
    classes, count = sorted(set(labels)), int(fold_of_slide.max()) + 1
    for fold in range(count):
        parts = fold_parts(fold_of_slide, fold)
        if not parts.test:
            raise UsageError(f"fold {fold} of {count} has no slides", action=action)
        learned = {labels[i] for i in parts.training}
        missing = [name for name in classes if name not in learned]
        if missing:
            raise UsageError(
                f"member {fold} of {count} would have no slide of class {missing[0]!r} to learn from: all "
                f"lie in folds {fold} and {(fold + 1) % count}",
                action=action,
            )


def _refuse_small_classes(labels: Sequence[str], patients: Sequence[str], folds: int) -> None:
    patients_of: dict[str, set[str]] = {}
    for label, patient in zip(labels, patients, strict=True):
        patients_of.setdefault(label, set()).add(patient)
    # The smallest one decides which number of folds is possible.
    name, least = min(((name, len(found)) for name, found in patients_of.items()), key=lambda x: (x[1], x[0]))
    if least >= folds:
        return
    action = f"Use --folds {least}, the most that is possible, or label more patients"
    if least < LEAST_FOLDS:
        action = (
            f"Label slides of at least {LEAST_FOLDS} patients of each class, or use --folds 0 for one model "
            "of all slides, without held-out figures"
        )
    raise UsageError(
        f"class {name!r} has {least} patient{'s' if least > 1 else ''} for training, and {folds} folds need "
        "one each",
        action=action,
    )
