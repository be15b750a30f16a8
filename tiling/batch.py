"""`Batch`: a command's steps over all the slides that its arguments name, told to the user as they end."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tiling.cohort import exit_code
from tiling.output import Output, name_slides
from tiling.pipeline import Step
from tiling.reporter import Reporter
from tiling.workers.run import OpenPool, Watcher, here, run_slides
from tiling.workers.unit import Orders, SlideFile
from wsi.errors import UsageError
from wsi.find import find_slides
from wsi.slide import Slide

MakeSteps = Callable[[], Sequence[Step]]
"""A function that other processes can import, with its settings: a `functools.partial`, in general."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One command's run over many slides; each method returns the exit code."""

    arguments: Namespace
    """With ``out``, ``debug`` and, for steps that can replace items, ``overwrite``."""
    reporter: Reporter
    """Who tells."""
    command: Sequence[str]
    """The words of the command, for the run's log."""
    model: tuple[str, str] | None = None
    """Name and weights of the model whose predictions are told."""
    pool: OpenPool = here
    """Who does the work."""
    threads: int = 1
    """Threads that each of them has."""

    def over_slides(
        self, make_steps: MakeSteps, *, check: Callable[[Collection[str]], None] | None = None
    ) -> int:
        """Steps over the slide files in ``arguments.slides``; `check` sees their ids before any work."""
        slides = name_slides(find_slides(self.arguments.slides))
        if check:
            check(slides)
        return self.over(slides, make_steps, from_slides=True)

    def over_stores(self, make_steps: MakeSteps, *, slides: Sequence[Path] | None = None) -> int:
        """Steps over every store with tiles; with the slide files too, where `slides` says where they are."""
        stores = Output(self.arguments.out).slides_with_tiles()
        if not stores:
            raise UsageError("holds no tiles", path=self.arguments.out, action="Run 'microtome tile' first")
        if not slides:
            return self.over(stores, make_steps, from_slides=False)
        files = {name: path for name, path in name_slides(find_slides(slides)).items() if name in stores}
        if missing := sorted(stores.keys() - files.keys()):
            raise UsageError(
                f"no slide file of {len(missing)} of its slides, such as {missing[0]!r}",
                path=self.arguments.out,
                action="Give all of them with --slides",
            )
        return self.over(files, make_steps, from_slides=True)

    def over(self, slides: Mapping[str, Path], make_steps: MakeSteps, *, from_slides: bool) -> int:
        """Steps over files by slide id."""
        asked, output = self.arguments, Output(self.arguments.out)
        opener = None
        if from_slides:
            opener = partial(open_file, mpp=asked.mpp_override, trust_objective=asked.trust_objective)
        orders = Orders(make_steps, opener, asked.overwrite, self.threads, asked.debug)
        with self.reporter.cohort(len(slides), output, model=self.model) as shown:
            outcomes = run_slides(
                output,
                {slide_id: SlideFile(path) for slide_id, path in slides.items()},
                orders,
                command=self.command,
                pool=self.pool,
                watcher=Watcher(shown.ended, shown.progressed),
            )
        self.reporter.failures(outcomes)
        return exit_code(outcomes)


def open_file(file: SlideFile, *, mpp: float | None, trust_objective: bool) -> Slide:
    """The slide; `mpp` is of all slides that say none of their own."""
    return Slide(file.path, mpp=file.mpp or mpp, trust_objective=trust_objective)
