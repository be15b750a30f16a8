"""Stain normalisation: fitted once per slide, returned as a frozen value, applied tile by tile.

Three published methods share one protocol (`StainMethod`, `Normalizer`), and each aims at a published
reference or at a slide of one's own (``method.aimed_at(pixels)``). `HedJitter` changes stains at random, for
training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tiling.stain.contract import Normalizer, StainError, StainMethod, Unmixer
from tiling.stain.jitter import HedJitter
from tiling.stain.macenko import Macenko, MacenkoNormalizer
from tiling.stain.reinhard import ColourTarget, Reinhard, ReinhardNormalizer
from tiling.stain.unmix import REFERENCE_MAXIMA, REFERENCE_STAINS, StainTarget
from tiling.stain.vahadane import Vahadane, VahadaneNormalizer
from wsi.errors import UsageError

__all__ = [
    "METHODS",
    "REFERENCE_MAXIMA",
    "REFERENCE_STAINS",
    "ColourTarget",
    "HedJitter",
    "Macenko",
    "MacenkoNormalizer",
    "Normalizer",
    "Reinhard",
    "ReinhardNormalizer",
    "StainError",
    "StainMethod",
    "StainTarget",
    "Unmixer",
    "Vahadane",
    "VahadaneNormalizer",
    "method_from_json",
    "normalizer_from_json",
]

METHODS: Mapping[str, type[Macenko] | type[Vahadane] | type[Reinhard]] = {
    method.name.lower(): method for method in (Macenko, Vahadane, Reinhard)
}
"""Each method by its name in lower case, as the command line has it."""

_NORMALIZERS: Mapping[str, type[MacenkoNormalizer] | type[VahadaneNormalizer] | type[ReinhardNormalizer]] = {
    normalizer.name: normalizer for normalizer in (MacenkoNormalizer, VahadaneNormalizer, ReinhardNormalizer)
}


def method_from_json(content: Mapping[str, Any]) -> StainMethod:
    """The method of a stored `StainMethod.as_json`.

    Raises
    ------
    UsageError
        This version knows no such method, or not its settings.
    """
    try:
        return METHODS[str(content["method"]).lower()].from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise _unknown(error) from error


def normalizer_from_json(content: Mapping[str, Any]) -> Normalizer:
    """The fitted normaliser of a stored `Normalizer.as_json`.

    Raises
    ------
    UsageError
        This version knows no such normaliser, or not its numbers.
    """
    try:
        # Early records name no method: there was but one.
        return _NORMALIZERS[content.get("method", Macenko.name)].from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise _unknown(error) from error


def _unknown(error: Exception) -> UsageError:
    return UsageError(
        f"the stain normalisation is not known ({error})", action="Use the version of Microtome that wrote it"
    )
