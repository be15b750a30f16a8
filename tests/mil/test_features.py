"""Laws of features on disk: any rows are those of the whole, scales belong together, and no hole is read."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from corpus.stores import DIM, IDENTITY, KEY, add_features
from mil.bags import Bag, BagSource
from mil.features import (
    FeatureRecipe,
    KeptBag,
    StoredBag,
    common_recipe,
    feature_items,
    keep_in_memory,
    open_bag,
    read_bag,
)
from tiling.context import context_key
from tiling.rows import RowReader, open_rows
from tiling.store import TileStore, make_array
from wsi.errors import DamagedError, RecipeError, UsageError

MakeStore = Callable[..., TileStore]
ORDERS = ([3], [0, 1, 2], [10, 0, 7, 4], [5, 5, 5, 0, 5], list(range(11)), list(range(10, -1, -1)))


def add_scales(store: TileStore, contexts: Sequence[float]) -> NDArray[np.float16]:
    """Features of the tiles and their contexts; all of them side by side, finest first."""
    each = [add_features(store)]
    for number, mpp in enumerate(sorted(contexts)):
        each.append(add_features(store, context_key(KEY, mpp), seed=number + 1, context_mpp=mpp))
    return np.concatenate(each, axis=1)


def rows_of(order: Sequence[int]) -> NDArray[np.int64]:
    return np.array(order, np.int64)


# Rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contexts", [(), (1.0, 4.0)])
def test_rows_in_any_order_are_those_of_the_whole(contexts: tuple[float, ...], make_store: MakeStore) -> None:
    store = make_store()
    values = add_scales(store, contexts)
    bag = open_bag(store, KEY, contexts=contexts, label=1, patient="p")
    whole = bag.read()
    assert (whole.features == values).all()
    assert (whole.origins == store.origins).all()
    assert (bag.dim, len(bag)) == values.shape[::-1]
    for order in ORDERS:
        part, expected = bag.read(rows_of(order)), whole.read(rows_of(order))
        assert part.features.tobytes() == expected.features.tobytes()
        assert (part.origins == expected.origins).all()
        known = (part.slide_id, part.label, part.patient)
        assert known == (bag.slide_id, bag.label, bag.patient) == ("slide-1", 1, "p")
    same = read_bag(store, KEY, contexts=contexts, label=1, patient="p")
    assert same.features.tobytes() == whole.features.tobytes()


def test_rows_of_no_array_are_an_error_not_others(make_store: MakeStore) -> None:
    store = make_store()
    add_features(store)
    reader = store.open_features(KEY)
    assert reader.read(rows_of([])).shape == (0, DIM)
    for order in ([11], [-1], [0, 99]):
        with pytest.raises(IndexError, match="of 11"):
            reader.read(rows_of(order))
    with pytest.raises(UsageError, match="at least one"):
        open_bag(store, KEY).read(rows_of([]))


def test_only_the_files_that_hold_these_rows_are_read(make_store: MakeStore) -> None:
    """The others are gone, and nobody notices: the commit was checked when the bag was opened."""
    store = make_store()
    values = add_features(store)
    bag = open_bag(store, KEY)
    for file in (0, 2):
        (store.path(f"features/{KEY}") / "c" / str(file) / "0").unlink()
    order = rows_of([6, 4, 7, 4])
    assert (bag.read(order).features == values[order]).all()
    with pytest.raises(DamagedError, match="rows cannot be read"):
        bag.read(rows_of([5, 0]))
    with pytest.raises(DamagedError):
        open_bag(store, KEY)


def test_each_file_is_read_once_whatever_the_order_of_rows(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    add_features(store)
    bag, files = open_bag(store, KEY), []
    original = RowReader._file

    def noting(self: RowReader, number: int) -> Any:
        files.append(number)
        return original(self, number)

    monkeypatch.setattr(RowReader, "_file", noting)
    bag.read(rows_of([10, 0, 9, 1, 3]))
    assert files == [0, 2]


def test_files_of_earlier_versions_and_of_this_one_give_the_same_rows(make_store: MakeStore) -> None:
    """Earlier ones are compressed; this one's are plain, and zarr-python reads both."""
    store = make_store()
    values = add_features(store)
    item = store.path(f"features/{KEY}")
    plain = store.open_features(KEY)
    assert plain._array is None
    assert (zarr.open_array(item, mode="r")[:] == values).all()
    for number in range(3):
        assert (item / "c" / str(number) / "0").stat().st_size == 4 * DIM * 2 + 4  # and a checksum
    packed = item.parent / "packed"
    zarr.create_array(packed, data=values, chunks=(4, DIM), compressors=ZstdCodec(level=1, checksum=True))
    for reader in (plain, open_rows(packed)):
        assert (reader.read() == values).all()
        for order in ORDERS:
            assert (reader.read(rows_of(order)) == values[order]).all()


def test_features_of_before_the_architecture_was_recorded_say_what_to_do(make_store: MakeStore) -> None:
    old, new = make_store("old"), make_store("new", seed=1)
    later = IDENTITY | {"architecture": {"name": "net"}, "resized": 224}
    add_features(old)
    add_features(new, encoder=later)
    with pytest.raises(UsageError, match=r"architecture and resized .*encode with --overwrite"):
        common_recipe([new, old], KEY)
    add_features(other := make_store("imported", seed=2), encoder=IDENTITY | {"dpi": 1})
    with pytest.raises(UsageError, match=r"encoder\.dpi: (1|none), not"):
        common_recipe([old, other], KEY)


def test_a_flipped_byte_is_damage(make_store: MakeStore) -> None:
    store = make_store()
    add_features(store)
    bag = open_bag(store, KEY)
    path = store.path(f"features/{KEY}") / "c" / "1" / "0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    bag.read(rows_of([0, 9]))
    with pytest.raises(DamagedError, match="rows cannot be read"):
        bag.read(rows_of([0, 5]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_named_where_they_are_read(make_store: MakeStore, value: float) -> None:
    store = make_store()
    add_features(store, bad=(9, value))
    bag = open_bag(store, KEY)
    assert len(bag.read(rows_of([8, 10, 0]))) == 3
    for order in (None, rows_of([3, 9])):
        with pytest.raises(UsageError, match=r"slide 'slide-1' .*1 of .* tiles, first at \(288, 64\)"):
            bag.read(order)


def test_a_pickled_bag_reads_the_same(make_store: MakeStore) -> None:
    store = make_store()
    add_scales(store, [2.0])
    bag = open_bag(store, KEY, contexts=[2.0], label=0)
    other: StoredBag = pickle.loads(pickle.dumps(bag))
    assert (other.read().features == bag.read().features).all()
    assert (other.slide_id, other.label, other.dim) == (bag.slide_id, bag.label, bag.dim)


# Scales ---------------------------------------------------------------------------------------------------


def test_scales_stand_finest_first_whatever_their_order(make_store: MakeStore) -> None:
    store = make_store()
    add_scales(store, [1.0, 4.0, 16.0])
    one, other = (read_bag(store, KEY, contexts=c).features for c in ([1.0, 4.0, 16.0], [16, 1, 4]))
    assert one.tobytes() == other.tobytes()
    assert (one[:, :DIM] == store.features(KEY)).all()
    assert (one[:, -DIM:] == store.features("enc@16")).all()
    assert feature_items(KEY, [4, 1.0]) == ("features/enc", "features/enc@1", "features/enc@4")


def test_a_scale_that_is_missing_is_named_with_what_to_do(make_store: MakeStore) -> None:
    store = make_store()
    add_scales(store, [1.0])
    for ask in (open_bag, read_bag, FeatureRecipe.of):
        with pytest.raises(UsageError, match=r"'slide-1' has no .* at 2\.5 µm by 'enc'.*--context-mpp 2\.5"):
            ask(store, KEY, contexts=[1.0, 2.5])
    with pytest.raises(UsageError, match="name a scale twice"):
        open_bag(store, KEY, contexts=[1.0, 1.0])


def test_a_scale_by_other_weights_is_refused(make_store: MakeStore) -> None:
    store = make_store()
    add_features(store)
    add_features(store, "enc@2", encoder=IDENTITY | {"weights": "sha256:1"}, context_mpp=2.0)
    with pytest.raises(UsageError, match=r"features/enc@2 of slide 'slide-1' is by another .*\(weights"):
        open_bag(store, KEY, contexts=[2.0])


def test_a_scale_of_other_tiles_is_refused(make_store: MakeStore) -> None:
    store = make_store()
    add_scales(store, [2.0])
    overwriting = TileStore(store.output, store.slide_id, overwrite=True)
    _cut_anew(overwriting)
    with pytest.raises(RecipeError, match="computed from other tiles"):
        open_bag(store, KEY, contexts=[2.0])
    add_features(overwriting)  # the tiles' own are new, the context is not
    assert len(open_bag(store, KEY)) == 11
    with pytest.raises(RecipeError, match=r"features/enc@2 .*computed from other tiles"):
        open_bag(store, KEY, contexts=[2.0])


def _cut_anew(store: TileStore) -> None:
    recipe, origins = dict(store.tiles.recipe), store.origins
    with store.output.lock():
        draft = store.begin("tiles", recipe | {"seed": 99})
        assert draft is not None
        array = make_array(
            draft, "origins", shape=origins.shape, rows_per_file=len(origins), dtype=np.int32, fill=-1
        )
        array.write_all(origins)
        draft.publish({"tiles": len(origins)})


def test_features_of_fewer_rows_than_tiles_are_refused(make_store: MakeStore) -> None:
    store = make_store()
    add_features(store, count=8)
    with pytest.raises(UsageError, match="11 tiles and 8 rows"):
        open_bag(store, KEY)


def test_scales_are_part_of_what_must_be_equal(make_store: MakeStore) -> None:
    stores = [make_store("a"), make_store("b", seed=1)]
    for store in stores:
        add_scales(store, [1.0, 2.0])
    one, both = (common_recipe(stores, KEY, contexts=contexts) for contexts in ([1.0], [2.0, 1.0]))
    assert both.contexts == (1.0, 2.0)
    assert (one.dim, both.dim) == (2 * DIM, 3 * DIM)
    assert any("contexts: [1.0], not [1.0, 2.0]" in word for word in one.differences(both))
    for recipe in (one, both):
        assert FeatureRecipe.from_json(recipe.as_json()) == recipe
    add_scales(late := make_store("c", seed=2), [1.0, 4.0])
    with pytest.raises(UsageError, match="'b' has no features of context"):
        common_recipe([late, stores[1]], KEY, contexts=[1.0, 4.0])


def test_a_card_of_before_there_was_context_still_loads(make_store: MakeStore) -> None:
    store = make_store()
    add_features(store)
    recipe = FeatureRecipe.of(store, KEY)
    old = recipe.as_json()
    del old["contexts"]
    assert FeatureRecipe.from_json(old) == recipe
    assert recipe.contexts == ()
    assert recipe.dim == DIM


# Memory ---------------------------------------------------------------------------------------------------


class Counting:
    """A source that counts how often it is read."""

    def __init__(self, bag: Bag) -> None:
        self.bag, self.reads = bag, 0
        self.slide_id, self.label, self.patient, self.dim = bag.slide_id, bag.label, bag.patient, bag.dim

    def __len__(self) -> int:
        return len(self.bag)

    def read(self, rows: NDArray[np.int64] | None = None) -> Bag:
        self.reads += 1
        return self.bag.read(rows)


def bag_of(count: int, name: str = "s") -> Bag:
    rng = np.random.default_rng(count)
    origins = np.stack([np.arange(count), np.zeros(count)], axis=1).astype(np.int32)
    return Bag(name, rng.normal(size=(count, DIM)).astype(np.float16), origins, 1, "p")


def test_bags_that_fit_are_read_once_and_the_others_each_time() -> None:
    sources = [Counting(bag_of(count)) for count in (10, 1000, 20)]
    per_row = 2 * DIM + 8
    kept = keep_in_memory(sources, budget_bytes=30 * per_row)
    order = rows_of([3, 3, 0])
    for _ in range(3):
        for source, original in zip(kept, sources, strict=True):
            assert (source.read(order).features == original.bag.read(order).features).all()
            assert (source.read().features == original.bag.features).all()
            known = (source.slide_id, source.label, source.patient, source.dim, len(source))
            assert known == ("s", 1, "p", DIM, len(original))
    assert [source.reads for source in sources] == [1, 6, 1]


def test_nothing_is_read_before_it_is_wanted_and_memory_is_left_alone(make_store: MakeStore) -> None:
    store = make_store()
    add_features(store)
    counting, bag, stored = Counting(bag_of(5)), bag_of(5), open_bag(store, KEY)
    sources: list[BagSource] = [counting, bag, stored]
    kept = keep_in_memory(sources)
    assert counting.reads == 0
    assert kept[1] is bag
    assert isinstance(kept[2], KeptBag)
    assert kept[2].read() is kept[2].read()
    assert keep_in_memory(sources, budget_bytes=0) == sources


def test_a_damaged_bag_is_refused_at_each_read(make_store: MakeStore) -> None:
    store = make_store()
    add_features(store, bad=(2, np.nan))
    (kept,) = keep_in_memory([open_bag(store, KEY)])
    for _ in range(2):
        with pytest.raises(UsageError, match="NaN"):
            kept.read(rows_of([0]))
