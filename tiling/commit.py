"""The commit rule: an item of output is there whole, or it is not there.

An *item* is a folder: a slide's tiles, its features by one encoder, a model's scores, a heatmap, a model.
It is made in a work folder, in parts that survive a crash, and published by one rename::

    OUT/.work/<name>-<recipe>/            being made; readers never look here
    OUT/.work/<name>-<recipe>.journal     one line per finished part: its files, sizes and SHA-256
    OUT/.work/<name>-<recipe>.journal-*   the same by those who helped, each in a file of his own
    OUT/…/<item>/                         published
    OUT/…/<item>/commit.json              recipe, record, and size and SHA-256 of every file

Order of a publication: files written and synced, journal line written and synced, …, commit.json written and
synced, folders synced, rename, parent synced. A process killed between any two of these leaves the item
absent or whole. The next run with the same recipe keeps each part that a journal vouches for; what none
vouches for is deleted, so the bytes end up the same as those of a run that nobody killed.

Several processes may share the parts of one item: one begins it, others `join`, each part is one process's.
When all have ended, the item is begun again, all parts are found, and it is published. To the commit rule
those who helped are killed runs that had finished something.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tiling.claims import claimed
from wsi.durable import crash_point, make_folder, output_errors, sync_file, sync_folder, write_file
from wsi.errors import DamagedError, UsageError

COMMIT_FILE = "commit.json"
FORMAT = 1
"""Version of this layout; a reader refuses a later one."""
JOURNAL = ".journal"
_CHUNK = 1 << 20
_NOT_OURS = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading JSON ends in that we did not write: no JSON, other keys, other kinds, brackets without end."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an item."""

    size: int
    """Bytes."""
    sha256: str
    """Hexadecimal."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What is known of a published item."""

    recipe: Mapping[str, Any]
    """Everything that decides the item's bytes: inputs, parameters."""
    record: Mapping[str, Any]
    """What was found on the way: fitted values, counts, warnings, versions."""
    files: Mapping[str, FileEntry]
    """By path relative to the item, with ``/``; all but commit.json itself."""
    digest: str
    """SHA-256 of commit.json: names this item's exact bytes."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing wrong with a published item."""

    file: str
    """Path relative to the item."""
    reason: str
    """What was found, against what was committed."""


def canonical(value: Any) -> bytes:
    """JSON with one spelling per value: sorted keys, no NaN, newline at the end."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def fingerprint(recipe: Mapping[str, Any]) -> str:
    """SHA-256 of a recipe."""
    return hashlib.sha256(canonical(recipe)).hexdigest()


def hash_file(path: Path) -> FileEntry:
    """Size and SHA-256 of a file, read in pieces."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
            size += len(piece)
    return FileEntry(size, digest.hexdigest())


# Reading -------------------------------------------------------------------------------------------------


def read_commit(item: Path) -> Commit | None:
    """The item's commit, or None where nothing is published there.

    Every file is checked to be there with its committed size (a stat each, no reading): a missing or
    shortened Zarr shard would otherwise read as zeros without a word.

    Raises
    ------
    DamagedError
        A folder without a commit, an unreadable commit, or files missing, cut or added.
    """
    if not item.exists():
        return None
    commit = load_commit(item)
    damage = next(find_damage(item, commit), None)
    if damage:
        raise damaged(item, f"{damage.file} {damage.reason}")
    return commit


def find_damage(item: Path, commit: Commit, *, full: bool = False) -> Iterator[Damage]:
    """What is wrong with an item: by names and sizes, and by every byte's hash if `full`."""
    for name, entry in commit.files.items():
        size = _size(f"{item}/{name}")
        if size is None:
            yield Damage(name, "is missing")
        elif size != entry.size:
            yield Damage(name, f"has {size} bytes, {entry.size} were committed")
        elif full and hash_file(item / name) != entry:
            yield Damage(name, "has other bytes than were committed")
    for name in _files_under(item):
        # Names with a dot in front are what file managers leave behind; no reader of ours opens them.
        if name != COMMIT_FILE and name not in commit.files and not name.rpartition("/")[2].startswith("."):
            yield Damage(name, "was added after the commit")


def damaged(item: Path, reason: str) -> DamagedError:
    """The error for an item whose committed bytes are gone."""
    return DamagedError(
        f"committed output is damaged: {reason}",
        path=item,
        action="Run the step that made it again: it sets the damaged item aside and remakes it",
    )


def load_commit(item: Path) -> Commit:
    """Read commit.json alone, against its own checksum; `DamagedError` where it is missing or broken."""
    try:
        data = (item / COMMIT_FILE).read_bytes()
        content = json.loads(data)
        if content["format"] > FORMAT:
            raise UsageError(
                f"it was written by a newer version (layout {content['format']}, this one reads {FORMAT})",
                path=item,
                action="Update Microtome, or give another -o",
            )
        if not _is_sealed(data, content["checksum"]):
            raise damaged(item, f"{COMMIT_FILE} does not match its own checksum")
        files = {name: FileEntry(entry["size"], entry["sha256"]) for name, entry in content["files"].items()}
    except FileNotFoundError as error:
        raise damaged(item, f"it holds no {COMMIT_FILE}") from error
    except UsageError:
        raise
    except _NOT_OURS as error:
        raise damaged(item, f"{COMMIT_FILE} is unreadable ({str(error)[:60]})") from error
    return Commit(content["recipe"], content["record"], files, hashlib.sha256(data).hexdigest())


def _is_sealed(data: bytes, checksum: str) -> bool:
    """Whether these are the bytes that `Draft.publish` wrote, told without spelling the content once more.

    Of the sorted keys the checksum is the first, so that its line stands before the bytes that it is of.
    """
    head = f'{{\n "checksum": "{checksum}",\n'.encode()
    return data.startswith(head) and hashlib.sha256(b"{\n" + data[len(head) :]).hexdigest() == checksum


def _files_under(folder: Path) -> list[str]:
    """Paths relative to the folder, with ``/``, sorted; text, for readers ask this again and again."""
    start = len(os.path.join(folder, ""))
    return sorted(os.path.join(base, name)[start:] for base, _, names in os.walk(folder) for name in names)


def _size(path: str) -> int | None:
    """Bytes of a file; None where there is none, or something else."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: such a name cannot be
        if isinstance(error, OSError) and error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            raise
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


# Writing -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Draft:
    """An item being made. Write files under `folder`, finish parts, then publish.

    Made by `begin` or `join`. One process at a time owns a draft: the caller holds the output's lock, or
    `alone`. Those who join own the parts that they were told to make, and publish nothing.
    """

    item: Path
    """Where it will be published."""
    folder: Path
    """Where to write now."""
    recipe: Mapping[str, Any]
    """Decides the bytes."""
    parts: dict[str, dict[str, FileEntry]] = field(default_factory=dict)
    """Finished parts, and the files of each."""
    helper: str = ""
    """Whose journal is written, by one who joined; empty for the owner."""
    run: str | None = None
    """What names the run: see `begin`."""

    @property
    def _journal(self) -> Path:
        return self.folder.with_name(self.folder.name + JOURNAL + (f"-{self.helper}" if self.helper else ""))

    def _journals(self) -> list[Path]:
        return sorted(self.folder.parent.glob(f"{glob_escape(self.folder.name)}{JOURNAL}*"))

    def finish_part(
        self, name: str, files: Iterable[Path], *, known: Mapping[Path, FileEntry] = MappingProxyType({})
    ) -> None:
        """Make a part durable: its files are synced, then the journal says so.

        `files` are absolute paths under `folder`. They must not be written again. Those in `known` were
        synced and hashed as they were written, and are not read again.
        """
        entries = {}
        crash_point("part-written")
        with output_errors(self.item):
            for path in files:
                if path not in known:
                    sync_file(path)
                entries[path.relative_to(self.folder).as_posix()] = known.get(path) or hash_file(path)
            line = {"part": name, "files": {n: [e.size, e.sha256] for n, e in entries.items()}}
            line |= {"run": self.run} if self.run else {}
            with self._journal.open("ab+") as stream:
                if stream.tell() and not _ends_a_line(self._journal):
                    stream.write(b"\n")  # a killed run left half a line
                stream.write(json.dumps(line, sort_keys=True).encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
        self.parts[name] = entries
        crash_point("part-finished")

    def publish(self, record: Mapping[str, Any]) -> Commit:
        """Commit everything under `folder` and rename it into place.

        What another recipe made is there until this very moment, and only then goes away.
        """
        crash_point("before-commit")
        known = {name: entry for files in self.parts.values() for name, entry in files.items()}
        files = {name: known.get(name) or hash_file(self.folder / name) for name in _files_under(self.folder)}
        body = {
            "format": FORMAT,
            "recipe": self.recipe,
            "record": record,
            "files": {name: {"size": e.size, "sha256": e.sha256} for name, e in files.items()},
        }
        checksum = hashlib.sha256(canonical(body)).hexdigest()
        with output_errors(self.item):
            for name in files:
                sync_file(self.folder / name)
            write_file(self.folder / COMMIT_FILE, canonical(body | {"checksum": checksum}))
            for base, _, _ in os.walk(self.folder):
                sync_folder(Path(base))
            make_folder(self.item.parent)
            crash_point("before-publish")
            old = self.folder.with_name(f"trash-{os.urandom(4).hex()}-{self.item.name}")
            if self.item.exists():
                self.item.rename(old)
                crash_point("old-away")
            self.folder.rename(self.item)
            crash_point("after-rename")
            sync_folder(self.item.parent)
            self._forget()
            remove(old)
        crash_point("after-publish")
        return load_commit(self.item)

    def discard(self) -> None:
        """Delete it, with its finished parts: what it was for has been published otherwise."""
        with output_errors(self.item):
            remove(self.folder)
            self._forget()

    def _forget(self) -> None:
        for journal in self._journals():
            journal.unlink(missing_ok=True)

    def _recover(self, trusted: str | None) -> None:
        """Take over what others finished; delete everything that no journal vouches for."""
        for line in (line for journal in self._journals() for line in journal.read_bytes().splitlines()):
            try:
                content = json.loads(line)
                part = str(content["part"])
                entries = {name: FileEntry(*entry) for name, entry in content["files"].items()}
            except _NOT_OURS:
                continue  # the line that was being written when the process died
            read = trusted is None or content.get("run") != trusted
            if all(_is(self.folder / name, entry, read=read) for name, entry in entries.items()):
                self.parts[part] = entries
        vouched = {name for files in self.parts.values() for name in files}
        for name in _files_under(self.folder):
            if name not in vouched:
                (self.folder / name).unlink()


def begin(item: Path, recipe: Mapping[str, Any], *, work: Path, run: str | None = None) -> Draft:
    """Start making an item, or go on where others with the same recipe stopped.

    Parameters
    ----------
    item
        Where it will be published, in the place of what may be there.
    recipe
        JSON-able; everything that decides the bytes.
    work
        The output's work folder, on the same file system as `item`.
    run
        What names this run. Parts that its processes finished were hashed a moment ago, and are taken by
        their sizes; those of earlier runs are read and compared.
    """
    folder = _draft_folder(item, recipe, work)
    if work.is_dir():
        for old in work.glob(f"{glob_escape(_stem(item, work))}-*"):
            if old.name.partition(JOURNAL)[0] != folder.name:  # another recipe was being made, and given up
                remove(old)
    make_folder(folder)
    draft = Draft(item, folder, recipe, run=run)
    with output_errors(item):
        draft._recover(run)
    return draft


def join(item: Path, recipe: Mapping[str, Any], *, work: Path, helper: str, run: str | None = None) -> Draft:
    """Help to make an item that another process has begun: to finish parts that are nobody else's.

    `helper` names these parts: no two processes may help by one name at a time. The rest as in `begin`.
    """
    return Draft(item, _draft_folder(item, recipe, work), recipe, helper=helper, run=run)


def is_begun(item: Path, recipe: Mapping[str, Any], *, work: Path) -> bool:
    """Whether somebody began to make it by this recipe, and did not end."""
    return _draft_folder(item, recipe, work).is_dir()


def _draft_folder(item: Path, recipe: Mapping[str, Any], work: Path) -> Path:
    return work / f"{_stem(item, work)}-{fingerprint(recipe)[:16]}"


@contextlib.contextmanager
def alone(item: Path, *, work: Path) -> Iterator[None]:
    """Be the only process that makes `item`, where no lock of an output says so.

    The lock is gone the moment the process dies; of the work folder nothing is left that is of no use.

    Raises
    ------
    OutputBusyError
        Another process makes it.
    OutputError
        The work folder cannot be created or written to.
    """
    make_folder(work)
    try:
        with claimed(work / f"{_stem(item, work)}.lock", of=item):
            yield
    finally:
        with contextlib.suppress(OSError):  # somebody has a use for it
            work.rmdir()


def _stem(item: Path, work: Path) -> str:
    """The last name says what it is to whoever looks in; the fingerprint of the path makes it unique."""
    place = os.path.relpath(item, work)  # relative, so that a moved output can still be resumed
    return f"{item.name}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"


def glob_escape(text: str) -> str:
    """Take `text` literally in a glob pattern: slide names may hold brackets."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def remove(path: Path) -> None:
    """Delete a file or a folder with all it holds; `OutputError` where that cannot be done."""
    with output_errors(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _ends_a_line(path: Path) -> bool:
    return path.read_bytes().endswith(b"\n")


def _is(path: Path, entry: FileEntry, *, read: bool) -> bool:
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    return not read or hash_file(path) == entry
