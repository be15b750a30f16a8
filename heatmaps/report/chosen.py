"""Whose scores are reported, and what the model's card says of them: read as text, no model is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiling.output import Output
from tiling.store import TileStore, scored_models
from wsi.errors import UsageError

CARD_FILE = "model.json"
"""In a model's folder; see `mil.checkpoint`."""
_HELD_OUT = {
    "out_of_fold": "slides that cross-validation held out, each judged by a member that never saw it",
    "external": "slides that no member saw",
}


@dataclass(frozen=True, slots=True)
class Chosen:
    """The model whose scores are reported."""

    name: str
    """What its scores are filed under."""
    weights_sha256: str | None = None
    """Its weights, where its card was found: scores by others of that name are then refused."""
    trained: Mapping[str, Any] | None = None
    """How it was trained and how good it was on slides held out, as JSON; None where no card was found."""


def choose_model(output: Output, given: Path | None) -> Chosen | None:
    """The model that `given` names, else the only one whose scores are there; None where there are none.

    Parameters
    ----------
    output
        Where the scores are.
    given
        The model's folder, or its name alone. A card is also looked for in the output's own models.

    Raises
    ------
    UsageError
        Several models have scored slides, and none is given; no slide has scores by the given one; or its
        card cannot be read.
    """
    stores = (TileStore(output, slide) for slide in output.slides_with_tiles())
    there = sorted({name for store in stores for name in scored_models(store)})
    if given is None:
        if len(there) > 1:
            raise UsageError(
                f"{len(there)} models have scored its slides: {', '.join(there)}",
                path=output.root,
                action="Choose one with -m",
            )
        if not there:
            return None
        return _with_card(there[0], [output.models / there[0]])
    name = given.name or given.resolve().name
    if name not in there:
        known = f"there are scores by {', '.join(there)}" if there else "there are no scores at all"
        raise UsageError(
            f"no slide has scores by a model {name!r}; {known}",
            path=output.root,
            action="Run 'microtome predict' first, or choose another model with -m",
        )
    return _with_card(name, [given, output.models / name])


def _with_card(name: str, folders: Iterable[Path]) -> Chosen:
    for folder in folders:
        path = folder / CARD_FILE
        if path.is_file():
            try:
                card = json.loads(path.read_bytes())
                members = card["members"] if "members" in card else [card["weights_sha256"]]
                joined = hashlib.sha256("\n".join(members).encode()).hexdigest()
                weights = members[0] if len(members) == 1 else joined
                return Chosen(name, weights, _trained(card, len(members)))
            except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
                raise UsageError(
                    f"is unreadable ({type(error).__name__})",
                    path=path,
                    action="Copy the model again, or leave -m out",
                ) from error
    return Chosen(name)


def _trained(card: Mapping[str, Any], members: int) -> dict[str, Any]:
    """What of a card concerns a reader; names of slides and whatever is not known here are left out."""
    training = card.get("training") or {}
    counts = training.get("class_counts")
    found: dict[str, Any] = {
        "members": members,
        "folds": _whole(training.get("folds")),
        "slides": len(training["slides"]) if isinstance(training.get("slides"), list) else None,
        "patients": _whole(training.get("patients")),
        "class_counts": {str(n): int(c) for n, c in counts.items()} if isinstance(counts, Mapping) else None,
        "held_out": [],
        "not_calibrated_because": [],
    }
    figures = training.get("figures")
    for part, on in _HELD_OUT.items():
        said = figures.get(part) if isinstance(figures, Mapping) else None
        if isinstance(said, Mapping):
            found["held_out"].append({"on": on, **_figures(said)})
    if card.get("calibration") is None and isinstance(training.get("members"), list):
        each = [member for member in training["members"] if isinstance(member, Mapping)]
        reasons = {member.get("not_calibrated_because") for member in each}
        found["not_calibrated_because"] = sorted(reason for reason in reasons if isinstance(reason, str))
    return found


def _figures(part: Mapping[str, Any]) -> dict[str, Any]:
    """Slides, AUROC and balanced accuracy; the mean over folds where there are several."""
    said: dict[str, Any] = {"slides": _whole(part.get("slides"))}
    for name in ("auroc", "balanced_accuracy"):
        value = part.get(name)
        value = value.get("mean") if isinstance(value, Mapping) else value
        said[name] = float(value) if isinstance(value, int | float) else None
    return said


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
