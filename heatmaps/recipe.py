"""What decides a heatmap's files, and what becomes of a heatmap that is there already.

Formats add up: who asks for pictures where pyramids are gets both, drawn anew with the same bytes. Whatever
else is different would change files that somebody may have used, and is refused unless it is to replace them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from heatmaps.qupath_files import QupathOptions
from heatmaps.settings import DrawSettings, Format, Ngff
from tiling.commit import Commit
from tiling.store import TileStore
from wsi.errors import RecipeError

_OVERWRITE = "Use the same settings, or --overwrite to draw it anew"


def heatmap_recipe(
    settings: DrawSettings, qupath: QupathOptions, *, inputs: Mapping[str, str]
) -> dict[str, Any]:
    """All that decides the bytes."""
    return {
        "step": "heatmap",
        "settings": settings.as_json(),
        "qupath": qupath.as_json(),
        "inputs": dict(inputs),
    }


def settle(store: TileStore, item: str, settings: DrawSettings, recipe: Mapping[str, Any]) -> DrawSettings:
    """What is to be drawn: what is asked for, and in which formats it is there already.

    Parameters
    ----------
    store
        The slide. Where it overwrites, what is asked for is all that there will be.
    item
        The heatmap.
    settings, recipe
        What is asked for, and the recipe that it makes.

    Raises
    ------
    RecipeError
        What is there differs in more than its formats, and is not to be replaced; each difference is named.
    DamagedError
        See `TileStore.find`.
    """
    there = store.find(item)
    if there is None or store.overwrite:
        return settings
    if "settings" not in there.recipe:
        raise RecipeError(
            f"the heatmap of slide {store.slide_id!r} was drawn by an earlier version of Microtome, "
            "without what this one adds to it",
            path=store.output.root,
            action="Draw it anew with --overwrite",
        )
    both = _with_formats(settings, there)
    differences = list(_differences(there.recipe, dict(recipe) | {"settings": both.as_json()}))
    if differences:
        raise RecipeError(
            f"the heatmap of slide {store.slide_id!r} was drawn with {'; '.join(differences)}",
            path=store.output.root,
            action=_OVERWRITE,
        )
    return both


def _with_formats(settings: DrawSettings, there: Commit) -> DrawSettings:
    """In the formats that are there, too; what is not asked for stays of its version."""
    old = there.recipe["settings"]
    formats = tuple(Format(name) for name in old["formats"])
    ngff = (
        settings.ngff if Format.OME_ZARR in settings.formats else Ngff(old.get("ngff", settings.ngff.value))
    )
    return replace(settings, formats=(*settings.formats, *formats), ngff=ngff)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """In words, each whole: what is there, and what was asked for."""
    for item in sorted(old["inputs"].keys() | new["inputs"].keys()):
        if old["inputs"].get(item) != new["inputs"].get(item):
            yield f"other {item} than are there now"
    before, after = _flat(old), _flat(new)
    for name in sorted(before.keys() | after.keys()):
        new_format = name == "settings formats" or (name == "settings ngff" and name not in before)
        if before.get(name) != after.get(name) and not new_format:
            yield f"{_NAMES.get(name, name)} {before.get(name)}, not {after.get(name)}"


_NAMES = {
    "settings ngff": "--ngff",
    "settings overlap": "--overlap",
    "settings scale": "--scale",
    "qupath origin": "--qupath-origin",
    "qupath regions threshold": "--region-threshold",
    "qupath regions simplify_um": "--region-simplify",
    "qupath regions least_area_um2": "--region-area",
    "qupath regions least_hole_um2": "--region-area for holes",
}
"""The options that set them."""


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by the way to them, without the inputs."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and key != "inputs":
            found |= _flat(value, f"{prefix}{key} ")
        elif key != "inputs":
            found[f"{prefix}{key}"] = value
    return found
