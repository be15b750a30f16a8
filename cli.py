"""The command line: one command per verb of the library, and no logic of its own.

Results go to standard output (JSON lines with ``--json``), progress and errors to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi.errors import MicrotomeError, UsageError

if TYPE_CHECKING:
    from mil.encoders import Encoder
    from tiling.cohort import Outcome
    from tiling.cut import CutRecipe, Progress
    from tiling.output import Output
    from tiling.store import TileStore
    from wsi.slide import Slide
    from wsi.tissue import TissueMethod

Arguments = argparse.Namespace

SLIDE_SUFFIXES = {
    ".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".dcm", ".czi",
}  # fmt: skip
"""What a folder given as SLIDE is searched for; a file given by name may be called anything."""

EXIT_CODES = """\
exit codes:
  0    all done (a slide without tissue counts as done)
  1    some slides failed; the others are done
  2    wrong settings, labels or model; nothing was started
  70   a bug in Microtome
  74   the output cannot be written, or the disk is full: run again to resume
  75   another run is writing to the output
  130  interrupted: run again to resume
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if arguments.debug else logging.WARNING,
        format="%(levelname)s %(message)s",
        force=True,
    )
    for noisy in ("tifffile", "PIL", "asyncio", "zarr", "numcodecs"):  # they report what we raise anyway
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    if not arguments.debug:
        warnings.simplefilter("ignore")
    try:
        return int(arguments.run(arguments))
    except MicrotomeError as error:
        if arguments.debug:
            raise
        _say(f"ERROR {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("Interrupted. Run the same command again to go on: what is finished is kept.")
        return 130
    except Exception as error:
        if arguments.debug:
            raise
        _say(f"ERROR unexpected {type(error).__name__}: {error}. Run with --debug and report it")
        return 70


# Commands that look ----------------------------------------------------------------------------------------


def _info(arguments: Arguments) -> int:
    from wsi.slide import describe

    def look(path: Path) -> Mapping[str, Any]:
        with _open_slide(path, arguments) as slide:
            return describe(slide, properties=arguments.properties)

    code = 0
    for path in find_slides(arguments.slides):
        try:
            _print(look(path), arguments)
        except MicrotomeError as error:
            _say(f"ERROR {error}")
            code = 1
    return code


def _verify(arguments: Arguments) -> int:
    from tiling.output import Output, verify

    output, items, broken = Output(arguments.out), 0, 0
    for report in verify(output, full=arguments.full):
        items += 1
        broken += bool(report.damage)
        for damage in report.damage:
            _print({"item": str(report.item), "file": damage.file, "damage": damage.reason}, arguments)
    _print({"items": items, "damaged": broken, "checked": "every byte" if arguments.full else "sizes"}, arguments)
    if broken:
        _say("Run the command that made them again: damaged items are set aside and remade.")
    return 1 if broken else 0


def _doctor(arguments: Arguments) -> int:
    from doctor_room import examine

    return examine(arguments)


# Commands that make ----------------------------------------------------------------------------------------


def _tissue(arguments: Arguments) -> int:
    def work(store: TileStore, slide: Slide, progress: Progress) -> bool:
        return _survey(store, slide, arguments)

    return _over_slides(arguments, work)


def _tile(arguments: Arguments) -> int:
    recipe = _cut_recipe(arguments)

    def work(store: TileStore, slide: Slide, progress: Progress) -> bool:
        return _cut(store, slide, recipe, arguments, progress)

    return _over_slides(arguments, work)


def _encode(arguments: Arguments) -> int:
    encoder = _encoder(arguments, arguments.encoder)

    def work(store: TileStore, progress: Progress) -> bool:
        return _encode_one(store, encoder, arguments, progress)

    return _over_stores(arguments, work)


def _predict(arguments: Arguments) -> int:
    from mil.checkpoint import load_model

    model = load_model(arguments.model)

    def work(store: TileStore, progress: Progress) -> bool:
        return _predict_one(store, model, arguments)

    return _over_stores(arguments, work)


def _heatmap(arguments: Arguments) -> int:
    from mil.checkpoint import load_model

    key = load_model(arguments.model).key

    def work(store: TileStore, progress: Progress) -> bool:
        return _draw_one(store, key, arguments)

    return _over_stores(arguments, work)
