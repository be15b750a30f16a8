"""A disk on which a change fails: everything that changes files below a folder passes here.

That is Python's own files and `os`, and so whatever is built on them: pathlib, shutil, tempfile, zarr,
tifffile. Nothing is forced to the disk: what a process has written stays when it ends.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHANGES = {
    "rename": "rename", "replace": "rename", "link": "link", "mkdir": "mkdir",
    "unlink": "unlink", "remove": "unlink", "rmdir": "rmdir",
}  # fmt: skip
"""Functions of `os`, and what they do."""
DELETES = {"unlink", "rmdir"}
_CHANCE = re.compile(
    r"\d{8}T[\d.]+Z|[0-9a-f]{32}|(?<=trash-)[0-9a-f]{8}|(?<=\.)[0-9a-f]{8}(?=\.partial)|(?<=-)\d+(?=\.json)"
    r"|#\d+ \(deleted\)"
)
"""What in a name differs between two runs: the time, temporary names and processes."""

Fails = Callable[["Change"], bool]


class Change:
    """One change of a file: its number in the run, and what it is, the same in every run."""

    def __init__(self, number: int, kind: str, name: str) -> None:
        self.number, self.kind, self.name = number, kind, name

    def error(self) -> OSError:
        """Full and broken in turn; and writes as tifffile reports them, without a number."""
        code = (errno.ENOSPC, errno.EIO)[self.number % 2] if self.kind not in DELETES else errno.EIO
        if self.kind == "write" and self.number % 3 == 0:
            return OSError("65536 requested and 62896 written")
        return OSError(code, os.strerror(code))


class FaultyDisk:
    """Counts the changes of what is below `root`; those of which `fails` says so fail."""

    def __init__(self, root: Path, fails: Fails = lambda change: False) -> None:
        self.root, self.fails = os.fspath(root), fails
        self.passed: list[Change] = []
        self.failed: list[Change] = []
        self._met: Counter[str] = Counter()

    def change(self, kind: str, path: Any) -> None:
        """One change is about to be made: count it, or fail."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        path = os.path.abspath(os.fsdecode(path))
        if not (path + "/").startswith(self.root + "/"):
            return
        if kind in {"mkdir", "open"} and os.path.isdir(path):
            return  # it is there; or a file without a name, which is had in another way where this one fails
        name = f"{kind} {_CHANCE.sub('*', os.path.relpath(path, self.root))}"
        self._met[name] += 1
        change = Change(len(self.passed) + 1, kind, f"{name} {self._met[name]}")
        self.passed.append(change)
        if self.fails(change):
            self.failed.append(change)
            raise change.error()

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        """Have this process write to this disk."""
        before = {name: getattr(os, name) for name in (*CHANGES, "fsync")}
        opened = io.open
        io.open = builtins.open = self._open(opened)  # type: ignore[assignment]
        os.fsync = lambda descriptor: self.change("fsync", descriptor)
        for name, kind in CHANGES.items():
            setattr(os, name, self._watched(kind, before[name]))
        try:
            yield
        finally:
            io.open = builtins.open = opened
            for name, function in before.items():
                setattr(os, name, function)

    def _open(self, opened: Callable[..., Any]) -> Callable[..., Any]:
        disk = self

        class File(io.FileIO):
            """A file whose writes may fail."""

            def write(self, data: Any, /) -> int:
                disk.change("write", self.fileno())
                return super().write(data)

            def truncate(self, size: int | None = None, /) -> int:
                disk.change("write", self.fileno())
                return super().truncate(size)

        def open_file(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return opened(file, mode, buffering, *rest, **more)
            disk.change("open", file)
            raw = File(file, mode.replace("b", "").replace("t", ""), opener=more.get("opener"))
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding=more.get("encoding"))

        return open_file

    def _watched(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(path: Any, *rest: Any, dir_fd: int | None = None, **more: Any) -> Any:
            if dir_fd is None:
                self.change(kind, path)
                return function(path, *rest, **more)
            self.change(kind, os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), os.fsdecode(path)))
            return function(path, *rest, dir_fd=dir_fd, **more)

        return watched
