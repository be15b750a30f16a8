"""TRIDENT's layout (Zhang et al., arXiv:2502.06750, 2025; mahmoodlab/TRIDENT).

::

    <mag>x_<size>px_<overlap>px_overlap/
        patches/<slide>_patches.h5      coords   (n, 2) int64  chunks (1, 2), attributes of `_attributes`
        features_<encoder>/<slide>.h5   features (n, d) as encoded  chunks (1, d): name, savetodir, encoder
                                        coords   as above

A tile is ``patch_size`` pixels at ``target_magnification``; TRIDENT reads
``round(patch_size * level0_magnification / target_magnification)`` level-0 pixels for it.

*Magnifications.* TRIDENT takes 10 over the microns per pixel for a target's, and rounds a slide's to 80, 60,
40, 20, 10 or 5. Where these nominal figures give a tile's footprint to half a level-0 pixel, they are
written, as whole numbers. Elsewhere (a scan of 0.2527 µm is no exact 40x) ``level0_magnification`` is the
figure, with a fraction, by which TRIDENT reads the very square that the tile covers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tiling.interchange.clam import check_positive
from tiling.interchange.facts import TileFacts
from tiling.interchange.hdf5 import Table, plain, write_tables
from tiling.store import TileStore

SOURCE = "TRIDENT"
PATCHES, PATCHES_END = "patches", "_patches"
FEATURES_START = "features_"
_OBJECTIVE_UM = 10.0
"""Microns per pixel times magnification, by TRIDENT's convention."""
_POWERS = ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5))
"""Below which microns per pixel TRIDENT takes a slide for which magnification."""


def export_trident(
    store: TileStore, folder: Path, *, encoder: str | None = None, overwrite: bool = False
) -> list[Path]:
    """Write a slide's coordinates, and its features if an encoder is named, where TRIDENT looks for them.

    Parameters
    ----------
    store
        The slide.
    folder
        TRIDENT's ``--job_dir``.
    encoder
        Key of the features in the store; None for coordinates alone.
    overwrite
        Replace other files that are there.

    Returns
    -------
    The files.

    Raises
    ------
    UsageError
        There are no such features, or another file is there.
    """
    facts = TileFacts.of(store)
    spec = facts.spec
    target = _whole(_OBJECTIVE_UM / spec.mpp)
    job = f"{target:g}x_{spec.size_px}px_{spec.overlap_px}px_overlap"
    coords = Table(facts.origins.astype(np.int64), 1, _attributes(facts, target, job))
    features = store.features(encoder) if encoder else None
    paths = [folder / job / PATCHES / f"{facts.slide_id}{PATCHES_END}.h5"]
    write_tables(paths[0], {"coords": coords}, overwrite=overwrite)
    if encoder and features is not None:
        name = store.require(f"features/{encoder}").recipe["encoder"]["name"]
        place = f"{job}/{FEATURES_START}{encoder}"
        told = {"name": facts.slide_id, "savetodir": place, "encoder": name}
        tables = {"features": Table(features, 1, told), "coords": coords}
        paths.append(write_tables(folder / place / f"{facts.slide_id}.h5", tables, overwrite=overwrite))
    return paths


def _attributes(facts: TileFacts, target: int | float, job: str) -> dict[str, Any]:
    facts.warn_of_rounding()
    size, side = facts.spec.size_px, facts.side_level0
    source: int | float = _power(facts.mpp_x)
    if not source or round(size * source / target) != side:
        source = _whole(side * target / size)
    return {
        "patch_size": size,
        "patch_size_level0": side,
        "level0_magnification": source,
        "target_magnification": target,
        "overlap": facts.spec.overlap_px,
        "name": facts.slide_id,
        "savetodir": job,  # TRIDENT writes the folder's path; nothing reads it
        "level0_width": facts.slide_size[0],
        "level0_height": facts.slide_size[1],
    }


def _power(mpp: float) -> int:
    """The magnification that TRIDENT takes a slide for; 0 where it refuses it as too coarse."""
    return next((power for limit, power in _POWERS if mpp < limit), 0)


def _whole(number: float) -> int | float:
    """A whole number as an int: TRIDENT's own figures are."""
    return round(number) if abs(number - round(number)) < 1e-9 else number


def read_tile(attributes: Mapping[str, Any], path: Path) -> tuple[tuple[float, float], int]:
    """A tile's level-0 footprint and pixels along a side, from TRIDENT's attributes.

    The magnifications decide, as in TRIDENT's own reader; files that lack them may state the footprint.
    """
    size = attributes["patch_size"]
    source, target = (plain(attributes.get(f"{of}_magnification")) for of in ("level0", "target"))
    check_positive("patch_size", size, path)
    if source is None or target is None:
        side = plain(attributes.get("patch_size_level0"))
        check_positive("patch_size_level0", side, path)
    else:
        check_positive("level0_magnification", source, path)
        check_positive("target_magnification", target, path)
        side = size * source / target
        check_positive("footprint", side, path)
        side = max(1, round(side))
    return (float(side), float(side)), int(size)


def is_trident(attributes: Mapping[str, Any]) -> bool:
    """Whether the attributes are TRIDENT's, of this version or an older one."""
    magnifications = [plain(attributes.get(f"{of}_magnification")) for of in ("level0", "target")]
    return None not in magnifications or plain(attributes.get("patch_size_level0")) is not None
