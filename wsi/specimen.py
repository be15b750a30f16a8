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

MASK_SCALE = 16
"""Level-0 pixels per pixel of the masks of a specimen."""
_CONCENTRATION = 1 / 128  # stain units per grey level of a concentration image

# Optical density of red, green and blue per unit of stain: the reference vectors of Macenko et al.
_HAEMATOXYLIN = (0.5626, 0.7201, 0.4062)
_EOSIN = (0.2159, 0.8012, 0.5581)

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stains:
    """What a laboratory and a scanner do to a slide's colours."""

    glass: npt.NDArray[np.float64]  # (3,) light that passes bare glass, 0 to 255
    haematoxylin: npt.NDArray[np.float64]  # (3,) optical density per unit
    eosin: npt.NDArray[np.float64]  # (3,)

    def table(self) -> Bytes:
        """(65536, 3): the colour of each pair of concentrations, haematoxylin in the high byte."""
        grey = np.arange(256)[:, None] * _CONCENTRATION
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


@dataclass(frozen=True)
class _Kind:
    """A kind of nucleus; lengths in microns."""

    length: float
    width: float
    spacing: float  # between neighbours
    turned: float  # spread of the direction of the long axis, in radians from that of the fibres
    varied: float  # relative spread of the size
    lobed: float  # depth of the dents of the outline
    dark: float  # units of haematoxylin


_FIBROBLAST = _Kind(length=12, width=3.5, spacing=23, turned=0.5, varied=0.2, lobed=0.03, dark=0.62)
_RESIDENT = _Kind(length=7.5, width=6.5, spacing=21, turned=0.8, varied=0.15, lobed=0.05, dark=0.6)
_EPITHELIAL = _Kind(length=9.5, width=5.5, spacing=6.5, turned=0, varied=0.12, lobed=0.04, dark=0.64)
_LYMPHOCYTE = _Kind(length=6, width=5.5, spacing=8, turned=3, varied=0.08, lobed=0.03, dark=0.8)
_TUMOUR = _Kind(length=11.5, width=9, spacing=13.5, turned=3, varied=0.25, lobed=0.11, dark=0.8)


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float]) -> Floats:
    """Smooth noise of mean 0 and deviation about 0.7; `cell` is its grain (rows, columns) in pixels."""
    coarse = [math.ceil(n / max(c, 1)) + 3 for n, c in zip(shape, cell, strict=True)]
    grain = rng.standard_normal(coarse, dtype=np.float32)
    scale = [max(c, 1) for c in cell]
    offset = rng.random(2)
    matrix = np.array([[1 / scale[1], 0, 1 + offset[0]], [0, 1 / scale[0], 1 + offset[1]]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(grain, matrix, shape[::-1], flags=flags), np.float32)


def _fractal(rng: np.random.Generator, shape: tuple[int, int], cell: float, octaves: int = 3) -> Floats:
    """Noise upon noise: each octave half as coarse and half as strong."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        total += _noise(rng, shape, (cell / 2**octave,) * 2) / 2**octave
    return total


def _parts(mask: Bools, most: int) -> Bools:
    """Keep the `most` largest connected parts of a mask."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    largest = np.argsort(stats[1:, cv2.CC_STAT_AREA], kind="stable")[::-1][:most] + 1
    return np.isin(labels, largest)


def draw_specimen(rng: np.random.Generator, *, size: tuple[int, int], mpp: float) -> Specimen:
    """One to three ragged pieces of tissue that cover 25 to 50 per cent of the glass."""
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
    height = 0.12 * _fractal(rng, shape, max(shape) / 6, 4) - nearest - shore
    tissue = height > np.quantile(height, 1 - rng.uniform(0.3, 0.48))
    return Specimen(size, mpp, _parts(tissue, 3), np.zeros(shape, np.bool_))


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
    ragged = nearest + 0.06 * max(depth.shape) * _fractal(rng, depth.shape, max(depth.shape) / 10)
    area = rng.uniform(0.18, 0.35) * specimen.tissue.mean() / inner.mean()
    lesion = inner & (ragged < np.quantile(ragged[inner], min(area, 1.0)))
    return replace(specimen, lesion=_parts(lesion, centres))


def draw_stains(rng: np.random.Generator) -> Stains:
    """Draw the colours of one slide: laboratories differ in the strength and in the hue of both stains."""

    def vector(reference: tuple[float, float, float], strength: float) -> npt.NDArray[np.float64]:
        tinted = np.clip(np.array(reference) + rng.normal(0, 0.045, 3), 0.02, None)
        return tinted / np.linalg.norm(tinted) * strength

    return Stains(
        glass=rng.uniform(240, 247, 3),
        haematoxylin=vector(_HAEMATOXYLIN, rng.uniform(1.0, 1.6)),
        eosin=vector(_EOSIN, rng.uniform(0.6, 1.25)),
    )


def paint(rng: np.random.Generator, specimen: Specimen, stains: Stains) -> Bytes:
    """(height, width, 3) RGB of level 0. The two stains are laid at half resolution, nuclei at full."""
    width, height = specimen.size
    half = ((width + 1) // 2, (height + 1) // 2)
    streams = rng.spawn(5)
    tissue = _enlarge(specimen.tissue, half) + 0.13 * _fractal(streams[0], half[::-1], 12 / specimen.mpp)
    lesion = _enlarge(specimen.lesion, half)
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


def _enlarge(mask: Bools, size: tuple[int, int]) -> Floats:
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
    x += 45 * px * _noise(rng, shape, (110 * px, 110 * px))
    y += 45 * px * _noise(rng, shape, (110 * px, 110 * px))
    straight = _noise(rng, shape, (4 * px, 60 * px))
    strands = cv2.remap(straight, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    strands = strands * (1 - 0.75 * lesion)
    pale = 1 / (1 + np.exp(-6 * (_fractal(rng, shape, 160 * px) - 0.7)))
    eosin = 78 + 12 * _fractal(rng, shape, 90 * px) + 22 * strands + 5 * _noise(rng, shape, (px, px))
    eosin = np.clip(eosin * (1 - 0.55 * pale) - 16 * lesion, 6, 200)
    cover = np.clip(4 * (1.35 + strands), 0.1, 1)
    return cover.astype(np.float32), eosin.astype(np.float32)


def _place_glands(rng: np.random.Generator, specimen: Specimen) -> Points:
    """(n, 3): level-0 x, y and radius of round glands, apart from one another."""
    spots = _scatter(rng, specimen.size, 190 / specimen.mpp)
    inner = cv2.erode(specimen.tissue.astype(np.uint8), np.ones((7, 7)), borderValue=0)
    kept = (_at(inner, spots, MASK_SCALE) > 0) & (rng.random(len(spots)) < 0.4)
    radii = 40 / specimen.mpp * rng.uniform(0.6, 1.4, len(spots))
    return np.column_stack([spots, radii])[kept]


def _are_healthy(specimen: Specimen, glands: Points) -> Bools:
    """(n,): which glands lie clear of the lesion."""
    near_lesion = cv2.dilate(specimen.lesion.astype(np.uint8), np.ones((9, 9)))
    return np.asarray(_at(near_lesion, glands[:, :2], MASK_SCALE) == 0)


def _scatter(rng: np.random.Generator, size: tuple[int, int], spacing: float) -> Points:
    """(n, 2): level-0 points about `spacing` pixels apart, none nearer than two fifths of that."""
    columns, rows = (math.ceil(n / spacing) for n in size)
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(columns), np.arange(rows)))
    jitter = rng.uniform(0.2, 0.8, (2, x.size))
    across = x + jitter[0] + 0.5 * (y % 2) - 0.25  # odd rows shifted: no columns to be seen
    spots = np.column_stack([across, y + jitter[1]]) * spacing
    return np.asarray(spots[((spots >= 0) & (spots < size)).all(axis=1)])


def _nuclei(rng: np.random.Generator, specimen: Specimen, *, cover: Floats, glands: Points) -> Bytes:
    """(height, width): the haematoxylin of all nuclei.

    Each kind has a stream of its own, and draws lots for the nuclei too that are then left out: outside its
    lesion, a specimen is the same as without one.
    """
    mpp, size = specimen.mpp, specimen.size
    layer = np.zeros((size[1], size[0]), np.uint8)
    crowd = _noise(rng, specimen.tissue.shape, (120 / mpp / MASK_SCALE,) * 2)
    streams = rng.spawn(5)
    for kind, stream in zip((_FIBROBLAST, _RESIDENT, _LYMPHOCYTE, _TUMOUR), streams, strict=False):
        spots = _scatter(stream, size, kind.spacing / mpp)
        in_lesion = _at(specimen.lesion, spots, MASK_SCALE)
        shown = (_at(cover, spots, 2) > 0.6) & (in_lesion == (kind is _TUMOUR))
        if kind is _LYMPHOCYTE:
            shown &= _at(crowd, spots, MASK_SCALE) > 1.25
        _draw_nuclei(
            stream, layer, kind, spots, stream.normal(0, kind.turned, len(spots)), shown=shown, mpp=mpp
        )
    spots, turns, shown = _rings(specimen, glands)
    _draw_nuclei(streams[4], layer, _EPITHELIAL, spots, turns, shown=shown, mpp=mpp)
    chromatin = 1 + 0.22 * _noise(rng, (size[1], size[0]), (1.3 / mpp, 1.3 / mpp))
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


def _draw_nuclei(
    rng: np.random.Generator,
    layer: Bytes,
    kind: _Kind,
    spots: Points,
    turns: Points,
    *,
    shown: Bools,
    mpp: float,
) -> None:
    """Draw onto `layer` dented ellipses with dark rims, those of `spots` that are `shown`."""
    angle = np.linspace(0, 2 * math.pi, 14, endpoint=False)
    phase = rng.uniform(0, 2 * math.pi, (2, len(spots), 1))
    dents = np.cos(2 * angle + phase[0]) + np.cos(3 * angle + phase[1])
    radii = np.exp(rng.normal(0, kind.varied, (len(spots), 1))) / 2 / mpp * (1 + kind.lobed * dents)
    u, v = radii * kind.length * np.cos(angle), radii * kind.width * np.sin(angle)
    cos, sin = np.cos(turns)[:, None], np.sin(turns)[:, None]
    x, y = spots[:, :1] + u * cos - v * sin, spots[:, 1:] + u * sin + v * cos
    outlines = np.rint(np.stack([x, y], axis=-1) * 16).astype(np.int32)  # cv2 takes sixteenths of a pixel
    dark = kind.dark / _CONCENTRATION * rng.uniform(0.65, 1.2, len(spots))
    for index in np.flatnonzero(shown):
        cv2.fillPoly(layer, [outlines[index]], float(dark[index]), cv2.LINE_8, 4)
        cv2.polylines(layer, [outlines[index]], True, float(dark[index]) * 1.25, 1, cv2.LINE_8, 4)
