"""Laws of what QuPath is given of a heatmap: all that is known of a tile, in one frame, under one name."""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heatmaps.draw import draw_heatmap
from heatmaps.numbers import TileNumbers
from heatmaps.outlines import RegionRules
from heatmaps.qupath_arguments import add_regions, qupath_options
from heatmaps.qupath_files import QupathOptions, find_regions, write_for_qupath
from tiling.quality import MEASURES
from tiling.store import TileStore
from wsi.annotations import Origin, read_annotations
from wsi.errors import RecipeError, UsageError
from wsi.found import is_as_found

CLASSES = ("normal", "Tumor", 'it\'s "all": ${x}')
RULES = RegionRules(least_area_um2=0, least_hole_um2=0)


@pytest.fixture(scope="module")
def made(cut: Callable[[int], TileStore], commit_scores: Callable[..., None]) -> TileStore:
    """A slide that is cut and scored: tumour on its left."""
    store, rng = cut(32), np.random.default_rng(0)
    left = store.origins[:, 0] < np.median(store.origins[:, 0])
    tumour = np.where(left, 0.8, 0.1) + rng.uniform(0, 0.1, len(store))
    scores = np.column_stack([1 - tumour - 0.05, tumour, np.full(len(store), 0.05)])
    arrays = {"scores": scores, "attention": tumour / tumour.sum()}
    arrays |= {"uncertainty": rng.random(len(store)), "disagreement": rng.random(len(store))}
    commit_scores(store, "m", arrays, classes=list(CLASSES))
    return store


@dataclass(frozen=True)
class Painted:
    """A heatmap of one pixel a tile."""

    store: TileStore
    scale: float = 64.0
    scale_y: float = 64.0
    mpp: float = 32.0

    def channel(self, name: str) -> np.ndarray:
        plane = np.full((8, 12), np.nan, np.float32)
        column, row = (self.store.origins // 64).T
        plane[row, column] = self.store.scores("m")[0][:, CLASSES.index(name)]
        return plane


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def drawn(store: TileStore, folder: Path, options: QupathOptions) -> Path:
    scores, attention = store.scores("m")
    uncertainty, disagreement = store.uncertainty("m") or ()
    numbers = TileNumbers(CLASSES, scores, attention, uncertainty, disagreement)
    folder.mkdir(exist_ok=True)
    regions = [
        one for name in CLASSES for one in find_regions(Painted(store), name, store, rules=options.regions)
    ]
    write_for_qupath(
        folder,
        store,
        regions,
        classes=CLASSES,
        scores=scores,
        measurements=numbers.measurements(),
        options=options,
    )
    return folder


def features(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    found = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)["features"]
    assert isinstance(found, list)
    return found


def test_tiles_bring_all_that_is_known_of_them(made: TileStore, folder: Path) -> None:
    tiles = features(drawn(made, folder, QupathOptions(RULES)) / "tiles.geojson")
    scores, attention = made.scores("m")
    uncertainty, disagreement = made.uncertainty("m") or ()
    quality = made.quality
    assert quality is not None
    wanted = {f"Tile score: {name}": scores[:, i] for i, name in enumerate(CLASSES)}
    wanted |= {"Attention": attention, "Uncertainty": uncertainty, "Disagreement": disagreement}
    wanted |= {"Tissue share": made.tissue}
    wanted |= {f"Quality: {name}": quality[:, i] for i, name in enumerate(MEASURES)}
    assert {*tiles[0]["properties"]["measurements"]} == {*wanted, "Attention rank"}
    for name, values in wanted.items():
        written = [tile["properties"]["measurements"][name] for tile in tiles]
        np.testing.assert_array_equal(np.array(written, np.float32), values)


def test_regions_lie_where_the_tiles_of_their_class_are_in_the_same_colours(
    made: TileStore, folder: Path
) -> None:
    drawn(made, folder, QupathOptions(RULES))
    tiles, regions = features(folder / "tiles.geojson"), features(folder / "regions.geojson")
    colours = {tuple(one["properties"]["classification"].items()).__repr__() for one in (*tiles, *regions)}
    assert len(colours) == 2  # of no tile is the third class the likeliest
    found = read_annotations(folder / "regions.geojson")
    assert {one.name for one in found} == {"normal", "Tumor"}
    assert all(is_as_found(one) for one in found)
    middles = {
        name: np.mean([one.polygons[0].extent[::2] for one in found if one.name == name])
        for name in ("normal", "Tumor")
    }
    assert middles["Tumor"] < np.median(made.origins[:, 0]) < middles["normal"]


def test_a_higher_threshold_gives_less(made: TileStore, folder: Path) -> None:
    def areas(threshold: float) -> float:
        drawn(made, folder, QupathOptions(RegionRules(threshold, least_area_um2=0, least_hole_um2=0)))
        measured = [one["properties"]["measurements"] for one in features(folder / "regions.geojson")]
        assert {one["Above threshold"] for one in measured} <= {threshold}
        return sum(one["Region area µm^2"] for one in measured)

    every = [areas(threshold) for threshold in (0.5, 0.85, 0.95)]
    assert every == sorted(every, reverse=True)
    assert every[0] > every[1] > every[2] == 0  # no region at all is a file too


def test_many_tiles_are_packed_and_the_script_knows(
    made: TileStore, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    plain = drawn(made, folder / "plain", QupathOptions(RULES))
    assert "String tilesFile = 'tiles.geojson'" in (plain / "open-in-qupath.groovy").read_text()
    before = features(plain / "tiles.geojson")
    monkeypatch.setattr("heatmaps.qupath.PACKED_FROM", len(made))
    packed = drawn(made, folder / "packed", QupathOptions(RULES))
    assert not (packed / "tiles.geojson").exists()
    assert features(packed / "tiles.geojson.gz") == before
    assert "String tilesFile = 'tiles.geojson.gz'" in (packed / "open-in-qupath.groovy").read_text()


def test_the_script_shows_the_last_class_and_names_every_class(made: TileStore, folder: Path) -> None:
    text = (drawn(made, folder, QupathOptions(RULES)) / "open-in-qupath.groovy").read_text()
    assert "    'Tile score: it\\'s \"all\": ${x}',  // 2" in text
    assert "int shown = 2" in text
    assert "    ('it\\'s \"all\": ${x}'): [0, 158, 115]," in text
    assert "regionsFile = 'regions.geojson'" in text


@pytest.mark.parametrize("origin", list(Origin))
def test_all_files_count_from_the_same_corner_and_come_back_where_they_were(
    made: TileStore, folder: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slide has no bounds, so it is given some."""
    there = drawn(made, folder / "plain", QupathOptions(RULES))
    plain = {name: read_annotations(there / name) for name in ("tiles.geojson", "regions.geojson")}
    record = dict(made.record) | {"bounds_origin": [120, 33]}
    monkeypatch.setattr(TileStore, "record", record)
    drawn(made, folder, QupathOptions(RULES, origin))
    shift = (120, 33) if origin is Origin.BOUNDS else (0, 0)
    for name, before in plain.items():
        content = json.loads((folder / name).read_bytes())
        assert content["bounds_origin"] == list(shift)
        assert content["slide"] == "one"
        raw = np.array([np.min(one["geometry"]["coordinates"][0], axis=0) for one in content["features"]])
        was = np.array([one.polygons[0].shell.min(axis=0) for one in before])
        np.testing.assert_allclose(raw + shift, was, atol=0.005)
        back = read_annotations(folder / name)
        assert [one.identity for one in back] == [one.identity for one in before]
    text = (folder / "open-in-qupath.groovy").read_text()
    assert re.findall(r"if \((true|false) && !?whole\)", text) == (
        ["true", "false"] if origin is Origin.BOUNDS else ["false", "true"]
    )


def test_other_options_are_another_heatmap(made: TileStore) -> None:
    with made.output.lock():
        files = draw_heatmap(made, "m", qupath=QupathOptions(RULES)).files
        assert {"tiles.geojson", "regions.geojson", "open-in-qupath.groovy"} <= set(files)
        with pytest.raises(RecipeError, match="drawn with --qupath-origin bounds, not slide"):
            draw_heatmap(made, "m", qupath=QupathOptions(RULES, Origin.SLIDE))


def test_the_same_heatmap_has_the_same_bytes(made: TileStore, folder: Path) -> None:
    one, other = (drawn(made, folder / name, QupathOptions(RULES)) for name in ("one", "other"))
    for name in ("tiles.geojson", "regions.geojson", "open-in-qupath.groovy"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def options_of(*words: str) -> QupathOptions:
    parser = argparse.ArgumentParser()
    add_regions(parser)
    return qupath_options(parser.parse_args(words))


def test_options_are_the_library_s_own_where_none_are_given() -> None:
    assert options_of() == QupathOptions()
    rules = ["--region-threshold", "0.7", "--region-area", "400", "--region-simplify", "3"]
    assert options_of(*rules, "--qupath-origin", "slide") == QupathOptions(
        RegionRules(0.7, 3.0, 400.0, 400.0), Origin.SLIDE
    )
    with pytest.raises(UsageError, match="threshold from 0 to 1"):
        options_of("--region-threshold", "70")
