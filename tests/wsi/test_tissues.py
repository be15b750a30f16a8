"""Laws of the painted tissues: each has its own texture, whatever the stain; and what sites do to all."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import cv2
import numpy as np
import pytest

from wsi.canvas import paint_mosaic, paint_tissue
from wsi.mosaic import Mosaic
from wsi.sites import Site, draw_site, scan, vary_site
from wsi.specimen import EOSIN, HAEMATOXYLIN, Stains
from wsi.texture import Bytes
from wsi.tissues import TISSUES
from wsi.tissues.patch import Patch
from wsi.tissues.weave import divide, weave

PX = 400
PLAIN = Site(
    Stains(np.full(3, 243.0), np.array(HAEMATOXYLIN) * 1.3, np.array(EOSIN)),
    saturation=1,
    gamma=1,
    black=0,
    blur_um=0.15,
    noise=1,
    quality=85,
)


def painted(name: str, seed: int, site: Site = PLAIN) -> Bytes:
    return paint_tissue(np.random.default_rng(seed), name, site, size=(PX, PX))


def described(image: Bytes, site: Site = PLAIN) -> np.ndarray:
    """(7,): the amounts of both stains and their spread, edges, nuclei, and how far edges lie one way."""
    density = -np.log(np.clip(np.arange(256), 1, None)[:, None] / site.stains.glass)  # of each grey level
    unmix = np.linalg.pinv(np.stack([site.stains.haematoxylin, site.stains.eosin], axis=-1))
    shares = (unmix[:, None] * density).astype(np.float32)  # (2, 256, 3)
    blue, pink = (sum(share[image[..., c], c] for c in range(3)) for share in shares)
    smooth = cv2.GaussianBlur(blue + pink, (0, 0), 1.5)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    steep = np.hypot(across, down)
    one_way = np.hypot((across**2 - down**2).mean(), 2 * (across * down).mean()) / (steep**2).mean()
    dark = (cv2.GaussianBlur(blue, (0, 0), 1) > 0.42).astype(np.uint8)
    areas = cv2.connectedComponentsWithStats(dark)[2][1:, cv2.CC_STAT_AREA]
    nuclei = np.log1p((areas > 25).sum())
    return np.array([blue.mean(), pink.mean(), blue.std(), pink.std(), steep.mean(), nuclei / 4, one_way])


@pytest.fixture(scope="module")
def descriptions() -> dict[str, np.ndarray]:
    """(3, 7) of each tissue."""
    return {name: np.stack([described(painted(name, seed)) for seed in range(3)]) for name in TISSUES}


def named(centres: np.ndarray, patches: np.ndarray, scale: np.ndarray) -> float:
    """The share of patches (tissues, d) that are nearer to their own tissue's centre than to any other."""
    distances = np.linalg.norm((patches[:, None] - centres[None]) / scale, axis=-1)
    return float((distances.argmin(axis=1) == np.arange(len(patches))).mean())


def recognised(values: np.ndarray) -> float:
    """The same for (tissues, patches, d), each patch against the others."""
    scale = values.std(axis=(0, 1))
    return float(
        np.mean(
            [
                named(np.delete(values, place, axis=1).mean(axis=1), values[:, place], scale)
                for place in range(values.shape[1])
            ]
        )
    )


def test_a_tissue_is_nearer_to_itself_than_to_any_other(descriptions: dict[str, np.ndarray]) -> None:
    """Seven plain figures name two patches of three at least; chance is one of 22."""
    assert recognised(np.stack(list(descriptions.values()))) > 0.66


def test_colour_alone_tells_less_than_texture(descriptions: dict[str, np.ndarray]) -> None:
    values = np.stack(list(descriptions.values()))
    assert recognised(values[..., :2]) < recognised(values) - 0.1


def test_under_the_conditions_of_another_site_less_is_recognised(descriptions: dict[str, np.ndarray]) -> None:
    values = np.stack(list(descriptions.values()))
    scale, centres = values.std(axis=(0, 1)), values[:, 1:].mean(axis=1)
    abroad = []
    for seed in (1, 2):
        site = draw_site(np.random.default_rng(seed))
        shown = np.stack([described(painted(name, 0, site)) for name in TISSUES])
        abroad.append(named(centres, shown, scale))
    assert np.mean(abroad) < named(centres, values[:, 0], scale) - 0.2


def test_tissues_hold_what_they_are_named_for(descriptions: dict[str, np.ndarray]) -> None:
    blue, pink, _, _, _, nuclei, one_way = np.moveaxis(
        np.stack([descriptions[name].mean(axis=0) for name in TISSUES]), -1, 0
    )
    of = {name: place for place, name in enumerate(TISSUES)}
    assert {list(TISSUES)[place] for place in np.argsort(blue)[-3:]} <= {"lymphoid", "lymphoma", "tumour"}
    assert {list(TISSUES)[place] for place in np.argsort(pink)[:3]} <= {
        "adipose",
        "mucin",
        "cartilage",
        "oedema",
    }
    assert pink[of["muscle"]] > pink[of["stroma"]] > pink[of["nerve"]] > pink[of["adipose"]]
    assert nuclei[of["lymphoid"]] > nuclei[of["stroma"]] > nuclei[of["blood"]]
    assert one_way[of["muscle"]] > 0.5 > one_way[of["liver"]]
    assert one_way[of["muscle"]] > one_way[of["nerve"]] > one_way[of["lymphoid"]]


@pytest.mark.parametrize("name", TISSUES)
def test_painting_keeps_to_the_patch_and_to_what_stains_can_be(name: str) -> None:
    patch = Patch((302, 206), 0.5)
    painting = TISSUES[name].paint(np.random.default_rng(2), patch)
    for layer in (painting.eosin, painting.haematoxylin):
        assert layer.shape == (103, 151)
        assert np.isfinite(layer).all()
        assert -40 < layer.min() <= layer.max() < 255
    for crowd in painting.crowds:
        assert crowd.spots.shape == (len(crowd.turns), 2)
        assert np.isfinite(crowd.spots).all()
        assert np.isfinite(crowd.turns).all()


@pytest.mark.parametrize("mpp", [0.25, 1.0])
def test_tissues_are_drawn_in_microns(mpp: float) -> None:
    """Half the microns per pixel show a quarter of the area, so about a quarter of the nuclei."""

    def count(at: float) -> int:
        painting = TISSUES["liver"].paint(np.random.default_rng(0), Patch((PX, PX), at))
        return sum(len(crowd.spots) for crowd in painting.crowds)

    assert count(mpp) / count(0.5) == pytest.approx((mpp / 0.5) ** 2, rel=0.2)


def test_painting_is_reproducible_and_has_the_size_asked_for() -> None:
    mosaic = Mosaic((301, 259), 0.5, ("glands", "blood"), np.ones((17, 19), np.uint8))
    mosaic.index[:, 9:] = 2
    first, second = (paint_mosaic(np.random.default_rng(5), mosaic, PLAIN) for _ in range(2))
    assert first.shape == (259, 301, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)


# Sites -----------------------------------------------------------------------------------------------------


def test_glass_has_the_colour_of_glass_at_every_site() -> None:
    clear = np.zeros((64, 64), np.uint8)
    for seed in range(8):
        site = draw_site(np.random.default_rng(seed))
        glass = scan(np.random.default_rng(0), site, haematoxylin=clear, eosin=clear, mpp=0.5)
        assert np.abs(glass.mean(axis=(0, 1)) - site.stains.glass).max() < 1
        assert glass.std() > 0.5
        assert np.ptp(site.stains.glass) < 16


def test_more_stain_is_never_lighter() -> None:
    for seed in range(8):
        table = draw_site(np.random.default_rng(seed)).table().reshape(256, 256, 3).astype(int)
        light = table @ [299, 587, 114]
        assert (np.diff(light, axis=0) <= 600).all()  # but for rounding
        assert (np.diff(light, axis=1) <= 600).all()


def test_a_site_differs_from_others_more_than_from_itself() -> None:
    sites = [draw_site(np.random.default_rng(seed)) for seed in range(6)]
    days = [[vary_site(np.random.default_rng(day), site) for day in range(3)] for site in sites]
    colours = np.array([[day.table().reshape(256, 256, 3)[40, 80] for day in each] for each in days], float)
    within = [np.abs(a - b).mean() for each in colours for a, b in combinations(each, 2)]
    between = [np.abs(a - b).mean() for a, b in combinations(colours.mean(axis=1), 2)]
    assert 0 < np.mean(within) < np.mean(between) / 3


@pytest.mark.parametrize(
    ("field", "value"),
    [("saturation", 0.6), ("gamma", 1.3), ("black", 0.1), ("blur_um", 0.8), ("noise", 4.0)],
)
def test_every_condition_changes_the_picture(field: str, value: float) -> None:
    changed = painted("glands", 0, replace(PLAIN, **{field: value}))
    assert np.abs(changed.astype(int) - painted("glands", 0)).mean() > 1


# Structures ------------------------------------------------------------------------------------------------


def test_fibres_run_where_they_are_said_to() -> None:
    """The picture of strands changes least in the direction of the fibres."""
    fibres = weave(np.random.default_rng(1), (300, 300), bend=20, over=90)
    strands = fibres.strands(np.random.default_rng(2), width=4, length=80)
    spots = np.random.default_rng(3).uniform(20, 280, (500, 2))
    turns = fibres.directions(spots)

    def change(turn: np.ndarray) -> float:
        ends = spots + 3 * np.column_stack([np.cos(turn), np.sin(turn)])
        x, y = np.rint(ends).astype(int).T
        x0, y0 = np.rint(spots).astype(int).T
        return float(np.abs(strands[y, x] - strands[y0, x0]).mean())

    assert change(turns) < 0.4 * change(turns + np.pi / 2)


def test_each_place_belongs_to_the_nearest_centre() -> None:
    centres = np.random.default_rng(0).uniform(-10, 130, (40, 2))
    cells = divide(centres, (90, 120))
    y, x = np.mgrid[0:90, 0:120]
    apart = np.hypot(
        x[..., None] - np.floor(cells.centres[:, 0]), y[..., None] - np.floor(cells.centres[:, 1])
    )
    own = np.take_along_axis(apart, cells.owner[..., None], axis=-1)[..., 0]
    assert (own <= apart.min(axis=-1) + 1).all()  # the transform measures to a few hundredths
    assert np.abs(own - cells.outward).max() < 0.05 * own.max() + 0.5
