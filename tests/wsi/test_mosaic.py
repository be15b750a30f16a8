"""Laws of the mosaics: every class is there, in few parts, as much of it as asked; interiors are certain."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from wsi.errors import UsageError
from wsi.mosaic import Mosaic, draw_mosaic, interiors, spread
from wsi.polygons import fill
from wsi.specimen import MASK_SCALE
from wsi.tissues import TISSUES

SIZE = (2048, 2048)


def drawn(seed: int, count: int = 5, size: tuple[int, int] = SIZE) -> Mosaic:
    rng = np.random.default_rng(seed)
    names = rng.permutation(list(TISSUES))[:count].tolist()
    return draw_mosaic(rng, size=size, mpp=0.5, shares=dict.fromkeys(names, 1.0))


@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("seed", range(6))
def test_each_class_has_its_share_in_one_to_three_territories(seed: int, count: int) -> None:
    mosaic = drawn(seed, count)
    assert mosaic.index.shape == (128, 128)
    assert set(np.unique(mosaic.index)) == set(range(count + 1))
    assert 0.4 < (mosaic.index > 0).mean() < 0.62
    names = [name for name, _ in mosaic.territories()]
    assert all(1 <= names.count(name) <= 3 for name in mosaic.classes)
    assert all(share == pytest.approx(1 / count, abs=0.05) for share in mosaic.shares().values())


def test_shares_are_those_asked_for() -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        asked = {"stroma": 6.0, "adipose": 2.5, "tumour": 1.5}
        shares = draw_mosaic(rng, size=SIZE, mpp=0.5, shares=asked).shares()
        assert sum(shares.values()) == pytest.approx(1)
        assert all(shares[name] == pytest.approx(asked[name] / 10, abs=0.04) for name in asked)


@pytest.mark.parametrize("seed", range(6))
def test_territories_part_the_tissue(seed: int) -> None:
    mosaic = drawn(seed)
    masks = [mask for _, mask in mosaic.territories()]
    assert np.array_equal(np.sum(masks, axis=0), mosaic.index > 0)
    for mask in masks:
        assert cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] == 2


@pytest.mark.parametrize("size", [SIZE, (1501, 1203)])
@pytest.mark.parametrize("seed", range(4))
def test_interiors_lie_in_their_class_and_keep_clear_of_its_border(seed: int, size: tuple[int, int]) -> None:
    mosaic = drawn(seed, 4, size)
    found = interiors(mosaic, margin_um=16)
    assert {one.name for one in found} == set(mosaic.classes)
    taken = np.zeros(mosaic.index.shape, int)
    for one in found:
        inside = fill(one.polygons, shape=mosaic.index.shape, scale_x=MASK_SCALE, scale_y=MASK_SCALE)
        assert inside.any()
        own = mosaic.index == mosaic.classes.index(one.name or "") + 1
        # 16 microns are two pixels of the mask: a disc that wide around each pixel is of the class too.
        disc = cv2.getStructuringElement(cv2.MORPH_CROSS, (5, 5))
        assert own[cv2.dilate(inside.astype(np.uint8), disc) > 0].all()
        taken += inside
    assert taken.max() == 1


@pytest.mark.parametrize("seed", range(4))
def test_outlines_are_valid_polygons(seed: int) -> None:
    """Whole pixels; no corner comes twice, so that no ring touches itself or another one."""
    for one in interiors(drawn(seed)):
        rings = [ring[:-1] for polygon in one.polygons for ring in (polygon.shell, *polygon.holes)]
        corners = np.concatenate(rings)
        assert len({tuple(corner) for corner in corners.tolist()}) == len(corners)
        assert (corners % MASK_SCALE == 0).all()


def test_holes_are_holes() -> None:
    index = np.zeros((40, 40), np.uint8)
    index[5:35, 5:35] = 1
    index[18:22, 18:22] = 2
    inner, *_ = interiors(Mosaic((640, 640), 0.5, ("stroma", "blood"), index), margin_um=8)
    (polygon,) = inner.polygons
    assert len(polygon.holes) == 1
    mask = fill([polygon], shape=(40, 40), scale_x=16, scale_y=16)
    assert mask[10, 10]
    assert not mask[17:23, 18:22].any()


def test_spreading_gives_each_place_the_nearest_number() -> None:
    index = np.zeros((30, 40), np.uint8)
    index[3, 5], index[20:25, 30] = 7, 9
    found = spread(index)
    assert np.array_equal(found[index > 0], index[index > 0])
    assert found[0, 0] == 7
    assert found[29, 39] == 9
    assert (found > 0).all()


@pytest.mark.parametrize("shares", [{}, {"stroma": 0.0}, {"stroma": 1.0, "unicorn": 1.0}])
def test_what_cannot_be_drawn_is_refused(shares: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="unicorn" if shares and len(shares) > 1 else "shares of tissue"):
        draw_mosaic(np.random.default_rng(0), size=SIZE, mpp=0.5, shares=shares)


def test_a_slide_without_room_says_so() -> None:
    with pytest.raises(UsageError, match="no room for tumour"):
        draw_mosaic(np.random.default_rng(0), size=SIZE, mpp=0.5, shares={"stroma": 1.0, "tumour": 1e-6})
