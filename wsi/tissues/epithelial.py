"""Epithelia: in glands, in follicles, in layers and in plates."""

from __future__ import annotations

import cv2
import numpy as np

from wsi.texture import Floats, Nucleus, Points, scatter
from wsi.tissues.patch import (
    SPINDLE,
    Crowd,
    Painting,
    Patch,
    along,
    among,
    blurred,
    cells_of,
    collagen,
    everywhere,
    kept_of,
    nucleoli,
    soft,
    with_twins,
)

_CARCINOMA = Nucleus(length=11, width=6, spacing=7.6, turned=0.3, varied=0.22, lobed=0.09, dark=0.75)
_EPITHELIUM = Nucleus(length=8.5, width=5.2, spacing=6.4, turned=0.15, varied=0.12, lobed=0.04, dark=0.66)
_LONG = Nucleus(length=11, width=4.8, spacing=4.9, turned=0.2, varied=0.15, lobed=0.05, dark=0.74)
_CUBOID = Nucleus(length=6.2, width=5.6, spacing=7.2, turned=3, varied=0.1, lobed=0.03, dark=0.66)
_SQUAMOUS = Nucleus(length=7.2, width=6.2, spacing=16, turned=3, varied=0.15, lobed=0.05, dark=0.58)
_BASAL = Nucleus(length=7.5, width=5, spacing=8.5, turned=3, varied=0.12, lobed=0.04, dark=0.75)
_KUPFFER = Nucleus(length=7, width=2.4, spacing=11, turned=3, varied=0.2, lobed=0.03, dark=0.7)
_HEPATOCYTE = Nucleus(length=7.6, width=7.4, spacing=21, turned=3, varied=0.12, lobed=0.02, dark=0.55)


def adenocarcinoma(rng: np.random.Generator, patch: Patch) -> Painting:
    """Branching back-to-back glands of uneven width; elongated nuclei in several rows; dense stroma."""
    field = patch.fractal(rng, 62, 3)
    lumen, between = soft(field - 0.7, 7), soft(-0.5 - field, 7)
    fibres, strands = collagen(rng, patch)
    stroma = (70 + 22 * strands) * np.clip(3 * (1.2 + strands), 0.1, 1)
    gland = 48 + 8 * patch.noise(rng, 6)
    eosin = (gland * (1 - between) + stroma * between) * (1 - 0.93 * lumen)
    blue = (22 * (1 - between) + 6) * (1 - 0.9 * lumen)
    spots = scatter(rng, patch.size, _CARCINOMA.spacing / patch.mpp)
    level = patch.at(field, spots)
    spots = spots[(level > -0.46) & (level < 0.42)]
    turns = _uphill(patch, field, spots)
    own = everywhere(rng, patch, _CARCINOMA, spots=spots, turns=turns)
    loose = along(rng, patch, SPINDLE, fibres)
    loose = kept_of(loose, patch.at(field, loose.spots) < -0.7)
    return Painting(eosin, blue, (loose, own))


def glands(rng: np.random.Generator, patch: Patch) -> Painting:
    """Round glands apart from one another: one row of basal nuclei, tall pale cells, a small lumen."""
    return _glands(rng, patch, spacing=96, radii=(28, 43), folded=0.13, kind=_EPITHELIUM)


def adenoma(rng: np.random.Generator, patch: Patch) -> Painting:
    """Glands too many and too close, uneven and folded, with longer, darker, crowded nuclei."""
    return _glands(rng, patch, spacing=82, radii=(34, 50), folded=0.3, kind=_LONG)


def _glands(
    rng: np.random.Generator,
    patch: Patch,
    *,
    spacing: float,
    radii: tuple[float, float],
    folded: float,
    kind: Nucleus,
) -> Painting:
    """Glands in stroma; lengths in microns, `folded` is how far their outline strays from a circle."""
    px = patch.px
    fibres, strands = collagen(rng, patch)
    cells = cells_of(rng, patch, spacing)
    radius = (rng.uniform(*radii, len(cells.centres)) * px).astype(np.float32)
    lopsided = 1 + folded * patch.noise(rng, 45)
    depth = np.minimum(radius[cells.owner] - cells.outward * lopsided, cells.inward - 4 * px)
    inside = soft(depth, 0.7 / px)
    open_ = soft(depth - 21 * px, 0.5 / px)
    frothy = soft(depth - 9 * px, 0.3 / px)
    stroma = (70 + 22 * strands) * np.clip(3.5 * (1.2 + strands), 0.1, 1)
    epithelium = 58 - 34 * frothy + 5 * patch.noise(rng, 2.5)
    eosin = (stroma * (1 - inside) + epithelium * inside) * (1 - 0.95 * open_)
    blue = (7 + (9 + 4 * frothy) * inside) * (1 - 0.9 * open_)
    row = _row(rng, patch, kind, depth, at=kind.length / 2 + 0.3)
    loose = along(rng, patch, SPINDLE, fibres)
    return Painting(eosin, blue, (kept_of(loose, patch.at(depth, loose.spots) < -3 * px), row))


def follicles(rng: np.random.Generator, patch: Patch) -> Painting:
    """Packed follicles of all sizes, lined by low cells and full of smooth pink colloid."""
    px = patch.px
    cells = cells_of(rng, patch, 58)
    rounded = blurred(cells.inward, 3 * px)
    lining, colloid = soft(rounded - 2.6 * px, 0.8 / px), soft(rounded - 10 * px, 0.8 / px)
    strength = (88 + rng.normal(0, 14, len(cells.centres))).astype(np.float32)[cells.owner]
    scalloped = 1 - 0.75 * soft(13 * px + 4 * px * patch.noise(rng, 9) - rounded, 0.4 / px)
    eosin = 58 * (1 - lining) + (44 + 4 * patch.noise(rng, 3)) * lining * (1 - colloid)
    eosin = eosin + (strength + 3 * patch.fractal(rng, 60)) * scalloped * colloid
    blue = 7 + 9 * lining - 12 * colloid
    row = _row(rng, patch, _CUBOID, rounded, at=6.2)
    return Painting(eosin, np.clip(blue, 1, None), (row,))


def _row(rng: np.random.Generator, patch: Patch, kind: Nucleus, depth: Floats, *, at: float) -> Crowd:
    """Nuclei side by side where the layer `depth` is `at` microns, their long axes pointing up it."""
    level = np.asarray(depth > at * patch.px, np.uint8)
    lines, _ = cv2.findContours(level, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    step = kind.spacing * patch.px
    found = [np.zeros((0, 2))]
    for line in lines:
        points = line[:, 0].astype(np.float64)
        way = np.cumsum(np.hypot(*np.diff(points, axis=0, append=points[:1]).T))
        count = int(way[-1] / step)
        if count >= 5:
            found.append(points[np.searchsorted(way, (np.arange(count) + 0.5) * way[-1] / count)])
    spots = np.concatenate(found)
    spots = spots + rng.normal(0, 0.6 * patch.px, spots.shape)
    inner = ((spots >= 2) & (spots < np.array(patch.shape[::-1]) - 2)).all(axis=1)
    spots = spots[inner]
    return everywhere(rng, patch, kind, spots=spots * 2, turns=_uphill(patch, depth, spots * 2))


def _uphill(patch: Patch, layer: Floats, spots: Points) -> Points:
    """(n,): radians from the x axis to where the layer, smoothed, rises."""
    smooth = blurred(layer, 4 * patch.px)
    down, right = cv2.Sobel(smooth, cv2.CV_32F, 0, 1), cv2.Sobel(smooth, cv2.CV_32F, 1, 0)
    return np.asarray(np.arctan2(patch.at(down, spots), patch.at(right, spots)), np.float64)


def squamous(rng: np.random.Generator, patch: Patch) -> Painting:
    """Sheets of polygonal cells with pale seams, smaller and bluer at their base; pearls of keratin."""
    px = patch.px
    cells = cells_of(rng, patch, 15.5)
    ripe = patch.fractal(rng, 190, 2)
    seam = soft(0.9 * px - cells.inward, 1.2 / px)
    basal, horny = soft(-0.6 - ripe, 2.5), soft(ripe - 0.85, 5)
    layers = np.sin(ripe * 34 + 1.5 * patch.noise(rng, 25)).astype(np.float32)
    eosin = (74 + 14 * ripe + 5 * patch.noise(rng, 3)) * (1 - 0.5 * seam) - 18 * basal
    eosin = eosin * (1 - horny) + (118 + 24 * layers) * horny
    blue = (10 + 16 * basal) * (1 - horny) + 3 * horny
    spots = cells.centres * 2
    grown = everywhere(rng, patch, _SQUAMOUS, spots=spots[patch.at(horny, spots) < 0.4])
    young = among(rng, patch, _BASAL, -ripe, 0.8)
    return Painting(eosin, blue, (grown, young))


def liver(rng: np.random.Generator, patch: Patch) -> Painting:
    """Plates of large granular cells with round central nuclei and one nucleolus; pale sinusoids between."""
    px = patch.px
    cells = cells_of(rng, patch, _HEPATOCYTE.spacing)
    sinusoid = soft(0.12 - np.abs(patch.noise(rng, 26) + 0.25 * patch.noise(rng, 10)), 9)
    seam = soft(0.8 * px - cells.inward, 1.2 / px)
    tint = rng.normal(0, 7, len(cells.centres)).astype(np.float32)[cells.owner]
    grains = 11 * patch.noise(rng, 1.3) + 5 * patch.noise(rng, 3)
    eosin = (84 + tint + grains + 10 * patch.fractal(rng, 200)) * (1 - 0.28 * seam) * (1 - 0.82 * sinusoid)
    blue = (13 + 5 * patch.noise(rng, 2)) * (1 - 0.8 * sinusoid)
    spots = cells.centres * 2
    spots = spots[patch.at(sinusoid, spots) < 0.5]
    spots = with_twins(rng, patch, spots, share=0.15, apart=8)
    nuclei = everywhere(rng, patch, _HEPATOCYTE, spots=spots)
    kupffer = among(rng, patch, _KUPFFER, sinusoid, 0.7)
    return Painting(eosin, blue, (kupffer, nuclei, nucleoli(rng, patch, nuclei, 0.8)))
