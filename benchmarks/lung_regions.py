"""Rectangles on two real lung sections whose content can be seen without being a pathologist.

They were chosen by looking at the pixels at 1 µm, before any model had seen them, except for `CORRECTIONS`,
which answer to what the first model had wrong. Positions are level-0 pixels; no picture is kept here.

The names say what is seen, not a diagnosis: *cells*, nuclei beside nuclei with next to nothing in between;
*fibres*, bundles of pink threads with a few slender nuclei; *no nuclei*, pink shapes of cells that have none,
or hardly any.
"""

from __future__ import annotations

from dataclasses import dataclass

HE1, HE3 = (f"lung-squamous-cell-carcinoma-HE{number}-full" for number in (1, 3))
SLIDES = (HE1, HE3)
"""Both of one patient, in the folder ``slides/whole``."""
CELLS, FIBRES, NO_NUCLEI = "cells", "fibres", "no nuclei"
KINDS = {CELLS: (130, 40, 160), FIBRES: (0, 158, 115), NO_NUCLEI: (230, 120, 0)}
"""With the colours of their outlines."""


@dataclass(frozen=True)
class Rectangle:
    """A region of one kind."""

    slide: str
    name: str
    left: int
    top: int
    right: int
    bottom: int

    @property
    def corners(self) -> list[tuple[int, int]]:
        """From the upper left one, clockwise."""
        return [
            (self.left, self.top),
            (self.right, self.top),
            (self.right, self.bottom),
            (self.left, self.bottom),
        ]


FIRST = (
    Rectangle(HE1, CELLS, 17550, 5200, 17950, 6300),
    Rectangle(HE1, CELLS, 24250, 17850, 25050, 18300),
    Rectangle(HE1, FIBRES, 18150, 5650, 18850, 6200),
    Rectangle(HE1, FIBRES, 14300, 20500, 15000, 21500),
)
"""Two regions of two kinds on one slide: what a user marks to begin with."""

HELD_OUT = (
    Rectangle(HE1, CELLS, 21150, 3250, 21550, 3900),
    Rectangle(HE1, CELLS, 19250, 3550, 19750, 3850),
    Rectangle(HE1, CELLS, 18500, 20700, 19100, 21800),
    Rectangle(HE1, CELLS, 26100, 15200, 26700, 15950),
    Rectangle(HE1, CELLS, 25350, 17100, 26250, 17500),
    Rectangle(HE1, FIBRES, 18350, 8150, 18900, 8700),
    Rectangle(HE1, FIBRES, 15150, 9700, 15850, 10350),
    Rectangle(HE1, FIBRES, 11250, 21200, 11850, 22300),
    Rectangle(HE1, FIBRES, 20250, 14200, 21150, 14950),
    Rectangle(HE1, FIBRES, 20350, 4250, 20800, 4850),
    Rectangle(HE1, NO_NUCLEI, 16400, 7200, 17050, 7550),
    Rectangle(HE3, CELLS, 8550, 6750, 8950, 7500),
    Rectangle(HE3, CELLS, 10600, 8850, 11500, 9550),
    Rectangle(HE3, CELLS, 12850, 9800, 13250, 10300),
    Rectangle(HE3, NO_NUCLEI, 4850, 1900, 5750, 2950),
    Rectangle(HE3, NO_NUCLEI, 2050, 10550, 2800, 11350),
    Rectangle(HE3, NO_NUCLEI, 4650, 9600, 5050, 10500),
)
"""Nothing here is learnt from."""

CORRECTIONS = (
    Rectangle(HE3, NO_NUCLEI, 5050, 3650, 5550, 4150),
    Rectangle(HE3, NO_NUCLEI, 3300, 8850, 3800, 9300),
)
"""Marked after the first model was looked at."""
