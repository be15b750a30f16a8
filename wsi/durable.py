"""Every write of the project: durable, atomic, and stoppable at a labelled point by a test.

A file appears under its name only when it is whole: written to a temporary name beside it, synced,
renamed, and the folder synced. A crash leaves the old file or the new one, never half of either.

The environment variable ``MICROTOME_CRASH_AT=label:n`` kills the process the n-th time that the labelled
point is passed. It exists for the crash tests, which prove the sentence above.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from wsi.errors import MicrotomeError, OutputError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_passed: Counter[str] = Counter()


def crash_point(label: str) -> None:
    """Die here by SIGKILL if the environment asks for it; otherwise do nothing."""
    wanted = os.environ.get("MICROTOME_CRASH_AT")
    if wanted is None:
        return
    _passed[label] += 1
    if wanted == f"{label}:{_passed[label]}":
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside into an `OutputError` that names `path` and what to do."""
    try:
        yield
    except MicrotomeError:
        raise  # already says what is wrong: a slide that cannot be read is not a full disk
    except OSError as error:
        if error.errno in _FULL:
            action = "Free some space and run the same command again: what is finished is kept"
        else:
            action = "Check that the folder exists and can be written to, then run the same command again"
        raise OutputError(
            f"cannot be written ({error.strerror or error})", path=path, action=action
        ) from error


def sync_file(path: Path) -> None:
    """Force the file's bytes to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Force the folder's list of names to the disk, so that a rename survives a power cut."""
    sync_file(path)


def make_folder(path: Path) -> None:
    """Create the folder and its parents, durably; no error where it exists."""
    missing = []
    step = path
    with output_errors(path):
        while not step.exists():
            missing.append(step)
            step = step.parent
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)


@contextlib.contextmanager
def replacing(path: Path, *, work: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write; on success it becomes `path` durably, on an error it is removed.

    The temporary file is beside `path`, or in the folder `work` of the same file system: for folders in which
    a kill must not leave anything behind.
    """
    temporary = (work or path.parent) / f".{path.name}.{os.urandom(4).hex()}.partial"
    try:
        with output_errors(path):
            yield temporary
            sync_file(temporary)
            crash_point("before-replace")
            temporary.replace(path)
            sync_folder(path.parent)
            crash_point("after-replace")
    except BaseException:
        with contextlib.suppress(OSError):  # not there, or the disk is lost: what went wrong first is told
            temporary.unlink()
        raise


def open_new(path: Path) -> BinaryIO:
    """A file for a library to write to, inside of `replacing`; the caller closes it.

    tifffile's own closing passes over errors, and what was still to be written then is lost without a word.
    """
    return path.open("w+b")


def open_again(path: Path) -> BinaryIO:
    """The same, of a file that is there, to change bytes in it."""
    return path.open("r+b")


def write_file(path: Path, data: bytes, *, work: Path | None = None) -> None:
    """Write `data` as the file `path`, whole or not at all; `work` as in `replacing`."""
    with replacing(path, work=work) as temporary:
        temporary.write_bytes(data)
