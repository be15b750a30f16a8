"""`survey_slide`: find a slide's tissue, and commit what a person wants to look at before anything is cut."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tiling.commit import damaged
from tiling.identity import check_unchanged, identify
from tiling.store import TileStore
from tiling.versions import versions
from wsi.durable import write_file
from wsi.errors import SlideError
from wsi.picture import encode_jpeg, encode_png
from wsi.slide import Slide
from wsi.tissue import TISSUE_MPP, TissueMask, TissueMethod, find_tissue

THUMBNAIL, MASK, OUTLINE = "thumbnail.png", "mask.png", "outline.jpg"
LOOK_PX = 1600
"""Long side of the thumbnail, in pixels, where the scan has that many: enough for a screen."""

MOST_LOST = 0.05
"""Share of a slide that may be impossible to decode; beyond it the slide fails: it would pass for glass."""

_log = logging.getLogger(__name__)


def survey_slide(slide: Slide, store: TileStore, method: TissueMethod) -> TissueMask:
    """Find tissue once, commit the thumbnail, the mask and the outline, and return the mask.

    Where the same recipe already did, the committed mask is returned and the slide is not read.

    Raises
    ------
    SlideError, ResolutionError
        The slide cannot be read, changed while it was read, or states no scale.
    RecipeError, DamagedError
        See `TileStore.begin`.
    """
    identity = identify(slide.path)
    resolution = slide.require_resolution()
    mpp = max(TISSUE_MPP, resolution.x, resolution.y)  # a slide coarser than that is taken as it is
    draft = store.begin(
        "tissue",
        {
            "step": "tissue",
            "slide": asdict(identity),
            "resolution": asdict(resolution),
            "mpp": mpp,
            "method": {"name": type(method).__name__, **asdict(method)},
        },
    )
    if draft is None:
        return read_mask(store)
    lost = _Lost(slide.path)
    mask = find_tissue(slide, method, mpp=mpp, damage=lost.of_the_mask)
    finest = max(resolution.x, resolution.y)
    look_mpp = max(max(slide.size[0] * resolution.x, slide.size[1] * resolution.y) / LOOK_PX, finest)
    thumbnail = slide.thumbnail(look_mpp, damage=lost.of_the_picture)
    warnings = lost.warn()
    check_unchanged(slide.path, identity)
    write_file(draft.folder / THUMBNAIL, encode_png(thumbnail))
    write_file(draft.folder / MASK, encode_png(mask.mask.astype(np.uint8) * 255))
    write_file(draft.folder / OUTLINE, encode_jpeg(mask.look(thumbnail)))
    draft.publish(
        {
            "mask_scale": [mask.scale_x, mask.scale_y],
            "mask_mpp": mpp,
            "thumbnail_scale": list(slide.scale(look_mpp)),
            "tissue_mm2": round(mask.area_mm2, 4),
            "tissue_share": round(float(mask.mask.mean()), 4),
            "backend": slide.backend,
            "warnings": warnings,
            "versions": versions(),
        }
    )
    return mask


class _Lost:
    """Spots that no level of the slide shows."""

    def __init__(self, path: Path) -> None:
        self._path, self._share = path, 0.0
        self._reasons: set[str] = set()

    def of_the_mask(self, error: SlideError, share: float) -> None:
        """Take a spot for glass; `SlideError` where that is too much of the slide to go on without."""
        self.of_the_picture(error, share)
        self._share += share
        if self._share > MOST_LOST:
            raise SlideError(
                f"more than {MOST_LOST:.0%} of it cannot be decoded on any level: {error.reason}",
                path=self._path,
                action="Copy or download it again",
            ) from error

    def of_the_picture(self, error: SlideError, share: float) -> None:
        """Leave a spot white that is only looked at."""
        self._reasons.add(error.reason)

    def warn(self) -> list[str]:
        """A word on them."""
        if not self._reasons:
            return []
        some = min(self._reasons)
        warning = f"{len(self._reasons)} spots cannot be decoded and are taken for glass: {some}"
        _log.warning("%s: %s", self._path, warning)
        return [warning]


def read_mask(store: TileStore) -> TissueMask:
    """The committed tissue mask of a slide."""
    record = store.require("tissue").record
    pixels = _decode(store.path("tissue") / MASK, cv2.IMREAD_GRAYSCALE)
    scale_x, scale_y = record["mask_scale"]
    return TissueMask(mask=pixels > 0, scale_x=scale_x, scale_y=scale_y, mpp=record["mask_mpp"])


def read_thumbnail(store: TileStore) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """The committed thumbnail, ``(h, w, 3)`` uint8 RGB, and its level-0 pixels per pixel along x and y."""
    record = store.require("tissue").record
    pixels = _decode(store.path("tissue") / THUMBNAIL, cv2.IMREAD_COLOR)
    scale_x, scale_y = record["thumbnail_scale"]
    return np.ascontiguousarray(pixels[..., ::-1]), (scale_x, scale_y)


def _decode(path: Path, flags: int) -> NDArray[np.uint8]:
    image = cv2.imdecode(np.fromfile(path, np.uint8), flags)
    if image is None:
        raise damaged(path.parent, f"{path.name} cannot be decoded")
    return np.asarray(image, np.uint8)
