"""Laws of the patient-level bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mil.evaluation.bootstrap import Resampling, bootstrap, bootstrap_difference, patient_weights
from mil.evaluation.delong import auc_interval, delong
from mil.evaluation.judged import Judged
from wsi.errors import UsageError

MakeCohort = Callable[..., Judged]


def test_patients_are_drawn_with_all_their_slides(make_cohort: MakeCohort) -> None:
    judged = make_cohort(30, slides_a_patient=3)
    weights = np.concatenate(list(patient_weights(judged, Resampling(200))))
    assert weights.shape == (200, 30)
    assert (weights.reshape(200, 10, 3) == weights.reshape(200, 10, 3)[:, :, :1]).all()
    assert (weights.sum(axis=1) == 30).all()
    assert weights.mean() == pytest.approx(1)


def test_a_seed_gives_the_same_interval_and_another_seed_another(make_cohort: MakeCohort) -> None:
    judged = make_cohort(50)
    first, again = (bootstrap(judged, Resampling(300, seed=4)) for _ in range(2))
    assert first == again
    assert first["AUROC"] != bootstrap(judged, Resampling(300, seed=5))["AUROC"]


def test_slides_of_one_patient_widen_the_interval(make_cohort: MakeCohort) -> None:
    """Five copies of each slide are no five times the patients."""
    alone = make_cohort(60, seed=2)
    rows = np.repeat(np.arange(60), 5)
    copies = Judged(
        alone.classes,
        tuple(f"s{index}" for index in range(300)),
        tuple(alone.patients[row] for row in rows),
        alone.labels[rows],
        alone.probabilities[rows],
    )
    one, five = (bootstrap(judged, Resampling(500))["AUROC"] for judged in (alone, copies))
    assert (five.value, five.low, five.high) == pytest.approx((one.value, one.low, one.high))
    naive = bootstrap(replace(copies, patients=copies.slide_ids), Resampling(500))["AUROC"]
    assert naive.high is not None
    assert naive.low is not None
    assert one.high is not None
    assert one.low is not None
    assert naive.high - naive.low < 0.6 * (one.high - one.low)


def test_the_interval_of_a_share_is_that_of_the_binomial(make_cohort: MakeCohort) -> None:
    judged = make_cohort(400, seed=1)
    figure = bootstrap(judged, Resampling(2000))["accuracy"]
    assert figure.value is not None
    assert figure.low is not None
    assert figure.high is not None
    half = 1.96 * np.sqrt(figure.value * (1 - figure.value) / 400)
    assert figure.low == pytest.approx(figure.value - half, abs=0.01)
    assert figure.high == pytest.approx(figure.value + half, abs=0.01)


def test_the_bootstrap_and_delong_agree_on_independent_slides(make_cohort: MakeCohort) -> None:
    judged = make_cohort(300, seed=7)
    figure = bootstrap(judged, Resampling(2000))["AUROC"]
    areas = delong(judged.labels, judged.probabilities[None, :, 1])
    assert areas is not None
    interval = auc_interval(float(areas.aucs[0]), float(areas.covariance[0, 0]))
    assert interval is not None
    assert figure.value == pytest.approx(areas.aucs[0])
    assert (figure.low, figure.high) == pytest.approx(interval, abs=0.01)


def test_resamples_without_a_class_are_counted_and_not_in_the_interval() -> None:
    judged = Judged(
        ("no", "yes"),
        tuple("abcdefgh"),
        tuple("abcdefgh"),
        np.array([0] * 7 + [1]),
        np.stack([1 - np.arange(8) / 10, np.arange(8) / 10], axis=1),
    )
    found = bootstrap(judged, Resampling(2000))
    assert found["AUROC"].undefined == pytest.approx(2000 * (7 / 8) ** 8, abs=100)
    assert found["accuracy"].undefined == 0
    assert found["accuracy"].low is not None


def test_one_class_one_patient_and_perfection_have_no_interval_and_say_why(make_cohort: MakeCohort) -> None:
    one_class = replace(make_cohort(12), labels=np.ones(12, np.int64))
    assert bootstrap(one_class, Resampling(100))["AUROC"].note == "only one class (class 1)"
    assert bootstrap(one_class, Resampling(100))["AUROC"].value is None
    three = replace(make_cohort(12, classes=3), labels=np.array([0, 1] * 6))
    assert bootstrap(three, Resampling(100))["AUROC"].note == "no slide of class class 2"
    one_patient = replace(make_cohort(12), patients=("p",) * 12)
    figure = bootstrap(one_patient, Resampling(100))["accuracy"]
    assert (figure.low, figure.note) == (None, "no interval: only one patient")
    alone = make_cohort(1)
    assert bootstrap(alone, Resampling(100))["accuracy"].low is None
    labels = np.array([0, 1] * 10)
    perfect = replace(make_cohort(20), labels=labels, probabilities=np.eye(2)[labels])
    figure = bootstrap(perfect, Resampling(100))["AUROC"]
    assert (figure.value, figure.low) == (1.0, None)
    assert "all resamples agree" in str(figure.note)


def test_the_difference_of_a_model_and_itself_is_nothing(make_cohort: MakeCohort) -> None:
    judged = make_cohort(40)
    assert bootstrap_difference(judged, judged, Resampling(100))["AUROC"].value == 0
    better = replace(judged, probabilities=0.5 * judged.probabilities + 0.5 * np.eye(2)[judged.labels])
    figure = bootstrap_difference(judged, better, Resampling(500))["AUROC"]
    assert figure.low is not None
    assert figure.low > 0
    with pytest.raises(UsageError, match="did not judge the same slides"):
        bootstrap_difference(judged, make_cohort(30), Resampling(100))


@pytest.mark.parametrize("wrong", [{"count": 99}, {"seed": -1}, {"level": 1.0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Resampling(**wrong)
