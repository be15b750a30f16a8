"""Laws of context: the same centre, the same pixels where scales meet, white beyond the slide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from tiling.context import check_context, context_key, context_origins, context_reader
from tiling.cut import cut_slide
from tiling.grid import TileSpec
from tiling.output import Output
from tiling.recipe import CutRecipe
from tiling.store import TileStore
from wsi.errors import SlideError, UsageError
from wsi.geometry import Resolution
from wsi.slide import Slide
from wsi.synthetic import write_slide
from wsi.tissue import TissueMask

SIZE = 64
RECIPE = CutRecipe(spec=TileSpec(SIZE, 1.0), tiles_per_shard=16)
PLAIN = replace(RECIPE, stain=None, spec=TileSpec(SIZE, 0.5))
EVERY = slice(None)


@pytest.fixture(scope="module")
def stained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG tiles and a pyramid, read by the direct path."""
    path = tmp_path_factory.mktemp("stained") / "one.svs"
    write_slide(path, seed=7, lesion=True, size=(1280, 896))
    return path


def write_pixels(path: Path, pixels: NDArray[np.uint8], *, mpp: float) -> Path:
    """An uncompressed slide of one level."""
    scale = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", metadata=None, **scale)
    return path


def cut(path: Path, root: Path, recipe: CutRecipe) -> TileStore:
    """All of a slide, tissue or not."""
    store = TileStore(Output(root), path.stem)
    with store.output.lock(), Slide(path) as slide:
        width, height = slide.size
        mask = TissueMask(np.ones((height // 8, width // 8), np.bool_), 8, 8, mpp=slide.resolution.mpp * 8)
        cut_slide(slide, store, recipe, mask=mask)
    return store


def noise(shape: tuple[int, int], *, seed: int) -> NDArray[np.uint8]:
    """Blurred noise: something at every scale."""
    rng = np.random.default_rng(seed)
    fine = rng.integers(0, 256, (*shape, 3))
    coarse = rng.integers(0, 256, (shape[0] // 16, shape[1] // 16, 3)).repeat(16, axis=0).repeat(16, axis=1)
    return ((fine + 3 * coarse) // 4).astype(np.uint8)


def halved(tiles: NDArray[np.uint8]) -> NDArray[np.float64]:
    """``(n, s / 2, s / 2, 3)``: the mean of each two by two pixels."""
    n, s = tiles.shape[:2]
    return tiles.reshape(n, s // 2, 2, s // 2, 2, 3).mean(axis=(2, 4))


# Which pixels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True])
def test_context_at_the_tiles_own_scale_is_the_tiles_to_the_bit(
    exact: bool, stained: Path, tmp_path: Path
) -> None:
    for path, recipe in (
        (stained, replace(RECIPE, exact=exact)),
        (write_pixels(tmp_path / "odd.tiff", noise((640, 800), seed=1), mpp=0.3611), PLAIN),
    ):
        store = cut(path, tmp_path / "out", recipe)
        with Slide(path) as slide:
            read = context_reader(store, slide, mpp=recipe.spec.mpp)
            assert (read(EVERY) == store.read_pixels(EVERY)).all()


@pytest.mark.parametrize("slide_mpp", [0.25, 0.2527, 0.3611, 0.5])
@pytest.mark.parametrize("mpp", [0.71, 1.0, 2.0, 3.9])
def test_what_lies_at_the_centre_of_a_tile_lies_at_the_centre_of_its_context(
    slide_mpp: float, mpp: float, tmp_path: Path
) -> None:
    size_px, side = 32, 1024
    spec = TileSpec(size_px, 0.5)
    tile = size_px * spec.mpp / slide_mpp
    path = tmp_path / "landmark.tiff"
    pixels = np.full((side, side, 3), 255, np.uint8)
    origin = np.floor(np.array([9, 7]) * tile + 0.5)  # (2,) x, y: as the grid rounds it
    centre = origin + tile / 2
    x, y = np.arange(side) + 0.5, np.arange(side)[:, None] + 0.5
    pixels[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 25**2] = 0  # a disc
    write_pixels(path, pixels, mpp=slide_mpp)
    store = cut(path, tmp_path, replace(PLAIN, spec=spec))
    (row,) = np.flatnonzero((store.origins == origin).all(axis=1))
    with Slide(path) as slide:
        (context,) = context_reader(store, slide, mpp=mpp)(slice(row, row + 1))
    dark = 255.0 - context.mean(axis=2)
    assert dark.sum() > 255
    at = np.arange(size_px) + 0.5
    found = np.array([(dark * at).sum(), (dark * at[:, None]).sum()]) / dark.sum()
    assert np.abs(found - size_px / 2).max() <= 0.5


def test_the_middle_of_the_context_is_the_tile_at_half_the_pixels(tmp_path: Path) -> None:
    path = write_pixels(tmp_path / "noise.tiff", noise((768, 1024), seed=2), mpp=0.25)
    store = cut(path, tmp_path, PLAIN)
    with Slide(path) as slide:
        context = context_reader(store, slide, mpp=1.0)(EVERY)
    middle = context[:, SIZE // 4 : -SIZE // 4, SIZE // 4 : -SIZE // 4].astype(float)
    # Each is rounded to whole grey levels for itself, and OpenCV rounds its own way.
    assert np.abs(middle - halved(store.read_pixels(EVERY))).max() <= 1.01


def test_on_a_scanner_s_slide_the_middle_of_the_context_is_the_tile_too(
    stained: Path, tmp_path: Path
) -> None:
    """Through a pyramid, JPEG and stain: means of tissue that was normalised, and normalised means of it."""
    store = cut(stained, tmp_path, RECIPE)
    with Slide(stained) as slide:
        context = context_reader(store, slide, mpp=2.0)(EVERY)
    middle = context[:, SIZE // 4 : -SIZE // 4, SIZE // 4 : -SIZE // 4].astype(float)
    assert np.abs(middle - halved(store.read_pixels(EVERY))).mean() < 3
    wrong = np.roll(middle, 2, axis=2)
    assert np.abs(wrong - halved(store.read_pixels(EVERY))).mean() > 5


def test_what_lies_beyond_the_slide_is_white(tmp_path: Path) -> None:
    path = write_pixels(tmp_path / "noise.tiff", noise((512, 512), seed=3) // 2, mpp=0.5)
    store = cut(path, tmp_path, PLAIN)
    corners = [store.origins.tolist().index(corner) for corner in ([0, 0], [448, 448])]
    with Slide(path) as slide:
        first, last = context_reader(store, slide, mpp=1.0)(EVERY)[corners]
        far = context_reader(store, slide, mpp=16.0)(EVERY)
    edge = SIZE // 4
    assert (first[:edge] == 255).all()
    assert (first[:, :edge] == 255).all()
    assert (first[edge:, edge:] < 255).all()
    assert (last[-edge:] == 255).all()
    assert (last[:, -edge:] == 255).all()
    assert (last[:-edge, :-edge] < 255).all()
    inside = (far.min(axis=3) < 255).sum(axis=(1, 2))  # 512 px of 0.5 µm are 16 of 16 µm
    assert ((inside >= 16**2) & (inside <= 17**2)).all()


def test_pieces_and_threads_change_no_byte(stained: Path, tmp_path: Path) -> None:
    store = cut(stained, tmp_path, RECIPE)
    with Slide(stained) as slide:
        whole = context_reader(store, slide, mpp=3.0)(EVERY)
        read = context_reader(store, slide, mpp=3.0, threads=3)
        for start in range((len(whole) - 1) // 7 * 7, -1, -7):
            rows = slice(start, start + 7)
            assert (read(rows) == whole[rows]).all()


def test_the_stain_is_that_of_the_tiles(stained: Path, tmp_path: Path) -> None:
    normalized = cut(stained, tmp_path / "stain", RECIPE)
    scanned = cut(stained, tmp_path / "none", replace(RECIPE, stain=None))
    assert normalized.record["stain"] is not None
    with Slide(stained) as slide:
        colours = [
            context_reader(s, slide, mpp=2.0)(EVERY).mean(axis=(0, 1, 2)) for s in (normalized, scanned)
        ]
    assert np.abs(colours[0] - colours[1]).max() > 2


@pytest.mark.parametrize("seed", range(5))
def test_origins_of_context_are_off_by_half_a_pixel_at_most(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec = TileSpec(int(rng.integers(8, 513)), float(rng.uniform(0.2, 2)))
    scan = Resolution(*rng.uniform(0.1, spec.mpp, 2).tolist(), "override")
    mpp = spec.mpp * float(rng.uniform(1, 8))
    origins = rng.integers(0, 100_000, (50, 2)).astype(np.int32)
    found = context_origins(origins, spec, scan, mpp=mpp)
    per_pixel = np.array([scan.x, scan.y])
    centres = origins + spec.size_px * spec.mpp / per_pixel / 2
    assert np.abs(found + spec.size_px * mpp / per_pixel / 2 - centres).max() <= 0.5 + 1e-6
    assert (context_origins(origins, spec, scan, mpp=spec.mpp) == origins).all()


# What is refused -----------------------------------------------------------------------------------------


def test_scales_that_show_no_more_are_refused(stained: Path, tmp_path: Path) -> None:
    store = cut(stained, tmp_path, RECIPE)
    check_context(store, 1.5)
    for mpp in (0.5, 1.0):
        with pytest.raises(UsageError, match=rf"'one' have 1 µm per pixel.*asked for at {mpp:g}.*coarser"):
            check_context(store, mpp)
    for mpp in (0.0, -1.0, 1e6, float("nan")):
        with pytest.raises(UsageError, match="context"):
            check_context(store, mpp)


def test_context_needs_the_slide_that_the_tiles_are_of(stained: Path, tmp_path: Path) -> None:
    store = cut(stained, tmp_path, RECIPE)
    with pytest.raises(UsageError, match=r"'one' is read from the slide.*one\.svs.*--slides"):
        context_reader(store, None, mpp=2.0)
    other = tmp_path / "one.svs"
    write_slide(other, seed=8, lesion=True, size=(1280, 896))
    with Slide(other) as slide, pytest.raises(SlideError, match="is not the file"):
        context_reader(store, slide, mpp=2.0)


def test_names_of_scales_are_apart_and_can_be_folders() -> None:
    scales = (0.5, 1, 1.0001, 2.0, 2.5, 10, 1e-3, 0.9765625)
    keys = [context_key("uni", mpp) for mpp in scales]
    assert len(set(keys)) == len(scales)
    assert context_key("uni", 1) == context_key("uni", 1.0) == "uni@1"
    for key, mpp in zip(keys, scales, strict=True):
        assert float(key.removeprefix("uni@")) == mpp
        assert "/" not in key
