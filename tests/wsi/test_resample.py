"""Area resampling against OpenCV and against the definition."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsi.geometry import Region
from wsi.resample import area_resample


def noise(seed: int, rows: int = 60, columns: int = 80) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def by_definition(image: NDArray[np.uint8], window: Region, size: tuple[int, int]) -> NDArray[np.float64]:
    """Every output pixel: each source pixel times its overlap, one by one."""
    out = np.zeros((size[1], size[0], 3))
    step_x, step_y = window.width / size[0], window.height / size[1]
    for j in range(size[1]):
        for i in range(size[0]):
            left, top = window.x + i * step_x, window.y + j * step_y
            for row in range(image.shape[0]):
                tall = min(top + step_y, row + 1) - max(top, row)
                if tall <= 0:
                    continue
                for column in range(image.shape[1]):
                    wide = min(left + step_x, column + 1) - max(left, column)
                    if wide > 0:
                        out[j, i] += image[row, column] * (wide * tall / (step_x * step_y))
    return out


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 99),
    x=st.floats(0, 5),
    y=st.floats(0, 5),
    width=st.floats(6, 14),
    height=st.floats(6, 14),
)
def test_equals_the_definition_at_any_offset_and_ratio(
    seed: int, x: float, y: float, width: float, height: float
) -> None:
    image, window = noise(seed, 20, 20), Region(x, y, width, height)
    expected = by_definition(image, window, (5, 4))
    assert np.abs(area_resample(image, window, (5, 4)) - expected).max() <= 0.5 + 1e-3


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99),
    x=st.integers(0, 5),
    y=st.integers(0, 5),
    width=st.floats(5, 14),
    height=st.floats(4, 14),
)
def test_equals_the_definition_on_the_fast_path(
    seed: int, x: int, y: int, width: float, height: float
) -> None:
    """From a whole pixel on, at any ratio: OpenCV does it, and may round a half the other way."""
    image, window = noise(seed, 20, 20), Region(x, y, width, height)
    found = area_resample(image, window, (5, 4))
    assert found.shape == (4, 5, 3)
    assert np.abs(found - by_definition(image, window, (5, 4))).max() <= 0.51


@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 8])
def test_equals_opencv_on_whole_pixels(ratio: int) -> None:
    image = noise(1, 48, 96)
    ours = area_resample(image, Region(0, 0, 96, 48), (96 // ratio, 48 // ratio))
    theirs = cv2.resize(image, (96 // ratio, 48 // ratio), interpolation=cv2.INTER_AREA)
    assert (ours == theirs).all()


@given(st.integers(0, 255), st.floats(0, 3), st.floats(3, 40))
def test_a_flat_image_stays_flat(value: int, offset: float, width: float) -> None:
    image = np.full((50, 50, 3), value, np.uint8)
    assert (area_resample(image, Region(offset, offset, width, width), (3, 3)) == value).all()


def test_halves_of_a_window_are_its_halves() -> None:
    image = noise(2)
    whole = area_resample(image, Region(1.3, 2.7, 40, 30), (16, 12))
    left = area_resample(image, Region(1.3, 2.7, 20, 30), (8, 12))
    assert (whole[:, :8] == left).all()
