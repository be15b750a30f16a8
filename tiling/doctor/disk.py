"""Whether the file system under an output keeps what the commit rule counts on; each thing is tried there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from tiling.doctor.finding import Finding, in_bytes
from tiling.output import LONGEST_ID, Output
from wsi.durable import make_folder, sync_file, sync_folder, write_file
from wsi.errors import MicrotomeError

LEAST_FREE = 10 << 30
LEAST_INODES = 100_000
"""A slide takes some 60 files, and one more for each 256 tiles."""

_LONGEST_NAME = 255  # bytes, on the usual file systems
_SLOW_SYNC = 0.1  # seconds
_NETWORK = {
    "nfs": "NFS", "nfs4": "NFS", "cifs": "SMB", "smb3": "SMB", "smbfs": "SMB", "9p": "9P", "afs": "AFS",
    "lustre": "Lustre", "gpfs": "GPFS", "beegfs": "BeeGFS", "ceph": "Ceph", "fuse.ceph": "Ceph",
    "fuse.glusterfs": "GlusterFS", "glusterfs": "GlusterFS", "pvfs2": "OrangeFS", "panfs": "PanFS",
    "virtiofs": "a share of the host", "fuse.sshfs": "SSH", "davfs": "WebDAV",
}  # fmt: skip
_OBJECTS = re.compile(r"fuse\.(s3fs|goofys|gcsfuse|rclone|blobfuse2?|mount-s3|juicefs)|fuse\.mountpoint-s3")
_TRY_LOCK = """\
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1], "a"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(7)
"""
_REFUSED = 7


def disk(folder: Path) -> Iterator[Finding]:
    """Look at the space, at the kind of file system, and at what it does; nothing is left there."""
    there = nearest(folder)
    yield from space(there)
    yield kind_of(there, _mounts())
    with probing(folder) as (probe, fault):
        if fault:
            advice = fault.action or "Give another folder"
            yield Finding("output can be written", f"no: {fault.reason}", advice)
            return
        yield Finding("output can be written", "yes")
        for name, attempt in ATTEMPTS.items():
            yield tried(name, attempt, probe)


def nearest(folder: Path) -> Path:
    """The folder, or the one above it that exists."""
    there = folder.resolve()
    while not os.path.exists(there):  # what may not be looked into counts as missing
        there = there.parent
    return there


def space(there: Path) -> Iterator[Finding]:
    """Free bytes, and free entries for files."""
    free = shutil.disk_usage(there).free
    advice = "" if free >= LEAST_FREE else "Tiles of one slide may take several GB: use another disk"
    yield Finding("free disk", in_bytes(free), advice, f"at {there}", {"bytes": free})
    entries = os.statvfs(there)
    if entries.f_files:  # btrfs and others have no fixed number
        left = entries.f_favail
        few = f"A slide takes some 60 files: {left // 60:,} slides, then it is full"
        few = few if left < LEAST_INODES else ""
        yield Finding("free inodes", f"{left:,}", few, figures={"inodes": left})


def kind_of(there: Path, mounts: str) -> Finding:
    """The file system that a folder is on, by ``/proc/mounts``, and what its kind means for an output."""
    kind, point = mount_of(there, mounts)
    if name := _NETWORK.get(kind):
        note = (
            f"on {point}; {name} is shared by machines: locks hold between them only if its server has them, "
            "syncs are slow, and it may go away; if you can, put OUT on a local disk and copy it afterwards"
        )
        return Finding("file system", f"{kind} (network)", note=note)
    if _OBJECTS.fullmatch(kind):
        advice = "No renames at once, no locks: put OUT on a disk, and copy it there when it is done"
        return Finding("file system", f"{kind} (object store)", advice, f"on {point}")
    lost = {
        "tmpfs": "in memory: it is gone when the machine restarts",
        "ramfs": "in memory: it is gone when the machine restarts",
        "overlay": "a container's own: it is gone with the container",
    }
    where = f"on {point}" + (f"; {lost[kind]}" if kind in lost else "")
    return Finding("file system", kind or "not known", note=where if kind else "")


def mount_of(there: Path, mounts: str) -> tuple[str, Path]:
    """Kind and place of the mount that holds a folder: the longest, and the last of them."""
    found = "", Path("/")
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code.group(1), 8)), fields[1]))
        if there.is_relative_to(point) and len(point.parts) >= len(found[1].parts):
            found = fields[2], point
    return found


@contextlib.contextmanager
def probing(folder: Path) -> Iterator[tuple[Path, MicrotomeError | None]]:
    """A folder to try things in, inside of `folder`, or why there is none; what was made is gone after."""
    made = [step for step in (folder, *folder.absolute().parents) if not os.path.exists(step)]
    probe = folder / f".doctor-{os.getpid()}"
    try:
        try:
            make_folder(probe)
            write_file(probe / "written", b"x" * 4096)
        except MicrotomeError as error:
            yield probe, error
        else:
            yield probe, None
    finally:
        shutil.rmtree(probe, ignore_errors=True)
        for step in made:
            with contextlib.suppress(OSError):
                step.rmdir()


def tried(name: str, attempt: Callable[[Path], Finding], probe: Path) -> Finding:
    """What an attempt finds in a folder of its own; an error of the file system is a finding too."""
    place = probe / name.replace(" ", "-")
    try:
        place.mkdir()
        return attempt(place)
    except (OSError, MicrotomeError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error)
        return Finding(name, f"no: {reason}", "Put OUT on another file system, a local disk if you can")


def locks(place: Path) -> Finding:
    """Whether the lock of an output shuts a second process out, and lets it in afterwards."""
    name, output = "locks", Output(place)
    words = [sys.executable, "-I", "-c", _TRY_LOCK, str(place / ".lock")]
    with output.lock():
        held = subprocess.run(words, capture_output=True, timeout=20, check=False).returncode  # noqa: S603
    free = subprocess.run(words, capture_output=True, timeout=20, check=False).returncode  # noqa: S603
    if held == _REFUSED and free == 0:
        return Finding(name, "yes", note="a second process was kept out")
    if held == 0:
        advice = "Two runs would overwrite each other here: start one at a time, or use another file system"
        return Finding(name, "no: a second process was let in", advice)
    return Finding(name, f"not known (exit codes {held} and {free})", "Start one run at a time here")


def renames(place: Path) -> Finding:
    """Whether a folder is renamed with all that is in it, and never into one that has something."""
    name = "renames folders at once"
    for folder in ("new", "old"):
        (place / folder).mkdir()
        write_file(place / folder / "file", folder.encode())
    (place / "new").rename(place / "renamed")
    whole = (place / "renamed" / "file").read_bytes() == b"new" and not (place / "new").exists()
    try:
        (place / "renamed").rename(place / "old")
    except OSError:
        kept = (place / "old" / "file").read_bytes() == b"old"
    else:
        kept = False
    if whole and kept:
        return Finding(name, "yes")
    wrong = "what was there was replaced" if whole else "it did not arrive whole"
    return Finding(name, f"no: {wrong}", "Put OUT on another file system: results could be half there")


def syncs(place: Path) -> Finding:
    """Whether files and folders can be forced to the disk, and how long that takes."""
    seconds = []
    for number in range(3):
        path = place / str(number)
        path.touch()
        start = time.perf_counter()
        sync_file(path)
        sync_folder(place)
        seconds.append(time.perf_counter() - start)
    took = sorted(seconds)[1]
    slow = "a slide is synced some 100 times: small slides will be slow" if took > _SLOW_SYNC else ""
    return Finding("syncs", f"yes, in {took * 1000:.1f} ms", note=slow, figures={"seconds": took})


def spells(place: Path) -> Finding:
    """Whether names come back as they were given: in their case, and with their accents."""
    name = "keeps names as they are"
    (place / "name").touch()
    (place / unicodedata.normalize("NFC", "né")).touch()
    wrong = []
    if (place / "NAME").exists():
        wrong.append("A and a are one name")
    if unicodedata.normalize("NFC", "né") not in os.listdir(place):
        wrong.append("accents are spelled otherwise")
    if wrong:
        note = "slides whose ids differ in nothing else are refused everywhere"
        return Finding(name, f"no: {', '.join(wrong)}", note=note)
    return Finding(name, "yes")


def long_names(place: Path) -> Finding:
    """How long a name may be."""
    name = "longest name"
    for length in (_LONGEST_NAME, 143, LONGEST_ID, 100):  # 143: folders encrypted by eCryptfs
        try:
            (place / ("x" * length)).touch()
            (place / ("é" * (length // 2))).touch()
        except OSError:
            continue
        short = f"Keep slide ids under {max(8, length - 105)} letters here"
        advice = short if length < _LONGEST_NAME else ""
        return Finding(name, f"{length} bytes", advice, figures={"bytes": length})
    return Finding(name, "under 100 bytes", "Put OUT on another file system")


ATTEMPTS: dict[str, Callable[[Path], Finding]] = {
    "locks": locks,
    "renames folders at once": renames,
    "syncs": syncs,
    "keeps names as they are": spells,
    "longest name": long_names,
}


def _mounts() -> str:
    try:
        return Path("/proc/self/mounts").read_text(errors="replace")
    except OSError:
        return ""
