"""Commands that are told to end while they are at work; started by test_signals.py.

Everything is imported once; each command is a forked child, the first of a group of processes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from crash_driver import import_all, load_once, small_shards, wait

import cli
import mil.encoders

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def start(words: list[str], said: Path) -> int:
    """Fork a command; returns its process. In the end it tells, beside what it said, what it has imported."""
    if process := os.fork():
        return process
    os.setsid()
    code = 99
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        code = cli.main(words)
    said.write_text(errors.getvalue())
    said.with_name("modules.json").write_text(json.dumps(list(sys.modules)))
    os._exit(code)


def run(words: list[str], said: Path) -> None:
    """A command that is left alone; what it needed is imported then, and no other has to."""
    assert wait(start(words, said)) == 0, said.read_text()
    import_all(json.loads(said.with_name("modules.json").read_text()))


def tree(folder: Path) -> dict[str, bytes]:
    """Every committed byte; logs tell the time, and .work and .lock are nobody's to read."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {n: p.read_bytes() for n, p in names.items() if not n.startswith(("runs/", ".lock", ".work/"))}


class Stopping:
    """One command, stopped by each signal in turn when `sign` (a pattern of a path) is there."""

    def __init__(self, words: list[str], made: Path, sign: str, before: Path | None = None) -> None:
        self.words, self.made, self.sign, self.before = words, made, sign, before
        self.said = made.parent / "said.txt"

    def fresh(self) -> None:
        """As it was before the command."""
        for folder in (self.made, self.made.parent / ".work"):
            shutil.rmtree(folder, ignore_errors=True)
        if self.before:
            shutil.copytree(self.before, self.made)

    def expected(self) -> dict[str, bytes]:
        self.fresh()
        run(self.words, self.said)
        return tree(self.made)

    def stop(self, number: signal.Signals, expected: dict[str, bytes]) -> list[str]:
        """What is wrong with how it ends, and goes on."""
        self.fresh()
        process = start(self.words, self.said)
        while not any(self.made.parent.glob(self.sign)):
            time.sleep(0.001)
        os.kill(process, number)
        began = time.monotonic()
        code, seconds = wait(process), time.monotonic() - began
        said = self.said.read_text() if self.said.exists() else ""
        wrong = []
        if code != SIGNALS[number]:
            wrong.append(f"exit code {code}: {said}")
        if "interrupted. Run the same command again to go on" not in said or "Traceback" in said:
            wrong.append(f"said {said!r}")
        if seconds > 5:
            wrong.append(f"took {seconds:.1f} s")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, 0)
            wrong.append("left a process")
        left = [p for p in self.made.parent.rglob("*.partial") if ".work" not in p.parts]
        left += list(Path(os.environ["TMPDIR"]).iterdir())
        if left:
            wrong.append(f"left {left}")
        if unexpected := set(tree(self.made)) - set(expected):
            wrong.append(f"left {unexpected}")
        if wait(start(self.words, self.said)) != 0 or tree(self.made) != expected:
            wrong.append(f"did not go on: {self.said.read_text()}")
        return [f"{self.words[0]}, {number.name}: {fault}" for fault in wrong]


def main() -> None:
    folder, weights = Path(sys.argv[1]), sys.argv[2]
    small_shards()
    load_once()
    mil.encoders.load_encoder("timm:test_efficientnet", weights=Path(weights), device="cpu")
    slides, cut, encoded = (str(folder / name) for name in ("slides", "cut", "encoded"))
    encoder = ["--encoder", "timm:test_efficientnet"]
    end = ["--quiet", "--device", "cpu"]
    cutting = ["--mpp", "1", "--tile-size", "64", "--quiet", "-o"]
    few = [str(path) for path in sorted(Path(slides).iterdir())[:3]]
    encode = ["--weights", weights, *encoder, *end]
    train = [*encoder, "--labels", str(folder / "labels.csv"), "--epochs", "3", "--folds", "3", *end, "-m"]
    run(["tile", *few, *cutting, cut], folder / "said.txt")
    run(["tile", slides, *cutting, encoded], folder / "said.txt")
    run(["encode", encoded, *encode], folder / "said.txt")
    tiled, done, model = (folder / name for name in ("tiled", "done", "model"))
    wrong, stops = [], 0
    for command in (
        Stopping(["tile", *few, *cutting, str(tiled)], tiled, "tiled/.work/tiles-*.journal"),
        Stopping(["encode", str(done), *encode], done, "done/.work/*.journal", Path(cut)),
        Stopping(["train", encoded, *train, str(model)], model, ".work/*.journal"),
    ):
        expected = command.expected()
        for number in SIGNALS:
            wrong += command.stop(number, expected)
            stops += 1
    sys.stdout.write(json.dumps({"stops": stops, "wrong": wrong}))


if __name__ == "__main__":
    main()
