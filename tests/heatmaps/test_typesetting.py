"""Laws of lines that are set at once: each number is the shortest that reads back; no line minds another."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from heatmaps.typesetting import hexadecimal, set_lines, shortest, words

NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SPECIAL = (
    0.0,
    -0.0,
    1.0,
    0.1,
    0.3,
    1e-4,
    9.9999e-5,
    1e-13,
    9e-14,
    999_999.94,
    1e6,
    1e-45,
    3.4028235e38,
    -2.5e-7,
)


def told(values: np.ndarray) -> list[str]:
    return set_lines([shortest(values), b"\n"], len(values)).decode("ascii").splitlines()


def assert_shortest(values: np.ndarray) -> None:
    lines = told(values)
    # NumPy's own, one at a time: the shortest decimals that tell a float32 from all others.
    assert list(map(float, lines)) == [float(str(value)) for value in values]
    np.testing.assert_array_equal(np.array(list(map(float, lines)), np.float32), values)
    np.testing.assert_array_equal(np.signbit(np.array(list(map(float, lines)))), np.signbit(values))
    assert all("." in line or "e" in line for line in lines)


@settings(max_examples=200)
@given(hnp.arrays(np.float32, st.integers(0, 20), elements=NUMBERS))
def test_numbers_are_the_shortest_that_read_back_as_the_same(values: np.ndarray) -> None:
    assert_shortest(values)


def test_so_are_those_of_every_size_and_at_the_borders_of_the_ways_to_write_them() -> None:
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.uniform(-16, 9, 20_000)
    tens = 10.0 ** np.arange(-15, 9)
    near = np.concatenate([np.nextafter(tens.astype(np.float32), np.float32(way)) for way in (0, 1e9)])
    assert_shortest(np.concatenate([sizes, rng.random(20_000), tens, near, SPECIAL]).astype(np.float32))
    assert told(np.array([0.9, 0, 1, 12.5, 0.00025, 1.5e-7], np.float32)) == [
        "0.9",
        "0.0",
        "1.0",
        "12.5",
        "0.00025",
        "1.5e-07",
    ]


@given(st.lists(st.tuples(st.binary(max_size=5), NUMBERS), min_size=1, max_size=9))
def test_lines_are_set_each_for_itself(lines: list[tuple[bytes, float]]) -> None:
    table = [word.replace(b"\0", b"").hex().encode() for word, _ in lines]
    values = np.array([value for _, value in lines], np.float32)
    index = np.arange(len(lines))[::-1]
    together = set_lines([b"<", words(table, index), b"|", shortest(values), b">"], len(lines))
    alone = [
        set_lines([b"<", table[place], b"|", shortest(values[row : row + 1]), b">"], 1)
        for row, place in enumerate(index)
    ]
    assert together == b"".join(alone)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 9))))
def test_bytes_are_set_as_hexadecimal(data: np.ndarray) -> None:
    assert set_lines([hexadecimal(data)], len(data)) == data.tobytes().hex().encode()
