"""Telling ink from tissue on a thumbnail.

A marker's stroke has a colour that the stain has not, and lies mostly on bare glass. Colour alone is not
safe: Giemsa is as blue as a blue pen, and dense DAB as black as a black one. So each mark is judged by what
lies around it: a mark that is mostly surrounded by tissue is part of the tissue.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Image = NDArray[np.uint8]

FRINGE_UM = 20.0
"""How far the pale fringe of a stroke reaches."""
LEAST_UM2 = 20_000.0
"""Smaller marks are no strokes: refractile debris glows green and blue along its edges."""
ON_GLASS = 0.5
"""A mark is ink when no more than this share of its surroundings is tissue."""
STAIN_SHARE = 0.2
"""A colour is the stain's when more than this share of its area lies within tissue, or when less than this
share of what is coloured has another hue."""


@dataclass(frozen=True, slots=True)
class Pen:
    """A marker's colour, on OpenCV's HLS scale."""

    hue_from: int
    """First hue, 0 to 180."""
    hue_to: int
    """Last hue; where it is below `hue_from`, the range wraps through 180."""
    chroma: int
    """Least difference of the largest and the smallest channel, 0 to 255."""
    doubtful: bool
    """Whether some stains, or blood, have the colour too."""

    def has_hue(self, hue: Image) -> Mask:
        """Which pixels have the pen's hue, however pale."""
        above, below = hue >= self.hue_from, hue <= self.hue_to
        return above & below if self.hue_from <= self.hue_to else above | below


PENS = (
    Pen(38, 95, chroma=40, doubtful=False),  # green: no haematoxylin, eosin, DAB or Giemsa comes near
    Pen(96, 125, chroma=90, doubtful=True),  # blue: so is Giemsa; haematoxylin stays below 60
    Pen(173, 8, chroma=140, doubtful=True),  # red: eosin and blood reach 130
)


def pen_marks(hue: Image, chroma: Image, tissue: Mask, *, coloured: Mask, mpp: float) -> Mask:
    """Strokes of green, blue and red pen, with the fringe around them.

    Parameters
    ----------
    hue, chroma
        ``(h, w)`` uint8, relative to the glass.
    tissue
        ``(h, w)`` bool: what is not glass, ink included.
    coloured
        ``(h, w)`` bool: what has a colour at all.
    mpp
        Microns per pixel.
    """
    hues = {pen: pen.has_hue(hue) for pen in PENS}
    inks = {pen: hues[pen] & (chroma >= pen.chroma) & tissue for pen in PENS}
    marks = np.zeros_like(tissue)
    for pen in PENS:
        stain = coloured & ~marks
        for other in PENS:
            if pen.doubtful and other.doubtful and other != pen:
                stain &= ~inks[other]  # two doubtful colours do not vouch for each other
        if np.count_nonzero(stain & ~hues[pen]) < STAIN_SHARE * np.count_nonzero(stain):
            continue  # the whole section is of this hue
        # A pale fringe of the same hue is no tissue beside the stroke.
        around = tissue & ~hues[pen]
        strokes = on_glass(inks[pen], around, fringe_px=FRINGE_UM / mpp, least_px=LEAST_UM2 / mpp**2)
        if np.count_nonzero(inks[pen] & ~strokes) <= STAIN_SHARE * np.count_nonzero(inks[pen]):
            marks |= strokes
    return marks


def on_glass(ink: Mask, tissue: Mask, *, fringe_px: float, least_px: float = 0) -> Mask:
    """The marks in `ink`, grown by their fringe, that lie mostly on glass and not within other `tissue`.

    Marks of fewer than `least_px` pixels of ink are left out.
    """
    if not ink.any():
        return ink
    grown = np.asarray(cv2.dilate(ink.astype(np.uint8), disc(fringe_px)))
    count, labels = cv2.connectedComponents(grown, connectivity=8)
    # The ring around each mark carries its label (float32 counts to 2**24 exactly). It is wide, so that
    # what is left of the fringe weighs little in it.
    square = np.ones((6 * max(int(fringe_px), 1) + 1,) * 2, np.uint8)
    spread = np.asarray(cv2.dilate(labels.astype(np.float32), square)).astype(np.int32)
    ring = (labels == 0) & (spread > 0)
    around = np.bincount(spread[ring], minlength=count)
    tissue_around = np.bincount(spread[ring & tissue], minlength=count)
    foreign = tissue_around <= ON_GLASS * around
    foreign &= np.bincount(labels[ink], minlength=count) >= least_px
    foreign[0] = False
    return np.asarray(foreign[labels], np.bool_)


def disc(radius: float) -> Image:
    """A disc-shaped structuring element of odd width; radius in pixels, at least one."""
    reach = max(int(radius), 1)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(x * x + y * y <= max(radius, 1.0) ** 2, np.uint8)
