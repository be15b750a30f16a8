"""Options of the command line that say how scores are drawn, beside what they set."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from heatmaps.settings import AS_USUAL, DrawSettings, Format, Ngff, Overlap, Scale
from wsi.errors import UsageError


def add_drawing(parser: ArgumentParser) -> None:
    """All that `DrawSettings` hold."""
    group = parser.add_argument_group("drawing (docs/heatmaps.md)")
    group.add_argument(
        "--format",
        nargs="+",
        choices=[form.value for form in Format],
        help="files beside the overlays and the tiles for QuPath, which are always made; they are added to "
        "those that are there, and with --overwrite replace them (default "
        f"{' '.join(form.value for form in AS_USUAL.formats)})",
    )
    group.add_argument(
        "--ngff",
        choices=[version.value for version in Ngff],
        help=f"version of OME-Zarr; 0.4 for QuPath (default {AS_USUAL.ngff.value})",
    )
    group.add_argument(
        "--overlap",
        choices=[overlap.value for overlap in Overlap],
        help=f"what is shown where tiles overlap (default {AS_USUAL.overlap.value})",
    )
    group.add_argument(
        "--scale",
        choices=[scale.value for scale in Scale],
        help="colours by the number, the same on every slide, or by its rank in the slide (default "
        f"{AS_USUAL.scale.value})",
    )


def drawing(arguments: Namespace) -> DrawSettings:
    """What `add_drawing` says."""
    formats = tuple(Format(name) for name in arguments.format or ()) or AS_USUAL.formats
    if arguments.ngff and Format.OME_ZARR not in formats:
        raise UsageError("--ngff is of OME-Zarr alone", action=f"Give --format {Format.OME_ZARR.value} too")
    return DrawSettings(
        formats,
        Ngff(arguments.ngff) if arguments.ngff else AS_USUAL.ngff,
        Overlap(arguments.overlap) if arguments.overlap else AS_USUAL.overlap,
        Scale(arguments.scale) if arguments.scale else AS_USUAL.scale,
    )
