"""Steps over slides: each step has one item made, and a batch survives whatever one slide does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tiling.blocks import Progress
from tiling.cohort import Outcome, StepTime, run_cohort, write_run_log
from tiling.cut import WORKERS, cut_slide
from tiling.ensure import ensure
from tiling.output import Output
from tiling.recipe import CutRecipe
from tiling.selection import EVERYWHERE, SelectionFiles
from tiling.store import TileStore
from tiling.survey import read_mask, survey_slide
from wsi.slide import Slide
from wsi.stopwatch import Stopwatch
from wsi.tissue import TissueMethod


@dataclass(frozen=True, slots=True)
class Job:
    """What a step works on."""

    store: TileStore
    """Where it reads and writes."""
    slide: Slide | None
    """The open slide; None for steps that start from the store."""
    progress: Progress
    """To be called with (done, in all)."""
    times: Stopwatch = field(default_factory=Stopwatch)
    """Told how long each activity takes; that of the slide where there is one."""

    def open_slide(self) -> Slide:
        """The slide, for steps that cannot do without."""
        assert self.slide is not None, "this step needs the slide file"
        return self.slide


@dataclass(frozen=True, slots=True)
class Step:
    """Has one item of a slide made, unless it is there."""

    item: str
    """Name of the item; see `TileStore`."""
    make: Callable[[Job], object]
    """Makes and commits it."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The steps of a command, in order, and how they treat what they find."""

    steps: Sequence[Step]
    open_slide: Callable[[Path], Slide] | None = None
    """How slide files are opened; None where the steps start from the store."""
    overwrite: bool = False
    """Replace items that another recipe made."""

    def run_one(
        self, store: TileStore, path: Path, progress: Progress, *, spent: list[StepTime] | None = None
    ) -> bool:
        """All steps for one slide; True where there was something to do. `spent` gets the time of each."""
        spent = [] if spent is None else spent
        with self.open_slide(path) if self.open_slide else nullcontext() as slide:
            job = Job(store, slide, progress, slide.times if slide else Stopwatch())
            for step in self.steps:
                start, before = time.perf_counter(), job.times.seconds()
                made = ensure(store, step.item, partial(step.make, job))
                seconds = time.perf_counter() - start
                spent.append(StepTime(step.item, made, seconds, job.times.since(before)))
        return any(step.made for step in spent)

    def run(
        self,
        output: Output,
        slides: Mapping[str, Path],
        *,
        command: Sequence[str],
        show: Callable[[str], AbstractContextManager[Progress]],
        report: Callable[[Outcome], None],
        debug: bool = False,
    ) -> list[Outcome]:
        """All steps for every slide, under the output's lock; the run is logged.

        Parameters
        ----------
        output
            Where to write.
        slides
            Files by slide id.
        command
            For the log.
        show
            Gives the progress display of a slide.
        report
            Hears of each outcome at once.
        debug
            Let an unexpected exception through.

        Raises
        ------
        OutputError, OutputBusyError
            Nothing can be written; what is finished stays.
        """
        spent: dict[str, list[StepTime]] = {}

        def work(slide_id: str, path: Path) -> bool:
            with show(slide_id) as progress:
                store = TileStore(output, slide_id, overwrite=self.overwrite)
                return self.run_one(store, path, progress, spent=spent.setdefault(slide_id, []))

        with output.lock():
            output.clean()
            outcomes = run_cohort(slides, work, report=report, debug=debug)
            write_run_log(output, command, outcomes, spent=spent)
        return outcomes


def survey_step(method: TissueMethod) -> Step:
    """Find tissue, and leave an outline to look at."""
    return Step("tissue", lambda job: survey_slide(job.open_slide(), job.store, method))


def cut_step(recipe: CutRecipe, *, files: SelectionFiles = EVERYWHERE, workers: int = WORKERS) -> Step:
    """Cut tiles out of the tissue that the survey found, or of what `files` select of it."""

    def make(job: Job) -> object:
        slide, store = job.open_slide(), job.store
        return cut_slide(
            slide,
            store,
            recipe,
            mask=read_mask(store),
            selection=files.read(slide, store.slide_id),
            workers=workers,
            progress=job.progress,
        )

    return Step("tiles", make)
