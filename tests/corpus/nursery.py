"""A process that has imported everything and forks a child for each case: limits hold, imports are paid once.

Nothing that a child does can harm the tests: it has a time, an address space and a group of processes of its
own. Run as a program this file is that process; `Nursery` is how tests speak to it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
MORE_BYTES = 3 << 29
"""1.5 GiB: address space that a child may take beyond what the nursery has."""
SECONDS = 60
"""After which a child counts as hung: a hundred times what any case takes, for machines may be busy."""


@dataclass(frozen=True)
class Ending:
    """How a child ended."""

    code: int
    """Its exit code; minus the signal that killed it."""
    hung: bool
    """Whether it had to be killed."""
    peak_bytes: int
    """The most memory that it had at a time."""
    cpu_seconds: float
    """What it computed."""
    out: str
    """What it printed."""
    err: str
    """What it complained of."""


class Nursery:
    """Starts the process, hands it one case after the other, and ends it."""

    def __init__(self) -> None:
        # One thread each: forks of a process with threads would not be safe.
        calm = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        environment = os.environ | calm | {"MALLOC_ARENA_MAX": "2", "PYTHONPATH": path}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, words: Sequence[str], *, home: Path, library: bool = False, seconds: float = SECONDS
    ) -> Ending:
        """Run `cli.main`, or `corpus.reading.main`, with its working, home and temporary folder in `home`."""
        assert self._process.stdin
        assert self._process.stdout
        job = {"words": list(words), "home": str(home), "library": library, "seconds": seconds}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Ending(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


# The process -----------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer each line of standard input."""
    import cv2  # noqa: F401
    import openslide  # noqa: F401
    import tiffslide  # noqa: F401
    import zarr  # noqa: F401

    import cli  # noqa: F401
    import tiling.pipeline
    import tiling.qc
    import tiling.reporter  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        if job["library"]:
            import mil.checkpoint
            import mil.features  # noqa: F401
        sys.stdout.write(json.dumps(run_in_child(job)) + "\n")
        sys.stdout.flush()


def run_in_child(job: dict[str, Any]) -> dict[str, Any]:
    """Fork, wait, and say how it ended."""
    home = Path(job["home"])
    out, err = home / "stdout", home / "stderr"
    process = os.fork()
    if process == 0:
        _be_child(job, out, err)
    end, hung = time.monotonic() + job["seconds"], False
    while (ended := os.wait4(process, os.WNOHANG))[0] == 0:
        if hung := time.monotonic() > end:
            os.killpg(process, signal.SIGKILL)
            ended = os.wait4(process, 0)
            break
        time.sleep(0.005)
    usage = ended[2]
    return {
        "code": os.waitstatus_to_exitcode(ended[1]),
        "hung": hung,
        "peak_bytes": usage.ru_maxrss * 1024,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "out": out.read_text(errors="replace"),
        "err": err.read_text(errors="replace"),
    }


def _be_child(job: dict[str, Any], out: Path, err: Path) -> None:
    """Never returns."""
    code = 70
    try:
        os.setsid()
        for stream, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(job["home"])
        os.environ |= {"HOME": job["home"], "TMPDIR": job["home"]}
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if job["library"]:
            from corpus.reading import main
        else:
            from cli import main
        code = main(job["words"])
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
