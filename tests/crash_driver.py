"""Run `microtome run` again and again and kill it; started by test_crash.py, in a process of its own.

Everything is imported once; each run is a forked child, so that a kill costs no second of imports.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

# Imported before any fork, and before any thread of theirs is started.
import numpy as np
import openslide  # noqa: F401
import torch
import zarr  # noqa: F401

import cli
import heatmaps.draw
import mil.checkpoint
import mil.encoders
import mil.steps
import tiling.commit
import tiling.output
import tiling.recipe
import wsi.durable
from heatmaps.raster import Heatmap
from tiling.commit import find_damage, read_commit
from tiling.output import Output, verify_items


def command(slides: Path, model: Path, weights: Path, out: Path) -> list[str]:
    words = ["run", str(slides), "-m", str(model), "-o", str(out), "--device", "cpu"]
    return [*words, "--weights", str(weights)]


def small_shards() -> None:
    """Four tiles a shard: small slides then have as many parts to be killed between as big ones."""
    original = tiling.recipe.recipe_from_json
    tiling.recipe.recipe_from_json = lambda content: replace(original(content), tiles_per_shard=4)
    asked = cli.cut_recipe
    cli.cut_recipe = lambda arguments: replace(asked(arguments), tiles_per_shard=4)


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for the same arrays; what is drawn of a heatmap follows from the thumbnail below it."""
    known: dict[str, Any] = {}

    def told(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.shape, value.dtype.str, hashlib.sha256(value.tobytes()).hexdigest()
        return "" if isinstance(value, Heatmap) else value

    def call(*values: Any, **named: Any) -> Any:
        key = repr([*map(told, values), *((name, told(named[name])) for name in sorted(named))])
        if key not in known:
            known[key] = function(*values, **named)
        return known[key]

    return call


def load_once() -> None:
    """What every run would load or look up alike."""
    mil.checkpoint.load_model = functools.cache(mil.checkpoint.load_model)
    mil.encoders.load_encoder = functools.cache(mil.encoders.load_encoder)
    load, known = tiling.commit.load_commit, {}

    def load_commit(item: Path) -> tiling.commit.Commit:
        with contextlib.suppress(FileNotFoundError):
            key = item, (item / tiling.commit.COMMIT_FILE).read_bytes()
            if key not in known:
                known[key] = load(item)
            return known[key]
        return load(item)

    tiling.commit.load_commit = tiling.output.load_commit = load_commit
    for name in ("draw_overlay", "encode_png"):
        setattr(heatmaps.draw, name, remembered(getattr(heatmaps.draw, name)))
    parser = cli.build_parser()
    cli.build_parser = lambda: parser
    torch.set_num_threads(1)


def child(words: list[str], crash_at: str | None = None, report: Path | None = None) -> int:
    """Fork a run; returns the child's process id."""
    process = os.fork()
    if process:
        return process
    os.environ["MICROTOME_CRASH_AT"] = crash_at or "nowhere:1"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        code = cli.main(words)
    if report:
        told = {"points": wsi.durable._passed, "errors": errors.getvalue(), "modules": list(sys.modules)}
        report.write_text(json.dumps(told))
    os._exit(code)


def import_all(names: list[str]) -> None:
    """What a run imports on its way: the children that come have it then."""
    for name in names:
        with contextlib.suppress(Exception):  # parts of modules that import others by hand
            importlib.import_module(name)
    assert threading.active_count() == 1, "a fork would have none of these threads"


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
    load_once()
    mil.checkpoint.load_model(model)
    mil.encoders.load_encoder("timm:test_efficientnet", weights=weights, device="cpu")
    whole, notes = folder / "whole", folder / "points.json"
    start = time.monotonic()
    assert wait(child(command(slides, model, weights, whole), report=notes)) == 0
    seconds = time.monotonic() - start
    expected = tree(whole)
    told = json.loads(notes.read_text())
    points = Counter(told["points"])
    import_all(told["modules"])
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
