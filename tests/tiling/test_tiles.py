"""Tiles from the slide are the bytes that a store holds, and what is stored is what can be mixed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

import cli
from mil.checkpoint import describe, save_model
from mil.encoders import load_encoder, untrained_encoder
from mil.features import common_recipe, feature_items
from mil.heads import build_head
from tiling.codecs import Jpeg, Raw, TileCodec, Zstd
from tiling.context import context_reader
from tiling.cut import cut_slide
from tiling.grid import TileSpec
from tiling.output import Output
from tiling.quality import MEASURES, QualityFilter
from tiling.recipe import CutRecipe
from tiling.store import TileStore
from tiling.tiles import read_on_the_fly, tile_reader
from wsi.errors import SlideError, UsageError
from wsi.slide import Slide
from wsi.synthetic import write_slide

ENCODER = "timm:test_efficientnet"
ITEM = "features/timm-test_efficientnet"
CUT = ["--mpp", "1", "--tile-size", "64"]
RECIPE = CutRecipe(spec=TileSpec(size_px=64, mpp=1.0), tiles_per_shard=16)
EVERY = slice(None)


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG tiles, read by the direct path."""
    path = tmp_path_factory.mktemp("direct") / "one.svs"
    write_slide(path, seed=7, lesion=True, size=(1280, 896))
    return path


@pytest.fixture(scope="module")
def reference(direct: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Uncompressed, at an odd resolution and with the grain of a camera: read by OpenSlide."""
    path = tmp_path_factory.mktemp("reference") / "one.tiff"
    with Slide(direct) as slide:
        image = slide.read(0, 0, size=slide.size, mpp=0.5).astype(np.int16)
    image += np.random.default_rng(0).integers(-12, 13, image.shape, np.int16)
    scale = {"resolution": (1e4 / 0.3611, 1e4 / 0.3611), "resolutionunit": "CENTIMETER"}
    pixels = image.clip(0, 255).astype(np.uint8)
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", metadata=None, **scale)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    state = untrained_encoder(ENCODER, seed=0).module.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def cut_once(direct: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles of a slide, for tests that add nothing to them."""
    out = tmp_path_factory.mktemp("cut") / "out"
    assert cli.main([str(word) for word in ("tile", direct, "-o", out, *CUT)]) == 0
    return out


def cut(path: Path, root: Path, recipe: CutRecipe = RECIPE) -> TileStore:
    store = TileStore(Output(root), path.stem)
    with store.output.lock(), Slide(path) as slide:
        cut_slide(slide, store, recipe)
    return store


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def features(store: TileStore) -> dict[str, bytes]:
    folder = store.path(ITEM)
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "commit.json"
    }


# On the fly -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["direct", "reference"])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("mpp", [1.0, 0.73])
def test_tiles_from_the_slide_are_the_bytes_that_were_stored(
    kind: str, exact: bool, mpp: float, direct: Path, reference: Path, tmp_path: Path
) -> None:
    path = {"direct": direct, "reference": reference}[kind]
    recipe = replace(RECIPE, spec=TileSpec(64, mpp), exact=exact)
    with_pixels = cut(path, tmp_path / "raw", recipe)
    without = cut(path, tmp_path / "places", replace(recipe, pixels=None))
    assert not without.has_pixels
    assert not (without.path("tiles") / "pixels").exists()
    assert (without.origins == with_pixels.origins).all()
    assert without.record["stain"] == with_pixels.record["stain"]
    stored = with_pixels.read_pixels(EVERY)
    for threads in (1, 3):
        with Slide(path) as slide:
            read = read_on_the_fly(without, slide, threads=threads)
            assert (read(EVERY) == stored).all()
        with Slide(path) as slide:  # in other pieces, backwards, and one by one
            read = read_on_the_fly(without, slide, threads=threads)
            for start in range((len(stored) - 1) // 5 * 5, -1, -5):
                rows = slice(start, min(start + 5, len(stored)))
                assert (read(rows) == stored[rows]).all()
            for row in range(0, len(stored), 3):
                assert (read(slice(row, row + 1)) == stored[row : row + 1]).all()


@pytest.mark.parametrize(("mpp", "size"), [(0.46, 256), (0.5, 256), (0.7, 224)])
def test_what_is_read_at_once_does_not_change_a_tile(mpp: float, size: int, tmp_path: Path) -> None:
    """Noise, so that many averages lie close to where rounding turns."""
    path, rng = tmp_path / "noise.tiff", np.random.default_rng(0)
    scale = {"resolution": (1e4 / 0.3611, 1e4 / 0.3611), "resolutionunit": "CENTIMETER"}
    noise = rng.integers(0, 256, (900, 2600, 3), np.uint8)
    tifffile.imwrite(path, noise, tile=(256, 256), photometric="rgb", metadata=None, **scale)
    step = size * mpp / 0.3611
    origins = np.array([[int(i * step + 0.5), 0] for i in range(int(2600 // step))], np.int32)
    with Slide(path) as slide:
        together = slide.read_tiles(origins, size=(size, size), mpp=mpp)
        alone = [slide.read(x, y, size=(size, size), mpp=mpp) for x, y in origins.tolist()]
        later = slide.read_tiles(origins[1:], size=(size, size), mpp=mpp)
    assert (together == np.stack(alone)).all()
    assert (together[1:] == later).all()


def test_dropping_tiles_without_storing_any_leaves_the_same_ones(direct: Path, tmp_path: Path) -> None:
    every = cut(direct, tmp_path / "every")
    assert every.quality is not None
    limit = float(np.median(every.quality[:, MEASURES.index("sharpness")]))
    sharp = replace(RECIPE, quality=QualityFilter(min_sharpness=limit))
    stored, places = (
        cut(direct, tmp_path / "1", sharp),
        cut(direct, tmp_path / "2", replace(sharp, pixels=None)),
    )
    assert 0 < len(places) < len(every)
    assert (places.origins == stored.origins).all()
    assert places.quality is not None
    assert (places.quality == stored.quality).all()
    assert (places.dropped()[0] == stored.dropped()[0]).all()
    assert places.dropped()[1] == stored.dropped()[1]
    with Slide(direct) as slide:
        assert (read_on_the_fly(places, slide)(EVERY) == stored.read_pixels(EVERY)).all()


def test_another_file_of_the_same_name_is_refused(direct: Path, tmp_path: Path) -> None:
    store = cut(direct, tmp_path / "out", replace(RECIPE, pixels=None))
    other = tmp_path / direct.name
    write_slide(other, seed=8, lesion=True, size=(1280, 896))
    with Slide(other) as slide:
        for ask in (read_on_the_fly, tile_reader):
            with pytest.raises(SlideError, match=r"one\.svs: is not the file.*'one'.*--overwrite"):
                ask(store, slide)
    changed = bytearray(direct.read_bytes())
    changed[len(changed) // 2] ^= 1
    other.write_bytes(changed)
    with Slide(other) as slide, pytest.raises(SlideError, match="is not the file"):
        read_on_the_fly(store, slide)


def test_a_slide_opened_with_another_resolution_than_it_was_cut_with_is_refused(
    direct: Path, tmp_path: Path
) -> None:
    store = TileStore(Output(tmp_path), "one")
    with store.output.lock(), Slide(direct, mpp=0.25) as slide:
        cut_slide(slide, store, replace(RECIPE, pixels=None))
    for ask in (read_on_the_fly, tile_reader):
        with Slide(direct) as slide, pytest.raises(UsageError, match=r"0\.25 x 0\.25.*--mpp-override"):
            ask(store, slide)
    with Slide(direct, mpp=0.25) as slide:
        assert read_on_the_fly(store, slide)(slice(0, 3)).shape == (3, 64, 64, 3)


def test_without_pixels_and_without_the_slide_it_is_said_what_to_do(direct: Path, tmp_path: Path) -> None:
    store = cut(direct, tmp_path, replace(RECIPE, pixels=None))
    with pytest.raises(UsageError, match=r"'one' were cut without pixels.*one\.svs.*--slides"):
        tile_reader(store)
    for ask in (lambda: store.read_pixels(EVERY), store.open_pixels):
        with pytest.raises(UsageError, match="cut without pixels"):
            ask()


def test_a_store_with_pixels_never_looks_at_the_slide(direct: Path, tmp_path: Path) -> None:
    store = cut(direct, tmp_path)
    assert (tile_reader(store)(slice(2, 5)) == store.read_pixels(slice(2, 5))).all()


# Features -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filtered", [False, True])
def test_features_from_the_slide_are_those_from_the_store_byte_by_byte(
    filtered: bool, direct: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = ["--encoder", ENCODER, "--weights", weights, "--device", "cpu"]
    more = ["--min-sharpness", "300"] if filtered else []
    stored, places = (TileStore(Output(tmp_path / name), "one") for name in ("stored", "places"))
    for store, words in ((stored, []), (places, ["--no-pixels"])):
        out = store.output.root
        assert run(capsys, "tile", direct, "-o", out, *CUT, *more, *words)[0] == 0
        assert run(capsys, "encode", out, *network, *(["--slides", direct] if words else []))[0] == 0
    assert features(places) == features(stored)
    assert (places.origins == stored.origins).all()


def test_encoding_without_pixels_asks_for_the_slides(
    direct: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    network = ["--encoder", ENCODER, "--weights", weights, "--device", "cpu"]
    assert run(capsys, "tile", direct, "-o", out, *CUT, "--no-pixels")[0] == 0
    code, _, err = run(capsys, "encode", out, *network)
    assert code == 2
    assert re.search(r"'one' were cut without pixels\. .*one\.svs.*--slides", err)
    write_slide(other / "two.svs", seed=1, lesion=False, size=(512, 512))
    code, _, err = run(capsys, "encode", out, *network, "--slides", other)
    assert code == 2
    assert re.search(r"ERROR .*no slide file of 1 .*'one'.*--slides", err)
    write_slide(other / "one.svs", seed=1, lesion=False, size=(512, 512))
    code, _, err = run(capsys, "encode", out, *network, "--slides", other / "one.svs")
    assert code == 1
    assert re.search(r"one\.svs: is not the file that the tiles of 'one' were cut from", err)


def test_what_is_encoded_already_needs_no_slide_again(
    direct: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = ["--encoder", ENCODER, "--weights", weights, "--device", "cpu", "--json"]
    assert run(capsys, "tile", direct, "-o", tmp_path, *CUT, "--no-pixels")[0] == 0
    assert run(capsys, "encode", tmp_path, *network, "--slides", direct)[0] == 0
    code, out, _ = run(capsys, "encode", tmp_path, *network)
    assert (code, json.loads(out)["status"]) == (0, "already done")


# Context --------------------------------------------------------------------------------------------------


def test_context_is_encoded_beside_the_tiles_and_a_model_of_it_runs(
    direct: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = ["--encoder", ENCODER, "--weights", weights, "--device", "cpu", "--batch-size", "8"]
    out, scales = tmp_path / "out", (2.0, 4.0)
    assert run(capsys, "tile", direct, "-o", out, *CUT)[0] == 0
    code, _, err = run(capsys, "encode", out, *network, "--context-mpp", 2)
    assert code == 2
    assert re.search(r"'one' is read from the slide\. .*one\.svs.*--slides", err)
    words = ["encode", out, *network, "--context-mpp", *scales, "--json"]
    assert run(capsys, *words, "--slides", direct)[0] == 0
    store, key = TileStore(Output(out), "one"), ITEM.removeprefix("features/")
    assert [store.require(f"{ITEM}@{name}").recipe["context_mpp"] for name in ("2", "4")] == [2.0, 4.0]
    with Slide(direct) as slide:
        context = context_reader(store, slide, mpp=4.0)(EVERY)
    encoder = load_encoder(ENCODER, weights=weights)
    expected = encoder(torch.from_numpy(context)).numpy()
    np.testing.assert_allclose(store.features(f"{key}@4"), expected, rtol=2e-2, atol=2e-2)
    code, printed, _ = run(capsys, *words)  # what is there needs no slide again
    assert (code, json.loads(printed)["status"]) == (0, "already done")
    assert run(capsys, "verify", out, "--full")[0] == 0

    recipe = common_recipe([store], key, contexts=scales)
    head = build_head("gated_abmil", dim=recipe.dim, classes=2, settings={"hidden": 8, "attention": 4})
    save_model(tmp_path / "m", head, describe(head, name="m", classes=("a", "b"), features=recipe))
    words = ["run", direct, "-m", tmp_path / "m", "-o", tmp_path / "new", "--weights", weights]
    code, _, err = run(capsys, *words, "--device", "cpu", "--batch-size", "8")
    assert code == 0, err
    other = TileStore(Output(tmp_path / "new"), "one")
    for item in feature_items(key, scales):
        name = item.removeprefix("features/")
        assert other.features(name).tobytes() == store.features(name).tobytes()
        assert other.require("scores/m").recipe["inputs"][item] == other.require(item).digest


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--context-mpp", "1"], r"'one' have 1 µm per pixel.*coarser"),
        (["--context-mpp", "2", "2.0"], "name a scale twice"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--precision", "fp16"], "fp16 is for GPUs"),
    ],
)
def test_settings_of_no_use_are_refused(
    words: list[str],
    reason: str,
    direct: Path,
    weights: Path,
    cut_once: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    network = ["--encoder", ENCODER, "--weights", weights, "--device", "cpu"]
    code, _, err = run(capsys, "encode", cut_once, *network, "--slides", direct, *words)
    assert code == 2
    assert re.search(reason, err)


# Codecs ---------------------------------------------------------------------------------------------------


def encoded(path: Path, root: Path, name: str, weights: Path, *words: object) -> TileStore:
    """A slide under a name of its own, cut and encoded by the commands."""
    slide = root / f"{name}.svs"
    os.link(path, slide)
    out = root / "out"
    assert cli.main([str(word) for word in ("tile", slide, "-o", out, *CUT, *words)]) == 0
    return TileStore(Output(out), name)


def encode(root: Path, slides: Sequence[Path], weights: Path) -> None:
    words = ["encode", root / "out", "--encoder", ENCODER, "--weights", weights, "--device", "cpu"]
    assert cli.main([str(word) for word in (*words, "--slides", *slides)]) == 0


def test_codecs_differ_by_what_they_promise_and_features_of_them_mix_accordingly(
    direct: Path, weights: Path, tmp_path: Path
) -> None:
    kinds = {
        "raw": [],
        "zstd": ["--pixels", "zstd"],
        "jpeg": ["--pixels", "jpeg"],
        "jpeg80": ["--pixels", "jpeg:80"],
        "places": ["--no-pixels"],
        "exact": ["--exact"],
    }
    stores = {name: encoded(direct, tmp_path, name, weights, *words) for name, words in kinds.items()}
    encode(tmp_path, [tmp_path / f"{name}.svs" for name in kinds], weights)
    raw = stores["raw"].read_pixels(EVERY).astype(int)
    assert (stores["zstd"].read_pixels(EVERY) == raw).all()
    for name, most in (("jpeg", 4.0), ("jpeg80", 7.0)):
        off = np.abs(stores[name].read_pixels(EVERY) - raw)
        assert 0 < off.mean() < most
    sizes = {
        name: sum(f.stat().st_size for f in (store.path("tiles") / "pixels").rglob("*") if f.is_file())
        for name, store in stores.items()
        if store.has_pixels
    }
    assert sizes["jpeg80"] < sizes["jpeg"] < sizes["zstd"] < sizes["raw"]
    key = ITEM.removeprefix("features/")
    for alike in (["raw", "zstd"], ["zstd", "raw"], ["raw", "places"], ["jpeg"], ["exact"]):
        common_recipe([stores[name] for name in alike], key)
    for one, two, word in (
        ("raw", "jpeg", "pixels"),
        ("jpeg", "zstd", "pixels"),
        ("jpeg", "jpeg80", r"pixels\.quality: 80, not 90"),
        ("jpeg", "places", "pixels"),
        ("raw", "exact", "exact: True, not False"),
    ):
        with pytest.raises(UsageError, match=f"'{two}' and '{one}' were not made alike .*{word}"):
            common_recipe([stores[one], stores[two]], key)


@pytest.mark.parametrize("codec", [Raw(), Zstd(), Zstd(3), Jpeg(), Jpeg(75)])
def test_a_codec_changes_nothing_but_the_pixels(codec: TileCodec, direct: Path, tmp_path: Path) -> None:
    store, raw = cut(direct, tmp_path / "1", replace(RECIPE, pixels=codec)), cut(direct, tmp_path / "2")
    assert (store.origins == raw.origins).all()
    assert (store.tissue == raw.tissue).all()
    assert store.quality is not None
    assert (store.quality == raw.quality).all()
    assert store.record == raw.record
    rows: NDArray[np.int64] = np.array([7, 0, 20, 7])
    assert (store.read_pixels(rows) == store.read_pixels(EVERY)[rows]).all()
