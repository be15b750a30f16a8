"""What a model says of slides whose features are at hand: another cohort, with dropout, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mil.assessment.calibrating import Calibrations
from mil.assessment.cohort import Cohort
from mil.assessment.lesions import Lesions, lesion_shares
from mil.assessment.settings import AssessmentSettings
from mil.bags import BagSource
from mil.checkpoint import Model
from mil.ensemble import Ensemble, bag_logits
from mil.explain import Case, ExplanationReport, Sample, explain_bags
from mil.features import feature_items, open_bag
from mil.labels import LabelTable, SlideLabel, Split
from mil.predict import check_features, encoder_key
from mil.predictions import MemberPredictions, Part, Predictions
from mil.uncertainty import mc_dropout
from tiling.output import Output
from tiling.store import TileStore
from wsi.errors import MicrotomeError, UsageError

Report = Callable[[int, int], None]
"""Called at first and after each slide with (slides done, slides in all)."""


@dataclass(frozen=True, slots=True)
class Slides:
    """Slides of an output by name: the features that a model needs, and digests that name their bytes."""

    bags: Mapping[str, BagSource]
    """By slide id; read when they are wanted."""
    digests: Mapping[str, Mapping[str, str]]
    """By slide id: what the report is computed from."""


def open_slides(output: Output, slide_ids: Sequence[str], model: Model) -> Slides:
    """Open the features of slides.

    Raises
    ------
    UsageError
        Slides without such features, all of them named at once; or with features that the model was not made
        for.
    """
    key, contexts = encoder_key(model), model.features.contexts
    stores = {slide_id: TileStore(output, slide_id) for slide_id in slide_ids}
    items = feature_items(key, contexts)
    missing = [name for name, store in stores.items() if not all(store.path(item).exists() for item in items)]
    if missing:
        raise UsageError(
            f"{len(missing)} slides have no features by {key!r}: {_some(missing)}",
            path=output.root,
            action="Run 'microtome encode' first, or give the output that they are in",
        )
    for store in stores.values():
        check_features(store, model)
    return Slides(
        {name: open_bag(store, key, contexts=contexts) for name, store in stores.items()},
        {name: store.inputs("tiles", *items) for name, store in stores.items()},
    )


def new_slides(
    table: LabelTable, model: Model, predictions: Predictions | None, studied: LabelTable | None = None
) -> tuple[SlideLabel, ...]:
    """The slides of a label table that a model may be tested on: with a split those for testing, else all.

    Parameters
    ----------
    table
        The other cohort's.
    model, predictions
        The model's card, and what its members said of slides that were held out from them.
    studied
        The table that the model was trained by, which knows patients whose slides no member was held out
        from; None where it is lost.

    Raises
    ------
    UsageError
        A slide or a patient that the model learnt from, or a label that it does not know; they are named.
    """
    rows = table.of(Split.TEST) or table.rows
    unknown = sorted({row.label for row in rows} - set(model.classes))
    if unknown:
        raise UsageError(
            f"has labels that the model does not know: {_some(unknown)}",
            path=table.path,
            action=f"Use its classes: {', '.join(model.classes)}",
        )
    slides, patients = _learnt_from(model, predictions, studied)
    seen = [row.slide_id for row in rows if row.slide_id in slides]
    if seen:
        raise UsageError(
            f"names slides that the model learnt from: {_some(seen)}",
            path=table.path,
            action="Take them out; without --labels each is judged as it was held out",
        )
    known = sorted({row.patient or row.slide_id for row in rows} & patients)
    if known:
        raise UsageError(
            f"names patients whose other slides the model learnt from: {_some(known)}",
            path=table.path,
            action="Take them out: a test on them would not be one",
        )
    return rows


def _learnt_from(
    model: Model, predictions: Predictions | None, studied: LabelTable | None
) -> tuple[set[str], set[str]]:
    """Slides and patients of the study: each was trained on, or chose an epoch, for some member."""
    slides = {str(name) for name in model.training.get("slides", ())}
    patients = set(slides)
    for entry in predictions.members if predictions else ():
        if entry.part is not Part.EXTERNAL:
            slides |= set(entry.slide_ids)
            patients |= set(entry.patients)
    for row in studied.of(Split.TRAIN) if studied else ():
        slides.add(row.slide_id)
        patients.add(row.patient or row.slide_id)
    return slides, patients


def judge_slides(
    rows: Sequence[SlideLabel], slides: Slides, ensemble: Ensemble, *, classes: Sequence[str]
) -> tuple[MemberPredictions, ...]:
    """What each member says of slides that none of them has seen, in eval mode."""
    names = tuple(row.slide_id for row in rows)
    patients = tuple(row.patient or row.slide_id for row in rows)
    labels = np.array([classes.index(row.label) for row in rows], np.int64)
    found = []
    for number, member in enumerate(ensemble.members):
        logits = bag_logits(member, [slides.bags[name] for name in names])  # (m, C)
        wrong = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(wrong):
            raise MicrotomeError(
                f"member {number} gives NaN for slide {names[wrong[0]]!r}", action="Train the model again"
            )
        found.append(MemberPredictions(number, Part.EXTERNAL, names, patients, labels, logits))
    return tuple(found)


def dropout_deviation(
    cohort: Cohort,
    slides: Slides,
    ensemble: Ensemble,
    calibrations: Calibrations,
    *,
    settings: AssessmentSettings,
    report: Report | None = None,
) -> NDArray[np.float64]:
    """``(m,)``: standard deviation of the likeliest class's calibrated probability, over passes with dropout.

    A slide that one member judged is judged by that one. Of several it is the root mean square over them.
    """
    found = np.empty(len(cohort))
    if report:
        report(0, len(cohort))
    for row, slide_id in enumerate(cohort.after.slide_ids):
        bag, best = slides.bags[slide_id].read(), cohort.after.predicted[row]
        variances = []
        for member in _judges(cohort, row, len(ensemble.members)):
            values = mc_dropout(
                ensemble.members[member],
                bag,
                temperature=calibrations.of(member).temperature,
                passes=settings.mc_dropout,
                seed=settings.seed,
            )  # (passes, C)
            variances.append(values[:, best].var(ddof=1))
        found[row] = np.sqrt(np.mean(variances))
        if report:
            report(row + 1, len(cohort))
    return found


def explain_cohort(
    cohort: Cohort,
    slides: Slides,
    ensemble: Ensemble,
    calibrations: Calibrations,
    *,
    settings: AssessmentSettings,
    lesions: Lesions | None = None,
    output: Output,
    report: Report | None = None,
) -> ExplanationReport:
    """How true explanations are of the model: each slide's likeliest class, by a member that judged it.

    Slides that all members judged are explained by one of them each, in turn: methods are compared on what a
    head says, and all members would cost as many times the work. Where a slide's lesion is known, its true
    class is explained, and the tiles' scores are held against it.
    """
    shares, known = {}, None
    if lesions:
        known = cohort.after.classes.index(lesions.class_name)
        ill = np.flatnonzero(cohort.after.labels == known)
        shares = dict(lesion_shares(output, lesions, [cohort.after.slide_ids[row] for row in ill]))
    cases = []
    for row, slide_id in enumerate(cohort.after.slide_ids):
        judges = _judges(cohort, row, len(ensemble.members))
        member = judges[row % len(judges)]
        judge = Ensemble((ensemble.members[member],), (calibrations.of(member).temperature,))
        share = shares.get(slide_id)
        predicted = int(cohort.after.predicted[row])
        explained = predicted if share is None or known is None else known
        cases.append(Case(judge, slides.bags[slide_id], class_index=explained, lesion_share=share))
    sample = Sample(resamples=settings.resampling.count, seed=settings.seed)
    return explain_bags(cases, classes=cohort.after.classes, sample=sample, report=report)


def _judges(cohort: Cohort, row: int, members: int) -> list[int]:
    """Who judged a slide."""
    return list(range(members)) if cohort.member_of_slide is None else [int(cohort.member_of_slide[row])]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
