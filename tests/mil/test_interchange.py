"""Exporting whole outputs: the tensor that CLAM trains on, and every slide or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from heatmaps.draw import draw_heatmap
from mil.checkpoint import describe
from mil.features import common_recipe, read_bag
from mil.heads import build_head
from mil.interchange import EXPORTERS, export_output, export_tensor
from mil.predict import predict_slide
from tiling.interchange import FeatureFile, adopt_coordinates, adopt_features, import_coordinates
from tiling.output import Output
from tiling.store import TileStore
from tiling.survey import survey_slide
from wsi.errors import UsageError
from wsi.slide import Slide
from wsi.synthetic import write_slide
from wsi.tissue import HlsThresholds

COORDS = np.array([[x, y] for y in (0, 256) for x in (0, 128, 256)], np.int64)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    """Two slides whose tiles and features came from elsewhere."""
    folder = tmp_path_factory.mktemp("foreign")
    output = Output(folder / "out")
    for seed, slide_id in enumerate(("one", "two")):
        write_slide(folder / f"{slide_id}.svs", seed=seed, lesion=False, size=(1024, 768))
        with h5py.File(folder / f"{slide_id}.h5", "w") as file:
            file["coords"] = COORDS
            for name, value in {"patch_size": 128, "patch_level": 0}.items():
                file["coords"].attrs[name] = value
        store = TileStore(output, slide_id)
        with output.lock(), Slide(folder / f"{slide_id}.svs") as slide:
            coordinates = import_coordinates(folder / f"{slide_id}.h5")
            adopt_coordinates(slide, store, coordinates)
            rows = FeatureFile(features(seed), coordinates.origins, None, slide_id)
            adopt_features(store, rows, "timm-vit")
    return output


def features(seed: int) -> NDArray[np.float16]:
    return np.random.default_rng(seed).normal(size=(6, 5)).astype(np.float16)


def test_the_tensor_is_the_features(output: Output, tmp_path: Path) -> None:
    store = TileStore(output, "two")
    path = export_tensor(store, tmp_path, encoder="timm-vit")
    assert path == tmp_path / "pt_files/two.pt"
    tensor = torch.load(path, weights_only=True)
    assert tensor.dtype == torch.float32
    assert (tensor.numpy() == features(1)).all()
    data = path.read_bytes()
    other = export_tensor(store, tmp_path / "again", encoder="timm-vit")
    assert other.read_bytes() == data
    path.write_bytes(b"somebody's")
    with pytest.raises(UsageError, match="another file is there"):
        export_tensor(store, tmp_path, encoder="timm-vit")
    assert path.read_bytes() == b"somebody's"
    export_tensor(store, tmp_path, encoder="timm-vit", overwrite=True)
    assert path.read_bytes() == data


LAYOUTS: dict[str, set[str]] = {
    "clam": {"patches/{}.h5", "h5_files/{}.h5", "pt_files/{}.pt"},
    "trident": {
        "20x_128px_0px_overlap/patches/{}_patches.h5",
        "20x_128px_0px_overlap/features_timm-vit/{}.h5",
    },
}


@pytest.mark.parametrize("form", sorted(EXPORTERS))
def test_every_slide_is_exported(output: Output, tmp_path: Path, form: str) -> None:
    paths = export_output(output, form, tmp_path / "to", encoder="timm:vit")  # by its name, not its folder's
    written = {p.relative_to(tmp_path / "to").as_posix() for p in (tmp_path / "to").rglob("*") if p.is_file()}
    assert written == {name.format(slide) for name in LAYOUTS[form] for slide in ("one", "two")}
    assert {path.relative_to(tmp_path / "to").as_posix() for path in paths} == written
    alone = export_output(output, form, tmp_path / "places")
    assert len(alone) == 2
    assert all("patches" in path.parts for path in alone)


def test_what_cannot_be_exported_leaves_nothing(output: Output, tmp_path: Path) -> None:
    cases: list[tuple[tuple[Any, ...], str | None, str]] = [
        ((output, "qupath"), None, "no format 'qupath'"),
        ((output, "clam"), "uni", "has no features/uni"),
        ((Output(tmp_path / "none"), "clam"), None, "holds no tiles"),
    ]
    for given, encoder, message in cases:
        with pytest.raises(UsageError, match=message):
            export_output(*given, tmp_path / "to", encoder=encoder)
    assert not (tmp_path / "to").exists()


def test_imported_features_are_scored_and_painted(output: Output) -> None:
    store = TileStore(output, "one")
    head = build_head("gated_abmil", dim=5, classes=2)
    recipe = common_recipe([store], "timm-vit")
    model = describe(head, name="foreign", classes=("no", "yes"), features=recipe)
    with output.lock(), Slide(output.root.parent / "one.svs") as slide:
        survey_slide(slide, store, HlsThresholds())
        predict_slide(store, model, head)
        draw_heatmap(store, "foreign")
    scores, attention = store.scores("foreign")
    assert scores.shape == (6, 2)
    assert attention.sum() == pytest.approx(1)
    assert (store.path("heatmaps/foreign") / "scores.ome.tif").is_file()


def test_imported_features_make_bags(output: Output) -> None:
    stores = [TileStore(output, slide_id) for slide_id in ("one", "two")]
    recipe = common_recipe(stores, "timm-vit")
    assert recipe.encoder == {"name": "timm-vit", "dim": 5, "weights": "imported"}
    assert recipe.from_json(recipe.as_json()) == recipe
    bag = read_bag(stores[1], "timm-vit", label=1)
    assert (bag.features == features(1)).all()
    assert (bag.origins == COORDS).all()
