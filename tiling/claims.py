"""Claims: lock files that say who works on something. A claim is gone the moment its process dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from wsi.durable import output_errors
from wsi.errors import OutputBusyError

_LOOK_SECONDS = 0.1
_MOST_TRIES = 100  # that somebody deletes it so often between our opening and our locking it
_GONE = {errno.ENOENT, errno.ESTALE}
"""What is said of a file that somebody deleted; a file server says the second, even of one that is open."""


@contextlib.contextmanager
def claimed(path: Path, *, of: Path, shared: bool = False, patience: float = 0.0) -> Iterator[None]:
    """Hold a claim; the file is deleted behind the last one who does.

    Parameters
    ----------
    path
        The lock file, in a folder that exists.
    of
        What it stands for: named in errors.
    shared
        Others may hold it too, if they share it.
    patience
        Seconds to wait for whoever holds it.

    Raises
    ------
    OutputBusyError
        Somebody still holds it; the message says who.
    OutputError
        The file cannot be created, or its file system does not lock files.
    """
    end = time.monotonic() + patience
    with output_errors(of):
        while (stream := _take(path, shared=shared)) is None:
            if time.monotonic() >= end:
                raise OutputBusyError(
                    f"another run is making it ({_holder(path)})",
                    path=of,
                    action="Wait for it to end, or choose another folder",
                )
            time.sleep(_LOOK_SECONDS)
    with stream:
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):  # what went wrong first is told
                _leave(stream, path)
            raise
        with output_errors(of):
            _leave(stream, path)


def forget_claims(folder: Path, pattern: str) -> None:
    """Delete lock files that dead processes left; those that are held stay."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OutputBusyError), claimed(path, of=path):
            pass


def _take(path: Path, *, shared: bool) -> BinaryIO | None:
    """The locked file; None where somebody else has it."""
    for _ in range(_MOST_TRIES):
        stream = path.open("a+b")
        try:
            _lock(stream, shared=shared)
            # Between our opening and our locking it, somebody may have ended and deleted it. A file server's
            # client may still believe in the name, but not in its number of links.
            ours = os.fstat(stream.fileno())
            if ours.st_nlink > 0 and os.path.samestat(ours, path.stat()):
                return stream
        except BlockingIOError:
            stream.close()
            return None
        except BaseException as error:
            if not isinstance(error, OSError) or error.errno not in _GONE:
                stream.close()
                raise
        stream.close()
    return None


def _lock(stream: BinaryIO, *, shared: bool) -> None:
    """Lock it, and leave a word on who we are; those who share it stand there one after the other."""
    word = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stream.truncate(0)
    except BlockingIOError:
        if not shared:
            raise
        word = f", {word}"
    if shared:
        fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    stream.write(word.encode())
    stream.flush()


def _holder(path: Path) -> str:
    try:
        return path.read_bytes()[:500].decode(errors="replace") or "another process"
    except OSError:
        return "another process"


def _leave(stream: BinaryIO, path: Path) -> None:
    """Delete the file, unless others share it: then the last one does."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    path.unlink(missing_ok=True)
