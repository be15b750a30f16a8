"""`cut_slide`: grid → tissue → pixels → stain → store, block by block, in bounded memory."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.blocks import FOUND, REASONS, BlockCutter, Findings, Progress, repack
from tiling.commit import Commit, Draft, canonical
from tiling.fit import fit_stain
from tiling.grid import TileGrid, TileSpec, lay_grid
from tiling.identity import FileIdentity, check_unchanged, identify
from tiling.quality import MEASURES
from tiling.recipe import CutRecipe
from tiling.selection import ALL_TISSUE, Selection
from tiling.shards import array_metadata
from tiling.stain import Normalizer, normalizer_from_json
from tiling.store import TileStore, make_array, write_group
from tiling.tiles import TileCutter
from tiling.versions import versions
from wsi.durable import make_folder, write_file
from wsi.errors import NoTilesError, NoTissueError, RecipeError, SlideError
from wsi.slide import Slide
from wsi.tissue import TissueMask, find_tissue

WORKERS = 2
"""Threads that cut a slide, unless told otherwise. Their number does not change a byte."""
BACKGROUND = 255
"""Fill of the pixel array; every real tile is written, so it never shows."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Places:
    """Where tiles are to be cut."""

    grid: TileGrid
    mask: TissueMask
    """Tissue, and what is selected of it."""
    origins: NDArray[np.int32]
    """``(n, 2)`` level-0 (x, y)."""
    tissue: NDArray[np.float32]
    """``(n,)`` share of each tile."""


def cut_slide(
    slide: Slide,
    store: TileStore,
    recipe: CutRecipe,
    *,
    mask: TissueMask | None = None,
    selection: Selection = ALL_TISSUE,
    workers: int = WORKERS,
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
    selection
        Where on the tissue.
    workers
        Threads that cut.
    progress
        Called as tiles are finished.

    Returns
    -------
    The commit of the tiles.

    Raises
    ------
    NoTissueError, NoTilesError
        No tile holds enough tissue, or all of them were dropped.
    SlideError
        The slide cannot be read, or changed while it was read.
    RecipeError
        The same, and tiles of other settings are still there that were to be overwritten; or see
        `TileStore.begin`.
    DamagedError
        See `TileStore.begin`.
    """
    cutting = begin_cutting(slide, store, recipe, mask=mask, selection=selection, workers=workers)
    if cutting is None:
        return store.tiles
    return cutting.finish(workers=workers, progress=progress)


@dataclass(frozen=True, eq=False)
class Cutting:
    """A slide's tiles, being made: all that each of their blocks needs."""

    slide: Slide
    store: TileStore
    recipe: CutRecipe
    draft: Draft
    identity: FileIdentity
    """Of the file, when it was first looked at."""
    places: Places
    normalizer: Normalizer | None
    """The fitted stain."""
    warnings: list[str]

    def blocks(self, *, workers: int) -> BlockCutter:
        """What cuts the places, in so many threads."""
        cutter = TileCutter(self.slide, self.recipe.spec, self.recipe.exact, self.normalizer)
        return BlockCutter(self.draft, cutter, self.recipe, self.places.origins, workers)

    def finish(self, *, workers: int, progress: Progress | None) -> Commit:
        """Cut what nobody has cut, and commit all; raises as `cut_slide` does."""
        slide, recipe = self.slide, self.recipe
        with _replacing(self.store):
            findings = self.blocks(workers=workers).cut(progress)
            warnings = self.warnings + _damage(slide, self.places, findings)
            _check_left(slide, findings)
        check_unchanged(slide.path, self.identity)
        record = _record(slide, self.places, self.normalizer, findings, warnings)
        with slide.times.lap("write"):
            _write_arrays(self.draft, recipe, self.places, findings)
            write_group(self.draft, attributes={"recipe": self.draft.recipe, "record": record})
            return self.draft.publish(record)


def begin_cutting(
    slide: Slide,
    store: TileStore,
    recipe: CutRecipe,
    *,
    mask: TissueMask | None = None,
    selection: Selection = ALL_TISSUE,
    workers: int = WORKERS,
    helper: str = "",
) -> Cutting | None:
    """Find the places and fit the stain; None where the tiles are there. As in `cut_slide`.

    With a `helper`'s name, join in cutting what another process has begun: see `tiling.commit.join`.
    """
    identity = identify(slide.path)
    decides = recipe.as_json(slide, identity) | selection.as_json()
    draft = store.join("tiles", decides, helper=helper) if helper else store.begin("tiles", decides)
    if draft is None:
        return None
    with _replacing(store):
        places = find_places(slide, recipe, mask or find_tissue(slide, recipe.tissue), selection)
    normalizer, more = _fitted(draft, slide, recipe, places, workers)
    warnings = [*_up_sampling(slide, recipe.spec), *more]
    return Cutting(slide, store, recipe, draft, identity, places, normalizer, warnings)


_STAIN = "stain"


def _fitted(
    draft: Draft, slide: Slide, recipe: CutRecipe, places: Places, workers: int
) -> tuple[Normalizer | None, list[str]]:
    """The slide's stain, fitted once: who helps, or goes on, takes what is in the draft."""
    path = draft.folder / FOUND / f"{_STAIN}.json"
    if _STAIN in draft.parts or (draft.helper and path.exists()):
        kept = json.loads(path.read_bytes())
        return normalizer_from_json(kept["normalizer"]) if kept["normalizer"] else None, kept["warnings"]
    normalizer, warnings = fit_stain(slide, recipe, places.mask, places.origins, threads=workers)
    if len(places.origins) > recipe.shard_tiles and recipe.stain is not None and not draft.helper:
        content = {"normalizer": normalizer.as_json() if normalizer else None, "warnings": warnings}
        make_folder(path.parent)
        write_file(path, canonical(content))
        draft.finish_part(_STAIN, [path])
    return normalizer, warnings


@contextmanager
def _replacing(store: TileStore) -> Iterator[None]:
    """Where no tile is left, those of other settings stay. That is a failure: they would be gone on with."""
    try:
        yield
    except NoTissueError as error:
        if store.find("tiles") is None:
            raise
        raise RecipeError(
            f"{error.reason}. The tiles that slide {store.slide_id!r} has were not replaced",
            path=error.path,
            action="Use other settings, or delete the slide's folder if it is to have no tiles",
        ) from error


def find_places(slide: Slide, recipe: CutRecipe, mask: TissueMask, selection: Selection) -> Places:
    """The tiles of the grid that hold enough of the selected tissue; `NoTissueError` where none does."""
    mask = selection.within(slide, mask)
    grid = lay_grid(slide.size, slide.require_resolution(), recipe.spec)
    origins, tissue = select_tiles(grid, mask, min_tissue=recipe.min_tissue)
    if len(origins) == 0:
        where = "selected tissue" if selection.include or selection.exclude else "tissue"
        kind = NoTilesError if mask.mask.any() else NoTissueError
        raise kind(
            f"no tile of {recipe.spec.size_px} px at {recipe.spec.mpp:g} µm holds "
            f"{recipe.min_tissue:.0%} {where} (the mask has {mask.area_mm2:.2f} mm²)",
            path=slide.path,
            action="Look at it with 'microtome tissue'; lower --min-tissue if there is tissue",
        )
    return Places(grid, mask, origins, tissue)


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


def _damage(slide: Slide, places: Places, findings: Findings) -> list[str]:
    """A word on tiles that cannot be decoded."""
    damaged = places.origins[findings.reasons == REASONS.index("damaged")].tolist()
    if not damaged:
        return []
    some = ", ".join(f"({x}, {y})" for x, y in damaged[:3]) + (", ..." if len(damaged) > 3 else "")
    warning = f"{len(damaged)} of {len(places.origins)} tiles cannot be decoded and are left out: {some}"
    _log.warning("%s: %s", slide.path, warning)
    return [warning]


def _check_left(slide: Slide, findings: Findings) -> None:
    if (findings.reasons == REASONS.index("damaged")).all():  # of one tile: more fail earlier
        raise SlideError(
            f"none of {len(findings.kept)} tiles can be decoded",
            path=slide.path,
            action="Copy or download it again",
        )
    if not findings.kept.any():
        raise NoTilesError(
            f"all {len(findings.kept)} tiles were dropped ({_counted(findings)})",
            path=slide.path,
            action="Lower --min-sharpness, or leave out --drop-pen",
        )


def _counted(findings: Findings) -> str:
    return ", ".join(f"{count} for {reason}" for reason, count in _dropped(findings).items())


def _dropped(findings: Findings) -> dict[str, int]:
    """How many tiles were dropped for each reason."""
    counts = Counter(REASONS[reason] for reason in findings.reasons[~findings.kept].tolist())
    return dict(sorted(counts.items()))


def _write_arrays(draft: Draft, recipe: CutRecipe, places: Places, findings: Findings) -> None:
    """All but the pixels themselves, written anew by every run: they cost nothing and are not parts."""
    kept = findings.kept
    repack(draft, kept, recipe)
    if recipe.pixels is not None:
        shape = (int(kept.sum()), recipe.spec.size_px, recipe.spec.size_px, 3)
        metadata = array_metadata(shape, shard_tiles=recipe.shard_tiles, codec=recipe.pixels, fill=BACKGROUND)
        write_file(draft.folder / "pixels" / "zarr.json", metadata)
    _write(draft, "origins", places.origins[kept], fill=-1)
    _write(draft, "tissue", places.tissue[kept], fill=np.nan)
    _write(draft, "quality", findings.quality[kept], fill=np.nan)
    if not kept.all():
        _write(draft, "dropped_origins", places.origins[~kept], fill=-1)
        _write(draft, "dropped_reasons", findings.reasons[~kept], fill=0)


def _write(draft: Draft, name: str, values: NDArray[Any], *, fill: float) -> None:
    array = make_array(
        draft, name, shape=values.shape, rows_per_file=len(values), dtype=values.dtype.type, fill=fill
    )
    array.write_all(values)


def _record(
    slide: Slide,
    places: Places,
    normalizer: Normalizer | None,
    findings: Findings,
    warnings: list[str],
) -> Mapping[str, Any]:
    return {
        "slide_name": Path(slide.path).name,
        "slide_size": list(slide.size),
        "bounds_origin": list(slide.bounds_origin),
        "backend": slide.backend,
        "tile_level0": list(places.grid.tile),
        "stride_level0": list(places.grid.stride),
        "tiles": int(findings.kept.sum()),
        "tissue_mm2": round(places.mask.area_mm2, 4),
        "stain": normalizer.as_json() if normalizer else None,
        "measures": list(MEASURES),
        "reasons": list(REASONS),
        "dropped": _dropped(findings),
        "damaged": places.origins[findings.reasons == REASONS.index("damaged")].tolist(),
        "warnings": warnings,
        "versions": versions("simplejpeg", "imagecodecs"),
    }
