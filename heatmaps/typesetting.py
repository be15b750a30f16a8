"""Many lines of text at once: columns of characters side by side, for a million tiles and their numbers.

A *column* is an array ``(n, width)`` uint8 of ASCII, a line each; 0 is a place where a line has no character.
Nothing is done for one line or one number alone, which in Python costs more than all the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.uint8]

_TENS = 10.0 ** np.arange(23)
"""Each is exact, so a whole number below 2^53 over one of them is rounded once, just as a reader rounds."""
_LEAST, _MOST = 1e-13, 1e6
"""Between them numbers are written here, of nine digits at most; any float32 is told by so many."""
_FIXED = -4
"""Power of ten from which on there is no exponent."""
_PLACES = 12
"""Decimals at most: nine digits after ``0.000``."""
_POINT = np.uint8(ord("."))
_MINUS = np.uint8(ord("-"))

_fours = (np.arange(10_000)[:, None] // [1000, 100, 10, 1] % 10 + ord("0")).astype(np.uint8)
_FOURS = _fours.view(np.uint32)[:, 0].copy()
"""Four digits, by the number."""
_HEX = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), np.uint16)
"""Two digits, by the byte."""
_KEPT = np.where(np.arange(_PLACES) < np.arange(_PLACES + 1)[:, None], 0xFF, 0).astype(np.uint8)
"""What stays of the decimals when there are so many."""
_EXPONENTS = (
    np.array([b"", *(b"e-%02d" % shift for shift in range(1, 23))], "S4").view(np.uint8).reshape(-1, 4)
)


def set_lines(columns: Sequence[Column | bytes], count: int) -> bytes:
    """Put columns side by side; what is given as bytes is the same in every one of the `count` lines."""
    plain = b"".join(one if isinstance(one, bytes) else bytes(one.shape[1]) for one in columns)
    lines, at = np.empty((count, len(plain)), np.uint8), 0
    lines[:] = np.frombuffer(plain, np.uint8)
    for one in columns:
        width = len(one) if isinstance(one, bytes) else one.shape[1]
        if not isinstance(one, bytes):
            lines[:, at : at + width] = one
        at += width
    return lines.tobytes().translate(None, b"\0")


def words(table: Sequence[bytes], index: NDArray[np.integer[Any]]) -> Column:
    """In each line the word of that number."""
    held = np.array(table, "S")
    return held.view(np.uint8).reshape(len(table), held.itemsize).take(index, axis=0)


def hexadecimal(data: NDArray[np.uint8]) -> Column:
    """Bytes ``(n, k)`` as ``(n, 2 k)`` digits."""
    return _HEX.take(data).view(np.uint8)


def shortest(values: NDArray[np.float32]) -> Column:
    """Finite float32 ``(n,)`` as the shortest decimals that read back as the same, with a point or exponent.

    Of several such decimals the one nearest to the number: 0.9 and not 0.8999999761581421. For what is not
    finite nothing sensible is written.
    """
    size = np.abs(values)
    usual = ((size >= _LEAST) & (size < _MOST)) | (size == 0)
    if usual.all():
        return _decimals(values)
    others, decimals = values[~usual].astype("S"), _decimals(values[usual])
    column = np.zeros((len(values), max(others.itemsize, decimals.shape[1])), np.uint8)
    column[usual, : decimals.shape[1]] = decimals
    column[~usual, : others.itemsize] = others.view(np.uint8).reshape(len(others), -1)
    return column


def _decimals(values: NDArray[np.float32]) -> Column:
    """Sign, whole part, point, at least one decimal, exponent."""
    number, places, shift = _shortest_whole(np.abs(values))
    whole = np.floor(number / _TENS.take(places))
    rest = ((number - whole * _TENS.take(places)) * _TENS.take(_PLACES - places)).astype(np.int64)
    high, low = rest // 10**8, (rest % 10**8).astype(np.uint32)
    after = np.empty((len(values), 3), np.uint32)
    for group, part in enumerate((high, low // 10**4, low % 10**4)):
        after[:, group] = _FOURS.take(part)
    kept = np.maximum(places, 1)
    decimals = after.view(np.uint8) & _KEPT.take(kept, axis=0)
    before, minus = _whole(whole.astype(np.uint32)), np.signbit(values)
    columns = [before, np.full_like(before[:, :1], _POINT), decimals[:, : kept.max(initial=1)]]
    if minus.any():
        columns.insert(0, (minus * _MINUS)[:, None])
    if shift.any():
        columns.append(_EXPONENTS.take(shift, axis=0))
    return np.concatenate(columns, axis=1)


def _shortest_whole(
    size: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]:
    """Numbers, places and shifts: ``number / 10**(places + shift)`` is `size`, in the fewest digits."""
    exact = size.astype(np.float64)
    leading = np.floor(np.log10(np.maximum(exact, _LEAST))).astype(np.intp)
    places = 8 - leading
    number = np.rint(exact * _TENS.take(places))
    for _ in range(3):  # most need seven to nine digits
        same = _one_fewer(exact, size, number, places)
    rows = np.flatnonzero(same & (places > 0))
    while len(rows):
        fewer = number[rows], places[rows]
        same = _one_fewer(exact[rows], size[rows], *fewer)
        number[rows], places[rows] = fewer
        rows = rows[same & (fewer[1] > 0)]
    shift = np.where(leading < _FIXED, np.minimum(-leading, places), 0)
    return number, places - shift, shift


def _one_fewer(
    exact: NDArray[np.float64],
    size: NDArray[np.float32],
    number: NDArray[np.float64],
    places: NDArray[np.intp],
) -> NDArray[np.bool_]:
    """Take a place from those numbers that are still told without it; returns which they are."""
    scale = _TENS.take(places - 1)
    tried = np.rint(exact * scale)
    same: NDArray[np.bool_] = (tried / scale).astype(np.float32) == size
    np.copyto(number, tried, where=same)
    places -= same
    return same


def _whole(numbers: NDArray[np.uint32]) -> Column:
    """Whole numbers below 10^8, without zeros in front."""
    if numbers.max(initial=0) < 10:
        return (numbers + ord("0")).astype(np.uint8)[:, None]
    digits = np.stack([_FOURS.take(numbers // 10**4), _FOURS.take(numbers % 10**4)], axis=1).view(np.uint8)
    return digits * (numbers[:, None] >= [10**7, 10**6, 10**5, 10**4, 1000, 100, 10, 0])
