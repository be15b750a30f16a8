"""Options of the command line that say which slides, and how they are opened, beside what they set."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi.annotations import Origin
    from wsi.slide import Slide
    from wsi.tissue import TissueMethod


WHICH = "slide files, folders of them, patterns in quotes ('slides/**/*.svs'), or manifests (.csv)"
"""What can be said wherever slides are named."""


def add_slides(parser: ArgumentParser) -> None:
    """Slide files, and what to do about their resolution."""
    parser.add_argument("slides", metavar="SLIDE", type=Path, nargs="+", help=WHICH)
    add_resolution(parser)


def add_resolution(parser: ArgumentParser) -> None:
    """What to do about slides that state none, or a wrong one."""
    parser.add_argument(
        "--mpp-override", type=float, help="microns per level-0 pixel, whatever the file says"
    )
    parser.add_argument(
        "--trust-objective", action="store_true", help="without mpp, take the objective's nominal figure"
    )


def add_method(parser: ArgumentParser) -> None:
    """How tissue is found."""
    parser.add_argument("--method", choices=["hls", "otsu"], help="how tissue is found (default hls)")


def add_origin(parser: Any) -> None:
    """From where QuPath's coordinates count; to a parser or a group of options."""
    parser.add_argument(
        "--qupath-origin",
        choices=["bounds", "slide"],
        default="bounds",
        help="where QuPath counts from: the corner of the slide's bounds, to which it crops MIRAX and Leica "
        "(default), or the slide's own, if it was opened with --no-crop; our own files say it themselves",
    )


def counted_from(arguments: Namespace) -> Origin:
    """What `add_origin` says."""
    from wsi.annotations import Origin

    return Origin(arguments.qupath_origin)


def open_slide(
    path: Path, arguments: Namespace, mpps: Mapping[Path, float | None] = MappingProxyType({})
) -> Slide:
    """The slide, opened as `add_resolution` says, or first at what a manifest says of it alone (`mpps`)."""
    from wsi.slide import Slide

    mpp = mpps.get(path) or arguments.mpp_override
    return Slide(path, mpp=mpp, trust_objective=arguments.trust_objective)


def tissue_method(arguments: Namespace) -> TissueMethod:
    """What `add_method` says."""
    from wsi.tissue import HlsThresholds, SaturationOtsu

    return SaturationOtsu() if arguments.method == "otsu" else HlsThresholds()
