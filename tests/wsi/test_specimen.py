"""Laws of the painted specimens: where tissue and lesions may be, and what colours they may have."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from wsi.specimen import MASK_SCALE, Specimen, draw_specimen, draw_stains, paint, with_lesion

SIZES = [(256, 256), (512, 384), (4096, 3072), (8192, 600)]


def drawn(seed: int, size: tuple[int, int], mpp: float = 0.5) -> Specimen:
    return draw_specimen(np.random.default_rng(seed), size=size, mpp=mpp)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(20))
def test_tissue_covers_a_quarter_to_a_half_in_at_most_three_pieces(seed: int, size: tuple[int, int]) -> None:
    specimen = drawn(seed, size)
    assert specimen.tissue.shape == (math.ceil(size[1] / MASK_SCALE), math.ceil(size[0] / MASK_SCALE))
    assert 0.25 < specimen.tissue.mean() < 0.5
    assert cv2.connectedComponents(specimen.tissue.astype(np.uint8))[0] - 1 <= 3
    assert not specimen.lesion.any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(20))
def test_a_lesion_lies_in_the_tissue_and_keeps_clear_of_glass(seed: int, size: tuple[int, int]) -> None:
    specimen = with_lesion(np.random.default_rng(seed), drawn(seed, size))
    assert specimen.lesion.any()
    inner = cv2.erode(np.pad(specimen.tissue, 1).astype(np.uint8), np.ones((3, 3)))[1:-1, 1:-1]
    assert not (specimen.lesion & (inner == 0)).any()
    assert cv2.connectedComponents(specimen.lesion.astype(np.uint8))[0] - 1 <= 2


@pytest.mark.parametrize("seed", range(4))
def test_colours_lie_in_the_plane_of_the_two_stains(seed: int) -> None:
    """Beer and Lambert: the optical density of a pixel is a sum of the two stains' vectors."""
    stains = draw_stains(np.random.default_rng(seed))
    image = paint(np.random.default_rng(seed), drawn(seed, (768, 768)), stains).reshape(-1, 3)
    density = -np.log(np.clip(image, 1, None) / stains.glass)
    density = density[density.min(axis=-1) > 0.15]
    vectors = np.stack([stains.haematoxylin, stains.eosin], axis=-1)
    amounts, *_ = np.linalg.lstsq(vectors, density.T)
    assert np.abs(vectors @ amounts - density.T).mean() < 0.02
    assert (amounts > -0.1).mean() > 0.99


def test_glass_has_the_colour_of_glass() -> None:
    stains = draw_stains(np.random.default_rng(3))
    specimen = drawn(3, (768, 768))
    image = paint(np.random.default_rng(3), specimen, stains)
    far = cv2.dilate(specimen.tissue.astype(np.uint8), np.ones((9, 9))) == 0
    glass = image[cv2.resize(far.astype(np.uint8), (768, 768), interpolation=cv2.INTER_NEAREST) > 0]
    assert np.abs(np.median(glass, axis=0) - stains.glass).max() <= 1.5
    assert glass.std(axis=0).min() > 0.5  # a sensor's noise


def test_nuclei_have_their_size_in_microns() -> None:
    """The same tissue at half the microns per pixel has nuclei of twice the pixels across."""
    everywhere = np.ones((48, 48), np.bool_)
    extents = []
    for mpp in (0.5, 0.25):
        stains = draw_stains(np.random.default_rng(0))
        image = paint(np.random.default_rng(0), Specimen((768, 768), mpp, everywhere, ~everywhere), stains)
        red = image[..., 0].astype(np.float32)
        dark = (cv2.GaussianBlur(red, (0, 0), 1) < 0.72 * np.median(red)).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(dark)
        areas = stats[1:, cv2.CC_STAT_AREA]
        extents.append(math.sqrt(np.median(areas[areas * mpp**2 > 10])))  # no smaller than a nucleus: 10 µm²
    assert extents[1] / extents[0] == pytest.approx(2, rel=0.25)


def test_painting_is_reproducible_and_has_the_size_asked_for() -> None:
    specimen = drawn(1, (301, 259))
    stains = draw_stains(np.random.default_rng(0))
    first, second = (paint(np.random.default_rng(5), specimen, stains) for _ in range(2))
    assert first.shape == (259, 301, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
