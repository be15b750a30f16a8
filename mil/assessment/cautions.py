"""What must be known to read a report: said in it, and not only in the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mil.assessment.calibrating import Calibrations
from mil.assessment.cohort import OUT_OF_FOLD
from mil.assessment.findings import Finding
from mil.assessment.settings import AssessmentSettings
from mil.calibration import LARGEST, LEAST
from mil.conformal import fewest


def cautions(
    findings: Sequence[Finding], calibrations: Calibrations, settings: AssessmentSettings
) -> list[str]:
    """Sentences, the most general first."""
    return [
        *_intervals(findings, settings),
        *_folds(findings),
        *_calibration(findings, calibrations, settings),
    ]


def _intervals(findings: Sequence[Finding], settings: AssessmentSettings) -> Iterator[str]:
    draws = settings.resampling
    yield (
        f"intervals are {100 * draws.level:g} % percentile intervals of {draws.count} resamples of patients "
        f"with all slides, seed {draws.seed}, not stratified; those of shares are exact (Clopper-Pearson)"
    )
    if any(finding.cohort.after.patient_count < len(finding.cohort) for finding in findings):
        yield (
            "patients have several slides: intervals of shares are of as many slides as patients make "
            "independent (Korn and Graubard), DeLong's are those for clusters (Obuchowski); the range of a "
            "perfectly calibrated model takes slides for independent, and is too narrow"
        )


def _folds(findings: Sequence[Finding]) -> Iterator[str]:
    names = {finding.cohort.name for finding in findings}
    if OUT_OF_FOLD in names:
        yield (
            "out-of-fold slides are each judged by the one member that was not trained on them; members have "
            "scales of their own, which calibration makes alike only nearly, so figures over all slides may "
            "lie below those of each fold"
        )
        yield (
            "they are of the sites and the time that was trained on: what holds elsewhere only slides from "
            "elsewhere can tell"
        )
    if names - {OUT_OF_FOLD}:
        yield (
            "conformal sets are promised for slides like those of validation: on slides from elsewhere read "
            "how many held the truth"
        )


def _calibration(
    findings: Sequence[Finding], calibrations: Calibrations, settings: AssessmentSettings
) -> Iterator[str]:
    for entry in calibrations.members:
        if entry.note:
            yield f"the temperature of member {entry.member} stays 1: {entry.note}"
        elif entry.temperature > 0.999 * LARGEST:
            yield (
                f"the temperature of member {entry.member} is at its limit of {LARGEST:g}: its validation "
                "slides are judged no better than by chance, and nothing it says is sure"
            )
        elif entry.temperature < 1.001 * LEAST:
            yield (
                f"the temperature of member {entry.member} is at its limit of {LEAST:g}: its logits are next "
                "to nothing, and its probabilities rest on few misjudged slides"
            )
    needed = fewest(settings.alpha)
    if any(finding.cohort.member_of_slide is not None for finding in findings):
        few = [str(entry.member) for entry in calibrations.members if entry.calibrated_on < needed]
        if few:
            yield (
                f"member {', '.join(few)}: too few patients in the other folds for sets with alpha "
                f"{settings.alpha:g}, which needs {needed}; their sets hold every class, "
                "and their slides all need review"
            )
    elif calibrations.patients < needed:
        yield (
            f"{calibrations.patients} patients that were tested on are too few for sets with alpha "
            f"{settings.alpha:g}, which needs {needed}; sets hold every class, and all slides need review"
        )
    if any(entry.patients for entry in calibrations.members):
        yield (
            "temperatures are fitted on validation slides, by which the epoch was chosen too: they may come "
            "out a little too sure"
        )
