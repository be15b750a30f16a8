"""The output folder: one writer at a time, a fixed layout, and the check of all that is in it.

::

    OUT/slides/<slide id>/tissue/                  mask and outline, to look at
    OUT/slides/<slide id>/store.zarr/              a Zarr v3 group that any Zarr reader opens
        tiles/                                     origins, tissue, pixels
        features/<encoder>/                        one row a tile
        scores/<model>/                            scores, attention
    OUT/slides/<slide id>/heatmaps/<model>/        OME-TIFF, PNG, GeoJSON
    OUT/quarantine/                                damaged items, set aside by a re-run
    OUT/runs/                                      a log of every run; the only files that tell the time
    OUT/.lock  OUT/.work/                          see `tiling.commit`

Each folder that holds a commit.json is an item of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tiling.commit import COMMIT_FILE, Damage, find_damage, load_commit, remove
from wsi.durable import make_folder, output_errors
from wsi.errors import DamagedError, OutputBusyError, UsageError

_SLIDE_ID = re.compile(r"[\w.\- +,@()\[\]]{1,120}")


@dataclass(frozen=True, slots=True)
class Output:
    """The folder that a run writes to."""

    root: Path

    @property
    def work(self) -> Path:
        """Where items are made."""
        return self.root / ".work"

    def slide_folder(self, slide_id: str) -> Path:
        """Where one slide's results go."""
        return self.root / "slides" / check_slide_id(slide_id)

    def slide_ids(self) -> list[str]:
        """Slides that have at least one committed item, sorted."""
        return sorted({item.relative_to(self.root).parts[1] for item in self.items()})

    def slides_with_tiles(self) -> dict[str, Path]:
        """Folders of the slides that were cut, by id."""
        cut = (self.slide_folder(slide_id) for slide_id in self.slide_ids())
        return {folder.name: folder for folder in cut if (folder / "store.zarr" / "tiles").is_dir()}

    def items(self) -> Iterator[Path]:
        """Every item's folder, whole or damaged, sorted."""
        for base, folders, files in os.walk(self.root / "slides"):
            folders.sort()
            if COMMIT_FILE in files:
                folders.clear()
                yield Path(base)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the output for writing.

        The lock belongs to the process, not to a file: it is gone the moment the process dies.

        Raises
        ------
        OutputBusyError
            Another process holds it; the message says which.
        OutputError
            The folder cannot be created or written to: found out before any work starts.
        """
        make_folder(self.work)
        path = self.root / ".lock"
        with output_errors(self.root), path.open("a+b") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stream.seek(0)
                holder = stream.read(500).decode(errors="replace") or "another process"
                raise OutputBusyError(
                    f"another run is writing here ({holder})",
                    path=self.root,
                    action="Wait for it to end, or give another folder with -o",
                ) from error
            stream.truncate(0)
            command = " ".join(Path(word).name for word in sys.argv[:2])
            stream.write(f"process {os.getpid()} on {socket.gethostname()}: {command}".encode())
            stream.flush()
            yield

    def set_aside(self, item: Path) -> Path:
        """Move a damaged item to the quarantine, out of every reader's sight; returns where it went."""
        quarantine = self.root / "quarantine"
        make_folder(quarantine)
        name = "-".join(item.relative_to(self.root / "slides").parts)
        number = 1
        while (target := quarantine / f"{name}.{number}").exists():
            number += 1
        with output_errors(self.root):
            item.rename(target)
        return target

    def discard(self, item: Path) -> None:
        """Delete an item: renamed first, so that no reader sees half of it."""
        make_folder(self.work)
        trash = self.work / f"trash-{os.getpid()}-{item.name}"
        with output_errors(self.root):
            item.rename(trash)
            remove(trash)

    def clean(self) -> None:
        """Delete what killed runs threw away but had no time to delete. The caller holds the lock."""
        with output_errors(self.root):
            for old in self.work.glob("trash-*"):
                remove(old)


def verify_items(output: Output, *, full: bool = False) -> Iterator[tuple[Path, tuple[Damage, ...]]]:
    """Check every item: names and sizes, and with `full` every byte against its SHA-256.

    Yields
    ------
    Each item's folder, and what is wrong with it.

    Raises
    ------
    UsageError
        There is nothing to verify.
    """
    if not (output.root / "slides").is_dir():
        raise UsageError("holds no results", path=output.root, action="Give the folder that was given to -o")
    for folder in _item_folders(output.root / "slides"):
        item = Path(folder)
        try:
            damage = tuple(find_damage(item, load_commit(item), full=full))
        except DamagedError as error:
            damage = (Damage(COMMIT_FILE, error.reason),)
        yield item, damage


def _item_folders(slides: Path) -> Iterator[str]:
    """Folders that hold an item, and those that must have held one: files, and no commit above them."""
    for base, folders, files in os.walk(slides):
        folders.sort()
        visible = [name for name in files if not name.startswith(".")]
        if COMMIT_FILE in files or (visible and visible != ["zarr.json"]):
            folders.clear()
            yield base


def check_slide_id(slide_id: str) -> str:
    """The id in one spelling (NFC), or `UsageError`: an id becomes a folder name, and must stay one."""
    name = unicodedata.normalize("NFC", slide_id)
    if not _SLIDE_ID.fullmatch(name) or name.startswith(".") or name.strip() != name:
        raise UsageError(
            f"{slide_id!r} cannot be a slide id: letters, digits, space and . _ - + , @ ( ) [ ] only, "
            "120 characters at most, and no dot in front",
            action="Rename the file",
        )
    return name


def name_slides(paths: Iterable[Path]) -> dict[str, Path]:
    """Slide ids, the file names without suffix, and their files.

    Raises
    ------
    UsageError
        Two files would share an id, and so a folder of results.
    """
    named: dict[str, Path] = {}
    taken: dict[str, Path] = {}  # case folded: on some file systems "A" and "a" are one folder
    for path in paths:
        slide_id = check_slide_id(path.stem)
        other = taken.setdefault(slide_id.casefold(), path)
        if other != path:
            raise UsageError(
                f"{other} and {path} would both be slide {slide_id!r}",
                action="Rename one, or run them into two outputs",
            )
        named[slide_id] = path
    return named
