"""Cutting: what is in the store is what the slide shows, whatever interrupts the way there."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from tiling.commit import read_commit
from tiling.cut import cut_slide
from tiling.ensure import ensure
from tiling.grid import TileSpec
from tiling.output import Output, verify_items
from tiling.recipe import CutRecipe
from tiling.store import TileStore
from tiling.survey import read_mask, read_thumbnail, survey_slide
from tiling.tiles import TileCutter
from wsi.errors import DamagedError, NoTissueError, RecipeError, UsageError
from wsi.slide import Slide
from wsi.synthetic import write_slide
from wsi.tissue import HlsThresholds

SPEC = TileSpec(size_px=64, mpp=1.0)
RECIPE = CutRecipe(spec=SPEC, tiles_per_shard=16)
PLAIN = CutRecipe(spec=SPEC, tiles_per_shard=16, stain=None)


@pytest.fixture(scope="session")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "one.svs"
    write_slide(path, seed=7, lesion=True, size=(1536, 1024))
    return path


def cut(slide_path: Path, root: Path, recipe: CutRecipe = RECIPE) -> TileStore:
    store = TileStore(Output(root), slide_path.stem)
    with store.output.lock(), Slide(slide_path) as slide:
        cut_slide(slide, store, recipe)
    return store


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_stored_pixels_are_the_slide_s(slide_path: Path, tmp_path: Path) -> None:
    store = cut(slide_path, tmp_path, PLAIN)
    assert len(store) > 16
    with Slide(slide_path) as slide:
        for index in (0, 15, 16, len(store) - 1):
            x, y = store.origins[index].tolist()
            expected = slide.read(x, y, size=(64, 64), mpp=1.0)
            assert (store.read_pixels(slice(index, index + 1))[0] == expected).all()


def test_shards_partition_the_tiles(slide_path: Path, tmp_path: Path) -> None:
    store = cut(slide_path, tmp_path)
    rows = [row for shard in store.shards() for row in range(shard.start, shard.stop)]
    assert rows == list(range(len(store)))
    pixels = np.concatenate([store.read_pixels(shard) for shard in store.shards()])
    assert (pixels == np.asarray(store.lazy_pixels())).all()


def test_every_tile_holds_tissue_and_no_tissue_was_left_out(slide_path: Path, tmp_path: Path) -> None:
    store = cut(slide_path, tmp_path)
    assert store.tissue.min() >= RECIPE.min_tissue
    with Slide(slide_path) as slide, Output(tmp_path).lock():
        mask = survey_slide(slide, store, HlsThresholds())
    width, height = store.record["tile_level0"]
    share = store.tissue.astype(float).sum() * width * height
    total = mask.mask.sum() * mask.scale_x * mask.scale_y
    assert 0.8 < share / total <= 1.001  # tiles below the limit are all that is missing


def test_any_zarr_reader_opens_the_store(slide_path: Path, tmp_path: Path) -> None:
    store = cut(slide_path, tmp_path)
    group = zarr.open_group(store.folder / "store.zarr", mode="r")
    assert group["tiles/pixels"].shape == (len(store), 64, 64, 3)
    assert (np.asarray(group["tiles/origins"][:]) == store.origins).all()
    assert group["tiles"].attrs["recipe"]["spec"] == asdict(TileSpec(64, 1.0))


def test_two_runs_give_the_same_bytes(slide_path: Path, tmp_path: Path) -> None:
    one, two = cut(slide_path, tmp_path / "1"), cut(slide_path, tmp_path / "2")
    assert tree(one.folder) == tree(two.folder)


def test_a_second_run_does_nothing(slide_path: Path, tmp_path: Path) -> None:
    store = cut(slide_path, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in store.folder.rglob("*")}
    cut(slide_path, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in store.folder.rglob("*")} == before


def test_an_interrupted_run_goes_on_at_the_first_missing_shard(slide_path: Path, tmp_path: Path) -> None:
    whole = cut(slide_path, tmp_path / "whole")
    store = TileStore(Output(tmp_path / "cut"), slide_path.stem)

    def stop_in_the_third(done: int, total: int) -> None:
        if done > 2 * RECIPE.shard_tiles:
            raise KeyboardInterrupt

    with store.output.lock(), Slide(slide_path) as slide:
        with pytest.raises(KeyboardInterrupt):
            cut_slide(slide, store, RECIPE, progress=stop_in_the_third)
        assert store.find("tiles") is None
        scanned = []
        real = TileCutter.scanned

        def counting(self: TileCutter, origins: NDArray[np.int32], **keywords: int) -> NDArray[np.uint8]:
            scanned.append(len(origins))
            return real(self, origins, **keywords)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TileCutter, "scanned", counting)
            cut_slide(slide, store, RECIPE)
    assert sum(scanned) == len(store) - 2 * RECIPE.shard_tiles  # and none for the stain: it is fitted once
    assert tree(store.folder) == tree(whole.folder)


def test_another_recipe_is_refused_by_name_and_replaced_on_request(slide_path: Path, tmp_path: Path) -> None:
    store = cut(slide_path, tmp_path)
    with store.output.lock(), Slide(slide_path) as slide:
        with pytest.raises(RecipeError, match=r"spec\.mpp 1\.0, not 2\.0.*--overwrite"):
            cut_slide(slide, store, CutRecipe(spec=TileSpec(64, 2.0)))
        other = CutRecipe(spec=TileSpec(64, 2.0))
        willing = TileStore(store.output, store.slide_id, overwrite=True)
        assert ensure(willing, "tiles", lambda: cut_slide(slide, willing, other))
        assert TileStore(store.output, store.slide_id).spec.mpp == 2.0
        assert not list((tmp_path / ".work").iterdir())


def test_an_overwrite_that_fails_leaves_what_was_there(slide_path: Path, tmp_path: Path) -> None:
    store = cut(slide_path, tmp_path)
    before = tree(store.folder)
    willing = TileStore(store.output, store.slide_id, overwrite=True)
    hopeless = CutRecipe(spec=TileSpec(1024, 1.0), min_tissue=1.0)
    with store.output.lock(), Slide(slide_path) as slide, pytest.raises(RecipeError):
        ensure(willing, "tiles", lambda: cut_slide(slide, willing, hopeless))
    assert tree(store.folder) == before


def test_what_was_computed_from_replaced_tiles_is_refused(slide_path: Path, tmp_path: Path) -> None:
    store = cut(slide_path, tmp_path)
    with store.output.lock(), Slide(slide_path) as slide:
        draft = store.begin("features/x", {"inputs": store.inputs("tiles")})
        assert draft is not None
        draft.publish({})
        assert store.require("features/x").recipe["inputs"] == {"tiles": store.tiles.digest}
        willing = TileStore(store.output, store.slide_id, overwrite=True)
        cut_slide(slide, willing, PLAIN)
    with pytest.raises(RecipeError, match=r"features/x .* computed from other tiles"):
        store.require("features/x")
    reports = {report.item.name: report for report in verify_items(store.output)}
    assert [d.file for d in reports["x"].stale] == ["tiles"]
    assert reports["x"].damage == ()
    assert reports["tiles"].stale == ()


def test_a_broken_group_file_is_found_and_mended(slide_path: Path, tmp_path: Path) -> None:
    store = cut(slide_path, tmp_path)
    group = store.folder / "store.zarr" / "zarr.json"
    group.write_bytes(b"")
    (report,) = verify_items(store.output)
    assert (report.item.name, report.damage, len(report.stale)) == ("tiles", (), 1)
    cut(slide_path, tmp_path)
    assert not any(report.stale for report in verify_items(store.output))
    assert zarr.open_group(group.parent, mode="r")["tiles/pixels"].shape[0] == len(store)


@pytest.mark.parametrize("size_px", [256, 512, 2048])
def test_a_shard_has_the_same_bytes_whatever_the_tile(size_px: int) -> None:
    recipe = CutRecipe(spec=TileSpec(size_px, 1.0))
    assert recipe.shard_tiles >= 1
    assert recipe.shard_tiles * size_px**2 * 3 <= 48 << 20


@pytest.mark.parametrize("harm", ["delete", "empty", "cut", "flip"])
def test_a_hole_in_the_pixels_is_never_read_as_data(slide_path: Path, tmp_path: Path, harm: str) -> None:
    store = cut(slide_path, tmp_path)
    good = tree(store.folder)
    shard = store.path("tiles") / "pixels" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    if harm == "delete":
        shard.unlink()
    elif harm == "flip":
        data[100] ^= 1
        shard.write_bytes(data)
    else:
        shard.write_bytes(b"" if harm == "empty" else data[:-10])
    damaged = TileStore(store.output, store.slide_id)
    with pytest.raises(DamagedError, match="damaged"):
        damaged.read_pixels(slice(0, 16))
    assert any(report.damage for report in verify_items(store.output, full=True))
    if harm != "flip":  # what sizes tell is mended by the next run
        with store.output.lock(), Slide(slide_path) as slide:
            assert ensure(damaged, "tiles", lambda: cut_slide(slide, damaged, RECIPE))
        assert tree(store.folder) == good


def test_a_flip_found_by_a_later_step_sets_the_tiles_aside(slide_path: Path, tmp_path: Path) -> None:
    store = cut(slide_path, tmp_path)
    shard = store.path("tiles") / "pixels" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with store.output.lock():
        with pytest.raises(DamagedError):
            ensure(store, "features/none", lambda: store.read_pixels(slice(0, 1)))
        assert store.find("tiles") is None
        assert len(list((tmp_path / "quarantine").iterdir())) == 1


def test_a_white_slide_has_no_tissue_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "white.tiff"
    white = np.full((512, 512, 3), 243, np.uint8)
    options = {"resolution": (1e4, 1e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, white, tile=(256, 256), photometric="rgb", **options)
    with pytest.raises(NoTissueError, match=r"white\.tiff: no tile of 64 px.*tissue"):
        cut(path, tmp_path / "out")
    assert not (tmp_path / "out" / "slides" / "white" / "store.zarr" / "tiles").exists()


def test_a_slide_of_one_stain_is_left_alone_and_the_record_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "grey.tiff"
    rng = np.random.default_rng(0)
    image = np.full((768, 768, 3), 243, np.uint8)
    density = rng.uniform(0.3, 1.2, (512, 512, 1)) * np.array([0.2, 0.9, 0.2])
    image[128:640, 128:640] = np.clip(240 * np.exp(-density) - 1, 0, 255).round()
    options = {"resolution": (1e4, 1e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", **options)
    with caplog.at_level(logging.WARNING):
        store = cut(path, tmp_path / "out")
    assert store.record["stain"] is None
    assert "stain could not be fitted" in store.record["warnings"][0]
    assert "grey.tiff" in caplog.text
    with Slide(path) as slide:
        x, y = store.origins[0].tolist()
        assert (store.read_pixels(slice(0, 1))[0] == slide.read(x, y, size=(64, 64), mpp=1.0)).all()


@pytest.mark.parametrize(("mpp", "said"), [(0.5, []), (0.49, ["2.0%"])])
def test_up_sampling_within_the_tolerance_is_said(
    slide_path: Path, tmp_path: Path, mpp: float, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    store = cut(slide_path, tmp_path, CutRecipe(spec=TileSpec(64, mpp)))
    found = [warning for warning in store.record["warnings"] if "up-sampled" in warning]
    assert len(found) == len(said)
    assert all(figure in warning for figure, warning in zip(said, found, strict=True))
    assert ("up-sampled" in caplog.text) == bool(said)


def test_the_survey_reads_back_what_it_found(slide_path: Path, tmp_path: Path) -> None:
    store = TileStore(Output(tmp_path), "one")
    with store.output.lock(), Slide(slide_path) as slide:
        mask = survey_slide(slide, store, HlsThresholds())
        thumbnail, scale = read_thumbnail(store)
        assert (slide.thumbnail(scale[0] * 0.5) == thumbnail).all()
        assert max(thumbnail.shape) <= 1600
    again = read_mask(store)
    assert (again.mask == mask.mask).all()
    assert (again.scale_x, again.scale_y, again.mpp) == (mask.scale_x, mask.scale_y, mask.mpp)
    assert {"mask.png", "outline.jpg", "thumbnail.png"} == set(read_commit(store.path("tissue")).files)  # type: ignore[union-attr]


def test_a_step_that_was_not_run_is_named(tmp_path: Path) -> None:
    store = TileStore(Output(tmp_path), "nobody")
    with pytest.raises(UsageError, match=r"no tiles.*microtome tile"):
        _ = store.origins
    with pytest.raises(UsageError, match=r"no features/x.*microtome encode"):
        store.features("x")
