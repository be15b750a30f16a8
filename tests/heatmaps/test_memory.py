"""A million tiles that overlap, on a slide of 100,000 px, are drawn in bounded memory.

That no channel adds to it is a law of painting: see test_raster.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30

DRAW = """
import sys
from pathlib import Path
import numpy as np
from heatmaps.ngff import write_ngff
from heatmaps.pyramid import write_colours, write_scores
from heatmaps.raster import paint_columns

steps = np.arange(1000, dtype=np.int32) * 100
origins = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
rising = np.linspace(0, 1, len(origins), dtype=np.float32)
columns = {"one": rising, "two": 1 - rising}
frame = dict(tile=(200, 200), stride=(100, 100), slide_size=(100_000, 100_000), slide_mpp=0.25)
heatmap = paint_columns(origins, columns, **frame)
folder = Path(sys.argv[1])
write_scores(folder / "scores.ome.tif", heatmap)
write_colours(folder / "heatmap.ome.tif", heatmap, "one")
write_ngff(folder / "scores.ome.zarr", heatmap.only("one"))
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
print(int(peak.split()[1]) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_million_overlapping_tiles_are_drawn_in_bounded_memory(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DRAW, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 0.5 * GIB
