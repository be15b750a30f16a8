"""What was run: items with their digests, settings and versions, out of what was committed.

Settings are taken by name. What is not named here does not reach a report: a recipe of another program, or of
a later version, may hold whatever it likes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tiling.commit import Commit
from tiling.store import TileStore

_TISSUE = (
    "method", "name", "black_chroma", "black_lightness", "close_radius_um", "colour_sigma_um", "drop_pen",
    "glass_chroma", "glass_lightness", "halo", "max_hole_um2", "max_lightness", "min_area_um2", "min_chroma",
    "min_coloured", "min_saturation", "open_radius_um",
)  # fmt: skip
_STAIN = ("method", "light", "min_density", "percentile")
_ENCODER = ("name", "dim", "input_size", "pooling", "weights")
_LONGEST_HASH = 80


def items_of(store: TileStore, scores: str | None) -> dict[str, Commit]:
    """The items that a report rests on, by name, each sure to be of what is there now.

    Raises
    ------
    UsageError, RecipeError, DamagedError
        See `TileStore.require`.
    """
    found = {"tissue": store.require("tissue"), "tiles": store.tiles}
    if scores is not None:
        commit = store.require(scores)
        for name in commit.recipe.get("inputs", {}):
            found.setdefault(name, store.require(name))
        found[scores] = commit
    return found


def provenance(items: Mapping[str, Commit]) -> dict[str, Any]:
    """What was run, as JSON."""
    tiles, tissue = items["tiles"], items["tissue"]
    return {
        "slide_file": {
            "size_bytes": tiles.recipe["slide"]["size"],
            "sample_sha256": tiles.recipe["slide"]["sample_sha256"],
        },
        "backend": str(tiles.record["backend"]),
        "slide_size_px": [int(side) for side in tiles.record["slide_size"]],
        "resolution": {name: tiles.recipe["resolution"][name] for name in ("x", "y", "source")},
        "tile": {name: tiles.recipe["spec"][name] for name in ("size_px", "mpp", "overlap_px")},
        "tissue": _named(tissue.recipe["method"], _TISSUE),
        "min_tissue": tiles.recipe.get("min_tissue"),
        "selected_regions": "regions" in tiles.recipe,
        "stain": _named(tiles.recipe.get("stain"), _STAIN),
        "stain_fitted": tiles.record.get("stain") is not None,
        "exact": bool(tiles.recipe.get("exact")),
        "encoders": [
            _encoder(name, commit) for name, commit in items.items() if name.startswith("features/")
        ],
        "items": [_item(name, commit) for name, commit in items.items()],
    }


def _encoder(item: str, commit: Commit) -> dict[str, Any]:
    recipe = commit.recipe
    said = _named(recipe.get("encoder"), _ENCODER) or {}
    if len(str(said.get("weights"))) > _LONGEST_HASH:
        del said["weights"]
    return {
        "item": item,
        "settings": said,
        "precision": recipe.get("precision"),
        "context_mpp": recipe.get("context_mpp"),
    }


def _item(name: str, commit: Commit) -> dict[str, Any]:
    found = commit.record.get("versions", {})
    return {
        "item": name,
        "sha256": commit.digest,
        "versions": {str(package): str(version) for package, version in sorted(found.items())},
    }


def _named(settings: object, names: tuple[str, ...]) -> dict[str, Any] | None:
    """Plain values of these names; None where there are no settings at all."""
    if not isinstance(settings, Mapping):
        return None
    plain = (bool, int, float, str, type(None))
    return {name: settings[name] for name in names if isinstance(settings.get(name, ...), plain)}
