"""What painted tissue is made of: noise, scattered points, and nuclei.

Concentrations of a stain are grey levels of `CONCENTRATION` units, so that a layer is an 8-bit image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

CONCENTRATION = 1 / 128
"""Stain units per grey level of a concentration image."""

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Nucleus:
    """A kind of nucleus; lengths in microns."""

    length: float
    width: float
    spacing: float  # between neighbours
    turned: float  # spread of the direction of the long axis, in radians from that of the fibres
    varied: float  # relative spread of the size
    lobed: float  # depth of the dents of the outline
    dark: float  # units of haematoxylin


def noise(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float]) -> Floats:
    """Smooth noise of mean 0 and deviation about 0.7; `cell` is its grain (rows, columns) in pixels."""
    coarse = [math.ceil(n / max(c, 1)) + 3 for n, c in zip(shape, cell, strict=True)]
    grain = rng.standard_normal(coarse, dtype=np.float32)
    scale = [max(c, 1) for c in cell]
    offset = rng.random(2)
    matrix = np.array([[1 / scale[1], 0, 1 + offset[0]], [0, 1 / scale[0], 1 + offset[1]]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(grain, matrix, shape[::-1], flags=flags), np.float32)


def fractal(rng: np.random.Generator, shape: tuple[int, int], cell: float, octaves: int = 3) -> Floats:
    """Noise upon noise: each octave half as coarse and half as strong."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        total += noise(rng, shape, (cell / 2**octave,) * 2) / 2**octave
    return total


def scatter(rng: np.random.Generator, size: tuple[int, int], spacing: float) -> Points:
    """(n, 2): level-0 points about `spacing` pixels apart, none nearer than two fifths of that."""
    columns, rows = (math.ceil(n / spacing) for n in size)
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(columns), np.arange(rows)))
    jitter = rng.uniform(0.2, 0.8, (2, x.size))
    across = x + jitter[0] + 0.5 * (y % 2) - 0.25  # odd rows shifted: no columns to be seen
    spots = np.column_stack([across, y + jitter[1]]) * spacing
    return np.asarray(spots[((spots >= 0) & (spots < size)).all(axis=1)])


def draw_nuclei(
    rng: np.random.Generator,
    layer: Bytes,
    kind: Nucleus,
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
    dark = kind.dark / CONCENTRATION * rng.uniform(0.65, 1.2, len(spots))
    for index in np.flatnonzero(shown):
        cv2.fillPoly(layer, [outlines[index]], float(dark[index]), cv2.LINE_8, 4)
        cv2.polylines(layer, [outlines[index]], True, float(dark[index]) * 1.25, 1, cv2.LINE_8, 4)
