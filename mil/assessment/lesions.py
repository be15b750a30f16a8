"""Lesions that are known tile by tile: whether explanations find them, never for judging slides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiling.commit import hash_file
from tiling.output import Output
from tiling.store import TileStore
from wsi.regions import RegionFiles, read_regions
from wsi.tissue import TissueMask

_STEPS_PER_TILE = 32
"""Grid points along a tile's side, by which the share of it that is lesion is counted."""


@dataclass(frozen=True, slots=True)
class Lesions:
    """Outlines or masks of what a class names."""

    files: RegionFiles
    """A PNG mask or GeoJSON a slide; slides without one have no known lesion."""
    class_name: str
    """The class that the lesions stand for: only slides with this label are looked up."""

    def digests(self, slide_ids: Sequence[str]) -> dict[str, str]:
        """SHA-256 of the files of slides that have one."""
        found = {slide_id: self.files.find(slide_id) for slide_id in slide_ids}
        return {slide_id: hash_file(path).sha256 for slide_id, path in found.items() if path}


def lesion_shares(
    output: Output, lesions: Lesions, slide_ids: Sequence[str]
) -> Mapping[str, NDArray[np.float32]]:
    """``(n,)`` share of each tile that is lesion, for the slides that have a file.

    Parameters
    ----------
    output
        Holds the slides' tiles.
    lesions
        Where the lesions are.
    slide_ids
        Slides whose label is that of the lesions.

    Raises
    ------
    UsageError
        None of them has a file, or a file is unsound, or not of this slide; see `wsi.regions`.
    """
    lesions.files.check(slide_ids)
    found = {}
    for slide_id in slide_ids:
        path = lesions.files.find(slide_id)
        if path is None:
            continue
        store = TileStore(output, slide_id)
        record = store.record
        width, height = record["tile_level0"]
        slide_width, slide_height = record["slide_size"]
        left, top = record["bounds_origin"]
        origin = lesions.files.origin.of((float(left), float(top)))
        regions = read_regions(path, slide_size=(slide_width, slide_height), bounds_origin=origin)
        scale = max(1.0, min(width, height) / _STEPS_PER_TILE)
        shape = math.ceil(slide_height / scale), math.ceil(slide_width / scale)
        mask = regions.fill(shape=shape, scale_x=scale, scale_y=scale)
        grid = TissueMask(mask, scale, scale, mpp=scale)  # its mpp is for areas, which nobody asks for here
        found[slide_id] = grid.fraction(store.origins, width=width, height=height)
    return found
