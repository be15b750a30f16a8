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
    formula) add up to the number of pixels in the mask. Pixels that touch by a corner alone do not hang
    together: each part of the mask that does, edge by edge, has one outer ring, and with its holes that is a
    valid polygon, whose inside is in one piece.

    >>> rings(np.array([[True, True]]))[0].tolist()
    [[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0], [0.0, 0.0]]
    """
    width = mask.shape[1] + 1  # corners in a row
    found = []
    for corners in _walk(_border(mask)):
        y, x = np.divmod(np.array(corners), width)
        points = np.stack([x, y], axis=1).astype(np.float64)
        found.append(np.concatenate([points, points[:1]]))
    return found


_RIGHT, _DOWN, _LEFT, _UP = range(4)

_Pieces = list[dict[int, int]]
"""By direction: where a straight piece of the border starts, and where it ends."""


def _border(mask: NDArray[np.bool_]) -> _Pieces:
    """Every straight piece of the border, clockwise around the mask; corners are numbered row by row."""
    width = mask.shape[1] + 1
    lines = np.pad(mask, ((1, 1), (0, 0)))
    columns = np.pad(np.ascontiguousarray(mask.T), ((1, 1), (0, 0)))
    above, below, before, after = lines[:-1], lines[1:], columns[:-1], columns[1:]
    pieces: _Pieces = [{}, {}, {}, {}]
    for direction, edges, line, step in (
        (_RIGHT, below & ~above, width, 1),
        (_LEFT, above & ~below, width, 1),
        (_DOWN, before & ~after, 1, width),
        (_UP, after & ~before, 1, width),
    ):
        framed = np.pad(edges, ((0, 0), (1, 1)))
        here, behind = framed[:, 1:], framed[:, :-1]
        # Flat: of two dimensions NumPy takes many times as long.
        ends = []
        for turn in (here & ~behind, behind & ~here):
            number, place = np.divmod(np.flatnonzero(turn), turn.shape[1])
            ends.append((number * line + place * step).tolist())
        pieces[direction] = dict(zip(*(ends if direction in {_RIGHT, _DOWN} else ends[::-1]), strict=True))
    return pieces


def _walk(pieces: _Pieces) -> Iterator[list[int]]:
    """Follow the pieces, one ring after another; a way that meets itself is cut into rings there.

    It turns right where it can: where two pixels touch by a corner, that keeps to the pixel it came along.
    """
    todo = dict.fromkeys(pieces[_RIGHT])
    while todo:
        first = corner = next(iter(todo))
        direction, path, place = _RIGHT, [first], {first: 0}
        while True:
            if direction == _RIGHT:
                del todo[corner]
            corner = pieces[direction][corner]
            right = (direction + 1) % 4
            direction = right if corner in pieces[right] else (direction - 1) % 4
            if corner in place:
                ring = path[place[corner] :]
                del path[place[corner] + 1 :]
                for passed in ring[1:]:
                    del place[passed]
                yield ring
                if corner == first and direction == _RIGHT:
                    break
            else:
                place[corner] = len(path)
                path.append(corner)
