"""How fast tiles are read, decoded, normalised and cut, beside the libraries that others read slides with.

    pip install -e ".[benchmark]"  # the peers; those that are missing are left out
    python benchmarks/tiling.py --texture a.svs --slides a.svs b.svs
    python benchmarks/tiling.py --only reading --seconds 20 --keep drawn

Prints Markdown. Slides of 40,000 x 30,000 px are drawn, tiled 240 and 256, with the texture of a real one
where it is given. Ways take turns, each in a process of its own, many times a second, so that other work on
the machine disturbs all of them alike. A last column says how far a way's pixels are from
OpenSlide's, averaged in float64 over exactly the tile's footprint: mean absolute grey levels.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Before the script's own folder, where `import tiling` would find this file instead of the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import argparse
import os
import tempfile

from benchmarks.costs import WayError
from benchmarks.readers import READERS
from benchmarks.report import Report, print_machine
from benchmarks.slides import SIZE, draw_texture, read_texture, write_aperio
from benchmarks.tables import (
    USUAL,
    Bench,
    decode_table,
    native_table,
    reading_goals,
    reading_table,
    stain_table,
    tile_edge,
    whole_table,
)
from tiling.grid import TileSpec

TABLES = ("reading", "native", "decode", "stain", "whole")


def main() -> None:
    options = parse()
    packages = dict.fromkeys(reader.package for reader in READERS.values())
    print_machine([*packages, "imagecodecs", "simplejpeg", "pyvips-binary", "torchstain"])
    report = Report(options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(report, Path(folder), options.megapixels)
        drawn = draw(options.keep or Path(folder), options)
        for path in [*drawn, *options.slides]:
            try:
                measure(bench, path, options.only)
            except WayError as error:
                print(f"\n{path.name} is left out: {error}")
    report.print_goals()


def measure(bench: Bench, path: Path, only: list[str]) -> None:
    """All tables of one slide."""
    if "reading" in only:
        reading_goals(bench.report, path, reading_table(bench, path, USUAL))
        if tile_edge(path) == 240:
            reading_table(bench, path, TileSpec(size_px=224, mpp=USUAL.mpp))
    for name, table in (
        ("native", native_table),
        ("decode", decode_table),
        ("stain", stain_table),
        ("whole", whole_table),
    ):
        if name in only:
            table(bench, path)


def draw(folder: Path, options: argparse.Namespace) -> list[Path]:
    """The drawn slides; one that an earlier run left in `--keep` is taken as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    texture, size = None, tuple(options.size)
    slides = []
    for edge in options.drawn:
        name = options.texture.stem if options.texture else "drawn"
        path = folder / f"tiled-{edge}-{size[0]}x{size[1]}-{name}.svs"
        if not path.exists():
            if texture is None:
                texture = read_texture(options.texture) if options.texture else draw_texture()
            unfinished = path.with_suffix(".part")
            write_aperio(unfinished, texture, tile_px=edge, size=size)
            os.replace(unfinished, path)
        slides.append(path)
    return slides


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--slides", type=Path, nargs="+", default=[], metavar="PATH", help="real slides")
    add("--drawn", type=int, nargs="*", default=[240, 256], metavar="EDGE", help="tiles of the drawn slides")
    add("--size", type=int, nargs=2, default=SIZE, metavar=("W", "H"), help="of the drawn slides")
    add("--texture", type=Path, metavar="SLIDE", help="whose tissue the drawn slides show")
    add("--keep", type=Path, metavar="DIR", help="where drawn slides stay")
    add("--only", type=tables, default=list(TABLES), help=f"some of {','.join(TABLES)}")
    add("--seconds", type=float, default=60, help="to spend on each table (default 60)")
    add("--megapixels", type=float, default=160, help="of level 0 in a round of reading (default 160)")
    return parser.parse_args()


def tables(words: str) -> list[str]:
    chosen = words.split(",")
    if unknown := set(chosen) - set(TABLES):
        raise argparse.ArgumentTypeError(f"no table is called {', '.join(sorted(unknown))}")
    return chosen


if __name__ == "__main__":
    main()
