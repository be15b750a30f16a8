"""`Catalogue`: the slides that can be looked at, and what is known of each from its commits.

The page names slides by their number in this table, and layers by theirs: no text from an address ever
becomes a path.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

from heatmaps.run_logs import Ending, LastRuns
from tiling.commit import COMMIT_FILE, Commit, load_commit
from tiling.output import Output
from tiling.store import TileStore, judges_tiles, scored_models
from wsi.errors import MicrotomeError, UsageError
from wsi.regions import RegionFiles
from wsi.slide import Slide

REVIEW = "review required"
UNCALIBRATED = "the model is not calibrated"
"""Then there is no gate, and a person has to look: the report says so too."""
_NOTHING = frozenset({"failed", "no tissue"})


Stamp = tuple[tuple[str, int, int, int], ...]
"""Of a slide's results; see `Catalogue.stamp`."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a model says of a slide, as its scores' commit has it."""

    model: str
    """Its name."""
    result: str
    """The likeliest class; of a model that judges tiles, the class of most of them."""
    score: float
    """That class's probability, or its share of the tiles."""
    of_tiles: bool
    """Whether the model judges tiles, and `score` is a share."""
    calibrated: bool
    """Whether 0.8 is right in 8 of 10 cases, as far as the model's folds can tell."""
    numbers: Mapping[str, float]
    """Probabilities or shares by class."""
    confidence: float | None = None
    """The gate's; None of an uncalibrated model."""
    decision: str | None = None
    """The gate's: "confirmed" or `REVIEW`, as always without a gate; None of a model that judges tiles."""
    reasons: tuple[str, ...] = ()
    """Why it has to be reviewed."""
    trained_on: bool = False
    """Whether the model learned from this slide: then this is no test of it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One slide of the table."""

    slide_id: str
    status: str
    """What is there of it: "scored", "tiled", "tissue only", "no tissue", "failed", "damaged", or "slide" for
    one without results."""
    reason: str = ""
    """Why it failed, or what is damaged."""
    tissue_mm2: float | None = None
    tiles: int | None = None
    opinions: tuple[Opinion, ...] = ()


@dataclass(frozen=True, slots=True)
class Opening:
    """How slide files without results are opened."""

    mpp: float | None = None
    """Microns per pixel, whatever the file says."""
    trust_objective: bool = False
    """See `wsi.slide.Slide`."""
    mpps: Mapping[Path, float] = field(default_factory=dict)
    """What manifests say of files alone; goes before `mpp`."""

    def of(self, path: Path) -> dict[str, Any]:
        """The arguments of `wsi.slide.Slide` for one of them."""
        return {"mpp": self.mpps.get(path, self.mpp), "trust_objective": self.trust_objective}


@dataclass(eq=False)
class Catalogue:
    """The slides of an output folder, or files without results.

    Made by `open_output` and `open_slides`.
    """

    output: Output | None
    """None for slides without results."""
    files: Mapping[str, Path]
    """Where a user says that slides are, by id."""
    marks: Path | None
    """The folder for marks; None where none can be made."""
    opening: Opening = Opening()
    """For slides without results."""
    annotations: RegionFiles | None = None
    """What is drawn over the slides."""
    _runs: LastRuns | None = field(init=False, default=None)
    _ids: list[str] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def __post_init__(self) -> None:
        self._runs = LastRuns(self.output) if self.output else None

    def refresh(self) -> tuple[Entry, ...]:
        """All slides as they are now. A slide keeps its number; new ones come last."""
        with self._lock:
            known = list(self.files)
            if self.output and self._runs:
                self._runs.refresh()
                failed = {name for name, last in self._runs.endings.items() if last.status in _NOTHING}
                known = sorted({*self.output.slide_ids(), *failed})
            self._ids += [slide_id for slide_id in known if slide_id not in set(self._ids)]
            ids = tuple(self._ids)
        return tuple(self.entry(number) for number in range(len(ids)))

    def __len__(self) -> int:
        return len(self._ids)

    def slide_id(self, number: int) -> str:
        """Of a number of the table; `UsageError` where there is none such."""
        if not 0 <= number < len(self._ids):
            raise UsageError(f"there is no slide {number}")
        return self._ids[number]

    def store(self, number: int) -> TileStore | None:
        """The slide's results; None for slides without."""
        slide_id = self.slide_id(number)
        return None if self.output is None else TileStore(self.output, slide_id)

    def file(self, number: int) -> Path | None:
        """Where the slide itself is, as far as is known; it need not be there, nor be the same."""
        slide_id = self.slide_id(number)
        if slide_id in self.files:
            return self.files[slide_id]
        return self._runs.file(slide_id) if self._runs else None

    def stamp(self, number: int) -> Stamp:
        """What changes when something of the slide's results is made anew, is added or taken away.

        That is the time, size and file number of each commit, which is never written over: its bytes need not
        be read at each question.
        """
        store, found = self.store(number), []
        if store is not None:
            for item in ("tissue", "tiles", *(f"scores/{model}" for model in scored_models(store))):
                with contextlib.suppress(OSError):
                    about = (store.path(item) / COMMIT_FILE).stat()
                    found.append((item, about.st_mtime_ns, about.st_size, about.st_ino))
        return tuple(found)

    def entry(self, number: int) -> Entry:
        """What is known of a slide now."""
        store, slide_id = self.store(number), self.slide_id(number)
        if store is None:
            return Entry(slide_id, "slide")
        return _entry(store, self._runs.endings.get(slide_id) if self._runs else None)


def open_output(root: Path, *, files: Mapping[str, Path], annotations: RegionFiles | None) -> Catalogue:
    """The slides of a folder of results.

    Raises
    ------
    UsageError
        It holds none; or one file of annotations is given for several slides.
    """
    catalogue = Catalogue(Output(root), files, root / "feedback", annotations=annotations)
    found = catalogue.refresh()
    if not found:
        raise UsageError("holds no results", path=root, action="Give the folder that was given to -o")
    if annotations:
        annotations.check([entry.slide_id for entry in found])
    return catalogue


def open_slides(
    files: Mapping[str, Path],
    *,
    marks: Path | None,
    mpp: float | None,
    trust_objective: bool,
    annotations: RegionFiles | None,
    mpps: Mapping[Path, float] = MappingProxyType({}),
) -> Catalogue:
    """Slide files without results; `marks` is the folder for marks that are made on them, if any.

    `mpps` are microns per pixel of some of them, before `mpp`.

    Raises
    ------
    SlideError
        One of them is no slide that could be opened: said before any page is.
    UsageError
        One file of annotations is given for several slides.
    """
    opening = Opening(mpp, trust_objective, mpps)
    for path in files.values():
        Slide(path, **opening.of(path)).close()
    if annotations:
        annotations.check(files)
    folder = marks / "feedback" if marks else None
    catalogue = Catalogue(None, files, folder, opening, annotations)
    catalogue.refresh()
    return catalogue


# What the commits say ------------------------------------------------------------------------------------


def _entry(store: TileStore, last: Ending | None) -> Entry:
    """One line of the table, by the commits alone: whether every file is there is seen on opening it."""
    found = Entry(store.slide_id, "")
    try:
        if tissue := _commit(store, "tissue"):
            area = float(tissue.record["tissue_mm2"])
            found = replace(found, tissue_mm2=area, status="tissue only" if area else "no tissue")
        if tiles := _commit(store, "tiles"):
            found = replace(found, tiles=int(tiles.record["tiles"]), status="tiled")
            opinions = tuple(_opinions(store))
            found = replace(found, opinions=opinions, status="scored" if opinions else "tiled")
    except (MicrotomeError, KeyError, TypeError, ValueError) as error:
        return replace(found, status="damaged", reason=str(getattr(error, "reason", error)))
    if last and last.status in _NOTHING and not found.opinions:
        return replace(found, status=last.status, reason=last.reason)
    return found if found.status else replace(found, status="nothing yet")


def _opinions(store: TileStore) -> Iterator[Opinion]:
    for model in scored_models(store):
        if commit := _commit(store, f"scores/{model}"):
            yield _opinion(model, commit)


def _opinion(model: str, commit: Commit) -> Opinion:
    record, of_tiles = commit.record, judges_tiles(commit)
    numbers = record.get("shares" if of_tiles else "probabilities") or {}
    result = max(numbers, key=lambda name: (numbers[name], name), default="")
    decision = record.get("decision") or {}
    if numbers and not decision and not of_tiles:
        decision = {"status": REVIEW, "reasons": [UNCALIBRATED]}
    return Opinion(
        model,
        result,
        float(numbers.get(result, 0)),
        of_tiles,
        bool(record.get("calibrated")),
        numbers,
        decision.get("confidence"),
        decision.get("status"),
        tuple(decision.get("reasons", ())),
        bool(record.get("trained_on")),
    )


def _commit(store: TileStore, item: str) -> Commit | None:
    folder = store.path(item)
    return load_commit(folder) if folder.is_dir() else None
