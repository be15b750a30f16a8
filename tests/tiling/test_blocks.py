"""Blocks: the bytes of a store depend on the slide and the recipe, whatever happens on the way there."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import tiling.blocks
import tiling.cut
from tiling.blocks import MOST_DAMAGED, in_order
from tiling.commit import find_damage
from tiling.cut import cut_slide
from tiling.grid import TileSpec
from tiling.output import Output
from tiling.quality import MEASURES, QualityFilter, pen_share
from tiling.recipe import CutRecipe
from tiling.shards import read_chunks, shard_path
from tiling.store import TileStore
from tiling.tiles import read_on_the_fly
from wsi.errors import SlideError
from wsi.slide import Slide
from wsi.synthetic import write_slide

Pixels = NDArray[np.uint8]
Report = Callable[[int, int], None]

SPEC = TileSpec(size_px=64, mpp=0.7)
ALL = CutRecipe(spec=SPEC, tiles_per_shard=16)
SIZE = (1280, 896)
EDGE = (
    64  # pixels of the slide's compressed tiles: one that is lost costs a few tiles, not a twentieth of all
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("blocks") / "one.svs"
    write_slide(path, seed=7, lesion=True, size=SIZE, tile_px=EDGE)
    return path


def damage(path: Path, places: Sequence[tuple[int, int]], *, levels: Sequence[int] = (0,)) -> None:
    """Cut the picture short in the compressed tiles (column, row) of some directories."""
    with tifffile.TiffFile(path) as tiff:
        ranges = []
        for level in levels:
            page = tiff.pages[level]
            columns = -(-page.imagewidth // EDGE)
            for column, row in places:
                index = row * columns + column
                ranges.append((page.dataoffsets[index], page.databytecounts[index]))
    data = bytearray(path.read_bytes())
    for offset, count in ranges:
        middle = offset + count // 2
        data[middle : offset + count] = b"\xff\xd9" + bytes(offset + count - middle - 2)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def torn(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same slide with one compressed tile in the thick of the tissue that cannot be decoded."""
    path = tmp_path_factory.mktemp("torn") / "one.svs"
    path.write_bytes(sound.read_bytes())
    damage(path, [LOST])
    return path


LOST = (9, 7)


def pen_on(path: Path, target: Path) -> None:
    """Two strokes of a blue marker over the tissue; plain TIFF, which is not read directly."""
    with Slide(path) as slide:
        image = slide.read(0, 0, size=slide.size, mpp=0.5)
    image[300:420, 300:900] = (20, 40, 160)
    image[600:700, 500:800] = (20, 40, 160)
    mpp = {"resolution": (1e4 / 0.4596, 1e4 / 0.4596), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(target, image, tile=(128, 128), photometric="rgb", **mpp)


@pytest.fixture(scope="module")
def inked(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inked") / "one.tiff"
    pen_on(sound, path)
    return path


def cut(
    path: Path,
    root: Path,
    recipe: CutRecipe = ALL,
    *,
    workers: int = 2,
    progress: Report | None = None,
) -> TileStore:
    store = TileStore(Output(root), path.stem)
    with store.output.lock(), Slide(path) as slide:
        cut_slide(slide, store, recipe, workers=workers, progress=progress)
    return store


def tree(store: TileStore) -> dict[str, bytes]:
    folder = store.folder
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def every(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> TileStore:
    """All tiles of the sound slide."""
    return cut(sound, tmp_path_factory.mktemp("every"))


@pytest.fixture(scope="module")
def sharp(every: TileStore) -> CutRecipe:
    """The recipe that drops the less sharp half of them."""
    assert every.quality is not None
    limit = float(np.median(every.quality[:, MEASURES.index("sharpness")]))
    return replace(ALL, quality=QualityFilter(min_sharpness=limit))


@pytest.fixture(params=["all", "torn and sharp", "inked", "inked, without pixels"])
def case(
    request: pytest.FixtureRequest, sound: Path, torn: Path, inked: Path, sharp: CutRecipe
) -> tuple[Path, CutRecipe]:
    pen = replace(ALL, quality=replace(sharp.quality, drop_pen=True))
    cases: dict[str, tuple[Path, CutRecipe]] = {
        "all": (sound, ALL),
        "torn and sharp": (torn, sharp),
        "inked": (inked, pen),
        "inked, without pixels": (inked, replace(pen, pixels=None)),
    }
    return cases[request.param]


# The same bytes -------------------------------------------------------------------------------------------


def test_the_bytes_depend_on_neither_the_workers_nor_what_they_read_at_once(
    case: tuple[Path, CutRecipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tree(cut(case[0], tmp_path / "2", case[1]))
    for workers in (1, 5):
        assert tree(cut(case[0], tmp_path / str(workers), case[1], workers=workers)) == expected
    monkeypatch.setattr(tiling.blocks, "RUN_BYTES", 1)  # every tile alone
    assert tree(cut(case[0], tmp_path / "alone", case[1])) == expected
    monkeypatch.setattr(tiling.blocks, "WORKING_BYTES", 1)  # one thread, whoever asks for more
    assert tree(cut(case[0], tmp_path / "narrow", case[1])) == expected


def test_the_bytes_do_not_tell_which_thread_was_slow(
    torn: Path, sharp: CutRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tree(cut(torn, tmp_path / "even", sharp))
    real, turns, lock = tiling.blocks.measure, iter([0.03, 0, 0, 0.01] * 1000), threading.Lock()

    def slow(tile: Pixels, *, mpp: float) -> NDArray[np.float32]:
        with lock:
            pause = next(turns)
        time.sleep(pause)
        return real(tile, mpp=mpp)

    monkeypatch.setattr(tiling.blocks, "measure", slow)
    assert tree(cut(torn, tmp_path / "uneven", sharp, workers=5)) == expected


class Interrupt:
    """Progress that is stopped at its n-th call."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def __call__(self, done: int, total: int) -> None:
        assert 0 < done <= total
        self.seen += 1
        if self.seen == self.at:
            raise KeyboardInterrupt


def test_an_interruption_at_any_progress_call_leaves_no_trace(
    case: tuple[Path, CutRecipe], tmp_path: Path
) -> None:
    path, recipe = case
    counting = Interrupt(-1)
    expected = tree(cut(path, tmp_path / "whole", recipe, progress=counting))
    assert counting.seen > 8
    for at in (1, counting.seen // 2, counting.seen):
        root = tmp_path / f"at-{at}"
        with pytest.raises(KeyboardInterrupt):
            cut(path, root, recipe, progress=Interrupt(at))
        assert TileStore(Output(root), "one").find("tiles") is None
        assert tree(cut(path, root, recipe, workers=1)) == expected
        assert not list((root / ".work").iterdir())


def test_many_interruptions_in_one_slide_end_with_the_same_bytes(
    torn: Path, sharp: CutRecipe, tmp_path: Path
) -> None:
    recipe = replace(sharp, tiles_per_shard=4)
    expected = tree(cut(torn, tmp_path / "whole", recipe))
    stops = 0
    for stops in range(30):  # noqa: B007
        try:
            cut(torn, tmp_path / "torn", recipe, progress=Interrupt(8))
        except KeyboardInterrupt:
            continue
        break
    assert stops > 2
    assert tree(TileStore(Output(tmp_path / "torn"), "one")) == expected


@pytest.mark.parametrize("where", ["repack", "_write", "write_group"])
def test_a_fault_once_all_blocks_are_there_leaves_no_trace(
    torn: Path, sharp: CutRecipe, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tree(cut(torn, tmp_path / "whole", sharp))

    def broken(*arguments: object, **keywords: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tiling.cut, where, broken)
        with pytest.raises(OSError, match="No space"):
            cut(torn, tmp_path / "torn", sharp)
    store = cut(torn, tmp_path / "torn", sharp)
    assert tree(store) == expected
    assert {p.name for p in store.path("tiles").iterdir()}.isdisjoint({"found", "packed"})


def test_a_full_disk_while_packing_loses_no_block(
    sound: Path, sharp: CutRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing needs room for half the slide again: where there is none, what is finished is kept."""
    expected = tree(cut(sound, tmp_path / "whole", sharp))
    real = tiling.blocks.write_shard

    def full(path: Path, chunks: object, *, slots: int) -> object:
        if "packed" in path.parts:
            raise OSError(28, "No space left on device")
        return real(path, chunks, slots=slots)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(tiling.blocks, "write_shard", full)
        with pytest.raises(OSError, match="No space"):
            cut(sound, tmp_path / "torn", sharp)
    again = Interrupt(-1)
    assert tree(cut(sound, tmp_path / "torn", sharp, progress=again)) == expected
    assert again.seen == 0  # nothing was cut a second time


# What is dropped ------------------------------------------------------------------------------------------


def test_kept_and_dropped_places_are_those_of_the_store_that_kept_all(
    every: TileStore, sound: Path, sharp: CutRecipe, tmp_path: Path
) -> None:
    store = cut(sound, tmp_path, sharp)
    dropped, reasons = store.dropped()
    assert 0 < len(dropped) < len(every)
    assert len(store) + len(dropped) == len(every)
    rows = {tuple(place): row for row, place in enumerate(every.origins.tolist())}
    kept_rows = [rows[tuple(place)] for place in store.origins.tolist()]
    dropped_rows = [rows[tuple(place)] for place in dropped.tolist()]
    assert sorted(kept_rows + dropped_rows) == list(range(len(every)))
    assert kept_rows == sorted(kept_rows)
    assert dropped_rows == sorted(dropped_rows)
    assert every.quality is not None
    limit, column = sharp.quality.min_sharpness, MEASURES.index("sharpness")
    assert (every.quality[dropped_rows, column] < limit).all()
    assert (every.quality[kept_rows, column] >= limit).all()
    assert set(reasons) == {"sharpness"}
    assert store.record["dropped"] == {"sharpness": len(dropped)}
    assert store.record["tiles"] == len(store)
    # A tile's pixels, tissue and measures do not depend on which others are kept.
    assert (store.read_pixels(slice(None)) == every.read_pixels(slice(None))[kept_rows]).all()
    assert (store.tissue == every.tissue[kept_rows]).all()
    assert store.quality is not None
    assert (store.quality == every.quality[kept_rows]).all()


def test_all_shards_but_the_last_are_full_and_each_tile_is_where_its_row_says(
    sound: Path, sharp: CutRecipe, tmp_path: Path
) -> None:
    store, step = cut(sound, tmp_path, sharp), sharp.shard_tiles
    pixels = store.path("tiles") / "pixels"
    counts = [
        len(list(read_chunks(shard_path(pixels, shard), slots=step)))
        for shard in range(-(-len(store) // step))
    ]
    assert counts == [min(step, len(store) - start) for start in range(0, len(store), step)]
    assert len(list((pixels / "c").iterdir())) == len(counts) > 1
    plain = cut(sound, tmp_path / "plain", replace(sharp, stain=None))
    with Slide(sound) as slide:
        for row in range(0, len(plain), 7):
            x, y = plain.origins[row].tolist()
            assert (plain.read_pixels([row])[0] == slide.read(x, y, size=(64, 64), mpp=SPEC.mpp)).all()
    assert not list(find_damage(store.path("tiles"), store.tiles, full=True))


def test_ink_is_dropped_as_ink_and_only_where_it_was_drawn(inked: Path, tmp_path: Path) -> None:
    recipe = replace(ALL, quality=QualityFilter(drop_pen=True))
    whole, store = cut(inked, tmp_path / "whole"), cut(inked, tmp_path / "clean", recipe)
    dropped, reasons = store.dropped()
    assert set(reasons) == {"pen"}
    assert store.record["dropped"] == {"pen": len(dropped)}
    assert whole.quality is not None
    above = whole.origins[pen_share(whole.quality) > recipe.quality.max_pen]
    assert (dropped == above).all()
    width, height = store.record["tile_level0"]
    strokes = [(300, 300, 900, 420), (500, 600, 800, 700)]
    for x, y in dropped.tolist():
        assert any(x < c and x + width > a and y < d and y + height > b for a, b, c, d in strokes)
    assert len(dropped) > 5


# Damage ---------------------------------------------------------------------------------------------------


def touching(
    origins: NDArray[np.int32], store: TileStore, places: Sequence[tuple[int, int]]
) -> list[list[int]]:
    """The tiles whose footprint meets a lost compressed tile, by plain geometry."""
    width, height = store.record["tile_level0"]
    lost = [(column * EDGE, row * EDGE) for column, row in places]
    return [
        [x, y]
        for x, y in origins.tolist()
        if any(x < a + EDGE and x + width > a and y < b + EDGE and y + height > b for a, b in lost)
    ]


def test_a_damaged_compressed_tile_costs_the_tiles_over_it_and_no_other(
    every: TileStore, torn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        store = cut(torn, tmp_path, replace(ALL, stain=None))
    lost = touching(every.origins, every, [LOST])
    assert 1 < len(lost) <= 9
    dropped, reasons = store.dropped()
    assert dropped.tolist() == lost
    assert reasons == ["damaged"] * len(lost)
    assert store.record["dropped"] == {"damaged": len(lost)}
    assert store.record["damaged"] == lost
    assert store.origins.tolist() == [place for place in every.origins.tolist() if place not in lost]
    (warning,) = store.record["warnings"]
    assert f"{len(lost)} of {len(every)} tiles cannot be decoded" in warning
    assert f"({lost[0][0]}, {lost[0][1]})" in warning
    assert f"one.svs: {warning}" in caplog.text
    assert store.quality is not None
    assert np.isfinite(store.quality).all()


def test_damage_costs_the_same_tiles_where_no_pixels_are_stored_and_none_later(
    torn: Path, tmp_path: Path
) -> None:
    stored = cut(torn, tmp_path / "stored")
    places = cut(torn, tmp_path / "places", replace(ALL, pixels=None))
    assert stored.record["damaged"]
    assert places.record == stored.record
    assert (places.origins == stored.origins).all()
    with Slide(torn) as slide:
        read = read_on_the_fly(places, slide)(slice(None))
    assert (read == stored.read_pixels(slice(None))).all()


def many(origins: NDArray[np.int32], share: float) -> list[tuple[int, int]]:
    """So many compressed tiles that at least this share of the tiles is lost."""
    chosen = origins[:: max(1, int(1 / share))].tolist()
    return sorted({(int(x) // EDGE, int(y) // EDGE) for x, y in chosen})


def test_a_slide_that_is_damaged_all_over_fails_however_often_it_is_tried(
    every: TileStore, sound: Path, tmp_path: Path
) -> None:
    path = tmp_path / "one.svs"
    path.write_bytes(sound.read_bytes())
    damage(path, many(every.origins, 2 * MOST_DAMAGED))
    for shard_tiles in (16, 1000):  # damage is found in one of many blocks, or in the only one
        recipe = replace(ALL, tiles_per_shard=shard_tiles)
        for _ in range(3):
            with pytest.raises(
                SlideError, match=r"one\.svs: .* tiles cannot be decoded.*more than 5%.*again"
            ):
                cut(path, tmp_path / "out", recipe)
            assert TileStore(Output(tmp_path / "out"), "one").find("tiles") is None


def test_a_slide_all_of_whose_tiles_are_damaged_has_not_simply_no_tissue(
    every: TileStore, sound: Path, tmp_path: Path
) -> None:
    """One tile may always be lost: where it is the only one, the slide is damaged, not empty."""
    path = tmp_path / "one.svs"
    path.write_bytes(sound.read_bytes())
    columns, rows = -(-SIZE[0] // EDGE), -(-SIZE[1] // EDGE)
    damage(path, [(column, row) for column in range(columns) for row in range(rows)])
    huge = replace(ALL, spec=TileSpec(size_px=1024, mpp=0.7), min_tissue=0.01)
    with pytest.raises(SlideError, match="decoded"):
        cut(path, tmp_path / "out", huge)


# Order ----------------------------------------------------------------------------------------------------


@given(items=st.lists(st.integers(), max_size=30), ahead=st.integers(0, 6), workers=st.integers(1, 4))
def test_results_come_in_the_order_of_the_items_and_no_more_than_agreed_are_begun(
    items: list[int], ahead: int, workers: int
) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        return item * 2

    with ThreadPoolExecutor(workers) as pool:
        results = in_order(pool, work, items, ahead=ahead)
        for before, (result, item) in enumerate(zip(results, items, strict=True)):
            assert result == 2 * item
            assert len(begun) <= before + 1 + ahead


def test_an_error_in_a_thread_is_raised_and_what_was_not_begun_never_is() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise ValueError("three")
        return item

    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="three"):
        list(in_order(pool, work, range(100), ahead=2))
    assert max(begun) <= 3 + 2
