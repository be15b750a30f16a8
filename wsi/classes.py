"""Classes as QuPath holds them: their names in one form, and their colours.

A class of QuPath has a name of one line that is not blank; colons part the names of a derived class, and none
of its parts is blank (PathClass of 0.5.1 to 0.7, which throws otherwise, and then the whole file is refused).
A class has a colour, or QuPath refuses the file too; its own classes keep theirs whatever a file says.
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Sequence

Colour = tuple[int, int, int]
"""RGB, 0 to 255."""

_BUILT_IN: dict[str, Colour] = {
    "tumor": (200, 0, 0),
    "tumour": (200, 0, 0),
    "stroma": (150, 200, 150),
    "immune cells": (160, 90, 160),
    "necrosis": (50, 50, 50),
    "other": (255, 200, 0),
    "positive": (200, 50, 50),
    "negative": (90, 90, 180),
    "ignore*": (180, 180, 180),
}
"""QuPath's own, and a spelling more."""
_PALETTE: tuple[Colour, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
)
"""For all other classes, told apart by colour-blind eyes too: Okabe and Ito (2008), without black."""


def tidy(name: str) -> str:
    """The name in the form that QuPath holds; nothing where nothing is left of it.

    >>> tidy("Tumour:poorly  differentiated:")
    'Tumour: poorly differentiated'
    """
    parts = (" ".join(part.split()) for part in name.split(":"))
    return ": ".join(part for part in parts if part)


def held(name: str) -> str:
    """The name, if QuPath holds it as it is; `ValueError` otherwise."""
    if not name or tidy(name) != name:
        raise ValueError(f"QuPath cannot hold a class {name!r}: names are one line, not blank, as 'A: B'")
    return name


def colours_of(names: Sequence[str]) -> list[Colour]:
    """Colours of a model's classes: QuPath's own, or by the place in the model, so alike on every slide."""
    return [
        _BUILT_IN.get(tidy(name).casefold(), _PALETTE[place % len(_PALETTE)])
        for place, name in enumerate(names)
    ]


def colour_of(name: str) -> Colour:
    """The colour of a class of no model: QuPath's own, or a bright one whose hue follows from the name."""
    if built_in := _BUILT_IN.get(tidy(name).casefold()):
        return built_in
    hue = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:2], "big") / 65536
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, 0.85))
    return red, green, blue
