"""Laws of pools from disk: a tile's class is its annotation's or its slide's; no slide changes another."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mil.features import FeatureRecipe, read_bag
from mil.fewshot.pool import UNKNOWN_SITE, Pool
from mil.fewshot.sources import labelled_tile_pool, slide_pool, tile_pool
from mil.labels import LabelTable, read_labels
from tiling.context import context_key
from tiling.output import Output
from tiling.rows import RowReader
from tiling.store import TileStore, make_array
from wsi.errors import UsageError
from wsi.regions import RegionFiles

SIDE, COLUMNS, ROWS, DIM, KEY = 64, 12, 8, 6, "enc"
TABLE = "slide_id,label,patient,site\ns2,x,p,Oslo\ns1,y,q,\ns3,x,p,Rome\n"
Stores = dict[str, TileStore]
MakeTable = Callable[[str], LabelTable]


def make_store(root: Path, slide_id: str, *, folder: str = "out") -> TileStore:
    """96 tiles of 64 level-0 px, in files of 16."""
    store = TileStore(Output(root / folder), slide_id)
    recipe = {
        "step": "tiles",
        "spec": {"size_px": 32, "mpp": 0.5, "overlap_px": 0},
        "stain": None,
        "tissue": {"method": "Otsu"},
        "min_tissue": 0.25,
        "quality": {},
        "pixels": None,
        "exact": False,
    }
    with store.output.lock():
        draft = store.begin("tiles", recipe)
    assert draft is not None
    origins = np.array([(x, y) for y in range(ROWS) for x in range(COLUMNS)], np.int32) * SIDE
    make_array(draft, "origins", shape=origins.shape, rows_per_file=96, dtype=np.int32, fill=-1).write_all(
        origins
    )
    draft.publish(
        {
            "tiles": len(origins),
            "slide_size": [COLUMNS * SIDE, ROWS * SIDE],
            "bounds_origin": [0, 0],
            "tile_level0": [float(SIDE), float(SIDE)],
            "measures": [],
            "reasons": [""],
            "dropped": {},
        }
    )
    return store


def add_features(store: TileStore, key: str = KEY, *, weights: str = "sha256:0") -> NDArray[np.float16]:
    """Random numbers that no other slide has."""
    seed = list(f"{store.slide_id} {key}".encode())
    values = np.random.default_rng(seed).normal(size=(len(store), DIM)).astype(np.float16)
    encoder = {"name": KEY, "dim": DIM, "weights": weights}
    content = {"step": "features", "inputs": store.inputs("tiles"), "encoder": encoder}
    with store.output.lock():
        draft = store.begin(f"features/{key}", content)
        assert draft is not None
        array = make_array(draft, "", shape=values.shape, rows_per_file=16, dtype=np.float16, fill=np.nan)
        for start in range(0, len(values), 16):
            array.write(slice(start, start + 16), values[start : start + 16])
        draft.publish({})
    return values


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    """Three slides, as they are found in a folder."""
    found = {}
    for name in ("s3", "s1", "s2"):
        found[name] = make_store(tmp_path, name)
        add_features(found[name])
    return found


@pytest.fixture
def table(tmp_path: Path) -> MakeTable:
    def make(content: str) -> LabelTable:
        path = tmp_path / "labels.csv"
        path.write_text(content)
        return read_labels(path, to_train=False)

    return make


def annotate(folder: Path, slide_id: str, areas: Mapping[str, tuple[int, int, int, int]]) -> RegionFiles:
    """Blocks of tiles (column, row, columns, rows), by class; a name's part after ``/`` makes it unique."""
    features: list[dict[str, Any]] = []
    for name, (column, row, wide, high) in areas.items():
        left, top, right, bottom = (SIDE * value for value in (column, row, column + wide, row + high))
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"objectType": "annotation", "classification": {"name": name.split("/")[0]}},
            }
        )
    folder.mkdir(exist_ok=True)
    path = folder / f"{slide_id}.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return RegionFiles(folder)


@pytest.fixture
def annotations(tmp_path: Path) -> RegionFiles:
    annotate(tmp_path / "marks", "s1", {"tumour": (0, 0, 6, 4), "stroma": (6, 4, 6, 4)})
    return annotate(tmp_path / "marks", "s2", {"tumour/1": (0, 0, 3, 2), "tumour/2": (4, 0, 5, 8)})


def rows_of(pool: Pool, store: TileStore, *, contexts: tuple[float, ...] = ()) -> NDArray[np.int64]:
    """Which tiles of a slide the pool holds, found by their features, in the pool's order."""
    whole = read_bag(store, KEY, contexts=contexts).features
    bags = np.flatnonzero(pool.slides == pool.slide_ids.index(store.slide_id))
    rows = pool.features[np.repeat(pool.slides, pool.sizes) == pool.slides[bags[0]]]
    found = [np.flatnonzero((whole == row).all(axis=1)) for row in rows]
    assert {len(each) for each in found} == {1}
    return np.concatenate(found)


# Annotated tiles -----------------------------------------------------------------------------------------


def test_tiles_have_their_annotations_class(stores: Stores, annotations: RegionFiles) -> None:
    pool, recipe = tile_pool(stores, annotations, encoder=KEY, tiles_per_region=None)
    assert recipe == FeatureRecipe.of(stores["s1"], KEY)
    assert pool.of_tiles
    assert (pool.classes, pool.slide_ids) == (("stroma", "tumour"), ("s1", "s2"))
    assert (pool.patient_ids, pool.site_ids) == (("s1", "s2"), (UNKNOWN_SITE,))
    assert not pool.places.any()
    assert pool.features.dtype == np.float16
    expected = {"s1": (range(6), range(4)), "s2": (range(9), range(8))}
    for number, name in enumerate(pool.slide_ids):
        columns, rows = rows_of(pool, stores[name]) % COLUMNS, rows_of(pool, stores[name]) // COLUMNS
        labels = pool.labels[pool.slides == number]
        tumour = labels == 1
        assert set(columns[tumour]) <= set(expected[name][0])
        assert set(rows[tumour]) <= set(expected[name][1])
        assert (np.diff(rows_of(pool, stores[name])) > 0).all()
        assert (pool.patients[pool.slides == number] == number).all()
        if name == "s1":
            assert ((columns >= 6) & (rows >= 4) == ~tumour).all()
            assert (tumour.sum(), (~tumour).sum()) == (24, 24)
        else:
            assert tumour.all()
            assert len(tumour) == 3 * 2 + 5 * 8


def test_of_a_large_region_some_tiles_are_taken(stores: Stores, annotations: RegionFiles) -> None:
    whole, _ = tile_pool(stores, annotations, encoder=KEY, tiles_per_region=None)
    pool, _ = tile_pool(stores, annotations, encoder=KEY, tiles_per_region=7)
    assert np.bincount(pool.slides).tolist() == [14, 13]  # the region of six is whole
    assert set(map(bytes, pool.features)) <= set(map(bytes, whole.features))
    other, _ = tile_pool(stores, annotations, encoder=KEY, tiles_per_region=7, seed=1)
    assert (rows_of(pool, stores["s1"]) != rows_of(other, stores["s1"])).any()
    again, _ = tile_pool(stores, annotations, encoder=KEY, tiles_per_region=7)
    assert again.features.tobytes() == pool.features.tobytes()


def test_another_slide_or_annotation_changes_nothing_for_the_others(
    stores: Stores, annotations: RegionFiles
) -> None:
    before, _ = tile_pool(stores, annotations, encoder=KEY, tiles_per_region=5)
    annotate(annotations.source, "s3", {"tumour": (0, 0, 6, 4), "vessel": (6, 0, 6, 8)})
    areas = {"tumour/1": (0, 0, 3, 2), "tumour/2": (4, 0, 5, 8), "stroma": (9, 0, 3, 8)}
    annotate(annotations.source, "s2", areas)
    after, _ = tile_pool(stores, annotations, encoder=KEY, tiles_per_region=5)
    assert after.classes == ("stroma", "tumour", "vessel")
    assert rows_of(after, stores["s1"]).tolist() == rows_of(before, stores["s1"]).tolist()
    assert set(rows_of(before, stores["s2"])) < set(rows_of(after, stores["s2"]))


def test_patients_sites_and_slides_come_from_the_table(
    stores: Stores, annotations: RegionFiles, table: MakeTable, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pool, _ = tile_pool(stores, annotations, encoder=KEY, table=table(TABLE))
    assert (pool.slide_ids, pool.patient_ids) == (("s2", "s1"), ("p", "q"))
    assert pool.site_ids == ("Oslo", UNKNOWN_SITE)
    assert pool.classes == ("stroma", "tumour")  # not the table's
    (record,) = caplog.records
    assert "no annotation file for 1 of the table's 3 slides" in record.message
    assert record.message.endswith(": s3")


def test_annotated_slides_that_the_table_does_not_name_are_counted(
    stores: Stores, annotations: RegionFiles, table: MakeTable, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pool, _ = tile_pool(stores, annotations, encoder=KEY, table=table("slide_id,label\ns1,x\n"))
    assert pool.slide_ids == ("s1",)
    (record,) = caplog.records
    assert "annotated, but not in" in record.message
    assert record.message.endswith("left out: 1 (s2)")


def test_names_of_classes_may_be_changed(stores: Stores, annotations: RegionFiles) -> None:
    pool, _ = tile_pool(stores, annotations, encoder=KEY, rename={"stroma": "other"})
    assert pool.classes == ("other", "tumour")


def test_one_file_is_for_one_slide(stores: Stores, annotations: RegionFiles, table: MakeTable) -> None:
    one = RegionFiles(annotations.source / "s1.geojson")
    pool, _ = tile_pool({"s1": stores["s1"]}, one, encoder=KEY)
    same, _ = tile_pool(stores, one, encoder=KEY, table=table("slide_id,label\ns1,x\n"))
    assert pool.slide_ids == same.slide_ids == ("s1",)
    assert pool.features.tobytes() == same.features.tobytes()
    with pytest.raises(UsageError, match="one region file for 3 slides"):
        tile_pool(stores, one, encoder=KEY)


def test_annotations_that_make_no_classes_are_refused(stores: Stores, tmp_path: Path) -> None:
    alike = annotate(tmp_path / "alike", "s1", {"tumour": (0, 0, 3, 3), "x": (6, 0, 3, 3)})
    annotate(tmp_path / "alike", "s2", {"Tumour": (0, 0, 3, 3)})
    with pytest.raises(UsageError, match="likely to be one"):
        tile_pool(stores, alike, encoder=KEY)
    with pytest.raises(UsageError, match="one class is marked"):
        tile_pool(stores, annotate(tmp_path / "one", "s1", {"tumour": (0, 0, 3, 3)}), encoder=KEY)
    with pytest.raises(UsageError, match="no region file"):
        tile_pool(stores, annotate(tmp_path / "none", "s9", {"tumour": (0, 0, 3, 3)}), encoder=KEY)
    with pytest.raises(UsageError, match="no slides"):
        tile_pool({}, alike, encoder=KEY)


def test_all_files_that_cannot_be_used_are_named_at_once(stores: Stores, tmp_path: Path) -> None:
    good = {"tumour": (0, 0, 3, 3), "stroma": (6, 0, 3, 3)}
    for name in ("s1", "s2", "s3"):
        files = annotate(tmp_path / "regions", name, good)
    for name in ("s1", "s3"):
        files = annotate(tmp_path / "regions", name, good | {"off": (400, 400, 3, 3)})
    with pytest.raises(UsageError, match="2 of 3 annotation files cannot be used") as refused:
        tile_pool(stores, files, encoder=KEY)
    said = str(refused.value)
    assert "s1.geojson" in said
    assert "s3.geojson" in said
    assert "s2.geojson" not in said
    (files.source / "s3.geojson").unlink()
    with pytest.raises(UsageError) as refused:
        tile_pool(stores, files, encoder=KEY)
    assert str(refused.value.path).endswith("s1.geojson")


# Labelled slides -----------------------------------------------------------------------------------------


def test_tiles_have_their_slides_label(stores: Stores, table: MakeTable) -> None:
    pool, recipe = labelled_tile_pool(stores, table(TABLE), encoder=KEY, tiles_per_slide=10)
    assert recipe == FeatureRecipe.of(stores["s1"], KEY)
    assert pool.of_tiles
    assert (len(pool), pool.dim) == (30, DIM)
    assert (pool.classes, pool.slide_ids, pool.patient_ids) == (("x", "y"), ("s2", "s1", "s3"), ("p", "q"))
    assert pool.site_ids == ("Oslo", UNKNOWN_SITE, "Rome")
    assert pool.labels.tolist() == [0] * 10 + [1] * 10 + [0] * 10
    assert pool.patients.tolist() == [0] * 10 + [1] * 10 + [0] * 10
    assert pool.sites.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    for store in stores.values():
        assert (np.diff(rows_of(pool, store)) > 0).all()
    whole, _ = labelled_tile_pool(stores, table(TABLE), encoder=KEY)
    assert len(whole) == 3 * 96


def test_a_bag_is_a_slide_or_some_of_its_tiles(stores: Stores, table: MakeTable) -> None:
    whole, _ = slide_pool(stores, table(TABLE), encoder=KEY)
    assert (len(whole), whole.of_tiles) == (3, False)
    for number, name in enumerate(whole.slide_ids):
        bag = read_bag(stores[name], KEY)
        packed = whole.pack(np.array([number]))
        assert (packed.features.numpy() == bag.features).all()
        assert (packed.places.numpy() == bag.places).all()
    some, _ = slide_pool(stores, table(TABLE), encoder=KEY, tiles_per_bag=20)
    assert some.sizes.tolist() == [20, 20, 20]
    for number, name in enumerate(some.slide_ids):
        bag = read_bag(stores[name], KEY).read(rows_of(some, stores[name]))
        assert (some.pack(np.array([number])).places.numpy() == bag.places).all()
    assert some.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize("make", [labelled_tile_pool, slide_pool])
def test_a_slide_more_or_less_changes_nothing_for_the_others(
    make: Callable[..., tuple[Pool, FeatureRecipe]], stores: Stores, table: MakeTable
) -> None:
    few = {"tiles_per_slide" if make is labelled_tile_pool else "tiles_per_bag": 9}
    every, _ = make(stores, table(TABLE), encoder=KEY, **few)
    less, _ = make(stores, table("slide_id,label\ns3,x\ns1,y\n"), encoder=KEY, **few)
    for name in ("s1", "s3"):
        assert rows_of(every, stores[name]).tolist() == rows_of(less, stores[name]).tolist()
    assert rows_of(every, stores["s1"]).tolist() != rows_of(every, stores["s2"]).tolist()
    assert every.patient_ids == ("p", "q")
    assert less.patient_ids == ("s3", "s1")
    other, _ = make(stores, table(TABLE), encoder=KEY, seed=1, **few)
    assert (other.features != every.features).any()


# What all have in common ---------------------------------------------------------------------------------


@pytest.fixture
def read_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were read, each time."""
    counts: list[int] = []
    read = RowReader.read

    def counted(self: RowReader, rows: NDArray[np.int64] | None = None) -> NDArray[np.float16]:
        counts.append(self.shape[0] if rows is None else len(rows))
        return read(self, rows)

    monkeypatch.setattr(RowReader, "read", counted)
    return counts


def test_no_rows_are_read_but_those_of_the_pool(
    stores: Stores, annotations: RegionFiles, table: MakeTable, read_rows: list[int]
) -> None:
    tile_pool(stores, annotations, encoder=KEY, tiles_per_region=5)
    assert read_rows == [10, 10]
    read_rows.clear()
    labelled_tile_pool(stores, table(TABLE), encoder=KEY, tiles_per_slide=4)
    slide_pool(stores, table(TABLE), encoder=KEY, tiles_per_bag=3)
    assert read_rows == [4, 4, 4, 3, 3, 3]


def test_a_pool_that_is_too_large_is_refused_before_it_is_read(
    stores: Stores, table: MakeTable, read_rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mil.fewshot.sources.LARGEST_POOL", 3 * 96 * DIM * 2 - 1)
    with pytest.raises(UsageError, match=r"288 tiles of 6 features take .*Take fewer tiles"):
        slide_pool(stores, table(TABLE), encoder=KEY)
    assert not read_rows
    assert len(slide_pool(stores, table(TABLE), encoder=KEY, tiles_per_bag=95)[0]) == 3


def test_contexts_stand_behind_the_tiles_own(
    stores: Stores, annotations: RegionFiles, table: MakeTable
) -> None:
    for store in stores.values():
        add_features(store, context_key(KEY, 2.0))
    contexts = (2.0,)
    annotated = tile_pool(stores, annotations, encoder=KEY, contexts=contexts)
    labelled = labelled_tile_pool(stores, table(TABLE), encoder=KEY, contexts=contexts, tiles_per_slide=5)
    slides = slide_pool(stores, table(TABLE), encoder=KEY, contexts=contexts, tiles_per_bag=5)
    for pool, recipe in (annotated, labelled, slides):
        assert pool.dim == recipe.dim == 2 * DIM
        assert recipe.contexts == contexts
        rows_of(pool, stores["s1"], contexts=contexts)


def test_slides_of_the_table_that_are_not_there_are_named(
    stores: Stores, annotations: RegionFiles, table: MakeTable, tmp_path: Path
) -> None:
    stores["s4"] = make_store(tmp_path, "s4")
    calls: list[Callable[[LabelTable], object]] = [
        lambda rows: tile_pool(stores, annotations, encoder=KEY, table=rows),
        lambda rows: labelled_tile_pool(stores, rows, encoder=KEY),
        lambda rows: slide_pool(stores, rows, encoder=KEY),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=r"2 slides with no tiles and no features here: s8, s9"):
            call(table(TABLE + "s8,x,r,\ns9,x,r,\n"))
        with pytest.raises(UsageError, match=r"1 slide with no features/enc: s4"):
            call(table(TABLE + "s4,x,r,\n"))


def test_slides_that_were_not_made_alike_are_refused(
    stores: Stores, annotations: RegionFiles, table: MakeTable, tmp_path: Path
) -> None:
    stores["s2"] = make_store(tmp_path, "s2", folder="other")
    add_features(stores["s2"], weights="sha256:1")
    for call in (
        lambda: tile_pool(stores, annotations, encoder=KEY),
        lambda: labelled_tile_pool(stores, table(TABLE), encoder=KEY),
        lambda: slide_pool(stores, table(TABLE), encoder=KEY),
    ):
        with pytest.raises(UsageError, match="not made alike"):
            call()


def test_no_tiles_are_none(stores: Stores, annotations: RegionFiles, table: MakeTable) -> None:
    with pytest.raises(UsageError, match="0 tiles a region"):
        tile_pool(stores, annotations, encoder=KEY, tiles_per_region=0)
    with pytest.raises(UsageError, match="0 tiles a slide"):
        labelled_tile_pool(stores, table(TABLE), encoder=KEY, tiles_per_slide=0)
    with pytest.raises(UsageError, match="-1 tiles a bag"):
        slide_pool(stores, table(TABLE), encoder=KEY, tiles_per_bag=-1)
