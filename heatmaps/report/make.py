"""`report_slide`: what a store holds of a slide as a page and a JSON file, committed as one item."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatmaps.report.chosen import Chosen
from heatmaps.report.content import Findings, find, slide_content
from heatmaps.report.feedback import find_feedback
from heatmaps.report.page import Pictures, slide_page
from heatmaps.report.pictures import Overview, draw_channel, draw_overview, draw_tiles
from heatmaps.report.shown import choose_tiles, rows_of
from heatmaps.report.spent import RunLogs
from tiling.commit import Commit, canonical
from tiling.pipeline import Job, Step
from tiling.store import TileStore
from tiling.tiles import read_on_the_fly
from tiling.versions import versions
from wsi.durable import write_file
from wsi.slide import Slide

PAGE, CONTENT = "report.html", "report.json"
TILES_ONLY = "__tiles__"
"""In the place of a model's name, and none can have it: reports of an output that no model has scored."""
FORM = 1
"""Version of what a page looks like and says; a report of another is no longer this one."""
_NO_SLIDE = (
    "The tiles were cut without pixels, and the slide's file was not given: say where it is with --slides."
)

OpenSlide = Callable[[str], AbstractContextManager[Slide] | None]
"""Opens the file of a slide by its id; None where it is not at hand."""


def report_item(chosen: Chosen | None) -> str:
    """Name of the item that a slide's report is."""
    return f"reports/{chosen.name if chosen else TILES_ONLY}"


def report_slide(
    store: TileStore, chosen: Chosen | None, logs: RunLogs, *, open_slide: OpenSlide | None = None
) -> Commit:
    """Commit the report of one slide; does nothing where the same is there.

    The recipe holds the digests of all that is reported: the report is stale when any of them is another now,
    and is then replaced only where the store overwrites. Where there merely is more to say than before, such
    as scores, new times in the logs or a person's marks, it is replaced without being asked.

    Parameters
    ----------
    store
        The slide; the caller holds the output's lock.
    chosen
        Whose scores; None for a report of the tiles alone. So is that of a slide without such scores.
    logs
        Of the runs, for the times.
    open_slide
        Where tiles come from that the store holds no pixels of.

    Raises
    ------
    UsageError, RecipeError, DamagedError
        See `heatmaps.report.content.find` and `TileStore.begin`.
    SlideError
        The slide's file is another than the one that was cut.
    """
    found, time = find(store, chosen), logs.time_of(store.slide_id)
    feedback = find_feedback(store.output, store.slide_id, model=chosen.name if chosen else None)
    slide = None if store.has_pixels or open_slide is None else open_slide(store.slide_id)
    has_pictures = store.has_pixels or slide is not None
    recipe = {
        "step": "report",
        "form": FORM,
        "inputs": {name: commit.digest for name, commit in found.items.items()},
        "trained_sha256": _digest(chosen.trained) if chosen and chosen.trained and found.scores else None,
        "times_sha256": _digest(time),
        "feedback_sha256": _digest(feedback) if any(feedback) else None,
        "tiles_pictured": has_pictures,
    }
    item = report_item(chosen)
    there = store.find(item)
    if there is not None and _says_more(there, recipe):
        return there
    draft = _willing(store, there, recipe).begin(item, recipe)
    if draft is None:
        return store.require(item)
    overview = draw_overview(store)
    why = None if has_pictures else _NO_SLIDE
    content = slide_content(
        store, found, overview.facts, chosen=chosen, time=time, feedback=feedback, pictures=why
    )
    pictures = _pictures(store, found, overview, _read_tiles(store, found, slide) if has_pictures else {})
    write_file(draft.folder / CONTENT, canonical(content))
    write_file(draft.folder / PAGE, slide_page(content, pictures).encode())
    return draft.publish({"versions": versions()})


def report_step(chosen: Chosen | None, logs: RunLogs, *, open_slide: OpenSlide | None = None) -> Step:
    """Report a slide."""

    def make(job: Job) -> object:
        return report_slide(job.store, chosen, logs, open_slide=open_slide)

    return Step(report_item(chosen), make, reads_slide=open_slide is not None)


def _willing(store: TileStore, there: Commit | None, recipe: Mapping[str, Any]) -> TileStore:
    """The store, overwriting where all that the report was made of is still what it was."""
    if there is None or not there.recipe["inputs"].items() <= recipe["inputs"].items():
        return store
    return TileStore(store.output, store.slide_id, overwrite=True)


def _says_more(there: Commit, recipe: Mapping[str, Any]) -> bool:
    """Whether the one that is there has pictures or a card that cannot be had now, and else is the same."""
    had = there.recipe
    lost = {name for name in ("tiles_pictured", "trained_sha256") if had.get(name) and not recipe[name]}
    kept = recipe.keys() - lost - {"times_sha256"}
    return bool(lost) and all(had.get(name) == recipe[name] for name in kept)


def _pictures(
    store: TileStore, found: Findings, overview: Overview, tiles: Mapping[int, NDArray[np.uint8]]
) -> Pictures:
    return Pictures(
        overview.outlined,
        overview.tiled,
        [draw_channel(store, channel, overview) for channel in found.channels],
        draw_tiles(tiles),
    )


def _read_tiles(
    store: TileStore, found: Findings, slide: AbstractContextManager[Slide] | None
) -> dict[int, NDArray[np.uint8]]:
    """The pixels of the tiles that are shown, by row."""
    if found.tiles is None:
        return {}
    rows = rows_of(choose_tiles(found.tiles, found.order))
    if slide is None:
        return dict(zip(rows, store.read_pixels(rows), strict=True))
    with slide as opened:
        read = read_on_the_fly(store, opened)
        return {row: read(slice(row, row + 1))[0] for row in rows}


def _digest(value: object) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()
