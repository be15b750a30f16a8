"""`Batch`: a command's steps over all the slides that its arguments name, told to the user as they end."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tiling.cohort import exit_code
from tiling.manifest import SlideEntry, find_entries
from tiling.output import Output
from tiling.pipeline import Step
from tiling.reporter import Reporter
from tiling.workers.run import OpenPool, Watcher, here, run_slides
from tiling.workers.unit import Orders
from wsi.describe import describe
from wsi.errors import UsageError
from wsi.slide import Slide

MakeSteps = Callable[[], Sequence[Step]]
"""A function that other processes can import, with its settings: a `functools.partial`, in general."""
OpenFile = Callable[[SlideEntry], Slide]


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
        entries = find_entries(self.arguments.slides)
        if check:
            check(entries)
        return self.over_entries(entries, make_steps)

    def over_entries(self, entries: Mapping[str, SlideEntry], make_steps: MakeSteps) -> int:
        """Steps over slide files by id, each opened at the resolution that its manifest states, if any."""
        asked = self.arguments
        opener = partial(open_file, mpp=asked.mpp_override, trust_objective=asked.trust_objective)
        return self._run(list(entries.values()), make_steps, opener)

    def over_stores(self, make_steps: MakeSteps, *, slides: Sequence[Path] | None = None) -> int:
        """Steps over every store with tiles; with the slide files too, where `slides` says where they are."""
        stores = Output(self.arguments.out).slides_with_tiles()
        if not stores:
            raise UsageError("holds no tiles", path=self.arguments.out, action="Run 'microtome tile' first")
        if not slides:
            return self.over(stores, make_steps)
        entries = {name: entry for name, entry in find_entries(slides).items() if name in stores}
        if missing := sorted(stores.keys() - entries.keys()):
            raise UsageError(
                f"no slide file of {len(missing)} of its slides, such as {missing[0]!r}",
                path=self.arguments.out,
                action="Give all of them with --slides",
            )
        return self.over_entries(entries, make_steps)

    def over(self, stores: Mapping[str, Path], make_steps: MakeSteps) -> int:
        """Steps over the stores of slides, by id."""
        return self._run([SlideEntry(name, path) for name, path in stores.items()], make_steps, None)

    def _run(self, slides: Sequence[SlideEntry], make_steps: MakeSteps, opener: OpenFile | None) -> int:
        asked, output = self.arguments, Output(self.arguments.out)
        orders = Orders(make_steps, opener, asked.overwrite, self.threads, asked.debug)
        with self.reporter.cohort(len(slides), output, model=self.model) as shown:
            outcomes = run_slides(
                output,
                slides,
                orders,
                command=self.command,
                pool=self.pool,
                watcher=Watcher(shown.ended, shown.progressed),
            )
        self.reporter.failures(outcomes)
        return exit_code(outcomes)


def open_file(file: SlideEntry, *, mpp: float | None, trust_objective: bool) -> Slide:
    """The slide; `mpp` is of all slides that say none of their own."""
    return Slide(file.path, mpp=file.mpp or mpp, trust_objective=trust_objective)


def describe_file(file: SlideEntry, *, mpp: float | None, trust_objective: bool) -> dict[str, Any]:
    """What ``microtome info`` says of it; see `wsi.describe`."""
    with open_file(file, mpp=mpp, trust_objective=trust_objective) as slide:
        return describe(slide)
