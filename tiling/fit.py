"""Fitting a slide's stain: on tissue pixels of tiles that are spread evenly over it."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from tiling.grid import TileSpec, lay_grid
from tiling.recipe import CutRecipe
from tiling.stain import Normalizer, StainError, StainMethod
from tiling.tiles import TileCutter
from wsi.errors import NoTissueError, SlideError
from wsi.slide import Slide
from wsi.tissue import TissueMask, TissueMethod, find_tissue

FIT_TILES = 64
"""Tiles that the stain is fitted on: spread evenly over the slide's tissue."""
FIT_PIXELS_PER_TILE = 4096

_log = logging.getLogger(__name__)


def fit_stain(
    slide: Slide, recipe: CutRecipe, mask: TissueMask, origins: NDArray[np.int32], *, threads: int = 1
) -> tuple[Normalizer | None, list[str]]:
    """Fit the recipe's stain method; a slide that cannot be fitted is left as it is, with a warning.

    Returns
    -------
    The fitted normaliser, and warnings.
    """
    if recipe.stain is None:
        return None, []
    try:
        pixels = sample_pixels(slide, recipe, mask, origins, threads=threads)
        with slide.times.lap("stain"):
            return recipe.stain.fit(pixels), []
    except StainError as error:
        warning = f"the stain could not be fitted ({error.reason}): tiles keep their colours"
        _log.warning("%s: %s", slide.path, warning)
        return None, [warning]


def sample_pixels(
    slide: Slide, recipe: CutRecipe, mask: TissueMask, origins: NDArray[np.int32], *, threads: int = 1
) -> NDArray[np.uint8]:
    """``(n, 3)`` uint8: pixels on tissue of `FIT_TILES` tiles. Damaged tiles are left out."""
    chosen = origins[np.linspace(0, len(origins) - 1, min(FIT_TILES, len(origins))).round().astype(int)]
    size, cutter = recipe.spec.size_px, TileCutter(slide, recipe.spec, recipe.exact, None)
    every = max(1, size * size // FIT_PIXELS_PER_TILE)
    step, pixels = slide.scale(recipe.spec.mpp), []
    group = 2 * threads  # few at a time: tiles may be large
    for start in range(0, len(chosen), group):
        places = chosen[start : start + group]
        for origin, tile in zip(places.tolist(), _read(cutter, places, threads), strict=True):
            if tile is not None:
                inside = _on_tissue(mask, (origin[0], origin[1]), size=size, step=step)
                pixels.append(tile.reshape(-1, 3)[np.flatnonzero(inside)[::every]])
    return np.concatenate(pixels) if pixels else np.empty((0, 3), np.uint8)


def aim_at(
    method: StainMethod, reference: Slide, *, spec: TileSpec, tissue: TissueMethod, exact: bool = False
) -> StainMethod:
    """The stain method with another slide's colours as target.

    Raises
    ------
    NoTissueError, StainError, SlideError
        The reference slide has no tissue, or its stain cannot be fitted.
    """
    recipe = CutRecipe(spec=spec, tissue=tissue, exact=exact)
    mask = find_tissue(reference, tissue)
    grid = lay_grid(reference.size, reference.require_resolution(), spec)
    origins = grid.origins()
    share = mask.fraction(origins, width=grid.tile[0], height=grid.tile[1])
    chosen = origins[share >= recipe.min_tissue]
    if len(chosen) == 0:
        raise NoTissueError(
            "the reference slide holds no tissue", path=reference.path, action="Give one with stained tissue"
        )
    try:
        return method.aimed_at(sample_pixels(reference, recipe, mask, chosen))
    except StainError as error:
        raise StainError(error.reason, path=reference.path, action="Give another reference slide") from error


def _read(cutter: TileCutter, origins: NDArray[np.int32], threads: int) -> list[NDArray[np.uint8] | None]:
    try:
        return list(cutter.scanned(origins, threads=threads))
    except SlideError:  # one of them is damaged
        if len(origins) == 1:
            return [None]
        return [tile for origin in origins for tile in _read(cutter, origin[None], threads)]


def _on_tissue(
    mask: TissueMask, origin: tuple[int, int], *, size: int, step: tuple[float, float]
) -> NDArray[np.bool_]:
    """``(size, size)``: which pixels of a tile have their centre on tissue."""
    centres = np.arange(size) + 0.5
    rows = ((origin[1] + centres * step[1]) / mask.scale_y).astype(int).clip(0, mask.mask.shape[0] - 1)
    columns = ((origin[0] + centres * step[0]) / mask.scale_x).astype(int).clip(0, mask.mask.shape[1] - 1)
    return np.asarray(mask.mask[np.ix_(rows, columns)])
