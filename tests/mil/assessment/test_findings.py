"""What a report says of a cohort is consistent, complete, and never NaN."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mil.assessment.calibrating import calibrate, coverage_law
from mil.assessment.cautions import cautions
from mil.assessment.cohort import Cohort, external, out_of_fold
from mil.assessment.comparison import compare_cohorts
from mil.assessment.findings import find
from mil.assessment.pictures import draw
from mil.assessment.settings import AssessmentSettings, Wanted
from mil.assessment.tables import SHOWN, comparison_summary, full_names, slides_csv, summary
from mil.checkpoint import Calibration
from mil.conformal import ConformalRule
from mil.evaluation.bootstrap import Resampling
from mil.evaluation.judged import Judged
from mil.gate import Gate
from mil.predictions import Predictions
from tiling.commit import canonical
from wsi.errors import UsageError

MakeStudy = Callable[..., Predictions]
QUICK = AssessmentSettings(resampling=Resampling(200))


def cohort_of(study: Predictions) -> Cohort:
    cohort = out_of_fold(study, calibrate(study, alpha=0.1))
    assert cohort is not None
    return cohort


@pytest.mark.parametrize(("classes", "slides_a_patient"), [(2, 1), (3, 2)])
def test_every_number_is_there_and_agrees_with_the_slides(
    make_study: MakeStudy, classes: int, slides_a_patient: int
) -> None:
    cohort = cohort_of(make_study(100, classes=classes, slides_a_patient=slides_a_patient))
    finding = find(cohort, QUICK)
    content = json.loads(canonical(finding.content))  # no NaN, nothing that is not JSON
    assert content["slides"]["all"] == {"slides": 100 * slides_a_patient, "patients": 100}
    assert np.sum(content["confusion"]) == len(cohort)
    assert np.trace(content["confusion"]) / len(cohort) == pytest.approx(
        content["figures"]["accuracy"]["value"]
    )
    review = sum(decision.review for decision in finding.decisions)
    assert content["gate"]["confirmed"]["count"] == len(cohort) - review
    assert content["gate"]["accuracy_of_review"]["of"] == review
    assert (content["figures_by_patient"] is None) is (slides_a_patient == 1)
    marginal = content["conformal"]["marginal"]
    assert sum(marginal["slides_by_size"].values()) == len(cohort)
    for name, found in content["figures"].items():
        low, high = found["interval"]
        assert low < high
        assert low <= found["value"] <= high or name == "expected calibration error", name
    assert len(content["delong"]) == (1 if classes == 2 else classes)
    for found in content["delong"].values():
        assert found["interval"]
        assert found["note"] is None


def test_the_table_of_slides_holds_each_slide_with_the_numbers_that_decided(make_study: MakeStudy) -> None:
    study = make_study(60, external=12)
    fits = calibrate(study, alpha=0.1)
    cohorts = [cohort for cohort in (out_of_fold(study, fits), external(study, fits)) if cohort]
    findings = [find(cohort, QUICK) for cohort in cohorts]
    rows = list(csv.DictReader(io.StringIO(slides_csv(findings).decode())))
    assert len(rows) == 72
    for row in rows:
        values = [float(row["probability: kind 0"]), float(row["probability: kind 1"])]
        assert float(row["confidence"]) == max(values)
        assert row["predicted"] == f"kind {int(np.argmax(values))}"
        confirmed = max(values) >= 0.8 and row["conformal_set"] == row["predicted"]
        assert row["decision"] == ("confirmed" if confirmed else "review required")
        assert row["reasons"]
        assert (row["judged_by"] == "all members") is (row["cohort"] == "external test slides")
        assert (row["ensemble_deviation"] == "") is (row["cohort"] != "external test slides")


def test_a_terminal_never_shows_nan_nor_a_figure_without_its_n(make_study: MakeStudy) -> None:
    study = make_study(24, classes=3, slides_a_patient=2)
    cohort = cohort_of(study)
    one_class = replace(cohort.after, labels=np.zeros(48, np.int64))
    for case in (cohort, replace(cohort, after=one_class, before=one_class)):
        lines = summary("a cohort", find(case, QUICK).content)
        for name, text in lines.items():
            assert "nan" not in text.lower().replace("none", ""), name
            assert "None" not in text, name
        for figure in SHOWN:
            assert "48 slides, 24 patients" in lines[full_names(3)[figure]]
    assert lines["AUROC, mean over classes"].startswith("n/a: only one class (kind 0)")
    assert lines["accuracy"].startswith(f"{(one_class.predicted == 0).mean():.3f}")


def test_perfection_has_a_bound_that_is_not_empty(make_study: MakeStudy) -> None:
    cohort = cohort_of(make_study(40))
    after = replace(cohort.after, labels=cohort.after.predicted)
    figures = find(replace(cohort, after=after, before=after), QUICK).content["figures"]
    positive = int(after.labels.sum())
    assert figures["AUROC"]["value"] == 1
    assert figures["AUROC"]["interval"] == pytest.approx([0.025 ** (1 / min(positive, 40 - positive)), 1.0])
    assert figures["accuracy"]["interval"][0] == pytest.approx(0.025 ** (1 / 40))
    assert "no width" in figures["AUROC"]["note"]
    assert figures["recall of kind 1"]["interval"][0] == pytest.approx(0.025 ** (1 / positive))
    assert figures["F1"]["interval"] is None
    assert "all resamples agree" in figures["F1"]["note"]


def test_a_cohort_of_one_slide_is_said_to_tell_nothing(make_study: MakeStudy) -> None:
    from mil.assessment.cohort import select

    cohort = cohort_of(make_study(40))
    row = np.array([3])
    alone = Cohort(
        "one",
        select(cohort.before, row),
        select(cohort.after, row),
        None,
        None,
        cohort.sets[row],
        cohort.class_sets[row],
    )
    finding = find(alone, QUICK)
    canonical(finding.content)
    lines = summary("one", finding.content)
    assert lines["AUROC"].startswith("n/a: only one class")
    assert draw(finding)


def test_pictures_are_made_the_same_twice_whatever_the_cohort(make_study: MakeStudy) -> None:
    finding = find(cohort_of(make_study(40, classes=3)), QUICK)
    first, again = draw(finding), draw(finding)
    assert first == again
    assert sorted(first) == ["confusion.png", "reliability.png", "risk-coverage.png", "roc.png"]
    assert all(data.startswith(b"\x89PNG") for data in first.values())


def test_two_slides_a_patient_make_no_interval_narrower_than_one(make_study: MakeStudy) -> None:
    """Each slide beside a copy of itself is no more to go by."""
    cohort = cohort_of(make_study(60))
    twice = np.repeat(np.arange(60), 2)

    def doubled(judged: Judged) -> Judged:
        return Judged(
            judged.classes,
            tuple(f"{judged.slide_ids[row]}-{number}" for number, row in enumerate(twice)),
            tuple(judged.patients[row] for row in twice),
            judged.labels[twice],
            judged.probabilities[twice],
        )

    both = replace(
        cohort,
        before=doubled(cohort.before),
        after=doubled(cohort.after),
        member_of_slide=None,
        sets=cohort.sets[twice],
        class_sets=cohort.class_sets[twice],
    )
    one, two = find(cohort, QUICK).content, find(both, QUICK).content
    for name in ("confirmed", "accuracy_of_confirmed", "accuracy_of_review"):
        assert two["gate"][name]["of"] == 2 * one["gate"][name]["of"]
        assert two["gate"][name]["interval"] == pytest.approx(one["gate"][name]["interval"], abs=0.02), name
    first, second = (found["conformal"]["marginal"]["coverage"]["interval"] for found in (one, two))
    assert second == pytest.approx(first, abs=0.02)


def test_folds_are_given_each_and_their_mean(make_study: MakeStudy) -> None:
    content = find(cohort_of(make_study(80)), QUICK).content["folds"]
    aucs = [row["AUROC"] for row in content["each"].values()]
    assert content["over_folds"]["AUROC"] == pytest.approx(
        {"mean": np.mean(aucs), "deviation": np.std(aucs, ddof=1), "folds": 4}
    )
    assert sum(found["slides"] for found in content["sizes"].values()) == 80


def test_models_are_compared_on_the_slides_that_both_judged(make_study: MakeStudy) -> None:
    good, poor = make_study(100, signal=3.0), make_study(100, signal=3.0)
    rng = np.random.default_rng(5)
    worse = tuple(
        replace(entry, logits=entry.logits + rng.normal(scale=6, size=entry.logits.shape))
        for entry in poor.members
    )
    first, second = cohort_of(good), cohort_of(replace(poor, members=worse))
    found = json.loads(canonical(compare_cohorts(first, second, QUICK)))
    test = found["delong"]["kind 1"]
    assert test["difference"] < 0
    assert test["p"] < 0.05
    difference = found["differences"]["AUROC"]
    assert difference["value"] == pytest.approx(test["difference"])
    assert difference["interval"][1] < 0
    assert difference["interval"] == pytest.approx([test["low"], test["high"]], abs=0.06)
    same = compare_cohorts(first, first, QUICK)
    assert (same["delong"]["kind 1"]["p"], same["differences"]["accuracy"]["value"]) == (1, 0)
    lines = comparison_summary("a cohort", found, "other")
    assert all("None" not in text for text in lines.values())
    assert "100 slides" in lines["difference of AUROC"]


def test_models_of_other_labels_are_not_compared(make_study: MakeStudy) -> None:
    first = cohort_of(make_study(40))
    three = cohort_of(make_study(40, classes=3))
    with pytest.raises(UsageError, match="other classes"):
        compare_cohorts(first, three, QUICK)
    flipped = replace(first, after=replace(first.after, labels=1 - first.after.labels))
    with pytest.raises(UsageError, match="has another label or patient"):
        compare_cohorts(first, flipped, QUICK)
    strangers = replace(first.after, slide_ids=tuple(f"other-{name}" for name in first.after.slide_ids))
    with pytest.raises(UsageError, match="no slide in common"):
        compare_cohorts(first, replace(first, after=strangers), QUICK)


def test_what_limits_a_report_is_said_in_it(make_study: MakeStudy) -> None:
    study = make_study(8, slides_a_patient=2)
    fits = calibrate(study, alpha=0.1)
    said = "\n".join(cautions([find(cohort_of(study), QUICK)], fits, QUICK))
    assert "200 resamples of patients" in said
    assert "several slides" in said
    assert (
        "member 0, 1, 2, 3: too few patients in the other folds for sets with alpha 0.1, which needs 9"
        in said
    )
    enough = make_study(80)
    said = "\n".join(cautions([find(cohort_of(enough), QUICK)], calibrate(enough, alpha=0.1), QUICK))
    assert "too few" not in said
    assert "several slides" not in said


def test_the_law_of_coverage_is_given_beside_the_rules() -> None:
    assert coverage_law(8, 0.1) is None
    found = coverage_law(100, 0.1)
    assert found == pytest.approx({"mean": 0.9010, "deviation": 0.0295}, abs=2e-4)


def test_a_member_whose_validation_slides_contradict_it_is_named(make_study: MakeStudy) -> None:
    study = make_study(40)
    turned = replace(study, members=tuple(replace(entry, logits=-entry.logits) for entry in study.members))
    said = "\n".join(cautions([find(cohort_of(turned), QUICK)], calibrate(turned, alpha=0.1), QUICK))
    assert (
        "the temperature of member 0 is at its limit of 20: its validation slides are judged no better"
        in said
    )
    fits = calibrate(study, alpha=0.1)
    assert "at its limit" not in "\n".join(cautions([find(cohort_of(study), QUICK)], fits, QUICK))


def test_an_error_that_no_cohort_could_hold_is_answered_at_once(make_study: MakeStudy) -> None:
    study, tiny = make_study(20), replace(QUICK, alpha=1e-9)
    said = "\n".join(cautions([find(cohort_of(study), tiny)], calibrate(study, alpha=1e-9), tiny))
    assert "with alpha 1e-09, which needs 99999999" in said


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"alpha": 1.5}, {"mc_dropout": 1}, {"mc_dropout": -1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        AssessmentSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        Wanted(**wrong).for_model(None)  # type: ignore[arg-type]


def test_what_is_not_asked_for_is_as_the_model_was_trained() -> None:
    trained = Calibration((1.0,), ConformalRule(0.2, (0.5,)), Gate(0.9))
    assert Wanted().for_model(None) == AssessmentSettings()
    own = Wanted().for_model(trained)
    assert (own.alpha, own.gate.threshold) == (0.2, 0.9)
    asked = Wanted(alpha=0.05, threshold=0.0, explain=True).for_model(trained)
    assert (asked.alpha, asked.gate.threshold, asked.explain) == (0.05, 0.0, True)
