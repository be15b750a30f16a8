"""Foreign coordinates and features as items of a store, so that they can be encoded, scored and painted."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.commit import Commit
from tiling.grid import TileSpec
from tiling.identity import identify
from tiling.interchange.foreign import CoordinateFile, FeatureFile
from tiling.recipe import CutRecipe
from tiling.store import TileStore, make_array, write_group
from tiling.versions import versions
from wsi.errors import UsageError
from wsi.geometry import footprint
from wsi.slide import Slide
from wsi.tissue import TissueMask

NOMINAL_TOLERANCE = 0.1
"""How far a stated spec may be from a tile's true footprint: as far as a nominal 20x may be from 0.5 µm."""

_log = logging.getLogger(__name__)


def adopt_coordinates(
    slide: Slide,
    store: TileStore,
    file: CoordinateFile,
    *,
    spec: TileSpec | None = None,
    mask: TissueMask | None = None,
) -> Commit:
    """Commit tiles without pixels, at the places where another tool put them.

    Parameters
    ----------
    slide, store
        Which slide, and where to write; the caller holds the output's lock.
    file
        The places.
    spec
        Size and resolution to file the tiles under, and their overlap, unless the file states another: that
        counts, as the same share of a tile. None: the file's pixels and overlap (none, where it does not
        say), and the microns per pixel that follow from footprint and slide. Slides whose features are to be
        mixed need one spec, and at a nominal magnification each slide has its own microns per pixel: give the
        nominal ones then.
    mask
        The slide's tissue, for the share of each tile; NaN without.

    Returns
    -------
    The commit of ``"tiles"``: as `cut_slide` makes it, with ``"pixels": None`` in its recipe.

    Raises
    ------
    UsageError
        The file is of another slide (its size, or tiles that lie off this one), or tiles are not of `spec`.
    ResolutionError
        The slide states no microns per pixel.
    RecipeError, DamagedError
        See `TileStore.begin`.
    """
    _check_fits(slide, file)
    spec = _with_stated_overlap(spec, file) if spec else _own_spec(slide, file)
    warnings = _check_spec(slide, file, spec)
    draft = store.begin("tiles", _recipe(slide, file, spec))
    if draft is None:
        return store.tiles
    share = np.full(len(file.origins), np.nan, np.float32)
    if mask is not None:
        share = mask.fraction(file.origins, width=file.tile[0], height=file.tile[1])
    for name, values, fill in (("origins", file.origins, -1), ("tissue", share, np.nan)):
        array = make_array(
            draft, name, shape=values.shape, rows_per_file=len(values), dtype=values.dtype.type, fill=fill
        )
        array.write_all(values)
    for warning in warnings:
        _log.warning("%s: %s", store.slide_id, warning)
    record = _record(slide, file, spec, mask) | {"warnings": warnings}
    write_group(draft, attributes={"recipe": draft.recipe, "record": record})
    return draft.publish(record)


def _recipe(slide: Slide, file: CoordinateFile, spec: TileSpec) -> dict[str, Any]:
    """What decides the tiles: a recipe as of `cut_slide`, but for what chose them."""
    cut = CutRecipe(spec=spec, stain=None, pixels=None)
    return cut.as_json(slide, identify(slide.path)) | {
        "tissue": {"method": "imported", "source": file.source},
        "min_tissue": 0.0,
        "coordinates": {
            "source": file.source,
            "tile_level0": list(file.tile),
            "sha256": hashlib.sha256(file.origins.astype("<i4").tobytes()).hexdigest(),
        },
    }


def _record(slide: Slide, file: CoordinateFile, spec: TileSpec, mask: TissueMask | None) -> dict[str, Any]:
    part = (spec.size_px - spec.overlap_px) / spec.size_px
    return {
        "slide_name": slide.path.name,
        "slide_size": list(slide.size),
        "bounds_origin": list(slide.bounds_origin),
        "backend": slide.backend,
        "tile_level0": list(file.tile),
        "stride_level0": [side * part for side in file.tile],
        "tiles": len(file.origins),
        "tissue_mm2": round(mask.area_mm2, 4) if mask else None,
        "stain": None,
        "measures": [],
        "reasons": [],
        "dropped": {},
        "damaged": [],
        "versions": versions(),
    }


def _check_fits(slide: Slide, file: CoordinateFile) -> None:
    width, height = slide.size
    if file.slide_size is not None and file.slide_size != slide.size:
        raise UsageError(
            f"the coordinates are of a slide of {file.slide_size[0]} x {file.slide_size[1]} px, "
            f"and this one has {width} x {height}",
            path=slide.path,
            action="Give the slide that they were made from",
        )
    off = np.flatnonzero((file.origins >= (width, height)).any(axis=1))
    if len(off):
        x, y = file.origins[off[0]].tolist()
        raise UsageError(
            f"{len(off)} of {len(file.origins)} tiles of {file.source} lie off the slide of {width} x "
            f"{height} px, first at ({x}, {y})",
            path=slide.path,
            action="Give the slide that they were made from; coordinates are level-0 pixels",
        )


def _with_stated_overlap(spec: TileSpec, file: CoordinateFile) -> TileSpec:
    """The spec with the overlap that the file states, if it states any."""
    if file.overlap_px is None:
        return spec
    return replace(spec, overlap_px=round(file.overlap_px * spec.size_px / file.size_px))


def _own_spec(slide: Slide, file: CoordinateFile) -> TileSpec:
    """What the file says, at the microns per pixel that this slide gives it."""
    resolution = slide.require_resolution()
    width_um, height_um = file.tile[0] * resolution.x, file.tile[1] * resolution.y
    mpp = (width_um + height_um) / 2 / file.size_px
    try:
        # Six decimals, so that the same figure from another slide is the same spec.
        return TileSpec(file.size_px, round(mpp, 6), file.overlap_px or 0)
    except ValueError as error:
        raise UsageError(
            f"the tiles of {file.source} cannot be ours ({error})",
            path=slide.path,
            action="State the size that they shall be read at",
        ) from error


def _check_spec(slide: Slide, file: CoordinateFile, spec: TileSpec) -> list[str]:
    """Refuse a spec of another footprint than the file's; a word where it is near, and not the same."""
    resolution = slide.require_resolution()
    ours = [footprint(spec.size_px, mpp=spec.mpp, slide_mpp=m) for m in (resolution.x, resolution.y)]
    said = (
        f"{spec.size_px} px of {spec.mpp:g} µm are {ours[0]:.1f} x {ours[1]:.1f} level-0 px, "
        f"and tiles of {file.source} cover {file.tile[0]:.1f} x {file.tile[1]:.1f}"
    )
    off = [abs(a - b) for a, b in zip(ours, file.tile, strict=True)]
    if any(o > NOMINAL_TOLERANCE * side for o, side in zip(off, file.tile, strict=True)):
        raise UsageError(said, path=slide.path, action="State the size and resolution of the imported tiles")
    return [said] if max(off) > 0.5 + 1e-3 else []


def adopt_features(store: TileStore, file: FeatureFile, name: str) -> Commit:
    """Commit ``features/<name>`` as `mil.encode` would, from features that another tool computed.

    Parameters
    ----------
    store
        Has the tiles that they belong to, in any order; the caller holds the output's lock.
    file
        The features. They are joined to the tiles by their coordinates, and kept as float16.
    name
        What the encoder is called: it must be the same for all slides whose features are mixed.

    Raises
    ------
    UsageError
        The tiles of the file are not those of the store, a feature is too large for float16, or no folder can
        have that name.
    RecipeError, DamagedError
        See `TileStore.begin`.
    """
    check_encoder_name(name)
    recipe = {
        "step": "features",
        "inputs": store.inputs("tiles"),
        "encoder": {"name": name, "dim": file.features.shape[1], "weights": "imported"},
        "features": {"sha256": hashlib.sha256(np.ascontiguousarray(file.features).tobytes()).hexdigest()},
    }
    rows = _join(store, file)
    with np.errstate(over="ignore"):  # becomes infinity, which is refused by name
        values = file.features[rows].astype(np.float16)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        x, y = store.origins[bad[0]].tolist()
        raise UsageError(
            f"features of slide {store.slide_id!r} are too large for float16, first those of the tile at "
            f"({x}, {y})",
            path=store.output.root,
            action="Scale them, and import them under another name",
        )
    draft = store.begin(f"features/{name}", recipe)
    if draft is None:
        return store.require(f"features/{name}")
    shards = store.shards()
    array = make_array(
        draft, "", shape=values.shape, rows_per_file=shards[0].stop, dtype=np.float16, fill=np.nan
    )
    for shard in shards:
        array.write(shard, values[shard])
    stored = {"dtype": str(file.features.dtype), "called": file.encoder}
    return draft.publish({"tiles": len(values), "imported": stored, "versions": versions()})


def _join(store: TileStore, file: FeatureFile) -> NDArray[np.intp]:
    """Which row of the file belongs to each tile of the store."""
    ours, theirs = (
        {place: row for row, place in enumerate(map(tuple, origins.tolist()))}
        for origins in (store.origins, file.origins)
    )
    missing, extra = ours.keys() - theirs.keys(), theirs.keys() - ours.keys()
    if missing or extra:
        x, y = min(missing or extra, key=lambda place: (place[1], place[0]))
        raise UsageError(
            f"the features are not of the tiles of slide {store.slide_id!r}: {len(missing)} of {len(ours)} "
            f"tiles have none and {len(extra)} rows have no tile, first at ({x}, {y})",
            path=store.output.root,
            action="Import the coordinates that the features were computed from",
        )
    return np.array([theirs[place] for place in ours], np.intp)


def check_encoder_name(name: str) -> str:
    """The name, if features can be filed under it; `UsageError` where they cannot."""
    if not re.fullmatch(r"\w[\w.\-]*", name) or name.startswith("__") or name.casefold().endswith(".json"):
        raise UsageError(
            f"{name!r} cannot be an encoder's name here: letters, digits, _ . and - only, not __ in front "
            "and not .json at the end",
            action="Choose another name",
        )
    return name
