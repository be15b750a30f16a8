"""The border of a mask as polygons, exactly along the pixels' edges."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def rings(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Trace the borders between what is in the mask and what is not.

    Parameters
    ----------
    mask
        ``(rows, columns)`` bool; outside it nothing is in the mask.

    Returns
    -------
    A list of ``(k, 2)`` float64 pixel corners (x, y): the turning points of closed rings, the last point
    repeating the first. No ring meets itself; two may touch in a corner. The mask lies to the right of the
    way: on screen, outer rings run clockwise and holes the other way, so that the signed areas (shoelace
    formula) add up to the number of pixels in the mask.

    >>> rings(np.array([[True, True]]))[0].tolist()
    [[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0], [0.0, 0.0]]
    """
    width = mask.shape[1] + 1  # corners in a row
    found = []
    for corners in _walk(_border(mask)):
        y, x = np.divmod(np.array(corners), width)
        points = np.stack([x, y], axis=1).astype(np.float64)
        turns = (2 * points != np.roll(points, 1, axis=0) + np.roll(points, -1, axis=0)).any(axis=1)
        points = points[turns]
        found.append(np.concatenate([points, points[:1]]))
    return found


def _border(mask: NDArray[np.bool_]) -> dict[int, list[int]]:
    """Every pixel edge of the border, clockwise around the tissue: corner to the corners that follow it.

    Corners are numbered row by row. Where two tissue pixels touch by a corner, two edges leave from it.
    """
    padded = np.pad(mask, 1)
    width = mask.shape[1] + 1
    sides = (  # the neighbour that must not be tissue, and where the edge starts and ends
        (padded[:-2, 1:-1], 0, 1),
        (padded[1:-1, 2:], 1, width + 1),
        (padded[2:, 1:-1], width + 1, width),
        (padded[1:-1, :-2], width, 0),
    )
    following: dict[int, list[int]] = {}
    for neighbour, start, end in sides:
        y, x = np.nonzero(mask & ~neighbour)
        for corner in (y * width + x).tolist():
            following.setdefault(corner + start, []).append(corner + end)
    return following


def _walk(following: dict[int, list[int]]) -> Iterator[list[int]]:
    """Use up the edges, one ring after another; a way that meets itself is cut into rings there."""
    for start in list(following):
        path, place = [start], {start: 0}
        while following[path[-1]]:
            corner = following[path[-1]].pop()
            if corner not in place:
                place[corner] = len(path)
                path.append(corner)
                continue
            ring = path[place[corner] :]
            del path[place[corner] + 1 :]
            for passed in ring[1:]:
                del place[passed]
            yield ring
