"""What a stain method is: fitted on pixels, it returns a frozen value that normalises tiles."""

from __future__ import annotations

from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from wsi.errors import MicrotomeError

Tiles = NDArray[np.uint8]
"""``(..., rows, columns, 3)`` uint8 RGB."""
Vector = tuple[float, float, float]


class StainError(MicrotomeError, ValueError):
    """The pixels do not show two stains."""


class Normalizer(Protocol):
    """A slide's colours, and the ones they become: a frozen value. Call it on tiles."""

    def __call__(self, tiles: Tiles) -> Tiles:
        """Normalise ``(..., rows, columns, 3)`` uint8 RGB; same shape and dtype, each tile by itself."""

    def as_json(self) -> dict[str, Any]:
        """The fitted numbers, for the record; `normalizer_from_json` gives the same value back."""


@runtime_checkable
class Unmixer(Protocol):
    """A normaliser that knows the slide's stains: Macenko's and Vahadane's, not Reinhard's."""

    def concentrations(self, tiles: Tiles) -> NDArray[np.float32]:
        """How much haematoxylin and eosin each pixel holds: ``(..., rows, columns, 2)`` float32, at least 0.

        The unit is a natural optical density along the slide's own stain vector; no target enters.
        """


class StainMethod(Protocol):
    """How colours are normalised: a frozen recipe, compared and stored by its JSON."""

    @property
    def name(self) -> str:
        """The method's name, as in ``as_json()["method"]``."""

    def fit(self, pixels: NDArray[np.uint8]) -> Normalizer:
        """Find a slide's colours in ``(n, 3)`` uint8 RGB pixels of its tissue, whatever their order.

        Raises
        ------
        StainError
            Too few stained pixels, or no two stains among them.
        """

    def aimed_at(self, reference: NDArray[np.uint8]) -> Self:
        """The same method with another slide as target: ``(n, 3)`` uint8 RGB pixels of that one's tissue.

        Raises
        ------
        StainError
            As by `fit`.
        """

    def as_json(self) -> dict[str, Any]:
        """The recipe; `method_from_json` gives the same value back."""
