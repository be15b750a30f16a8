"""The label table: which slide shows what, whose it is, and what it is for. A CSV file that people edit."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

from tiling.class_names import CHANNELS
from tiling.manifest import IDS, SLIDE, id_of
from tiling.output import check_slide_id
from wsi.errors import UsageError
from wsi.table import Table, TableRow, lines_of, open_table

_REQUIRED = ("slide_id", "label")
_OPTIONAL = ("patient", "split", "fold", "site")
_FORM = "slide_id,label[,patient][,split][,fold][,site]"
_MAY_BE_BLANK = ("fold", "site")  # slides for testing have no fold, and of some nobody knows the site
_LABEL_BYTES = 100  # labels are parts of file names
_FORMULA = re.compile(r"[=@]|[+-].*[(|!]")  # a sign alone is a label: CD3 is + or -


class Split(Enum):
    """What a slide is for."""

    TRAIN = "train"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class SlideLabel:
    """One line of the table."""

    slide_id: str
    """As in the output: the slide file's name without its suffix."""
    label: str
    """Name of the class."""
    patient: str | None
    """Whose slide it is; None where the table does not say."""
    split: Split | None
    """What it is for; None where the table does not say."""
    fold: int | None
    """Which fold it is in, from 0; None where the table does not say, and for slides for testing."""
    site: str | None
    """Where it was made: hospital, scanner or stain; None where the table does not say."""
    line: int
    """Where it stands in the file, for messages."""


@dataclass(frozen=True, slots=True)
class LabelTable:
    """A sound table: no slide twice, no patient on two sides. To train by, two classes, and sound folds."""

    path: Path
    """The file."""
    rows: tuple[SlideLabel, ...]
    """In the file's order."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, sorted: a label's index is its place here."""
        return tuple(sorted({row.label for row in self.rows}))

    def of(self, split: Split) -> tuple[SlideLabel, ...]:
        """The slides of one side; without a split column all are for training."""
        return tuple(row for row in self.rows if _side(row) is split)

    @property
    def folds(self) -> int:
        """How many folds the table has; 0 where it leaves them to the program."""
        return max((row.fold + 1 for row in self.rows if row.fold is not None), default=0)


def read_labels(path: Path, *, to_train: bool = True) -> LabelTable:
    """Read a CSV file with columns ``slide_id,label``, and ``patient,split,fold,site`` as far as wanted.

    A manifest with labels will do too: its slides are called as when they were cut (`tiling.manifest`).
    UTF-8 with or without a byte-order mark, any line ends. All is text: a slide called 007 keeps its zeros.
    Blanks around a value are dropped, and letters with accents are brought to one spelling (Unicode NFC);
    other columns are left alone.

    Parameters
    ----------
    path
        The file.
    to_train
        Whether a model is to learn from it. A table that a model is only held against may have one class, or
        no slide for training, and its folds concern nobody.

    Raises
    ------
    UsageError
        Anything that would make a wrong experiment out of the table; lines are named.
    """
    rows = tuple(_parse(open_table(path)))
    if not rows:
        raise _refused(path, "holds no slides", "Add a line 'slide_id,label' for each slide")
    _refuse_unusable_ids(path, rows)
    _refuse_unusable_labels(path, rows)
    _refuse_repeats(path, rows)
    _refuse_look_alikes(path, rows)
    _refuse_leaks(path, rows)
    table = LabelTable(path, rows)
    if to_train:
        _refuse_wrong_folds(path, rows)
        _refuse_nothing_to_learn(table)
    return table


def _refuse_nothing_to_learn(table: LabelTable) -> None:
    """Two classes at least, and no other in the test."""
    path = table.path
    trained = {row.label for row in table.of(Split.TRAIN)}
    if len(trained) < 2:
        found = f"one label ({trained.pop()!r})" if trained else "no slides"
        raise _refused(path, f"has {found} to train on", "Label slides of at least two classes for training")
    unseen = [row for row in table.of(Split.TEST) if row.label not in trained]
    if unseen:
        raise _refused(
            path,
            f"tests on labels that are not trained on: {unseen[0].label!r} ({_lines(unseen)})",
            "Move one such slide to train, or leave them out",
        )


def labels_to_csv(table: LabelTable) -> bytes:
    """The table in one spelling: UTF-8, all columns that we know, blank where it said nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    shown = [*_REQUIRED, *(name for name in _OPTIONAL if any(_value(row, name) for row in table.rows))]
    writer.writerow(shown)
    writer.writerows([_value(row, name) for name in shown] for row in table.rows)
    return text.getvalue().encode()


def _value(row: SlideLabel, column: str) -> str:
    value = getattr(row, column)
    if value is None:
        return ""
    return value.value if isinstance(value, Split) else str(value)


def _side(row: SlideLabel) -> Split:
    return row.split or Split.TRAIN


def _parse(table: Table) -> Iterator[SlideLabel]:
    path, name_slide = table.path, _namer(table)
    table.require(["label"] if name_slide else _REQUIRED, form=_FORM)
    table.refuse_twice([*_REQUIRED, *_OPTIONAL])
    for row in table.rows():
        named = {name: unicodedata.normalize("NFC", value) for name, value in row.values.items()}
        if name_slide:
            named["slide_id"] = name_slide(row)
        known = [name for name in (*_REQUIRED, *_OPTIONAL) if name in named]
        blank = [name for name in known if not named[name] and name not in _MAY_BE_BLANK]
        if blank:
            raise _refused(path, f"line {row.line} has no {blank[0]}", "Fill it in, or delete the line")
        yield SlideLabel(
            named["slide_id"],
            named["label"],
            named.get("patient"),
            _split(path, named.get("split"), row.line),
            _fold(path, named.get("fold"), row.line),
            named.get("site") or None,
            row.line,
        )


def _namer(table: Table) -> Callable[[TableRow], str] | None:
    """How the slides of a manifest are called (`tiling.manifest`); None for a table of labels alone."""
    if SLIDE not in table.columns or IDS[1] in table.columns:
        return None
    table.refuse_twice([SLIDE, IDS[0]])
    return partial(id_of, table)


def _split(path: Path, value: str | None, line: int) -> Split | None:
    if value is None:
        return None
    try:
        return Split(value.lower())
    except ValueError as error:
        raise _refused(path, f"line {line} has split {value!r}", "Use train or test") from error


def _fold(path: Path, value: str | None, line: int) -> int | None:
    if not value:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) <= 4):
        raise _refused(path, f"line {line} has fold {value[:20]!r}", "Use whole numbers from 0")
    return int(value)


def _refuse_unusable_ids(path: Path, rows: Sequence[SlideLabel]) -> None:
    """Ids are names of folders: none leads out of the output."""
    for row in rows:
        try:
            check_slide_id(row.slide_id)
        except UsageError as error:
            raise _refused(path, f"{error.reason} ({_lines([row])})", "Write the slide's id") from error


def _refuse_unusable_labels(path: Path, rows: Sequence[SlideLabel]) -> None:
    """Labels become classes in QuPath, where a colon divides; names of channels; and parts of file names.

    And cells of tables that people open with a spreadsheet, which would compute what looks like a formula.
    """
    for row in rows:
        label, reason = row.label, ""
        if not label.isprintable():
            reason = "holds characters that cannot be printed on one line"
        elif ":" in label:
            reason = "holds a colon"
        elif _FORMULA.match(label):
            reason = "a spreadsheet takes for a formula"
        elif label.casefold() in CHANNELS:
            reason = "is the name of another channel of heatmaps"
        elif len(label.encode()) > _LABEL_BYTES:
            reason = f"is longer than {_LABEL_BYTES} bytes"
        if reason:
            same = [other for other in rows if other.label == label]
            raise _refused(
                path, f"has label {label[:40]!r}, which {reason} ({_lines(same)})", "Choose another label"
            )


def _refuse_repeats(path: Path, rows: Iterable[SlideLabel]) -> None:
    lines: dict[str, list[SlideLabel]] = defaultdict(list)
    for row in rows:
        lines[row.slide_id].append(row)
    for slide_id, same in lines.items():
        if len(same) > 1:
            raise _refused(path, f"names slide {slide_id!r} more than once ({_lines(same)})", "Keep one line")


def _refuse_look_alikes(path: Path, rows: Iterable[SlideLabel]) -> None:
    """``Tumour`` and ``tumour`` are one class to whoever wrote them, and two to a program."""
    spelled: dict[str, SlideLabel] = {}
    for row in rows:
        first = spelled.setdefault(row.label.casefold(), row)
        if first.label != row.label:
            raise _refused(
                path,
                f"spells one label in two ways: {first.label!r} in line {first.line}, {row.label!r} in line "
                f"{row.line}",
                "Use one spelling",
            )


def _refuse_leaks(path: Path, rows: Iterable[SlideLabel]) -> None:
    seen: dict[str, SlideLabel] = {}
    for row in rows:
        if row.patient is None or row.split is None:
            continue
        first = seen.setdefault(row.patient, row)
        if first.split is not row.split:
            raise _refused(
                path,
                f"has patient {row.patient!r} in both train and test ({_lines([first, row])})",
                "Keep all slides of a patient on one side: the test would not be one",
            )


def _refuse_wrong_folds(path: Path, rows: Sequence[SlideLabel]) -> None:
    """Folds are of training slides: all or none of them, from 0 without a gap, a patient in one."""
    with_fold = [row for row in rows if row.fold is not None]
    if not with_fold:
        return
    tested = [row for row in with_fold if _side(row) is Split.TEST]
    if tested:
        raise _refused(path, f"gives a fold to slides for testing ({_lines(tested)})", "Leave it blank there")
    without = [row for row in rows if row.fold is None and _side(row) is Split.TRAIN]
    if without:
        raise _refused(path, f"gives no fold to some slides ({_lines(without)})", "Fill in all, or none")
    found = {row.fold for row in with_fold}
    missing = [fold for fold in range(len(found)) if fold not in found]
    if missing:
        raise _refused(
            path, f"has no slide in fold {missing[0]}", "Number folds from 0 without a gap: 0, 1, 2, ..."
        )
    first_of: dict[str, SlideLabel] = {}
    for row in with_fold:
        first = first_of.setdefault(row.patient or row.slide_id, row)
        if first.fold != row.fold:
            raise _refused(
                path,
                f"has patient {row.patient!r} in two folds, {first.fold} and {row.fold} "
                f"({_lines([first, row])})",
                "Keep all slides of a patient in one fold: the test would not be one",
            )


def _lines(rows: Sequence[SlideLabel]) -> str:
    return lines_of([row.line for row in rows])


def _refused(path: Path, reason: str, action: str) -> UsageError:
    return UsageError(reason, path=path, action=action)
