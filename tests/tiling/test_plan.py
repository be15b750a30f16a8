"""Laws of the plan: what it foresees is what `tile` then does."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import cli
from tiling.codecs import Jpeg, Raw, Zstd
from tiling.cut import cut_slide
from tiling.doctor.plan import PAGE_TOLERANCE, TOLERANCE, CohortPlan, SlidePlan, plan_cohort, sample
from tiling.doctor.speed import CutSpeed, EncodeSpeed, cut_speed
from tiling.grid import TileSpec
from tiling.manifest import SlideEntry, find_entries
from tiling.output import Output
from tiling.recipe import CutRecipe
from tiling.store import TileStore
from wsi.slide import Slide
from wsi.synthetic import write_slide, write_svs

CUT = CutSpeed("x", 100, 1.0, tiles_per_second=100.0, setup_seconds=0.5, workers=2)
NEAR = partial(pytest.approx, rel=TOLERANCE, abs=PAGE_TOLERANCE)
ENCODE = EncodeSpeed("y", 1280, 32, 1.0, tiles_per_second=50.0, where="cpu")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three with tissue, at two scales, one of glass alone, and one that is none."""
    folder = tmp_path_factory.mktemp("cohort")
    for index in range(3):
        size, mpp = (1536 - 256 * index, 1024), 0.5 if index else 0.25
        write_slide(folder / f"s{index}.svs", seed=index, lesion=False, size=size, mpp=mpp)
    write_svs(folder / "white.svs", np.full((512, 512, 3), 240, np.uint8), mpp=0.5)
    (folder / "broken.svs").write_bytes(b"no slide at all")
    (folder / "manifest.csv").write_text(
        "slide,id,mpp\ns0.svs,000,\ns1.svs,001,0.4\ns2.svs,,\nwhite.svs,,\nbroken.svs,,\n"
    )
    return folder


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_plan_s_tiles_are_those_that_are_cut_and_its_disk_is_near(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, words = tmp_path / "out", ["--tile-size", "64", "--overlap", "8", "--min-tissue", "0.4"]
    code = cli.main(
        ["doctor", str(out), "--plan", str(slides / "manifest.csv"), *words, "--json", "--speed-test", "0"]
    )
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert code == 1  # a slide that cannot be cut is worth a word
    assert not out.exists()
    assert cli.main(["tile", str(slides / "manifest.csv"), "-o", str(out), *words]) == 1
    for name in ("000", "001", "s2"):
        store, planned = TileStore(Output(out), name), rows[f"plan: {name}"]["figures"]
        assert planned["tiles"] == store.tiles.record["tiles"], name
        assert planned["bytes"] == NEAR(size_of(store.folder)), name
    assert rows["plan: tiles"]["figures"]["tiles"] == sum(
        rows[f"plan: {name}"]["figures"]["tiles"] for name in ("000", "001", "s2")
    )
    assert rows["plan: white"]["value"].startswith("no tissue")
    assert "not a slide" in rows["plan: broken"]["advice"]
    assert rows["plan: slides"]["figures"] == {"slides": 5, "looked_at": 5, "faults": 1}
    assert rows["plan: disk"]["figures"]["bytes"] == NEAR(size_of(out / "slides"))
    assert rows["plan: hours"]["value"] == "not known"


@pytest.mark.parametrize("codec", [None, Raw(), Zstd(), Jpeg(80)])
def test_tiles_on_disk_are_as_large_as_planned(
    slides: Path, tmp_path: Path, codec: Raw | Zstd | Jpeg | None
) -> None:
    recipe = CutRecipe(spec=TileSpec(size_px=64), pixels=codec)
    entries = {"s1": SlideEntry("s1", slides / "s1.svs")}
    (planned,) = plan_cohort(entries, Slide, recipe).slides
    output = Output(tmp_path)
    with output.lock(), Slide(slides / "s1.svs") as slide:
        store = TileStore(output, "s1")
        cut_slide(slide, store, recipe)
    pixels = store.path("tiles") / "pixels"
    stored = size_of(pixels) if codec else 0
    assert planned.tiles == len(store)
    rows = 42 * len(store)
    assert planned.tiles * planned.tile_bytes == pytest.approx(stored + rows, rel=TOLERANCE, abs=1500)


def test_regions_and_quality_are_reckoned_with(slides: Path) -> None:
    entries = find_entries([slides / "s2.svs"])
    whole = plan_cohort(entries, Slide, CutRecipe(spec=TileSpec(size_px=64)))
    coarse = plan_cohort(entries, Slide, CutRecipe(spec=TileSpec(size_px=64, mpp=1)))
    assert whole.slides[0].tiles > coarse.slides[0].tiles > 0
    few = replace(whole, recipe=replace(whole.recipe, quality=replace(whole.recipe.quality, drop_pen=True)))
    told = {finding.name: finding.note for finding in few.findings()}
    assert "at most" in told["plan: tiles"]


def test_a_large_cohort_is_sampled_with_a_seed_and_its_spread_is_told(slides: Path) -> None:
    entries = [SlideEntry(str(i), Path(f"{i}.svs")) for i in range(200)]
    drawn = sample(entries, 50)
    assert len({entry.slide_id for entry in drawn}) == 50
    assert drawn == sample(entries, 50)
    assert [int(entry.slide_id) for entry in drawn] == sorted(int(entry.slide_id) for entry in drawn)
    assert sample(entries, 200) == entries


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    tiles = rng.gamma(2, 500, 300).astype(int)
    held = 0
    for _ in range(300):
        seen = rng.choice(300, 50, replace=False)
        slides = tuple(SlidePlan(str(i), int(tiles[i])) for i in seen)
        total = CohortPlan(slides, 300, CutRecipe()).total(lambda slide: slide.tiles)
        held += abs(total.amount - tiles.sum()) <= total.spread
    assert 0.9 <= held / 300 <= 0.98


def test_the_arithmetic_adds_up_and_is_written_down() -> None:
    slides = (SlidePlan("a", 1000, 200_000.0, 1e6, 1.0), SlidePlan("b", 0, 0, 5e5, 2.0))
    plan = CohortPlan(slides, 2, CutRecipe(), CUT, ENCODE, free_bytes=1e8)
    assert plan.bytes_of(slides[0]) == 1000 * (200_000 + 2 * 1280) + 1e6 + (32 << 10)
    assert plan.seconds_of(slides[0]) == 1.0 + 0.5 + 1000 / 100 + 1000 / 50
    assert plan.seconds_of(slides[1]) == 2.0
    told = {finding.name: finding for finding in plan.findings()}
    assert told["plan: tiles"].figures["tiles"] == 1000
    assert told["plan: disk"].figures["bytes"] == plan.bytes_of(slides[0]) + plan.bytes_of(slides[1])
    assert "1,000 tiles x (200,000 B stored + 2,560 B features) + 2 slides x" in told["plan: disk"].note
    assert "95.4 MiB are free" in told["plan: disk"].advice
    assert told["plan: hours"].figures["hours"] == pytest.approx((1 + 0.5 + 10 + 20 + 2) / 3600)
    assert "2 slides x 1.75 s" in told["plan: hours"].note
    to_encode = "1,000 tiles / 100 a second to cut) / 1 worker + 1,000 tiles / 50 a second to encode"
    assert to_encode in told["plan: hours"].note
    four = {finding.name: finding for finding in replace(plan, workers=4).findings()}
    hours = ((1 + 0.5 + 10 + 2) / 4 + 20) / 3600  # the network has the machine for itself either way
    assert four["plan: hours"].figures["hours"] == pytest.approx(hours)
    assert "2 slides x 1.75 s" in four["plan: hours"].note
    assert not any(finding.advice for finding in replace(plan, free_bytes=1e12).findings())


def test_a_slide_s_speed_is_tried_with_the_real_steps_and_stopped(slides: Path, tmp_path: Path) -> None:
    recipe = CutRecipe(spec=TileSpec(size_px=32))
    tried = partial(cut_speed, slides / "s0.svs", Slide, recipe, workers=1)
    whole = tried(folder=tmp_path / "a", deadline=time.monotonic() + 60)
    assert whole is not None
    assert whole.tiles == plan_cohort(find_entries([slides / "s0.svs"]), Slide, recipe).slides[0].tiles
    assert whole.tiles / whole.seconds < whole.tiles_per_second
    stopped = tried(folder=tmp_path / "b", deadline=time.monotonic())
    assert stopped is not None
    assert 0 < stopped.tiles <= 32 < whole.tiles  # of the first shard some were dropped


@pytest.mark.parametrize("words", [["--speed-test", "-1"], ["--speed-test", "nan"], ["--plan", "none.csv"]])
def test_wrong_settings_are_refused_before_anything_is_tried(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", str(tmp_path), *words]) == 2
    assert capsys.readouterr().out == ""
