"""`review_slide`: a page, a contact sheet and a summary of how good a slide and its tiles are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.commit import Commit, canonical
from tiling.contact import TileGroup, contact_sheet, highest, spread
from tiling.pipeline import Job, Step, cut_step, survey_step
from tiling.quality import MAX_PEN, MEASURES, PEN_MEASURES, pen_share
from tiling.quality_page import qc_page, tile_map
from tiling.recipe import CutRecipe
from tiling.selection import EVERYWHERE, SelectionFiles
from tiling.store import TileStore
from tiling.survey import read_mask, read_thumbnail
from tiling.tiles import read_on_the_fly
from tiling.versions import versions
from wsi.durable import write_file
from wsi.picture import encode_jpeg
from wsi.tissue import TissueMask

PAGE, CONTACT, SUMMARY = "qc.html", "contact.jpg", "qc.json"
SPREAD_TILES, WORST_TILES = 24, 8
"""Tiles on the contact sheet: spread over the slide, and of each kind of worst."""
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
BINS = 24
"""Bars of a histogram."""
MANY = 0.2
"""A fault that more than this share of the tiles has may be the slide's way: the page says so."""

ReadTiles = Callable[[NDArray[np.intp]], NDArray[np.uint8]]
"""Rows ``(k,)`` to their pixels ``(k, s, s, 3)`` uint8 RGB."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SlideQuality:
    """All that the page is made from."""

    slide_id: str
    """Name of the slide; any text."""
    size_px: int
    """Pixels along a tile."""
    mpp: float
    """Microns per pixel of the tiles."""
    footprint: tuple[float, float]
    """``(width, height)`` of a tile in level-0 pixels."""
    origins: NDArray[np.int32]
    """``(n, 2)`` level-0 (x, y) of the tiles that were kept."""
    tissue: NDArray[np.float32]
    """``(n,)`` share of each that is tissue."""
    quality: NDArray[np.float32] | None
    """``(n, len(MEASURES))``; None where it was not measured."""
    dropped: NDArray[np.int32]
    """``(m, 2)`` level-0 (x, y) of places that hold enough tissue and were left out."""
    reasons: Sequence[str]
    """Why each of them was."""
    warnings: Sequence[str]
    """What was noted when the slide was cut."""

    def __post_init__(self) -> None:
        count = len(self.origins)
        if self.origins.shape != (count, 2) or self.tissue.shape != (count,):
            raise ValueError(f"{self.origins.shape} origins do not go with {self.tissue.shape} tissue")
        if self.dropped.shape != (len(self.reasons), 2):
            raise ValueError(f"{self.dropped.shape} places do not go with {len(self.reasons)} reasons")
        if self.quality is not None and self.quality.shape != (count, len(MEASURES)):
            raise ValueError(f"measures have the shape ({count}, {len(MEASURES)}), got {self.quality.shape}")


def review_slide(store: TileStore, *, read_tiles: ReadTiles | None = None) -> Commit:
    """Commit the page, the summary and, where there are pixels, the contact sheet of a slide's tiles.

    Does nothing where it is done already.

    Parameters
    ----------
    store
        Holds the tissue and the tiles; the caller holds the output's lock.
    read_tiles
        Gives the pixels of tiles. None takes those of the store; where it holds none, there is no sheet.

    Raises
    ------
    UsageError
        The slide was not surveyed or cut.
    RecipeError, DamagedError
        See `TileStore.begin`.
    """
    read = read_tiles or (store.read_pixels if store.has_pixels else None)
    recipe = {"step": "qc", "inputs": store.inputs("tissue", "tiles"), "contact_sheet": read is not None}
    draft = store.begin("qc", recipe)
    if draft is None:
        return store.require("qc")
    facts = facts_of(store)
    summary = summarise(facts)
    mask, (thumbnail, scale) = read_mask(store), read_thumbnail(store)
    picture = encode_jpeg(draw_map(facts, thumbnail, scale=scale, mask=mask))
    sheet = encode_jpeg(contact_sheet(choose(facts, read))) if read and len(facts.origins) else None
    write_file(draft.folder / SUMMARY, canonical(summary))
    write_file(draft.folder / PAGE, qc_page(summary, overview=picture, contact=sheet).encode())
    if sheet is not None:
        write_file(draft.folder / CONTACT, sheet)
    return draft.publish({"notes": summary["notes"], "versions": versions()})


def tile_steps(recipe: CutRecipe, files: SelectionFiles = EVERYWHERE) -> list[Step]:
    """Tissue, tiles, and a look at them."""
    return [survey_step(recipe.tissue), cut_step(recipe, files=files), qc_step()]


def qc_step() -> Step:
    """Review the tiles; where the store holds no pixels, they are read from the slide, if it is open."""

    def make(job: Job) -> object:
        if job.slide is None or job.store.has_pixels:
            return review_slide(job.store)
        read = read_on_the_fly(job.store, job.slide)

        def one_by_one(rows: NDArray[np.intp]) -> NDArray[np.uint8]:
            return np.concatenate([read(slice(row, row + 1)) for row in rows.tolist()])

        return review_slide(job.store, read_tiles=one_by_one)

    return Step("qc", make)


def facts_of(store: TileStore) -> SlideQuality:
    """What a store knows of its tiles' quality."""
    record, spec = store.record, store.spec
    width, height = record["tile_level0"]
    dropped, reasons = store.dropped()
    return SlideQuality(
        slide_id=store.slide_id,
        size_px=spec.size_px,
        mpp=spec.mpp,
        footprint=(width, height),
        origins=store.origins,
        tissue=store.tissue,
        quality=store.quality if tuple(record["measures"]) == MEASURES else None,
        dropped=dropped,
        reasons=reasons,
        warnings=record["warnings"],
    )


def summarise(facts: SlideQuality) -> dict[str, Any]:
    """The figures of the page, as JSON: counts, percentiles and histograms of each measure, notes.

    Numbers have four significant digits. Measures are of the tiles that were kept.
    """
    measures = {"tissue": facts.tissue}
    if facts.quality is not None:
        measures |= {name: facts.quality[:, i] for i, name in enumerate(MEASURES)}
    dropped = Counter(facts.reasons)
    return {
        "slide": facts.slide_id,
        "tile": {"size_px": facts.size_px, "mpp": facts.mpp},
        "tiles_kept": len(facts.origins),
        "tiles_dropped": dict(sorted(dropped.items())),
        "damaged": _dropped_for(facts, "damaged").tolist(),
        "percentiles": {name: _percentiles(values) for name, values in measures.items() if len(values)},
        "histograms": {name: _histogram(values) for name, values in measures.items() if len(values)},
        "warnings": list(facts.warnings),
        "notes": _notes(facts, dropped),
    }


def _dropped_for(facts: SlideQuality, reason: str) -> NDArray[np.int32]:
    """``(k, 2)``: where tiles were left out for that reason."""
    return facts.dropped[np.array([found == reason for found in facts.reasons], np.bool_)]


def _number(value: float) -> float | int:
    """Four significant digits; whole numbers without a point."""
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() else rounded


def _percentiles(values: NDArray[np.float32]) -> dict[str, float | int]:
    found = np.percentile(values.astype(np.float64), PERCENTILES)
    return {f"p{p}": _number(value) for p, value in zip(PERCENTILES, found.tolist(), strict=True)}


def _histogram(values: NDArray[np.float32]) -> dict[str, Any]:
    """Counts in `BINS` equal steps from 0 to 1, or to the next number of one digit above the largest."""
    top, largest = 1.0, float(values.max())
    if largest > 1:
        unit = 10.0 ** np.floor(np.log10(largest))
        top = float(np.ceil(largest / unit) * unit)
    counts, _ = np.histogram(values, BINS, (0.0, top))
    return {"from": 0, "to": _number(top), "counts": counts.tolist()}


def _notes(facts: SlideQuality, dropped: Counter[str]) -> list[str]:
    """What a reader of the figures should know before believing them."""
    notes = []
    every = len(facts.origins) + dropped.total()
    if facts.quality is None:
        notes.append("Quality was not measured when these tiles were cut.")
    else:
        for name in PEN_MEASURES:
            inked = int(np.count_nonzero(facts.quality[:, MEASURES.index(name)] > MAX_PEN))
            if inked > MANY * max(every, 1):
                notes.append(
                    f"{inked} of {every} tiles look like {name.removeprefix('pen_')} ink. "
                    "The stain may have that colour: look at the contact sheet before any are dropped."
                )
        unsharp = int(np.count_nonzero(facts.quality[:, MEASURES.index("blurred")] > 0.5))
        if unsharp > MANY * max(every, 1):
            notes.append(f"{unsharp} of {every} tiles are out of focus: a new scan may be needed.")
    if dropped["pen"] > MANY * max(every, 1):
        notes.append(
            f"{dropped['pen']} of {every} tiles were dropped for ink. "
            "If the stain has that colour, cut the slide without dropping them."
        )
    return notes


def draw_map(
    facts: SlideQuality, thumbnail: NDArray[np.uint8], *, scale: tuple[float, float], mask: TissueMask
) -> NDArray[np.uint8]:
    """The thumbnail with kept and dropped tiles tinted, and the tissue's outline.

    `scale` is the thumbnail's level-0 pixels per pixel along x and y.
    """
    places = {"kept": facts.origins}
    places |= {reason: _dropped_for(facts, reason) for reason in sorted(set(facts.reasons))}
    tinted = tile_map(thumbnail, places, footprint=facts.footprint, scale=scale)
    return mask.look(tinted, colour=(0, 0, 0))


def choose(facts: SlideQuality, read: ReadTiles) -> list[TileGroup]:
    """The groups of the contact sheet: tiles spread over the slide, and the worst of each kind."""
    chosen = {"Spread over the slide": spread(facts.origins, SPREAD_TILES)}
    if facts.quality is not None:
        sharpness = facts.quality[:, MEASURES.index("sharpness")]
        chosen["Least sharp"] = np.argsort(sharpness, kind="stable")[:WORST_TILES]
        chosen["Most like ink"] = highest(pen_share(facts.quality), WORST_TILES)
        chosen["Darkest"] = highest(facts.quality[:, MEASURES.index("dark")], WORST_TILES)
    return [
        TileGroup(title, read(rows), [caption(facts, row) for row in rows.tolist()])
        for title, rows in chosen.items()
        if len(rows)
    ]


def caption(facts: SlideQuality, row: int) -> tuple[str, ...]:
    """A tile's level-0 place and figures, in lines."""
    x, y = facts.origins[row].tolist()
    place = f"{x}, {y}"
    if facts.quality is None:
        return place, f"tissue {facts.tissue[row]:.2f}"
    values = dict(zip(MEASURES, facts.quality[row].tolist(), strict=True))
    pen = sum(values[name] for name in PEN_MEASURES)
    return (
        place,
        f"tissue {facts.tissue[row]:.2f} sharp {values['sharpness']:.0f}",
        f"blur {values['blurred']:.2f} pen {pen:.2f} dark {values['dark']:.2f}",
    )
