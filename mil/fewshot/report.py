"""`evaluate_fewshot`: from labelled bags and meta-trained learners to a committed folder that says who wins.

::

    REPORT/report.md         in words, with a table for each number of shots
    REPORT/fewshot.json      every number, with what it rests on and what it means
    REPORT/table.csv         a line for every number of shots and method
    REPORT/accuracy.png      accuracy over shots
    REPORT/tasks.csv.gz      a line for every task and method: all intervals over tasks can be made from it
    REPORT/patients.csv      a line for every patient who was asked about: likewise those over patients
    REPORT/commit.json       see `tiling.commit`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mil.features import FeatureRecipe
from mil.fewshot.evaluating import FewshotFigures, FewshotSettings, Progress, evaluate_methods
from mil.fewshot.meta import Meta, load_meta, on_device
from mil.fewshot.pictures import draw_accuracy
from mil.fewshot.pool import Pool
from mil.fewshot.tables import patients_csv, report_md, table_csv, tasks_csv
from mil.fewshot.unseen import choose_pool, require_fitting, ways_of
from mil.fewshot.verdicts import RESAMPLES, Ranking, in_words, rank
from mil.reports import report_is_there
from tiling.commit import alone, begin, canonical, load_commit
from tiling.versions import versions
from wsi.durable import write_file

FEWSHOT_FILE = "fewshot.json"
FORMAT = 1
"""Version of what the figures mean; a report by another is no longer this one."""
_STEP = "fewshot-evaluation"
_FEW_TASKS, _FEW_PATIENTS = 100, 20
DEFINITIONS = {
    "accuracy": "mean over tasks of the share of queries that are judged right; each class has as many, so "
    "it is balanced accuracy too. All methods judge the very same tasks",
    "interval": "mean ± 1.96 standard deviations over the root of the number of tasks. It is for tasks drawn "
    "from these very slides, and grows as narrow as one cares to draw; it says nothing of other patients, "
    "for tasks share them",
    "over patients": f"95 % percentile interval of {RESAMPLES} resamples of the patients who are asked "
    "about. Supports stay as they were drawn, so it is still a little too narrow, and with few patients much "
    "too narrow",
    "difference": "mean over tasks of the difference on the same task, with the interval of these",
    "best baseline": "of prototypes, logistic, scratch and pretrained the one with the best mean on these "
    "tasks. That flatters it a little: a gain is claimed too seldom rather than too often, a loss the other "
    "way round",
    "verdict": "by the paired interval over tasks to the best baseline: gain if it lies above zero, loses if "
    "it lies below, else no gain shown; the same if the difference is zero in every task. For m "
    "meta-learners at once the interval is that of level 1 - 0.05 / m (Bonferroni); numbers of shots are not "
    "corrected for. That interval is the one called corrected, and is wider than the one of 95 %",
    "log loss": "mean of -ln of the probability of the true class: high where a method is sure and wrong",
}


@dataclass(frozen=True, eq=False, slots=True)
class Source:
    """Labelled bags."""

    pool: Pool
    """The bags."""
    features: FeatureRecipe
    """What their features are."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Digests of what they were read from, for the reader: the bags themselves have one of their own."""


@dataclass(frozen=True, slots=True)
class FewshotReport:
    """A report that is on disk."""

    folder: Path
    """Where."""
    content: Mapping[str, Any]
    """What its ``fewshot.json`` holds."""
    made: bool
    """Whether this run made it; the same one was there otherwise."""


def default_folder(meta: Path) -> Path:
    """Where the report of meta-learners goes: ``<META>-evaluation`` beside them."""
    return meta.resolve().with_name(f"{meta.resolve().name}-evaluation")


def evaluate_fewshot(
    source: Source,
    *,
    meta: Path,
    folder: Path,
    settings: FewshotSettings | None = None,
    classes: Sequence[str] | None = None,
    device: torch.device | None = None,
    overwrite: bool = False,
    report: Progress | None = None,
) -> FewshotReport:
    """Judge all methods of a META folder on the same tasks, and publish who wins; or read it back.

    Parameters
    ----------
    source
        Labelled bags.
    meta
        Folder that `mil.fewshot.study.train_meta` wrote.
    folder
        Where the report goes.
    settings
        Which tasks.
    classes
        Of the tasks; None for those that are new to the learners, see `choose_pool`.
    device
        Where to compute; by default the CPU.
    overwrite
        Replace a report that was made otherwise.
    report
        Called after each part of the tasks.

    Raises
    ------
    UsageError
        Not a META folder, or one for other features; tasks that cannot be drawn; see `choose_pool`.
    RecipeError
        Another report, or something else, is at `folder`.
    OutputBusyError
        Another process makes it.
    OutputError
        See `wsi.errors`.
    """
    card, learners = load_meta(meta)
    require_fitting(source.pool, source.features, card)
    settings = settings or FewshotSettings()
    chosen, cautions = choose_pool(source.pool, card, classes, settings=settings)
    settings = replace(settings, ways=ways_of(chosen, card, settings))
    device = device or torch.device("cpu")
    recipe = {
        "step": _STEP,
        "format": FORMAT,
        "meta": load_commit(meta).digest,
        "settings": settings.as_json(),
        "classes": list(chosen.classes),
        "bags": digest(chosen),
        "inputs": json.loads(canonical(dict(source.inputs))),
        "device": device.type,
    }
    if report_is_there(folder, recipe, what="few-shot report", overwrite=overwrite):
        return FewshotReport(folder, json.loads((folder / FEWSHOT_FILE).read_bytes()), made=False)
    work = folder.parent / ".work"
    with alone(folder, work=work):
        methods = on_device(learners, device).methods
        figures = evaluate_methods(chosen, methods, settings, device=device, report=report)
        rankings = rank(figures, seed=settings.seed)
        content = _content(chosen, card, recipe, figures, rankings)
        content["cautions"] = [*cautions, *_cautions(figures, card)]
        files = {
            FEWSHOT_FILE: canonical(content),
            "report.md": report_md(content),
            "table.csv": table_csv(content),
            "tasks.csv.gz": tasks_csv(figures),
            "patients.csv": patients_csv(figures),
            "accuracy.png": draw_accuracy(content),
        }
        draft = begin(folder, recipe, work=work)
        for name, data in files.items():
            write_file(draft.folder / name, data)
        draft.publish({"versions": versions("torch", "scikit-learn", "matplotlib")})
    return FewshotReport(folder, content, made=True)


def digest(pool: Pool) -> str:
    """SHA-256 of all that tasks and figures depend on."""
    found = hashlib.sha256()
    names = (pool.classes, pool.patient_ids, pool.site_ids, pool.slide_ids)
    found.update(canonical([list(each) for each in names]))
    for values in (
        *(pool.labels, pool.patients, pool.sites, pool.slides, pool.sizes),
        *(pool.places.astype(np.int64), pool.features),
    ):
        found.update(f"{values.dtype.str}{values.shape}".encode())
        found.update(np.ascontiguousarray(values).data)
    return found.hexdigest()


def _content(
    pool: Pool,
    card: Meta,
    recipe: Mapping[str, Any],
    figures: FewshotFigures,
    rankings: Sequence[Ranking],
) -> dict[str, Any]:
    content = {
        "meta": {
            "name": card.name,
            "digest": recipe["meta"],
            "learners": dict(card.learners),
            "base_classes": card.base_classes,
            "validation_classes": card.validation_classes,
        },
        "recipe": recipe,
        "versions": versions("torch", "scikit-learn", "matplotlib"),
        "tasks": recipe["settings"],
        "judges": card.judges.value,
        "classes": pool.classes,
        "bags": len(pool),
        "patients": len(pool.patient_ids),
        "slides": len(pool.slide_ids),
        "sites": len(pool.site_ids),
        "definitions": DEFINITIONS,
        "left_out": dict(figures.left_out),
        "shots": [_ranking(ranking) for ranking in rankings],
    }
    as_read: dict[str, Any] = json.loads(canonical(content))  # tuples are lists there
    return as_read


def _ranking(ranking: Ranking) -> dict[str, Any]:
    return {
        "shots": ranking.shots,
        "winner": ranking.winner,
        "best_baseline": ranking.best_baseline,
        "words": in_words(ranking),
        "methods": [asdict(one, dict_factory=_plain) for one in ranking.standings],
    }


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value.value if isinstance(value, Enum) else value for name, value in pairs}


def _cautions(figures: FewshotFigures, card: Meta) -> list[str]:
    found = [f"{name} is not judged: {why}" for name, why in figures.left_out.items()]
    if figures.episodes < _FEW_TASKS:
        found.append(f"{figures.episodes} tasks are few; their interval is a rough one below {_FEW_TASKS}")
    asked = int((figures.asked > 0).any(axis=0).sum())
    if asked < _FEW_PATIENTS:
        found.append(f"only {asked} patients are asked about: intervals over patients are much too narrow")
    if not card.validation_classes:
        found.append(
            "training stopped by tasks of the very classes that it learnt from: with so few base classes "
            "meta-learners tend to fit these alone"
        )
    return found
