"""`examine`: whether this machine, and this output folder, are fit for the work."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from tiling.output import Output
from wsi.errors import MicrotomeError

OUR_NAMES = ("wsi", "tiling", "mil", "heatmaps", "cli")
_LEAST_FREE = 10 << 30
_LEAST_FILES = 1024

_KNOWN_BAD = {
    # package: (first good version, what is wrong below it)
    "openslide-bin": ((4, 0, 1), "CVE-2026-48977: a crafted BIF writes to memory; edge tiles may hold noise"),
    "torch": ((2, 10), "CVE-2026-24747: a crafted checkpoint corrupts memory"),
    "pillow": ((12, 3), "decompression bombs pass"),
    "distributed": ((2026, 1, 1), "CVE-2026-23528: the dashboard runs foreign code"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    name: str
    value: str
    advice: str = ""
    """What to do; empty where all is well."""


def examine(folder: Path) -> Iterator[Finding]:
    """Look at the software, the limits of this process, and the file system of `folder`."""
    yield Finding("python", sys.version.split()[0])
    yield from _packages()
    yield from name_clashes()
    yield _open_files()
    yield _disk(folder)
    yield _locking(folder)


def name_clashes() -> Iterator[Finding]:
    """Other distributions that install a package under one of our import names."""
    owners = packages_distributions()
    for name in OUR_NAMES:
        others = sorted(set(owners.get(name, [])) - {"microtome"})
        if others:
            yield Finding(
                f"import name {name!r}",
                ", ".join(others),
                f"Another package installs {name!r} too: use a virtual environment without it",
            )


def _packages() -> Iterator[Finding]:
    names = ("microtome", "numpy", "opencv-python-headless", "openslide-bin", "openslide-python", "tiffslide")
    for name in (*names, "tifffile", "imagecodecs", "zarr", "dask", "torch", "timm", "pillow", "distributed"):
        try:
            found = version(name)
        except PackageNotFoundError:
            if name not in {"distributed", "microtome"}:
                yield Finding(name, "not installed", f"pip install {name}")
            continue
        least, harm = _KNOWN_BAD.get(name, ((), ""))
        bad = bool(least) and _numbers(found) < least
        wanted = ".".join(map(str, least))
        yield Finding(name, found, f"{harm}: pip install '{name}>={wanted}'" if bad else "")


def _numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: '2.13.0+cpu' is (2, 13, 0)."""
    parts = []
    for part in text.split("+")[0].split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)


def _open_files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Finding(
        "open files allowed", str(soft), "" if soft >= _LEAST_FILES else f"ulimit -n {_LEAST_FILES}"
    )


def _disk(folder: Path) -> Finding:
    there = folder.resolve()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    advice = "" if free >= _LEAST_FREE else "Tiles of one slide may take several GB: use another disk"
    return Finding(f"free disk at {there}", f"{free / 2**30:.1f} GiB", advice)


def _locking(folder: Path) -> Finding:
    """Whether the file system locks, syncs and renames as the commit rule needs."""
    existed = folder.exists()
    probe = folder / f".doctor-{os.getpid()}"
    try:
        with Output(probe).lock(), contextlib.suppress(FileNotFoundError):
            (probe / ".work").rename(probe / "renamed")
        return Finding(f"locks and renames at {folder}", "yes")
    except MicrotomeError as error:
        return Finding(f"locks and renames at {folder}", f"no: {error.reason}", error.action or "")
    finally:
        shutil.rmtree(probe, ignore_errors=True)
        if not existed:
            with contextlib.suppress(OSError):
                folder.rmdir()
