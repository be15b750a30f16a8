"""Reports of all slides of an output, and then of the cohort that they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from heatmaps.report.chosen import Chosen, choose_model
from heatmaps.report.cohort import cohort_content, read_reports
from heatmaps.report.cohort_page import cohort_page
from heatmaps.report.content import schema_text
from heatmaps.report.make import TILES_ONLY, OpenSlide, report_step
from heatmaps.report.spent import read_runs
from tiling.commit import canonical
from tiling.output import Output
from tiling.pipeline import Step
from wsi.durable import make_folder, write_file
from wsi.errors import UsageError

COHORT_PAGE, COHORT_CONTENT, SCHEMA = "cohort.html", "cohort.json", "schema.json"


@dataclass(frozen=True, slots=True)
class Reporting:
    """What is to be reported. Made by `plan_reports`."""

    output: Output
    """Where the results are, and the reports go."""
    slides: Mapping[str, Path]
    """Folders of the slides that were cut, by id."""
    chosen: Chosen | None
    """Whose scores; None for tiles alone."""
    step: Step
    """Has one slide's report made."""

    def publish_cohort(self) -> Path:
        """Write the cohort's page and JSON anew, from the slides' reports and the logs; returns the page.

        Raises
        ------
        OutputBusyError, OutputError
            Another run writes there, or nothing can be written.
        """
        folder = self.output.root / "reports" / (self.chosen.name if self.chosen else TILES_ONLY)
        with self.output.lock():
            logs = read_runs(self.output)
            reports, failures = read_reports(self.output, self.slides, self.chosen, logs)
            content = cohort_content(reports, failures, chosen=self.chosen, logs=logs)
            make_folder(folder)
            write_file(folder.parent / SCHEMA, schema_text().encode(), work=self.output.work)
            write_file(folder / COHORT_CONTENT, canonical(content), work=self.output.work)
            page = cohort_page(content, item=folder.name)
            write_file(folder / COHORT_PAGE, page.encode(), work=self.output.work)
        return folder / COHORT_PAGE


def plan_reports(out: Path, *, given: Path | None, open_slide: OpenSlide | None = None) -> Reporting:
    """Find out what there is to report.

    Parameters
    ----------
    out
        The folder of the results.
    given
        The model; see `heatmaps.report.chosen.choose_model`.
    open_slide
        Opens slide files, for tiles without pixels.

    Raises
    ------
    UsageError
        There are no tiles; or see `choose_model`.
    """
    output = Output(out)
    slides = output.slides_with_tiles()
    if not slides:
        raise UsageError("holds no tiles", path=out, action="Run 'microtome tile' first")
    chosen = choose_model(output, given)
    step = report_step(chosen, read_runs(output), open_slide=open_slide)
    return Reporting(output, slides, chosen, step)
