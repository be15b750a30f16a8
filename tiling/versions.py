"""Which software made a result."""

from __future__ import annotations

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
    found = {}
    for name in (*_DECIDING, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
