"""`cut_slide`: grid → tissue → pixels → stain → store, shard by shard, in bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.commit import Commit, Draft
from tiling.grid import TileGrid, TileSpec, lay_grid
from tiling.identity import FileIdentity, identify
from tiling.stain import Macenko, MacenkoNormalizer, StainError
from tiling.store import TileStore, make_array, write_group
from tiling.versions import versions
from wsi.errors import NoTissueError, SlideError, UsageError
from wsi.slide import Slide
from wsi.tissue import HlsThresholds, SaturationOtsu, TissueMask, TissueMethod, find_tissue

Progress = Callable[[int, int], None]
"""Called with (tiles done, tiles in all)."""

SHARD_BYTES = 48 << 20
"""Pixels in one file: 256 tiles of 256 px. Memory is a few times that, whatever the tile or the slide."""
FIT_TILES = 64
"""Tiles that the stain is fitted on: spread evenly over the slide's tissue."""
FIT_PIXELS_PER_TILE = 4096
READ_THREADS = 2
"""Readers per slide. Their number does not change a byte: tiles keep their order."""
BACKGROUND = 255
"""Fill of the pixel array; every real tile is written, so it never shows."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CutRecipe:
    """Everything that decides which tiles come out of a slide, and their pixels."""

    spec: TileSpec = field(default_factory=TileSpec)
    """Size, resolution and overlap."""
    tissue: TissueMethod = field(default_factory=HlsThresholds)
    """How tissue is told from glass."""
    min_tissue: float = 0.25
    """Share of a tile that must be tissue."""
    stain: Macenko | None = field(default_factory=Macenko)
    """How colours are normalised; None leaves pixels alone."""
    tiles_per_shard: int | None = None
    """Tiles in one file: the unit of work and of resumption. None: as many as `SHARD_BYTES` hold."""

    def __post_init__(self) -> None:
        if not 0 < self.min_tissue <= 1:
            raise ValueError(f"min_tissue is {self.min_tissue:g}; it must be above 0 and at most 1")
        if self.tiles_per_shard is not None and self.tiles_per_shard < 1:
            raise ValueError(f"tiles_per_shard is {self.tiles_per_shard}; it must be at least 1")

    @property
    def shard_tiles(self) -> int:
        """Tiles in one file."""
        return self.tiles_per_shard or max(1, SHARD_BYTES // (3 * self.spec.size_px**2))

    def as_json(self, slide: Slide, identity: FileIdentity) -> dict[str, Any]:
        """The recipe for one slide, as it is stored and compared."""
        resolution = slide.require_resolution()
        return {
            "step": "tiles",
            "slide": asdict(identity),
            "resolution": asdict(resolution),
            "spec": asdict(self.spec),
            "tissue": {"method": type(self.tissue).__name__, **asdict(self.tissue)},
            "min_tissue": self.min_tissue,
            "stain": {"method": "Macenko", **asdict(self.stain)} if self.stain else None,
            "tiles_per_shard": self.shard_tiles,
        }


def recipe_from_json(content: Mapping[str, Any]) -> CutRecipe:
    """The recipe of a stored `CutRecipe.as_json`: to cut other slides in the same way.

    Raises
    ------
    UsageError
        This version knows no such method.
    """
    methods = {method.__name__: method for method in (HlsThresholds, SaturationOtsu)}
    try:
        tissue, stain = dict(content["tissue"]), content["stain"]
        return CutRecipe(
            spec=TileSpec(**content["spec"]),
            tissue=methods[tissue.pop("method")](**tissue),
            min_tissue=content["min_tissue"],
            stain=Macenko(**{k: v for k, v in stain.items() if k != "method"}) if stain else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"slides cannot be cut as it says ({error})", action="Use the version of Microtome that wrote it"
        ) from error


def cut_slide(
    slide: Slide,
    store: TileStore,
    recipe: CutRecipe,
    *,
    mask: TissueMask | None = None,
    progress: Progress | None = None,
) -> Commit:
    """Cut a slide into normalised tiles and commit them to its store.

    Does nothing where the same recipe already did; goes on where a killed run stopped.

    Parameters
    ----------
    slide, store
        What to read and where to write; the caller holds the output's lock.
    recipe
        What to cut.
    mask
        The slide's tissue, where the caller has it already (by the recipe's own method).
    progress
        Called as tiles are finished.

    Returns
    -------
    The commit of the tiles.

    Raises
    ------
    NoTissueError
        No tile holds enough tissue.
    SlideError
        The slide cannot be read, or changed while it was read.
    RecipeError, DamagedError
        See `TileStore.begin`.
    """
    identity = identify(slide.path)
    draft = store.begin("tiles", recipe.as_json(slide, identity))
    if draft is None:
        return store.tiles
    mask = mask or find_tissue(slide, recipe.tissue)
    grid = lay_grid(slide.size, slide.require_resolution(), recipe.spec)
    origins, tissue = select_tiles(grid, mask, min_tissue=recipe.min_tissue)
    if len(origins) == 0:
        raise NoTissueError(
            f"no tile of {recipe.spec.size_px} px at {recipe.spec.mpp:g} µm holds "
            f"{recipe.min_tissue:.0%} tissue (the mask has {mask.area_mm2:.2f} mm²)",
            path=slide.path,
            action="Look at it with 'microtome tissue'; lower --min-tissue if there is tissue",
        )
    warnings = _up_sampling(slide, recipe.spec)
    normalizer, more = _fit_stain(slide, recipe, mask, origins)
    warnings += more
    _write_places(draft, origins, tissue)
    _write_pixels(draft, slide, recipe, origins, normalizer, progress)
    if identify(slide.path) != identity:
        raise SlideError(
            "the file changed while it was read",
            path=slide.path,
            action="Run again once it is copied completely",
        )
    record = _record(slide, grid, mask, normalizer, len(origins), warnings)
    write_group(draft, attributes={"recipe": draft.recipe, "record": record})
    return draft.publish(record)


def select_tiles(
    grid: TileGrid, mask: TissueMask, *, min_tissue: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The origins ``(n, 2)`` and tissue shares ``(n,)`` of the tiles that hold enough tissue."""
    origins = grid.origins()
    share = mask.fraction(origins, width=grid.tile[0], height=grid.tile[1])
    keep = share >= min_tissue
    return origins[keep], share[keep]


def _up_sampling(slide: Slide, spec: TileSpec) -> list[str]:
    """A word on tiles that are a little finer than the scan: allowed by `Slide.scale`, and never silent."""
    factor = 1 / min(slide.scale(spec.mpp))
    if factor <= 1 + 1e-6:
        return []
    scan = slide.require_resolution().mpp
    warning = f"tiles of {spec.mpp:g} µm are up-sampled by {factor - 1:.1%} from a scan of {scan:.4g} µm"
    _log.warning("%s: %s", slide.path, warning)
    return [warning]


def _fit_stain(
    slide: Slide, recipe: CutRecipe, mask: TissueMask, origins: NDArray[np.int32]
) -> tuple[MacenkoNormalizer | None, list[str]]:
    """Fit on tissue pixels of evenly spread tiles; a slide that cannot be fitted is left as it is."""
    if recipe.stain is None:
        return None, []
    chosen = origins[np.linspace(0, len(origins) - 1, min(FIT_TILES, len(origins))).round().astype(int)]
    size = recipe.spec.size_px
    every = max(1, size * size // FIT_PIXELS_PER_TILE)
    pixels = []
    for x, y in chosen.tolist():
        tile = slide.read(x, y, size=(size, size), mpp=recipe.spec.mpp)
        inside = _tissue_pixels(mask, (x, y), size=size, step=slide.scale(recipe.spec.mpp))
        pixels.append(tile[inside][::every])
    try:
        return recipe.stain.fit(np.concatenate(pixels)), []
    except StainError as error:
        warning = f"the stain could not be fitted ({error.reason}): tiles keep their colours"
        _log.warning("%s: %s", slide.path, warning)
        return None, [warning]


def _tissue_pixels(
    mask: TissueMask, origin: tuple[int, int], *, size: int, step: tuple[float, float]
) -> NDArray[np.bool_]:
    """``(size, size)``: which pixels of a tile have their centre on tissue."""
    centres = np.arange(size) + 0.5
    rows = ((origin[1] + centres * step[1]) / mask.scale_y).astype(int).clip(0, mask.mask.shape[0] - 1)
    columns = ((origin[0] + centres * step[0]) / mask.scale_x).astype(int).clip(0, mask.mask.shape[1] - 1)
    return np.asarray(mask.mask[np.ix_(rows, columns)])


def _write_places(draft: Draft, origins: NDArray[np.int32], tissue: NDArray[np.float32]) -> None:
    """The small arrays, written anew by every run: they cost nothing and are not parts."""
    rows = len(origins)
    for name, values, fill in (("origins", origins, -1), ("tissue", tissue, np.nan)):
        array = make_array(
            draft, name, shape=values.shape, rows_per_file=rows, dtype=values.dtype.type, fill=fill
        )
        array.write_all(values)


def _write_pixels(
    draft: Draft,
    slide: Slide,
    recipe: CutRecipe,
    origins: NDArray[np.int32],
    normalizer: MacenkoNormalizer | None,
    progress: Progress | None,
) -> None:
    """Read, normalise and store the shards that are not finished yet."""
    size, step = recipe.spec.size_px, recipe.shard_tiles
    pixels = make_array(
        draft,
        "pixels",
        shape=(len(origins), size, size, 3),
        rows_per_file=step,
        dtype=np.uint8,
        fill=BACKGROUND,
    )

    def read(origin: tuple[int, int]) -> NDArray[np.uint8]:
        tile = slide.read(*origin, size=(size, size), mpp=recipe.spec.mpp)
        return normalizer(tile) if normalizer else tile

    with ThreadPoolExecutor(READ_THREADS) as pool:
        for start in range(0, len(origins), step):
            stop = min(start + step, len(origins))
            part = f"pixels/{start}"
            if part not in draft.parts:
                tiles = np.stack(list(pool.map(read, map(tuple, origins[start:stop].tolist()))))
                draft.finish_part(part, [pixels.write(slice(start, stop), tiles)])
            if progress:
                progress(stop, len(origins))


def _record(
    slide: Slide,
    grid: TileGrid,
    mask: TissueMask,
    normalizer: MacenkoNormalizer | None,
    tiles: int,
    warnings: list[str],
) -> Mapping[str, Any]:
    return {
        "slide_name": Path(slide.path).name,
        "slide_size": list(slide.size),
        "bounds_origin": list(slide.bounds_origin),
        "backend": slide.backend,
        "tile_level0": list(grid.tile),
        "stride_level0": list(grid.stride),
        "tiles": tiles,
        "tissue_mm2": round(mask.area_mm2, 4),
        "stain": normalizer.as_json() if normalizer else None,
        "warnings": warnings,
        "versions": versions(),
    }
