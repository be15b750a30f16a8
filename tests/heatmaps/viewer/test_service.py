"""Laws of a viewer that runs while other things happen: runs go on, disks are slow, files are gone."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import heatmaps.viewer.server
from heatmaps.viewer.catalogue import Catalogue, open_slides
from heatmaps.viewer.service import Service
from heatmaps.viewer.shelf import Shelf, SlideFile
from tiling.cut import cut_slide
from tiling.grid import TileSpec
from tiling.recipe import CutRecipe
from tiling.store import TileStore
from wsi.errors import SlideError, UsageError
from wsi.slide import Slide
from wsi.synthetic import write_slide

HOSTILE = "<img src=x onerror=document.title='owned'>&\"'"
TRIANGLE = [[400.0, 300.0], [700.0, 300.0], [700.0, 600.0]]


def number(catalogue: Catalogue, name: str) -> int:
    return [entry.slide_id for entry in catalogue.refresh()].index(name)


# What a model says ---------------------------------------------------------------------------------------


def test_a_model_without_a_gate_asks_for_review_as_the_report_does(copied: Catalogue, scoring: Any) -> None:
    store = TileStore(copied.output, "plain")
    scoring(store, "bare", record={"probabilities": {"normal": 0.9, "tumour": 0.1}, "calibrated": False})
    scoring(store, "tiles", record={"shares": {"normal": 0.9, "tumour": 0.1}}, judges="tiles")
    said = {one.model: one for one in copied.entry(number(copied, "plain")).opinions}
    assert (said["bare"].decision, said["bare"].confidence) == ("review required", None)
    assert said["bare"].reasons == ("the model is not calibrated",)
    assert said["tiles"].decision is None  # it has no verdict on the slide
    assert said["model"].reasons == ("the set holds two classes",)


def test_the_server_says_which_class_a_tile_is_shown_as(catalogue: Catalogue) -> None:
    service, store = Service(catalogue), TileStore(catalogue.output, "plain")
    scores = store.scores("model")[0]
    for row in (0, len(store) - 1):
        model, quality = service.tile_facts(number(catalogue, "plain"), row)["layers"]
        assert model["shown"] == ("normal", "tumour")[int(scores[row].argmax())]
        assert quality["shown"] is None


# Runs that go on -----------------------------------------------------------------------------------------


def test_new_results_are_seen_and_no_mark_falls_on_another_tile(copied: Catalogue, scoring: Any) -> None:
    service, slide = Service(copied), number(copied, "plain")
    before = service.facts(slide)
    quality = len(before["layers"]) - 1
    old = (
        service.crop(slide, 3),
        service.raster(slide, quality, 0, ranked=False),
        service.tile_facts(slide, 3),
    )
    assert service.crop(slide, 3) == old[0]
    store = TileStore(copied.output, "plain", overwrite=True)
    with store.output.lock(), Slide(copied.file(slide)) as opened:
        cut_slide(opened, store, CutRecipe(TileSpec(32, 1.0), stain=None, pixels=None))
    new = (
        service.crop(slide, 3),
        service.raster(slide, quality, 0, ranked=False),
        service.tile_facts(slide, 3),
    )
    assert all(one != other for one, other in zip(old, new, strict=True))
    assert new[2]["box"][2] == 64
    mark = {"do": "region", "points": TRIANGLE, "class": "x", "version": before["version"]}
    with pytest.raises(UsageError, match="made anew"):
        service.change_marks(slide, mark)
    assert not copied.marks.exists()
    after = service.facts(slide)["version"]
    assert service.change_marks(slide, mark | {"version": after})["marks"]
    shutil.rmtree(store.path("scores/model"))
    scoring(store, "model")
    assert service.facts(slide)["version"] != after


def test_a_slide_that_was_replaced_is_opened_anew(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.svs"
    shutil.copy(results.parent / "plain.svs", path)
    service = Service(open_slides({"s": path}, marks=None, mpp=None, trust_objective=False, annotations=None))
    level = service.facts(0)["picture"]["finest"]
    old = service.tile(0, level, 0, 0)
    write_slide(path, seed=1, lesion=False, size=(1280, 896))
    service.facts(0)
    assert service.tile(0, level, 0, 0) != old
    service.close()


# Slow disks ----------------------------------------------------------------------------------------------


def test_a_slide_that_opens_slowly_keeps_nobody_waiting(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, begun, go = Service(catalogue), threading.Event(), threading.Event()
    open_file = SlideFile.open

    def slow(file: SlideFile) -> Slide:
        if file.path.name == "plain.svs":
            begun.set()
            assert go.wait(60)
        return open_file(file)

    monkeypatch.setattr(SlideFile, "open", slow)
    plain, other = number(catalogue, "plain"), number(catalogue, HOSTILE)
    told: list[Any] = []
    waiting = [threading.Thread(target=lambda: told.append(service.facts(plain))) for _ in range(2)]
    for thread in waiting:
        thread.start()
    try:
        assert begun.wait(60)
        answered = threading.Thread(
            target=lambda: service.tile(other, service.facts(other)["picture"]["finest"], 0, 0)
        )
        answered.start()
        answered.join(30)
        assert not answered.is_alive()
        assert told == []
    finally:
        go.set()
        for thread in waiting:
            thread.join(60)
    assert [one["id"] for one in told] == ["plain", "plain"]
    service.close()
    assert len(service.shelf) == 0


def test_a_slide_that_cannot_be_opened_is_not_kept(tmp_path: Path, results: Path) -> None:
    shelf, broken = Shelf(), SlideFile.of(tmp_path / "gone.svs")
    for _ in range(2):
        with pytest.raises(SlideError), shelf.borrow(broken):
            pass
    assert len(shelf) == 0
    with shelf.borrow(SlideFile.of(results.parent / "plain.svs")):
        shelf.close()
        assert len(shelf) == 1
    shelf.close()
    assert len(shelf) == 0


def test_a_connection_too_many_is_turned_away(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(heatmaps.viewer.server, "MOST_CONNECTIONS", 3)
    server, ask = request.getfixturevalue("server"), request.getfixturevalue("ask")
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(3)]
    refused = ask("/api/slides")
    assert refused.status == 503
    assert "connections" in refused.json["error"]
    assert heatmaps.viewer.server.HEADERS.items() <= refused.headers.items()
    for one in idle:
        one.close()
    until = time.monotonic() + 30
    while ask("/api/slides").status != 200:  # the places are free again
        assert time.monotonic() < until
        time.sleep(0.05)


# Where marks lie -----------------------------------------------------------------------------------------


def without_tiles(catalogue: Catalogue) -> int:
    store = TileStore(catalogue.output, "plain")
    for item in ("tiles", "scores"):
        shutil.rmtree(store.path(item))
    return number(catalogue, "plain")


def test_without_a_place_to_count_from_nothing_is_marked_or_drawn_wrong(
    copied: Catalogue, results: Path
) -> None:
    copied.files = {"plain": results.parent / "gone.svs"}
    slide, service = without_tiles(copied), Service(copied)
    told = service.facts(slide)
    assert told["entry"]["status"] == "tissue only"
    assert told["canMark"] is False
    assert "without marks" in told["notice"]
    with pytest.raises(UsageError, match="not known without its file"):
        service.change_marks(slide, {"do": "region", "points": TRIANGLE, "class": "tumour"})
    assert not copied.marks.exists()
    ring = [*TRIANGLE, TRIANGLE[0]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    copied.marks.mkdir()
    top = {"type": "FeatureCollection", "features": [feature]}
    service.feedback.path("plain").write_text(json.dumps(top))
    with pytest.raises(UsageError, match="not known without its file"):
        service.marks(slide)
    service.feedback.path("plain").write_text(json.dumps(top | {"bounds_origin": [100, 50]}))
    (mark,) = service.marks(slide)["marks"]
    assert mark["rings"][0][0] == [500, 350]


@pytest.mark.parametrize("stated", [{}, {"openslide.bounds-width": "1000", "openslide.bounds-height": "800"}])
def test_bounds_begin_where_the_records_say_with_or_without_their_size(
    copied: Catalogue, monkeypatch: pytest.MonkeyPatch, stated: dict[str, str]
) -> None:
    slide, read = without_tiles(copied), Slide.properties.fget
    more = {"openslide.bounds-x": "100", "openslide.bounds-y": "50"} | stated
    monkeypatch.setattr(Slide, "properties", property(lambda self: {**read(self), **more}))
    service = Service(copied)
    assert service.facts(slide)["bounds"] == ((100, 50, 1000, 800) if stated else (100, 50, 1180, 846))
    service.change_marks(slide, {"do": "region", "points": TRIANGLE, "class": "tumour"})
    top = json.loads(service.feedback.path("plain").read_bytes())
    assert top["bounds_origin"] == [100, 50]
    assert top["features"][0]["geometry"]["coordinates"][0][0] == [300, 250]
    service.close()


def test_the_logs_are_read_once_however_often_the_page_is_loaded(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue.refresh()
    monkeypatch.setattr("heatmaps.run_logs.read_log", lambda path: pytest.fail(f"{path} was read again"))
    statuses = {entry.slide_id: entry.status for entry in catalogue.refresh()}
    assert statuses == {"plain": "scored", HOSTILE: "scored", "broken": "failed"}
    assert catalogue.file(number(catalogue, "plain")).name == "plain.svs"
