"""Interchange: files in the exact layouts of CLAM and TRIDENT, both ways, and every bad one refused by name.

The foreign files here are written with h5py alone, and read as those tools read: not by what is tested.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from tiling.grid import TileSpec, lay_grid
from tiling.interchange import (
    CoordinateFile,
    FeatureFile,
    adopt_coordinates,
    adopt_features,
    export_clam,
    export_trident,
    find_foreign,
    import_coordinates,
    import_features,
    import_steps,
    pick_slides,
)
from tiling.manifest import SlideEntry
from tiling.output import Output, verify_items
from tiling.store import TileStore, make_array
from tiling.tiles import tile_reader
from tiling.workers.run import run_slides
from tiling.workers.unit import Orders
from wsi.errors import MicrotomeError, NoTissueError, RecipeError, UsageError
from wsi.geometry import Level, Resolution
from wsi.slide import Slide
from wsi.synthetic import write_slide
from wsi.tissue import HlsThresholds

# What the tools do -----------------------------------------------------------------------------------------

STRING = h5py.string_dtype()
CLAM_COORDS: dict[str, tuple[str, tuple[int, ...]]] = {
    "patch_size": ("int64", ()),
    "patch_level": ("int64", ()),
    "downsample": ("float64", (2,)),
    "downsampled_level_dim": ("int64", (2,)),
    "level_dim": ("int64", (2,)),
    "name": ("string", ()),
    "save_path": ("string", ()),
}
TRIDENT_COORDS: dict[str, tuple[str, tuple[int, ...]]] = {
    "patch_size": ("int64", ()),
    "patch_size_level0": ("int64", ()),
    "level0_magnification": ("int64", ()),
    "target_magnification": ("int64", ()),
    "overlap": ("int64", ()),
    "name": ("string", ()),
    "savetodir": ("string", ()),
    "level0_width": ("int64", ()),
    "level0_height": ("int64", ()),
}
TRIDENT_FEATURES: dict[str, tuple[str, tuple[int, ...]]] = {
    "name": ("string", ()),
    "savetodir": ("string", ()),
    "encoder": ("string", ()),
}


def attribute_table(dataset: h5py.Dataset) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every attribute, as HDF5 has them."""
    table = {}
    for name in dataset.attrs:
        kind = dataset.attrs.get_id(name)
        text = h5py.check_string_dtype(kind.dtype)
        table[name] = ("string" if text else str(kind.dtype), kind.shape)
    return table


def layout(dataset: h5py.Dataset) -> tuple[str, tuple[int, ...], tuple[int, ...], tuple[Any, ...]]:
    return str(dataset.dtype), dataset.shape, dataset.chunks, dataset.maxshape


def write_foreign(
    path: Path,
    datasets: Mapping[str, NDArray[Any]],
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
    rows: int = 1,
) -> Path:
    """As both tools write: growing datasets, then attributes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            rest = values.shape[1:]
            dataset = file.create_dataset(
                name, shape=values.shape, maxshape=(None, *rest), chunks=(rows, *rest), dtype=values.dtype
            )
            dataset[:] = values
            for key, value in (attributes or {}).get(name, {}).items():
                dataset.attrs[key] = value
    return path


CLAM_ATTRIBUTES: dict[str, Any] = {
    "patch_size": 32,
    "patch_level": 0,
    "downsample": (1.0, 1.0),
    "downsampled_level_dim": np.array([1536, 1024]),
    "level_dim": (1536, 1024),
    "name": "one",
    "save_path": "/somewhere/patches",
}
TRIDENT_ATTRIBUTES: dict[str, Any] = {
    "patch_size": 64,
    "patch_size_level0": 128,
    "level0_magnification": 20,
    "target_magnification": 10,
    "overlap": 0,
    "name": "one",
    "savetodir": "/somewhere/10x_64px_0px_overlap",
    "level0_width": 1536,
    "level0_height": 1024,
}
COLUMNS_FIRST = np.array([[x, y] for x in (0, 128, 256) for y in (640, 256, 0)], np.int64)
"""As CLAM and older TRIDENT order them, and not even sorted."""
RASTER = np.array([[x, y] for y in (0, 256, 640) for x in (0, 128, 256)], np.int32)


def clam_file(path: Path, coords: NDArray[Any] = COLUMNS_FIRST, **changes: Any) -> Path:
    return write_foreign(path, {"coords": coords}, {"coords": CLAM_ATTRIBUTES | changes})


def trident_file(path: Path, coords: NDArray[Any] = COLUMNS_FIRST, **changes: Any) -> Path:
    return write_foreign(path, {"coords": coords}, {"coords": TRIDENT_ATTRIBUTES | changes})


def without(attributes: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name not in names}


def read_as_clam(path: Path) -> tuple[NDArray[Any], int, int]:
    """What `Whole_Slide_Bag_FP` takes: it then reads (patch_size, patch_size) of patch_level at each."""
    with h5py.File(path, "r") as file:
        coords = np.array([file["coords"][i] for i in range(len(file["coords"]))])
        size, level = file["coords"].attrs["patch_size"], file["coords"].attrs["patch_level"]
        assert isinstance(file["coords"].attrs["name"], str)
    return coords, int(size), int(level)


def read_as_trident(path: Path) -> tuple[NDArray[Any], int, dict[str, Any]]:
    """Coordinates and the side in level-0 pixels that TRIDENT's patcher reads at each."""
    with h5py.File(path, "r") as file:
        attributes = dict(file["coords"].attrs)
        coords = file["coords"][:]
    source, target = (attributes.get(f"{of}_magnification") for of in ("level0", "target"))
    assert attributes.get("patch_size") is not None
    assert source is not None
    assert target is not None
    side = round(attributes["patch_size"] * ((10 / target) / (10 / source)))
    return coords, side, attributes


# Stores ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "one.svs"
    write_slide(path, seed=7, lesion=True, size=(1536, 1024))
    return path


@pytest.fixture
def slide(slide_path: Path) -> Any:
    with Slide(slide_path) as opened:
        yield opened


MakeStore = Callable[..., TileStore]
SPEC = TileSpec(64, 1.0)


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    """A store as `cut_slide` commits it, less the pixels: for any resolution and footprint."""

    def make(
        *,
        spec: TileSpec = SPEC,
        mpp: tuple[float, float] = (0.5, 0.5),
        size: tuple[int, int] = (1536, 1024),
        slide_id: str = "one",
        folder: str = "out",
        features: NDArray[np.float16] | None = None,
    ) -> TileStore:
        grid = lay_grid(size, Resolution(*mpp, "override"), spec)
        origins = grid.origins()
        store = TileStore(Output(tmp_path / folder), slide_id)
        recipe = {
            "step": "tiles",
            "spec": {"size_px": spec.size_px, "mpp": spec.mpp, "overlap_px": spec.overlap_px},
            "resolution": {"x": mpp[0], "y": mpp[1], "source": "override"},
            "tiles_per_shard": 16,
            "pixels": None,
        }
        with store.output.lock():
            draft = store.begin("tiles", recipe)
            assert draft is not None
            array = make_array(
                draft,
                "origins",
                shape=origins.shape,
                rows_per_file=len(origins),
                dtype=np.int32,
                fill=-1,
            )
            array.write_all(origins)
            draft.publish(
                {
                    "slide_size": list(size),
                    "tile_level0": list(grid.tile),
                    "stride_level0": list(grid.stride),
                    "tiles": len(origins),
                }
            )
            if features is not None:
                adopt_features(store, FeatureFile(features, origins, None, slide_id), "enc")
        return store

    return make


def some_features(count: int, dtype: type[np.floating[Any]] = np.float16) -> NDArray[Any]:
    return np.random.default_rng(3).normal(size=(count, 7)).astype(dtype)


# Export ----------------------------------------------------------------------------------------------------


def test_clam_s_files_have_its_fields(make_store: MakeStore, tmp_path: Path) -> None:
    features = some_features(96)
    store = make_store(features=features)
    coords, bags = export_clam(store, tmp_path / "clam", encoder="enc")
    assert coords == tmp_path / "clam/patches/one.h5"
    assert bags == tmp_path / "clam/h5_files/one.h5"
    with h5py.File(coords) as file:
        assert set(file) == {"coords"}
        assert layout(file["coords"]) == ("int64", (96, 2), (1, 2), (None, 2))
        assert attribute_table(file["coords"]) == CLAM_COORDS
        assert file["coords"].attrs["name"] == "one"
        assert tuple(file["coords"].attrs["level_dim"]) == (1536, 1024)
    with h5py.File(bags) as file:
        assert set(file) == {"features", "coords"}
        assert layout(file["features"]) == ("float32", (96, 7), (32, 7), (None, 7))
        assert layout(file["coords"]) == ("int32", (96, 2), (32, 2), (None, 2))
        assert not file["features"].attrs
        assert not file["coords"].attrs
        assert (file["features"][:] == features.astype(np.float32)).all()
        assert (file["coords"][:] == store.origins).all()


def test_trident_s_files_have_its_fields(make_store: MakeStore, tmp_path: Path) -> None:
    features = some_features(96)
    store = make_store(features=features)
    coords, bags = export_trident(store, tmp_path / "job", encoder="enc")
    assert coords == tmp_path / "job/10x_64px_0px_overlap/patches/one_patches.h5"
    assert bags == tmp_path / "job/10x_64px_0px_overlap/features_enc/one.h5"
    with h5py.File(coords) as file:
        assert set(file) == {"coords"}
        assert layout(file["coords"]) == ("int64", (96, 2), (1, 2), (None, 2))
        assert attribute_table(file["coords"]) == TRIDENT_COORDS
        told = {name: file["coords"].attrs[name] for name in TRIDENT_COORDS}
    expected = TRIDENT_ATTRIBUTES | {"savetodir": "10x_64px_0px_overlap"}
    assert told == expected
    with h5py.File(bags) as file:
        assert set(file) == {"features", "coords"}
        assert layout(file["features"]) == ("float16", (96, 7), (1, 7), (None, 7))
        assert layout(file["coords"]) == ("int64", (96, 2), (1, 2), (None, 2))
        assert attribute_table(file["coords"]) == TRIDENT_COORDS
        assert attribute_table(file["features"]) == TRIDENT_FEATURES
        assert file["features"].attrs["encoder"] == "enc"
        assert (file["features"][:] == features).all()


RESOLUTIONS = [(0.25, 0.25), (0.2527, 0.2527), (0.2325, 0.2325), (0.4596, 0.4596), (0.1725, 0.1725)]


@pytest.mark.parametrize("mpp", RESOLUTIONS)
@pytest.mark.parametrize("spec", [TileSpec(256, 0.5), TileSpec(224, 0.5, 32), TileSpec(256, 1.15)])
def test_their_readers_read_the_square_that_a_tile_covers(
    make_store: MakeStore, tmp_path: Path, mpp: tuple[float, float], spec: TileSpec
) -> None:
    store = make_store(spec=spec, mpp=mpp, size=(5000, 4000))
    width, _ = store.record["tile_level0"]
    (clam,), (trident,) = export_clam(store, tmp_path), export_trident(store, tmp_path)
    coords, size, level = read_as_clam(clam)
    assert level == 0
    assert abs(size - width) <= 0.5
    assert (coords == store.origins).all()
    coords, side, attributes = read_as_trident(trident)
    assert abs(side - width) <= 0.5
    assert attributes["patch_size_level0"] == side
    assert attributes["patch_size"] == spec.size_px
    assert (coords == store.origins).all()


def test_nominal_magnifications_stand_where_they_are_right(make_store: MakeStore, tmp_path: Path) -> None:
    exact = make_store(spec=TileSpec(256, 0.5), mpp=(0.25, 0.25), size=(5000, 4000), folder="exact")
    odd = make_store(spec=TileSpec(256, 0.5), mpp=(0.2527, 0.2527), size=(5000, 4000), folder="odd")
    for store, power in ((exact, 40), (odd, 507 / 256 * 20)):
        (path,) = export_trident(store, tmp_path / store.output.root.name)
        assert path.parent.parent.name == "20x_256px_0px_overlap"
        _, _, attributes = read_as_trident(path)
        assert attributes["level0_magnification"] == power
        assert attributes["target_magnification"] == 20


def test_an_exact_level_is_named_where_the_pyramid_is_known(make_store: MakeStore, tmp_path: Path) -> None:
    levels = (Level(1536, 1024, 1, 1), Level(768, 512, 2, 2), Level(384, 256, 4, 4))
    store = make_store()
    (path,) = export_clam(store, tmp_path, levels=levels)
    assert read_as_clam(path)[1:] == (64, 1)
    with h5py.File(path) as file:
        assert file["coords"].attrs["downsample"].tolist() == [2, 2]
        assert file["coords"].attrs["level_dim"].tolist() == [768, 512]
    assert import_coordinates(path).tile == (128, 128)
    (path,) = export_clam(store, tmp_path, levels=(levels[0], levels[2]), overwrite=True)
    assert read_as_clam(path)[1:] == (128, 0)


def test_pixels_that_are_not_square_are_said(
    make_store: MakeStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        store = make_store()
        export_clam(store, tmp_path / "a")
        export_trident(store, tmp_path / "a")
        assert not caplog.records
        store = make_store(mpp=(0.5, 0.52), folder="flat")
        export_clam(store, tmp_path / "b")
        assert "not square" in caplog.text
        caplog.clear()
        export_trident(store, tmp_path / "b")
        assert "not square" in caplog.text


def test_exports_have_the_same_bytes_and_replace_nothing_else(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(features=some_features(96))
    for export in (export_clam, export_trident):
        first = {path.name + path.parent.name: path.read_bytes() for path in export(store, tmp_path / "a")}
        again = {path.name + path.parent.name: path.read_bytes() for path in export(store, tmp_path / "a")}
        other = {path.name + path.parent.name: path.read_bytes() for path in export(store, tmp_path / "b")}
        assert first == again == other
    path = tmp_path / "a/patches/one.h5"
    path.write_bytes(b"somebody's")
    with pytest.raises(UsageError, match="another file is there"):
        export_clam(store, tmp_path / "a")
    assert path.read_bytes() == b"somebody's"
    assert [p.name for p in path.parent.iterdir()] == ["one.h5"]
    export_clam(store, tmp_path / "a", overwrite=True)
    assert read_as_clam(path)[1] == 128


def test_features_that_are_not_there_leave_no_file(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    for export in (export_clam, export_trident):
        with pytest.raises(UsageError, match="has no features/enc"):
            export(store, tmp_path / "to", encoder="enc")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("export", [export_clam, export_trident])
def test_what_is_exported_is_imported(make_store: MakeStore, tmp_path: Path, export: Any) -> None:
    features = some_features(35)
    store = make_store(spec=TileSpec(64, 1.0, 8), mpp=(0.2527, 0.2527), features=features)
    coords, bags = export(store, tmp_path / "to", encoder="enc")
    places = import_coordinates(coords)
    assert (places.origins == store.origins).all()
    assert places.name == "one"
    assert np.allclose(places.tile, store.record["tile_level0"], atol=0.5)
    rows = import_features(bags)
    assert (rows.origins == store.origins).all()
    assert (rows.features == features).all()
    with store.output.lock():
        adopt_features(store, rows, "enc2")
    assert (store.features("enc2") == features).all()


# Import ----------------------------------------------------------------------------------------------------


def test_clam_s_coordinates(tmp_path: Path) -> None:
    file = import_coordinates(clam_file(tmp_path / "one.h5"))
    assert (file.origins == RASTER).all()
    assert file.origins.dtype == np.int32
    assert (file.tile, file.size_px, file.overlap_px) == ((32, 32), 32, None)
    assert (file.source, file.name, file.slide_size) == ("CLAM", "one", None)


def test_trident_s_coordinates(tmp_path: Path) -> None:
    file = import_coordinates(trident_file(tmp_path / "one_patches.h5", overlap=16))
    assert (file.origins == RASTER).all()
    assert (file.tile, file.size_px, file.overlap_px) == ((128, 128), 64, 16)
    assert (file.source, file.name, file.slide_size) == ("TRIDENT", "one", (1536, 1024))


def test_levels_and_older_forks(tmp_path: Path) -> None:
    path = tmp_path / "one.h5"
    cases: list[tuple[dict[str, Any], tuple[float, float]]] = [
        ({"patch_level": 1, "downsample": (4.0, 4.0027)}, (128, 32 * 4.0027)),
        ({"patch_level": 2, "downsample": 16.0}, (512, 512)),
        ({"custom_downsample": 2}, (64, 64)),
        ({"custom_downsample": "None"}, (32, 32)),
        ({"patch_level": 1, "downsample": (2.0, 2.0), "custom_downsample": 2}, (128, 128)),
    ]
    for changes, tile in cases:
        assert import_coordinates(clam_file(path, **changes)).tile == pytest.approx(tile)
    # Fishing-Rod and others write what TRIDENT's reader of old files needs, and no more
    bare = {"patch_size": 32, "patch_level": 1, "custom_downsample": 1}
    write_foreign(path, {"coords": COLUMNS_FIRST}, {"coords": bare})
    with pytest.raises(UsageError, match="level 1, and not how much coarser"):
        import_coordinates(path)
    levels = (Level(8, 8, 1, 1), Level(2, 2, 4, 4))
    assert import_coordinates(path, levels=levels).tile == (128, 128)
    write_foreign(path, {"coords": COLUMNS_FIRST}, {"coords": {"patch_size": 32, "patch_level": 0}})
    assert import_coordinates(path).tile == (32, 32)


def test_trident_s_older_and_unfinished_attributes(tmp_path: Path) -> None:
    path = tmp_path / "two_patches.h5"
    told = without(TRIDENT_ATTRIBUTES, "level0_magnification", "name", "level0_width")
    write_foreign(path, {"coords": COLUMNS_FIRST}, {"coords": told | {"overlap": "None"}})
    file = import_coordinates(path)
    assert (file.tile, file.overlap_px, file.name, file.slide_size) == ((128, 128), None, "two", None)
    for name in ("level0_magnification", "target_magnification"):
        assert import_coordinates(trident_file(path, **{name: "None"})).tile == (128, 128)
    # no magnification, no footprint, but a level: then it is a file of CLAM, as TRIDENT itself takes it
    told = without(TRIDENT_ATTRIBUTES, "level0_magnification", "patch_size_level0") | {"patch_level": 0}
    write_foreign(path, {"coords": COLUMNS_FIRST}, {"coords": told})
    assert import_coordinates(path).source == "CLAM"
    # TRIDENT reads what the magnifications say, not its own rounded-down note
    file = import_coordinates(
        trident_file(path, patch_size=224, level0_magnification=40, target_magnification=15)
    )
    assert file.tile == (597, 597)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_features_follow_their_coordinates(tmp_path: Path, dtype: Any) -> None:
    features = some_features(9, dtype)
    features[:, 0] = np.arange(9)
    path = write_foreign(
        tmp_path / "one.h5",
        {"features": features, "coords": COLUMNS_FIRST.astype(np.int32)},
        {"features": {"encoder": "uni", "name": "one"}},
        rows=4,
    )
    file = import_features(path)
    assert file.features.dtype == dtype
    assert (file.encoder, file.name) == ("uni", "one")
    assert (file.origins == RASTER).all()
    for row, origin in enumerate(file.origins.tolist()):
        theirs = COLUMNS_FIRST.tolist().index(origin)
        assert (file.features[row] == features[theirs]).all()
    path = write_foreign(
        path, {"features": features, "coords": COLUMNS_FIRST}, {"features": {"encoder": "None"}}
    )
    assert import_features(path).encoder is None


def changed(values: NDArray[Any], row: int, value: Any) -> NDArray[Any]:
    values = values.copy()
    values[row] = value
    return values


BAD_COORDS: dict[str, tuple[NDArray[Any], str]] = {
    "negative": (changed(COLUMNS_FIRST, 4, (-1, 5)), r"1 of 9 coords .* first at \(-1, 5\)"),
    "duplicate": (changed(COLUMNS_FIRST, 4, COLUMNS_FIRST[0]), r"1 of 9 coords twice, first at \(0, 640\)"),
    "fraction": (changed(COLUMNS_FIRST.astype(float), 2, (0.5, 5)), r"no level-0 pixels"),
    "nan": (changed(COLUMNS_FIRST.astype(float), 2, (np.nan, 5)), r"first at \(nan, 5\)"),
    "too large": (changed(COLUMNS_FIRST, 2, (1 << 40, 5)), "no level-0 pixels"),
    "unsigned wrap": (changed(COLUMNS_FIRST.astype(np.uint64), 2, (2**64 - 1, 5)), "no level-0 pixels"),
    "three columns": (np.zeros((9, 3), np.int64), r"shape \(9, 3\)"),
    "one axis": (np.zeros(9, np.int64), r"shape \(9,\)"),
    "text": (np.full((9, 2), b"12"), "not numbers"),
}


@pytest.mark.parametrize("case", BAD_COORDS)
def test_bad_coordinates_are_named(tmp_path: Path, case: str) -> None:
    coords, message = BAD_COORDS[case]
    for make in (clam_file, trident_file):
        path = make(tmp_path / "one.h5", coords)
        with pytest.raises(UsageError, match=message) as caught:
            import_coordinates(path)
        assert caught.value.path == str(path)
        assert caught.value.action
    path = write_foreign(path, {"coords": coords, "features": some_features(9)})
    with pytest.raises(UsageError, match=message):
        import_features(path)


def test_whole_numbers_as_floats_are_coordinates(tmp_path: Path) -> None:
    path = clam_file(tmp_path / "one.h5", COLUMNS_FIRST.astype(np.float32))
    assert (import_coordinates(path).origins == RASTER).all()


def test_a_sound_file_of_no_tiles_is_a_slide_without_tissue(tmp_path: Path) -> None:
    empty = np.empty((0, 2), np.int64)
    path = trident_file(tmp_path / "one_patches.h5", empty)
    with pytest.raises(NoTissueError, match="no tiles"):
        import_coordinates(path)
    write_foreign(path, {"coords": empty, "features": np.empty((0, 7), np.float32)})
    with pytest.raises(NoTissueError, match="no tiles"):
        import_features(path)


BAD_ATTRIBUTES: list[tuple[dict[str, Any], str]] = [
    (CLAM_ATTRIBUTES | {"patch_size": 0}, "patch_size of 0"),
    (CLAM_ATTRIBUTES | {"patch_size": "None"}, "does not state a patch_size"),
    (CLAM_ATTRIBUTES | {"patch_size": "large"}, "patch_size of 'large'"),
    (CLAM_ATTRIBUTES | {"downsample": (1.0, -1.0)}, "downsample of -1.0"),
    (CLAM_ATTRIBUTES | {"downsample": (1.0, np.nan)}, "downsample of nan"),
    (CLAM_ATTRIBUTES | {"custom_downsample": 0}, "custom_downsample of 0"),
    (without(CLAM_ATTRIBUTES, "patch_level"), "neither a patch_level nor magnifications"),
    (without(CLAM_ATTRIBUTES, "patch_size"), "does not state a patch_size"),
    ({}, "does not state a patch_size"),
    (TRIDENT_ATTRIBUTES | {"level0_magnification": -40}, "level0_magnification of -40"),
    (TRIDENT_ATTRIBUTES | {"target_magnification": 0}, "target_magnification of 0"),
    (TRIDENT_ATTRIBUTES | {"target_magnification": 1e-320}, "footprint of inf"),
    (TRIDENT_ATTRIBUTES | {"overlap": 64}, "overlap of 64"),
    (TRIDENT_ATTRIBUTES | {"overlap": -1}, "overlap of -1"),
]


@pytest.mark.parametrize(("attributes", "message"), BAD_ATTRIBUTES)
def test_bad_attributes_are_named(tmp_path: Path, attributes: dict[str, Any], message: str) -> None:
    path = write_foreign(tmp_path / "one.h5", {"coords": COLUMNS_FIRST}, {"coords": attributes})
    with pytest.raises(UsageError, match=message):
        import_coordinates(path)


BAD_FEATURES: list[tuple[NDArray[Any], str]] = [
    (changed(some_features(9, np.float32), 3, np.nan), r"NaN or infinite features in 1 of 9 .* \(128, 640\)"),
    (changed(some_features(9, np.float32), 3, np.inf), "NaN or infinite"),
    (some_features(8, np.float32), "9 coords and 8 rows of features"),
    (np.ones((9, 7), np.int64), "type int64"),
    (np.ones((9, 0), np.float32), r"shape \(9, 0\)"),
    (np.ones((9, 7, 1), np.float32), r"shape \(9, 7, 1\)"),
]


@pytest.mark.parametrize(("features", "message"), BAD_FEATURES)
def test_bad_features_are_named(tmp_path: Path, features: NDArray[Any], message: str) -> None:
    path = tmp_path / "one.h5"
    with h5py.File(path, "w") as file:
        file["coords"], file["features"] = COLUMNS_FIRST, features
    with pytest.raises(UsageError, match=message):
        import_features(path)


def test_files_that_are_not_what_they_seem(tmp_path: Path) -> None:
    path = tmp_path / "one.h5"
    for read in (import_coordinates, import_features):
        with pytest.raises(UsageError, match="no such file"):
            read(tmp_path / "none.h5")
        for content in (b"", b"not HDF5 at all"):
            path.write_bytes(content)
            with pytest.raises(UsageError, match="cannot be read as HDF5"):
                read(path)
        with h5py.File(path, "w") as file:
            file["other"] = COLUMNS_FIRST
        with pytest.raises(UsageError, match="holds no dataset 'coords'"):
            read(path)
        with h5py.File(path, "w") as file:
            file.create_group("coords")
            file.create_group("features")
        with pytest.raises(UsageError, match="not a dataset"):
            read(path)


def test_a_file_cut_anywhere_is_refused_or_read_whole(tmp_path: Path) -> None:
    whole = write_foreign(
        tmp_path / "whole.h5",
        {"coords": COLUMNS_FIRST, "features": some_features(9)},
        {"coords": CLAM_ATTRIBUTES},
    )
    data = whole.read_bytes()
    path = tmp_path / "one.h5"
    for length in range(0, len(data) - 1, len(data) // 40):
        path.write_bytes(data[:length])
        for read in (import_coordinates, import_features):
            with pytest.raises(UsageError, match="cannot be read as HDF5, or is cut short"):
                read(path)


def test_numbers_come_from_the_file_itself(tmp_path: Path) -> None:
    """HDF5 can point at other files' bytes: a coordinate file has no business there."""
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.arange(18, dtype=np.int64).tobytes())
    clam_file(tmp_path / "other.h5")
    path = tmp_path / "one.h5"
    for tamper in ("external storage", "link", "virtual"):
        with h5py.File(path, "w") as file:
            if tamper == "external storage":
                file.create_dataset("coords", (9, 2), np.int64, external=[(str(secret), 0, 144)])
            elif tamper == "link":
                file["coords"] = h5py.ExternalLink("other.h5", "coords")
            else:
                virtual = h5py.VirtualLayout((9, 2), np.int64)
                virtual[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "coords", (9, 2))
                file.create_virtual_dataset("coords", virtual)
        with pytest.raises(UsageError, match="not a dataset of its own"):
            import_coordinates(path)


def test_a_claim_of_endless_rows_costs_no_memory(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file.create_dataset("coords", (1 << 40, 2), np.int64, chunks=(1024, 2))
    with pytest.raises(UsageError, match="10,000,000 at most"):
        import_coordinates(tmp_path / "one.h5")


# Into a store ----------------------------------------------------------------------------------------------


def adopt(slide: Slide, root: Path, file: CoordinateFile, **more: Any) -> TileStore:
    store = TileStore(Output(root), "one")
    with store.output.lock():
        adopt_coordinates(slide, store, file, **more)
    return store


def test_foreign_tiles_become_a_store(slide: Slide, tmp_path: Path) -> None:
    file = import_coordinates(trident_file(tmp_path / "one_patches.h5", overlap=16))
    store = adopt(slide, tmp_path / "out", file)
    assert (store.origins == RASTER).all()
    assert len(store) == 9
    assert store.spec == TileSpec(64, 1.0, 16)
    assert store.tiles.recipe["pixels"] is None
    record = store.record
    assert record["tile_level0"] == [128, 128]
    assert record["stride_level0"] == [96, 96]
    assert record["slide_size"] == [1536, 1024]
    assert record["warnings"] == []
    assert np.isnan(store.tissue).all()
    assert not [report for report in verify_items(store.output, full=True) if report.damage or report.stale]


def test_a_foreign_store_says_what_a_cut_one_says(slide: Slide, slide_path: Path, tmp_path: Path) -> None:
    """Readers look for these keys, whoever made the tiles."""
    from tiling.cut import cut_slide
    from tiling.recipe import CutRecipe

    cut = TileStore(Output(tmp_path / "cut"), "one")
    with cut.output.lock():
        cut_slide(slide, cut, CutRecipe(spec=TileSpec(64, 1.0), stain=None))
    (path,) = export_trident(cut, tmp_path / "job")
    store = adopt(slide, tmp_path / "out", import_coordinates(path))
    needed = {"step", "slide", "resolution", "spec", "tissue", "min_tissue", "stain", "tiles_per_shard"}
    assert needed <= store.tiles.recipe.keys()
    for key in ("slide", "resolution", "spec", "stain", "tiles_per_shard"):
        assert store.tiles.recipe[key] == cut.tiles.recipe[key]
    for key in (
        "slide_name",
        "slide_size",
        "bounds_origin",
        "backend",
        "tile_level0",
        "stride_level0",
        "tiles",
    ):
        assert store.record[key] == cut.record[key]
    assert (store.origins == cut.origins).all()


def test_foreign_tiles_are_read_from_the_slide(slide: Slide, tmp_path: Path) -> None:
    """So they can be encoded: by the path that cut tiles without pixels take."""
    file = import_coordinates(trident_file(tmp_path / "one_patches.h5"))
    store = adopt(slide, tmp_path / "out", file)
    tiles = tile_reader(store, slide)(slice(2, 9))
    assert tiles.shape == (7, 64, 64, 3)
    for tile, (x, y) in zip(tiles, RASTER[2:].tolist(), strict=True):
        expected = slide.read(x, y, size=(64, 64), mpp=1.0).astype(int)
        assert np.abs(tile - expected).mean() < 2  # half-scale decoding may differ a little


def test_the_share_of_tissue_comes_from_the_mask(slide: Slide, tmp_path: Path) -> None:
    from wsi.tissue import find_tissue

    mask = find_tissue(slide, HlsThresholds())
    file = import_coordinates(trident_file(tmp_path / "one_patches.h5"))
    store = adopt(slide, tmp_path / "out", file, mask=mask)
    assert (store.tissue == mask.fraction(RASTER, width=128, height=128)).all()
    assert store.tissue.max() > 0


def test_a_stated_spec_is_kept_if_it_is_near(slide: Slide, tmp_path: Path) -> None:
    file = import_coordinates(
        trident_file(tmp_path / "one_patches.h5", level0_magnification=21)  # 134 px of 0.5 µm: 1.047 µm
    )
    assert adopt(slide, tmp_path / "own", file).spec == TileSpec(64, round(134 * 0.5 / 64, 6))
    store = adopt(slide, tmp_path / "stated", file, spec=TileSpec(64, 1.0))
    assert store.spec == TileSpec(64, 1.0)
    assert store.record["tile_level0"] == [134, 134]
    assert "cover 134.0 x 134.0" in store.record["warnings"][0]
    with pytest.raises(UsageError, match=r"64 px of 0.5 µm are 64.0 x 64.0 level-0 px"):
        adopt(slide, tmp_path / "far", file, spec=TileSpec(64, 0.5))


def test_an_overlap_that_the_file_states_counts_whatever_else_is_stated(slide: Slide, tmp_path: Path) -> None:
    file = import_coordinates(trident_file(tmp_path / "one_patches.h5", overlap=16))
    assert adopt(slide, tmp_path / "a", file, spec=TileSpec(64, 1.0)).spec == TileSpec(64, 1.0, 16)
    store = adopt(slide, tmp_path / "b", file, spec=TileSpec(32, 2.0, overlap_px=4))
    assert store.spec == TileSpec(32, 2.0, 8)  # of tiles read at half the pixels
    assert store.record["stride_level0"] == [96, 96]
    file = import_coordinates(clam_file(tmp_path / "one.h5"))  # says nothing
    store = adopt(slide, tmp_path / "c", file, spec=TileSpec(32, 0.5, overlap_px=8))
    assert store.record["stride_level0"] == [24, 24]


def test_an_attribute_of_a_type_that_nobody_knows_is_passed_over(tmp_path: Path) -> None:
    path = clam_file(tmp_path / "one.h5")
    with h5py.File(path, "a") as file:
        space = h5py.h5s.create(h5py.h5s.SCALAR)
        h5py.h5a.create(file["coords"].id, b"odd", h5py.h5t.UNIX_D32LE, space)
    assert (import_coordinates(path).origins == RASTER).all()


def test_coordinates_of_another_slide_are_refused(slide: Slide, tmp_path: Path) -> None:
    path = tmp_path / "one_patches.h5"
    file = import_coordinates(trident_file(path, level0_width=1537))
    with pytest.raises(UsageError, match="of a slide of 1537 x 1024 px"):
        adopt(slide, tmp_path / "out", file)
    file = import_coordinates(clam_file(path, changed(COLUMNS_FIRST, 0, (5, 1024))))
    with pytest.raises(UsageError, match=r"1 of 9 tiles of CLAM lie off the slide .* at \(5, 1024\)"):
        adopt(slide, tmp_path / "out", file)
    file = import_coordinates(clam_file(path, changed(COLUMNS_FIRST, 0, (1535, 1023))))
    assert len(adopt(slide, tmp_path / "out", file)) == 9  # tiles may overhang


def test_tiles_that_cannot_be_ours_are_refused(slide: Slide, tmp_path: Path) -> None:
    file = import_coordinates(clam_file(tmp_path / "one.h5", patch_size=4096))
    with pytest.raises(UsageError, match="tile size is 4096 px"):
        adopt(slide, tmp_path / "out", file)
    with Slide(slide.path, mpp=30) as coarse, pytest.raises(UsageError, match="tile mpp is 30"):
        adopt(coarse, tmp_path / "out", import_coordinates(clam_file(tmp_path / "one.h5")))


def test_other_coordinates_do_not_slip_in(slide: Slide, tmp_path: Path) -> None:
    path = tmp_path / "one.h5"
    first = adopt(slide, tmp_path / "out", import_coordinates(clam_file(path))).tiles
    again = adopt(slide, tmp_path / "out", import_coordinates(clam_file(path, COLUMNS_FIRST[::-1]))).tiles
    assert first == again  # the same places in another order
    with pytest.raises(RecipeError):
        adopt(slide, tmp_path / "out", import_coordinates(clam_file(path, COLUMNS_FIRST[:8])))


def test_features_join_by_place(slide: Slide, tmp_path: Path) -> None:
    store = adopt(slide, tmp_path / "out", import_coordinates(trident_file(tmp_path / "one_patches.h5")))
    features = some_features(9, np.float32)
    file = import_features(
        write_foreign(tmp_path / "one.h5", {"features": features[::-1], "coords": COLUMNS_FIRST[::-1]})
    )
    with store.output.lock():
        commit = adopt_features(store, file, "uni")
        assert adopt_features(store, file, "uni") == commit
    for row, origin in enumerate(store.origins.tolist()):
        theirs = COLUMNS_FIRST.tolist().index(origin)
        assert (store.features("uni")[row] == features[theirs].astype(np.float16)).all()
    assert commit.recipe["encoder"] == {"name": "uni", "dim": 7, "weights": "imported"}
    assert commit.recipe["inputs"] == {"tiles": store.tiles.digest}
    assert not [report for report in verify_items(store.output, full=True) if report.damage or report.stale]


def test_features_of_other_tiles_are_refused(slide: Slide, tmp_path: Path) -> None:
    store = adopt(slide, tmp_path / "out", import_coordinates(trident_file(tmp_path / "one_patches.h5")))
    features = some_features(9, np.float32)
    moved = changed(COLUMNS_FIRST, 0, (1, 640))
    more = np.concatenate([COLUMNS_FIRST, [[999, 7]]])
    cases: list[tuple[NDArray[Any], NDArray[Any], str]] = [
        (features, moved, r"1 of 9 tiles have none and 1 rows have no tile, first at \(0, 640\)"),
        (features[:8], COLUMNS_FIRST[:8], r"1 of 9 tiles have none and 0 rows .* \(256, 0\)"),
        (some_features(10), more, r"0 of 9 tiles have none and 1 rows have no tile, first at \(999, 7\)"),
        (changed(features, 2, 1e6), COLUMNS_FIRST, r"too large for float16, .* at \(0, 0\)"),
    ]
    for values, coords, message in cases:
        file = import_features(write_foreign(tmp_path / "f.h5", {"features": values, "coords": coords}))
        with store.output.lock(), pytest.raises(UsageError, match=message):
            adopt_features(store, file, "uni")
        assert store.find("features/uni") is None
    for name in ("", "a/b", "__x", "a.json", ".hidden"):
        with pytest.raises(UsageError, match="cannot be an encoder's name"):
            adopt_features(store, file, name)


# Many slides -----------------------------------------------------------------------------------------------


def run_import(root: Path, files: list[Path], slides: dict[str, Path], **more: Any) -> Any:
    foreign = find_foreign(files)
    steps = import_steps(foreign, method=HlsThresholds(), **more)
    picked = [SlideEntry(name, path) for name, path in pick_slides(foreign, slides).items()]
    orders = Orders(lambda: steps, lambda file: Slide(file.path))
    return run_slides(Output(root), picked, orders, command=["import"])


def test_a_job_folder_of_trident_is_imported(slide_path: Path, tmp_path: Path) -> None:
    job = tmp_path / "10x_64px_0px_overlap"
    trident_file(job / "patches/one_patches.h5")
    write_foreign(
        job / "features_uni/one.h5",
        {"features": some_features(9), "coords": COLUMNS_FIRST},
        {"features": {"encoder": "uni"}, "coords": TRIDENT_ATTRIBUTES},
    )
    for files in ([job], [job / "features_uni"]):  # its feature files state the places as well
        root = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        outcomes = run_import(root, files, {"one": slide_path})
        assert [outcome.status.value for outcome in outcomes] == ["done"]
        store = TileStore(Output(root), "one")
        assert store.features("uni").shape == (9, 7)
        assert store.require("tissue")
        assert store.tissue.max() > 0
        assert [o.status.value for o in run_import(root, files, {"one": slide_path})] == ["already done"]


def test_clam_s_folders_are_imported(slide_path: Path, tmp_path: Path) -> None:
    clam_file(tmp_path / "patches/one.h5")
    features = {"features": some_features(9, np.float32), "coords": COLUMNS_FIRST.astype(np.int32)}
    write_foreign(tmp_path / "h5_files/one.h5", features, rows=32)
    folders = [tmp_path / "patches", tmp_path / "h5_files"]
    with pytest.raises(UsageError, match="name no one encoder"):
        run_import(tmp_path / "out", folders, {"one": slide_path})
    with pytest.raises(UsageError, match="does not say how large a tile is"):
        find_foreign(folders[1:])
    run_import(tmp_path / "out", folders, {"one": slide_path}, encoder="resnet50")
    assert TileStore(Output(tmp_path / "out"), "one").features("resnet50").shape == (9, 7)
    run_import(tmp_path / "places", folders[:1], {"one": slide_path})
    assert TileStore(Output(tmp_path / "places"), "one").find("features/resnet50") is None


def test_an_empty_file_is_a_slide_without_tissue(slide_path: Path, tmp_path: Path) -> None:
    path = trident_file(tmp_path / "one_patches.h5", np.empty((0, 2), np.int64))
    (outcome,) = run_import(tmp_path / "out", [path], {"one": slide_path})
    assert outcome.status.value == "no tissue"
    assert outcome.exit_code == 0


def test_files_and_slides_that_do_not_fit_together(slide_path: Path, tmp_path: Path) -> None:
    one, two = clam_file(tmp_path / "a/one.h5"), clam_file(tmp_path / "a/two.h5")
    with pytest.raises(UsageError, match="no slide for 1 of 2 files, first 'two'"):
        pick_slides(find_foreign([one, two]), {"one": slide_path})
    assert set(pick_slides(find_foreign([one]), {"one": slide_path, "three": slide_path})) == {"one"}
    trident_file(tmp_path / "a/one_patches.h5")
    with pytest.raises(UsageError, match="both of slide 'one'"):
        find_foreign([tmp_path / "a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no \.h5 file"):
        find_foreign([tmp_path / "empty"])
    bag = write_foreign(
        tmp_path / "b/one.h5", {"features": some_features(9), "coords": COLUMNS_FIRST}, {}, rows=9
    )
    with pytest.raises(UsageError, match="1 of 2 slides have features, 'two' has none"):
        import_steps(find_foreign([one, two, bag]), method=HlsThresholds(), encoder="uni")


def test_errors_are_ours_and_say_what_to_do(tmp_path: Path) -> None:
    path = clam_file(tmp_path / "one.h5", np.zeros((9, 2), np.int64))
    with pytest.raises(MicrotomeError) as caught:
        import_coordinates(path)
    assert caught.value.path == str(path)
    assert caught.value.action
