"""`Batch`: a command's steps over all the slides that its arguments name, told to the user as they end."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from tiling.cohort import Outcome, exit_code
from tiling.manifest import SlideEntry, find_entries, mpp_by_path
from tiling.output import Output
from tiling.pipeline import Pipeline, Step
from tiling.reporter import Reporter
from wsi.arguments import open_slide
from wsi.errors import UsageError


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

    def over_slides(
        self, steps: Sequence[Step], *, check: Callable[[Collection[str]], None] | None = None
    ) -> int:
        """Steps over the slide files in ``arguments.slides``; `check` sees their ids before any work."""
        entries = find_entries(self.arguments.slides)
        if check:
            check(entries)
        return self.over_entries(entries, steps)

    def over_entries(self, entries: Mapping[str, SlideEntry], steps: Sequence[Step]) -> int:
        """Steps over slide files by id, each opened at the resolution that its manifest states, if any."""
        files = {name: entry.path for name, entry in entries.items()}
        return self.over(files, steps, from_slides=True, mpps=mpp_by_path(entries))

    def over_stores(self, steps: Sequence[Step], *, slides: Sequence[Path] | None = None) -> int:
        """Steps over every store with tiles; with the slide files too, where `slides` says where they are."""
        stores = Output(self.arguments.out).slides_with_tiles()
        if not stores:
            raise UsageError("holds no tiles", path=self.arguments.out, action="Run 'microtome tile' first")
        if not slides:
            return self.over(stores, steps, from_slides=False)
        entries = {name: entry for name, entry in find_entries(slides).items() if name in stores}
        if missing := sorted(stores.keys() - entries.keys()):
            raise UsageError(
                f"no slide file of {len(missing)} of its slides, such as {missing[0]!r}",
                path=self.arguments.out,
                action="Give all of them with --slides",
            )
        return self.over_entries(entries, steps)

    def over(
        self,
        slides: Mapping[str, Path],
        steps: Sequence[Step],
        *,
        from_slides: bool,
        mpps: Mapping[Path, float] = MappingProxyType({}),
    ) -> int:
        """Steps over files by slide id; `mpps` are the resolutions that manifests state."""
        opener = partial(open_slide, arguments=self.arguments, mpps=dict(mpps)) if from_slides else None
        pipeline = Pipeline(steps, opener, overwrite=self.arguments.overwrite)
        output = Output(self.arguments.out)

        def report(outcome: Outcome) -> None:
            self.reporter.outcome(outcome, output, model=self.model)

        outcomes = pipeline.run(
            output,
            slides,
            command=self.command,
            show=self.reporter.progress,
            report=report,
            debug=self.arguments.debug,
        )
        self.reporter.failures(outcomes)
        return exit_code(outcomes)
