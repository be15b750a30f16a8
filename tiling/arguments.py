"""Options of the command line that say how slides are cut, beside what they set."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi.arguments import WHICH, add_method, add_origin, counted_from, open_slide, tissue_method
from wsi.errors import MicrotomeError, UsageError

if TYPE_CHECKING:
    from tiling.codecs import TileCodec
    from tiling.grid import TileSpec
    from tiling.recipe import CutRecipe
    from tiling.selection import SelectionFiles
    from tiling.stain import StainMethod
    from wsi.slide import Slide


def add_tiles(parser: ArgumentParser) -> None:
    """All that a `CutRecipe` holds."""
    size = parser.add_argument_group("tiles")
    size.add_argument("--mpp", type=float, help="microns per pixel of a tile (default 0.5)")
    size.add_argument("--tile-size", dest="size_px", type=int, help="pixels along each side (default 256)")
    size.add_argument("--overlap", dest="overlap_px", type=int, help="pixels neighbours share (default 0)")
    size.add_argument(
        "--whole-only", action="store_true", help="no tiles over the slide's edge (default: white is added)"
    )
    size.add_argument(
        "--exact", action="store_true", help="decode whole and average areas, never at half scale"
    )
    stain = parser.add_argument_group("stain")
    stain.add_argument(
        "--stain",
        choices=["macenko", "vahadane", "reinhard", "none"],
        help="normalisation, fitted on each slide (default macenko)",
    )
    stain.add_argument(
        "--stain-reference", metavar="SLIDE", type=Path, help="slide whose colours the others are given"
    )
    choice = parser.add_argument_group("which tiles")
    add_method(parser)
    choice.add_argument("--min-tissue", type=float, help="share of a tile that is tissue (default 0.25)")
    choice.add_argument(
        "--min-sharpness", type=float, help="drop tiles less sharp than this (docs/quality.md; default: none)"
    )
    choice.add_argument("--drop-pen", action="store_true", help="drop tiles with more than a tenth under ink")
    add_pixels(parser)
    add_regions(parser)


def add_pixels(parser: ArgumentParser) -> None:
    """How pixels are kept."""
    group = parser.add_argument_group("storage")
    group.add_argument(
        "--pixels",
        metavar="raw|zstd|jpeg|jpeg:QUALITY",
        help="how pixels are stored (default raw; zstd saves about a quarter, jpeg:90 five sixths at a loss)",
    )
    add_no_pixels(group)


def add_no_pixels(parser: Any) -> None:
    """To keep places only."""
    parser.add_argument(
        "--no-pixels",
        action="store_true",
        help="keep the same tiles without their pixels, which are read from the slide when needed",
    )


def add_regions(parser: ArgumentParser) -> None:
    """Where tiles are wanted."""
    group = parser.add_argument_group("regions")
    what = "GeoJSON (as QuPath exports it) or a PNG mask, or a folder of <slide id>.geojson or .png"
    group.add_argument("--include", metavar="PATH", type=Path, help=f"tiles in these regions only: {what}")
    group.add_argument("--exclude", metavar="PATH", type=Path, help="no tiles in these regions; likewise")
    group.add_argument("--classes", metavar="NAME", nargs="+", help="of --include these classes only")
    group.add_argument(
        "--regions-only", action="store_true", help="the included regions are the tissue: seek none in them"
    )
    add_origin(group)


def add_export(parser: ArgumentParser) -> None:
    """Whose files to write, and where."""
    parser.add_argument("--format", choices=["clam", "trident"], required=True, help="whose layout")
    parser.add_argument("--to", metavar="FOLDER", type=Path, required=True, help="folder for the files")
    parser.add_argument("--encoder", help="key of the features to write too (default: places only)")


def add_foreign(parser: ArgumentParser) -> None:
    """Whose files to read, and what they do not say themselves."""
    parser.add_argument("files", metavar="FILE", type=Path, nargs="+", help=".h5 files, or folders of them")
    parser.add_argument("--slides", type=Path, nargs="+", required=True, help=WHICH)
    parser.add_argument("--encoder", help="what to call the features, if the files do not say")
    parser.add_argument("--tile-size", dest="size_px", type=int, help="nominal pixels of a tile")
    parser.add_argument("--mpp", type=float, help="nominal microns per pixel: with both, slides pool")
    parser.add_argument(
        "--overlap",
        dest="overlap_px",
        type=int,
        help="pixels neighbours share, where files do not say (CLAM)",
    )


def nominal_spec(arguments: Namespace) -> TileSpec | None:
    """What `add_foreign` says of the tiles; None for what the files say."""
    from tiling.grid import TileSpec

    if (arguments.size_px is None) != (arguments.mpp is None):
        raise UsageError("--tile-size and --mpp belong together", action="Give both or neither")
    if arguments.mpp is None and arguments.overlap_px is not None:
        raise UsageError("--overlap is pixels of a nominal tile", action="Give --tile-size and --mpp too")
    try:
        spec = None if arguments.mpp is None else TileSpec(arguments.size_px, arguments.mpp)
        return replace(spec, overlap_px=arguments.overlap_px) if spec and arguments.overlap_px else spec
    except ValueError as error:
        raise UsageError(str(error), action="See 'microtome import --help'") from error


def cut_recipe(arguments: Namespace) -> CutRecipe:
    """What `add_tiles` says; the defaults are the library's own."""
    from tiling.grid import TileSpec
    from tiling.quality import QualityFilter
    from tiling.recipe import CutRecipe

    try:
        spec = replace(TileSpec(), **given(arguments, "size_px", "mpp", "overlap_px", "whole_only"))
        quality = replace(QualityFilter(), **given(arguments, "min_sharpness", "drop_pen"))
        recipe = CutRecipe(spec=spec, tissue=tissue_method(arguments), quality=quality, exact=arguments.exact)
        recipe = replace(recipe, **given(arguments, "min_tissue"), stain=_stain(arguments, recipe))
        return with_pixels(recipe, arguments)
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(str(error), action="See 'microtome tile --help'") from error


def with_pixels(recipe: CutRecipe, arguments: Namespace) -> CutRecipe:
    """The recipe with pixels stored as `add_pixels` says."""
    if arguments.no_pixels:
        return replace(recipe, pixels=None)
    text = getattr(arguments, "pixels", None)  # `run` has no such option
    return recipe if text is None else replace(recipe, pixels=_codec(text))


def selection_files(arguments: Namespace) -> SelectionFiles:
    """What `add_regions` says."""
    from tiling.selection import SelectionFiles
    from wsi.regions import RegionFiles

    origin = counted_from(arguments)
    include = RegionFiles(arguments.include, origin) if arguments.include else None
    exclude = RegionFiles(arguments.exclude, origin) if arguments.exclude else None
    if include is None and (arguments.classes or arguments.regions_only):
        raise UsageError("--classes and --regions-only choose among regions", action="Pass --include too")
    return SelectionFiles(include, exclude, tuple(arguments.classes or ()), arguments.regions_only)


def given(arguments: Namespace, *names: str) -> dict[str, Any]:
    """The options that were given; the others keep the library's own defaults."""
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _stain(arguments: Namespace, recipe: CutRecipe) -> StainMethod | None:
    from tiling.fit import aim_at
    from tiling.stain import METHODS

    if arguments.stain == "none":
        if arguments.stain_reference:
            raise UsageError("--stain-reference has no use with --stain none", action="Leave out one of them")
        return None
    method = METHODS[arguments.stain]() if arguments.stain else recipe.stain
    if arguments.stain_reference is None or method is None:
        return method
    try:
        with _open_reference(arguments) as slide:
            return aim_at(method, slide, spec=recipe.spec, tissue=recipe.tissue, exact=recipe.exact)
    except MicrotomeError as error:  # nothing was started
        raise UsageError(
            f"cannot be the stain's reference: {error.reason}", path=error.path, action=error.action
        ) from error


def _open_reference(arguments: Namespace) -> Slide:
    """The stain's reference, at the resolution that it states; what is overridden is that of the others."""
    from wsi.slide import Slide

    slide = Slide(arguments.stain_reference, trust_objective=arguments.trust_objective)
    if slide.resolution is not None or arguments.mpp_override is None:
        return slide
    slide.close()
    return open_slide(arguments.stain_reference, arguments)


def _codec(text: str) -> TileCodec:
    from tiling.codecs import Jpeg, Raw, Zstd

    name, colon, quality = text.partition(":")
    codecs = {"raw": Raw, "zstd": Zstd, "jpeg": Jpeg}
    is_number = quality.isascii() and quality.isdecimal()
    if name not in codecs or (colon and (name != "jpeg" or not is_number)):
        raise UsageError(f"--pixels is {text!r}", action="Use raw, zstd, jpeg or jpeg:90")
    return Jpeg(int(quality)) if quality else codecs[name]()
