"""Which slides: a manifest that lists them, and what files, folders, patterns and manifests name together.

A manifest is a CSV file with a line for each slide::

    slide,id,mpp,label,patient
    a/1.svs,case-1,0.25,tumour,p1
    a/2.svs,case-2,,normal,p2

``slide`` is a path, from the manifest's folder on; the other columns may be missing, and blank. It will do
for ``--labels`` too (`mil.labels`), where ids are made as here.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiling.output import check_slide_id
from wsi.errors import UsageError
from wsi.find import search
from wsi.geometry import check_override
from wsi.table import Table, TableRow, lines_of, open_table

SUFFIX = ".csv"
"""How a manifest is told from a slide."""
SLIDE = "slide"
"""The column that makes a table a manifest."""
FORM = "slide[,id][,mpp][,label][,patient]"
"""Its first line."""
IDS = ("id", "slide_id")
"""The column of ids, and what a table of labels calls it."""

_COLUMNS = (SLIDE, *IDS, "mpp", "label", "patient")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SlideEntry:
    """One slide that a command is to work on."""

    slide_id: str
    """Its id: as the manifest says, else the file's name without suffix."""
    path: Path
    """The file."""
    mpp: float | None = None
    """Microns per level-0 pixel, whatever the file says; None where the manifest leaves that to the file."""
    label: str | None = None
    """Its class; None where the manifest does not say."""
    patient: str | None = None
    """Whose it is; None where the manifest does not say."""


def read_manifest(path: Path) -> tuple[SlideEntry, ...]:
    """Read a manifest, in its order. All is text: a slide called 00123 keeps its zeros, and NA is a word.

    UTF-8 with or without a byte-order mark, any line ends; other columns are left alone.

    Raises
    ------
    UsageError
        It is no such table; an id cannot be one, or occurs twice, be it in capitals; a figure is no
        resolution; or files are missing, all of which are counted before any work is done.
    """
    table = open_manifest(path)
    rows = [(row, id_of(table, row)) for row in table.rows()]
    if not rows:
        raise table.refused("holds no slides", f"Add a line '{FORM}' for each slide")
    _refuse_repeats(table, rows)
    entries = [_entry(table, row, name) for row, name in rows]
    _refuse_one_file_twice(table, rows, entries)
    _refuse_missing(table, rows, entries)
    return tuple(entries)


def open_manifest(path: Path) -> Table:
    """The table, sure to have a manifest's columns; neither its lines nor its files were looked at."""
    table = open_table(path)
    table.require([SLIDE], form=FORM)
    table.refuse_twice(_COLUMNS)
    if set(IDS) <= set(table.columns):
        raise table.refused(f"has both a column {IDS[0]} and a column {IDS[1]}", "Delete or rename one")
    if other := [name for name in table.columns if name and name not in _COLUMNS]:
        _log.info("%s: columns that say nothing to us: %s", path, ", ".join(other))
    return table


def id_of(table: Table, row: TableRow) -> str:
    """The id of one line: as it says, else the name of its file without suffix.

    Raises
    ------
    UsageError
        It names no file, or what it calls the slide cannot be an id; the line is named.
    """
    if not row.values[SLIDE]:
        raise table.refused(f"line {row.line} has no slide", "Fill in the path of its file, or delete it")
    stated = next((row.values[name] for name in IDS if row.values.get(name)), "")
    try:
        return check_slide_id(stated or Path(row.values[SLIDE]).stem)
    except UsageError as error:
        action = "Choose another id" if stated else "Give it an id in a column of that name"
        raise table.refused(f"line {row.line}: {error.reason}", action) from error


def list_entries(named: Iterable[Path]) -> list[SlideEntry]:
    """The slides meant by files, folders, patterns (`wsi.find.search`) and manifests, in order.

    What is left out of a folder though it looks like a slide is counted in a warning.

    Raises
    ------
    UsageError
        See `wsi.find.search` and `read_manifest`.
    """
    found = search(named)
    if said := found.left_out():
        _log.warning("%s", said)
    return [entry for path in found.paths for entry in _entries(path)]


def find_entries(named: Iterable[Path]) -> dict[str, SlideEntry]:
    """The same by id, each once.

    Raises
    ------
    UsageError
        Two of them would share an id, and so a folder of results: both are named; or see `list_entries`.
    """
    by_id: dict[str, SlideEntry] = {}  # case folded: on some file systems "A" and "a" are one folder
    by_file: dict[str, SlideEntry] = {}
    for entry in list_entries(named):
        same = by_file.setdefault(os.path.abspath(entry.path), entry)
        if (same.slide_id, same.mpp) != (entry.slide_id, entry.mpp):
            raise UsageError(
                f"is named twice, as {_said(same)} and as {_said(entry)}",
                path=entry.path,
                action="Name it once",
            )
        other = by_id.setdefault(entry.slide_id.casefold(), same)
        if other is not same:
            raise UsageError(
                f"{other.path} and {entry.path} would both be slide {entry.slide_id!r}",
                action="Rename one, or give it another id in a manifest",
            )
    return {entry.slide_id: entry for entry in by_id.values()}


def mpp_by_path(entries: Mapping[str, SlideEntry]) -> dict[Path, float]:
    """The resolutions that manifests state, for whoever opens the files."""
    return {entry.path: entry.mpp for entry in entries.values() if entry.mpp is not None}


def _said(entry: SlideEntry) -> str:
    return f"{entry.slide_id!r}" + (f" with {entry.mpp:g} microns per pixel" if entry.mpp else "")


def _entries(path: Path) -> Iterator[SlideEntry]:
    if path.suffix.lower() == SUFFIX:
        yield from read_manifest(path)
    else:
        yield SlideEntry(unicodedata.normalize("NFC", path.stem), path)


def _entry(table: Table, row: TableRow, name: str) -> SlideEntry:
    label, patient = (
        unicodedata.normalize("NFC", row.values.get(column, "")) or None for column in ("label", "patient")
    )
    return SlideEntry(name, _file(table.path.parent, row.values[SLIDE]), _mpp(table, row), label, patient)


def _file(folder: Path, stated: str) -> Path:
    """The file; letters with accents are spelled in two ways, by file systems as by spreadsheets."""
    forms = stated, unicodedata.normalize("NFC", stated), unicodedata.normalize("NFD", stated)
    spelled = [folder / form for form in forms]
    return next((path for path in spelled if os.path.lexists(path)), spelled[0])


def _mpp(table: Table, row: TableRow) -> float | None:
    text = row.values.get("mpp", "")
    if not text:
        return None
    try:
        return check_override(float(text.replace(",", ".")))  # a comma is what Excel writes in half of Europe
    except UsageError as error:
        raise table.refused(f"line {row.line}: {error.reason}", error.action or "") from error
    except ValueError as error:
        found = f"line {row.line} has mpp {text[:20]!r}, which is not a number"
        raise table.refused(found, "Give microns per pixel, such as 0.25, or leave it blank") from error


def _refuse_repeats(table: Table, rows: Sequence[tuple[TableRow, str]]) -> None:
    first: dict[str, tuple[int, str]] = {}
    for row, name in rows:
        line, other = first.setdefault(name.casefold(), (row.line, name))
        if line != row.line:
            spelled = "" if other == name else f", there spelled {other!r}"
            raise table.refused(
                f"has the id {name!r} in line {row.line} and in line {line}{spelled}",
                "Give each slide an id of its own, in a column id",
            )


def _refuse_one_file_twice(
    table: Table, rows: Sequence[tuple[TableRow, str]], entries: Sequence[SlideEntry]
) -> None:
    first: dict[str, int] = {}
    for (row, _), entry in zip(rows, entries, strict=True):
        line = first.setdefault(os.path.abspath(entry.path), row.line)
        if line != row.line:
            found = f"names the file {row.values[SLIDE]!r} in line {line} and in line {row.line}"
            raise table.refused(found, "Keep one line: a slide that is counted twice weighs twice")


def _refuse_missing(
    table: Table, rows: Sequence[tuple[TableRow, str]], entries: Sequence[SlideEntry]
) -> None:
    """All of them at once, and before hours of work."""
    missing = [
        (row.line, row.values[SLIDE])
        for (row, _), entry in zip(rows, entries, strict=True)
        if not os.path.exists(entry.path) or os.path.isdir(entry.path)
    ]
    if not missing:
        return
    names = ", ".join(repr(name) for _, name in missing[:3]) + (", ..." if len(missing) > 3 else "")
    lines = lines_of([line for line, _ in missing])
    raise table.refused(
        f"{len(missing)} of {len(entries)} slide files are missing: {names} ({lines})",
        f"Paths count from {table.path.parent}; correct them, or delete the lines",
    )
