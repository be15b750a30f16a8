"""Options of the command line that say which slides, and how they are opened, beside what they set."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsi.slide import Slide
    from wsi.tissue import TissueMethod


def add_slides(parser: ArgumentParser) -> None:
    """Slide files, and what to do about their resolution."""
    parser.add_argument(
        "slides", metavar="SLIDE", type=Path, nargs="+", help="slide files, or folders of them"
    )
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


def open_slide(path: Path, arguments: Namespace) -> Slide:
    """The slide, opened as `add_resolution` says."""
    from wsi.slide import Slide

    return Slide(path, mpp=arguments.mpp_override, trust_objective=arguments.trust_objective)


def tissue_method(arguments: Namespace) -> TissueMethod:
    """What `add_method` says."""
    from wsi.tissue import HlsThresholds, SaturationOtsu

    return SaturationOtsu() if arguments.method == "otsu" else HlsThresholds()
