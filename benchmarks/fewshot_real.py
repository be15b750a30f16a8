"""Few-shot learning on real slides, by learners that have seen drawn tissue only.

    python -m benchmarks.fewshot_real [--out fewshot-real-out] [--device auto] [--write]

Two questions, each with learners of its own, for their tiles have to be cut alike: `fewshot train` learns
from drawn slides of 22 tissues (`wsi.tissue_cohort`), and no real slide is among them.

1. *Stains.* Of the small real sections it is certain whether they are stained with H&E or not, and a tile has
   its section's stain. `fewshot evaluate` draws tasks from them; no case is on both sides of a task.
2. *Marked regions.* On two whole sections of one lung rectangles are marked (`benchmarks.lung_regions`).
   `adapt` learns from the first of them, and is held against others, on the marked slide and on one that it
   never saw. Then what is wrong is marked, and it adapts again.

Slides and their table are read from the folder that MICROTOME_DATA names (default ../shared). With
``--write`` the picture in docs/ is made anew.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.commands import microtome
from benchmarks.lung_picture import Look, draw_looks
from benchmarks.lung_regions import CORRECTIONS, FIRST, HELD_OUT, KINDS, SLIDES, Rectangle
from benchmarks.stains import ASSUMED_MPP, kind, read_table
from mil.checkpoint import load_model
from tiling.marks import read_marks
from tiling.output import Output
from tiling.store import TileStore
from wsi.annotations import Annotation, read_annotations
from wsi.durable import make_folder, write_file
from wsi.geojson import write_annotations
from wsi.polygons import Polygon
from wsi.slide import UPSAMPLING_TOLERANCE, Slide
from wsi.tissue_cohort import Mixed, write_tissue_cohort

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "fewshot-real.jpg"
SEED = 41
PATIENTS = 4
"""Of each site of the drawn slides."""
META = ["--queries", "5", "--inner-rate", "0.1"]
"""Of the drawn slides some tissues have few tiles; the rate is that of `benchmarks.fewshot_cohorts`."""
EPISODES = 600
SURE = 0.8
"""A score from which on nobody is asked to look: the default of `adapt`."""


@dataclass(frozen=True)
class Setting:
    """How tiles are cut, and the drawn slides that are learnt from."""

    mpp: float
    tile: int
    """Pixels along each side."""
    drawn_mpp: float
    drawn_size: int
    sites: int

    @property
    def tile_on_drawn(self) -> float:
        """Its side in pixels of the drawn slides."""
        return self.tile * self.mpp / self.drawn_mpp

    @property
    def tiling(self) -> list[str]:
        """Options of `tile`. Stains are left as they are: they are what is to be told, or adapted to."""
        return ["--mpp", str(self.mpp), "--tile-size", str(self.tile), "--stain", "none", "--quiet"]


STAINS = Setting(mpp=1.06, tile=224, drawn_mpp=1.0, drawn_size=2048, sites=6)
"""The small sections are scanned at 1.01 to 1.05, and can be cut no finer than that."""
LUNG = Setting(mpp=0.5, tile=112, drawn_mpp=0.5, drawn_size=1536, sites=4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("fewshot-real-out"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", action="store_true", help=f"make {PICTURE.name} in docs/ anew")
    options = parser.parse_args()
    table = read_table()
    ask_stains(options.out / "stains", table, device=options.device)
    looks = ask_lung(options.out / "lung", table, device=options.device)
    if options.write:
        draw_looks(PICTURE, looks, regions=(FIRST, CORRECTIONS, HELD_OUT))


def learn(folder: Path, setting: Setting, *, device: str) -> Path:
    """META from drawn slides, in ``folder/meta``."""
    drawn, results, meta = (folder / name for name in ("drawn", "drawn-results", "meta"))
    if not (drawn / "labels.csv").exists():
        write_tissue_cohort(
            drawn,
            plan=Mixed(),
            sites=range(setting.sites),
            patients_per_site=PATIENTS,
            seed=SEED,
            size=(setting.drawn_size, setting.drawn_size),
            mpp=setting.drawn_mpp,
        )
    microtome("tile", str(drawn), "-o", str(results), *setting.tiling)
    microtome("encode", str(results), "--device", device, "--quiet")
    if not meta.exists():
        areas = keep_large(drawn / "annotations", folder / "areas", least=setting.tile_on_drawn**2)
        words = ["--annotations", str(areas), "--labels", str(drawn / "labels.csv"), *META]
        words += ["--device", device, "--quiet"]
        microtome("fewshot", "train", str(results), *words, "-m", str(meta))
    return meta


def keep_large(annotations: Path, folder: Path, *, least: float) -> Path:
    """The areas of at least so many level-0 pixels: two smaller ones may want the same tile."""
    make_folder(folder)
    for path in sorted(annotations.glob("*.geojson")):
        areas = read_annotations(path)
        large = [one for one in areas if sum(enclosed(polygon) for polygon in one.polygons) >= least]
        write_annotations(folder / path.name, large)
    return folder


def enclosed(polygon: Polygon) -> float:
    """What the shell encloses, holes included."""
    x, y = (polygon.shell - polygon.shell[0]).T
    return abs(float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())) / 2


# Stains --------------------------------------------------------------------------------------------------


def ask_stains(folder: Path, table: Sequence[tuple[Path, dict[str, str]]], *, device: str) -> None:
    """Which learner tells H&E from other stains of real sections by a few tiles."""
    meta, results = learn(folder, STAINS, device=device), folder / "results"
    stated: list[str] = []
    silent: list[str] = []
    kept = []
    for path, row in table:
        if path.parent.name != "small":
            continue
        with Slide(path) as slide:
            found = slide.resolution
        if found and found.x > STAINS.mpp * (1 + UPSAMPLING_TOLERANCE):
            print(f"{path.stem} is left out: {found.x:.3f} microns a pixel are too coarse")
            continue
        (stated if found else silent).append(str(path))
        kept.append((path, row))
    microtome("tile", *stated, "-o", str(results), *STAINS.tiling)
    if silent:
        microtome("tile", *silent, "-o", str(results), *STAINS.tiling, "--mpp-override", str(ASSUMED_MPP))
    microtome("encode", str(results), "--device", device, "--quiet")
    labels = folder / "labels.csv"
    lines = [f"{path.stem},{kind(row)},{row['case']}" for path, row in kept]
    write_file(labels, ("\n".join(["slide_id,label,patient", *lines]) + "\n").encode())
    words = ["--labels", str(labels), "--tiles", "-m", str(meta), "--ways", "2", "--episodes", str(EPISODES)]
    words += ["-o", str(folder / "evaluation"), "--device", device, "--quiet"]
    microtome("fewshot", "evaluate", str(results), *words)


# Marked regions ------------------------------------------------------------------------------------------


def ask_lung(folder: Path, table: Sequence[tuple[Path, dict[str, str]]], *, device: str) -> list[Look]:
    """What `adapt` makes of the first marks, and of more; each slide as it was seen both times."""
    meta, results = learn(folder, LUNG, device=device), folder / "results"
    paths = [str(path) for path, _ in table if path.stem in SLIDES]
    if len(paths) < len(SLIDES):
        raise SystemExit(f"the table has not all of {', '.join(SLIDES)}: the marked regions are theirs")
    microtome("tile", *paths, "-o", str(results), *LUNG.tiling)
    microtome("encode", str(results), "--device", device, "--quiet")
    output = Output(results)
    stores = [TileStore(output, slide_id) for slide_id in SLIDES]
    truth = write_regions(folder / "held-out", HELD_OUT)
    looks = []
    for name, marked in (("first", FIRST), ("again", (*FIRST, *CORRECTIONS))):
        files = write_regions(folder / name, marked)
        began, used = time.perf_counter(), time.process_time()
        words = ["--annotations", *map(str, files.values()), "--model", str(meta), "--name", name]
        microtome("adapt", "-o", str(results), *words, "--every-slide", "--overwrite", "--device", device)
        seconds, processor = time.perf_counter() - began, time.process_time() - used
        tiles = sum(len(read_marks(files[s.slide_id], s).rows) for s in stores if s.slide_id in files)
        print(f"\nadapt took {seconds:.1f} s ({processor:.1f} s of the processor), from {tiles} marked tiles")
        looks += [look(store, name) for store in stores]
        print("\nHeld out:")
        hold_against(looks[-len(stores) :], truth)
        if name == "first":
            print("\nWhat is marked next:")
            hold_against(looks, write_regions(folder / "next", CORRECTIONS))
    return looks


def write_regions(folder: Path, regions: Sequence[Rectangle]) -> dict[str, Path]:
    """As QuPath would export them, a file a slide."""
    make_folder(folder)
    files = {slide: folder / f"{slide}.geojson" for slide in dict.fromkeys(one.slide for one in regions)}
    for slide, path in files.items():
        write_annotations(path, [as_annotation(one) for one in regions if one.slide == slide], colours=KINDS)
    return files


def as_annotation(one: Rectangle) -> Annotation:
    ring = np.array([*one.corners, one.corners[0]], np.float64)
    return Annotation((Polygon(ring),), one.name)


def look(store: TileStore, model: str) -> Look:
    """What a model says of each tile of a slide."""
    classes = load_model(store.output.root / "models" / model)[0].classes
    scores, _ = store.scores(model)
    found = store.uncertainty(model)
    assert found is not None
    return Look(store, classes, scores, found[0])


def hold_against(looks: Sequence[Look], truth: dict[str, Path]) -> None:
    """A line for each kind of region on each slide."""
    print("\n| slide | kind | regions | tiles | right | sure and right | sure and wrong |")
    print("|---|---|---|---|---|---|---|")
    for one in looks:
        if one.store.slide_id not in truth:
            continue
        marks = read_marks(truth[one.store.slide_id], one.store)
        scores = one.scores[marks.rows]
        said = np.array(one.classes)[scores.argmax(axis=1)]
        sure = scores.max(axis=1) >= SURE
        names = np.array(marks.classes)[marks.labels]
        for name in marks.classes:
            its: NDArray[np.bool_] = names == name
            right = said == name
            counts = (its & right, its & right & sure, its & ~right & sure)
            cells = [one.store.slide_id, name, len(np.unique(marks.regions[its])), its.sum()]
            print("| " + " | ".join(map(str, [*cells, *(count.sum() for count in counts)])) + " |")
        unsure = (one.scores.max(axis=1) < SURE).mean()
        print(f"| {one.store.slide_id} | all tiles | | {len(one.scores)} | {unsure:.0%} of them unsure | | |")


if __name__ == "__main__":
    main()
