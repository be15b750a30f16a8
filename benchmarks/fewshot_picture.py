"""The picture of `benchmarks.fewshot`: one new slide, and accuracy over what is marked."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from benchmarks.fewshot_loop import STRATEGIES, Rows, Shown, Story
from mil.fewshot.verdicts import BASELINES
from tiling.survey import read_thumbnail
from wsi.durable import write_file
from wsi.tissues import TISSUES

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_GREYS = ("#000000", "#555555", "#888888", "#AAAAAA")
_MARKERS = "osD^vP*Xph"
Rgb = NDArray[np.uint8]


def draw_picture(
    path: Path,
    *,
    levels: Mapping[str, Mapping[str, Any]],
    stories: Sequence[Story],
    shown: Shown,
    quality: int = 82,
) -> None:
    """Write a JPEG: above the slide, below a plot for each level of ``fewshot.json`` and one of the loop."""
    figure = Figure(figsize=(15, 8.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    ((above,), (below,)) = figure.subfigures(2, 1, height_ratios=[1, 1.15], squeeze=False)
    _slide(above.subplots(1, 5), shown)
    handles = [Patch(color=_colour(name), label=name) for name in shown.ground.classes]
    above.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize="small")
    plots = below.subplots(1, len(levels) + 1)
    for axes, (title, content) in zip(plots, levels.items(), strict=False):
        _shots(axes, title, content)
    _loop(plots[-1], stories)
    stream = io.BytesIO()
    figure.savefig(stream, format="jpg", pil_kwargs={"quality": quality})
    write_file(path, stream.getvalue())


def _slide(plots: Sequence[Axes], shown: Shown) -> None:
    """The marks, the truth, what the model said at first and in the end, and how unsure it is."""
    ground = shown.ground
    thumbnail, _ = read_thumbnail(ground.store)
    width, height = ground.store.record["slide_size"]
    frame = (0.0, float(width), float(height), 0.0)
    side = round(ground.store.record["tile_level0"][0])
    marked, corrected = shown.marks[: shown.first_marks], shown.marks[shown.first_marks :]
    count = sum(len(tiles) for _, tiles in marked)
    more = sum(len(tiles) for _, tiles in corrected)
    plots[0].set_title(f"marked: {count} (o), then {more} (+)")
    plots[1].set_title("truth at the tiles' centres")
    plots[2].set_title(f"after {count}: {_right(ground.truth, shown.first)}")
    plots[3].set_title(f"after {count + more}: {_right(ground.truth, shown.last)}")
    plots[4].set_title("uncertainty: white for no idea")
    for axes in plots:
        axes.imshow(thumbnail, extent=frame)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.title.set_fontsize("medium")
    for marks, sign in ((marked, "o"), (corrected, "P")):
        for name, tiles in marks:
            x, y = ground.store.origins[tiles].T + side / 2
            plots[0].scatter(x, y, s=22, marker=sign, color=_colour(name), edgecolors="black", linewidths=0.7)
    for axes, said in zip(plots[1:4], (ground.truth, shown.first, shown.last), strict=True):
        colours = np.array([_colour(name) for name in ground.classes])
        axes.imshow(_painted(shown, colours[np.maximum(said, 0)], said >= 0), extent=frame)
    grey = np.repeat(shown.uncertainty[:, None], 3, axis=1)
    plots[4].imshow(_painted(shown, grey, np.ones(len(grey), bool)), extent=frame)


def _right(truth: Rows, said: Rows) -> str:
    return f"{(truth == said)[truth >= 0].mean():.0%} right"


def _painted(shown: Shown, colours: NDArray[np.floating[Any]], there: NDArray[np.bool_]) -> Rgb:
    """(height, width, 4): a square for each tile, nothing elsewhere; 16 level-0 pixels a pixel."""
    store = shown.ground.store
    width, height = store.record["slide_size"]
    side = round(store.record["tile_level0"][0])
    picture = np.zeros((height // 16, width // 16, 4), np.uint8)
    for (x, y), colour, is_there in zip(store.origins.tolist(), colours, there, strict=True):
        if is_there:
            picture[y // 16 : (y + side) // 16, x // 16 : (x + side) // 16] = (*(255 * colour), 255)
    return picture


def _colour(name: str) -> tuple[float, float, float]:
    red, green, blue = TISSUES[name].colour
    return red / 255, green / 255, blue / 255


def _shots(axes: Axes, title: str, content: Mapping[str, Any]) -> None:
    """Accuracy of every method: baselines grey and dashed, meta-learners coloured."""
    names = [one["method"] for one in content["shots"][0]["methods"]]
    learners = [name for name in names if name not in BASELINES]
    for number, name in enumerate(names):
        found = [shots["methods"][number]["accuracy"] for shots in content["shots"]]
        across = np.arange(len(found)) + 0.6 * ((number + 0.5) / len(names) - 0.5)
        is_base = name in BASELINES
        axes.errorbar(
            across,
            [one["mean"] for one in found],
            [one["high"] - one["mean"] for one in found],
            ms=4,
            lw=1,
            elinewidth=2,
            label=name,
            marker=_MARKERS[number],
            ls="--" if is_base else "-",
            color=_GREYS[BASELINES.index(name)] if is_base else _COLOURS[learners.index(name)],
        )
    axes.axhline(1 / content["tasks"]["ways"], ls=":", lw=1, color="grey", label="by chance")
    axes.set_xticks(range(len(content["shots"])), [str(found["shots"]) for found in content["shots"]])
    axes.set_xlabel(f"shots: {title} marked of each class")
    axes.set_ylabel(f"accuracy over {content['tasks']['episodes']} tasks, 95 % interval")
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.legend(fontsize="x-small", ncols=2, loc="lower right")


def _loop(axes: Axes, stories: Sequence[Story]) -> None:
    """Mean over slides and draws; thick on the other slide, thin on the rest of the marked one."""
    for number, strategy in enumerate(STRATEGIES):
        told = [story.rounds for story in stories if story.strategy == strategy]
        tiles = [each.tiles for each in told[0]]
        style: dict[str, Any] = {"color": _COLOURS[number], "marker": _MARKERS[number], "ms": 4}
        here, there = (
            [float(np.mean([getattr(rounds[i], side) for rounds in told])) for i in range(len(tiles))]
            for side in ("here", "there")
        )
        axes.plot(tiles, here, lw=2, label=f"{strategy}, rest of the slide", **style)
        axes.plot(tiles, there, lw=1, ls=":", label=f"{strategy}, the patient's other slide", **style)
    axes.set_xlabel("tiles marked on a slide of eight tissues")
    axes.set_ylabel(f"accuracy, mean over {len(told)} first sets of marks")
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.legend(fontsize="x-small")
