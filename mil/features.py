"""What the features in a store mean, and reading them as bags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mil.bags import Bag
from tiling.grid import TileSpec
from tiling.store import TileStore
from wsi.errors import UsageError


@dataclass(frozen=True, slots=True)
class FeatureRecipe:
    """Everything that two slides must share for their features to be comparable."""

    encoder: Mapping[str, Any]
    """`Encoder.identity()`."""
    spec: TileSpec
    """Size, resolution and overlap of the tiles."""
    stain: Mapping[str, Any] | None
    """How colours were normalised; None for not at all."""

    @classmethod
    def of(cls, store: TileStore, encoder_key: str) -> FeatureRecipe:
        """The recipe of the features that a store holds; `UsageError` where it holds none of that encoder."""
        encoder = store.require(f"features/{encoder_key}").recipe["encoder"]
        return cls(encoder=encoder, spec=store.spec, stain=store.tiles.recipe["stain"])

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FeatureRecipe:
        """What `as_json` gave."""
        return cls(content["encoder"], TileSpec(**content["spec"]), content["stain"])

    def as_json(self) -> dict[str, Any]:
        """For a model's card."""
        return {
            "encoder": dict(self.encoder),
            "spec": asdict(self.spec),
            "stain": dict(self.stain) if self.stain else None,
        }

    def differences(self, other: FeatureRecipe) -> list[str]:
        """What differs, each as ``setting: ours, not theirs``; empty where features may be mixed."""
        ours, theirs = _flat(self.as_json()), _flat(other.as_json())
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
        differences = FeatureRecipe.of(store, encoder_key).differences(first)
        if differences:
            raise UsageError(
                f"slides {store.slide_id!r} and {stores[0].slide_id!r} were not made alike "
                f"({'; '.join(differences[:3])})",
                path=store.output.root,
                action="Tile and encode all slides with the same settings",
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
