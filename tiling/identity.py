"""What a slide file is, told by its content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from wsi.errors import SlideError

_ENDS = 1 << 20
_SAMPLES = 64
_SAMPLE = 1 << 14


_COMPANION_ENDS = 1 << 16
_COMPANION_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Size and sampled content of a slide's files: the same on every machine and after every copy."""

    size: int
    """Bytes, of all files."""
    sample_sha256: str
    """SHA-256 over the first and last MiB and 64 blocks of 16 KiB spread evenly between.

    Hashing all of a slide would cost a reading of it, on every run, to find out that nothing is to be done.
    This finds another slide, another scan, a cut or a growing copy; it does not find a flipped bit. Files
    that belong to the slide (MIRAX, VMS, DICOM) are sampled as well, in fewer places.
    """


def identify(path: Path) -> FileIdentity:
    """Read the identity of a slide; some MiB are read."""
    digest = hashlib.sha256()
    size = _sample(path, digest, ends=_ENDS, samples=_SAMPLES)
    for companion in companions(path):
        digest.update(companion.name.encode("utf-8", "surrogateescape"))
        size += _sample(companion, digest, ends=_COMPANION_ENDS, samples=_COMPANION_SAMPLES)
    return FileIdentity(size, digest.hexdigest())


def check_unchanged(path: Path, identity: FileIdentity) -> None:
    """`SlideError` where the slide is no longer what it was when its reading began."""
    if identify(path) != identity:
        raise SlideError(
            "the file changed while it was read", path=path, action="Run again once it is copied completely"
        )


def companions(path: Path) -> list[Path]:
    """Other files that hold parts of the slide, sorted.

    MIRAX keeps them in a folder of the slide's name; a VMS or VMU names files beside it; a DICOM slide is all
    files of one series in a folder.
    """
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        found = [p for p in path.with_suffix("").rglob("*") if p.is_file()]
    elif suffix in {".vms", ".vmu"}:
        text = path.read_text(encoding="utf-8", errors="replace")
        found = [p for p in path.parent.iterdir() if p.is_file() and p != path and p.name in text]
    elif suffix == ".dcm":
        series = _series(path)
        found = [p for p in path.parent.glob("*.dcm") if p != path and _series(p) == series]
    else:
        found = []
    return sorted(found)


def _series(path: Path) -> bytes:
    """Series Instance UID of a DICOM file, tag (0020,000E) of PS3.6, empty where it is not found."""
    with path.open("rb") as stream:
        head = stream.read(_ENDS)
    at = head.find(b"\x20\x00\x0e\x00")
    if at < 0:
        return b""
    explicit = head[at + 4 : at + 6] == b"UI"  # the value's type is named, and its length has two bytes
    length = int.from_bytes(head[at + 6 : at + 8] if explicit else head[at + 4 : at + 8], "little")
    return head[at + 8 : at + 8 + min(length, 64)]


def _sample(path: Path, digest: hashlib._Hash, *, ends: int, samples: int) -> int:
    """Feed a file's size and samples to the digest; returns the size."""
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as stream:
        digest.update(stream.read(ends))
        for i in range(1, samples + 1):
            stream.seek(i * size // (samples + 1))
            digest.update(stream.read(_SAMPLE))
        stream.seek(max(0, size - ends))
        digest.update(stream.read(ends))
    return size
