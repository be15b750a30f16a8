"""The whole command on a million overlapping tiles, in all formats, stays under a GiB.

That no channel adds to it is a law of painting: see test_raster.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scored_slide import make_scored_slide

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30
ACROSS = 1000
"""Tiles: 100,000 px, as the million's slide has along both sides."""

COMMAND = """
import json, sys
from pathlib import Path
import cli
assert cli.main(sys.argv[1:]) == 0
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
print(json.dumps({"peak": int(peak.split()[1]) * 1024, "torch": "torch" in sys.modules}))
"""


def draw(folder: Path, *, rows: int) -> dict[str, int]:
    out, model = make_scored_slide(folder, columns=ACROSS, rows=rows)
    formats = ["--format", "ome-tiff", "ome-zarr", "png"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "heatmap", str(out), "-m", str(model), "--quiet", *formats],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, int] = json.loads(done.stdout)
    return told


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_million_overlapping_tiles_are_drawn_in_all_formats_under_a_gib_and_without_torch(tmp_path):
    """Of two slides of that width: what the taller takes more, tells what the whole square takes."""
    few, more = 50, 150
    low, high = (draw(tmp_path / str(rows), rows=rows) for rows in (few, more))
    assert not low["torch"]
    grown = high["peak"] - low["peak"]
    assert grown > 0
    assert high["peak"] + grown * (ACROSS - more) / (more - few) < GIB
