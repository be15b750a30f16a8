"""Each member is calibrated on its own validation slides, and only on these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mil.assessment.calibrating import calibrate
from mil.assessment.cohort import by_ensemble, external, out_of_fold
from mil.assessment.findings import find
from mil.assessment.settings import AssessmentSettings
from mil.calibration import fit_temperature, probabilities
from mil.conformal import fit_conformal, worst_of_each_patient
from mil.evaluation.bootstrap import Resampling
from mil.predictions import MemberPredictions, Part, Predictions
from wsi.errors import UsageError

MakeStudy = Callable[..., Predictions]
QUICK = AssessmentSettings(resampling=Resampling(100))


def with_part(
    study: Predictions, part: Part, change: Callable[[MemberPredictions], MemberPredictions]
) -> Predictions:
    """The study with all entries of one part changed."""
    return replace(study, members=tuple(change(m) if m.part is part else m for m in study.members))


def test_members_are_calibrated_on_validation_slides_alone_and_nothing_on_external_ones(
    make_study: MakeStudy,
) -> None:
    study = make_study(external=10)

    def nonsense(entry: MemberPredictions) -> MemberPredictions:
        return replace(entry, labels=1 - entry.labels)

    fits = calibrate(study, alpha=0.1)
    assert calibrate(with_part(study, Part.EXTERNAL, nonsense), alpha=0.1) == fits
    tested = calibrate(with_part(study, Part.TEST, nonsense), alpha=0.1)
    for one, two in zip(tested.members, fits.members, strict=True):
        assert (one.temperature, one.note) == (two.temperature, two.note)
    assert tested.rule != fits.rule
    validated = calibrate(with_part(study, Part.VALIDATION, nonsense), alpha=0.1)
    assert all(one != two for one, two in zip(validated.members, fits.members, strict=True))


def test_each_members_fit_is_that_of_its_own_validation_slides(make_study: MakeStudy) -> None:
    study = make_study(120, slides_a_patient=2)
    fits = calibrate(study, alpha=0.1)
    for entry in study.of(Part.VALIDATION):
        fit = fits.of(entry.member)
        assert fit.temperature == fit_temperature(entry.logits, entry.labels)
        assert (fit.slides, fit.patients) == (60, 30)
    scales = np.array([3.0, 0.5, 1.0, 2.0])
    found = np.array([fits.of(member).temperature for member in range(4)]) / scales
    assert found.max() / found.min() < 2.5  # the scales themselves are 6 apart


def test_members_of_unlike_scales_are_alike_after_calibration(make_study: MakeStudy) -> None:
    study = make_study(400, signal=1.5)
    cohort = out_of_fold(study, calibrate(study, alpha=0.1))
    assert cohort is not None
    finding = find(cohort, QUICK)
    assert finding.before.error > finding.before.null_high
    assert finding.after.error <= finding.after.null_high
    figures = finding.content["figures"], finding.content["figures_before_calibration"]
    for name in ("Brier score", "negative log-likelihood"):
        assert figures[0][name]["value"] < figures[1][name]["value"]


def test_every_slide_is_judged_once_by_the_member_it_was_held_out_from(make_study: MakeStudy) -> None:
    study = make_study(40)
    fits = calibrate(study, alpha=0.1)
    cohort = out_of_fold(study, fits)
    assert cohort is not None
    assert sorted(cohort.after.slide_ids) == sorted(f"slide-{index}" for index in range(40))
    assert cohort.member_of_slide is not None
    for row, name in enumerate(cohort.after.slide_ids):
        member = int(cohort.member_of_slide[row])
        entry = study.of(Part.TEST)[member]
        logits = entry.logits[entry.slide_ids.index(name)][None]
        expected = probabilities(logits, fits.of(member).temperature)[0]
        assert cohort.after.probabilities[row] == pytest.approx(expected)
        assert (cohort.sets[row] == fits.of(member).rule.sets(expected[None])[0]).all()
    assert cohort.spread is None
    assert out_of_fold(Predictions(study.classes, study.of(Part.VALIDATION)), fits) is None


def test_calibration_changes_no_members_likeliest_class_and_no_auc_within_a_fold(
    make_study: MakeStudy,
) -> None:
    study = make_study(80)
    cohort = out_of_fold(study, calibrate(study, alpha=0.1))
    assert cohort is not None
    assert (cohort.before.predicted == cohort.after.predicted).all()
    plain = replace(cohort, after=cohort.before)
    aucs = [
        [row["AUROC"] for row in find(one, QUICK).content["folds"]["each"].values()]
        for one in (cohort, plain)
    ]
    assert aucs[0] == pytest.approx(aucs[1])


def test_an_ensemble_is_the_mean_of_calibrated_members_in_any_order_of_slides(make_study: MakeStudy) -> None:
    study = make_study(60, external=15)
    fits = calibrate(study, alpha=0.1)
    cohort = external(study, fits)
    assert cohort is not None
    assert len(cohort) == 15
    entries = study.of(Part.EXTERNAL)
    for row, name in enumerate(cohort.after.slide_ids):
        each = [
            probabilities(entry.logits[entry.slide_ids.index(name)][None], fits.of(entry.member).temperature)[
                0
            ]
            for entry in entries
        ]
        assert cohort.after.probabilities[row] == pytest.approx(np.mean(each, axis=0))
        best = int(np.mean(each, axis=0).argmax())
        assert cohort.spread is not None
        assert cohort.spread.deviation[row] == pytest.approx(np.std([one[best] for one in each], ddof=1))
    missing = replace(entries[1], slide_ids=(*entries[1].slide_ids[:-1], "another"))
    with pytest.raises(UsageError, match="judged different slides"):
        by_ensemble("x", [entries[0], missing], fits, classes=study.classes)


def test_conformal_sets_of_a_study_cover_as_promised(make_study: MakeStudy) -> None:
    out, new = [], []
    for seed in range(25):
        study = make_study(160, external=80, seed=seed)
        fits = calibrate(study, alpha=0.1)
        for found, cohort in ((out, out_of_fold(study, fits)), (new, external(study, fits))):
            assert cohort is not None
            found.append(cohort.sets[np.arange(len(cohort)), cohort.after.labels].mean())
    assert np.mean(out) == pytest.approx(0.9, abs=0.02)  # 120 patients of other folds: 109/121 = 0.901
    assert np.mean(new) > 0.88


def test_sets_of_a_fold_rest_on_the_other_folds_alone(make_study: MakeStudy) -> None:
    study = make_study(120, slides_a_patient=2)
    fits = calibrate(study, alpha=0.1)
    tests = study.of(Part.TEST)
    for held in tests:
        others = [entry for entry in tests if entry.member != held.member]
        values = np.concatenate([probabilities(e.logits, fits.of(e.member).temperature) for e in others])
        labels = np.concatenate([entry.labels for entry in others])
        patients = [name for entry in others for name in entry.patients]
        rows = worst_of_each_patient(values, labels, patients)
        assert fits.of(held.member).rule == fit_conformal(values[rows], labels[rows], alpha=0.1)
        assert fits.of(held.member).calibrated_on == len(rows) == len(set(patients))
        assert not set(patients) & set(held.patients)


def test_too_few_patients_rule_nothing_out(make_study: MakeStudy) -> None:
    study = make_study(8)
    few = calibrate(study, alpha=0.1)
    cohort = out_of_fold(study, few)
    assert cohort is not None
    assert cohort.sets.all()
    assert find(cohort, QUICK).content["gate"]["confirmed"]["count"] == 0
    none = calibrate(Predictions(study.classes, study.of(Part.TEST)), alpha=0.1)
    assert [entry.temperature for entry in none.members] == [1.0] * 4
    assert all(entry.note for entry in none.members)
    untested = calibrate(Predictions(study.classes, study.of(Part.VALIDATION)), alpha=0.1)
    assert untested.rule.sets([[1.0, 0.0]]).all()
