"""Laboratories and scanners: what they make of the same tissue.

Sites differ in the hue and strength of both stains and in the glass, as laboratories do (`wsi.specimen` draws
slides of one), and in what follows the tissue: saturation, gamma, black level, sharpness, noise and JPEG.
Patients and slides of a site vary a little around it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from wsi.specimen import EOSIN, HAEMATOXYLIN, Stains
from wsi.texture import CONCENTRATION, Bytes

_LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in what is grey: ITU-R BT.601."""


@dataclass(frozen=True)
class Site:
    """The conditions under which slides are stained and scanned."""

    stains: Stains
    saturation: float
    """Of colours; 1 leaves them alone."""
    gamma: float
    """Exponent of the light that passes, as a share of that through glass."""
    black: float
    """Stray light: what is seen where none passes, as a share of that through glass."""
    blur_um: float
    """Deviation of the point spread, in microns."""
    noise: float
    """Deviation of the sensor's noise, in grey levels."""
    quality: int
    """Of the JPEG tiles."""

    def table(self) -> Bytes:
        """(65536, 3): the colour of each pair of concentrations, haematoxylin in the high byte."""
        grey = np.arange(256)[:, None] * CONCENTRATION
        through_h, through_e = np.exp(-grey * self.stains.haematoxylin), np.exp(-grey * self.stains.eosin)
        light = (through_h[:, None] * through_e[None]).reshape(-1, 3)
        luma = light @ np.array(_LUMA)
        light = luma[:, None] + self.saturation * (light - luma[:, None])
        light = self.black + (1 - self.black) * np.clip(light, 0, 1) ** self.gamma
        return np.asarray(np.rint(self.stains.glass * light), np.uint8)


def draw_site(rng: np.random.Generator) -> Site:
    """Draw the conditions of one site, further apart than those that `wsi.specimen` draws for one slide."""
    return Site(
        stains=Stains(
            glass=np.clip(rng.uniform(230, 246) + rng.normal(0, 2.5, 3), 224, 250),
            haematoxylin=_tinted(HAEMATOXYLIN, rng.normal(0, 0.1, 3)) * math.exp(rng.uniform(-0.4, 0.75)),
            eosin=_tinted(EOSIN, rng.normal(0, 0.1, 3)) * math.exp(rng.uniform(-0.8, 0.5)),
        ),
        saturation=rng.uniform(0.6, 1.35),
        gamma=math.exp(rng.uniform(-0.35, 0.35)),
        black=rng.uniform(0, 0.1),
        blur_um=rng.uniform(0.1, 1.1),
        noise=rng.uniform(0.8, 4.5),
        quality=int(rng.integers(50, 89)),
    )


def vary_site(rng: np.random.Generator, site: Site, *, amount: float = 1.0) -> Site:
    """The same laboratory and scanner on another day: stains and gamma are off by a few per cent."""

    def varied(stain: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        strength = float(np.linalg.norm(stain))
        tinted = _tinted(stain / strength, rng.normal(0, 0.01 * amount, 3))
        return tinted * strength * math.exp(rng.normal(0, 0.05 * amount))

    stains = Stains(site.stains.glass, varied(site.stains.haematoxylin), varied(site.stains.eosin))
    return replace(site, stains=stains, gamma=site.gamma * math.exp(rng.normal(0, 0.015 * amount)))


def _tinted(reference: npt.ArrayLike, shift: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(3,) of length 1: the reference with another hue."""
    tinted = np.clip(np.asarray(reference) + shift, 0.02, None)
    return np.asarray(tinted / np.linalg.norm(tinted), np.float64)


def scan(rng: np.random.Generator, site: Site, *, haematoxylin: Bytes, eosin: Bytes, mpp: float) -> Bytes:
    """(height, width, 3) RGB: the colours that a site gives to two layers of stain, (height, width) each."""
    pixels = site.table()[haematoxylin.astype(np.uint16) * 256 + eosin]
    pixels = cv2.GaussianBlur(pixels, (0, 0), site.blur_um / mpp)
    grain = np.rint(rng.standard_normal(eosin.shape, np.float32) * site.noise).astype(np.int8)
    return np.asarray(cv2.add(pixels, cv2.merge([grain] * 3), dtype=cv2.CV_8U), np.uint8)
