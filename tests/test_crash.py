"""Killed at any moment, a run ends up as if nobody had touched it, and nobody ever sees half a result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def test_no_kill_changes_a_byte_or_shows_half_a_result(small_run: Any, tmp_path: Path) -> None:
    labelled, randomly = 10, 4
    folders = [str(small_run.slides), str(small_run.model), str(small_run.weights), str(tmp_path)]
    words = [*folders, str(labelled), str(randomly), "7"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "crash_driver.py"), *words],
        cwd=ROOT,
        # One thread: on tiny networks a second one only waits for the first.
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["unequal"] == []
    assert result["unreadable"] == []
    assert result["kills"] >= 12
    assert {"part-written", "part-finished", "before-publish", "after-rename"} <= set(result["labels"])
    assert result["files"] > 40
