"""Laws of a drawn slide: which channels it has follows from what the model judges and what was stored."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tifffile

from heatmaps import draw
from heatmaps.draw import draw_heatmap
from heatmaps.overlay import draw_overlay
from tiling.commit import Commit
from tiling.cut import cut_slide
from tiling.grid import TileSpec
from tiling.output import Output
from tiling.recipe import CutRecipe
from tiling.store import TileStore, make_array
from tiling.survey import survey_slide
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
