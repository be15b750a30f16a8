"""The child's side: a process that does units until its parent is gone.

It is a process of its own and no fork: no thread or lock of the parent's is in it. It talks on a socket, in
pickles; whatever libraries print goes to standard error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn, Protocol

from tiling.blocks import Progress
from tiling.workers.unit import Died, Refused, Result, Unit
from wsi.errors import MicrotomeError, UnfitError
from wsi.messages import messages, printable

_log = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 0.25
RUN_SECONDS = 2.0
"""How often a child looks whether its run goes on."""
IDLE_SECONDS = 600.0
"""A child that nobody wants for so long ends, and what it holds of a GPU is free again."""


@dataclass(frozen=True, slots=True)
class Alive:
    """Something goes on."""

    step: int
    """The step that it is at."""
    found: int
    """Tiles that it found done when it came to this step."""
    done: int
    total: int
    """Tiles that are done now, in all; 0 of steps that count none."""


class Hand(Protocol):
    """Does units, such as `tiling.workers.worker.Worker`."""

    name: str

    def do(self, unit: Unit, progress: Progress, *, reached: Callable[[int], None]) -> Result:
        """Do one; whatever goes wrong with the slide is a result."""

    def busy_seconds(self) -> float:
        """Changes as long as anything goes on."""


class Job(Protocol):
    """What a child is told first, such as `tiling.workers.unit.Work`."""

    @property
    def debug(self) -> bool:
        """Whether tracebacks are told."""

    @property
    def started_in(self) -> Path:
        """The folder where relative paths count from."""

    def hire(self) -> Hand:
        """Who does the units; `MicrotomeError` where nobody can."""

    def is_over(self) -> bool:
        """Whether the child is to end, though its parent lives; an OSError says that it cannot be told."""


def main(descriptor: int) -> None:
    """Serve the parent at the other end of a socket; returns when it is gone, or wants nothing for long."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears of Ctrl-C, and decides
    os.dup2(2, 1)
    with contextlib.suppress(OSError):  # if memory runs out, the child goes, and not the parent
        os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"900")
    line = _Line(Connection(descriptor))
    job: Job = line.next()
    with messages(debug=job.debug):
        try:
            _go_to(job.started_in)
            worker = job.hire()
        except MicrotomeError as error:
            line.send(Refused(error))
            return
        except Exception as error:  # such as a GPU without memory for the network
            if job.debug:
                _log.exception("at the start")
            said = f"a worker process cannot begin: {type(error).__name__}: {error}"
            line.send(Refused(MicrotomeError(printable(said), action="Run it with --debug to see more")))
            return
        threading.Thread(target=_end_with_run, args=[job], daemon=True).start()
        line.send(worker.name)
        while True:
            try:
                unit: Unit = line.next(timeout=IDLE_SECONDS)
            except queue.Empty:
                return
            with _Heartbeat(line, worker) as heart:
                result = worker.do(unit, heart.progress, reached=heart.reached)
            line.send(result)
            if isinstance(result, Died):  # nothing more can be done here
                return


def _go_to(started_in: Path) -> None:
    try:
        os.chdir(started_in)
    except OSError as error:
        raise UnfitError(
            f"the worker on {socket.gethostname()} does not see the folder where the command was started",
            path=started_in,
            action="Start it in a folder that all machines share",
        ) from error


def _end_with_run(job: Job) -> None:
    """Whoever is told of no end, because he is cut off or nobody is left to tell, looks for himself."""
    while True:
        time.sleep(RUN_SECONDS)
        with contextlib.suppress(OSError):  # a file system that does not answer now may do so later
            if job.is_over():
                _end()


def _end() -> NoReturn:
    """End at once, with whatever was started; what is not finished was journalled, or is made again."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


class _Line:
    """The connection: a thread listens all the time, so that the end of the parent is this process's end."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def next(self, timeout: float | None = None) -> Any:
        return pickle.loads(self._arrived.get(timeout=timeout))  # noqa: S301 - our parent's, of our user

    def send(self, message: object) -> None:
        with self._lock:
            try:
                self._connection.send(message)
            except OSError:
                _end()

    def _listen(self) -> None:
        while True:
            try:
                self._arrived.put(self._connection.recv_bytes())
            except (EOFError, OSError):
                _end()


class _Heartbeat:
    """Tells the parent while something goes on; and nothing while nothing does."""

    def __init__(self, line: _Line, worker: Hand) -> None:
        self._line, self._worker = line, worker
        self._now = Alive(-1, 0, 0, 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> _Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def reached(self, step: int) -> None:
        self._now = Alive(step, -1, 0, 0)

    def progress(self, done: int, total: int) -> None:
        now = self._now
        self._now = Alive(now.step, done if now.found < 0 else now.found, done, total)

    def _beat(self) -> None:
        said: tuple[Alive, float] | None = None
        while not self._ended.wait(HEARTBEAT_SECONDS):
            seen = self._now, self._worker.busy_seconds()
            if seen != said:
                self._line.send(seen[0])
                said = seen
