"""What is installed, and what is known to be wrong with it.

The holes are those of the catalogue of faults that this project keeps to: each row names the versions, the
harm, and the version to install. Where no better one can be had, or it is built into a package and cannot be
exchanged, the row says what keeps it from doing harm here instead.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version

from tiling.doctor.finding import Finding

OUR_NAMES = ("wsi", "tiling", "mil", "heatmaps", "cli")

Numbers = tuple[int, ...]

_ALL: Numbers = (1_000_000,)  # no release without it is known

_NEEDED = (
    "numpy", "opencv-python-headless", "openslide-bin", "openslide-python", "tiffslide", "tifffile",
    "imagecodecs", "simplejpeg", "pillow", "zarr", "numcodecs", "h5py", "dask", "torch", "torchvision",
    "timm", "safetensors",
)  # fmt: skip
_IF_THERE = ("microtome", "distributed", "dask-jobqueue", "bokeh")


@dataclass(frozen=True, slots=True)
class Hole:
    """What is wrong with some versions of a package or a library."""

    part: str
    """Name of the package, or of a library that is built into one."""
    below: Numbers
    """The first version without it."""
    harm: str
    """What it does, with its number where it has one."""
    since: Numbers = ()
    """The first version with it."""
    cure: str = ""
    """What to install; empty where there is nothing to be done."""
    guard: str = ""
    """What keeps it from doing harm here."""

    def is_in(self, found: Numbers) -> bool:
        """Whether a version has it; one that cannot be told has not."""
        return bool(found) and self.since <= found < self.below


_BIF = "CVE-2026-48977: a crafted Ventana BIF writes to memory"
_OPENSLIDE, _DISTRIBUTED = "openslide-bin>=4.0.1.1", "distributed>=2026.1.1"

HOLES = (
    Hole("openslide-bin", (4, 0, 1), _BIF, cure=_OPENSLIDE),
    Hole(
        "openslide-bin", (4, 0, 0, 12), "CVE-2026-54604: the last row of tiles may hold other data",
        since=(4, 0, 0, 9), cure=_OPENSLIDE,
    ),
    Hole("OpenSlide", (4, 0, 1), _BIF, cure=_OPENSLIDE),
    Hole("pillow", (12, 2), "CVE-2026-40192: a small FITS file fills the memory", cure="pillow>=12.3"),
    Hole("pillow", (12, 3), "CVE-2026-42309 and others", cure="pillow>=12.3"),
    Hole("torch", (2, 6), "CVE-2025-32434: a crafted checkpoint runs code", cure="torch>=2.10"),
    Hole("torch", (2, 10), "CVE-2026-24747: a crafted checkpoint corrupts memory", cure="torch>=2.10"),
    Hole("distributed", (2021, 10), "CVE-2021-42343: a local cluster listens to all", cure=_DISTRIBUTED),
    Hole("distributed", (2026, 1, 1), "CVE-2026-23528: the dashboard runs foreign code", cure=_DISTRIBUTED),
    Hole("bokeh", (3, 8, 2), "CVE-2026-21883: foreign pages may talk to the dashboard", cure="bokeh>=3.8.2"),
    Hole("zarr", (3, 4, 2), "an empty shard reads as zeros", guard="we compare sizes on opening"),
    Hole("tifffile", _ALL, "circles of directories hang it, cut files pass", guard="we look at files before"),
    Hole("h5py", _ALL, "a full disk crashes it", guard="we use it for other tools' files alone"),
    Hole(
        "libtiff", (4, 7, 2), "CVE-2026-4775: a crafted TIFF writes to memory", since=(4, 7, 1),
        guard="we give this copy no TIFF",
    ),
    Hole(
        "OpenJPEG", (2, 5, 5), "OSV-2025-219: a crafted JPEG 2000 writes to memory; no release mends it yet",
        guard="open slides of strangers in a container",
    ),
)  # fmt: skip
"""Catalogue of faults, section 3, as far as it concerns what is installed here."""


def software() -> Iterator[Finding]:
    """Versions, with what is known of them; and packages that would be taken for ours."""
    yield Finding("python", sys.version.split()[0])
    yield from packages(_version)
    yield from libraries()
    yield from name_clashes()


def packages(version_of: Callable[[str], str | None]) -> Iterator[Finding]:
    """What is installed; `version_of` gives the version of a package, None where it is not there."""
    for name in (*_NEEDED, *_IF_THERE):
        found = version_of(name)
        if found is not None:
            yield judged(name, name, found)
        elif name in _NEEDED:
            yield Finding(name, "not installed", f"pip install {name}")


def libraries() -> Iterator[Finding]:
    """The copies of C libraries that packages bring along, as far as they say."""
    for where, found in bundled().items():
        for library, number in found.items():
            yield judged(f"{library} in {where}", library, number)


def judged(name: str, part: str, found: str) -> Finding:
    """A version, with what is known of it."""
    holes = [hole for hole in HOLES if hole.part == part and hole.is_in(numbers(found))]
    curable = [hole for hole in holes if hole.cure]
    advice = "; ".join(hole.harm for hole in curable)
    if curable:
        advice += f": pip install '{curable[-1].cure}'"
    note = "; ".join(f"{hole.harm}: {hole.guard}" for hole in holes if not hole.cure)
    return Finding(name, found, advice, note)


def bundled() -> Mapping[str, Mapping[str, str]]:
    """Versions of C libraries by the package that brings them along. What cannot be told is left out."""
    found: dict[str, dict[str, str]] = {}
    for where, look in _LOOKS.items():
        try:
            told = look()
        except Exception:  # noqa: S112 - whatever is wrong with a package, its own line says so
            continue
        found[where] = {library: number for library, number in told.items() if number and number != "n/a"}
    return found


def numbers(text: str) -> Numbers:
    """The leading numbers of a version.

    >>> numbers("2.13.0+cpu"), numbers("3.1.3/8.0"), numbers("next")
    ((2, 13, 0), (3, 1, 3), ())
    """
    leading = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, leading.group().split("."))) if leading else ()


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


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _in_openslide() -> dict[str, str]:
    import openslide

    return {"OpenSlide": openslide.__library_version__}


def _in_imagecodecs() -> dict[str, str]:
    import imagecodecs

    told = imagecodecs.version(dict)
    return {"libtiff": told.get("libtiff", ""), "OpenJPEG": told.get("openjpeg", "")}


def _in_pillow() -> dict[str, str]:
    from PIL import features

    return {"libtiff": features.version("libtiff") or "", "OpenJPEG": features.version("jpg_2000") or ""}


def _in_opencv() -> dict[str, str]:
    import cv2

    told = cv2.getBuildInformation()
    tiff = re.search(r"\bTIFF:.*?(\d+\.\d+\.\d+)\)", told)
    jpeg_2000 = re.search(r"\bJPEG 2000:.*?OpenJPEG.*?(\d+\.\d+\.\d+)\)|\bJPEG 2000:.*?(2\.\d+\.\d+)\)", told)
    return {
        "libtiff": tiff.group(1) if tiff else "",
        "OpenJPEG": (jpeg_2000.group(1) or jpeg_2000.group(2)) if jpeg_2000 else "",
    }


_LOOKS = {
    "openslide": _in_openslide,
    "imagecodecs": _in_imagecodecs,
    "pillow": _in_pillow,
    "opencv": _in_opencv,
}
