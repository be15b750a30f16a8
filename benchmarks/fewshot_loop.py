"""The feedback loop with a simulated pathologist: mark, adapt, look, mark what is wrong, adapt again.

On a slide of tissues that no learner knows two small regions of each are marked, five tiles a class. Then ten
more tiles are marked in each round, in one of three ways (`STRATEGIES`). All that is learnt from are the
GeoJSON files that `microtome adapt` reads; truth comes from the masks of the drawn slides.

Half of the slide, blocks of two by two tiles drawn by lot, is never marked in any way of marking: on it all
ways are compared, and on another slide of the same patient. A tile's truth is the tissue at its centre,
whatever else it shows. Marked are only tiles of which three quarters are that tissue.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

import cli
from benchmarks.commands import microtome
from mil.checkpoint import load_model
from mil.features import read_bag
from mil.fewshot.adapting import AdaptRecipe, adapt_to_tiles
from mil.predict import encoder_key, predict_bag
from tiling.marks import read_marks
from tiling.output import Output
from tiling.store import TileStore
from wsi.annotations import Annotation
from wsi.geojson import write_annotations
from wsi.polygons import Polygon
from wsi.specimen import MASK_SCALE
from wsi.tissues import TISSUES

MODEL = "adapted"
FIRST, MORE = 5, 10
"""Tiles of a class that are marked at first, and tiles that each round adds."""
STRATEGIES = {
    "corrected": "tiles that the model has wrong",
    "uncertain": "tiles that it is least sure of",
    "random": "any tiles",
}
_PURE = 0.75
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Ground:
    """The truth about the n tiles of a slide."""

    store: TileStore
    classes: tuple[str, ...]
    truth: Rows
    """``(n,)``: the class at the tile's centre; -1 on glass."""
    pure: NDArray[np.bool_]
    """``(n,)``: whether three quarters of the tile are that class."""
    blocks: Rows
    """``(n,)``: the number of the block of two by two tiles."""

    @classmethod
    def of(cls, store: TileStore, slides: Path) -> Ground:
        """From the mask that was written beside the slide."""
        names = [line.split(",") for line in (slides / "classes.csv").read_text().split()[1:]]
        mask = cv2.imread(str(slides / "masks" / f"{store.slide_id}.png"), cv2.IMREAD_UNCHANGED)
        assert mask is not None
        side = round(store.record["tile_level0"][0])
        x, y = store.origins.T.astype(np.int64)
        limit = np.array(mask.shape) - 1
        middle = mask[
            np.minimum((y + side // 2) // MASK_SCALE, limit[0]),
            np.minimum((x + side // 2) // MASK_SCALE, limit[1]),
        ].astype(np.int64)
        footprints = [
            mask[top // MASK_SCALE : -(-(top + side) // MASK_SCALE), left // MASK_SCALE :][
                :, : -(-side // MASK_SCALE)
            ]
            for left, top in zip(x.tolist(), y.tolist(), strict=True)
        ]
        pure = [bool((part == own).mean() >= _PURE) for part, own in zip(footprints, middle, strict=True)]
        column, row = (x - x.min()) // (2 * side), (y - y.min()) // (2 * side)
        _, blocks = np.unique(row * 10_000 + column, return_inverse=True)
        classes = tuple(name for _, name in names)
        return cls(store, classes, middle - 1, np.array(pure) & (middle > 0), blocks.astype(np.int64))


@dataclass
class Round:
    """What came of some marks."""

    tiles: int
    """That are marked, altogether."""
    here: float
    """Accuracy on the half of the slide that is never marked."""
    there: float
    """Accuracy on the other slide of the patient."""
    promised: float
    """Balanced accuracy that `adapt` gives out, by cross-validation on the marks."""
    learner: str
    """Which was picked."""


@dataclass
class Story:
    """One way of marking, from one first set of marks."""

    place: str
    strategy: str
    rounds: list[Round] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Shown:
    """What the picture shows of one story."""

    ground: Ground
    marks: Sequence[tuple[str, Rows]]
    """Annotations, in the order of marking."""
    first_marks: int
    """How many of them were there at first."""
    first: Rows
    """``(n,)``: what the model said after the first marks, and after the last ones."""
    last: Rows
    uncertainty: NDArray[np.float32]


class Pathologist:
    """Knows the truth, marks tiles, and runs `adapt`."""

    def __init__(self, folder: Path, meta: Path, draw: int) -> None:
        self.folder, self.meta = folder, meta
        output = Output(folder / "results")
        stores = [TileStore(output, name) for name in sorted(output.slides_with_tiles())]
        self.marked, self.other = (Ground.of(store, folder / "slides") for store in stores)
        self.rng = np.random.default_rng([draw, *folder.name.encode()])
        blocks = self.rng.permutation(int(self.marked.blocks.max()) + 1)
        mine = np.isin(self.marked.blocks, blocks[: len(blocks) // 2])
        self.held_out = ~mine & (self.marked.truth >= 0)
        self.free = mine & self.marked.pure
        self.marks: list[tuple[str, Rows]] = []

    def begin(self) -> None:
        """Two regions of each class, each within a block where there are such blocks."""
        for number, name in enumerate(self.marked.classes):
            left = FIRST
            for wanted in (3, 2):
                at = np.flatnonzero(self.free & (self.marked.truth == number))
                counts = np.bincount(self.marked.blocks[at])
                best = np.flatnonzero(counts >= min(wanted, counts.max()))
                tiles = at[self.marked.blocks[at] == self.rng.choice(best)][: wanted if left > 2 else left]
                self.mark(name, tiles)
                left -= len(tiles)
            for tile in self._draw(np.flatnonzero(self.free & (self.marked.truth == number)), left):
                self.mark(name, np.array([tile]))

    def mark(self, name: str, tiles: Rows) -> None:
        """One annotation: a dab in the middle of each of these tiles."""
        self.marks.append((name, tiles))
        self.free[tiles] = False

    def mark_more(self, strategy: str, said: Rows, uncertainty: NDArray[np.float32]) -> None:
        """Single tiles, each an annotation of its own."""
        at = np.flatnonzero(self.free)
        if strategy == "uncertain":
            chosen = at[np.argsort(-uncertainty[at], kind="stable")[:MORE]]
        elif strategy == "corrected":
            wrong = at[said[at] != self.marked.truth[at]]
            chosen = self._draw(wrong, MORE)
            right = np.setdiff1d(at, chosen)
            chosen = np.concatenate([chosen, self._draw(right, MORE - len(chosen))])
        else:
            chosen = self._draw(at, MORE)
        for tile in chosen:
            self.mark(self.marked.classes[self.marked.truth[tile]], np.array([tile]))

    def _draw(self, at: Rows, count: int) -> Rows:
        return self.rng.choice(at, min(count, len(at)), replace=False)

    def adapt(self, *, by_command: bool = False) -> Round:
        """Write the marks as QuPath would, learn from the file, and hold what is said against the truth.

        The function behind the command does the same, but for scores and heatmaps on disk.
        """
        store, path = self.marked.store, self.folder / f"{self.marked.store.slide_id}.geojson"
        colours = {name: TISSUES[name].colour for name in self.marked.classes}
        write_annotations(path, [self._annotation(*mark) for mark in self.marks], colours=colours)
        if by_command:
            microtome(*adapt_words(self.folder, path, self.meta, MODEL))
        else:
            marked, folder = [(store, read_marks(path, store))], store.output.root / "models" / MODEL
            adapt_to_tiles(marked, meta=self.meta, folder=folder, recipe=AdaptRecipe(), overwrite=True)
        model, _ = load_model(store.output.root / "models" / MODEL)
        here, there = (self.said(ground)[0] for ground in (self.marked, self.other))
        return Round(
            tiles=sum(len(tiles) for _, tiles in self.marks),
            here=float((here == self.marked.truth)[self.held_out].mean()),
            there=float((there == self.other.truth)[self.other.truth >= 0].mean()),
            promised=float(model.training["balanced_accuracy"]),
            learner=str(model.training["learner"]),
        )

    def said(self, ground: Ground) -> tuple[Rows, NDArray[np.float32]]:
        """``(n,)`` the class that scores highest, numbered as in the truth, and the uncertainty."""
        model, ensemble = load_model(ground.store.output.root / "models" / MODEL)
        found = predict_bag(ensemble, read_bag(ground.store, encoder_key(model)))
        numbers = np.array([ground.classes.index(name) for name in model.classes])
        return numbers[found.tile_scores.argmax(axis=1)], found.uncertainty

    def _annotation(self, name: str, tiles: Rows) -> Annotation:
        side = round(self.marked.store.record["tile_level0"][0])
        corners = np.array([(1, 1), (3, 1), (3, 3), (1, 3), (1, 1)]) * side / 4
        return Annotation(
            tuple(Polygon(corners + self.marked.store.origins[tile].astype(np.float64)) for tile in tiles),
            name,
        )


def tell(folders: Sequence[Path], meta: Path, *, draws: int, rounds: int) -> tuple[list[Story], Shown]:
    """All ways of marking from the same first marks, several times on each slide."""
    stories, shown = list[Story](), None
    for folder, draw in product(folders, range(draws)):
        who = Pathologist(folder, meta, draw)
        who.begin()
        first, said_first = who.adapt(by_command=True), who.said(who.marked)
        for strategy in STRATEGIES:
            who, story, said = (
                Pathologist(folder, meta, draw),
                Story(folder.name, strategy, [first]),
                said_first,
            )
            who.begin()  # the same marks again
            count = len(who.marks)
            for _ in range(rounds):
                who.mark_more(strategy, *said)
                story.rounds.append(who.adapt())
                said = who.said(who.marked)
            stories.append(story)
            shown = shown or Shown(who.marked, tuple(who.marks), count, said_first[0], *said)
            print(f"  {folder.name}, draw {draw}, {strategy}: {story.rounds[-1]}", flush=True)
    assert shown is not None
    return stories, shown


def adapt_words(folder: Path, annotations: Path, meta: Path, name: str) -> list[str]:
    """The command's words."""
    words = ["adapt", "-o", str(folder / "results"), "--annotations", str(annotations), "--model", str(meta)]
    return [*words, "--name", name, "--overwrite", "--quiet"]


def time_command(folder: Path, meta: Path) -> tuple[float, float]:
    """Seconds, and seconds on the processor, of one `adapt` from the shell: the marks of the last story."""
    (path,) = folder.glob("*.geojson")
    words = [sys.executable, str(Path(cli.__file__)), *adapt_words(folder, path, meta, "timed")]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
