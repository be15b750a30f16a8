"""Steps over a slide: each has one item made, and says how its work can be shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tiling.blocks import Progress
from tiling.cut import WORKERS, Cutting, begin_cutting
from tiling.recipe import CutRecipe
from tiling.selection import EVERYWHERE, SelectionFiles
from tiling.store import TileStore
from tiling.survey import read_mask, survey_slide
from wsi.slide import Slide
from wsi.stopwatch import Stopwatch
from wsi.tissue import TissueMethod


def unheard(done: int, total: int) -> None:
    """The progress that nobody hears of."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a step works on."""

    store: TileStore
    """Where it reads and writes."""
    slide: Slide | None
    """The open slide; None for steps that start from the store."""
    progress: Progress = unheard
    """To be called with (done, in all)."""
    times: Stopwatch = field(default_factory=Stopwatch)
    """Told how long each activity takes; that of the slide where there is one."""
    threads: int = WORKERS
    """How many it may have at work. They change no byte."""
    helper: str = ""
    """Who makes a part, where it is a part that is made; see `tiling.commit.join`."""
    kept: dict[str, Any] = field(default_factory=dict)
    """What a step keeps: from saying what is missing to making it, from one part of a slide to the next."""

    def open_slide(self) -> Slide:
        """The slide, for steps that cannot do without."""
        assert self.slide is not None, "this step needs the slide file"
        return self.slide


class Parts(Protocol):
    """How a step's work is shared by several processes."""

    def missing(self, job: Job) -> Sequence[int]:
        """Begin the item, and say which of its parts are not there; none where the item is."""

    def make(self, job: Job, part: int) -> None:
        """Make one of them, as `Job.helper`, while others are made elsewhere."""


def nothing_to_prepare() -> None:
    """Of steps that have all they need."""


@dataclass(frozen=True, slots=True)
class Step:
    """Has one item of a slide made, unless it is there."""

    item: str
    """Name of the item; see `TileStore`."""
    make: Callable[[Job], object]
    """Makes and commits it, with the parts that are there already."""
    parts: Parts | None = None
    """How its work can be shared, if it can."""
    wants_gpu: bool = False
    """Whether it is for a worker that has a GPU, where there is one."""
    reads_slide: bool = True
    """Whether a decoder of slides is at work, which may hang: it has to give signs of life."""
    prepare: Callable[[], object] = nothing_to_prepare
    """Loads what it needs, and refuses what is wrong with it: once in each process that does this step."""


def survey_step(method: TissueMethod) -> Step:
    """Find tissue, and leave an outline to look at."""
    return Step("tissue", lambda job: survey_slide(job.open_slide(), job.store, method))


def survey_steps(method: TissueMethod) -> list[Step]:
    """Tissue alone."""
    return [survey_step(method)]


_BEGUN = "cutting"  # what is found and fitted once, for the parts of a slide or for all of it


@dataclass(frozen=True, slots=True)
class CutParts:
    """Tiles by blocks, each a shard."""

    recipe: CutRecipe
    files: SelectionFiles

    def missing(self, job: Job) -> Sequence[int]:
        """Numbers of the blocks that no run has cut."""
        cutting = job.kept[_BEGUN] = self._begin(job)
        if cutting is None:
            return ()
        missing = cutting.blocks(workers=job.threads).missing()
        return [block.start // self.recipe.shard_tiles for block in missing]

    def make(self, job: Job, part: int) -> None:
        """Cut one block."""
        if _BEGUN not in job.kept:
            job.kept[_BEGUN] = self._begin(job)
        cutter = job.kept[_BEGUN].blocks(workers=job.threads)
        start = part * self.recipe.shard_tiles
        cutter.cut_blocks([block for block in cutter.missing() if block.start == start], job.progress)

    def all(self, job: Job) -> None:
        """Cut what is missing, and commit the tiles."""
        cutting = job.kept.pop(_BEGUN) if _BEGUN in job.kept else self._begin(job)
        if cutting is not None:
            cutting.finish(workers=job.threads, progress=job.progress)

    def _begin(self, job: Job) -> Cutting | None:
        slide, store = job.open_slide(), job.store
        return begin_cutting(
            slide,
            store,
            self.recipe,
            mask=read_mask(store),
            selection=self.files.read(slide, store.slide_id),
            workers=job.threads,
            helper=job.helper,
        )


def cut_step(recipe: CutRecipe, *, files: SelectionFiles = EVERYWHERE) -> Step:
    """Cut tiles out of the tissue that the survey found, or of what `files` select of it."""
    parts = CutParts(recipe, files)
    return Step("tiles", parts.all, parts)
