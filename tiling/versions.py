"""Which software made a result."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version

_DECIDING = (
    "microtome",
    "openslide-bin",
    "tiffslide",
    "opencv-python-headless",
    "numpy",
    "zarr",
    "numcodecs",
)


def versions(*more: str) -> dict[str, str]:
    """Versions of the packages that decide pixels and bytes, and of those named in `more`."""
    return {name: _installed(name) for name in (*_DECIDING, *more)}


@functools.cache
def _installed(name: str) -> str:
    """Read once, for every item that is made asks: what this process has imported stays what it was."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
