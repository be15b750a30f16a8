"""Peak memory has a bound that neither the slide's size nor the number of its tiles moves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile

from tiling.recipe import CutRecipe
from wsi.direct import CACHE_BYTES
from wsi.synthetic import write_huge_slide, write_slide

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
GIB = 1 << 30
SHARD = CutRecipe().shard_tiles
THUMBNAIL = 96 * MIB
"""What a larger slide may cost more. Tissue is sought at 8 µm per pixel: 100,000 px of 0.25 µm become 3,125,
and that thumbnail and one copy of it are 56 MiB. The rest is the allocator's: the peak of one and the same
run was seen to vary by 50 MiB. A wider slide also has more decoded tiles between one row of output and the
next, `CACHE_BYTES` at most. A run that kept all its tiles would need 190 MiB more, and is found out."""

PEAK = """
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
print(json.dumps({**found, "peak": int(peak.split()[1]) * 1024}))
"""
"""Linux's high-water mark. ru_maxrss would not do: it starts at what the parent, here pytest, has used."""

COMMAND = f"""
import contextlib, io, json, sys
from pathlib import Path
import cli
with contextlib.redirect_stdout(io.StringIO()) as said:
    assert cli.main(sys.argv[1:]) == 0
found = json.loads(said.getvalue())
{PEAK}
"""

LOOK = f"""
import json, sys
from pathlib import Path
from wsi.slide import Slide
with Slide(sys.argv[1]) as slide:
    picture = slide.thumbnail(8.0)
found = dict(shape=picture.shape, low=picture.min((0, 1)).tolist(), high=picture.max((0, 1)).tolist())
{PEAK}
"""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="a process's peak memory is read from /proc, as Linux has it",
)


@dataclass(frozen=True)
class Run:
    """What a process of its own said, and the most memory it held."""

    found: dict[str, Any]
    peak: int
    """Bytes."""


def run(script: str, *words: object) -> Run:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return Run(found, found["peak"])


MANY = f"""
import contextlib, io, json, sys
from pathlib import Path
import cli
held = []
for number in range(30):
    with contextlib.redirect_stdout(io.StringIO()):
        out = f"{{sys.argv[2]}}/{{number}}"
        assert cli.main(["tile", sys.argv[1], "-o", out, "--mpp", "1", "--quiet"]) == 0
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmRSS:"))
    held.append(int(line.split()[1]) * 1024)
found = dict(held=held)
{PEAK}
"""


def microtome(command: str, slide: Path, out: Path, *options: str) -> Run:
    return run(COMMAND, command, slide, "-o", out, "--json", "--quiet", *options)


def test_a_hundred_thousand_pixels_square_are_cut_in_the_memory_of_a_small_slide(tmp_path: Path) -> None:
    small_slide = write_huge_slide(tmp_path / "small.svs", size=(16_384, 16_384), tissue_px=12_288)
    huge_slide = write_huge_slide(tmp_path / "huge.svs", size=(100_000, 100_000), tissue_px=19_456)
    small = microtome("tile", small_slide, tmp_path / "small")
    huge = microtome("tile", huge_slide, tmp_path / "huge")
    # Three shards more, of 50 MB of pixels each: a run that kept its tiles would be found out.
    assert small.found["tiles"] >= 2 * SHARD
    assert huge.found["tiles"] >= small.found["tiles"] + 3 * SHARD
    assert huge.peak < GIB
    assert huge.peak < 1.25 * small.peak + THUMBNAIL + CACHE_BYTES


def test_tissue_that_covers_a_hundred_thousand_pixels_square_is_found_in_bounded_memory(
    tmp_path: Path,
) -> None:
    slide = write_huge_slide(tmp_path / "covered.svs", size=(100_000, 100_000), tissue_px=90_000)
    surveyed = microtome("tissue", slide, tmp_path / "out")
    assert surveyed.found["tissue_mm2"] == pytest.approx((90_000 * 0.25e-3) ** 2, rel=0.01)
    assert surveyed.peak < GIB


def test_every_tile_of_a_covered_slide_is_looked_at_in_bounded_memory_by_many_threads(tmp_path: Path) -> None:
    slide = write_huge_slide(tmp_path / "covered.svs", size=(100_000, 100_000), tissue_px=45_056)
    # Pixels are decoded and judged, and not stored: to keep them would take 1.4 GB.
    options = ["--no-pixels", "--workers", "0", "--threads", "8", "--mpp", "0.5"]
    cut = microtome("tile", slide, tmp_path / "out", *options)
    assert cut.found["tiles"] > 7_000
    assert cut.peak < GIB


def test_memory_is_flat_over_thirty_slides_in_one_process(tmp_path: Path) -> None:
    slide = tmp_path / "one.svs"
    write_slide(slide, seed=1, lesion=True, size=(1024, 1024))
    held = run(MANY, slide, tmp_path / "out").found["held"]
    assert max(held[15:]) - min(held[6:15]) < 14 * MIB  # 0.6 MiB a slide would be found out


def test_a_real_slide_is_cut_in_bounded_memory(data_dir: Path, tmp_path: Path) -> None:
    slide = data_dir / "slides" / "whole" / "lung-squamous-cell-carcinoma-HE3-full.svs"
    if not slide.exists():
        pytest.skip(f"{slide.name} is not among the real slides")
    cut = microtome("tile", slide, tmp_path / "out")
    assert cut.found["tiles"] > SHARD
    assert cut.peak < GIB


def one_level(path: Path, *, edge: int) -> Path:
    """A slide of one level at 0.25 µm: fine stripes, all of whose averages are one colour."""
    stripes = np.full((256, 256, 3), (200, 120, 180), np.uint8)
    stripes[::2] += 20
    jpeg = bytes(
        imagecodecs.jpeg8_encode(stripes, 95, colorspace="rgb", outcolorspace="ycbcr", subsampling="444")
    )

    def tiles() -> Iterator[bytes]:
        yield from [jpeg] * (-(-edge // 256)) ** 2

    tifffile.imwrite(
        path,
        tiles(),
        shape=(edge, edge, 3),
        dtype=np.uint8,
        tile=(256, 256),
        compression="jpeg",
        photometric="ycbcr",
        subsampling=(1, 1),
        resolution=(40_000, 40_000),
        resolutionunit="CENTIMETER",
        metadata=None,
    )
    return path


def test_the_thumbnail_of_a_slide_without_a_pyramid_takes_less_memory_than_its_level(tmp_path: Path) -> None:
    edge = 12_000
    looked = run(LOOK, one_level(tmp_path / "flat.tiff", edge=edge))
    assert looked.found["shape"] == [edge // 32, edge // 32, 3]
    assert np.abs(np.array([looked.found["low"], looked.found["high"]]) - (210, 130, 190)).max() <= 2
    assert looked.peak < edge * edge * 3
