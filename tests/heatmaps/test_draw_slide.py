"""Laws of a drawn slide: which channels it has follows from what the model judges and what was stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import zarr

from heatmaps import draw
from heatmaps.draw import draw_heatmap
from heatmaps.outlines import RegionRules
from heatmaps.overlay import draw_overlay
from heatmaps.qupath_files import QupathOptions
from heatmaps.settings import AS_USUAL, DrawSettings, Format, Ngff, Overlap, Scale
from tiling.commit import Commit
from tiling.store import TileStore
from wsi.annotations import Origin
from wsi.errors import RecipeError

CLASSES = ("normal", "tumour")
Scored = Callable[..., dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def store(cut: Callable[[int], TileStore]) -> TileStore:
    return cut(64)


@pytest.fixture(scope="module")
def scored(commit_scores: Callable[..., None]) -> Callable[..., dict[str, np.ndarray]]:
    """Commits made-up scores of a slide, and returns them."""

    def score(store: TileStore, name: str, *, uncertain: bool = True, **model: Any) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(len(name))
        tumour = rng.random(len(store)).astype(np.float32)
        arrays = {"scores": np.column_stack([1 - tumour, tumour]), "attention": tumour / tumour.sum()}
        if uncertain:
            arrays |= {"uncertainty": rng.random(len(store)), "disagreement": rng.random(len(store))}
        arrays = {key: values.astype(np.float32) for key, values in arrays.items()}
        commit_scores(store, name, arrays, classes=list(CLASSES), **model)
        return arrays

    return score


def drawn(store: TileStore, name: str) -> tuple[Commit, list[dict[str, float]]]:
    """The heatmap, and the measurements of its tiles in QuPath."""
    with store.output.lock():
        commit = draw_heatmap(store, name)
    tiles = json.loads((store.path(f"heatmaps/{name}") / "tiles.geojson").read_bytes())
    return commit, [tile["properties"]["measurements"] for tile in tiles["features"]]


@pytest.mark.parametrize("of_tiles", [False, True])
def test_uncertainty_is_a_channel_and_a_measurement_and_a_model_of_tiles_has_no_attention(
    store: TileStore, scored: Scored, of_tiles: bool, monkeypatch: pytest.MonkeyPatch
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


def test_scores_of_before_there_was_an_uncertainty_go_without(store: TileStore, scored: Scored) -> None:
    scored(store, "old", uncertain=False)
    commit, measured = drawn(store, "old")
    assert commit.record["channels"] == [*CLASSES, "attention rank"]
    assert not {"Uncertainty", "Disagreement"} & set(measured[0])


def redrawn(store: TileStore, name: str, settings: DrawSettings) -> Commit:
    over = TileStore(store.output, store.slide_id, overwrite=True)
    with store.output.lock():
        return draw_heatmap(over, name, settings=settings)


def test_formats_add_up_and_all_files_are_committed(store: TileStore, scored: Scored) -> None:
    scored(store, "formats")
    first, _ = drawn(store, "formats")
    folder = store.path("heatmaps/formats")
    for_qupath = {"tiles.geojson", "regions.geojson", "open-in-qupath.groovy"}
    always = for_qupath | {f"overlay-{name}.png" for name in CHANNELS}
    of_tiff = {"scores.ome.tif", *(f"heatmap-{name}.ome.tif" for name in CHANNELS)}
    of_png = {f"heatmap-{name}.png" for name in CHANNELS}
    assert set(first.files) == always | of_tiff
    with tifffile.TiffFile(folder / "scores.ome.tif") as tif:
        expected = tif.series[0].asarray()
    with store.output.lock():
        more = draw_heatmap(store, "formats", settings=DrawSettings((Format.PNG, Format.OME_ZARR)))
    of_zarr = set(more.files) - always - of_tiff - of_png
    assert set(more.files) == always | of_tiff | of_png | of_zarr
    assert {name: more.files[name] for name in first.files} == first.files, "the same bytes again"
    assert all(file.startswith("scores.ome.zarr/") for file in of_zarr)
    np.testing.assert_array_equal(zarr.open_array(folder / "scores.ome.zarr" / "0", mode="r")[:], expected)
    assert cv2.imread(str(folder / "heatmap-tumour.png")).shape[1] >= expected.shape[2]
    with store.output.lock():
        assert draw_heatmap(store, "formats") == more, "what is there already is not taken away"
        with pytest.raises(RecipeError, match=r"was drawn with --ngff 0\.5, not 0\.4\. Use"):
            draw_heatmap(store, "formats", settings=DrawSettings((Format.OME_ZARR,), Ngff.V04))
    alone = redrawn(store, "formats", DrawSettings((Format.OME_ZARR,), Ngff.V04))
    assert set(alone.files) & (of_tiff | of_png) == set()
    np.testing.assert_array_equal(zarr.open_array(folder / "scores.ome.zarr" / "0", mode="r")[:], expected)
    with store.output.lock():  # what is not asked for stays of its version
        kept = draw_heatmap(store, "formats", settings=DrawSettings((Format.PNG,))).recipe["settings"]
    assert (kept["formats"], kept["ngff"]) == (["ome-zarr", "png"], "0.4")


CHANNELS = (*CLASSES, "attention-rank", "uncertainty")


def test_other_settings_do_not_mix_and_each_is_named(store: TileStore, scored: Scored) -> None:
    scored(store, "mixed")
    first, _ = drawn(store, "mixed")
    assert first.recipe["settings"] == AS_USUAL.as_json()
    other = DrawSettings(overlap=Overlap.MAX, scale=Scale.RANK)
    rules = RegionRules(threshold=0.25, least_area_um2=123.5, least_hole_um2=123.5)
    with store.output.lock(), pytest.raises(RecipeError) as caught:
        draw_heatmap(store, "mixed", settings=other, qupath=QupathOptions(rules, Origin.SLIDE))
    assert str(caught.value.reason) == (
        "the heatmap of slide 'one' was drawn with --qupath-origin bounds, not slide; "
        "--region-area 10000.0, not 123.5; --region-area for holes 10000.0, not 123.5; "
        "--region-threshold 0.5, not 0.25; --overlap mean, not max; --scale value, not rank"
    )
    assert "--overwrite" in str(caught.value)
    assert store.require("heatmaps/mixed") == first
    assert redrawn(store, "mixed", other).recipe["settings"] == other.as_json()
    assert redrawn(store, "mixed", AS_USUAL).files == first.files, "equal settings give equal bytes"


def test_a_heatmap_of_an_earlier_version_is_called_one(store: TileStore, scored: Scored) -> None:
    scored(store, "early")
    with store.output.lock():
        recipe = {"step": "heatmap", "inputs": store.inputs("scores/early", "tissue")}
        draft = store.begin("heatmaps/early", recipe)
        assert draft is not None
        draft.publish({})
        with pytest.raises(RecipeError, match="drawn by an earlier version of Microtome") as caught:
            draw_heatmap(store, "early")
    assert "--overwrite" in str(caught.value)
    assert "scores.ome.tif" in redrawn(store, "early", AS_USUAL).files


def test_a_heatmap_of_scores_that_were_replaced_says_so(store: TileStore, scored: Scored) -> None:
    scored(store, "again")
    drawn(store, "again")
    over = TileStore(store.output, store.slide_id, overwrite=True)
    scored(over, "again", head="another")
    with (
        store.output.lock(),
        pytest.raises(RecipeError, match="drawn with other scores/again than are there"),
    ):
        draw_heatmap(store, "again")


def test_ranks_are_colours_and_never_stored_scores(
    store: TileStore, scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
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
