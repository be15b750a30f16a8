"""Context: around the centre of each tile, a tile of the same pixels at a coarser scale, from the slide.

A tile of 256 px at 0.5 µm shows 128 µm of tissue; 256 px around the same centre at 2 µm show 512 µm. What
lies beyond the slide is white, as it is in tiles that overhang its edge.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tiling.grid import TileSpec
from tiling.store import TileStore
from tiling.tiles import ReadTiles, open_cutter, slide_name
from wsi.errors import UsageError
from wsi.geometry import Resolution, footprint
from wsi.slide import Slide


def context_origins(
    origins: NDArray[np.int32], spec: TileSpec, resolution: Resolution, *, mpp: float
) -> NDArray[np.int32]:
    """Where the tiles of another scale begin that have the centres of these.

    Parameters
    ----------
    origins
        ``(n, 2)`` level-0 (x, y) of the tiles.
    spec
        Their size and microns per pixel.
    resolution
        Of the slide.
    mpp
        Microns per pixel of the context.

    Returns
    -------
    ``(n, 2)`` int32, level-0; each rounded for itself as origins of the grid are, so that centres agree to
    half a level-0 pixel. Some may lie left of the slide or above it.

    Examples
    --------
    >>> tiles, scan = np.array([[0, 0], [512, 1024]], np.int32), Resolution(0.25, 0.25, "override")
    >>> context_origins(tiles, TileSpec(size_px=256, mpp=0.5), scan, mpp=1.0).tolist()
    [[-256, -256], [256, 768]]
    """
    tile, context = (
        np.array([footprint(spec.size_px, mpp=side, slide_mpp=m) for m in (resolution.x, resolution.y)])
        for side in (spec.mpp, mpp)
    )  # (2,) level-0 width and height of each
    return np.asarray(np.floor(origins + (tile - context) / 2 + 0.5), np.int32)


def context_key(encoder_key: str, mpp: float) -> str:
    """Under which key a store holds what an encoder makes of the context at this scale.

    No encoder's own key holds an ``@``.

    >>> context_key("uni", 2.0), context_key("uni", 0.9765625)
    ('uni@2', 'uni@0.9765625')
    """
    return f"{encoder_key}@{np.format_float_positional(mpp, trim='-')}"


def check_context(store: TileStore, mpp: float) -> None:
    """Refuse a scale that shows no more than the tiles do.

    Raises
    ------
    UsageError
        It is not coarser than the tiles, or coarser than any slide is.
    """
    try:
        replace(store.spec, mpp=mpp)
    except ValueError as error:
        raise UsageError(f"context cannot be had: {error}", action="Ask for another --context-mpp") from error
    if mpp <= store.spec.mpp:
        raise UsageError(
            f"the tiles of slide {store.slide_id!r} have {store.spec.mpp:g} µm per pixel, and context was "
            f"asked for at {mpp:g}",
            path=store.output.root,
            action="Ask for a --context-mpp that is coarser than the tiles",
        )


def context_reader(store: TileStore, slide: Slide | None, *, mpp: float, threads: int = 1) -> ReadTiles:
    """A reader of the context of a store's tiles, row by row, with the stain that was fitted on the slide.

    At the tiles' own `mpp` it gives the tiles themselves, to the bit.

    Parameters
    ----------
    store
        Whose tiles.
    slide
        The slide that they were cut from: context is always read from it.
    mpp
        Microns per pixel of the context.
    threads
        Readers at work within one call.

    Raises
    ------
    UsageError
        No slide was given; or see `tiling.tiles.open_cutter`.
    SlideError
        Likewise; and on reading, where the context of a tile cannot be decoded.
    """
    if slide is None:
        raise UsageError(
            f"context of the tiles of slide {store.slide_id!r} is read from the slide",
            path=store.output.root,
            action=f"Say where {slide_name(store)} is, with --slides",
        )
    cutter = open_cutter(store, slide, mpp=mpp)
    origins = context_origins(store.origins, store.spec, slide.require_resolution(), mpp=mpp)

    def read(rows: slice) -> NDArray[np.uint8]:
        return cutter.normalized(cutter.scanned(origins[rows], threads=threads))

    return read
