"""``labels.csv``: what a person said of slides as a whole, as labels for ``train`` and ``adapt --labels``.

::

    OUT/feedback/labels.csv    slide_id,label,said: a line for each slide that is known to be of a class

*Agree* makes the class that was shown the label, *disagree* the one that the person named; where he named
none there is no line, nor where words on several models contradict one another. A model that judges tiles was
asked another question, of what most of the slide is: words on its result are no labels.

The marks are the truth, and this table follows from them: it is written anew, whole, from all files.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from heatmaps.viewer.collection import alone_patiently, features_of, read_collection, said_of
from tiling.commit import remove
from wsi.durable import write_file
from wsi.errors import UsageError

LABELS = "labels.csv"
_HEAD = "slide_id,label,said"


def label_of(features: Iterable[Mapping[str, Any]]) -> str | None:
    """The class that a slide is of, by all that was said of it; None where that is not known."""
    row = _row(features)
    return row[0] if row else None


def check_labels(folder: Path) -> None:
    """Refuse a table that another hand made, before anything is said that would replace it.

    Raises
    ------
    UsageError
        There is one with other columns, or it cannot be read.
    """
    path = folder / LABELS
    try:
        theirs = path.exists() and path.read_text(encoding="utf-8").splitlines()[:1] != [_HEAD]
    except (OSError, UnicodeDecodeError):
        theirs = True
    if theirs:
        raise UsageError(
            f"is not as the viewer wrote it (columns {_HEAD}), and would be replaced",
            path=path,
            action=f"Give {LABELS} another name",
        )


def write_labels(folder: Path, *, suffix: str, work: Path) -> None:
    """Bring the table up to what all files of marks say; without a line there is no table.

    Whoever changes marks does this afterwards: the last one sees the marks of all.

    Parameters
    ----------
    folder
        Of the marks.
    suffix
        Of their names, after the slide's id.
    work
        For the file being written, and its lock.

    Raises
    ------
    OutputBusyError, OutputError
        Another process is at it for too long, or it cannot be written.
    """
    path = folder / LABELS
    with alone_patiently(path, work):
        rows = []
        for marks in sorted(folder.glob(f"*{suffix}")):
            try:
                row = _row(features_of(read_collection(marks), marks))
            except UsageError:  # said where that slide is opened
                continue
            if row:
                rows.append((marks.name.removesuffix(suffix), *row))
        if not rows:
            remove(path)
            return
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([_HEAD.split(","), *rows])
        write_file(path, text.getvalue().encode(), work=work)


def _row(features: Iterable[Mapping[str, Any]]) -> tuple[str, str] | None:
    """The label, and on what it rests."""
    labels, denied, said = set(), set(), []
    for feature in features:
        about = said_of(feature)
        if about.get("about") != "slide" or about.get("judges") == "tiles":
            continue
        agreed = about.get("verdict") == "agree"
        if not agreed:
            denied.add(about.get("shown"))
        if label := about.get("shown") if agreed else about.get("said"):
            labels.add(str(label))
        said.append(f"{about.get('verdict')} with {about.get('model')}: {about.get('shown')}")
    if len(labels) != 1 or labels & denied:
        return None
    return labels.pop(), "; ".join(sorted(said))
