"""What reading, normalising and storing tiles costs, against bare OpenSlide, all in one run.

    export OPENBLAS_NUM_THREADS=1  # NumPy's threads would count as work while they wait
    python benchmarks/cut.py       # a slide drawn for the purpose
    python benchmarks/cut.py --slides a.svs b.svs --seconds 90

Prints Markdown: tiles of 256 px at 0.5 µm per CPU-second and per second on the clock, over the same tissue
tiles. Ways take turns, and the best round of each counts, so that other work on the machine disturbs all of
them alike. Reading and staining run on one thread; cutting is the library's own, with its two readers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import openslide
from numpy.typing import NDArray

from tiling.cut import CutRecipe, cut_slide, select_tiles
from tiling.grid import TileSpec, lay_grid
from tiling.output import Output
from tiling.stain import REFERENCE_MAXIMA, REFERENCE_STAINS, Macenko, MacenkoNormalizer
from tiling.store import TileStore
from tiling.versions import versions
from wsi.slide import Slide
from wsi.synthetic import write_huge_slide
from wsi.tissue import find_tissue

SPEC = TileSpec(size_px=256, mpp=0.5)
MOST_TILES = 256
"""Read in one round; cutting always does all of the slide."""
STAIN_TILES = 32
LEAST_ROUNDS = 3

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Cost:
    """Seconds for one unit of work: a tile, or a megapixel."""

    cpu: float
    """All threads together."""
    wall: float
    """On the clock."""


@dataclass(frozen=True)
class Way:
    """One way to do a piece of work, in units that can be compared with the other ways'."""

    name: str
    once: Callable[[], Cost]


# The ways ---------------------------------------------------------------------------------------------------


def reading_ways(path: Path, origins: list[tuple[int, int]]) -> list[Way]:
    """(a) to (c): each reads the same tiles, in the order in which they lie on the slide."""
    size = (SPEC.size_px, SPEC.size_px)
    bare, through_pil, ours = openslide.OpenSlide(path), openslide.OpenSlide(path), Slide(path)
    scale = ours.scale(SPEC.mpp)[0]
    level = bare.get_best_level_for_downsample(scale * 1.01)
    width = round(SPEC.size_px * scale / bare.level_downsamples[level])
    source = (width, width)

    def read_bare(origin: tuple[int, int]) -> Bytes:
        rgba = np.asarray(bare.read_region(origin, level, source))
        return np.asarray(cv2.resize(rgba, size, interpolation=cv2.INTER_AREA)[..., :3], np.uint8)

    def read_through_pil(origin: tuple[int, int]) -> Bytes:
        return np.asarray(through_pil.read_region(origin, level, source).convert("RGB").resize(size))

    def read_ours(origin: tuple[int, int]) -> Bytes:
        return ours.read(*origin, size=size, mpp=SPEC.mpp)

    def way(name: str, read: Callable[[tuple[int, int]], Bytes]) -> Way:
        def all_tiles() -> None:
            for origin in origins:
                read(origin)

        return Way(name, lambda: timed(all_tiles, units=len(origins)))

    return [
        way("(a) OpenSlide + cv2 area", read_bare),
        way("(b) OpenSlide through PIL", read_through_pil),
        way("(c) `Slide.read`", read_ours),
    ]


def cutting_way(path: Path, peaks: list[int]) -> Way:
    """(d) in a process of its own, which also tells its peak memory."""

    def cut() -> Cost:
        with tempfile.TemporaryDirectory() as out:
            words = [sys.executable, __file__, "--slides", str(path), "--cut-into", out]
            found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        peaks.append(found.pop("peak"))
        return Cost(**found)

    return Way("(d) `cut_slide`, all of it", cut)


def cut_and_tell(path: Path, out: Path) -> None:
    """The child's side of `cutting_way`."""
    output = Output(out)
    with Slide(path) as slide, output.lock():
        store = TileStore(output, "slide")
        cost = timed(lambda: cut_slide(slide, store, CutRecipe(spec=SPEC)), units=1)
    tiles = len(store)
    print(json.dumps({"cpu": cost.cpu / tiles, "wall": cost.wall / tiles, "peak": peak_memory()}))


def staining_ways(tiles: Bytes) -> list[Way]:
    """(e): the same tiles, normalised to the same reference."""
    normalizer = Macenko().fit(tiles.reshape(-1, 3))
    difference = np.abs(normalizer(tiles).astype(int) - in_float64(normalizer, tiles))
    assert difference.max() <= 1, "not the same normalisation"
    megapixels = tiles[..., 0].size / 1e6
    ways = [
        Way("float64 NumPy, fitted once", lambda: timed(lambda: in_float64(normalizer, tiles), megapixels)),
        Way("`MacenkoNormalizer`, fitted once", lambda: timed(lambda: normalizer(tiles), megapixels)),
    ]
    try:
        from torchstain.numpy.normalizers import NumpyMacenkoNormalizer
    except ImportError:
        return ways
    theirs = NumpyMacenkoNormalizer()

    def refit_each() -> None:
        for tile in tiles:
            theirs.normalize(tile, stains=False)

    return [*ways, Way("torchstain (NumPy), fits every tile", lambda: timed(refit_each, megapixels))]


def in_float64(normalizer: MacenkoNormalizer, tiles: Bytes) -> Bytes:
    """What the paper says, spelt out: densities, concentrations, scaling, and light again."""
    done = np.empty_like(tiles)
    for tile, target in zip(tiles, done, strict=True):
        density = -np.log((tile.reshape(-1, 3).astype(np.float64) + 1) / normalizer.light)
        concentration = np.linalg.lstsq(np.array(normalizer.stains).T, density.T, rcond=None)[0]
        concentration *= (np.array(REFERENCE_MAXIMA) / np.array(normalizer.maxima))[:, None]
        light = normalizer.light * np.exp(-np.array(REFERENCE_STAINS).T @ concentration)
        target[...] = np.rint(np.clip(light, 0, 255)).astype(np.uint8).T.reshape(tile.shape)
    return done


# Measuring --------------------------------------------------------------------------------------------------


def timed(work: Callable[[], object], units: float) -> Cost:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Cost((time.process_time() - cpu) / units, (time.perf_counter() - wall) / units)


def take_turns(ways: list[Way], *, seconds: float) -> dict[str, Cost]:
    """The least that each way cost in any round; every second round goes backwards."""
    end, rounds = time.monotonic() + seconds, 0
    best: dict[str, Cost] = {}
    while rounds < LEAST_ROUNDS or time.monotonic() < end:
        for way in ways if rounds % 2 == 0 else reversed(ways):
            cost, before = way.once(), best.get(way.name, Cost(np.inf, np.inf))
            best[way.name] = Cost(min(cost.cpu, before.cpu), min(cost.wall, before.wall))
        rounds += 1
    return {way.name: best[way.name] for way in ways}


def peak_memory() -> int:
    """The most bytes that this process held: Linux's own mark, for its ru_maxrss starts at the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(path: Path, *, seconds: float) -> None:
    origins, pixels = tissue_tiles(path)
    peaks: list[int] = []
    ways = [*reading_ways(path, origins[:MOST_TILES]), cutting_way(path, peaks)]
    print_table("tiles", take_turns(ways, seconds=0.8 * seconds))
    print(f"\n(f) Peak memory of (d): {max(peaks) / 2**20:.0f} MiB. (e) Macenko:\n", flush=True)
    print_table("MP", take_turns(staining_ways(pixels), seconds=0.2 * seconds))


def tissue_tiles(path: Path) -> tuple[list[tuple[int, int]], Bytes]:
    """Where the tiles with tissue are, and the pixels of some of them, spread over the slide."""
    size = (SPEC.size_px, SPEC.size_px)
    with Slide(path) as slide:
        resolution = slide.require_resolution()
        grid = lay_grid(slide.size, resolution, SPEC)
        found, _ = select_tiles(grid, find_tissue(slide), min_tissue=CutRecipe().min_tissue)
        origins = [(x, y) for x, y in found.tolist()]
        some = origins[:: max(1, len(origins) // STAIN_TILES)]
        pixels = np.stack([slide.read(*origin, size=size, mpp=SPEC.mpp) for origin in some])
    width, height = slide.size
    print(f"\n### {path.name}: {width} x {height} px of {resolution.mpp:.4g} µm, {len(origins)} tiles\n")
    return origins, pixels


# Printing ---------------------------------------------------------------------------------------------------


def print_table(unit: str, costs: Mapping[str, Cost]) -> None:
    """Rates; ratios are against the first row."""
    first = next(iter(costs.values()))
    print(f"| way | {unit} per CPU-second | ratio | {unit} per second | ratio |\n|---|---|---|---|---|")
    for name, cost in costs.items():
        print(
            f"| {name} | {1 / cost.cpu:.1f} | {first.cpu / cost.cpu:.2f} "
            f"| {1 / cost.wall:.1f} | {first.wall / cost.wall:.2f} |"
        )


def print_machine() -> None:
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    load = os.getloadavg()[0]
    print(f"{model or platform.processor()}, {os.cpu_count()} cores; load {load:.1f} at the start")
    packages = versions("openslide-python", "pillow", "torchstain")
    found = [f"{name} {number}" for name, number in packages.items() if number != "not installed"]
    print(", ".join([f"Python {platform.python_version()}", *found]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--slides", type=Path, nargs="+", metavar="PATH", help="default: one is drawn")
    parser.add_argument("--seconds", type=float, default=60, help="to spend on each slide (default 60)")
    parser.add_argument("--cut-into", type=Path, help=argparse.SUPPRESS)  # how it calls itself for (d)
    options = parser.parse_args()
    if options.cut_into:
        cut_and_tell(options.slides[0], options.cut_into)
        return
    cv2.setNumThreads(1)
    print_machine()
    with tempfile.TemporaryDirectory() as folder:
        slides = options.slides
        if not slides:
            drawn = Path(folder) / "synthetic.svs"
            slides = [write_huge_slide(drawn, size=(40_000, 30_000), tissue_px=12_288)]
        for path in slides:
            measure(path, seconds=options.seconds)


if __name__ == "__main__":
    main()
