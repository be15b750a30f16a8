"""Laws of a drawn slide: which channels it has follows from what the model judges and what was stored."""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import zarr

from heatmaps import draw
from heatmaps.draw import draw_heatmap
from heatmaps.overlay import draw_overlay
from heatmaps.settings import AS_USUAL, DrawSettings, Format, Ngff, Overlap, Scale
from tiling.commit import Commit
from tiling.cut import cut_slide
from tiling.grid import TileSpec
from tiling.output import Output
from tiling.recipe import CutRecipe
from tiling.store import TileStore, make_array
from tiling.survey import survey_slide
from wsi.errors import RecipeError
from wsi.slide import Slide
from wsi.synthetic import write_slide
from wsi.tissue import HlsThresholds

CLASSES = ("normal", "tumour")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TileStore:
    folder = tmp_path_factory.mktemp("drawn")
    write_slide(folder / "one.svs", seed=7, lesion=True, size=(768, 512))
    store = TileStore(Output(folder / "out"), "one")
    recipe = CutRecipe(TileSpec(64, 1.0), stain=None, pixels=None)
    with store.output.lock(), Slide(folder / "one.svs") as slide:
        survey_slide(slide, store, HlsThresholds())
        cut_slide(slide, store, recipe)
    return store


def scored(
    store: TileStore, name: str, *, with_uncertainty: bool = True, **model: Any
) -> dict[str, np.ndarray]:
    """Commit scores as `mil.predict` does; heatmaps know nothing of how they came about."""
    rng = np.random.default_rng(len(name))
    tumour = rng.random(len(store)).astype(np.float32)
    arrays = {"scores": np.column_stack([1 - tumour, tumour]), "attention": tumour / tumour.sum()}
    if with_uncertainty:
        arrays |= {"uncertainty": rng.random(len(store)), "disagreement": rng.random(len(store))}
    arrays = {key: values.astype(np.float32) for key, values in arrays.items()}
    recipe = {
        "step": "scores",
        "inputs": store.inputs("tiles"),
        "model": {"classes": list(CLASSES), "weights_sha256": "0"} | model,
    }
    with store.output.lock():
        draft = store.begin(f"scores/{name}", recipe)
        assert draft is not None
        for key, values in arrays.items():
            make_array(
                draft, key, shape=values.shape, rows_per_file=len(values), dtype=np.float32, fill=np.nan
            ).write_all(values)
        draft.publish({})
    return arrays


def drawn(store: TileStore, name: str) -> tuple[Commit, list[dict[str, float]]]:
    """The heatmap, and the measurements of its tiles in QuPath."""
    with store.output.lock():
        commit = draw_heatmap(store, name)
    tiles = json.loads((store.path(f"heatmaps/{name}") / "tiles.geojson").read_bytes())
    return commit, [tile["properties"]["measurements"] for tile in tiles["features"]]


@pytest.mark.parametrize("of_tiles", [False, True])
def test_uncertainty_is_a_channel_and_a_measurement_and_a_model_of_tiles_has_no_attention(
    store: TileStore, of_tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []
    monkeypatch.setattr(
        draw, "draw_overlay", lambda *a, **k: titles.append(k["title"]) or draw_overlay(*a, **k)
    )
    name, model = ("tiles", {"judges": "tiles"}) if of_tiles else ("slides", {})
    arrays = scored(store, name, **model)
    commit, measured = drawn(store, name)
    attention = [] if of_tiles else ["attention rank"]
    assert commit.record["channels"] == [*CLASSES, *attention, "uncertainty"]
    word = "probability of each tile" if of_tiles else "score of each tile alone"
    assert titles[:2] == [f"{one}: {word}" for one in CLASSES]
    assert titles[-1] == "uncertainty: 0 sure, 1 no idea"
    assert {f"overlay-{one}.png" for one in (*CLASSES, "uncertainty")} <= set(commit.files)
    assert ("overlay-attention-rank.png" in commit.files) is not of_tiles
    for key in ("uncertainty", "disagreement"):
        np.testing.assert_allclose([row[key.capitalize()] for row in measured], arrays[key])
    assert ("Attention" in measured[0]) is not of_tiles
    with tifffile.TiffFile(store.path(f"heatmaps/{name}") / "scores.ome.tif") as file:
        planes = file.series[0].asarray()
    assert len(planes) == len(commit.record["channels"])
    painted = planes[-1][~np.isnan(planes[-1])]
    assert arrays["uncertainty"].min() <= painted.min()
    assert painted.max() <= arrays["uncertainty"].max()


def test_scores_of_before_there_was_an_uncertainty_are_drawn_without(store: TileStore) -> None:
    scored(store, "old", with_uncertainty=False)
    commit, measured = drawn(store, "old")
    assert commit.record["channels"] == [*CLASSES, "attention rank"]
    assert not {"Uncertainty", "Disagreement"} & set(measured[0])


def redrawn(store: TileStore, name: str, settings: DrawSettings) -> Commit:
    over = TileStore(store.output, store.slide_id, overwrite=True)
    with store.output.lock():
        return draw_heatmap(over, name, settings=settings)


def test_each_format_gives_its_files_and_all_of_them_are_committed(store: TileStore) -> None:
    scored(store, "formats")
    drawn(store, "formats")
    folder = store.path("heatmaps/formats")
    for_qupath = {"tiles.geojson", "regions.geojson", "open-in-qupath.groovy"}
    always = for_qupath | {f"overlay-{name}.png" for name in CHANNELS}
    of_tiff = {"scores.ome.tif", *(f"heatmap-{name}.ome.tif" for name in CHANNELS)}
    assert set(store.require("heatmaps/formats").files) == always | of_tiff
    with tifffile.TiffFile(folder / "scores.ome.tif") as tif:
        expected = tif.series[0].asarray()
    commit = redrawn(store, "formats", DrawSettings((Format.PNG,)))
    assert set(commit.files) == always | {f"heatmap-{name}.png" for name in CHANNELS}
    picture = cv2.imread(str(folder / "heatmap-tumour.png"))
    assert picture.shape[1] >= expected.shape[2]
    for version in Ngff:
        commit = redrawn(store, "formats", DrawSettings((Format.OME_ZARR,), version))
        zarr_files = set(commit.files) - always
        assert zarr_files
        assert all(file.startswith("scores.ome.zarr/") for file in zarr_files)
        array = zarr.open_array(folder / "scores.ome.zarr" / "0", mode="r")
        np.testing.assert_array_equal(array[:], expected)
    assert store.find("heatmaps/formats") is not None, "no file beside those that were committed"


CHANNELS = (*CLASSES, "attention-rank", "uncertainty")


def test_other_settings_do_not_mix_unless_they_are_to_replace(store: TileStore) -> None:
    scored(store, "mixed")
    first, _ = drawn(store, "mixed")
    assert first.recipe["settings"] == AS_USUAL.as_json()
    others = (
        DrawSettings((Format.OME_TIFF, Format.PNG)),
        DrawSettings(overlap=Overlap.MAX),
        DrawSettings(scale=Scale.RANK),
    )
    for settings in others:
        with store.output.lock(), pytest.raises(RecipeError, match="settings"):
            draw_heatmap(store, "mixed", settings=settings)
        assert redrawn(store, "mixed", settings).recipe["settings"] == settings.as_json()
    again = redrawn(store, "mixed", AS_USUAL)
    assert again.files == first.files, "equal settings give equal bytes"


def test_ranks_are_colours_and_never_stored_scores(store: TileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = []
    monkeypatch.setattr(
        draw, "draw_overlay", lambda *a, **k: titles.append(k["title"]) or draw_overlay(*a, **k)
    )
    scored(store, "ranked")
    by_value, _ = drawn(store, "ranked")
    by_rank = redrawn(store, "ranked", DrawSettings(scale=Scale.RANK))
    same = {name for name, entry in by_rank.files.items() if by_value.files[name] == entry}
    assert {"scores.ome.tif", "tiles.geojson"} <= same
    assert not {"heatmap-tumour.ome.tif", "overlay-tumour.png", "overlay-uncertainty.png"} & same
    assert titles[len(CHANNELS) :][:2] == [f"{name}: rank within this slide" for name in CLASSES]
    with tifffile.TiffFile(store.path("heatmaps/ranked") / "heatmap-tumour.ome.tif") as tif:
        assert "tumour, rank within this slide, 0 to 1, viridis" in tif.ome_metadata
