"""Cells that lie loose, or crowd without order; and what is left of them."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from wsi.texture import Nucleus, scatter
from wsi.tissues.patch import (
    LYMPHOCYTE,
    SPINDLE,
    Painting,
    Patch,
    along,
    among,
    blurred,
    cells_of,
    circles,
    collagen,
    everywhere,
    kept_of,
    nucleoli,
    soft,
)
from wsi.tissues.weave import weave

_BLAST = Nucleus(length=9, width=8, spacing=9.8, turned=3, varied=0.15, lobed=0.05, dark=0.55)
_ALIKE = Nucleus(length=8.6, width=7.8, spacing=9.2, turned=3, varied=0.09, lobed=0.05, dark=0.66)
_PLUMP = Nucleus(length=15, width=5, spacing=11, turned=0.22, varied=0.24, lobed=0.06, dark=0.72)
_PLASMA = Nucleus(length=6.4, width=5.8, spacing=12, turned=3, varied=0.08, lobed=0.03, dark=0.85)
_TUMOUR = Nucleus(length=11.5, width=9, spacing=12.5, turned=3, varied=0.26, lobed=0.11, dark=0.75)
_DRIFTING = Nucleus(length=8.5, width=7, spacing=9, turned=3, varied=0.2, lobed=0.06, dark=0.7)
_GHOST = Nucleus(length=9, width=7.5, spacing=12, turned=3, varied=0.3, lobed=0.12, dark=0.13)
_DEBRIS = Nucleus(length=2.4, width=1.8, spacing=6.5, turned=3, varied=0.45, lobed=0.1, dark=0.75)


def blood(rng: np.random.Generator, patch: Patch) -> Painting:
    """Packed red cells, pale in their middle, without nuclei; few white cells, strands of fibrin."""
    spots = scatter(rng, patch.size, 6.9 / patch.mpp)
    gaps = patch.fractal(rng, 55)
    spots = spots[patch.at(gaps, spots) > -1.05]
    eosin = np.full(patch.shape, 12, np.float32)
    strength = rng.uniform(95, 135, len(spots))
    sixteenth = np.rint(spots / 2 * 16).astype(int).tolist()
    radii = np.rint(3.3 * patch.px * 16 * rng.uniform(0.85, 1.15, len(spots))).astype(int).tolist()
    for (x, y), radius, strong in zip(sixteenth, radii, strength.tolist(), strict=True):
        cv2.circle(eosin, (x, y), radius, strong, -1, cv2.LINE_AA, 4)
        cv2.circle(eosin, (x, y), radius // 3, strong * 0.72, -1, cv2.LINE_AA, 4)
    fibrin = soft(0.03 - np.abs(patch.fractal(rng, 70)), 25)
    eosin = blurred(np.maximum(eosin, 90 * fibrin), 0.5 * patch.px)
    white = replace(LYMPHOCYTE, spacing=65, lobed=0.14)
    return Painting(eosin, np.full(patch.shape, 2, np.float32), (everywhere(rng, patch, white),))


def lymphoid(rng: np.random.Generator, patch: Patch) -> Painting:
    """Crowded small round dark nuclei with hardly any cytoplasm; pale centres of larger ones."""
    centres = patch.fractal(rng, 210, 2) - 0.75
    pale = soft(centres, 6)
    eosin = 34 + 8 * patch.noise(rng, 8) + 10 * pale
    blue = 20 - 8 * pale + 4 * patch.noise(rng, 5)
    small = among(rng, patch, LYMPHOCYTE, -centres, 0)
    return Painting(eosin, blue, (small, among(rng, patch, _BLAST, centres, 0)))


def inflammation(rng: np.random.Generator, patch: Patch) -> Painting:
    """Loosened stroma, and in it plasma cells (the nucleus to one side) and lymphocytes in clusters."""
    fibres, strands = collagen(rng, patch, wave=30)
    crowded = patch.fractal(rng, 80)
    plasma = among(rng, patch, _PLASMA, crowded, -0.55)
    body = np.zeros(patch.shape, np.float32)
    aside = plasma.spots + 2.4 / patch.mpp * np.column_stack([np.cos(plasma.turns), np.sin(plasma.turns)])
    for x, y, radius in circles(rng, aside, patch, 5.2):
        cv2.circle(body, (x, y), radius, 1.0, -1, cv2.LINE_AA)
    cleft = np.clip(2.2 * (0.9 + strands), 0.12, 1)
    eosin = np.maximum((48 + 17 * strands + 7 * patch.noise(rng, 30)) * cleft, 44 * body)
    lymphocytes = among(rng, patch, LYMPHOCYTE, crowded, 0.9)
    return Painting(eosin, 6 + 26 * body, (along(rng, patch, SPINDLE, fibres), plasma, lymphocytes))


def lymphoma(rng: np.random.Generator, patch: Patch) -> Painting:
    """Sheets of blasts, all alike: larger and paler than lymphocytes, rounder and closer than a carcinoma."""
    eosin = 32 + 7 * patch.noise(rng, 8)
    blue = 22 + 5 * patch.noise(rng, 5)
    blasts = everywhere(rng, patch, _ALIKE)
    few = among(rng, patch, LYMPHOCYTE, patch.fractal(rng, 60), 1.2)
    return Painting(eosin, blue, (blasts, few, nucleoli(rng, patch, blasts, 0.3)))


def sarcoma(rng: np.random.Generator, patch: Patch) -> Painting:
    """Crossing bundles of crowded, plump, dark spindle cells with little between them."""
    px = patch.px
    fibres = weave(rng, patch.shape, bend=34 * px, over=90 * px)
    strands = fibres.strands(rng, width=5 * px, length=80 * px)
    fibrils = fibres.strands(rng, width=1.6 * px, length=40 * px)
    eosin = 62 + 13 * strands + 8 * fibrils
    return Painting(eosin, 17 + 4 * strands, (along(rng, patch, _PLUMP, fibres),))


def granulation(rng: np.random.Generator, patch: Patch) -> Painting:
    """Young scar: loose stroma full of capillaries with red cells, and of scattered inflammatory cells."""
    px = patch.px
    fibres, strands = collagen(rng, patch, wave=38)
    vessels = cells_of(rng, patch, 46)
    radius = (rng.uniform(5, 12, len(vessels.centres)) * px).astype(np.float32)[vessels.owner]
    depth = radius - vessels.outward * (1 + 0.2 * patch.noise(rng, 20))
    inside, wall = soft(depth, 0.8 / px), soft(2.2 * px - np.abs(depth), 0.8 / px)
    red = soft(patch.noise(rng, 4.5) + 0.1, 3)
    cleft = np.clip(2.4 * (1.0 + strands), 0.15, 1)
    eosin = (46 + 16 * strands) * cleft * (1 - inside) + (8 + 105 * red) * inside
    eosin = np.maximum(eosin, 70 * wall)
    loose = scatter(rng, patch.size, LYMPHOCYTE.spacing * 1.7 / patch.mpp)
    free = loose[patch.at(depth, loose) < -2 * px]
    lining = among(rng, patch, replace(SPINDLE, length=9, spacing=9, turned=3), wall, 0.8)
    spindles = along(rng, patch, SPINDLE, fibres)
    spindles = kept_of(spindles, patch.at(depth, spindles.spots) < -2 * px)
    return Painting(eosin, 8 * cleft, (spindles, lining, everywhere(rng, patch, LYMPHOCYTE, spots=free)))


def tumour(rng: np.random.Generator, patch: Patch) -> Painting:
    """Sheets of crowded large, dark, irregular nuclei with nucleoli, in nests with thin strands between."""
    nests = np.abs(patch.fractal(rng, 150))
    strand = soft(0.05 - nests, 18)
    eosin = 50 + 9 * patch.fractal(rng, 40) + 26 * strand + 6 * patch.noise(rng, 3)
    blue = 27 + 6 * patch.fractal(rng, 25) - 18 * strand
    nuclei = among(rng, patch, _TUMOUR, nests, 0.06)
    return Painting(eosin, blue, (nuclei, nucleoli(rng, patch, nuclei, 0.6)))


def necrosis(rng: np.random.Generator, patch: Patch) -> Painting:
    """Structureless granular remains with ghosts of nuclei, dust of burst ones, and cracks."""
    grains = patch.noise(rng, 1.2) * 13 + patch.noise(rng, 4) * 12
    crack = soft(np.abs(patch.fractal(rng, 130)) - 0.05, 14)
    dusty = patch.fractal(rng, 45)
    eosin = (80 + grains + 12 * patch.fractal(rng, 60)) * np.clip(crack, 0.25, 1)
    blue = (9 + 9 * soft(dusty - 0.3, 2)) * crack
    ghosts = everywhere(rng, patch, _GHOST)
    return Painting(eosin, blue, (ghosts, among(rng, patch, _DEBRIS, dusty, 0.45)))


def mucin(rng: np.random.Generator, patch: Patch) -> Painting:
    """Pools of pale bluish mucus with streaks, parted by thin septa; few clusters of cells float in them."""
    px = patch.px
    flow = weave(rng, patch.shape, bend=22 * px, over=90 * px)
    streaks = flow.strands(rng, width=9 * px, length=60 * px) * 0.6
    streaks += 0.7 * flow.strands(rng, width=2 * px, length=45 * px) * soft(patch.noise(rng, 60), 1)
    pools = cells_of(rng, patch, 230)
    septum = soft(4.5 * px + 4 * px * patch.noise(rng, 30) - pools.inward, 0.4 / px)
    floating = patch.fractal(rng, 45, 2) - 1.05
    island = soft(floating, 7)
    eosin = 5 + 2 * streaks + 62 * septum + 48 * island * (1 - septum)
    blue = (19 + 8 * streaks + 4 * patch.fractal(rng, 90)) * (1 - 0.6 * septum) + 10 * island
    drifting = among(rng, patch, _DRIFTING, floating, -0.05)
    spindles = among(rng, patch, replace(SPINDLE, turned=3), septum, 0.6)
    return Painting(eosin, blue, (spindles, drifting))
