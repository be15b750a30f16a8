"""Quality: each measure finds what it is named after, and nothing else."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tiling.quality import MAX_PEN, MEASURES, PEN_MEASURES, QualityFilter, measure, pen_share
from wsi.geometry import Region
from wsi.resample import area_resample
from wsi.specimen import draw_specimen, draw_stains, paint

Tile = NDArray[np.uint8]
SLIDES = Path(os.environ.get("MICROTOME_DATA", "../shared")) / "slides"

INKS = {
    "pen_blue": [(0.12, 0.35, 0.70), (0.15, 0.25, 0.65), (0.05, 0.20, 0.60)],
    "pen_green": [(0.10, 0.50, 0.30), (0.20, 0.60, 0.50), (0.05, 0.35, 0.25)],
    "pen_red": [(0.80, 0.12, 0.15), (0.70, 0.08, 0.25), (0.85, 0.25, 0.25)],
    "pen_black": [(0.08, 0.08, 0.09), (0.15, 0.14, 0.15), (0.03, 0.03, 0.04)],
}
"""Shares of red, green and blue light that markers let through."""


def value(name: str, tile: Tile, mpp: float = 0.5) -> float:
    return float(measure(tile, mpp=mpp)[MEASURES.index(name)])


def blurred(tile: Tile, sigma_um: float, mpp: float = 0.5) -> Tile:
    return np.asarray(cv2.GaussianBlur(tile, (0, 0), sigma_um / mpp), np.uint8)


def inked(tile: Tile, ink: tuple[float, float, float], columns: slice = slice(None)) -> Tile:
    """Ink lets a share of the light through, that of the tissue below it too."""
    picture = tile.copy()
    picture[:, columns] = np.rint(picture[:, columns] * np.array(ink))
    return picture


def weighted(picture: NDArray[Any], weights: list[float]) -> NDArray[Any]:
    """Each row and its neighbours, weighted; the border goes on outside."""
    padded = np.pad(picture, ((1, 1), (0, 0)), mode="edge")
    return np.asarray(sum(weight * padded[i : i + len(picture)] for i, weight in enumerate(weights)))


def glass(size: int = 256) -> Tile:
    return np.full((size, size, 3), 243, np.uint8)


@pytest.fixture(scope="module")
def section() -> Tile:
    """Level 0 of a synthetic H&E section at 0.25 µm."""
    rng = np.random.default_rng(5)
    return paint(rng, draw_specimen(rng, size=(4096, 3072), mpp=0.25), draw_stains(rng))


@pytest.fixture(scope="module")
def fine_tiles(section: Tile) -> list[Tile]:
    """Tiles of 512 px at 0.25 µm that are mostly tissue."""
    starts = [(y, x) for y in range(0, 3072 - 511, 512) for x in range(0, 4096 - 511, 512)]
    tiles = [np.ascontiguousarray(section[y : y + 512, x : x + 512]) for y, x in starts]
    chosen = [tile for tile in tiles if (tile.min(axis=2) < 215).mean() > 0.6]
    assert len(chosen) >= 4
    return chosen


@pytest.fixture(scope="module")
def tiles(fine_tiles: list[Tile]) -> list[Tile]:
    """The same at 0.5 µm, 256 px."""
    return [area_resample(tile, Region(0, 0, 512, 512), (256, 256)) for tile in fine_tiles]


# Sharpness and focus -------------------------------------------------------------------------------------


def test_sharpness_falls_with_blur(tiles: list[Tile]) -> None:
    for tile in tiles:
        found = [value("sharpness", tile)]
        found += [value("sharpness", blurred(tile, sigma)) for sigma in (0.5, 1, 2, 4)]
        assert found == sorted(found, reverse=True)
        assert found[-1] < 0.02 * found[0]


def test_sharpness_is_the_variance_of_the_laplacian_at_one_micron(tiles: list[Tile]) -> None:
    for tile in tiles:
        picture = tile.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
        grey = picture @ [0.299, 0.587, 0.114]
        smooth = weighted(weighted(grey, [0.25, 0.5, 0.25]).T, [0.25, 0.5, 0.25]).T
        corners = np.pad(smooth, 1, mode="edge")
        around = corners[:-2, :-2] + corners[:-2, 2:] + corners[2:, :-2] + corners[2:, 2:]
        expected = float(np.var(2 * around - 8 * smooth))
        assert value("sharpness", tile) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", MEASURES)
def test_the_resolution_of_the_tile_does_not_matter(
    name: str, tiles: list[Tile], fine_tiles: list[Tile]
) -> None:
    """0.25 and 0.5 µm: the same to 2 %, and to 0.02 for shares. 0.4 µm: to a quarter, and two blocks."""
    for tile, fine in zip(tiles, fine_tiles, strict=True):
        between = area_resample(fine, Region(0, 0, 512, 512), (320, 320))
        expected = value(name, tile)
        assert value(name, fine, 0.25) == pytest.approx(expected, rel=0.02, abs=0.02)
        assert value(name, between, 0.4) == pytest.approx(expected, rel=0.25, abs=0.15)


@pytest.mark.parametrize("grey", [0, 7, 128, 243, 255])
def test_a_flat_tile_has_no_sharpness(grey: int) -> None:
    assert value("sharpness", np.full((256, 256, 3), grey, np.uint8)) == 0


def test_blurring_raises_the_share_out_of_focus(tiles: list[Tile]) -> None:
    for tile in tiles:
        assert value("blurred", tile) < 0.1
        found = [value("blurred", blurred(tile, sigma)) for sigma in (0.5, 1, 2, 4)]
        assert found == sorted(found)
        assert found[-2] > 0.9


def test_a_tile_of_which_half_is_blurred_is_blurred_by_half(tiles: list[Tile]) -> None:
    for tile in tiles:
        half = tile.copy()
        half[:, :128] = blurred(tile, 4)[:, :128]
        share = (cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)[:, :128] < 225).sum() / (
            cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY) < 225
        ).sum()
        assert value("blurred", half) == pytest.approx(share, abs=0.1)


def test_glass_is_not_out_of_focus() -> None:
    assert value("blurred", glass()) == 0


# Ink and folds -------------------------------------------------------------------------------------------


def test_plain_tissue_and_glass_have_no_ink(tiles: list[Tile]) -> None:
    for tile in (*tiles, glass()):
        assert pen_share(measure(tile, mpp=0.5)[None])[0] < 0.005


@pytest.mark.parametrize("name", PEN_MEASURES)
@pytest.mark.parametrize("width", [128, 160, 192])
def test_a_stroke_on_glass_is_found_by_its_area_and_colour(name: str, width: int) -> None:
    for ink in INKS[name]:
        shares = measure(inked(glass(), ink, slice(30, 30 + width)), mpp=0.5)
        for other in PEN_MEASURES:
            expected = width / 256 if other == name else 0
            assert shares[MEASURES.index(other)] == pytest.approx(expected, abs=0.035)


@pytest.mark.parametrize("name", PEN_MEASURES)
def test_a_stroke_over_tissue_is_found_as_its_colour(name: str, tiles: list[Tile]) -> None:
    for ink in INKS[name]:
        plain = np.mean([value(name, tile) for tile in tiles])
        half, whole = (
            np.mean([measure(inked(tile, ink, columns), mpp=0.5) for tile in tiles], axis=0)
            for columns in (slice(0, 128), slice(None))
        )
        column = MEASURES.index(name)
        assert plain < 0.005 < MAX_PEN < half[column] <= 0.55
        assert half[column] < whole[column]
        assert whole[column] > 0.8 * sum(whole[MEASURES.index(other)] for other in PEN_MEASURES)


@pytest.mark.parametrize("name", PEN_MEASURES)
def test_specks_of_the_colour_are_no_stroke(name: str) -> None:
    tile = glass()
    for row in range(20, 256, 64):
        for column in range(20, 256, 64):
            tile[row : row + 24, column : column + 24] = np.rint(243 * np.array(INKS[name][0]))
    assert value(name, tile) == 0


def test_tissue_in_layers_is_dark_and_ink_is_not(tiles: list[Tile]) -> None:
    for tile in tiles:
        density = -np.log(np.maximum(tile, 1) / 243.0)
        thick = np.rint(243 * np.exp(-4 * np.maximum(density, 0))).astype(np.uint8)
        assert value("dark", tile) < 0.05
        assert value("dark", thick) > value("dark", tile) + 0.1
        assert value("dark", inked(tile, INKS["pen_black"][0])) < 0.05
    assert value("dark", inked(glass(), INKS["pen_green"][2])) == 0


# What holds for all measures -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "mpp"), [(8, 0.05), (8, 20), (9, 0.3), (31, 0.5), (100, 2.1), (512, 20), (2048, 0.05), (2048, 1)]
)
def test_every_size_and_resolution_is_measured(size: int, mpp: float) -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (size, size, 3), np.uint8)
    for tile in (noise, np.zeros_like(noise), np.full_like(noise, 255)):
        values = measure(tile, mpp=mpp)
        assert values.shape == (len(MEASURES),)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert (values >= 0).all()
        assert (values[1:] <= 1).all()


def test_threads_neighbours_and_memory_layout_change_nothing(tiles: list[Tile]) -> None:
    several = [*tiles, inked(tiles[0], INKS["pen_red"][0], slice(0, 99)), blurred(tiles[1], 3), glass()] * 8
    alone = [measure(tile, mpp=0.5) for tile in several]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda tile: measure(tile, mpp=0.5), several))
    np.testing.assert_array_equal(alone, together)
    wide = np.concatenate(several[:2], axis=1)
    np.testing.assert_array_equal(measure(wide[:, 256:], mpp=0.5), alone[1])


def test_measuring_leaves_the_tile_alone(tiles: list[Tile]) -> None:
    tile = inked(tiles[0], INKS["pen_blue"][0], slice(0, 100))
    before = tile.copy()
    tile.setflags(write=False)
    measure(tile, mpp=0.5)
    measure(tile, mpp=1.0)
    measure(tile, mpp=8.0)
    np.testing.assert_array_equal(tile, before)


@pytest.mark.parametrize(
    "tile",
    [np.zeros((4, 5, 3), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 0, 3))],
)
def test_what_is_no_tile_is_refused(tile: Any) -> None:
    with pytest.raises(ValueError, match="a tile is"):
        measure(tile, mpp=0.5)


@pytest.mark.parametrize("mpp", [0, 0.01, 21, float("nan")])
def test_no_such_resolution_is_refused(mpp: float) -> None:
    with pytest.raises(ValueError, match="mpp"):
        measure(glass(), mpp=mpp)


# The filter ----------------------------------------------------------------------------------------------


def rows(**columns: list[float]) -> NDArray[np.float32]:
    values = np.zeros((len(next(iter(columns.values()))), len(MEASURES)), np.float32)
    for name, column in columns.items():
        values[:, MEASURES.index(name)] = column
    return values


def test_the_default_keeps_all() -> None:
    values = rows(sharpness=[0, 1e6], pen_red=[1, 0], dark=[1, 1], blurred=[1, 1])
    assert QualityFilter().reasons(values) == [None, None]
    assert QualityFilter().keep(values).all()


def test_the_limit_of_sharpness_itself_is_kept() -> None:
    values = rows(sharpness=[99, 100, 101])
    assert QualityFilter(min_sharpness=100).reasons(values) == ["sharpness", None, None]
    assert QualityFilter(min_sharpness=0).keep(rows(sharpness=[0])).all()


@pytest.mark.parametrize("name", PEN_MEASURES)
def test_ink_of_each_colour_drops_a_tile(name: str) -> None:
    values = rows(**{name: [0, MAX_PEN / 2, 2 * MAX_PEN]})
    assert QualityFilter(drop_pen=True).reasons(values) == [None, None, "pen"]
    assert QualityFilter(drop_pen=True, max_pen=0.5).keep(values).all()
    assert QualityFilter(drop_pen=True, max_pen=0).reasons(values) == [None, "pen", "pen"]


def test_inks_add_up_and_ink_is_named_before_sharpness() -> None:
    values = rows(sharpness=[1, 1, 900], pen_red=[0.06, 0, 0.06], pen_black=[0.06, 0, 0])
    both = QualityFilter(min_sharpness=100, drop_pen=True)
    assert both.reasons(values) == ["pen", "sharpness", None]
    assert both.keep(values).tolist() == [False, False, True]


def test_a_tile_is_judged_alone() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((50, len(MEASURES)), np.float32)
    strict = QualityFilter(min_sharpness=0.5, drop_pen=True, max_pen=0.9)
    one_by_one = [strict.reasons(row[None])[0] for row in values]
    assert strict.reasons(values) == one_by_one
    assert len(set(one_by_one)) == 3
    assert strict.reasons(values[:0]) == []


def test_the_rules_come_back_from_json() -> None:
    strict = QualityFilter(min_sharpness=12.5, drop_pen=True, max_pen=0.25)
    assert QualityFilter(**strict.as_json()) == strict
    assert strict.as_json() == asdict(strict)


@pytest.mark.parametrize(
    "wrong", [{"min_sharpness": -1}, {"min_sharpness": float("nan")}, {"max_pen": 1.1}, {"max_pen": -0.1}]
)
def test_rules_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="it must be"):
        QualityFilter(**wrong)


def test_measures_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        QualityFilter().reasons(np.zeros((3, 2), np.float32))


# Real sections -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mpp"),
    [
        ("BS21-HE-q4.svs", None),
        ("kidneyoncocytoma-HE-q4.tiff", 1.05),
        ("challenge1-betacatenin-q4.tiff", 1.05),
        ("helicobacterpylori-giemsa-q4.tiff", 1.05),
        ("her2-cish-cish-q4.svs", None),
    ],
)
def test_no_stain_is_ink(name: str, mpp: float | None) -> None:
    """At most 1 % of the tiles of a section without ink would be dropped for ink."""
    from tiling.grid import TileSpec, lay_grid
    from wsi.slide import Slide
    from wsi.tissue import find_tissue

    path = SLIDES / "small" / name
    if not path.exists():
        pytest.skip(f"needs {path} (MICROTOME_DATA)")
    with Slide(path, mpp=mpp) if mpp else Slide(path) as slide:
        grid = lay_grid(slide.size, slide.require_resolution(), TileSpec(128, 1.1))
        share = find_tissue(slide).fraction(grid.origins(), width=grid.tile[0], height=grid.tile[1])
        origins = grid.origins()[share > 0.25][::4].tolist()
        found = np.stack([measure(slide.read(x, y, size=(128, 128), mpp=1.1), mpp=1.1) for x, y in origins])
    assert len(found) > 40
    assert (pen_share(found) > MAX_PEN).mean() <= 0.01
