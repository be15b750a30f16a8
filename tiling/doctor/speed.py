"""How fast slides become tiles here: the real steps, for seconds, on the user's slide or a synthetic one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tiling.cut import cut_slide
from tiling.doctor.finding import Finding, in_time
from tiling.output import Output
from tiling.recipe import CutRecipe
from tiling.store import TileStore
from tiling.survey import survey_slide
from wsi.slide import Slide
from wsi.synthetic import write_huge_slide

SECONDS = 10.0
"""What the whole test may take, unless told otherwise."""
CUT_SHARE = 0.4
"""The part of it that is for cutting; what is left is for encoding."""

_TILES_PER_SHARD = 32  # the test is stopped between shards
_SYNTHETIC_PX, _TISSUE_PX = 18_000, 16_384  # 1,024 tiles of 256 px at 0.5 µm, in a file of 0.7 MB


@dataclass(frozen=True, slots=True)
class CutSpeed:
    """How fast one slide was cut."""

    slide: str
    """Which."""
    tiles: int
    """How many tiles were cut."""
    seconds: float
    """By the clock, in all: also of finding tissue and fitting the stain."""
    tiles_per_second: float
    """Once it runs: decoded, judged, normalised, encoded and forced to the disk."""
    setup_seconds: float
    """Before the first tile, without finding tissue: the stain, mostly."""
    workers: int
    """Threads at it."""

    def finding(self) -> Finding:
        """For a person."""
        return Finding(
            "speed of cutting",
            f"{self.tiles_per_second:.0f} tiles a second",
            note=f"{self.tiles} of {self.slide} by {self.workers} threads, {in_time(self.seconds)} in all",
            figures={"tiles_per_second": self.tiles_per_second, "seconds": self.seconds},
        )


@dataclass(frozen=True, slots=True)
class EncodeSpeed:
    """How fast a network was; measured where networks are known."""

    encoder: str
    """Its name."""
    dim: int
    """Numbers of a feature vector: two bytes each on disk."""
    tiles: int
    """How many tiles were encoded."""
    seconds: float
    """By the clock, of these."""
    tiles_per_second: float
    """Of the largest batch."""
    where: str
    """Device, precision and batch, in words."""

    def finding(self) -> Finding:
        """For a person."""
        return Finding(
            "speed of encoding",
            f"{self.tiles_per_second:.3g} tiles a second",
            note=f"{self.tiles} tiles by {self.encoder} on {self.where}",
            figures={"tiles_per_second": self.tiles_per_second, "seconds": self.seconds, "dim": self.dim},
        )


class _EnoughError(Exception):
    """Enough was seen."""


def synthetic_slide(folder: Path) -> Path:
    """A JPEG pyramid as a 40x scanner writes them, made in a second."""
    size = (_SYNTHETIC_PX, _SYNTHETIC_PX)
    return write_huge_slide(folder / "synthetic.svs", size=size, tissue_px=_TISSUE_PX)


def cut_speed(
    path: Path,
    open_slide: Callable[[Path], Slide],
    recipe: CutRecipe,
    *,
    folder: Path,
    workers: int,
    deadline: float,
) -> CutSpeed | None:
    """Find the tissue of a slide and cut it as `recipe` says, until it is cut or the deadline is there.

    Parameters
    ----------
    path, open_slide
        The slide, and how it is opened.
    recipe
        How it is cut.
    folder
        Where to write: on the disk in question. What is left there is the caller's to remove.
    workers
        Threads that cut.
    deadline
        By `time.monotonic`. It is looked at after every 32 tiles: a single read is not broken off.

    Returns
    -------
    None where no tile was finished in time.

    Raises
    ------
    MicrotomeError
        The slide cannot be cut; see `tiling.cut.cut_slide`.
    """
    seen: list[tuple[float, int]] = []

    def watch(done: int, total: int) -> None:
        seen.append((time.monotonic(), done))
        if seen[-1][0] >= deadline:
            raise _EnoughError

    output = Output(folder / "cut")
    start = time.monotonic()
    with output.lock(), open_slide(path) as slide:
        store = TileStore(output, "speed")
        mask = survey_slide(slide, store, recipe.tissue)
        surveyed = time.monotonic()
        try:
            small = replace(recipe, tiles_per_shard=min(recipe.shard_tiles, _TILES_PER_SHARD))
            cut_slide(slide, store, small, mask=mask, workers=workers, progress=watch)
        except _EnoughError:
            pass
    if not seen:
        return None
    (first, few), (last, done) = seen[0], seen[-1]
    # The first shard's time has the fit of the stain in it; a slide of one shard tells no more.
    rate = (done - few) / (last - first) if done > few else done / (last - surveyed)
    setup = max(0.0, first - surveyed - few / rate)
    return CutSpeed(path.name, done, time.monotonic() - start, rate, setup, workers)
