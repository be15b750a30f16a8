"""Many slides' foreign files into an output: which file is of which slide, and the steps of the import."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tiling.grid import TileSpec
from tiling.interchange.adopt import adopt_coordinates, adopt_features, check_encoder_name
from tiling.interchange.foreign import (
    COORDS,
    FEATURES,
    import_coordinates,
    import_features,
    stated_encoder,
)
from tiling.interchange.hdf5 import open_foreign
from tiling.interchange.trident import PATCHES_END
from tiling.pipeline import Job, Step, survey_step
from tiling.survey import read_mask
from wsi.errors import UsageError
from wsi.tissue import TissueMethod

_Slide = TypeVar("_Slide")


@dataclass(frozen=True, slots=True)
class ForeignSlide:
    """The files of one slide."""

    coordinates: Path
    """Where places and footprint are stated."""
    features: Path | None = None
    """Where features are; in TRIDENT's layout this file may state the places as well."""


def find_foreign(files: Iterable[Path]) -> dict[str, ForeignSlide]:
    """Which slide each file belongs to, by its name, sorted; folders are searched for ``.h5``, also below.

    Raises
    ------
    UsageError
        No file, one that is not HDF5, two of a kind for one slide, or features without a tile size.
    """
    paths = [found for path in files for found in (sorted(path.rglob("*.h5")) if path.is_dir() else [path])]
    if not paths:
        raise UsageError(
            "there is no .h5 file to import", action="Give the files, or a folder that holds them"
        )
    coordinates: dict[str, Path] = {}
    features: dict[str, Path] = {}
    stated: dict[str, Path] = {}
    for path in paths:
        slide_id = unicodedata.normalize("NFC", path.stem.removesuffix(PATCHES_END))
        has_features, states_size = _look(path)
        kind = features if has_features else coordinates
        if (other := kind.setdefault(slide_id, path)) != path:
            raise UsageError(
                f"{other} and {path} are both of slide {slide_id!r}",
                action="Import one tile size and one encoder at a time",
            )
        if has_features and states_size:
            stated[slide_id] = path
    for slide_id in features.keys() - coordinates.keys() - stated.keys():
        raise UsageError(
            "does not say how large a tile is",
            path=features[slide_id],
            action="Give CLAM's patches/<slide>.h5 as well",
        )
    return {
        slide_id: ForeignSlide(coordinates.get(slide_id) or stated[slide_id], features.get(slide_id))
        for slide_id in sorted(coordinates.keys() | features.keys())
    }


def _look(path: Path) -> tuple[bool, bool]:
    """Whether a file holds features, and whether it states a tile size."""
    with open_foreign(path) as file:
        size = COORDS in file and "patch_size" in file[COORDS].attrs
        return FEATURES in file, size


def pick_slides(foreign: Mapping[str, ForeignSlide], slides: Mapping[str, _Slide]) -> dict[str, _Slide]:
    """The slides of what is to be imported; `UsageError` where one is missing."""
    missing = [slide_id for slide_id in foreign if slide_id not in slides]
    if missing:
        raise UsageError(
            f"there is no slide for {len(missing)} of {len(foreign)} files, first {missing[0]!r}",
            path=foreign[missing[0]].coordinates,
            action="Give the slide of the same name: what a tile covers is said in its pixels",
        )
    return {slide_id: slides[slide_id] for slide_id in foreign}


def import_steps(
    foreign: Mapping[str, ForeignSlide],
    *,
    method: TissueMethod,
    encoder: str | None = None,
    spec: TileSpec | None = None,
) -> Sequence[Step]:
    """The steps of ``microtome import``: tissue (for the thumbnail), tiles, and features where there are any.

    Parameters
    ----------
    foreign
        See `find_foreign`.
    method
        How tissue is found.
    encoder
        What the features are called; None: as their files say.
    spec
        See `adopt_coordinates`.

    Raises
    ------
    UsageError
        Only some of the slides have features, or their files call them nothing or differently.
    """

    def adopt(job: Job) -> object:
        slide = job.open_slide()
        file = import_coordinates(foreign[job.store.slide_id].coordinates, levels=slide.levels)
        return adopt_coordinates(slide, job.store, file, spec=spec, mask=read_mask(job.store))

    steps = [survey_step(method), Step("tiles", adopt)]
    paths = {slide_id: one.features for slide_id, one in foreign.items() if one.features}
    if not paths:
        return steps
    if len(paths) != len(foreign):
        missing = next(slide_id for slide_id in foreign if slide_id not in paths)
        raise UsageError(
            f"{len(paths)} of {len(foreign)} slides have features, {missing!r} has none",
            action="Import slides with and without features apart",
        )
    name = check_encoder_name(encoder or _stated_encoder(paths.values()))

    def adopt_rows(job: Job) -> object:
        return adopt_features(job.store, import_features(paths[job.store.slide_id]), name)

    return [*steps, Step(f"features/{name}", adopt_rows)]


def _stated_encoder(paths: Iterable[Path]) -> str:
    """The encoder that all files name."""
    names = {stated_encoder(path) for path in paths}
    if len(names) != 1 or None in names:
        told = ", ".join(sorted(str(name) for name in names if name)) or "none"
        raise UsageError(
            f"the feature files name no one encoder ({told})", action="Say with --encoder what to call it"
        )
    (name,) = names
    return str(name)
