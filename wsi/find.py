"""Slide files in folders, and by patterns."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from wsi.errors import UsageError

SUFFIXES = (
    ".bif", ".czi", ".dcm", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".tif", ".tiff", ".vms", ".vmu",
)  # fmt: skip
"""What a folder is searched for; a file given by name may be called anything."""

_UNFINISHED = (".partial", ".part", ".crdownload", ".download", ".tmp", ".filepart")
_BEHIND = "behind links"
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Found:
    """What files, folders and patterns name."""

    paths: tuple[Path, ...]
    """In order; a file that is named twice is there twice."""
    ignored: tuple[tuple[Path, str], ...] = ()
    """What looks like a slide and is not taken, and why: hidden, unfinished, folders, or behind links."""

    def left_out(self) -> str:
        """A word on what is ignored: how many of each kind, and the first; empty where there is nothing."""
        if not self.ignored:
            return ""
        counts = Counter(kind for _, kind in self.ignored)
        kinds = ", ".join(f"{kind}: {count}" for kind, count in sorted(counts.items()))
        files = f"{len(self.ignored)} file{'s that look' if len(self.ignored) > 1 else ' that looks'}"
        return f"{files} like a slide left out ({kinds}), first {self.ignored[0][0]}"


def search(named: Iterable[Path]) -> Found:
    """The slide files meant by files, folders and patterns, in order, and what was left out of them.

    A folder is searched for `SUFFIXES`, not below. A pattern has ``*``, ``?`` or ``[...]``, and ``**`` for
    any folders; it finds slides, or whatever ends as it does (``*.bin``), and searches folders that it fits.
    Hidden files, unfinished downloads and folders that are named like slides are left out, and so is what a
    pattern finds behind a link to a folder: who means that, names it. A name that is there as it is written
    is no pattern.

    Raises
    ------
    UsageError
        A folder or a pattern finds no slide, or several DICOM files in one folder: which of them are one
        slide, their names do not say.
    """
    paths: list[Path] = []
    ignored: list[tuple[Path, str]] = []
    for path in named:
        if os.path.isdir(path):
            inside = _in_folder(path, ignored)
            if not inside:
                raise _nothing(path)
        elif _MAGIC.search(str(path)) and not os.path.lexists(path):
            inside = _by_pattern(path, ignored)
            if not inside:
                action = "Check it, and put it in quotes; '**' stands for any folders: 'slides/**/*.svs'"
                if link := next((link for link, kind in ignored if kind == _BEHIND), None):
                    action = f"Links to folders are left out: name {link} itself"
                raise UsageError("no slide fits this pattern", path=path, action=action)
        else:
            inside = [path]  # whatever it is: opening it says what is wrong with it
            paths += inside
            continue
        _refuse_dicom_levels(inside)
        paths += inside
    return Found(tuple(paths), tuple(ignored))


def _in_folder(folder: Path, ignored: list[tuple[Path, str]]) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            # By the path: the entry's own `is_dir` fails, and with it the folder, at a link to itself.
            names = sorted((entry.name, os.path.isdir(entry.path)) for entry in entries)
    except OSError as error:
        raise UsageError(
            f"cannot be read ({error.strerror})", path=folder, action="Check its permissions"
        ) from error
    return [folder / name for name, is_dir in names if _is_slide(folder / name, ignored, is_folder=is_dir)]


def _is_slide(path: Path, ignored: list[tuple[Path, str]], *, is_folder: bool) -> bool:
    """Whether a file is named like a slide; `ignored` hears of what only looks like one."""
    name = path.name.lower()
    end = next((end for end in _UNFINISHED if name.endswith(end)), "")
    if not name.removesuffix(end).endswith(SUFFIXES):
        return False
    kind = "unfinished" if end else "hidden" if name.startswith(".") else "folders" if is_folder else ""
    if kind:
        ignored.append((path, kind))
    return not kind


def _by_pattern(pattern: Path, ignored: list[tuple[Path, str]]) -> list[Path]:
    """Files that a pattern fits, sorted. Hidden folders and links to folders are not gone into.

    A link may lead in a circle, or to another cohort; `ignored` hears of those that are met.
    """
    parts = pattern.parts
    first = next(index for index, part in enumerate(parts) if _MAGIC.search(part))
    start, rest = Path(*parts[:first]), [*parts[first:]]
    if rest[-1] == "**":
        rest.append("*")
    try:
        fitting = sorted(set(start.glob("/".join(rest))))
    except (ValueError, OSError) as error:  # "a**" is none before Python 3.13
        raise UsageError(
            f"is no pattern ({error})", path=pattern, action="Put '**' between slashes"
        ) from error
    whatever = bool(Path(rest[-1]).suffix) and not _MAGIC.search(Path(rest[-1]).suffix)
    found: list[Path] = []
    behind: set[Path] = set()
    for path in fitting:
        inner, is_folder = path.relative_to(start).parts, path.is_dir()
        if any(part.startswith(".") for part in inner[:-1]):
            continue
        folders = [start.joinpath(*inner[:end]) for end in range(1, len(inner) + is_folder)]
        if link := next((folder for folder in folders if folder.is_symlink()), None):
            behind.add(link)
            continue
        if is_folder and not path.name.lower().endswith(SUFFIXES):
            # 'cohorts/*' names folders as a shell would; '**' goes into them itself.
            found += [] if "**" in rest else _in_folder(path, ignored)
        elif _is_slide(path, ignored, is_folder=is_folder) or (whatever and _is_plain(path)):
            found.append(path)
    ignored += [(link, _BEHIND) for link in sorted(behind)]
    return found


def _is_plain(path: Path) -> bool:
    return not path.name.startswith(".") and not path.name.lower().endswith(_UNFINISHED) and not path.is_dir()


def _nothing(folder: Path) -> UsageError:
    action = "Give the folder that holds the slides, or the files themselves"
    if any(_below(folder)):
        action = f"There are some further down: give '{folder}/**/*' in quotes"
    return UsageError(
        f"no slide in this folder (looked for {', '.join(SUFFIXES)})", path=folder, action=action
    )


def _below(folder: Path) -> Iterator[Path]:
    """Slides one or two folders further down: who downloads from the GDC has a folder for each."""
    for pattern in ("*/*", "*/*/*"):
        yield from (p for p in folder.glob(pattern) if p.suffix.lower() in SUFFIXES and p.is_file())


def _refuse_dicom_levels(paths: Iterable[Path]) -> None:
    folders = Counter(path.parent for path in paths if path.suffix.lower() == ".dcm")
    for folder, count in folders.items():
        if count > 1:
            raise UsageError(
                "several DICOM files in this folder; a slide has one for each level",
                path=folder,
                action="Give one file of each slide; its others are found by themselves",
            )


def find_real_slides() -> list[Path]:
    """One real slide of the folder that ``MICROTOME_DATA`` names, where there is one: for the demo."""
    folder = Path(os.environ.get("MICROTOME_DATA", "../shared")) / "slides" / "vendor"
    return sorted(folder.glob("CMU-1-Small-Region.svs"))
