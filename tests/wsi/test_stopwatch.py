"""Time is added up by activity, whoever spends it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wsi.slide import Slide
from wsi.stopwatch import Stopwatch
from wsi.synthetic import write_slide


def test_seconds_of_all_threads_are_added_up() -> None:
    times = Stopwatch()

    def work(number: int) -> None:
        with times.lap("sleep"):
            time.sleep(0.02)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert times.seconds()["sleep"] >= 8 * 0.02


def test_what_raises_is_timed_too_and_since_tells_what_is_new() -> None:
    times = Stopwatch()
    times.add("old", 2.0)
    before = times.seconds()
    with pytest.raises(ValueError, match="no"), times.lap("new"):
        raise ValueError("no")
    assert times.since(before).keys() == {"new"}
    times.add("old", 0.5)
    assert times.since(before)["old"] == 0.5
    assert before == {"old": 2.0}


def test_a_slide_tells_reading_decoding_and_resampling_apart(tmp_path: Path) -> None:
    write_slide(tmp_path / "s.svs", seed=0, lesion=False, size=(768, 512))
    with Slide(tmp_path / "s.svs") as slide:
        slide.read_tiles([(0, 0), (100, 0), (200, 0)], size=(100, 100), mpp=0.7)
        spent = slide.times.seconds()
    assert {"read", "decode", "resample"} <= spent.keys()
    assert all(seconds > 0 for seconds in spent.values())
