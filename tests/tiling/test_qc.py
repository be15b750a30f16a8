"""The QC page says what the store holds, to anybody, anywhere."""

from __future__ import annotations

import base64
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tiling.cohort import Status
from tiling.commit import canonical
from tiling.contact import SIDE_PX, TileGroup, contact_sheet, highest, spread
from tiling.cut import cut_slide
from tiling.grid import TileSpec
from tiling.manifest import SlideEntry
from tiling.output import Output
from tiling.qc import SlideQuality, caption, choose, draw_map, facts_of, review_slide, summarise, tile_steps
from tiling.quality import MEASURES, QualityFilter
from tiling.quality_page import COLOURS, qc_page, tile_map
from tiling.recipe import CutRecipe
from tiling.store import TileStore
from tiling.survey import survey_slide
from tiling.workers.run import run_slides
from tiling.workers.unit import Orders
from wsi.errors import UsageError
from wsi.slide import Slide
from wsi.synthetic import write_slide
from wsi.tissue import HlsThresholds, TissueMask

RECIPE = CutRecipe(spec=TileSpec(size_px=64, mpp=1.0), tiles_per_shard=16)
HOSTILE = """<img src=x onerror=alert(1)> & "q" 'p' </title><script>"""


def facts(count: int = 40, **changes: Any) -> SlideQuality:
    rng = np.random.default_rng(count)
    quality = rng.random((count, len(MEASURES)), np.float32) ** 4
    quality[:, 0] *= 5000
    plain = SlideQuality(
        slide_id="one",
        size_px=64,
        mpp=1.0,
        footprint=(128.0, 128.0),
        origins=(rng.integers(0, 60, (count, 2)) * 128).astype(np.int32),
        tissue=rng.random(count, np.float32),
        quality=quality,
        dropped=np.array([[0, 128], [256, 0], [384, 384]], np.int32),
        reasons=["pen", "damaged", "pen"],
        warnings=["a <b>warning</b>"],
    )
    return replace(plain, **changes)


def pixels(rows: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Tiles of 64 px, each of one colour that tells its row."""
    return np.stack([np.full((64, 64, 3), row, np.uint8) for row in rows])


# The page ------------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_needs_nothing_else(parsed: Any) -> None:
    jpeg = b"\xff\xd8 picture"
    text = qc_page(summarise(facts()), overview=jpeg, contact=jpeg + b"2")
    page = parsed(text)
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert [base64.b64decode((source or "").partition("base64,")[2]) for source in sources] == [
        jpeg,
        jpeg + b"2",
    ]
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "a", "base", "form"}
    assert not re.search(r"https?:|//|url\(|@import", re.sub(r"base64,[^\"]*", "", text))
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "@media print" in text


@pytest.mark.parametrize("hostile", [HOSTILE, "]]>--><!--", "&lt;b&gt;", "\u202eevil", "ß 切片"])
def test_text_from_outside_stays_text(hostile: str, parsed: Any) -> None:
    dangerous = facts(slide_id=hostile, warnings=[hostile], reasons=["pen", hostile, "pen"])
    page = parsed(qc_page(summarise(dangerous), overview=b"x", contact=None))
    plain = parsed(qc_page(summarise(facts(reasons=["pen", "new", "pen"])), overview=b"x", contact=None))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert page.within("h1") == [hostile]
    assert page.within("title") == [f"Quality of {hostile}", *plain.within("title")[1:]]
    assert hostile in page.within("p")
    assert f"tiles dropped: {hostile}" in page.within("th")


def test_the_page_s_numbers_are_the_summary_s(parsed: Any) -> None:
    summary = json.loads(canonical(summarise(facts())))
    page = parsed(qc_page(summary, overview=None, contact=None))
    cells = page.within("td")
    counts = [summary["tile"]["size_px"], summary["tile"]["mpp"], summary["tiles_kept"]]
    counts += summary["tiles_dropped"].values()
    figures = [value for row in summary["percentiles"].values() for value in row.values()]
    shown = [cell for cell in cells if re.fullmatch(r"[-+.e\d]+", cell)]
    assert [float(cell) for cell in shown] == [float(value) for value in [*counts, *figures]]
    assert "256, 0" in cells
    bars = [int(text) for text in page.within("title")[1:]]
    assert bars == [n for h in summary["histograms"].values() for n in h["counts"] if n]


def test_the_summary_is_what_numpy_says() -> None:
    given = facts(333)
    assert given.quality is not None
    summary = summarise(given)
    for name, values in (("tissue", given.tissue), *zip(MEASURES, given.quality.T, strict=True)):
        for percentile in (1, 5, 25, 50, 75, 95, 99):
            expected = np.percentile(values.astype(float), percentile)
            assert summary["percentiles"][name][f"p{percentile}"] == pytest.approx(expected, rel=6e-4)
        histogram = summary["histograms"][name]
        assert sum(histogram["counts"]) == 333
        assert values.max() <= histogram["to"]
    assert summary["tiles_kept"] == 333
    assert summary["tiles_dropped"] == {"damaged": 1, "pen": 2}
    assert summary["damaged"] == [[256, 0]]


def test_the_same_facts_give_the_same_bytes() -> None:
    one, other = (qc_page(summarise(facts()), overview=b"x", contact=b"y") for _ in range(2))
    assert one == other
    assert canonical(summarise(facts())) == canonical(summarise(facts()))


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_tiles_are_a_page_too(count: int, parsed: Any) -> None:
    few = facts(count, dropped=np.empty((0, 2), np.int32), reasons=[], warnings=[])
    page = parsed(qc_page(summarise(few), overview=None, contact=None))
    assert str(count) in page.within("td")


def test_tiles_that_were_not_measured_are_said_to_be(parsed: Any) -> None:
    summary = summarise(facts(quality=None))
    assert set(summary["percentiles"]) == {"tissue"}
    assert any("not measured" in note for note in summary["notes"])
    page = parsed(qc_page(summary, overview=None, contact=None))
    assert any("not measured" in text for text in page.within("p"))


def test_a_colour_that_much_of_the_slide_has_is_doubted() -> None:
    for share, doubted in ((0.1, False), (0.5, True)):
        quality = np.zeros((100, len(MEASURES)), np.float32)
        quality[: int(100 * share), MEASURES.index("pen_blue")] = 0.9
        notes = summarise(facts(100, quality=quality))["notes"]
        assert any("blue ink" in note for note in notes) == doubted
    dropped = np.zeros((60, 2), np.int32)
    assert any(
        "dropped for ink" in n for n in summarise(facts(dropped=dropped, reasons=["pen"] * 60))["notes"]
    )


@pytest.mark.parametrize(
    "wrong",
    [{"tissue": np.zeros(3, np.float32)}, {"reasons": []}, {"quality": np.zeros((40, 2), np.float32)}],
)
def test_facts_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"go with|shape"):
        facts(**wrong)


# The map -------------------------------------------------------------------------------------------------


def test_the_map_tints_tiles_and_nothing_else() -> None:
    thumbnail = np.full((50, 80, 3), 200, np.uint8)
    places = {"kept": np.array([[0, 0], [100, 0]], np.int32), "pen": np.array([[300, 200]], np.int32)}
    drawn = tile_map(thumbnail, places, footprint=(100.0, 100.0), scale=(10.0, 10.0))
    changed = (drawn != thumbnail).any(axis=2)
    expected = np.zeros((50, 80), np.bool_)
    expected[0:10, 0:20] = expected[20:30, 30:40] = True
    np.testing.assert_array_equal(changed, expected)
    assert (thumbnail == 200).all()
    for name, (row, column) in {"kept": (5, 5), "pen": (25, 35)}.items():
        towards = np.array(COLOURS[name]) - 200.0
        assert ((drawn[row, column].astype(float) - 200) * towards > 0).all()


def test_the_map_shows_the_outline_and_every_reason() -> None:
    mask = np.zeros((40, 40), np.bool_)
    mask[10:30, 10:30] = True
    tissue = TissueMask(mask=mask, scale_x=200.0, scale_y=200.0, mpp=8.0)
    thumbnail = np.full((400, 400, 3), 250, np.uint8)
    given = facts(0, dropped=np.array([[0, 0], [7000, 7000]], np.int32), reasons=["damaged", "whim"])
    drawn = draw_map(given, thumbnail, scale=(20.0, 20.0), mask=tissue)
    assert (drawn[99:101, 200] < 120).any()
    assert (drawn[200, 200] == 250).all()
    assert (drawn[3, 3] != drawn[352, 352]).any()
    assert (drawn[3, 3] != 250).any()
    assert (drawn[352, 352] != 250).any()


# The contact sheet ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 160, 256])
def test_the_sheet_shows_every_tile(size: int) -> None:
    rng = np.random.default_rng(size)
    tiles = rng.integers(0, 256, (11, size, size, 3), np.uint8)
    sheet = contact_sheet([TileGroup("many", tiles, [("a", "b")] * 11)])
    side = SIDE_PX if size > SIDE_PX else SIDE_PX // size * size
    for tile in tiles:
        picture = cv2.resize(
            tile, (side, side), interpolation=cv2.INTER_AREA if size > side else cv2.INTER_NEAREST
        )
        score = cv2.matchTemplate(sheet, np.asarray(picture, np.uint8), cv2.TM_SQDIFF)
        assert score.min() == pytest.approx(0, abs=side * side)  # in float32


def test_the_sheet_has_the_groups_in_order_and_leaves_empty_ones_out() -> None:
    groups = [
        TileGroup("first", np.full((3, 64, 64, 3), 10, np.uint8), [()] * 3),
        TileGroup("none", np.zeros((0, 64, 64, 3), np.uint8), []),
        TileGroup("second", np.full((1, 64, 64, 3), 100, np.uint8), [("place",)]),
    ]
    sheet = contact_sheet(groups)
    first, second = ((sheet == grey).all(axis=2).nonzero()[0] for grey in (10, 100))
    assert first.max() < second.min()
    np.testing.assert_array_equal(sheet, contact_sheet([groups[0], groups[2]]))
    with pytest.raises(ValueError, match="needs a tile"):
        contact_sheet(groups[1:2])


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="captions"):
        TileGroup("x", np.zeros((2, 8, 8, 3), np.uint8), [("a",)])
    with pytest.raises(ValueError, match="uint8"):
        TileGroup("x", np.zeros((2, 8, 8), np.uint8), [("a",)] * 2)


def test_the_spread_tiles_lie_everywhere() -> None:
    """Of a square of 32 x 32 tiles, each of 16 equal parts gives one; order of the rows does not matter."""
    grid = np.stack(np.meshgrid(np.arange(32), np.arange(32)), axis=-1).reshape(-1, 2).astype(np.int32) * 512
    chosen = grid[spread(grid, 16)]
    assert len({tuple(part) for part in (chosen // (8 * 512)).tolist()}) == 16
    mixed = np.random.default_rng(0).permutation(grid)
    assert {*map(tuple, mixed[spread(mixed, 16)].tolist())} == {*map(tuple, chosen.tolist())}
    assert spread(grid[:5], 16).tolist() == [0, 1, 2, 3, 4]
    assert len(set(spread(grid, 999).tolist())) == 999


def test_the_highest_come_first_and_zeros_not_at_all() -> None:
    assert highest(np.array([0, 3, 1, 3, 0], np.float32), 4).tolist() == [1, 3, 2]
    assert highest(np.array([2, 3, 1], np.float32), 1).tolist() == [1]


def test_the_worst_tiles_are_on_the_sheet() -> None:
    given = facts(200)
    assert given.quality is not None
    groups = {group.title: group for group in choose(given, pixels)}
    rows = {title: group.tiles[:, 0, 0, 0].tolist() for title, group in groups.items()}
    sharpness = given.quality[:, 0]
    assert sorted(rows["Least sharp"]) == sorted(np.argsort(sharpness)[:8].tolist())
    assert rows["Darkest"][0] == given.quality[:, MEASURES.index("dark")].argmax()
    assert rows["Most like ink"][0] == given.quality[:, 2:6].sum(axis=1).argmax()
    for title, group in groups.items():
        for row, lines in zip(rows[title], group.captions, strict=True):
            assert tuple(lines) == caption(given, row)
            assert lines[0] == f"{given.origins[row][0]}, {given.origins[row][1]}"
            assert f"sharp {sharpness[row]:.0f}" in lines[1]


# The item ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "a&b <i>.svs"
    write_slide(path, seed=7, lesion=True, size=(1536, 1024))
    return path


def reviewed(slide_path: Path, root: Path, recipe: CutRecipe = RECIPE) -> TileStore:
    store = TileStore(Output(root), slide_path.stem)
    orders = Orders(lambda: tile_steps(recipe), lambda file: Slide(file.path))
    (outcome,) = run_slides(store.output, [SlideEntry(store.slide_id, slide_path)], orders, command=["tile"])
    assert outcome.status is Status.DONE
    return store


def test_a_slide_is_reviewed_once_and_always_the_same(slide_path: Path, tmp_path: Path) -> None:
    stores = [reviewed(slide_path, tmp_path / name) for name in ("one", "two")]
    one, other = (store.require("qc") for store in stores)
    assert set(one.files) == {"qc.html", "qc.json", "contact.jpg"}
    assert one == other
    with stores[0].output.lock():
        assert review_slide(stores[0]) == one
    for path in stores[0].path("qc").iterdir():
        assert os.fsencode(tmp_path) not in path.read_bytes()


def test_the_files_say_what_the_store_holds(slide_path: Path, tmp_path: Path, parsed: Any) -> None:
    store = reviewed(slide_path, tmp_path, replace(RECIPE, quality=QualityFilter(min_sharpness=1500.0)))
    summary = json.loads((store.path("qc") / "qc.json").read_bytes())
    assert summary == json.loads(canonical(summarise(facts_of(store))))
    assert summary["tiles_kept"] == len(store)
    assert summary["tiles_dropped"] == store.record["dropped"]
    assert summary["tiles_dropped"]["sharpness"] > 0
    assert summary["percentiles"]["sharpness"]["p1"] >= 1499
    text = (store.path("qc") / "qc.html").read_text(encoding="utf-8")
    page = parsed(text)
    assert page.within("h1") == [slide_path.stem]
    contact = (store.path("qc") / "contact.jpg").read_bytes()
    assert base64.b64encode(contact).decode() in text
    decoded = cv2.imdecode(np.frombuffer(contact, np.uint8), cv2.IMREAD_COLOR)
    expected = contact_sheet(choose(facts_of(store), store.read_pixels))
    assert decoded is not None
    assert np.abs(decoded[..., ::-1].astype(int) - expected).mean() < 4


def test_without_stored_pixels_the_slide_is_read_or_the_sheet_left_out(
    slide_path: Path, tmp_path: Path
) -> None:
    judged = replace(RECIPE, quality=QualityFilter(min_sharpness=1.0))
    stored = reviewed(slide_path, tmp_path / "stored", judged)
    unstored = reviewed(slide_path, tmp_path / "unstored", replace(judged, pixels=None))
    assert not unstored.has_pixels
    assert unstored.require("qc").files == stored.require("qc").files

    store = TileStore(Output(tmp_path / "places"), slide_path.stem)
    with store.output.lock(), Slide(slide_path) as slide:
        survey_slide(slide, store, HlsThresholds())
        cut_slide(slide, store, replace(RECIPE, pixels=None))
        commit = review_slide(store)
    assert set(commit.files) == {"qc.html", "qc.json"}
    assert json.loads((store.path("qc") / "qc.json").read_bytes())["percentiles"]["sharpness"]["p50"] > 0


def test_a_slide_that_was_not_cut_cannot_be_reviewed(slide_path: Path, tmp_path: Path) -> None:
    store = TileStore(Output(tmp_path), slide_path.stem)
    with store.output.lock(), Slide(slide_path) as slide:
        survey_slide(slide, store, HlsThresholds())
        with pytest.raises(UsageError, match="no tiles"):
            review_slide(store)
