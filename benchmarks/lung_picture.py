"""The picture of `benchmarks.fewshot_real`: real slides, what was marked, and what two models made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.lung_regions import KINDS, Rectangle
from tiling.store import TileStore
from tiling.survey import read_thumbnail
from wsi.durable import write_file

_EDGE, _TITLE = 470, 24
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_BLACK = (0, 0, 0)
Rgb = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Look:
    """What a model says of each of a slide's n tiles."""

    store: TileStore
    classes: tuple[str, ...]
    scores: NDArray[np.float32]
    """``(n, C)``."""
    uncertainty: NDArray[np.float32]
    """``(n,)``."""


def draw_looks(
    path: Path, looks: Sequence[Look], *, regions: tuple[Sequence[Rectangle], ...], quality: int = 80
) -> None:
    """Write a JPEG, a line a slide: the slide with all regions, said at first, said in the end, uncertainty.

    Parameters
    ----------
    looks
        Each slide by the first model, then each by the last one.
    regions
        Marked at first, marked later, held out: filled with a thick or a thin edge, and in outline.
    """
    half = len(looks) // 2
    lines = []
    for first, last in zip(looks[:half], looks[half:], strict=True):
        grey = np.repeat(255 * last.uncertainty[:, None], 3, axis=1)
        panels = {
            "regions": _with_regions(first, regions),
            "said after the first marks": _over(first, _said(first)),
            "said after the corrections": _over(last, _said(last)),
            "uncertainty (black sure, white no idea)": _over(last, grey, alpha=0.85),
        }
        lines.append(np.hstack([_titled(panel, title) for title, panel in panels.items()]))
    picture = np.vstack([*lines, _legend(lines[0].shape[1])])
    _, jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    write_file(path, jpeg.tobytes())


def _said(look: Look) -> NDArray[np.float64]:
    """``(n, 3)``: the colour of the class that scores highest."""
    colours = np.array([KINDS[name] for name in look.classes], np.float64)
    return np.asarray(colours[look.scores.argmax(axis=1)], np.float64)


def _over(look: Look, colours: NDArray[np.floating], *, alpha: float = 0.6) -> Rgb:
    """The thumbnail, grey under the tiles and tinted."""
    plain, (scale, _) = _small(look)
    picture, side = plain.copy(), look.store.record["tile_level0"][0]
    for (x, y), colour in zip(look.store.origins.tolist(), colours, strict=True):
        edges = [round(v / scale) for v in (y, y + side, x, x + side)]
        at = slice(edges[0], edges[1]), slice(edges[2], edges[3])
        light = plain[at].mean(axis=2, keepdims=True)
        picture[at] = np.rint(alpha * colour + (1 - alpha) * light).astype(np.uint8)
    return picture


def _with_regions(look: Look, regions: tuple[Sequence[Rectangle], ...]) -> Rgb:
    picture, (scale, _) = _small(look)
    for kinds, (filled, edge) in zip(regions, ((True, 2), (True, 1), (False, 2)), strict=True):
        for one in (one for one in kinds if one.slide == look.store.slide_id):
            start, stop = ((round(x / scale), round(y / scale)) for x, y in one.corners[::2])
            colour = KINDS[one.name]
            if filled:
                cv2.rectangle(picture, start, stop, colour, cv2.FILLED)
            cv2.rectangle(picture, start, stop, _BLACK if filled else colour, edge)
    return picture


def _small(look: Look) -> tuple[Rgb, tuple[float, float]]:
    """The thumbnail within `_EDGE`, and its level-0 pixels per pixel."""
    thumbnail, (scale_x, scale_y) = read_thumbnail(look.store)
    factor = _EDGE / max(thumbnail.shape[:2])
    size = (round(thumbnail.shape[1] * factor), round(thumbnail.shape[0] * factor))
    small = np.asarray(cv2.resize(thumbnail, size, interpolation=cv2.INTER_AREA), np.uint8)
    return small, (scale_x / factor, scale_y / factor)


def _titled(panel: Rgb, title: str) -> Rgb:
    """On white, with the title above."""
    page = np.full((_EDGE + _TITLE + 4, _EDGE + 6, 3), 255, np.uint8)
    page[_TITLE : _TITLE + panel.shape[0], : panel.shape[1]] = panel
    cv2.putText(page, title, (4, 16), _FONT, 0.48, _BLACK, 1, cv2.LINE_AA)
    return page


def _legend(width: int) -> Rgb:
    """Colours of the kinds, and of edges."""
    page = np.full((_TITLE + 6, width, 3), 255, np.uint8)
    x = 6
    for name, colour in KINDS.items():
        cv2.rectangle(page, (x, 6), (x + 18, 20), colour, cv2.FILLED)
        cv2.putText(page, name, (x + 24, 18), _FONT, 0.48, _BLACK, 1, cv2.LINE_AA)
        x += 140
    words = "filled: learnt from (thick edge: at first); outline: held out"
    cv2.putText(page, words, (x, 18), _FONT, 0.48, _BLACK, 1, cv2.LINE_AA)
    return page
