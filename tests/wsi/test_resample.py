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
    """Every output pixel: each source pixel times the share of the footprint that it fills."""
    rows = shares(window.y, window.height, size[1], image.shape[0])
    columns = shares(window.x, window.width, size[0], image.shape[1])
    planes = np.moveaxis(image.astype(float), -1, 0)  # (channel, row, column)
    return np.moveaxis(rows @ planes @ columns.T, 0, -1)


def shares(start: float, length: float, count: int, pixels: int) -> NDArray[np.float64]:
    """(count, pixels): how much of each output pixel's footprint each source pixel fills."""
    step = length / count
    first = (start + np.arange(count) * step)[:, None]
    left = np.arange(pixels)[None]
    return np.clip(np.minimum(first + step, left + 1) - np.maximum(first, left), 0, None) / step


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
    """From a whole pixel on, at any ratio."""
    image, window = noise(seed, 20, 20), Region(x, y, width, height)
    found = area_resample(image, window, (5, 4))
    assert found.shape == (4, 5, 3)
    assert np.abs(found - by_definition(image, window, (5, 4))).max() <= 0.75


@pytest.mark.parametrize("ratio", [1.0, 1.0005, 1.002, 1.0021, 1.0023, 1.01, 1.05, 1.9, 1.999, 2.001, 3.7])
@pytest.mark.parametrize("start", [0, 7, 7.3])
def test_equals_the_definition_on_whole_tiles_at_ratios_near_one(ratio: float, start: float) -> None:
    """A scan of 0.499 µm at 0.5: OpenCV copies instead of scaling where the size does not change."""
    image = noise(3, 800, 850)
    window = Region(start, start, 224 * ratio, 200 * ratio)
    found = area_resample(image, window, (224, 200))
    # Rounding is half a grey level; OpenCV also leaves out shares below a thousandth of a pixel.
    assert np.abs(found - by_definition(image, window, (224, 200))).max() <= (0.51 if start == 7.3 else 0.75)


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
