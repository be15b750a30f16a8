"""CLAM's layout (Lu et al., Nature Biomedical Engineering 5, 555-570, 2021; mahmoodlab/CLAM).

::

    patches/<slide>.h5    coords   (n, 2) int64    chunks (1, 2), with the attributes of `_attributes`
    h5_files/<slide>.h5   features (n, d) float32  chunks (32, d)
                          coords   (n, 2) int32    chunks (32, 2)
    pt_files/<slide>.pt   (n, d) float32 tensor: see `mil.interchange`, for this room knows no torch

A tile is ``patch_size`` pixels of the slide's level ``patch_level``. CLAM itself reads nothing else of the
attributes but ``name``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiling.interchange.facts import TileFacts
from tiling.interchange.hdf5 import Table, plain, refused, write_tables
from tiling.store import TileStore
from wsi.geometry import Level

SOURCE = "CLAM"
PATCHES, FEATURES = "patches", "h5_files"
ROWS_PER_CHUNK = 32
"""Of feature files; patch files have a row a chunk."""


def export_clam(
    store: TileStore,
    folder: Path,
    *,
    encoder: str | None = None,
    levels: Sequence[Level] = (),
    overwrite: bool = False,
) -> list[Path]:
    """Write a slide's coordinates, and its features if an encoder is named, where CLAM looks for them.

    Parameters
    ----------
    store
        The slide.
    folder
        Where ``patches/`` and ``h5_files/`` go.
    encoder
        Key of the features in the store; None for coordinates alone.
    levels
        The slide's pyramid, where it is at hand. If tiles are an exact number of pixels of one level, that is
        what is written; otherwise, and without the pyramid, the footprint in whole pixels of level 0. CLAM
        then reads the same field of view, finer, and its own transform scales it.
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
    attributes = _attributes(facts, levels)
    paths = [folder / PATCHES / f"{facts.slide_id}.h5"]
    coords = Table(facts.origins.astype(np.int64), 1, attributes)
    features = store.features(encoder).astype(np.float32) if encoder else None
    write_tables(paths[0], {"coords": coords}, overwrite=overwrite)
    if features is not None:
        tables = {
            "features": Table(features, ROWS_PER_CHUNK),
            "coords": Table(facts.origins.astype(np.int32), ROWS_PER_CHUNK),
        }
        paths.append(write_tables(folder / FEATURES / paths[0].name, tables, overwrite=overwrite))
    return paths


def _attributes(facts: TileFacts, levels: Sequence[Level]) -> dict[str, Any]:
    width, height = facts.slide_size
    base = Level(width, height, 1.0, 1.0)
    number, level = _exact_level(facts, levels or (base,))
    size = facts.spec.size_px
    if level is None:
        facts.warn_of_rounding()
        number, level, size = 0, base, facts.side_level0
    shape = np.array([level.width, level.height], np.int64)
    return {
        "patch_size": np.int64(size),
        "patch_level": np.int64(number),
        "downsample": np.array([level.downsample_x, level.downsample_y], np.float64),
        "downsampled_level_dim": shape,
        "level_dim": shape,
        "name": facts.slide_id,
        "save_path": PATCHES,  # CLAM writes the folder's path; nothing reads it
    }


def _exact_level(facts: TileFacts, levels: Sequence[Level]) -> tuple[int, Level | None]:
    """The level of which a tile has its own number of pixels, to half a level-0 pixel over the tile."""
    size = facts.spec.size_px
    for number, level in enumerate(levels):
        off_x = abs(level.downsample_x * size - facts.tile[0])
        off_y = abs(level.downsample_y * size - facts.tile[1])
        if max(off_x, off_y) <= 0.5:
            return number, level
    return 0, None


def read_tile(
    attributes: Mapping[str, Any], path: Path, *, levels: Sequence[Level]
) -> tuple[tuple[float, float], int]:
    """A tile's level-0 footprint and pixels along a side, from CLAM's attributes and those of its forks.

    ``custom_downsample`` (older forks) is a further factor on the level's own, as TRIDENT reads it.
    """
    size, level = attributes["patch_size"], attributes["patch_level"]
    factor = plain(attributes.get("custom_downsample"))
    down = plain(attributes.get("downsample"))
    if down is None and level == 0:
        down = 1.0
    if down is None and isinstance(level, int) and 0 <= level < len(levels):
        down = [levels[level].downsample_x, levels[level].downsample_y]
    if down is None:
        raise refused(
            path, f"says level {level}, and not how much coarser that is", "Import it with its slide"
        )
    down_x, down_y = down if isinstance(down, list) and len(down) == 2 else (down, down)
    factor = 1 if factor is None else factor
    for name, value in (("patch_size", size), ("downsample", down_x), ("downsample", down_y)):
        check_positive(name, value, path)
    check_positive("custom_downsample", factor, path)
    return (size * down_x * factor, size * down_y * factor), int(size)


def check_positive(name: str, value: Any, path: Path) -> None:
    """Refuse an attribute that is not a finite number above 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 < value < float("inf")):
        raise refused(path, f"states a {name} of {value!r}")
