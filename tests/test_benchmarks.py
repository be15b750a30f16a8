"""The speed benchmark runs, on a slide like a scanner's, and compares ways that read the same pixels."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import openslide
import pytest
import tifffile

from wsi.slide import Slide
from wsi.tissue import find_tissue

ROOT = Path(__file__).resolve().parent.parent
PEERS = (
    "OpenSlide + area",
    "OpenSlide, PIL",
    "tiffslide",
    "tifffile, imagecodecs",
    "pyvips",
    "cuCIM",
    "fastslide",
)


def bench(*words: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "tiling.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the benchmark prints, and the slide that it drew."""
    folder = tmp_path_factory.mktemp("drawn")
    words = ["--only", "native", "--seconds", "0", "--size", "3200", "2400", "--drawn", "240"]
    printed = bench(*words, "--keep", str(folder))
    (slide,) = folder.iterdir()
    return printed, slide


def test_every_way_reads_the_same_pixels_or_says_why_it_is_left_out(run: tuple[str, Path]) -> None:
    printed, _ = run
    rows = dict(re.findall(r"^\| (.+?) \| [\d.]+ \|.*\| ([\d.]+) \|$", printed.split("### Goals")[0], re.M))
    left_out = re.findall(r"^(.+?) is left out: ", printed, re.M)
    for name in PEERS:
        assert (name in rows) != (name in left_out), printed
    assert {name for name in rows if "Slide.read" in name}
    assert max(map(float, rows.values())) < 1.5, printed


def test_goals_are_held_against_what_was_measured(run: tuple[str, Path]) -> None:
    goals = re.findall(r"^\| (.+) \| ([\d.]+) \| ([\d.]+) \| (\S+) \|$", run[0].split("### Goals")[1], re.M)
    assert goals
    for _, wanted, found, word in goals:
        assert float(found) == pytest.approx(float(wanted)) or (float(found) > float(wanted)) == (
            word == "reached"
        )


@pytest.mark.parametrize(
    "name", sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py") if "ArgumentParser" in p.read_text())
)
def test_every_benchmark_starts_as_it_says(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, where torch is imported once and not a dozen times."""
    command = f"-m benchmarks.{name}" if name != "tiling" else "benchmarks/tiling.py"
    assert f"python {command}" in (ROOT / "benchmarks" / f"{name}.py").read_text()
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)
    with pytest.raises(SystemExit) as left:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    assert left.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_the_drawn_slide_is_like_a_scanner_s(run: tuple[str, Path]) -> None:
    _, path = run
    with openslide.OpenSlide(path) as bare:
        assert bare.properties["openslide.vendor"] == "aperio"
        assert bare.properties["openslide.level[0].tile-width"] == "240"
        assert float(bare.properties["openslide.mpp-x"]) == 0.25
        assert bare.level_downsamples == pytest.approx((1, 4, 16))
    with Slide(path) as slide:
        assert 0.25 < find_tissue(slide).mask.mean() < 0.45
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        sizes = sorted(page.databytecounts, reverse=True)
        full = sizes[: len(sizes) // 5]  # tissue, from edge to edge
        assert page.jpegtables, "the tables are not in the tiles"
        assert 1.4 < 8 * sum(full) / len(full) / 240**2 < 2
