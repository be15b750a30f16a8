"""What painting a heatmap costs, beside plain ways to do it.

    python -m benchmarks.heatmaps [--rounds 2] [--channels 12]

*Full resolution* is how CLAM draws (`visHeatmap`; written here from its description, not from its code):
every tile is added to an array of the slide's own pixels, another array counts, one is divided by the
other. That does not fit for whole slides, so it gets a slide of 8,192 px. *Tile by tile* is the plain loop
on the same grid of pixels as ours. *Scatter* adds all pixels of all tiles with `numpy.add.at`. What they give
is compared with ours before anything is timed. Last, *the whole command* `microtome heatmap` draws a million
tiles that overlap, of two classes, with attention and uncertainty: four channels, and 14 numbers a tile. Each
way runs in a process of its own, which tells its time without its imports and the most memory that it ever
held, with them (of the whole command all is told); ways take turns and the quickest round counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from benchmarks.costs import ROOT, launched, peak_memory
from heatmaps.colour import colour
from heatmaps.levels import shrink
from heatmaps.pyramid import write_colours, write_scores
from heatmaps.raster import Heatmap, paint

Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """Tiles on a regular grid over a whole slide, with scores that rise from its top to its bottom."""

    edge: int
    """Pixels along each side of the slide."""
    tile: int
    """Along each side of a tile."""
    stride: int
    """To the next one."""
    channels: int = 1
    """Of scores."""

    @property
    def origins(self) -> NDArray[np.int64]:
        """(n, 2)."""
        steps = np.arange(0, self.edge - self.tile + 1, self.stride)
        return np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)

    @property
    def scores(self) -> Plane:
        """(n, channels)."""
        shape = len(self.origins), self.channels
        return np.sort(np.random.default_rng(0).random(shape, np.float32), axis=0)

    def heatmap(self) -> Heatmap:
        """Not painted yet."""
        return paint(
            self.origins,
            self.scores,
            channels=tuple(f"class {number}" for number in range(self.channels)),
            tile=(self.tile, self.tile),
            stride=(self.stride, self.stride),
            slide_size=(self.edge, self.edge),
            slide_mpp=0.25,
        )


# The ways to a plane ----------------------------------------------------------------------------------------


def ours(task: Task) -> Plane:
    return task.heatmap().channel("class 0")


def full_resolution(task: Task) -> Plane:
    total = np.zeros((task.edge, task.edge))
    count = np.zeros((task.edge, task.edge), np.uint16)
    for (x, y), score in zip(task.origins.tolist(), task.scores[:, 0].tolist(), strict=True):
        total[y : y + task.tile, x : x + task.tile] += score
        count[y : y + task.tile, x : x + task.tile] += 1
    covered = count > 0
    total[covered] /= count[covered]
    total[~covered] = np.nan
    return total.astype(np.float32)


def tile_by_tile(task: Task) -> Plane:
    """Only where tiles begin and end with pixels."""
    heatmap = task.heatmap()
    per, side = int(heatmap.scale), task.tile // int(heatmap.scale)
    assert task.tile % per == task.stride % per == 0
    total, count = np.zeros(heatmap.shape), np.zeros(heatmap.shape)
    for (x, y), score in zip((task.origins // per).tolist(), task.scores[:, 0].tolist(), strict=True):
        total[y : y + side, x : x + side] += score
        count[y : y + side, x : x + side] += 1
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0).astype(np.float32)


def scatter(task: Task) -> Plane:
    """Likewise."""
    heatmap = task.heatmap()
    per, side = int(heatmap.scale), task.tile // int(heatmap.scale)
    total, count = np.zeros(heatmap.shape), np.zeros(heatmap.shape)
    x, y = (task.origins // per).T
    for down in range(side):
        for right in range(side):
            np.add.at(total, (y + down, x + right), task.scores[:, 0])
            np.add.at(count, (y + down, x + right), 1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0).astype(np.float32)


# To files ---------------------------------------------------------------------------------------------------


def our_colours(task: Task, folder: Path) -> None:
    write_colours(folder / "ours.ome.tif", task.heatmap(), "class 0")


def full_colours(task: Task, folder: Path) -> None:
    """A coloured pyramid of the slide's own pixels, deflated as ours is."""
    plane, first = full_resolution(task), True
    with tifffile.TiffWriter(folder / "full.ome.tif", bigtiff=True) as tif:
        while first or max(plane.shape) > 256:
            pixels = colour(plane, vmin=0, vmax=1)
            tif.write(pixels, tile=(256, 256), compression="adobe_deflate", predictor=True, metadata=None)
            plane, first = shrink(plane, (plane.shape[1] // 2, plane.shape[0] // 2)), False


def our_scores(task: Task, folder: Path) -> None:
    write_scores(folder / "ours.ome.tif", task.heatmap())


PLANES: dict[str, Callable[[Task], Plane]] = {
    "ours": ours,
    "full resolution": full_resolution,
    "tile by tile": tile_by_tile,
    "scatter": scatter,
}
FILES: dict[str, Callable[[Task, Path], None]] = {
    "ours": our_colours,
    "full resolution": full_colours,
    "all channels as float32": our_scores,
}


# Measuring --------------------------------------------------------------------------------------------------


def child(words: dict[str, Any]) -> None:
    """One way, once; what it took goes to standard output."""
    task = Task(**words["task"])
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time(), time.perf_counter()
        if words["file"]:
            FILES[words["way"]](task, Path(folder))
        else:
            PLANES[words["way"]](task)
        took = time.process_time() - start[0], time.perf_counter() - start[1]
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    print(json.dumps({"cpu": took[0], "wall": took[1], "peak": peak_memory(), "size": size}))


def ask(way: str, task: Task, *, file: bool) -> dict[str, float]:
    words = json.dumps({"way": way, "task": task.__dict__, "file": file})
    command = [sys.executable, "-m", "benchmarks.heatmaps", "--child", words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def table(title: str, task: Task, ways: list[str], *, file: bool, rounds: int) -> None:
    best: dict[str, dict[str, float]] = {}
    for turn in range(rounds):
        for way in ways if turn % 2 == 0 else reversed(ways):
            found = ask(way, task, file=file)
            if way not in best or found["cpu"] < best[way]["cpu"]:
                best[way] = found
    base = best[ways[0]]
    print(f"\n### {title}\n\n{len(task.origins):,} tiles of {task.tile} px, {task.stride} px apart\n")
    print("| way | CPU-s | times ours | s | peak, MB | times ours |" + (" on disk, MB |" if file else ""))
    print("|---" * (7 if file else 6) + "|")
    for way in ways:
        cost = best[way]
        size = f" {cost['size'] / 1e6:.2f} |" if file else ""
        print(
            f"| {way} | {cost['cpu']:.2f} | {cost['cpu'] / base['cpu']:.1f} | {cost['wall']:.2f} "
            f"| {cost['peak'] / 1e6:,.0f} | {cost['peak'] / base['peak']:.1f} |{size}"
        )


def check() -> None:
    """All ways paint the same."""
    task = Task(edge=4096, tile=256, stride=128)
    plane = ours(task)
    for way in (tile_by_tile, scatter):
        np.testing.assert_allclose(way(task), plane, rtol=1e-6)
    np.testing.assert_allclose(shrink(full_resolution(task), plane.shape[::-1]), plane, rtol=1e-5)


FORMATS = {"as usual": ["ome-tiff"], "all formats": ["ome-tiff", "ome-zarr", "png"]}


def whole_command(side: int) -> None:
    """From the start of the program to its end, hashing and syncing included."""
    from benchmarks.scored_slide import make_scored_slide  # torch is in it, and no part of the other ways

    print(f"\n### The whole command\n\n{side * side:,} tiles that overlap, four channels\n")
    print("| formats | CPU-s | s | peak, MB | on disk, MB |\n|---|---|---|---|---|")
    for name, formats in FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            out, model = make_scored_slide(Path(folder), columns=side, rows=side)
            words = ["heatmap", str(out), "-m", str(model), "--quiet", "--format", *formats]
            cost = launched([sys.executable, str(ROOT / "cli.py"), *words])
            drawn = [path for path in (out / "slides").rglob("heatmaps/*/**/*") if path.is_file()]
            size = sum(path.stat().st_size for path in drawn)
        peak, size = cost.peak / 1e6, size / 1e6
        print(f"| {name} | {cost.cpu:.1f} | {cost.wall:.1f} | {peak:,.0f} | {size:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="of each way; the quickest counts")
    parser.add_argument("--channels", type=int, default=12, help="of the file of scores")
    parser.add_argument("--edge", type=int, default=100_000, help="pixels along the large slide's sides")
    parser.add_argument("--side", type=int, default=1000, help="tiles along each side, for the whole command")
    parser.add_argument("--command", action="store_true", help="the whole command alone")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return
    if options.command:
        whole_command(options.side)
        return
    check()
    small = Task(edge=8192, tile=256, stride=128)
    large = Task(edge=options.edge, tile=200, stride=100)
    rounds = options.rounds
    plain = ["ours", "full resolution", "tile by tile", "scatter"]
    table(f"One channel, {small.edge:,} px", small, plain, file=False, rounds=rounds)
    table(
        f"Coloured pyramid, {small.edge:,} px", small, ["ours", "full resolution"], file=True, rounds=rounds
    )
    on_grid = ["ours", "tile by tile", "scatter"]
    table(f"One channel, {large.edge:,} px", large, on_grid, file=False, rounds=1)
    many = Task(edge=options.edge, tile=200, stride=100, channels=options.channels)
    named = ["all channels as float32"]
    table(f"{many.channels} channels to a file, {many.edge:,} px", many, named, file=True, rounds=1)
    whole_command(options.side)


if __name__ == "__main__":
    main()
