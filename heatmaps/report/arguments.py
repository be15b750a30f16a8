"""Options of ``microtome report``, and what they ask for."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from wsi.arguments import add_resolution, open_slide

if TYPE_CHECKING:
    from heatmaps.report.make import OpenSlide
    from heatmaps.report.run import Reporting


def add_report(parser: ArgumentParser) -> None:
    """Whose scores, and where tiles without pixels are read."""
    parser.add_argument(
        "-m",
        "--model",
        type=Path,
        help="folder of the model whose scores are reported, or its name (default: the only one there is)",
    )
    parser.add_argument(
        "--slides", type=Path, nargs="+", help="slide files or folders: for tiles without pixels"
    )
    add_resolution(parser)


def reporting(arguments: Namespace) -> Reporting:
    """What `add_report` says."""
    from heatmaps.report.run import plan_reports

    return plan_reports(arguments.out, given=arguments.model, open_slide=_opener(arguments))


def _opener(arguments: Namespace) -> OpenSlide | None:
    if not arguments.slides:
        return None
    from tiling.output import name_slides
    from wsi.find import find_slides

    files = name_slides(find_slides(arguments.slides))
    return lambda slide_id: open_slide(files[slide_id], arguments) if slide_id in files else None
