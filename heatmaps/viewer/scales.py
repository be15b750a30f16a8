"""Colour scales to choose from: each perceptually uniform and safe for colour-blind eyes.

viridis, magma and inferno are by S. van der Walt and N. Smith (2015, CC0). cividis is by J. R. Nuñez,
C. R. Anderton and R. S. Renslow, "Optimizing colormaps with consideration for color vision deficiency",
PLOS ONE 13 (2018): it looks nearly the same to eyes that lack red or green.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from heatmaps.colour import colour_table

_MORE = {
    "cividis": cv2.COLORMAP_CIVIDIS,
    "magma": cv2.COLORMAP_MAGMA,
    "inferno": cv2.COLORMAP_INFERNO,
}


def colour_tables() -> dict[str, NDArray[np.uint8]]:
    """Scales by name, each (256, 3) uint8 RGB, lowest first; the first is that of all other pictures."""
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    more = {
        name: np.asarray(cv2.applyColorMap(ramp, number)[:, 0, ::-1], np.uint8)
        for name, number in _MORE.items()
    }
    return {"viridis": colour_table(), **more}


def as_text(table: NDArray[np.uint8]) -> str:
    """A table as 256 times six hexadecimal digits, for the page."""
    return np.ascontiguousarray(table).tobytes().hex()
