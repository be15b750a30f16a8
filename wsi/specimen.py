"""Histology by formula: pieces of tissue, a lesion in them, and their colours under H&E.

Tissue is painted as two stain concentrations, haematoxylin and eosin, and turned into colour by the
Beer-Lambert law, so that stain separation (Macenko et al., ISBI 2009) finds what was put in. A lesion is
crowded with large, dark, irregular nuclei and poor in stroma; every specimen, sick or not, also carries
clusters of lymphocytes, crowded but small, so that darkness alone does not give a lesion away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from wsi.texture import (
    CONCENTRATION,
    Bools,
    Bytes,
    Floats,
    Nucleus,
    Points,
    draw_nuclei,
    fractal,
    noise,
    scatter,
)

MASK_SCALE = 16
"""Level-0 pixels per pixel of the masks of a specimen."""

# Optical density of red, green and blue per unit of stain: the reference vectors of Macenko et al.
HAEMATOXYLIN = (0.5626, 0.7201, 0.4062)
EOSIN = (0.2159, 0.8012, 0.5581)


@dataclass(frozen=True)
class Stains:
    """What a laboratory and a scanner do to a slide's colours."""

    glass: npt.NDArray[np.float64]  # (3,) light that passes bare glass, 0 to 255
    haematoxylin: npt.NDArray[np.float64]  # (3,) optical density per unit
    eosin: npt.NDArray[np.float64]  # (3,)

    def table(self) -> Bytes:
        """(65536, 3): the colour of each pair of concentrations, haematoxylin in the high byte."""
        grey = np.arange(256)[:, None] * CONCENTRATION
        through_h, through_e = np.exp(-grey * self.haematoxylin), np.exp(-grey * self.eosin)
        colour = self.glass * through_h[:, None] * through_e[None]
        return np.rint(colour).astype(np.uint8).reshape(-1, 3)


@dataclass(frozen=True)
class Specimen:
    """What lies where on a slide, in masks of one pixel per `MASK_SCALE` level-0 pixels."""

    size: tuple[int, int]
    """(width, height) of level 0."""
    mpp: float
    """Microns per level-0 pixel: sets how large nuclei are drawn."""
    tissue: Bools
    """(rows, columns)."""
    lesion: Bools
    """(rows, columns), within `tissue`."""


_FIBROBLAST = Nucleus(length=12, width=3.5, spacing=23, turned=0.5, varied=0.2, lobed=0.03, dark=0.62)
_RESIDENT = Nucleus(length=7.5, width=6.5, spacing=21, turned=0.8, varied=0.15, lobed=0.05, dark=0.6)
_EPITHELIAL = Nucleus(length=9.5, width=5.5, spacing=6.5, turned=0, varied=0.12, lobed=0.04, dark=0.64)
_LYMPHOCYTE = Nucleus(length=6, width=5.5, spacing=8, turned=3, varied=0.08, lobed=0.03, dark=0.8)
_TUMOUR = Nucleus(length=11.5, width=9, spacing=13.5, turned=3, varied=0.25, lobed=0.11, dark=0.8)


def largest_parts(mask: Bools, most: int) -> Bools:
    """Keep the `most` largest connected parts of a mask."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    largest = np.argsort(stats[1:, cv2.CC_STAT_AREA], kind="stable")[::-1][:most] + 1
    return np.isin(labels, largest)


def draw_specimen(
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    mpp: float,
    cover: tuple[float, float] = (0.3, 0.48),
) -> Specimen:
    """One to three ragged pieces of tissue; `cover` bounds their share of the glass, but for lost crumbs."""
    shape = (math.ceil(size[1] / MASK_SCALE), math.ceil(size[0] / MASK_SCALE))
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    x, y = x / shape[1] - 0.5, y / shape[0] - 0.5
    pieces = int(rng.integers(1, 4))
    nearest = np.full(shape, np.inf, np.float32)
    for piece in range(pieces):
        along = (piece + 0.5) / pieces - 0.5 + rng.uniform(-0.05, 0.05)
        across, turn = rng.uniform(-0.12, 0.12), rng.uniform(-0.6, 0.6)
        dx, dy = x - along, y - across
        u, v = dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)
        nearest = np.minimum(nearest, np.hypot(u * rng.uniform(0.9, 1.2) * pieces, v * rng.uniform(1, 1.4)))
    shore = 4 * np.clip(np.hypot(x, y) * 0.4 + np.maximum(np.abs(x), np.abs(y)) * 0.6 - 0.4, 0, None)
    height = 0.12 * fractal(rng, shape, max(shape) / 6, 4) - nearest - shore
    tissue = height > np.quantile(height, 1 - rng.uniform(*cover))
    return Specimen(size, mpp, largest_parts(tissue, 3), np.zeros(shape, np.bool_))


def with_lesion(rng: np.random.Generator, specimen: Specimen) -> Specimen:
    """Add one or two compact lesions that take some 15 to 35 per cent of the tissue."""
    padded = np.pad(specimen.tissue, 1).astype(np.uint8)
    depth = np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1], np.float64)
    inner = depth >= 2
    odds = np.where(inner, depth**2, 0).ravel()
    y, x = np.mgrid[0 : depth.shape[0], 0 : depth.shape[1]]
    nearest = np.full(depth.shape, np.inf)
    centres = int(rng.integers(1, 3))
    for spot in rng.choice(odds.size, centres, p=odds / odds.sum()):
        nearest = np.minimum(nearest, np.hypot(y - spot // depth.shape[1], x - spot % depth.shape[1]))
    ragged = nearest + 0.06 * max(depth.shape) * fractal(rng, depth.shape, max(depth.shape) / 10)
    area = rng.uniform(0.18, 0.35) * specimen.tissue.mean() / inner.mean()
    lesion = inner & (ragged < np.quantile(ragged[inner], min(area, 1.0)))
    return replace(specimen, lesion=largest_parts(lesion, centres))


def draw_stains(rng: np.random.Generator) -> Stains:
    """Draw the colours of one slide: laboratories differ in the strength and in the hue of both stains."""

    def vector(reference: tuple[float, float, float], strength: float) -> npt.NDArray[np.float64]:
        tinted = np.clip(np.array(reference) + rng.normal(0, 0.045, 3), 0.02, None)
        return tinted / np.linalg.norm(tinted) * strength

    return Stains(
        glass=rng.uniform(240, 247, 3),
        haematoxylin=vector(HAEMATOXYLIN, rng.uniform(1.0, 1.6)),
        eosin=vector(EOSIN, rng.uniform(0.6, 1.25)),
    )


def paint(rng: np.random.Generator, specimen: Specimen, stains: Stains) -> Bytes:
    """(height, width, 3) RGB of level 0. The two stains are laid at half resolution, nuclei at full."""
    width, height = specimen.size
    half = ((width + 1) // 2, (height + 1) // 2)
    streams = rng.spawn(5)
    tissue = enlarge(specimen.tissue, half) + 0.13 * fractal(streams[0], half[::-1], 12 / specimen.mpp)
    lesion = enlarge(specimen.lesion, half)
    cover, eosin = _stroma(streams[1], lesion, specimen.mpp)
    cover *= np.clip((tissue - 0.5) * 6 + 0.5, 0, 1)
    glands = _place_glands(streams[2], specimen)
    for x, y, radius in np.rint(glands[_are_healthy(specimen, glands)] / 2).astype(int):
        cv2.circle(cover, (x, y), round(radius * 1.25), 1.0, -1, cv2.LINE_AA)
        cv2.circle(eosin, (x, y), round(radius * 1.35), 66.0, -1, cv2.LINE_AA)
        cv2.circle(cover, (x, y), round(radius * 0.75), 0.0, -1, cv2.LINE_AA)
    basic = cover * (10 + 24 * lesion)  # ribosomes make the cytoplasm of a growing cell take up haematoxylin
    pink, blue = (
        cv2.resize(np.clip(layer, 0, 255).astype(np.uint8), (half[0] * 2, half[1] * 2))[:height, :width]
        for layer in (cv2.GaussianBlur(eosin * cover, (0, 0), 0.8), cv2.GaussianBlur(basic, (0, 0), 2))
    )
    blue = cv2.add(blue, _nuclei(streams[3], specimen, cover=cover, glands=glands))
    pixels = stains.table()[blue.astype(np.uint16) * 256 + pink.astype(np.uint16)]
    grain = streams[4].integers(-2, 3, (height, width), np.int8)
    return np.asarray(cv2.add(pixels, cv2.merge([grain] * 3), dtype=cv2.CV_8U), np.uint8)


def enlarge(mask: Bools, size: tuple[int, int]) -> Floats:
    """A specimen's mask at half resolution, where the slide has the given size, with soft edges."""
    whole = cv2.resize(mask.astype(np.float32), None, fx=MASK_SCALE // 2, fy=MASK_SCALE // 2)
    return np.asarray(whole[: size[1], : size[0]], np.float32)


def _at(mask: npt.NDArray[Any], points: Points, scale: int) -> npt.NDArray[Any]:
    """The mask's values under level-0 points."""
    x, y = points.astype(np.int64).T // scale
    return np.asarray(mask[y, x])


def _stroma(rng: np.random.Generator, lesion: Floats, mpp: float) -> tuple[Floats, Floats]:
    """At half resolution, how far each pixel is tissue and not cleft, and its eosin: fibres, pale areas."""
    px = 0.5 / mpp  # half-resolution pixels per micron
    shape = (lesion.shape[0], lesion.shape[1])
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    x += 45 * px * noise(rng, shape, (110 * px, 110 * px))
    y += 45 * px * noise(rng, shape, (110 * px, 110 * px))
    straight = noise(rng, shape, (4 * px, 60 * px))
    strands = cv2.remap(straight, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    strands = strands * (1 - 0.75 * lesion)
    pale = 1 / (1 + np.exp(-6 * (fractal(rng, shape, 160 * px) - 0.7)))
    eosin = 78 + 12 * fractal(rng, shape, 90 * px) + 22 * strands + 5 * noise(rng, shape, (px, px))
    eosin = np.clip(eosin * (1 - 0.55 * pale) - 16 * lesion, 6, 200)
    cover = np.clip(4 * (1.35 + strands), 0.1, 1)
    return cover.astype(np.float32), eosin.astype(np.float32)


def _place_glands(rng: np.random.Generator, specimen: Specimen) -> Points:
    """(n, 3): level-0 x, y and radius of round glands, apart from one another."""
    spots = scatter(rng, specimen.size, 190 / specimen.mpp)
    inner = cv2.erode(specimen.tissue.astype(np.uint8), np.ones((7, 7)), borderValue=0)
    kept = (_at(inner, spots, MASK_SCALE) > 0) & (rng.random(len(spots)) < 0.4)
    radii = 40 / specimen.mpp * rng.uniform(0.6, 1.4, len(spots))
    return np.column_stack([spots, radii])[kept]


def _are_healthy(specimen: Specimen, glands: Points) -> Bools:
    """(n,): which glands lie clear of the lesion."""
    near_lesion = cv2.dilate(specimen.lesion.astype(np.uint8), np.ones((9, 9)))
    return np.asarray(_at(near_lesion, glands[:, :2], MASK_SCALE) == 0)


def _nuclei(rng: np.random.Generator, specimen: Specimen, *, cover: Floats, glands: Points) -> Bytes:
    """(height, width): the haematoxylin of all nuclei.

    Each kind has a stream of its own, and draws lots for the nuclei too that are then left out: outside its
    lesion, a specimen is the same as without one.
    """
    mpp, size = specimen.mpp, specimen.size
    layer = np.zeros((size[1], size[0]), np.uint8)
    crowd = noise(rng, specimen.tissue.shape, (120 / mpp / MASK_SCALE,) * 2)
    streams = rng.spawn(5)
    for kind, stream in zip((_FIBROBLAST, _RESIDENT, _LYMPHOCYTE, _TUMOUR), streams, strict=False):
        spots = scatter(stream, size, kind.spacing / mpp)
        in_lesion = _at(specimen.lesion, spots, MASK_SCALE)
        shown = (_at(cover, spots, 2) > 0.6) & (in_lesion == (kind is _TUMOUR))
        if kind is _LYMPHOCYTE:
            shown &= _at(crowd, spots, MASK_SCALE) > 1.25
        draw_nuclei(
            stream, layer, kind, spots, stream.normal(0, kind.turned, len(spots)), shown=shown, mpp=mpp
        )
    spots, turns, shown = _rings(specimen, glands)
    draw_nuclei(streams[4], layer, _EPITHELIAL, spots, turns, shown=shown, mpp=mpp)
    chromatin = 1 + 0.22 * noise(rng, (size[1], size[0]), (1.3 / mpp, 1.3 / mpp))
    textured = np.clip(layer * chromatin, 0, 255).astype(np.uint8)
    return np.asarray(cv2.GaussianBlur(textured, (0, 0), 0.35 / mpp), np.uint8)


def _rings(specimen: Specimen, glands: Points) -> tuple[Points, Points, Bools]:
    """Where the nuclei around all glands sit, (n, 2); how far each is turned, (n,); which are shown, (n,)."""
    step = _EPITHELIAL.spacing / specimen.mpp
    turns = [np.arange(0, 2 * math.pi, step / radius) for radius in glands[:, 2]]
    angles = np.concatenate([np.zeros(0), *turns])
    gland = np.repeat(np.arange(len(glands)), [len(ring) for ring in turns])
    outward = np.column_stack([np.cos(angles), np.sin(angles)])
    spots = glands[gland, :2] + glands[gland, 2:] * outward
    on_slide = ((spots >= 0) & (spots < specimen.size)).all(axis=1)
    return spots, angles, on_slide & _are_healthy(specimen, glands)[gland]
