"""The output folder: one writer at a time, a fixed layout, and the check of all that is in it.

::

    OUT/slides/<slide id>/tissue/                  mask and outline, to look at
    OUT/slides/<slide id>/store.zarr/              a Zarr v3 group that any Zarr reader opens
        tiles/                                     origins, tissue, pixels
        features/<encoder>/                        one row a tile
        scores/<model>/                            scores, attention
    OUT/slides/<slide id>/heatmaps/<model>/        OME-TIFF, PNG, GeoJSON
    OUT/slides/<slide id>/reports/<model>/         a page and its numbers, with the times of the runs
    OUT/reports/<model>/                           the same of all slides together
    OUT/models/<model>/                            what 'microtome adapt' made of marks on these slides
    OUT/quarantine/                                damaged items, set aside by a re-run
    OUT/runs/                                      a log of every run; the only files that tell the time
    OUT/.lock  OUT/.work/                          see `tiling.commit`

Each folder that holds a commit.json is an item of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tiling.claims import claimed, forget_claims
from tiling.commit import COMMIT_FILE, JOURNAL, Commit, Damage, canonical, find_damage, load_commit, remove
from wsi.durable import make_folder, output_errors
from wsi.errors import DamagedError, OutputBusyError, OutputError, UsageError

ZARR_FOLDER = "store.zarr"
RUN = "run"
"""File of the work folder that names the run that goes on; see `tiling.workers.announce`."""
GROUP = canonical({"attributes": {}, "zarr_format": 3, "node_type": "group"})
"""Content of the metadata file of a Zarr group."""
LONGEST_ID = 150
"""Bytes of a slide id: names that are made from it must stay below the 255 of usual file systems."""


@dataclass(frozen=True, slots=True)
class Output:
    """The folder that a run writes to."""

    root: Path

    @property
    def work(self) -> Path:
        """Where items are made."""
        return self.root / ".work"

    @property
    def models(self) -> Path:
        """Where models go that are made of marks on its slides."""
        return self.root / "models"

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
        """Every committed item's folder, whole or damaged, sorted."""
        return (item for item in _item_folders(self.root / "slides") if (item / COMMIT_FILE).exists())

    def is_item(self, folder: Path) -> bool:
        """Whether this is where an item of a slide lies, whatever is in it."""
        slides = self.root / "slides"
        if not (folder.is_relative_to(slides) and folder.is_dir()):
            return False
        match folder.relative_to(slides).parts[1:]:
            case ["tissue" | "qc"] | ["heatmaps" | "reports", _]:
                return True
            case [store, *rest] if store == ZARR_FOLDER:
                return rest == ["tiles"] or (len(rest) == 2 and rest[0] in {"features", "scores"})
        return False

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
        with output_errors(self.root):
            stream = (self.root / ".lock").open("a+b")
        with stream:
            self._take(stream)
            remove(self.work / RUN)  # of a run that is no more: whoever still works for it ends now
            yield

    def claim(
        self, slide_id: str, *, shared: bool = False, patience: float = 0.0
    ) -> AbstractContextManager[None]:
        """Be the only process that makes items of a slide, or with `shared` one of those who make its parts.

        The lock keeps other runs out. This keeps out processes that a run has lost sight of: on another
        machine they outlive the one that holds the lock. See `tiling.claims`.
        """
        folder = self.slide_folder(slide_id)
        path = self.work / f"{hashlib.sha256(os.fsencode(folder.name)).hexdigest()[:16]}.claim"
        return claimed(path, of=folder, shared=shared, patience=patience)

    def _take(self, stream: BinaryIO) -> None:
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
        except OSError as error:
            raise OutputError(
                f"its file system does not lock files ({error.strerror or error}), and two runs would mix",
                path=self.root,
                action="Give a folder on a local disk with -o, or have it mounted with locks",
            ) from error
        command = " ".join(Path(word).name for word in sys.argv[:2])
        with output_errors(self.root):
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}: {command}".encode())
            stream.flush()

    def set_aside(self, item: Path) -> Path:
        """Move a damaged item to the quarantine, out of every reader's sight; returns where it went."""
        quarantine = self.root / "quarantine"
        make_folder(quarantine)
        name = "-".join(item.relative_to(self.root).parts).removeprefix("slides-")
        number = 1
        while (target := quarantine / f"{name}.{number}").exists():
            number += 1
        with output_errors(self.root), contextlib.suppress(FileNotFoundError):  # somebody else did
            item.rename(target)
        return target

    def clean(self) -> None:
        """Delete what killed runs left and nobody will go on with. The caller holds the lock."""
        with output_errors(self.root):
            for old in (*self.work.glob("trash-*"), *self.work.glob(".*.partial")):
                remove(old)
            forget_claims(self.work, "*.claim")
            for journal in self.work.glob(f"*{JOURNAL}*"):  # its item was published: nobody needs it
                if not journal.with_name(journal.name.partition(JOURNAL)[0]).is_dir():
                    remove(journal)


def item_path(slide_folder: Path, item: str) -> Path:
    """Folder of an item of a slide, by its name: ``"tiles"``, ``"scores/<model>"``, ``"tissue"``."""
    in_zarr = item.split("/")[0] in {"tiles", "features", "scores"}
    return slide_folder / ZARR_FOLDER / item if in_zarr else slide_folder / item


@dataclass(frozen=True, slots=True)
class ItemReport:
    """What `verify_items` finds of one item."""

    item: Path
    """Its folder."""
    damage: tuple[Damage, ...] = ()
    """Bytes that are not as committed: the item has to be made again."""
    stale: tuple[Damage, ...] = ()
    """What it was computed from and is gone or another now; Zarr group files, which the next run mends."""


def verify_items(output: Output, *, full: bool = False) -> Iterator[ItemReport]:
    """Check every item: names and sizes, and with `full` every byte against its SHA-256.

    Raises
    ------
    UsageError
        There is nothing to verify.
    OutputError
        A folder cannot be read.
    """
    slides, found = output.root / "slides", False
    for item in (*_item_folders(slides), *_folders(output.models)):
        found = True
        try:
            commit = load_commit(item)
            stale = (*_stale_inputs(slides, item, commit), *_broken_groups(slides, item))
            yield ItemReport(item, tuple(find_damage(item, commit, full=full)), stale)
        except (DamagedError, UsageError) as error:
            yield ItemReport(item, (Damage(COMMIT_FILE, error.reason),))
    if not found:
        raise UsageError("holds no results", path=output.root, action="Give the folder that was given to -o")


def _stale_inputs(slides: Path, item: Path, commit: Commit) -> Iterator[Damage]:
    if not item.is_relative_to(slides):
        return  # a model: it says itself what it was made of
    folder = slides / item.relative_to(slides).parts[0]
    for name, digest in commit.recipe.get("inputs", {}).items():
        try:
            now = load_commit(item_path(folder, name)).digest
        except DamagedError:
            yield Damage(name, "is missing or damaged, and this was computed from it")
        else:
            if now != digest:
                yield Damage(name, "is another now than this was computed from")


def _broken_groups(slides: Path, item: Path) -> Iterator[Damage]:
    """Zarr group files on the way to the item: without them other Zarr readers do not find it."""
    for folder in item.parents if item.is_relative_to(slides) else ():
        if folder == slides or ZARR_FOLDER not in folder.relative_to(slides).parts:
            return
        group = folder / "zarr.json"
        if not (group.is_file() and group.read_bytes() == GROUP):
            yield Damage(str(group.relative_to(slides)), "is missing or not as written")


def _item_folders(slides: Path) -> Iterator[Path]:
    """Where items lie, by the layout; what else is there is nobody's business."""
    for slide in _folders(slides):
        store = slide / ZARR_FOLDER
        yield from _folders(slide / "heatmaps")
        yield from _folders(slide / "reports")
        yield from _folders(store / "features")
        yield from _folders(store / "scores")
        yield from (f for f in (store / "tiles", slide / "tissue", slide / "qc") if os.path.isdir(f))


def _folders(top: Path) -> Iterator[Path]:
    """Folders in a folder, sorted, links to folders too; none where it does not exist."""
    try:
        with os.scandir(top) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(
            f"cannot be read ({error.strerror})", path=top, action="Check that it is a folder you may read"
        ) from error
    yield from (top / name for name in names)


def check_slide_id(slide_id: str) -> str:
    """The id in one spelling (NFC).

    Any printable name will do: it becomes the name of a folder, and is data everywhere else.

    Raises
    ------
    UsageError
        It cannot be the name of a folder, or hides itself.
    """
    name = unicodedata.normalize("NFC", slide_id)
    wrong = (
        not name.isprintable()
        or bool({"/", "\\"} & set(name))
        or name.startswith((".", " "))
        or name.endswith(" ")
        or not 0 < len(name.encode("utf-8", "surrogateescape")) <= LONGEST_ID
    )
    if wrong:
        raise UsageError(
            f"{_shortened(slide_id)!r} cannot be a slide id: printable characters, no slash, no dot or "
            f"space in front, {LONGEST_ID} bytes at most",
            action="Rename the file",
        )
    return name


def _shortened(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:60]}..."
