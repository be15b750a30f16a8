"""Slide files in folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from wsi.errors import UsageError

SUFFIXES = (
    ".bif", ".czi", ".dcm", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".tif", ".tiff", ".vms", ".vmu",
)  # fmt: skip
"""What a folder is searched for; a file given by name may be called anything."""


def find_slides(named: Iterable[Path]) -> list[Path]:
    """The slide files meant by files and folders, in order.

    A folder is searched for `SUFFIXES`, not below; hidden files and unfinished downloads are left out.

    Raises
    ------
    UsageError
        A folder holds no slide, or several DICOM files: which of them are one slide, their names do not say.
    """
    found: list[Path] = []
    for path in named:
        if not os.path.isdir(path):
            found.append(path)  # whatever it is: opening it says what is wrong with it
            continue
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            raise UsageError(
                f"cannot be read ({error.strerror})", path=path, action="Check its permissions"
            ) from error
        inside = [path / n for n in names if Path(n).suffix.lower() in SUFFIXES and not n.startswith(".")]
        if not inside:
            raise UsageError(
                f"no slide in this folder (looked for {', '.join(SUFFIXES)})",
                path=path,
                action="Give the folder that holds the slides, or the files themselves",
            )
        if sum(p.suffix.lower() == ".dcm" for p in inside) > 1:
            raise UsageError(
                "several DICOM files in this folder; a slide has one for each level",
                path=path,
                action="Give one file of each slide; its others are found by themselves",
            )
        found += inside
    return found


def find_real_slides() -> list[Path]:
    """One real slide of the folder that ``MICROTOME_DATA`` names, where there is one: for the demo."""
    folder = Path(os.environ.get("MICROTOME_DATA", "../shared")) / "slides" / "vendor"
    return sorted(folder.glob("CMU-1-Small-Region.svs"))
