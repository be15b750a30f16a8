"""Options of ``microtome doctor``."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from tiling.arguments import add_tiles
from wsi.arguments import WHICH, add_resolution


def add_doctor(parser: ArgumentParser) -> None:
    """Where to write, what is planned, and how long the speed may be tried."""
    parser.add_argument("out", metavar="OUT", type=Path, nargs="?", default=Path(), help="where to write")
    parser.add_argument(
        "--plan",
        metavar="MANIFEST",
        type=Path,
        nargs="+",
        help=f"tell what these slides take, cut as the options below say: {WHICH}",
    )
    parser.add_argument(
        "--speed-test",
        metavar="SECONDS",
        type=float,
        help="how long to try the speed, at most; 0: not at all (default 10)",
    )
    parser.add_argument("--device", default="auto", help="to encode on: cpu, cuda, ... (default auto)")
    parser.add_argument(
        "--workers", metavar="N", type=int, help="workers that the plan reckons with (default: the cores)"
    )
    add_tiles(parser)
    add_resolution(parser)
