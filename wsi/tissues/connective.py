"""Fibres, fat and cartilage."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np

from wsi.texture import Nucleus, Points, scatter
from wsi.tissues.patch import (
    SPINDLE,
    Painting,
    Patch,
    along,
    blurred,
    cells_of,
    circles,
    collagen,
    everywhere,
    soft,
    with_twins,
)
from wsi.tissues.weave import weave

_CIGAR = Nucleus(length=19, width=3.4, spacing=19, turned=0.08, varied=0.15, lobed=0.01, dark=0.55)
_SCHWANN = Nucleus(length=11, width=2.8, spacing=17, turned=0.2, varied=0.2, lobed=0.03, dark=0.58)
_FLAT = Nucleus(length=8, width=2.2, spacing=30, turned=0.3, varied=0.2, lobed=0.03, dark=0.7)
_CHONDROCYTE = Nucleus(length=6, width=4.6, spacing=40, turned=3, varied=0.15, lobed=0.05, dark=0.7)


def stroma(rng: np.random.Generator, patch: Patch) -> Painting:
    """Collagen in wavy strands with clefts between them, and few spindle-shaped nuclei."""
    fibres, strands = collagen(rng, patch)
    eosin = 74 + 12 * patch.fractal(rng, 90) + 24 * strands + 5 * patch.noise(rng, 1)
    cleft = np.clip(3.5 * (1.2 + strands), 0.08, 1)
    return Painting(eosin * cleft, 7 * cleft, (along(rng, patch, SPINDLE, fibres),))


def fibrosis(rng: np.random.Generator, patch: Patch) -> Painting:
    """Scar: dense, glassy, slightly wavy collagen with hardly a cleft, and very few thin nuclei."""
    px = patch.px
    fibres, strands = collagen(rng, patch, wave=26)
    glassy = fibres.strands(rng, width=22 * px, length=160 * px)
    cleft = 1 - 0.7 * soft(-1.35 - strands, 5)
    thin = replace(SPINDLE, width=2.6, spacing=31)
    eosin = 92 + 9 * strands + 11 * glassy
    return Painting(eosin * cleft, 7 * cleft, (along(rng, patch, thin, fibres),))


def oedema(rng: np.random.Generator, patch: Patch) -> Painting:
    """Stroma pushed apart by fluid: pale, with fine strands that part and meet, and stellate cells."""
    px = patch.px
    fibres, strands = collagen(rng, patch, wave=55)
    fine = fibres.strands(rng, width=2.2 * px, length=30 * px)
    fluid = patch.fractal(rng, 60)
    eosin = 17 + 26 * soft(strands + 0.5 * fine - 0.5, 1.2) + 8 * fluid
    blue = 9 + 4 * patch.fractal(rng, 35) + 3 * fine
    return Painting(eosin, blue, (along(rng, patch, replace(SPINDLE, turned=0.7, spacing=24), fibres),))


def muscle(rng: np.random.Generator, patch: Patch) -> Painting:
    """Smooth muscle: straight, close, strongly eosinophilic bundles; long nuclei that all lie one way."""
    px = patch.px
    fibres = weave(rng, patch.shape, bend=16 * px, over=170 * px)
    strands = fibres.strands(rng, width=5 * px, length=220 * px)
    bundles = fibres.strands(rng, width=55 * px, length=420 * px)
    cleft = 1 - 0.8 * soft(0.035 - np.abs(bundles), 30)
    fibrils = fibres.strands(rng, width=1.6 * px, length=60 * px)
    eosin = 100 + 11 * strands + 8 * bundles + 8 * fibrils
    return Painting(eosin * cleft, 10 * cleft, (along(rng, patch, _CIGAR, fibres),))


def nerve(rng: np.random.Generator, patch: Patch) -> Painting:
    """Pale fine fibres in regular waves, with vacuoles of lost myelin and comma-shaped nuclei."""
    px = patch.px
    fibres = weave(rng, patch.shape, bend=14 * px, over=150 * px, ripple=(5.5 * px, 48 * px))
    strands = fibres.strands(rng, width=2.6 * px, length=90 * px)
    fascicles = fibres.strands(rng, width=90 * px, length=700 * px)
    vacuoles = 1 - 0.6 * soft(patch.noise(rng, 3.2) - 0.95, 4)
    eosin = (60 + 17 * strands + 7 * fascicles) * vacuoles + 3 * patch.noise(rng, 1)
    return Painting(eosin, 11 * vacuoles, (along(rng, patch, _SCHWANN, fibres),))


def adipose(rng: np.random.Generator, patch: Patch) -> Painting:
    """Large empty cells; between them thin walls, a flat nucleus here and there, and septa."""
    px = patch.px
    cells = cells_of(rng, patch, 58)
    rounded = blurred(cells.inward, 3.5 * px)
    thickness = 1.3 * px + 0.5 * px * patch.noise(rng, 12)
    wall = np.maximum(soft(thickness - cells.inward, 0.7 / px), soft(2.9 * px - rounded, 0.5 / px))
    septa = soft(np.abs(patch.fractal(rng, 260)) * -1 + 0.035, 25)
    eosin = np.maximum(62 * wall, (55 + 14 * patch.noise(rng, 5)) * septa) + 1.5
    spots = scatter(rng, patch.size, _FLAT.spacing / patch.mpp)
    beside = spots[patch.at(rounded, spots) < 4 * px]
    return Painting(eosin, 6 * wall, (everywhere(rng, patch, _FLAT, spots=beside, turns=_turned(beside)),))


def _turned(spots: Points) -> Points:
    """(n,): a direction for each spot that looks like chance, and needs no lots."""
    return np.asarray((spots[:, 0] * 0.37 + spots[:, 1] * 0.73) % math.pi)


def cartilage(rng: np.random.Generator, patch: Patch) -> Painting:
    """A smooth bluish matrix, darker around clear lacunae that hold one or two cells."""
    px = patch.px
    spots = scatter(rng, patch.size, _CHONDROCYTE.spacing / patch.mpp)
    spots = spots[rng.random(len(spots)) < 0.85]
    spots = with_twins(rng, patch, spots, share=0.4, apart=15)
    capsule, lacuna = np.zeros(patch.shape, np.float32), np.zeros(patch.shape, np.float32)
    for x, y, radius in circles(rng, spots, patch, 7.5):
        cv2.circle(capsule, (x, y), round(radius * 2.1), 1.0, -1, cv2.LINE_AA)
        cv2.circle(lacuna, (x, y), radius, 1.0, -1, cv2.LINE_AA)
    capsule = blurred(capsule, 2.5 * px)
    lacuna = blurred(lacuna, 0.6 * px)
    blue = (26 + 7 * patch.fractal(rng, 160) + 20 * capsule) * (1 - 0.85 * lacuna)
    eosin = (22 + 8 * patch.fractal(rng, 200)) * (1 - 0.7 * lacuna)
    return Painting(eosin, blue, (everywhere(rng, patch, _CHONDROCYTE, spots=spots),))
