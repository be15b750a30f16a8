"""`evaluate_model`: from a trained model to a committed folder with every number and picture.

::

    REPORT/metrics.json        every number, with what it rests on and what it means
    REPORT/slides.csv          a line a slide
    REPORT/reliability.png     confidence against accuracy, before and after calibration
    REPORT/roc.png             ROC and precision-recall curves
    REPORT/confusion.png       slides by truth and likeliest class
    REPORT/risk-coverage.png   what leaving unsure slides to a person gains
    REPORT/explanations.png    what the model says while tiles are taken away; with explanations only
    REPORT/external-*.png      the same of external test slides, where there are some beside the others
    REPORT/commit.json         see `tiling.commit`
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mil.assessment.calibrating import Calibrations, calibrate, uncalibrated
from mil.assessment.cautions import cautions
from mil.assessment.cohort import EXTERNAL, NEW, Cohort, by_ensemble, external, out_of_fold
from mil.assessment.comparison import compare_cohorts
from mil.assessment.findings import Finding, find
from mil.assessment.judging import (
    Report,
    Slides,
    dropout_deviation,
    explain_cohort,
    judge_slides,
    new_slides,
    open_slides,
)
from mil.assessment.pictures import draw, draw_explanations
from mil.assessment.settings import AssessmentSettings, Wanted
from mil.assessment.tables import slides_csv
from mil.checkpoint import Model, load_model
from mil.ensemble import Ensemble
from mil.evaluation.metrics import DEFINITIONS
from mil.labels import LabelTable, read_labels
from mil.predictions import Predictions, read_predictions
from mil.reports import report_is_there
from tiling.commit import begin, canonical
from tiling.output import Output
from tiling.versions import versions
from wsi.durable import write_file
from wsi.errors import UsageError

METRICS_FILE, PREDICTIONS_FILE, LABELS_FILE = "metrics.json", "predictions.csv", "labels.csv"


_OWN_MEMBER = "the member that did not learn from it"
FORMAT = 1
"""Version of what the figures mean; a report by another is no longer this one."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """A report that is on disk."""

    folder: Path
    """Where."""
    content: Mapping[str, Any]
    """What its ``metrics.json`` holds."""
    made: bool
    """Whether this run made it; the same one was there otherwise."""


@dataclass(frozen=True, slots=True)
class _Trained:
    """A model, and what its study kept of it."""

    model: Model
    ensemble: Ensemble
    predictions: Predictions | None
    calibrations: Calibrations
    identity: dict[str, Any]
    studied: LabelTable | None


def default_folder(model: Path) -> Path:
    """Where the report of a model goes: ``<model>-evaluation`` beside it."""
    return model.resolve().with_name(f"{model.resolve().name}-evaluation")


def evaluate_model(
    model: Path,
    folder: Path,
    *,
    output: Output | None = None,
    labels: Path | None = None,
    against: Path | None = None,
    wanted: Wanted | None = None,
    overwrite: bool = False,
    report: Report | None = None,
) -> Assessment:
    """Evaluate a trained model and publish the report as a folder; nothing to do where the same is there.

    Parameters
    ----------
    model
        Folder of the model.
    folder
        Where the report goes.
    output
        Holds the slides' features. Needed for `labels`, for dropout and for explanations; without it the
        logits that training kept are evaluated.
    labels
        Another cohort in `output`, see `mil.labels.read_labels`: its slides for testing where it has a split,
        else all. None to evaluate what training held out.
    against
        Folder of another model, to compare with on the same slides.
    wanted
        How.
    overwrite
        Replace a report that was made otherwise.
    report
        Called after each slide that is judged anew.

    Raises
    ------
    UsageError
        Not a model, or one without predictions and no `labels`; slides without features; slides or patients
        that the model learnt from; models that cannot be compared.
    RecipeError
        Another report, or something else, is at `folder`.
    OutputError
        See `wsi.errors`.
    """
    wanted = wanted or Wanted()
    if output is None and (labels or wanted.explain or wanted.lesions):
        raise UsageError(
            "no output was given, and --labels, --explain and --lesions need features",
            action="Give OUT, as to 'train'",
        )
    loaded = [load_model(path) for path in (model, against) if path]
    settings = wanted.for_model(loaded[0][0].calibration)
    trained = [
        _read(path, *one, settings) for path, one in zip(filter(None, (model, against)), loaded, strict=True)
    ]
    table = read_labels(labels, to_train=False) if labels else None
    features = [
        _open(output if table or (first and settings.needs_features) else None, table, one)
        for first, one in zip((True, False), trained, strict=False)
    ]
    recipe = _recipe(trained, table, features, settings) | _lesions(wanted, trained[0], features[0])
    if report_is_there(folder, recipe, what="report", overwrite=overwrite):
        return Assessment(folder, json.loads((folder / METRICS_FILE).read_bytes()), made=False)
    ours, *others = [
        _cohorts(one, table, slides, path)
        for one, slides, path in zip(trained, features, (model, against), strict=False)
    ]
    if features[0] and settings.mc_dropout:
        ours = [_with_dropout(cohort, features[0], trained[0], settings, report) for cohort in ours]
    findings = [find(cohort, settings) for cohort in ours]
    content = _content(trained[0], findings, settings)
    if others:
        content["against"] = _against(ours, others[0], trained[1], settings)
    if settings.explain and features[0] and output:
        told = explain_cohort(
            ours[0],
            features[0],
            trained[0].ensemble,
            trained[0].calibrations,
            settings=settings,
            lesions=wanted.lesions,
            output=output,
            report=report,
        )
        by = "one of the members in turn" if ours[0].spread is not None else _OWN_MEMBER
        content["explanations"] = told.as_json() | {"cohort": ours[0].name, "judged_by": by}
    _publish(folder, recipe, content, findings)
    return Assessment(folder, content, made=True)


def _read(folder: Path, model: Model, ensemble: Ensemble, settings: AssessmentSettings) -> _Trained:
    path = folder / PREDICTIONS_FILE
    predictions = read_predictions(path) if path.exists() else None
    if predictions is None:
        alone = uncalibrated(0, settings.alpha, classes=len(model.classes))
        members = tuple(replace(alone, member=number) for number in range(len(ensemble.members)))
        calibrations = Calibrations(members, alone.rule, alone.class_rule, 0)
    else:
        calibrations = calibrate(predictions, alpha=settings.alpha)
    identity = {"name": model.name, "weights_sha256": model.weights_sha256, "predictions_sha256": None}
    if predictions is not None:
        identity["predictions_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    labels = folder / LABELS_FILE
    studied = read_labels(labels, to_train=False) if labels.exists() else None
    return _Trained(model, ensemble, predictions, calibrations, identity, studied)


def _open(output: Output | None, table: LabelTable | None, trained: _Trained) -> Slides | None:
    """The features of all slides that will be judged anew; None where there is no output."""
    if output is None:
        return None
    if table is not None:
        rows = new_slides(table, trained.model, trained.predictions, trained.studied)
        return open_slides(output, [row.slide_id for row in rows], trained.model)
    names: dict[str, None] = {}
    for entry in trained.predictions.members if trained.predictions else ():
        names |= dict.fromkeys(entry.slide_ids)
    return open_slides(output, list(names), trained.model)


def _cohorts(
    trained: _Trained, table: LabelTable | None, slides: Slides | None, path: Path | None
) -> list[Cohort]:
    """Another cohort; or what training held out, and external test slides if there were some."""
    classes, fits = trained.model.classes, trained.calibrations
    if table is not None and slides is not None:
        rows = new_slides(table, trained.model, trained.predictions, trained.studied)
        entries = judge_slides(rows, slides, trained.ensemble, classes=classes)
        found = [by_ensemble(NEW, entries, fits, classes=classes)]
    elif trained.predictions is not None:
        found = [out_of_fold(trained.predictions, fits), external(trained.predictions, fits)]
    else:
        found = []
    known = [cohort for cohort in found if cohort is not None]
    if not known:
        raise UsageError(
            "the model kept no predictions of slides that were held out from it",
            path=path,
            action="Give OUT and --labels of slides that it has not seen, or train it again with folds",
        )
    return known


def _with_dropout(
    cohort: Cohort, slides: Slides, trained: _Trained, settings: AssessmentSettings, report: Report | None
) -> Cohort:
    found = dropout_deviation(
        cohort, slides, trained.ensemble, trained.calibrations, settings=settings, report=report
    )
    return replace(cohort, dropout_deviation=found)


def _content(trained: _Trained, findings: Sequence[Finding], settings: AssessmentSettings) -> dict[str, Any]:
    return {
        "model": trained.identity | {"classes": list(trained.model.classes)},
        "settings": settings.as_json(),
        "definitions": DEFINITIONS,
        "calibration": trained.calibrations.as_json(),
        "cohorts": {finding.cohort.name: finding.content for finding in findings},
        "cautions": cautions(findings, trained.calibrations, settings),
        "against": None,
        "explanations": None,
    }


def _against(
    ours: Sequence[Cohort], theirs: Sequence[Cohort], other: _Trained, settings: AssessmentSettings
) -> dict[str, Any]:
    """The comparison on each cohort that both have; the first must be one."""
    named = {cohort.name: cohort for cohort in theirs}
    if ours[0].name not in named:
        raise UsageError(
            f"model {other.model.name!r} has no {ours[0].name} to compare with",
            action="Train it with folds too",
        )
    found = {
        cohort.name: compare_cohorts(cohort, named[cohort.name], settings)
        for cohort in ours
        if cohort.name in named
    }
    return {"model": other.identity, "cohorts": found}


# On disk ------------------------------------------------------------------------------------------------


def _recipe(
    trained: Sequence[_Trained],
    table: LabelTable | None,
    features: Sequence[Slides | None],
    settings: AssessmentSettings,
) -> dict[str, Any]:
    rows = [[row.slide_id, row.label, row.patient] for row in table.rows] if table else None
    recipe = {
        "step": "evaluation",
        "format": FORMAT,
        "model": trained[0].identity,
        "against": trained[1].identity if len(trained) > 1 else None,
        "settings": settings.as_json(),
        "labels_sha256": hashlib.sha256(canonical(rows)).hexdigest() if rows else None,
        "features": [slides.digests if slides else None for slides in features],
    }
    as_read: dict[str, Any] = json.loads(canonical(recipe))
    return as_read


def _lesions(wanted: Wanted, trained: _Trained, slides: Slides | None) -> dict[str, Any]:
    """What explanations are held against, for the recipe."""
    if wanted.lesions is None or slides is None:
        return {"lesions": None}
    if not wanted.explain:
        raise UsageError("lesions are for explanations, and none were asked for", action="Give --explain too")
    name = wanted.lesions.class_name
    if name not in trained.model.classes:
        raise UsageError(
            f"there is no class {name!r} for the lesions",
            action=f"Give one to --lesion-class: {', '.join(trained.model.classes)}",
        )
    lesions: dict[str, Any] = {"class": name, "files": wanted.lesions.digests(list(slides.bags))}
    return {"lesions": lesions | {"origin": wanted.lesions.files.origin.value}}


def _publish(
    folder: Path, recipe: Mapping[str, Any], content: Mapping[str, Any], findings: Sequence[Finding]
) -> None:
    work = folder.parent / ".work"
    draft = begin(folder, recipe, work=work)
    files = {METRICS_FILE: canonical(content), "slides.csv": slides_csv(findings)}
    for finding in findings:
        aside = finding.cohort.name == EXTERNAL and len(findings) > 1
        files |= {("external-" if aside else "") + name: data for name, data in draw(finding).items()}
    if content["explanations"]:
        files["explanations.png"] = draw_explanations(content["explanations"])
    for name, data in files.items():
        write_file(draft.folder / name, data)
    draft.publish({"versions": versions("torch", "scikit-learn", "scipy", "matplotlib", "captum")})
    with contextlib.suppress(OSError):  # an output has its own use for it
        work.rmdir()
