"""A mosaic of tissues, painted under the conditions of a site.

Every territory is painted on a patch of its own, with fibres of its own direction. The two stains are laid at
half resolution and flow into each other at the borders, nuclei at full; a nucleus belongs to the territory
that its centre lies in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from wsi.mosaic import Mosaic, spread
from wsi.sites import Site, scan
from wsi.specimen import MASK_SCALE, enlarge
from wsi.texture import Bools, Bytes, Points, draw_nuclei, fractal, noise
from wsi.tissues import TISSUES
from wsi.tissues.patch import Crowd, Patch

_RIM = 3  # mask pixels painted around a territory: what its ragged border may reach
_HALF = MASK_SCALE // 2
_VARIED = (0.13, 0.12, 0.2, 0.1)
"""Deviation, between territories of one tissue, of the logarithm of their structures' size, their eosin, and
the haematoxylin of their cytoplasm and of their nuclei."""


def paint_mosaic(rng: np.random.Generator, mosaic: Mosaic, site: Site, *, nuclear: float = 1.0) -> Bytes:
    """(height, width, 3) RGB of level 0; nuclei are `nuclear` times as large as the average patient's."""
    width, height = mosaic.size
    streams = rng.spawn(4)
    canvas = _Canvas(mosaic)
    territories = mosaic.territories()
    owner = np.zeros(mosaic.index.shape, np.uint8)
    for number, (_, mask) in enumerate(territories, 1):
        owner[mask] = number
    owner = spread(owner)
    lots = streams[0].spawn(len(territories))
    for number, ((name, mask), own) in enumerate(zip(territories, lots, strict=True), 1):
        canvas.lay(own, number, name, mask=mask, extended=owner == number, nuclear=nuclear)
    eosin, haematoxylin = canvas.layers(streams[1])
    haematoxylin = np.asarray(cv2.add(haematoxylin, canvas.nuclei(streams[2])), np.uint8)
    seen = slice(0, height), slice(0, width)
    return scan(streams[3], site, haematoxylin=haematoxylin[seen], eosin=eosin[seen], mpp=mosaic.mpp)


def paint_tissue(
    rng: np.random.Generator, name: str, site: Site, *, size: tuple[int, int], mpp: float = 0.5
) -> Bytes:
    """(height, width, 3) RGB of nothing but one of `TISSUES`."""
    shape = (-(-size[1] // MASK_SCALE), -(-size[0] // MASK_SCALE))
    return paint_mosaic(rng, Mosaic(size, mpp, (name,), np.ones(shape, np.uint8)), site)


@dataclass(frozen=True, eq=False)
class _Standing:
    """A crowd on the canvas, and the territory that it belongs to."""

    crowd: Crowd
    corner: Points
    territory: int
    mpp: float
    """Microns per level-0 pixel that these nuclei are drawn at."""
    dark: float
    """How much haematoxylin they take up, relative to others of their kind."""


class _Canvas:
    """Half-resolution layers that territories are laid on; nuclei wait until all territories are there."""

    def __init__(self, mosaic: Mosaic) -> None:
        self.mosaic = mosaic
        self.half = ((mosaic.size[0] + 1) // 2, (mosaic.size[1] + 1) // 2)
        self.eosin = np.zeros(self.half[::-1], np.float32)
        self.haematoxylin = np.zeros(self.half[::-1], np.float32)
        self.weight = np.zeros(self.half[::-1], np.float32)
        self.strongest = np.zeros(self.half[::-1], np.float32)
        self.owner = np.zeros(self.half[::-1], np.uint8)
        self.waiting: list[_Standing] = []

    def lay(
        self,
        rng: np.random.Generator,
        number: int,
        name: str,
        *,
        mask: Bools,
        extended: Bools,
        nuclear: float,
    ) -> None:
        """Lay the territory `number`; `extended` is its mask, reaching over the glass around it."""
        rows, columns = np.nonzero(mask)
        top, left = max(rows.min() - _RIM, 0), max(columns.min() - _RIM, 0)
        window = slice(top, rows.max() + 1 + _RIM), slice(left, columns.max() + 1 + _RIM)
        bottom = min(window[0].stop * _HALF, self.half[1])
        right = min(window[1].stop * _HALF, self.half[0])
        place = slice(top * _HALF, bottom), slice(left * _HALF, right)
        size = (right - left * _HALF, bottom - top * _HALF)
        streams = rng.spawn(3)
        size_of, pink, blue, dark = np.exp(streams[2].normal(0, _VARIED)).tolist()
        patch = Patch((size[0] * 2, size[1] * 2), self.mosaic.mpp / size_of)
        edge = enlarge(extended[window], size) + 0.2 * fractal(streams[0], patch.shape, 30 * patch.px)
        weight = np.clip((edge - 0.5) * 5 + 0.5, 1e-3, 1).astype(np.float32)
        painting = TISSUES[name].paint(streams[1], patch)
        self.eosin[place] += painting.eosin * weight * pink
        self.haematoxylin[place] += painting.haematoxylin * weight * blue
        self.weight[place] += weight
        stronger = weight > self.strongest[place]
        self.strongest[place][stronger] = weight[stronger]
        self.owner[place][stronger] = number
        corner = np.array([left, top], np.float64) * MASK_SCALE
        own = patch.mpp / nuclear
        self.waiting += [_Standing(crowd, corner, number, own, dark) for crowd in painting.crowds]

    def layers(self, rng: np.random.Generator) -> tuple[Bytes, Bytes]:
        """Eosin and haematoxylin at full resolution, clear where there is no tissue."""
        px = 0.5 / self.mosaic.mpp
        tissue = enlarge(self.mosaic.index > 0, self.half)
        tissue = tissue + 0.13 * fractal(rng, self.half[::-1], 24 * px)
        cover = np.clip((tissue - 0.5) * 6 + 0.5, 0, 1) / np.maximum(self.weight, 1e-3)
        self.owner[tissue < 0.5] = 0
        return self._whole(self.eosin * cover, 0.5), self._whole(self.haematoxylin * cover, 1)

    def _whole(self, layer: npt.NDArray[np.float32], blur: float) -> Bytes:
        soft = cv2.GaussianBlur(np.clip(layer, 0, 255).astype(np.uint8), (0, 0), blur)
        return np.asarray(cv2.resize(soft, (self.half[0] * 2, self.half[1] * 2)), np.uint8)

    def nuclei(self, rng: np.random.Generator) -> Bytes:
        """The haematoxylin of all nuclei, at full resolution."""
        mpp, shape = self.mosaic.mpp, (self.half[1] * 2, self.half[0] * 2)
        layer = np.zeros(shape, np.uint8)
        for standing, own in zip(self.waiting, rng.spawn(len(self.waiting)), strict=True):
            spots = standing.crowd.spots + standing.corner
            x, y = (spots // 2).astype(np.int64).T
            inside = (x >= 0) & (y >= 0) & (x < self.half[0]) & (y < self.half[1])
            x, y = np.where(inside, x, 0), np.where(inside, y, 0)
            shown = inside & (self.owner[y, x] == standing.territory)
            chosen = standing.crowd.spots[shown] + standing.corner
            everyone = np.ones(len(chosen), np.bool_)
            turns = standing.crowd.turns[shown]
            kind = replace(standing.crowd.kind, dark=standing.crowd.kind.dark * standing.dark)
            draw_nuclei(own, layer, kind, chosen, turns, shown=everyone, mpp=standing.mpp)
        chromatin = 1 + 0.22 * noise(rng, shape, (1.3 / mpp, 1.3 / mpp))
        textured = np.clip(layer * chromatin, 0, 255).astype(np.uint8)
        return np.asarray(cv2.GaussianBlur(textured, (0, 0), 0.35 / mpp), np.uint8)
