"""Options of ``microtome report``, and what they ask for."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from wsi.arguments import WHICH, add_resolution, open_slide

if TYPE_CHECKING:
    from heatmaps.report.make import OpenSlide
    from heatmaps.report.run import Reporting
    from tiling.pipeline import Step


def add_report(parser: ArgumentParser) -> None:
    """Whose scores, and where tiles without pixels are read."""
    parser.add_argument(
        "-m",
        "--model",
        type=Path,
        help="folder of the model whose scores are reported, or its name (default: the only one there is)",
    )
    parser.add_argument("--slides", type=Path, nargs="+", help=f"for tiles without pixels: {WHICH}")
    add_resolution(parser)


def reporting(arguments: Namespace) -> Reporting:
    """What `add_report` says."""
    from heatmaps.report.run import plan_reports

    return plan_reports(arguments.out, given=arguments.model, open_slide=_opener(arguments))


def report_steps(arguments: Namespace) -> list[Step]:
    """The step that `reporting` gives, for processes that make it themselves."""
    return [reporting(arguments).step]


def _opener(arguments: Namespace) -> OpenSlide | None:
    if not arguments.slides:
        return None
    from tiling.manifest import find_entries, mpp_by_path

    entries = find_entries(arguments.slides)
    mpps = mpp_by_path(entries)
    return lambda name: open_slide(entries[name].path, arguments, mpps) if name in entries else None
