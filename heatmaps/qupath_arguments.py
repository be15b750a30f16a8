"""Options of the command line for what QuPath is given, beside what they set."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from wsi.arguments import add_origin, counted_from

if TYPE_CHECKING:
    from heatmaps.qupath_files import QupathOptions


def add_regions(parser: ArgumentParser) -> None:
    """Which areas become regions, and from where coordinates count."""
    add_origin(parser)
    add_region_rules(parser)


def add_region_rules(parser: ArgumentParser) -> None:
    """Which areas become regions."""
    group = parser.add_argument_group("regions of a heatmap, for QuPath")
    group.add_argument(
        "--region-threshold",
        metavar="SCORE",
        type=float,
        help="regions of a class are where its score is above this (default 0.5: likelier than all others "
        "together; with --overlap max, by one of the tiles there, so that classes may overlap)",
    )
    group.add_argument(
        "--region-area", metavar="UM2", type=float, help="smallest region and hole, in µm² (default 10000)"
    )
    group.add_argument(
        "--region-simplify", metavar="UM", type=float, help="microns an outline may move (default 10)"
    )


def qupath_options(arguments: Namespace) -> QupathOptions:
    """What `add_regions` says."""
    from heatmaps.outlines import RegionRules
    from heatmaps.qupath_files import QupathOptions

    area = arguments.region_area
    chosen = {
        "threshold": arguments.region_threshold,
        "simplify_um": arguments.region_simplify,
        "least_area_um2": area,
        "least_hole_um2": area,
    }
    rules = RegionRules(**{name: value for name, value in chosen.items() if value is not None})
    return QupathOptions(rules, counted_from(arguments))
