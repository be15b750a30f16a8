"""Every figure is scikit-learn's or torchmetrics', also when slides are drawn repeatedly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from mil.evaluation.bootstrap import Resampling, patient_weights
from mil.evaluation.judged import Judged
from mil.evaluation.metrics import bin_of, confusion_matrices, figures
from mil.networks.torchvision_shim import ensure_torchvision
from wsi.errors import MicrotomeError, UsageError

MakeCohort = Callable[..., Judged]


def repeated(judged: Judged, times: np.ndarray) -> Judged:
    """The cohort with each slide as often as it was drawn."""
    rows = np.repeat(np.arange(len(judged)), times.astype(int))
    return Judged(
        judged.classes,
        tuple(f"{judged.slide_ids[row]} again {index}" for index, row in enumerate(rows)),
        tuple(judged.patients[row] for row in rows),
        judged.labels[rows],
        judged.probabilities[rows],
    )


def by_others(judged: Judged) -> dict[str, float]:
    """The same figures by scikit-learn and torchmetrics."""
    ensure_torchvision()
    from torchmetrics.functional.classification import multiclass_calibration_error

    truth, values, calls = judged.labels, judged.probabilities, judged.predicted
    count = len(judged.classes)
    each = [truth == index for index in range(count)]
    auprc = [reference.average_precision_score(each[c], values[:, c]) for c in range(count)]
    f1 = reference.f1_score(truth, calls, average=None)
    recall = reference.recall_score(truth, calls, average=None)
    error = multiclass_calibration_error(
        torch.from_numpy(values), torch.from_numpy(truth), num_classes=count, n_bins=15, norm="l1"
    )
    found = {
        "AUROC": np.mean([reference.roc_auc_score(each[c], values[:, c]) for c in range(count)]),
        "AUPRC": np.mean(auprc),
        "balanced accuracy": reference.balanced_accuracy_score(truth, calls),
        "F1": reference.f1_score(truth, calls, average="macro"),
        "accuracy": reference.accuracy_score(truth, calls),
        "Brier score": ((values - np.eye(count)[truth]) ** 2).sum(axis=1).mean(),
        "negative log-likelihood": reference.log_loss(truth, values, labels=list(range(count))),
        "expected calibration error": float(error),
    }
    for c, name in enumerate(judged.classes):
        if count > 2:
            found[f"AUROC of {name}"] = reference.roc_auc_score(each[c], values[:, c])
        found[f"AUPRC of {name}"] = auprc[c]
        found[f"recall of {name}"] = recall[c]
        found[f"F1 of {name}"] = f1[c]
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("decimals", [15, 1], ids=["no ties", "many ties"])
def test_figures_are_those_of_independent_implementations(
    make_cohort: MakeCohort, classes: int, decimals: int
) -> None:
    judged = make_cohort(120, classes=classes, decimals=decimals, seed=classes)
    if decimals == 1:  # a confidence on the border of two bins belongs to either; not what this is about
        shifted = judged.probabilities * 0.999 + 0.001 / classes
        judged = replace(judged, probabilities=shifted)
    ours, others = figures(judged, np.ones((1, 120))), by_others(judged)
    assert list(ours) == list(others)
    for name, value in others.items():
        assert ours[name][0] == pytest.approx(value, abs=2e-6), name


def test_a_weighting_is_the_cohort_with_slides_repeated(make_cohort: MakeCohort) -> None:
    judged = make_cohort(40, classes=3, slides_a_patient=3, decimals=1, seed=3)
    weights = next(iter(patient_weights(judged, Resampling(100))))[:5]
    together = figures(judged, weights)
    for row, times in enumerate(weights):
        alone = figures(repeated(judged, times), np.ones((1, int(times.sum()))))
        for name, value in alone.items():
            assert together[name][row] == pytest.approx(value[0], nan_ok=True), name


def test_the_confusion_matrix_has_the_truth_in_rows(make_cohort: MakeCohort) -> None:
    judged = make_cohort(50, classes=3)
    ours = confusion_matrices(judged, np.ones((1, 50)))[0]
    assert (ours == reference.confusion_matrix(judged.labels, judged.predicted)).all()


def test_a_class_without_slides_leaves_what_compares_classes_undefined(make_cohort: MakeCohort) -> None:
    judged = replace(make_cohort(10), labels=np.ones(10, np.int64))
    found = figures(judged, np.ones((1, 10)))
    for name in ("AUROC", "AUPRC", "balanced accuracy", "F1", "F1 of class 0", "AUPRC of class 1"):
        assert np.isnan(found[name]).all(), name
    for name in ("accuracy", "Brier score", "negative log-likelihood", "recall of class 1"):
        assert np.isfinite(found[name]).all(), name


def test_full_confidence_is_in_the_last_bin() -> None:
    assert bin_of(np.array([0.0, 0.0666, 0.0667, 0.9999, 1.0])).tolist() == [0, 0, 1, 14, 14]


def test_the_loss_of_an_impossible_truth_is_finite(make_cohort: MakeCohort) -> None:
    sure = replace(make_cohort(4), probabilities=np.array([[1.0, 0.0]] * 4), labels=np.array([1, 1, 1, 0]))
    assert 20 < figures(sure, np.ones((1, 4)))["negative log-likelihood"][0] < 30


def test_patient_figures_are_means_over_the_patients_slides_of_one_label(make_cohort: MakeCohort) -> None:
    judged = Judged(
        ("no", "yes"),
        ("a1", "a2", "b1", "b2", "c1"),
        ("a", "a", "b", "b", "c"),
        np.array([0, 0, 0, 1, 1]),
        np.array([[0.8, 0.2], [0.6, 0.4], [0.9, 0.1], [0.3, 0.7], [0.5, 0.5]]),
    )
    merged = judged.by_patient()
    assert merged.slide_ids == ("a", "b: no", "b: yes", "c")
    assert merged.labels.tolist() == [0, 0, 1, 1]
    assert merged.probabilities == pytest.approx(np.array([[0.7, 0.3], [0.9, 0.1], [0.3, 0.7], [0.5, 0.5]]))
    assert judged.counts()["yes"] == {"slides": 2, "patients": 2}
    assert judged.counts()["all"] == {"slides": 5, "patients": 3}
    single = make_cohort(20, classes=3)
    again = single.by_patient()
    order = [single.patients.index(name) for name in again.patients]
    assert again.probabilities == pytest.approx(single.probabilities[order])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": np.array([[0.5, np.nan], [0.5, 0.5]])}, "slide 's1' has .*no probabilities"),
        ({"probabilities": np.array([[0.5, 0.5], [0.9, 0.9]])}, "slide 's2' has .*no probabilities"),
        ({"probabilities": np.array([[1.5, -0.5], [0.5, 0.5]])}, "no probabilities"),
        ({"probabilities": np.ones((2, 1))}, "are not those of 2 slides and 2 classes"),
        ({"labels": np.array([0, 2])}, "label 2 is none of the 2 classes"),
        ({"labels": np.array([0, -1])}, "label -1 is none"),
        ({"labels": np.array([0.0, 1.0])}, "not whole numbers"),
        ({"labels": np.array([0])}, "do not fit"),
        ({"slide_ids": ("s1", "s1")}, "judged more than once"),
        ({"patients": ("p",)}, "1 patients for 2 slides"),
        ({"slide_ids": ()}, "no slides to evaluate"),
    ],
)
def test_unsound_numbers_are_refused_by_name(change: dict[str, object], message: str) -> None:
    sound = Judged(("no", "yes"), ("s1", "s2"), ("p", "q"), np.array([0, 1]), np.array([[0.5, 0.5]] * 2))
    with pytest.raises((UsageError, MicrotomeError), match=message):
        replace(sound, **change)  # type: ignore[arg-type]
