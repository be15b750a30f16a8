"""Reading coordinates and features that CLAM or TRIDENT wrote, into values that are checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.interchange import clam, trident
from tiling.interchange.hdf5 import attributes_of, find_dataset, open_foreign, refused
from wsi.errors import NoTissueError
from wsi.geometry import Level

_MOST = int(np.iinfo(np.int32).max)
COORDS, FEATURES = "coords", "features"


@dataclass(frozen=True, eq=False, slots=True)
class CoordinateFile:
    """Where another tool put the tiles of one slide, in our order and frame."""

    origins: NDArray[np.int32]
    """``(n, 2)`` level-0 (x, y) of each tile's top-left corner, in raster order, no two alike."""
    tile: tuple[float, float]
    """``(width, height)`` of a tile's footprint in level-0 pixels."""
    size_px: int
    """Pixels along each side, as that tool reads them."""
    overlap_px: int | None
    """Of those, how many neighbours share; None where the file does not say (CLAM)."""
    source: str
    """Which tool's layout it is: ``"CLAM"`` or ``"TRIDENT"``."""
    name: str
    """Name of the slide."""
    slide_size: tuple[int, int] | None = None
    """Level-0 ``(width, height)`` of the slide, where the file says (TRIDENT)."""


@dataclass(frozen=True, eq=False, slots=True)
class FeatureFile:
    """Features of one slide's tiles by another tool, in our order."""

    features: NDArray[np.float16] | NDArray[np.float32] | NDArray[np.float64]
    """``(n, d)``, of the file's own type; row i belongs to ``origins[i]``. All finite."""
    origins: NDArray[np.int32]
    """``(n, 2)`` level-0 (x, y), in raster order, no two alike."""
    encoder: str | None
    """What the file calls the encoder; None where it does not say (CLAM)."""
    name: str
    """Name of the slide."""


def import_coordinates(path: Path, *, levels: Sequence[Level] = ()) -> CoordinateFile:
    """Read a coordinate file of CLAM or TRIDENT, or of what writes likewise; TRIDENT's feature files too.

    Parameters
    ----------
    path
        ``patches/<slide>.h5`` of CLAM, ``patches/<slide>_patches.h5`` of TRIDENT.
    levels
        The slide's pyramid: only needed for files that name a level and not its scale.

    Raises
    ------
    UsageError
        Not such a file, cut short, without a tile size, or with coordinates that cannot be: not whole,
        negative, twice the same. The file and the fault are named.
    NoTissueError
        A sound file of no tiles: TRIDENT writes one for a slide without tissue.
    """
    with open_foreign(path) as file:
        dataset = find_dataset(file, COORDS, path)
        attributes = attributes_of(dataset)
        origins = _read_origins(dataset, path)
    if attributes.get("patch_size") is None:
        raise refused(
            path,
            f"does not state a patch_size with its {COORDS}",
            "Give CLAM's patches/<slide>.h5: its feature files do not say how large a tile is",
        )
    if trident.is_trident(attributes):
        source, (tile, size) = trident.SOURCE, trident.read_tile(attributes, path)
    elif attributes.get("patch_level") is not None:
        source, (tile, size) = clam.SOURCE, clam.read_tile(attributes, path, levels=levels)
    else:
        raise refused(path, "states neither a patch_level nor magnifications, so no tile has a known size")
    return CoordinateFile(
        origins=origins[_raster_order(origins, path)],
        tile=tile,
        size_px=size,
        overlap_px=_overlap(attributes, path),
        source=source,
        name=_name(attributes, path),
        slide_size=_slide_size(attributes),
    )


def import_features(path: Path) -> FeatureFile:
    """Read a feature file: CLAM's ``h5_files/<slide>.h5``, TRIDENT's ``features_<encoder>/<slide>.h5``.

    Rows come back in raster order, features with their coordinates.

    Raises
    ------
    UsageError
        See `import_coordinates`; or features and coordinates of different length, features that are not
        floating-point numbers, NaN or infinity among them.
    NoTissueError
        See `import_coordinates`.
    """
    with open_foreign(path) as file:
        coords, dataset = (find_dataset(file, name, path) for name in (COORDS, FEATURES))
        if len(coords) != len(dataset):
            raise refused(path, f"holds {len(coords)} {COORDS} and {len(dataset)} rows of {FEATURES}")
        if dataset.dtype not in (np.float16, np.float32, np.float64):
            raise refused(path, f"holds {FEATURES} of type {dataset.dtype}, not of floating point")
        attributes = attributes_of(dataset)
        origins = _read_origins(coords, path)
        features = np.asarray(dataset[:])
    order = _raster_order(origins, path)
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise refused(
            path,
            f"holds NaN or infinite {FEATURES} in {len(bad)} of {len(features)} tiles, first "
            f"{_at(origins, bad[0])}",
            "Encode it again with the tool that wrote it",
        )
    encoder = attributes.get("encoder")
    return FeatureFile(
        features=features[order],
        origins=origins[order],
        encoder=None if encoder is None else str(encoder),
        name=_name(attributes, path),
    )


def stated_encoder(path: Path) -> str | None:
    """What a feature file calls its encoder, without reading its features; None where it does not say."""
    with open_foreign(path) as file:
        name = attributes_of(find_dataset(file, FEATURES, path)).get("encoder")
    return None if name is None else str(name)


def _read_origins(dataset: Any, path: Path) -> NDArray[np.int32]:
    """``(n, 2)`` in the file's order."""
    if dataset.shape[1] != 2:
        raise refused(path, f"{COORDS!r} has the shape {dataset.shape}, not (n, 2)")
    if dataset.dtype.kind not in "iuf":
        raise refused(path, f"{COORDS!r} are of type {dataset.dtype}, not numbers")
    values = np.asarray(dataset[:])
    if len(values) == 0:
        raise NoTissueError("holds no tiles", path=path, action="There is nothing to import for this slide")
    with np.errstate(invalid="ignore"):
        wrong = ~((values == np.floor(values)) & (values >= 0) & (values <= _MOST)).all(axis=1)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise refused(
            path,
            f"holds {wrong.sum()} of {len(values)} {COORDS} that are no level-0 pixels (negative, not whole, "
            f"or too large), first {_at(values, row)}",
        )
    return values.astype(np.int32)


def _raster_order(origins: NDArray[np.int32], path: Path) -> NDArray[np.intp]:
    """The rows from the top to the bottom and left to right; no two may lie at one place."""
    order = np.lexsort((origins[:, 0], origins[:, 1]))
    twice = np.flatnonzero((np.diff(origins[order], axis=0) == 0).all(axis=1))
    if len(twice):
        raise refused(
            path,
            f"holds {len(twice)} of {len(origins)} {COORDS} twice, first {_at(origins[order], twice[0])}",
            "Write the file again: features could not be told apart",
        )
    return order


def _at(origins: NDArray[Any], row: int) -> str:
    x, y = origins[row].tolist()
    return f"at ({x:g}, {y:g})"


def _overlap(attributes: Mapping[str, Any], path: Path) -> int | None:
    overlap = attributes.get("overlap")
    if overlap is None:
        return None
    if not isinstance(overlap, int | float) or not 0 <= overlap < attributes["patch_size"]:
        raise refused(path, f"states an overlap of {overlap!r} px")
    return round(overlap)


def _slide_size(attributes: Mapping[str, Any]) -> tuple[int, int] | None:
    size = attributes.get("level0_width"), attributes.get("level0_height")
    return (size[0], size[1]) if isinstance(size[0], int) and isinstance(size[1], int) else None


def _name(attributes: Mapping[str, Any], path: Path) -> str:
    return str(attributes.get("name") or path.stem.removesuffix(trident.PATCHES_END))
