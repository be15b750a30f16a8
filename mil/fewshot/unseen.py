"""Which bags meta-learners may be judged on: of classes, or at least of patients, that they never saw."""

from __future__ import annotations

from collections.abc import Sequence

from mil.checkpoint import Judges
from mil.features import FeatureRecipe
from mil.fewshot.episodes import EpisodeSampler
from mil.fewshot.evaluating import FewshotSettings
from mil.fewshot.meta import Meta
from mil.fewshot.pool import Pool
from wsi.errors import UsageError


def require_fitting(pool: Pool, features: FeatureRecipe, meta: Meta) -> None:
    """Refuse bags that meta-learners cannot judge.

    Raises
    ------
    UsageError
        Features that are not those of META, the difference is named; tiles for learners of slides, or slides
        for learners of tiles.
    """
    if differences := meta.features.differences(features):
        raise UsageError(
            f"meta-learners {meta.name!r} know other features: {'; '.join(differences)}",
            action="Cut and encode the slides as those that META was trained on, or train another META",
        )
    judges = Judges.TILES if pool.of_tiles else Judges.SLIDES
    if judges is not meta.judges:
        raise UsageError(
            f"meta-learners {meta.name!r} learnt from tasks of {meta.judges.value}, and these bags are "
            f"{judges.value}",
            action=f"Label {meta.judges.value}, or train another META on {judges.value}",
        )


def choose_pool(
    pool: Pool, meta: Meta, classes: Sequence[str] | None = None, *, settings: FewshotSettings
) -> tuple[Pool, list[str]]:
    """The bags to judge on, and what must be said of them.

    Classes that decided neither what was learnt nor when to stop; where fewer than two are such, all.
    Patients whom the learners have seen are left out. Where too few are left for the tasks, they stay if all
    these classes are new; where some were seen, that is refused.

    Parameters
    ----------
    pool
        All labelled bags.
    meta
        Whom and what the learners have seen.
    classes
        Of all tasks; None for those that are new.
    settings
        Which tasks there must be enough bags for. `ways` None is at most those of training.

    Raises
    ------
    UsageError
        There is no such class; too few bags of new patients, or of new classes.
    """
    known = {*meta.base_classes, *meta.validation_classes}
    new = [name for name in pool.classes if name not in known]
    cautions = []
    if classes is None:
        chosen = new if len(new) >= 2 else list(pool.classes)
    else:
        chosen = list(dict.fromkeys(classes))
    kept = pool.only(classes=chosen)
    if len(kept.classes) < 2:
        raise UsageError(
            f"the only class is {kept.classes[0]!r}, and tasks have two at least", action="Label more classes"
        )
    seen_classes = [name for name in kept.classes if name in known]
    if seen_classes:
        cautions.append(
            f"the meta-learners saw classes {', '.join(seen_classes)} in training: these tasks tell how they "
            "do on other patients, not on new classes"
        )
    seen = [name for name in kept.patient_ids if name in set(meta.patients)]
    unseen = [name for name in kept.patient_ids if name not in set(meta.patients)]
    if not seen:
        return kept, cautions
    without = _without(kept, unseen, meta, settings)
    if isinstance(without, Pool):
        cautions.append(
            f"patients who were seen in training are left out: {len(seen)} of {len(kept.patient_ids)}"
        )
        return without, cautions
    if seen_classes:
        raise UsageError(
            f"the meta-learners saw classes {', '.join(seen_classes)} and {len(seen)} of "
            f"{len(kept.patient_ids)} patients in training, and the others do not suffice: {without}",
            action="Label slides of other patients, or two classes that were not trained on",
        )
    cautions.append(
        f"{len(seen)} of {len(kept.patient_ids)} patients were seen in training, with bags of other classes: "
        f"without them there are no tasks ({without})"
    )
    return kept, cautions


def ways_of(pool: Pool, meta: Meta, settings: FewshotSettings) -> int:
    """Classes of a task: as asked for, or those of training, if there are as many."""
    return settings.ways or min(meta.recipe.ways, len(pool.classes))


def _without(kept: Pool, unseen: Sequence[str], meta: Meta, settings: FewshotSettings) -> Pool | str:
    """The bags of unseen patients alone, or why they do not suffice for the tasks of all classes."""
    if not unseen:
        return "no patient is new"
    left = kept.only(patients=unseen)
    if gone := [name for name in kept.classes if name not in left.classes]:
        return f"no new patient has bags of {', '.join(gone)}"
    try:
        for shape in settings.shapes(ways_of(left, meta, settings)):
            EpisodeSampler(left, shape, within_site=settings.within_site)
    except UsageError as error:
        return error.reason
    return left
