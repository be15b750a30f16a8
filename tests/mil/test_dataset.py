"""Datasets: every tile once, the same whoever reads it and in whatever order, and no hole as a white tile."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from mil.dataset import FeatureDataset, TileDataset
from tiling.codecs import Jpeg, Raw, TileCodec, Zstd
from tiling.grid import TileSpec
from tiling.interchange import FeatureFile, adopt_features
from tiling.output import Output
from tiling.recipe import CutRecipe
from tiling.shards import array_metadata, shard_path, write_shard
from tiling.stain import Macenko
from tiling.store import TileStore, make_array
from wsi.durable import write_file
from wsi.errors import DamagedError, UsageError

MakeStore = Callable[..., TileStore]
RAW = Raw()


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    """Commit a store of 11 random tiles, in shards of 4, with features by ``"enc"``."""

    def make(
        slide_id: str = "a",
        *,
        seed: int = 0,
        size: int = 16,
        codec: TileCodec | None = RAW,
        stain: Macenko | None = None,
    ) -> TileStore:
        rng, count, step = np.random.default_rng(seed), 11, 4
        store = TileStore(Output(tmp_path / "out"), slide_id)
        cut = CutRecipe(spec=TileSpec(size, 0.5), stain=stain, pixels=codec)
        recipe = {"step": "tiles", "tiles_per_shard": step, **cut.settings()}
        origins = np.stack([np.arange(count) * 32, np.full(count, 64)], axis=1).astype(np.int32)
        with store.output.lock():
            draft = store.begin("tiles", recipe)
            assert draft is not None
            places = make_array(
                draft, "origins", shape=origins.shape, rows_per_file=count, dtype=np.int32, fill=-1
            )
            places.write_all(origins)
            if codec:
                folder, shape = draft.folder / "pixels", (count, size, size, 3)
                tiles = rng.integers(0, 256, shape, np.uint8)
                for shard in range(3):
                    chunks = [codec.encode(tile) for tile in tiles[shard * step : (shard + 1) * step]]
                    write_shard(shard_path(folder, shard), chunks, slots=step)
                write_file(
                    folder / "zarr.json", array_metadata(shape, shard_tiles=step, codec=codec, fill=255)
                )
            draft.publish({"tiles": count})
            features = rng.normal(size=(count, 5)).astype(np.float16)
            adopt_features(store, FeatureFile(features, origins, None, slide_id), "enc")
        return store

    return make


brightness = partial(torch.mean, dtype=torch.float32)
"""Of a library, so that spawned workers can import it: tests are no package."""


def all_pixels(store: TileStore) -> NDArray[np.uint8]:
    return store.read_pixels(slice(0, len(store)))


@pytest.mark.parametrize("codec", [Raw(), Zstd(), Jpeg(90)])
def test_a_tile_is_the_store_s_channels_first(make_store: MakeStore, codec: TileCodec) -> None:
    store = make_store(codec=codec)
    dataset = TileDataset(store)
    assert len(dataset) == len(store)
    for row, expected in enumerate(all_pixels(store)):
        tile, slide, number = dataset[row]
        assert tile.shape == (3, 16, 16)
        assert tile.dtype == torch.uint8
        assert tile.is_contiguous()
        assert (tile.permute(1, 2, 0).numpy() == expected).all()
        assert (slide, number) == (0, row)
    assert dataset[-1].row == len(store) - 1
    for index in (len(store), -len(store) - 1):
        with pytest.raises(IndexError, match="of 11"):
            dataset[index]


def test_several_stores_are_one_after_the_other(make_store: MakeStore) -> None:
    stores = [make_store("a", seed=1), make_store("b", seed=2), make_store("c", seed=3)]
    dataset = TileDataset(stores)
    assert dataset.slide_ids == ["a", "b", "c"]
    assert len(dataset) == 33
    pixels = np.concatenate([all_pixels(store) for store in stores])
    for index in (0, 10, 11, 21, 22, 32):
        item = dataset[index]
        assert (item.slide, item.row) == divmod(index, 11)
        assert (item.tile.permute(1, 2, 0).numpy() == pixels[index]).all()


def test_a_batch_is_its_tiles_in_the_order_asked_for(make_store: MakeStore) -> None:
    dataset = TileDataset([make_store("a", seed=1), make_store("b", seed=2)])
    indices = [21, 0, 12, 12, 3, -1, 7, 0, 20]  # across slides and shards, some twice
    batch = dataset.__getitems__(indices)
    assert len(batch) == len(indices)
    for item, index in zip(batch, indices, strict=True):
        alone = dataset[index]
        assert (item.tile == alone.tile).all()
        assert (item.slide, item.row) == (alone.slide, alone.row)
    batch[0].tile.zero_()  # no tile shares memory with another, or with a file
    assert (batch[5].tile == dataset[-1].tile).all()
    assert dataset.__getitems__([]) == []


def test_the_transform_gets_each_tile(make_store: MakeStore) -> None:
    store = make_store()
    dataset = TileDataset(store, transform=brightness)
    expected = all_pixels(store).reshape(len(store), -1).mean(axis=1)
    found = [float(item.tile) for item in dataset.__getitems__(range(len(store)))]
    assert np.allclose(found, expected)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_what_one_process_reads(make_store: MakeStore, context: str) -> None:
    stores = [make_store("a", seed=1), make_store("b", seed=2)]
    dataset = TileDataset(stores, transform=brightness)
    assert dataset[0].row == 0  # files are open here already
    loader = DataLoader(
        dataset,
        batch_size=5,
        shuffle=True,
        num_workers=2,
        multiprocessing_context=context,
        generator=torch.Generator().manual_seed(4),
    )
    seen = {}
    for tiles, slides, rows in loader:
        for value, slide, row in zip(tiles, slides.tolist(), rows.tolist(), strict=True):
            seen[slide, row] = value
    assert sorted(seen) == [(slide, row) for slide in (0, 1) for row in range(11)]
    for (slide, row), value in seen.items():
        assert value == dataset[slide * 11 + row].tile


def test_a_dataset_pickles_with_and_without_open_files(make_store: MakeStore) -> None:
    dataset = TileDataset(make_store())
    fresh = pickle.loads(pickle.dumps(dataset))
    assert (dataset[3].tile == fresh[3].tile).all()
    used = pickle.dumps(dataset)
    assert len(used) == len(pickle.dumps(TileDataset(dataset.stores)))
    assert (pickle.loads(used)[3].tile == dataset[3].tile).all()


def test_a_shard_that_goes_is_not_read_as_white(make_store: MakeStore) -> None:
    store = make_store()
    dataset = TileDataset(store)
    assert dataset[0].row == 0
    shard = store.path("tiles") / "pixels/c/1/0/0/0"
    data = shard.read_bytes()
    for damage in (shard.unlink, lambda: shard.write_bytes(data[:-1])):
        damage()
        assert dataset[0].row == 0
        with pytest.raises(DamagedError, match="pixels cannot be read"):
            dataset[5]
        with pytest.raises(DamagedError):
            TileDataset(store)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    shard.write_bytes(bytes(flipped))
    with pytest.raises(DamagedError, match="pixels cannot be read"):
        dataset.__getitems__(range(4, 8))


def test_what_cannot_be_one_dataset_is_refused(make_store: MakeStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no slides"):
        TileDataset([])
    other = make_store("b", size=32)
    with pytest.raises(UsageError, match="'a' and 'b' are of 16 and 32 px"):
        TileDataset([make_store("a"), other])
    with pytest.raises(UsageError, match="has no tiles"):
        TileDataset(TileStore(Output(tmp_path / "out"), "none"))
    with pytest.raises(UsageError, match="cut without pixels"):
        TileDataset(make_store("c", codec=None))


def test_lazy_pixels_are_the_pixels(make_store: MakeStore) -> None:
    store = make_store()
    lazy = store.lazy_pixels()
    assert lazy.shape == (11, 16, 16, 3)
    assert lazy.dtype == np.uint8
    assert lazy.chunks[0] == (4, 4, 3)
    assert (np.asarray(lazy) == all_pixels(store)).all()
    assert (np.asarray(lazy[5:9, ::4, 2, 1]) == all_pixels(store)[5:9, ::4, 2, 1]).all()
    assert float(lazy.mean()) == pytest.approx(all_pixels(store).mean())


def test_lazy_pixels_read_only_what_is_asked_for(make_store: MakeStore) -> None:
    store = make_store()
    lazy, expected = store.lazy_pixels(), all_pixels(store)
    read: list[slice] = []
    original = TileStore.read_pixels

    def spy(self: TileStore, rows: slice) -> NDArray[np.uint8]:
        read.append(rows)
        return original(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TileStore, "read_pixels", spy)
        lazy = store.lazy_pixels()
        assert read == []
        assert (np.asarray(lazy[9:]) == expected[9:]).all()
    assert read == [slice(8, 11)]


# Bags ------------------------------------------------------------------------------------------------------


def test_a_bag_is_a_slide_s_features(make_store: MakeStore) -> None:
    stores = [make_store("a", seed=1), make_store("b", seed=2)]
    dataset = FeatureDataset(stores, "enc", [1, 0])
    assert len(dataset) == 2
    loader = DataLoader(dataset, batch_size=None)
    for (features, label), store, expected in zip(loader, stores, (1, 0), strict=True):
        assert features.dtype == torch.float32
        assert (features.numpy() == store.features("enc")).all()
        assert label == expected
    assert (pickle.loads(pickle.dumps(dataset))[1][0] == dataset[1][0]).all()


def test_features_of_context_stand_behind_the_tiles_own(make_store: MakeStore) -> None:
    store = make_store()
    folder = store.path("features/enc")
    shutil.copytree(folder, folder.with_name("enc@2"))  # as if context were the tile itself
    ((features, label),) = FeatureDataset([store], "enc", [1], contexts=[2.0])
    own = store.features("enc")
    assert (features.numpy() == np.concatenate([own, own], axis=1)).all()
    assert label == 1
    with pytest.raises(UsageError, match="no features of context at 4 µm"):
        FeatureDataset([store], "enc", [1], contexts=[4.0])


def test_bags_that_do_not_belong_together_are_refused(make_store: MakeStore) -> None:
    one, two = make_store("a"), make_store("b", stain=Macenko())
    with pytest.raises(UsageError, match="has no features/other"):
        FeatureDataset([one], "other", [0])
    with pytest.raises(UsageError, match="not made alike"):
        FeatureDataset([one, two], "enc", [0, 1])
    with pytest.raises(UsageError, match="1 slides and 2 labels"):
        FeatureDataset([one], "enc", [0, 1])
    with pytest.raises(UsageError, match="no slides"):
        FeatureDataset([], "enc", [])


def test_a_moved_output_is_read_where_it_is(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    shutil.move(store.output.root, tmp_path / "elsewhere")
    moved = TileStore(Output(tmp_path / "elsewhere"), store.slide_id)
    assert len(TileDataset(moved).__getitems__([0, 10])) == 2
