"""What the features in a store mean, and reading them as bags."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mil.bags import Bag
from tiling.codecs import is_lossy
from tiling.grid import TileSpec
from tiling.store import TileStore
from wsi.errors import UsageError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FeatureRecipe:
    """Everything that two slides must share for their features to be comparable."""

    encoder: Mapping[str, Any]
    """`Encoder.identity()`."""
    spec: TileSpec
    """Size, resolution and overlap of the tiles."""
    stain: Mapping[str, Any] | None
    """How colours were normalised; None for not at all."""
    tissue: Mapping[str, Any]
    """How tissue was found: for cutting other slides likewise. Slides may differ in it and be compared."""
    min_tissue: float
    """Share of a tile that had to be tissue; likewise."""
    quality: Mapping[str, Any]
    """Which tiles were dropped for their quality; likewise."""
    pixels: Mapping[str, Any] | None
    """How pixels were stored; features of those that lost something on the way are not mixed with others."""
    exact: bool
    """Whether compressed tiles were always decoded whole."""

    @classmethod
    def of(cls, store: TileStore, encoder_key: str) -> FeatureRecipe:
        """The recipe of the features that a store holds; `UsageError` where it holds none of that encoder."""
        encoder = store.require(f"features/{encoder_key}").recipe["encoder"]
        return cls.from_json({"encoder": encoder, **store.tiles.recipe})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FeatureRecipe:
        """What `as_json` gave."""
        return cls(
            encoder=content["encoder"],
            spec=TileSpec(**content["spec"]),
            stain=content["stain"],
            tissue=content["tissue"],
            min_tissue=content["min_tissue"],
            quality=content["quality"],
            pixels=content["pixels"],
            exact=content["exact"],
        )

    def as_json(self) -> dict[str, Any]:
        """For a model's card."""
        return {
            "encoder": dict(self.encoder),
            "spec": asdict(self.spec),
            "stain": dict(self.stain) if self.stain else None,
            "tissue": dict(self.tissue),
            "min_tissue": self.min_tissue,
            "quality": dict(self.quality),
            "pixels": dict(self.pixels) if self.pixels else None,
            "exact": self.exact,
        }

    def mixing(self) -> dict[str, Any]:
        """What must be equal for features to be mixed."""
        return {
            "encoder": dict(self.encoder),
            "spec": asdict(self.spec),
            "stain": self.stain,
            "exact": self.exact,
            "pixels": dict(self.pixels) if self.pixels and is_lossy(self.pixels) else "lossless",
        }

    def choice(self) -> dict[str, Any]:
        """What decides which tiles a slide has."""
        return {"tissue": self.tissue, "min_tissue": self.min_tissue, "quality": self.quality}

    def differences(self, other: FeatureRecipe) -> list[str]:
        """What differs, each as ``setting: ours, not theirs``; empty where features may be mixed."""
        ours, theirs = _flat(self.mixing()), _flat(other.mixing())
        return [
            f"{name}: {ours.get(name, 'none')}, not {theirs.get(name, 'none')}"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]


def read_bag(
    store: TileStore, encoder_key: str, *, label: int | None = None, patient: str | None = None
) -> Bag:
    """A slide's bag, from the features that an encoder left in its store.

    Raises
    ------
    UsageError
        There are no such features, or they are unfit for a bag.
    DamagedError, RecipeError
        See `TileStore.features`.
    """
    return Bag(
        slide_id=store.slide_id,
        features=store.features(encoder_key),
        origins=store.origins,
        label=label,
        patient=patient,
    )


def common_recipe(stores: Sequence[TileStore], encoder_key: str) -> FeatureRecipe:
    """The recipe that all these slides share.

    Raises
    ------
    UsageError
        Two slides differ: both are named, and in what.
    """
    if not stores:
        raise UsageError("there are no slides", action="Give at least one that was encoded")
    first = FeatureRecipe.of(stores[0], encoder_key)
    for store in stores[1:]:
        recipe = FeatureRecipe.of(store, encoder_key)
        if differences := recipe.differences(first):
            raise UsageError(
                f"slides {store.slide_id!r} and {stores[0].slide_id!r} were not made alike "
                f"({'; '.join(differences[:3])})",
                path=store.output.root,
                action="Tile and encode all slides with the same settings",
            )
        if recipe.choice() != first.choice():
            _log.warning(
                "tiles of %r and %r were chosen differently; 'microtome run' will choose them as in %r",
                store.slide_id,
                stores[0].slide_id,
                stores[0].slide_id,
            )
    return first


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
