"""Clocks that jump, slides that change while they are read or between runs, forks, and files left open."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cli
import tiling.cut
import tiling.survey
from tiling.store import TileStore
from wsi.synthetic import write_slide

ROOT = Path(__file__).resolve().parent.parent
CUT = ("--mpp", "1", "--tile-size", "64", "--quiet")


def tree(out: Path) -> dict[str, bytes]:
    slides = out / "slides"
    return {p.relative_to(slides).as_posix(): p.read_bytes() for p in slides.rglob("*") if p.is_file()}


# Clocks -----------------------------------------------------------------------------------------------------


def test_a_clock_that_goes_backwards_and_another_time_zone_change_no_byte_and_no_decision(
    small_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual, strange = tmp_path / "usual", tmp_path / "strange"
    assert cli.main(["tile", str(small_run.slides), "-o", str(usual), *CUT]) == 0
    before = [4e9]

    def back() -> float:
        before[0] -= 86_400.0
        return before[0]

    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", back)
            patched.setattr(time, "time_ns", lambda: int(back() * 1e9))
            assert cli.main(["tile", str(small_run.slides), "-o", str(strange), *CUT]) == 0
            for path in strange.rglob("*"):  # files from the future, and older than what they were made of
                os.utime(path, (0, 0) if path.suffix == ".json" else (8e9, 8e9))
            capsys.readouterr()
            assert cli.main(["tile", str(small_run.slides), "-o", str(strange), *CUT, "--json"]) == 0
            found = [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found == ["already done"] * 2
    assert tree(strange) == tree(usual)


# Slides -----------------------------------------------------------------------------------------------------


def growing(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"more of it")


def replaced(path: Path) -> None:
    write_slide(path.with_name("other.tmp"), seed=9, lesion=False, size=(512, 384))
    path.with_name("other.tmp").replace(path)


@pytest.mark.parametrize("change", [growing, replaced])
@pytest.mark.parametrize("step", ["survey", "cut"])
def test_a_slide_that_changes_while_it_is_read_is_named_and_failed_and_the_others_go_on(
    small_run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    step: str,
) -> None:
    slides, out = tmp_path / "slides", tmp_path / "out"
    shutil.copytree(small_run.slides, slides)
    module, name = (tiling.survey, "find_tissue") if step == "survey" else (tiling.cut, "fit_stain")
    function = getattr(module, name)

    def while_it_is_read(slide: Any, *rest: Any, **more: Any) -> Any:
        found = function(slide, *rest, **more)
        if slide.path.stem == "s2":
            change(slide.path)
        return found

    monkeypatch.setattr(module, name, while_it_is_read)
    assert cli.main(["tile", str(slides), "-o", str(out), *CUT]) == 1
    said = capsys.readouterr().err
    assert f"{slides / 's2.svs'}: the file changed while it was read" in said
    assert not (out / "slides" / "s2" / "store.zarr" / "tiles").exists()
    assert (out / "slides" / "s2" / "tissue").exists() == (step == "cut")
    assert (out / "slides" / "s4" / "qc" / "commit.json").exists()
    monkeypatch.undo()
    assert cli.main(["tile", str(slides), "-o", str(out), *CUT, "--overwrite"]) == 0
    assert cli.main(["tile", str(slides), "-o", str(tmp_path / "anew"), *CUT]) == 0
    assert tree(out) == tree(tmp_path / "anew")


def test_another_slide_under_the_name_of_a_finished_one_is_refused_and_so_are_other_settings(
    small_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slides, out = tmp_path / "slides", tmp_path / "out"
    shutil.copytree(small_run.slides, slides)
    assert cli.main(["tile", str(slides), "-o", str(out), *CUT]) == 0
    before = tree(out)
    other = [*CUT[:3], "32", "--quiet"]
    assert cli.main(["tile", str(slides), "-o", str(out), *other]) == 2
    assert "tiles of slide 's2' was made with spec" in capsys.readouterr().err
    replaced(slides / "s2.svs")
    assert cli.main(["tile", str(slides), "-o", str(out), *CUT]) == 1
    assert "tissue of slide 's2' was made with" in capsys.readouterr().err
    assert tree(out) == before


def test_as_many_files_are_open_after_thirty_slides_as_after_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    write_slide(tmp_path / "tiny.svs", seed=2, lesion=False, size=(384, 256))
    for number in range(30):
        os.link(tmp_path / "tiny.svs", slides / f"a{number:02}.svs")
    opened: list[int] = []
    find = TileStore.begin

    def counted(store: TileStore, item: str, recipe: Any) -> Any:
        if item == "qc":
            opened.append(len(os.listdir("/proc/self/fd")))
        return find(store, item, recipe)

    monkeypatch.setattr(TileStore, "begin", counted)
    gc.collect()  # what other tests left open
    before = len(os.listdir("/proc/self/fd"))
    assert cli.main(["tile", str(slides), "-o", str(tmp_path / "out"), *CUT, "--workers", "0"]) == 0
    assert len(opened) == 30
    assert len(set(opened[1:])) == 1, opened
    assert len(os.listdir("/proc/self/fd")) <= before + 3  # zarr's own thread keeps its ends of a pipe


# Processes --------------------------------------------------------------------------------------------------

CHILDREN = textwrap.dedent(
    """
    import hashlib, json, multiprocessing, sys
    from functools import partial
    from wsi.slide import Slide

    def digest(slide, place):
        pixels = slide.read(*place, size=(96, 96), mpp=1.0)
        return hashlib.sha256(pixels.tobytes()).hexdigest()

    def read(slide, places, queue):
        try:
            queue.put([digest(slide, place) for place in places])
        except Exception as error:
            queue.put(str(error))

    if __name__ == "__main__":
        places = [(x, y) for x in range(0, 320, 40) for y in range(0, 192, 48)]
        found = {}
        for path in sys.argv[1:]:
            with Slide(path) as alone:
                expected = [digest(alone, place) for place in places]
            slide = Slide(path)
            digest(slide, places[0])  # a handle that was used before the fork
            for method, count in (("fork", 3), ("spawn", 1)):
                ways = multiprocessing.get_context(method)
                queue = ways.SimpleQueue()
                children = [ways.Process(target=read, args=(slide, places, queue)) for _ in range(count)]
                for child in children:
                    child.start()
                here = [[digest(slide, place) for place in places] for _ in range(3)]  # beside its children
                there = [queue.get() for _ in children]
                for child in children:
                    child.join()
                found[f"{slide.backend} {method}"] = all(one == expected for one in here + there)
            slide.close()
        print(json.dumps(found))
    """
)


def test_a_slide_in_a_forked_or_spawned_child_reads_the_same_pixels(small_run: Any, tmp_path: Path) -> None:
    """Open since before the fork and read by parent and children at once, or handed to it."""
    import numpy as np
    import tifffile

    script, pyramid = tmp_path / "children.py", tmp_path / "pyramid.ome.tif"
    script.write_text(CHILDREN)
    pixels = np.random.default_rng(3).integers(0, 256, (512, 512, 3), np.uint8)
    with tifffile.TiffWriter(pyramid, ome=True) as tif:
        um = {
            "PhysicalSizeX": 0.5,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": 0.5,
            "PhysicalSizeYUnit": "µm",
        }
        options = {"tile": (128, 128), "photometric": "rgb", "compression": "adobe_deflate"}
        tif.write(pixels, subifds=1, metadata={"axes": "YXS", **um}, **options)
        tif.write(pixels[::2, ::2], subfiletype=1, metadata=None, **options)
    done = subprocess.run(
        [sys.executable, str(script), str(small_run.slides / "s2.svs"), str(pyramid)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ways = {f"{name} {way}" for name in ("openslide", "tiffslide") for way in ("fork", "spawn")}
    assert json.loads(done.stdout) == dict.fromkeys(ways, True)
