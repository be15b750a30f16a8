"""What is checked before any decoder touches a file (being written)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FileFacts:
    container: str
    subifds: bool
    description: str


def check_file(path: Path) -> FileFacts:
    head = path.open("rb").read(4)
    tiff = head[:2] in (b"II", b"MM")
    if tiff:
        import tifffile

        with tifffile.TiffFile(path) as t:
            p = t.pages[0]
            return FileFacts("tiff", 330 in p.tags, p.description)
    return FileFacts("other", False, "")
