"""Run `microtome run` again and again on a disk on which one change fails; started by test_faults.py.

In a chain, on one output: every run fails at the first change that has not failed yet, and goes on from what
the one before left. So every failure is followed by the run that has to cope with it. What is only met in a
run from nothing, further chains come to, until every change has failed once. Then a sample of all, from
nothing each time, after which the disk stays full; and the same command again to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import zarr
from crash_driver import load_once, readable, small_shards, tree
from faulty_disk import DELETES, Change, FaultyDisk

import cli


def run(words: list[str], disk: FaultyDisk) -> tuple[int, str]:
    """The command in this process: whatever a failure leaves open would be in the way of the next run."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said), disk.mounted():
        code = cli.main(words)
        zarr.core.sync.sync(settled())
    return code, said.getvalue()


async def settled() -> None:
    """Wait for what zarr had begun beside the write that failed: no later run is to be blamed for it."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


class Driver:
    """What is run, and what is found."""

    def __init__(self, words: list[str], out: Path) -> None:
        self.words, self.out = [*words, "-o", str(out), "--quiet", "--workers", "0", "--threads", "1"], out
        self.verified: list[object] = []
        self.survived: list[str] = []
        self.wrong: list[str] = []
        whole = FaultyDisk(out)
        code, said = run(self.words, whole)
        assert code == 0, said
        self.changes = whole.passed
        self.expected = tree(out)
        shutil.rmtree(out)

    def fail(self, disk: FaultyDisk) -> bool:
        """A run that must end with 74 and one line, and leave nothing but whole items; whether one failed."""
        code, said = run(self.words, disk)
        how = disk.failed[0].name if disk.failed else "nothing failed"
        if code == 0 and disk.failed and tree(self.out) == self.expected:
            self.survived.append(how)
        elif disk.failed and (code != 74 or said.count("\n") != 1 or not said.startswith("ERROR ")):
            self.wrong.append(f"{how}: {code} {said}")
        self.verify(how)
        return bool(disk.failed)

    def verify(self, how: str) -> None:
        """Every byte of what is committed, unless nothing has happened to it since the last time."""
        places = sorted(self.out.glob("slides/**/*"))
        files = [
            (path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path in places if (stat := path.stat())
        ]
        if files == self.verified:
            return
        self.verified = files
        try:
            readable(self.out)
        except Exception as error:
            self.wrong.append(f"{how}: {error}")

    def complete(self, how: str) -> None:
        """The same command again, and nobody can tell."""
        code, said = run(self.words, FaultyDisk(self.out))
        if code or tree(self.out) != self.expected:
            self.wrong.append(f"after {how}: {code} {said}")
        if left := [path.name for path in (self.out / ".work").iterdir()]:
            self.wrong.append(f"after {how}: left {left}")
        shutil.rmtree(self.out)

    def chain(self, wanted: Callable[[str], bool]) -> set[str]:
        """Fail at one change after the other that is `wanted`, by name; the names of all that failed."""
        failed: set[str] = set()

        def fails(change: Change) -> bool:
            return change.name not in failed and not disk.failed and wanted(change.name)

        disk = FaultyDisk(self.out, fails)
        while self.fail(disk):
            failed.add(disk.failed[0].name)
            disk = FaultyDisk(self.out, fails)
        self.complete("the chain")
        return failed

    def full(self, name: str) -> None:
        """Fail at one change of a run from nothing, and at all after it that take room."""

        def fails(change: Change) -> bool:
            return change.name == name or (bool(disk.failed) and change.kind not in DELETES)

        disk = FaultyDisk(self.out, fails)
        self.fail(disk)
        self.complete(name)


def main() -> None:
    words, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    sample, seed = int(sys.argv[3]), int(sys.argv[4])
    small_shards()
    load_once()
    driver = Driver(words, folder / "out")
    names = [change.name for change in driver.changes]
    failed = driver.chain(lambda name: True)
    chains, missed = 1, set(names) - failed
    while missed:  # from nothing its first one is met for sure
        chains, missed = chains + 1, missed - driver.chain(missed.__contains__)
    for name in random.Random(seed).sample(names, sample):
        driver.full(name)
    # Where tiles are dropped, shards are packed anew: by changes that the run above has not made.
    slide = words[1]
    dropping = ["tile", slide, "--mpp", "1", "--tile-size", "64", "--min-sharpness", "700"]
    packing = Driver(dropping, folder / "packed")
    packed = packing.chain(lambda name: "packed" in name or "/found" in name)
    result = {
        "packed": len(packed),
        "changes": len(names),
        "kinds": Counter(change.kind for change in driver.changes),
        "in the first chain": len(failed & set(names)),
        "chains": chains,
        "survived": driver.survived + packing.survived,
        "wrong": driver.wrong + packing.wrong,
    }
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
