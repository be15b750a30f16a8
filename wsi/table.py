"""`open_table`: a CSV file that people edit, read as text; what a spreadsheet has done to it is said."""

from __future__ import annotations

import codecs
import csv
import io
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsi.errors import UsageError

MOST_BYTES = 256 << 20
"""A million lines are some 100 MB; what is larger is something else."""

_SAVE = "Save it as CSV UTF-8, with commas"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_DIVIDERS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True, slots=True)
class TableRow:
    """One line of a table."""

    line: int
    """Where it ends in the file, from 1, for messages."""
    values: Mapping[str, str]
    """By column, without blanks around; all of it text: 007 keeps its zeros, and NA is a word."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first line was read."""

    path: Path
    """The file."""
    columns: tuple[str, ...]
    """As its first line names them."""
    _text: str = field(repr=False)

    def require(self, names: Sequence[str], *, form: str) -> None:
        """Refuse a table without these columns; `form` is what its first line has to be like."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            found = ", ".join(self.columns) if any(self.columns) else "none"
            raise self.refused(
                f"has no column {' nor '.join(missing)} (columns found: {found})",
                f"The first line must be: {form}, with commas",
            )

    def refuse_twice(self, names: Sequence[str]) -> None:
        """Refuse a table that has one of these columns more than once."""
        twice = [name for name in names if self.columns.count(name) > 1]
        if twice:
            raise self.refused(f"has the column {twice[0]} twice", "Delete or rename one")

    def rows(self) -> Iterator[TableRow]:
        """The lines below the first; those without a value are left out.

        Raises
        ------
        UsageError
            A line is not CSV, or has more or fewer values than there are columns; it is named.
        """
        reader = csv.reader(io.StringIO(self._text, newline=""), strict=True)
        try:
            next(reader, None)
            for values in reader:
                if not any(value.strip() for value in values):
                    continue
                if len(values) != len(self.columns):
                    raise self.refused(
                        f"line {reader.line_num} has {len(values)} values under {len(self.columns)} columns",
                        "Put values that hold a comma in double quotes",
                    )
                named = zip(self.columns, (value.strip() for value in values), strict=True)
                yield TableRow(reader.line_num, dict(named))
        except csv.Error as error:
            raise self._not_csv(reader.line_num, error) from error

    def refused(self, reason: str, action: str) -> UsageError:
        """The error that says so of this file."""
        return UsageError(reason, path=self.path, action=action)

    def _not_csv(self, line: int, error: csv.Error) -> UsageError:
        return self.refused(f"line {line} is not CSV ({error})", "Correct the line")


def open_table(path: Path) -> Table:
    """Read a CSV file's first line: UTF-8 with or without a byte-order mark, any line ends, commas.

    Raises
    ------
    UsageError
        There is no such file, or it is of another encoding, divided by something else, or no text.
    """
    text = _text(path)
    try:
        names = next(csv.reader(io.StringIO(text, newline=""), strict=True), [])
    except csv.Error as error:
        raise Table(path, (), text)._not_csv(1, error) from error
    if len(names) == 1:
        for sign, word in _DIVIDERS.items():
            if sign in names[0]:
                found = f"is divided by {word}, not by commas (first line: {names[0].strip()[:60]!r})"
                raise UsageError(found, path=path, action=_SAVE)
    return Table(path, tuple(name.strip() for name in names), text)


def lines_of(rows: Sequence[int]) -> str:
    """A few line numbers, for messages.

    >>> lines_of([2]), lines_of([2, 4])
    ('line 2', 'lines 2, 4')
    """
    more = ", ..." if len(rows) > 5 else ""
    return f"line{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:5]))}{more}"


def _text(path: Path) -> str:
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # a pipe waits for ever
            raise UsageError("is a pipe, socket or device, not a file", path=path, action="Give a CSV file")
        if status.st_size > MOST_BYTES:
            found = f"is no table: it has {status.st_size / 2**30:.1f} GiB"
            raise UsageError(found, path=path, action="Give a CSV file")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError("there is no such file", path=path, action="Check the path") from error
    except OSError as error:
        reason = f"cannot be read ({os.strerror(error.errno or 0)})"
        raise UsageError(reason, path=path, action="Give a CSV file") from error
    return _decoded(path, data)


def _decoded(path: Path, data: bytes) -> str:
    if data.startswith(_UTF16):
        raise UsageError("is UTF-16 text, not UTF-8", path=path, action=_SAVE)
    if (place := data.find(0)) >= 0:
        # Half of the bytes of UTF-16 are zeros where the letters are those of English.
        if data.count(0) * 3 > len(data):
            raise UsageError("is UTF-16 text, not UTF-8", path=path, action=_SAVE)
        found = f"holds a NUL character in {_line_at(data, place)}: it is damaged, or no text"
        raise UsageError(found, path=path, action="Save it as CSV UTF-8 again")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = data[error.start]
        found = f"is not UTF-8 text ({_line_at(data, error.start)}, byte 0x{wrong:02X}; Latin-1 perhaps)"
        raise UsageError(found, path=path, action=_SAVE) from error


def _line_at(data: bytes, place: int) -> str:
    before = data.count(b"\n", 0, place)
    return f"line {before + 1}"
