"""Options of ``microtome view``, beside what they set."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from wsi.arguments import WHICH, add_origin, add_resolution, counted_from

if TYPE_CHECKING:
    from heatmaps.viewer.catalogue import Catalogue


def add_viewing(parser: ArgumentParser) -> None:
    """What to look at, and how."""
    what = f"the folder that was given to -o; or, without results, {WHICH}"
    parser.add_argument("shown", metavar="OUT|SLIDE", type=Path, nargs="+", help=what)
    add_resolution(parser)
    parser.add_argument(
        "--slides",
        metavar="PATH",
        type=Path,
        nargs="+",
        help=f"where the slides of OUT are (default: where its runs read them): {WHICH}",
    )
    parser.add_argument(
        "--annotations",
        metavar="PATH",
        type=Path,
        help="GeoJSON to draw over the slide, or a folder of <slide id>.geojson",
    )
    add_origin(parser)
    parser.add_argument(
        "-o", "--out", type=Path, help="with SLIDE: folder for marks (default: none can be made)"
    )
    parser.add_argument("--port", type=int, default=0, help="of 127.0.0.1 (default: one that is free)")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")


def catalogue(arguments: Namespace) -> Catalogue:
    """The slides that `add_viewing` names.

    Raises
    ------
    UsageError
        Both results and slides are named, or options that do not fit them.
    """
    from heatmaps.viewer.catalogue import open_output, open_slides
    from tiling.manifest import find_entries, mpp_by_path
    from wsi.errors import UsageError
    from wsi.regions import RegionFiles

    where, origin = arguments.annotations, counted_from(arguments)
    regions = RegionFiles(where, origin) if where else None
    outputs = [path for path in arguments.shown if is_output(path)]
    if not outputs:
        if arguments.slides:
            raise UsageError("--slides says where those of OUT are", action="Name the slides alone")
        entries = find_entries(arguments.shown)
        return open_slides(
            {name: entry.path for name, entry in entries.items()},
            marks=arguments.out,
            mpp=arguments.mpp_override,
            trust_objective=arguments.trust_objective,
            annotations=regions,
            mpps=mpp_by_path(entries),
        )
    if len(arguments.shown) > 1:
        raise UsageError("results are looked at alone", path=outputs[0], action="Give one OUT, or slides")
    if arguments.out or arguments.mpp_override or arguments.trust_objective:
        raise UsageError(
            "-o, --mpp-override and --trust-objective are for slides without results",
            action="Leave them out: marks go to OUT/feedback, and slides are opened as they were cut",
        )
    known = find_entries(arguments.slides or ())
    files = {name: entry.path for name, entry in known.items()}
    return open_output(outputs[0], files=files, annotations=regions)


def is_output(path: Path) -> bool:
    """Whether a path is a folder of results rather than one of slides."""
    return path.is_dir() and (path / "slides").is_dir()
