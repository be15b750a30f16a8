"""Run `microtome run` again and again and kill it; started by test_crash.py, in a process of its own.

Everything is imported once; each run is a forked child, so that a kill costs no second of imports.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

# Imported before any fork, and before any thread of theirs is started.
import openslide  # noqa: F401
import torch  # noqa: F401
import zarr  # noqa: F401

import cli
import heatmaps.draw  # noqa: F401
import mil.steps  # noqa: F401
import tiling.recipe
import wsi.durable
from mil.networks.torchvision_shim import import_timm
from tiling.commit import find_damage, read_commit
from tiling.output import Output, verify_items


def command(slides: Path, model: Path, weights: Path, out: Path) -> list[str]:
    words = ["run", str(slides), "-m", str(model), "-o", str(out), "--device", "cpu"]
    return [*words, "--weights", str(weights)]


def small_shards() -> None:
    """Four tiles a shard: small slides then have as many parts to be killed between as big ones."""
    original = tiling.recipe.recipe_from_json
    tiling.recipe.recipe_from_json = lambda content: replace(original(content), tiles_per_shard=4)


def child(words: list[str], crash_at: str | None = None, report: Path | None = None) -> int:
    """Fork a run; returns the child's process id."""
    process = os.fork()
    if process:
        return process
    os.environ["MICROTOME_CRASH_AT"] = crash_at or "nowhere:1"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        code = cli.main(words)
    if report:
        report.write_text(json.dumps({"points": wsi.durable._passed, "errors": errors.getvalue()}))
    os._exit(code)


def wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def tree(out: Path) -> dict[str, bytes]:
    """Every byte of the results; runs/ tells the time, and .work/ and .lock are nobody's to read."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted((out / "slides").rglob("*"))
        if path.is_file()
    }


def readable(out: Path) -> int:
    """Read as any reader would, amid the run: every item that is seen must be whole."""
    seen = 0
    for item in Output(out).items():
        commit = read_commit(item)
        assert commit is not None
        assert not list(find_damage(item, commit, full=True)), item
        seen += 1
    if seen:
        for report in verify_items(Output(out), full=True):
            assert not report.damage, report
            assert not report.stale, report
    return seen


def main() -> None:
    slides, model, weights, folder = (Path(word) for word in sys.argv[1:5])
    labelled, randomly, seed = (int(word) for word in sys.argv[5:8])
    small_shards()
    import_timm()
    whole, notes = folder / "whole", folder / "points.json"
    start = time.monotonic()
    assert wait(child(command(slides, model, weights, whole), report=notes)) == 0
    seconds = time.monotonic() - start
    expected = tree(whole)
    points = Counter(json.loads(notes.read_text())["points"])
    rng = random.Random(seed)
    result = {"files": len(expected), "labels": sorted(points), "kills": 0, "unequal": [], "unreadable": []}

    def check(out: Path, how: str) -> None:
        result["kills"] += 1
        try:
            readable(out)
        except Exception as error:
            result["unreadable"].append(f"{how}: {error}")

    every = [f"{label}:{n}" for label in sorted(points) for n in range(1, points[label] + 1)]
    # Each label at least once, then a fair sample of all the times that they are passed.
    chosen = [f"{label}:{rng.randint(1, points[label])}" for label in sorted(points)]
    chosen += rng.sample(every, min(len(every), max(0, labelled - len(chosen))))
    for number, point in enumerate(chosen):
        out = folder / f"labelled-{number}"
        if wait(child(command(slides, model, weights, out), point)) == -signal.SIGKILL:
            check(out, point)
        if wait(child(command(slides, model, weights, out))) != 0 or tree(out) != expected:
            result["unequal"].append(point)

    out = folder / "random-0"
    for number in range(randomly):
        process = child(command(slides, model, weights, out))
        time.sleep(rng.uniform(0.02, seconds))
        os.kill(process, signal.SIGKILL)
        if wait(process) == -signal.SIGKILL:
            check(out, f"random {number}")
        elif tree(out) != expected:
            result["unequal"].append(f"random {number}")
        else:
            out = folder / f"random-{number + 1}"
    if wait(child(command(slides, model, weights, out))) != 0 or tree(out) != expected:
        result["unequal"].append("after the last random kill")
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
