"""What trained members say of slides that they did not learn from: the table that evaluation rests on.

::

    m  slides        C  classes
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi.errors import UsageError

_COLUMNS = ("member", "part", "slide_id", "patient", "label")
_LOGIT = "logit: "


class Part(Enum):
    """What slides were to the member that judges them. None of them were trained on."""

    VALIDATION = "validation"
    """Its best epoch was chosen by them, and its calibration is fitted on them."""
    TEST = "test"
    """The fold that is held out: nothing of this member was decided by it. Each slide is here once.

    Conformal rules, for slides of other folds and for new ones, rest on them.
    """
    EXTERNAL = "external"
    """A test set apart: every member judges all of them."""


@dataclass(frozen=True, slots=True)
class MemberPredictions:
    """What one member says of the slides of one part."""

    member: int
    """Which member of the ensemble: the number of the fold that it is tested on."""
    part: Part
    """What the slides were to it."""
    slide_ids: tuple[str, ...]
    """``m`` names."""
    patients: tuple[str, ...]
    """``m``: whose slides they are; a slide's own name where that is unknown."""
    labels: NDArray[np.int64]
    """``(m,)``: index of the true class."""
    logits: NDArray[np.float64]
    """``(m, C)``: before the softmax, and before calibration."""

    def __post_init__(self) -> None:
        m = len(self.slide_ids)
        if not m == len(self.patients) == len(self.labels) == len(self.logits):
            raise ValueError("slides, patients, labels and logits are not equally many")


@dataclass(frozen=True, slots=True)
class Predictions:
    """All members' predictions of a study."""

    classes: tuple[str, ...]
    """``C`` names, in the order of the logits."""
    members: tuple[MemberPredictions, ...]
    """One entry a member and part."""

    def of(self, part: Part) -> tuple[MemberPredictions, ...]:
        """The entries of one part, by member."""
        return tuple(sorted((m for m in self.members if m.part is part), key=lambda entry: entry.member))


def predictions_to_csv(predictions: Predictions) -> bytes:
    """The table as CSV: a line a slide, part and member. Numbers are written so that they read back alike."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *(f"{_LOGIT}{name}" for name in predictions.classes)])
    for entry in predictions.members:
        for row, slide_id in enumerate(entry.slide_ids):
            known = (entry.member, entry.part.value, slide_id, entry.patients[row])
            label = predictions.classes[entry.labels[row]]
            writer.writerow([*known, label, *map(repr, entry.logits[row].tolist())])
    return text.getvalue().encode()


def read_predictions(path: Path) -> Predictions:
    """Read back what `predictions_to_csv` gave.

    Raises
    ------
    UsageError
        The file is not there, or is no such table; the line is named.
    """
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(path, f"cannot be read ({type(error).__name__})") from error
    lines = csv.reader(io.StringIO(text, newline=""))
    header = next(lines, [])
    classes = tuple(name.removeprefix(_LOGIT) for name in header[len(_COLUMNS) :])
    if tuple(header[: len(_COLUMNS)]) != _COLUMNS or len(classes) < 2:
        raise _refused(path, "is no table of predictions")
    grouped: dict[tuple[int, Part], list[Sequence[str]]] = {}
    index = {name: number for number, name in enumerate(classes)}
    for values in lines:
        try:
            if len(values) != len(header) or values[4] not in index:
                raise ValueError("wrong number of values, or an unknown label")
            grouped.setdefault((int(values[0]), Part(values[1])), []).append(values)
        except ValueError as error:
            raise _refused(path, f"line {lines.line_num} is unsound ({error})") from error
    try:
        return Predictions(classes, tuple(_entry(key, rows, index) for key, rows in grouped.items()))
    except ValueError as error:
        raise _refused(path, f"holds a number that is none ({error})") from error


def _entry(
    key: tuple[int, Part], rows: Sequence[Sequence[str]], index: Mapping[str, int]
) -> MemberPredictions:
    return MemberPredictions(
        *key,
        slide_ids=tuple(row[2] for row in rows),
        patients=tuple(row[3] for row in rows),
        labels=np.array([index[row[4]] for row in rows], np.int64),
        logits=np.array([[float(value) for value in row[5:]] for row in rows]),
    )


def _refused(path: Path, reason: str) -> UsageError:
    return UsageError(reason, path=path, action="Train the model again, or copy it again")
