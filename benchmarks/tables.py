"""The tables of `benchmarks/tiling.py`: what is measured, on which tiles, and against which goals."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import openslide

from benchmarks.costs import ROOT, TURN, Cost, Measured, WayError, Whole, Worker, launched
from benchmarks.readers import OPENSLIDE, OURS, PEERS, READERS, Bytes, Task
from benchmarks.report import Report
from benchmarks.worker import DECODERS, FLOAT64_STAIN, OUR_STAIN, STAINS, under
from tiling.cut import select_tiles
from tiling.grid import TileSpec, lay_grid
from tiling.output import Output
from tiling.recipe import CutRecipe
from tiling.store import TileStore
from wsi.slide import Slide
from wsi.tissue import find_tissue

CHECKED = 16
"""Tiles of which the pixels are compared."""
STAIN_TILES = 64
WHOLE_SECONDS = 4.0
"""About what all of a slide takes."""
WHOLE_TIMES = 4
"""Turns are so long that there must be more time for them."""

USUAL = TileSpec(size_px=256, mpp=0.5)


@dataclass(frozen=True)
class Bench:
    """What all tables share."""

    report: Report
    folder: Path
    """For files that are passed from process to process."""
    megapixels: float
    """Of level 0 that a round of reading covers, so that finer tiles are more of them."""

    def task(self, path: Path, spec: TileSpec = USUAL) -> Task:
        """Neighbouring tissue tiles from the middle of the slide."""
        with Slide(path) as slide:
            resolution = slide.require_resolution()
            scale = spec.mpp / resolution.mpp
            if any(1 < level.downsample_x <= scale * 1.01 for level in slide.levels):
                raise WayError(f"{path.name} has a coarser level that would do, and peers read level 0")
            grid = lay_grid(slide.size, resolution, spec)
            found, _ = select_tiles(grid, find_tissue(slide), min_tissue=CutRecipe().min_tissue)
        origins = [(x, y) for x, y in found.tolist()]
        source = round(spec.size_px * scale)
        count = min(len(origins), max(CHECKED, int(self.megapixels * 1e6 / source**2)))
        first = (len(origins) - count) // 2
        return Task(str(path), origins[first : first + count], spec.size_px, spec.mpp, source)

    def way(self, name: str, task: Task, *, unit: float = 1, seconds: float = TURN) -> Worker:
        """One of the readers; a tile counts as `unit`."""
        work = {"name": name, "task": asdict(task), "keep": checked(task), "kept": str(self._kept(name))}
        return Worker("read", seconds=seconds, unit=unit, **work)

    def off(self, task: Task, names: list[str]) -> dict[str, str]:
        """Mean absolute grey levels between what each way read and the truth."""
        right = truth(task, checked(task)).astype(int)
        files = {name: self._kept(name) for name in names}
        return {name: f"{np.abs(np.load(file) - right).mean():.2f}" for name, file in files.items()}

    def _kept(self, name: str) -> Path:
        return self.folder / f"reader-{list(READERS).index(name)}.npy"


def checked(task: Task) -> list[int]:
    """Which tiles are compared."""
    spread = np.linspace(0, len(task.origins) - 1, min(CHECKED, len(task.origins)))
    return [int(index) for index in spread]


def truth(task: Task, chosen: list[int]) -> Bytes:
    """(n, size, size, 3): OpenSlide's pixels, averaged by nothing that any way uses."""
    scale = task.mpp / resolution_of(task.path)
    side = int(np.ceil(task.size_px * scale - 1e-6))
    edges, pixel = np.arange(task.size_px + 1)[:, None] * scale, np.arange(side)
    overlap = np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel)
    weights = np.clip(overlap, 0, None) / scale  # (tile pixels, level-0 pixels)
    tiles = []
    with openslide.OpenSlide(task.path) as slide:
        for index in chosen:
            rgba = np.asarray(slide.read_region(task.origins[index], 0, (side, side)), np.float64)
            tiles.append(np.stack([weights @ rgba[..., i] @ weights.T for i in range(3)], axis=-1))
    return np.rint(tiles).astype(np.uint8)


def resolution_of(path: str) -> float:
    with Slide(path) as slide:
        return slide.require_resolution().mpp


# Tables -----------------------------------------------------------------------------------------------------


def reading_table(bench: Bench, path: Path, spec: TileSpec) -> Measured:
    task, report = bench.task(path, spec), bench.report
    title = f"Reading: {spec.size_px} px at {spec.mpp:.4g} µm, {path.name}, {len(task.origins)} tiles"
    measured = report.take_turns(title, {name: bench.way(name, task) for name in READERS})
    report.table("tiles", measured, base=OPENSLIDE, off=bench.off(task, list(measured.costs)))
    return measured


def reading_goals(report: Report, path: Path, measured: Measured) -> None:
    costs, tile = measured.costs, tile_edge(path)
    if OURS not in costs:
        return
    report.want(f"256 px at 0.5 µm, against OpenSlide: {path.name}", ratio(costs[OPENSLIDE], costs[OURS]), 7)
    others = {name: cost for name, cost in costs.items() if name in PEERS and name != OPENSLIDE}
    if others:
        best = max(others, key=lambda name: others[name].per_cpu)
        text = f"the same, against the fastest peer ({best}): {path.name}"
        report.want(text, ratio(others[best], costs[OURS]), 1 if tile == 256 else 2)


def native_table(bench: Bench, path: Path) -> None:
    measured = reading_table(bench, path, replace(USUAL, mpp=resolution_of(str(path))))
    if OURS in measured.costs:
        found = ratio(measured.costs[OPENSLIDE], measured.costs[OURS])
        bench.report.want(f"256 px at native resolution, against OpenSlide: {path.name}", found, 4)


def decode_table(bench: Bench, path: Path) -> None:
    """Ours reads, decodes, assembles and resizes; the bare decoders have the same JPEG tiles in memory."""
    task, edge, mpp = bench.task(path), tile_edge(path), resolution_of(str(path))
    with Slide(path) as slide:
        megapixels = len(under(task, slide.size, edge)) * edge**2 / 1e6
    half = abs(task.mpp / mpp - 2) < 0.01  # else tiles are decoded whole

    def bare(name: str, reduce: int) -> Worker:
        return Worker("decode", name=name, reduce=reduce, task=asdict(task))

    def ours(task: Task) -> Worker:
        return bench.way(OURS, task, unit=megapixels / len(task.origins))

    ways = {f"{name}, 1/{reduce}": bare(name, reduce) for name in DECODERS for reduce in (1, 2)}
    rows = {1: f"{OURS} at native resolution"}
    ways[rows[1]] = ours(replace(task, size_px=task.source_px, mpp=mpp))
    rows[2 if half else 0] = f"{OURS} at {task.mpp} µm"
    ways[f"{OURS} at {task.mpp} µm"] = ours(task)
    measured = bench.report.take_turns(f"Decoding, source megapixels: {path.name}", ways)
    bench.report.table("MP", measured, base="simplejpeg, 1/1")
    for reduce in (1, 2):
        found = [cost for name, cost in measured.costs.items() if name.endswith(f", 1/{reduce}")]
        if found and rows.get(reduce) in measured.costs:
            fastest = max(found, key=lambda cost: cost.per_cpu)
            text = f"share of bare libjpeg-turbo's rate at 1/{reduce}: {path.name}"
            bench.report.want(text, ratio(fastest, measured.costs[rows[reduce]]), 0.85)


def stain_table(bench: Bench, path: Path) -> None:
    origins, size = bench.task(path).origins, (USUAL.size_px, USUAL.size_px)
    file = bench.folder / "stain.npy"
    with Slide(path) as slide:
        chosen = np.array(origins[:: max(1, len(origins) // STAIN_TILES)])
        np.save(file, slide.read_tiles(chosen, size=size, mpp=USUAL.mpp))

    title = f"Stain normalisation (Macenko): {len(chosen)} tiles of {path.name}"
    measured = bench.report.take_turns(
        title, {name: Worker("stain", name=name, tiles=str(file)) for name in STAINS}
    )
    bench.report.table("MP", measured, base=FLOAT64_STAIN)
    if OUR_STAIN in measured.costs:
        bench.report.want("Macenko, MP per CPU-second", measured.costs[OUR_STAIN].per_cpu, 200)


def whole_table(bench: Bench, path: Path) -> None:
    """From the slide to a committed store: as a user starts it, and without Python's start and imports."""
    tile = [sys.executable, str(ROOT / "cli.py"), "tile", str(path), "--quiet"]

    def command(threads: int) -> Whole:
        def run() -> Cost:
            with tempfile.TemporaryDirectory() as out:
                cost = launched([*tile, "-o", out, "--workers", "0", "--threads", str(threads)])
                output = Output(Path(out))
                return replace(cost, units=len(TileStore(output, output.slide_ids()[0])))

        return Whole(run)

    def library(threads: int) -> Worker:
        return Worker("cut", path=str(path), out=str(bench.folder / f"cut-{threads}"), threads=threads)

    whole, imported = "**`microtome tile`**, {}", "the same without start and imports, {}"
    ways = {
        f"{OPENSLIDE}, reading alone": bench.way(OPENSLIDE, bench.task(path), seconds=WHOLE_SECONDS),
        whole.format("1 thread"): command(1),
        whole.format("2 threads"): command(2),
        imported.format("1 thread"): library(1),
        imported.format("2 threads"): library(2),
    }
    base = next(iter(ways))
    measured = bench.report.take_turns(f"All of `microtome tile`: {path.name}", ways, times=WHOLE_TIMES)
    bench.report.table("tiles", measured, base=base)
    for kind, said in ((whole, "`microtome tile`"), (imported, "the same without start and imports")):
        one, two = (measured.costs.get(kind.format(n)) for n in ("1 thread", "2 threads"))
        if one:
            found = ratio(measured.costs[base], one)
            bench.report.want(f"{said} against OpenSlide reading: {path.name}", found, 4)
        if one and two:
            bench.report.want(
                f"{said}, two threads on the clock: {path.name}", two.per_second / one.per_second, 1.7
            )


def ratio(theirs: Cost, ours: Cost) -> float:
    """How many times as fast ours is, per CPU-second."""
    return ours.per_cpu / theirs.per_cpu


def tile_edge(path: Path) -> int:
    """Pixels along each side of the file's own tiles."""
    with openslide.OpenSlide(path) as slide:
        return int(slide.properties["openslide.level[0].tile-width"])
