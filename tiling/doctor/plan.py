"""`plan_cohort`: what a cohort takes - tiles, disk, hours - before a day is spent to find out.

Each slide is opened and its tissue found on its thumbnail, as ``microtome tile`` does first, so the tiles are
those that it will cut: all of them, unless some are damaged or fall to ``--min-sharpness`` or ``--drop-pen``,
which only pixels can tell. Of more than `MOST_LOOKED_AT` slides a sample is looked at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from tiling.blocks import Progress
from tiling.codecs import Raw
from tiling.cut import Places, find_places
from tiling.doctor.finding import Finding, in_bytes, in_time
from tiling.doctor.speed import CutSpeed, EncodeSpeed
from tiling.fit import fit_stain
from tiling.manifest import SlideEntry
from tiling.recipe import CutRecipe
from tiling.selection import EVERYWHERE, SelectionFiles
from tiling.survey import LOOK_PX
from tiling.tiles import TileCutter
from tiling.workers.ask import Ask, ask_here
from wsi.errors import MicrotomeError, NoTissueError, SlideError
from wsi.picture import encode_jpeg, encode_png
from wsi.slide import Slide
from wsi.tissue import TISSUE_MPP, TissueMask, find_tissue

MOST_LOOKED_AT = 50
"""Slides; of more, so many are drawn."""
TOLERANCE, PAGE_TOLERANCE = 0.15, 500_000
"""How near the disk is reckoned: to this share, or of small slides to these bytes each."""

_SEED = 0
_STORED_TILES = 32  # of a slide, compressed to see how large they become
_INDEX_BYTES, _CHECKSUM_BYTES = 16, 4  # of a tile in a shard
_ROW_BYTES = 42  # of a tile: place, tissue and quality, compressed
_FIXED_BYTES = 32 << 10  # of a slide: commits and metadata
_CONTACT_BYTES = 300_000  # of the contact sheet, about
_IN_PAGE = 4 / 3  # bytes of a page for each byte of a picture in it
_SPARE = 1.2  # of the disk


@dataclass(frozen=True, slots=True)
class SlidePlan:
    """What one slide takes."""

    slide_id: str
    tiles: int
    """Places that will be cut."""
    tile_bytes: float = 0.0
    """Of each on disk: its pixels as they are stored, and what is known of it."""
    page_bytes: float = 0.0
    """Of its thumbnail, mask and page of quality."""
    look_seconds: float = 0.0
    """To open it, find its tissue, and draw that."""
    fault: str = ""
    """Why it cannot be cut; a slide without tissue has none."""


@dataclass(frozen=True, slots=True)
class Total:
    """An amount of all slides."""

    amount: float
    spread: float
    """Half of a 95 % interval; 0 where all slides were looked at."""

    def said(self, say: Callable[[float], str]) -> str:
        """In words."""
        return say(self.amount) + (f" ± {say(self.spread)}" if self.spread else "")


@dataclass(frozen=True, slots=True)
class CohortPlan:
    """What a cohort takes, by what was seen of its slides and of the machine's speed."""

    slides: tuple[SlidePlan, ...]
    """Those that were looked at."""
    count: int
    """How many there are."""
    recipe: CutRecipe
    """How they are cut."""
    cut: CutSpeed | None = None
    """How fast; None where it was not measured."""
    encode: EncodeSpeed | None = None
    """Likewise; without it no features are reckoned with."""
    free_bytes: float = field(default=math.inf)
    """Of the disk."""
    workers: int = 1
    """How many cut at a time; a network is reckoned to have the whole machine."""

    def bytes_of(self, slide: SlidePlan) -> float:
        """On disk, when it is cut and encoded."""
        features = 2 * self.encode.dim if self.encode else 0
        fixed = _FIXED_BYTES if slide.tiles else 0
        return slide.tiles * (slide.tile_bytes + features) + slide.page_bytes + fixed

    def seconds_of(self, slide: SlidePlan) -> float:
        """Its share of the time to cut and encode all; 0 where no speed is known."""
        if self.cut is None or slide.fault:
            return 0.0
        seconds = slide.look_seconds + (self.cut.setup_seconds if slide.tiles else 0)
        seconds += slide.tiles / self.cut.tiles_per_second
        encoding = slide.tiles / self.encode.tiles_per_second if self.encode else 0.0
        return seconds / self.workers + encoding

    def total(self, amount: Callable[[SlidePlan], float]) -> Total:
        """An amount of all slides, by those that were looked at.

        The spread is that of simple random sampling without replacement (W. G. Cochran, Sampling Techniques,
        1977, section 2.8): 1.96 N s / √m √(1 - m/N).
        """
        values = np.array([amount(slide) for slide in self.slides], np.float64)
        looked = len(values)
        if looked == self.count:
            return Total(float(values.sum()), 0.0)
        error = float(values.std(ddof=1)) / math.sqrt(looked) * math.sqrt(1 - looked / self.count)
        return Total(float(values.mean()) * self.count, 1.96 * error * self.count)

    def findings(self) -> Iterator[Finding]:
        """For a person: each slide, then all of them, with the arithmetic."""
        for slide in self.slides:
            yield self._slide(slide)
        yield self._looked_at()
        yield self._tiles()
        yield self._disk()
        yield self._time()

    def _slide(self, slide: SlidePlan) -> Finding:
        name = f"plan: {slide.slide_id}"
        if slide.fault:
            return Finding(name, "cannot be cut", slide.fault)
        size, seconds = self.bytes_of(slide), self.seconds_of(slide)
        words = [f"{slide.tiles:,} tiles" if slide.tiles else "no tissue", in_bytes(size)]
        words += [in_time(seconds)] if self.cut else []
        figures = {"tiles": slide.tiles, "bytes": round(size), "seconds": round(seconds, 3)}
        return Finding(name, ", ".join(words), figures=figures)

    def _looked_at(self) -> Finding:
        faults = sum(bool(slide.fault) for slide in self.slides)
        bare = sum(not slide.fault and not slide.tiles for slide in self.slides)
        words = [f"{self.count}", f"{len(self.slides) - faults - bare} with tiles", f"{bare} without tissue"]
        note = "all were looked at"
        if len(self.slides) < self.count:
            note = f"{len(self.slides)} were looked at, drawn with seed {_SEED}; ± is a 95 % interval"
        advice = f"{faults} cannot be cut: mend them, or leave them out" if faults else ""
        figures = {"slides": self.count, "looked_at": len(self.slides), "faults": faults}
        return Finding("plan: slides", ", ".join(words), advice, note, figures)

    def _tiles(self) -> Finding:
        total, spec, quality = self.total(lambda slide: slide.tiles), self.recipe.spec, self.recipe.quality
        each = total.amount / self.count
        note = f"{self.count} slides x {each:,.1f} of {spec.size_px} px at {spec.mpp:g} µm"
        if quality.min_sharpness is not None or quality.drop_pen:
            note += "; at most: what falls to its quality, only its pixels tell"
        figures = {"tiles": total.amount, "spread": total.spread}
        return Finding("plan: tiles", total.said(lambda count: f"{count:,.0f}"), note=note, figures=figures)

    def _disk(self) -> Finding:
        total, tiles = self.total(self.bytes_of), self.total(lambda slide: slide.tiles).amount
        stored = self.total(lambda slide: slide.tiles * slide.tile_bytes).amount / max(tiles, 1)
        features = 2 * self.encode.dim if self.encode else 0
        fixed = (total.amount - tiles * (stored + features)) / self.count
        note = (
            f"{tiles:,.0f} tiles x ({stored:,.0f} B stored + {features:,} B features) + {self.count} slides "
            f"x {in_bytes(fixed)} pages and records"
        )
        advice = ""
        if (total.amount + total.spread) * _SPARE > self.free_bytes:
            advice = (
                f"{in_bytes(self.free_bytes)} are free, a fifth more than the plan is needed: use another "
                "disk, --no-pixels, or --pixels jpeg:90"
            )
        figures = {"bytes": total.amount, "spread": total.spread}
        return Finding("plan: disk", total.said(in_bytes), advice, note, figures)

    def _time(self) -> Finding:
        if self.cut is None:
            return Finding("plan: hours", "not known", note="the speed was not measured")
        total, tiles = self.total(self.seconds_of), self.total(lambda slide: slide.tiles).amount
        encoding = tiles / self.encode.tiles_per_second if self.encode else 0.0
        first = (total.amount - encoding) * self.workers - tiles / self.cut.tiles_per_second
        note = (
            f"({self.count} slides x {first / self.count:.2f} s for tissue and stain + {tiles:,.0f} tiles / "
            f"{self.cut.tiles_per_second:,.0f} a second to cut)"
            f" / {self.workers} {'worker' if self.workers == 1 else 'workers'}"
        )
        if self.encode:
            note += f" + {tiles:,.0f} tiles / {self.encode.tiles_per_second:.3g} a second to encode"
        figures = {"hours": total.amount / 3600, "spread": total.spread / 3600}
        return Finding("plan: hours", total.said(in_time), note=note, figures=figures)


def plan_cohort(
    entries: Mapping[str, SlideEntry],
    open_slide: Callable[[Path], Slide],
    recipe: CutRecipe,
    *,
    files: SelectionFiles = EVERYWHERE,
    most: int = MOST_LOOKED_AT,
    ask: Ask = ask_here,
    progress: Progress | None = None,
) -> CohortPlan:
    """Look at the slides, or at `most` of them drawn at random; nothing is written.

    Parameters
    ----------
    entries
        The slides by id.
    open_slide
        How they are opened.
    recipe, files
        How they would be cut, and where.
    most
        How many are looked at.
    ask
        How: a slide may crash or hang the process that reads it.
    progress
        Called after each.
    """
    looked = []
    drawn = sample(list(entries.values()), most)
    question = partial(look_at, open_slide=open_slide, recipe=recipe, files=files)
    for number, (entry, found) in enumerate(ask(drawn, question), 1):
        if isinstance(found, SlidePlan):
            looked.append(found)
        else:  # it took its process along
            looked.append(SlidePlan(entry.slide_id, 0, fault=str(found)))
        if progress:
            progress(number, len(drawn))
    return CohortPlan(tuple(looked), len(entries), recipe)


def sample(entries: Sequence[SlideEntry], most: int) -> list[SlideEntry]:
    """All of them, or `most`, drawn with a fixed seed and in their order."""
    if len(entries) <= most:
        return list(entries)
    chosen = np.random.default_rng(_SEED).choice(len(entries), most, replace=False)
    return [entries[index] for index in sorted(chosen.tolist())]


def look_at(
    entry: SlideEntry, *, open_slide: Callable[[Path], Slide], recipe: CutRecipe, files: SelectionFiles
) -> SlidePlan:
    """What one slide takes; what is wrong with it is said, not raised."""
    start, pages = time.monotonic(), 0.0
    lost: list[tuple[SlideError, float]] = []
    try:
        with open_slide(entry.path) as slide:
            resolution = slide.require_resolution()
            mpp = max(TISSUE_MPP, resolution.x, resolution.y)
            mask = find_tissue(slide, recipe.tissue, mpp=mpp, damage=lambda *what: lost.append(what))
            pages, look = _pictures(slide, mask, lost)
            seconds = time.monotonic() - start
            places = find_places(slide, recipe, mask, files.read(slide, entry.slide_id))
            pages += _CONTACT_BYTES + _IN_PAGE * (_CONTACT_BYTES + look)
            stored = _stored(slide, recipe, places)
            return SlidePlan(entry.slide_id, len(places.origins), stored, pages, seconds)
    except NoTissueError:
        return SlidePlan(entry.slide_id, 0, page_bytes=pages, look_seconds=time.monotonic() - start)
    except MicrotomeError as error:
        return SlidePlan(entry.slide_id, 0, fault=str(error))


def _pictures(slide: Slide, mask: TissueMask, lost: list[tuple[SlideError, float]]) -> tuple[float, float]:
    """Bytes of what `tissue` leaves to look at, made as it makes them; and of the outline alone."""
    resolution = slide.require_resolution()
    finest = max(resolution.x, resolution.y)
    longer = max(slide.size[0] * resolution.x, slide.size[1] * resolution.y)
    thumbnail = slide.thumbnail(max(longer / LOOK_PX, finest), damage=lambda *what: lost.append(what))
    look = len(encode_jpeg(mask.look(thumbnail)))
    return len(encode_png(thumbnail)) + look, look


def _stored(slide: Slide, recipe: CutRecipe, places: Places) -> float:
    """Bytes of a tile: what does not compress is reckoned, of what does a few are tried."""
    if recipe.pixels is None:
        return _ROW_BYTES
    size, slots = recipe.spec.size_px, recipe.shard_tiles
    shards = -(-len(places.origins) // slots)  # each has an index of all its slots, full or not
    more = _ROW_BYTES + shards * (_INDEX_BYTES * slots + _CHECKSUM_BYTES) / len(places.origins)
    if isinstance(recipe.pixels, Raw):
        return 3 * size**2 + _CHECKSUM_BYTES + more
    normalizer, _ = fit_stain(slide, recipe, places.mask, places.origins)  # it changes how far they compress
    count = min(_STORED_TILES, len(places.origins))
    few = places.origins[((np.arange(count) + 0.5) * len(places.origins) / count).astype(int)]
    cutter = TileCutter(slide, recipe.spec, recipe.exact, normalizer)
    tiles = cutter.normalized(cutter.scanned(few))
    return float(np.mean([len(recipe.pixels.encode(tile)) for tile in tiles])) + more
