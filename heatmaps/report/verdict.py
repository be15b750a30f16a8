"""What a model says of a slide, as it is committed beside its scores: nothing is judged anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from tiling.commit import Commit
from tiling.store import judges_tiles


class Interval(Enum):
    """What the ends of an interval are. None of them is a confidence interval."""

    RANGE = "range of members"
    """The lowest and the highest probability that a member gives."""
    DEVIATION = "one standard deviation of members"
    """The ensemble's probability less and plus the standard deviation over members, within 0 to 1."""


MEANING = {
    Interval.RANGE: "The interval reaches from the lowest to the highest probability that any of the "
    "{members} members of the model gives. ",
    Interval.DEVIATION: "The interval is the model's probability less and plus one standard deviation of its "
    "{members} members, cut off at 0 and 1. ",
}
NO_GUARANTEE = (
    "Members learned from overlapping parts of one cohort: the interval says how far they are apart, and not "
    "how likely the truth lies within. Slides unlike those of training may be misjudged by all members alike."
)
ALONE = "The model has one member, or its scores keep none: there is no interval."


@dataclass(frozen=True, slots=True)
class ClassVerdict:
    """What is said of one class."""

    name: str
    """Of the class."""
    probability: float
    """By the ensemble: the mean over members."""
    low: float | None
    """Lower end of the interval; None where there is none."""
    high: float | None
    """Upper end."""
    deviation: float | None
    """Standard deviation over members."""
    in_conformal_set: bool | None
    """Whether it cannot be ruled out; None of an uncalibrated model."""


def prediction_of(scores: Commit) -> dict[str, Any] | None:
    """The model's verdict on a slide, as JSON; None by a model that judges tiles."""
    record = scores.record
    if judges_tiles(scores) or "probabilities" not in record:
        return None
    probabilities: Mapping[str, float] = record["probabilities"]
    each: Mapping[str, list[float]] = record.get("member_probabilities", {})
    spread: Mapping[str, float] = record.get("spread", {})
    kept = record.get("conformal_set")
    classes = []
    for name, probability in probabilities.items():
        low, high = _ends(probability, each.get(name), spread.get(name))
        inside = None if kept is None else name in kept
        classes.append(ClassVerdict(name, probability, low, high, spread.get(name), inside))
    kind = Interval.RANGE if each else Interval.DEVIATION if spread else None
    members = _members(scores)
    return {
        "likeliest": max(probabilities, key=lambda name: (probabilities[name], name)),
        "classes": [asdict(one) for one in classes],
        "interval": kind.value if kind else None,
        "interval_meaning": _meaning(kind, members),
        "members": members,
        "information_nats": record.get("information"),
        "calibrated": bool(record.get("calibrated")),
        "trained_on": bool(record.get("trained_on")),
    }


def _ends(
    probability: float, each: list[float] | None, deviation: float | None
) -> tuple[float | None, float | None]:
    if each:
        return min(each), max(each)
    if deviation is None:
        return None, None
    return max(0.0, probability - deviation), min(1.0, probability + deviation)


def _meaning(kind: Interval | None, members: int | None) -> str:
    if kind is None:
        return ALONE
    return MEANING[kind].format(members=members or "several").replace("  ", " ") + NO_GUARANTEE


def _members(scores: Commit) -> int | None:
    """How many there are, where the scores tell."""
    if each := scores.record.get("member_probabilities"):
        return len(next(iter(each.values())))
    calibration = scores.recipe["model"].get("calibration")
    return len(calibration["temperatures"]) if calibration else None


def shares_of(scores: Commit) -> dict[str, Any] | None:
    """Of what the slide is made, as JSON, by a model that judges tiles; else None."""
    record = scores.record
    if not judges_tiles(scores) or "shares" not in record:
        return None
    return {
        "shares": dict(record["shares"]),
        "expected_shares": dict(record.get("expected_shares", {})),
        "uncertain_share": record.get("uncertain_share"),
        "calibrated": bool(record.get("calibrated")),
        "trained_on": bool(record.get("trained_on")),
    }


def calibration_of(scores: Commit) -> dict[str, Any] | None:
    """How sure the model may be, as JSON; None of an uncalibrated one."""
    found = scores.recipe["model"].get("calibration")
    if not found:
        return None
    rule = found.get("conformal") or {}
    return {
        "temperatures": list(found["temperatures"]),
        "conformal_alpha": rule.get("alpha"),
        "conformal_quantiles": list(rule.get("quantiles", ())),
        "gate_threshold": found.get("gate_threshold"),
    }


def decision_of(scores: Commit) -> dict[str, Any] | None:
    """What the gate decided of the slide, as JSON; None where there is no gate: a person has to look."""
    found = scores.record.get("decision")
    if not found:
        return None
    return {
        "status": found["status"],
        "confidence": found["confidence"],
        "reasons": list(found["reasons"]),
        "conformal_set": list(scores.record.get("conformal_set", ())),
    }
