"""`Child`: the parent's side of a process that does units, and is stopped where it goes beyond its limits."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from tiling.workers.child import Alive
from tiling.workers.limits import Limits
from tiling.workers.unit import Died, Event, Progressed, Refused, Report, Result, Unit
from wsi.errors import MicrotomeError, UnfitError

_START = """\
import sys
sys.path[:] = {path!r}
from tiling.workers.child import main
main({descriptor})
"""
_FAULTS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
"""Signals that a process gives itself. SIGKILL may come from anybody, and from a kernel without memory."""
_MISSED_BY = 3.0  # a child that is busy in one call beats late
START_SECONDS = 300.0
"""How long a process may take at least to make its steps: libraries may come over a slow network."""
_GRACE_SECONDS = 5.0
"""How long a killed process is waited for. One that waits for a dead file server ends when that answers."""


class Child:
    """A process that does one unit at a time.

    Parameters
    ----------
    work
        The pickled `Work`.
    limits
        What it may take.
    threads
        For its libraries; `Work.threads` is what its own steps have.
    environment
        More variables for it.

    Raises
    ------
    OSError
        No process can be started now.
    """

    def __init__(
        self, work: bytes, *, limits: Limits, threads: int = 1, environment: Mapping[str, str] | None = None
    ) -> None:
        import psutil

        ours, theirs = socket.socketpair()
        # Set before anything is imported: a Dask worker's nanny has set them to 1.
        count = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
        with ours, theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this Python, and our own words
                [sys.executable, "-c", _START.format(path=sys.path, descriptor=theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **count, **(environment or {})},
            )
            self.connection: Connection[Any, Any] = Connection(ours.detach())
        with contextlib.suppress(OSError):  # it is dead; `hear` finds that out
            self.connection.send_bytes(work)
        self._watched = psutil.Process(self._process.pid)
        self._limits = limits
        self.unit: Unit | None = None
        """What it does now."""
        self.last_slide = ""
        """The slide that it may have open."""
        self.ready = False
        """Whether it has made its steps."""
        self.gone = False
        """Whether it is dead."""
        self.name = ""
        self._begun = self._heard = 0.0
        self._alive = Alive(-1, 0, 0, 0)
        self._peak = 0

    def give(self, unit: Unit) -> None:
        """Have it do a unit."""
        self.unit, self.last_slide = unit, unit.slide_id
        self._begun = self._heard = time.monotonic()
        self._alive, self._peak = Alive(-1, 0, 0, 0), 0
        with contextlib.suppress(OSError):  # it is dead; `hear` finds that out
            self.connection.send_bytes(pickle.dumps(unit))

    def hear(self) -> list[Event]:
        """What it has said since; waits for nothing. Raises what keeps it from making its steps."""
        events: list[Event] = []
        try:
            while self.connection.poll():
                message = self.connection.recv()
                self._heard = time.monotonic()
                if isinstance(message, str):
                    self.name, self.ready = message, True
                elif isinstance(message, Alive):
                    self._alive = message
                    if self.unit and message.total:
                        events.append(Progressed(self.unit, message.done, message.total))
                elif isinstance(message, Refused) and not self.ready:
                    raise message.error
                else:
                    self._look()
                    events.append(self._report(message))
                    if isinstance(message, Died):  # it said so itself
                        self.stop()
                        break
        except (EOFError, OSError) as error:
            if isinstance(error, MicrotomeError):
                raise
            events += self._dead()
        return events

    def check(self) -> Report | None:
        """Stop it where it is beyond its limits; the unit that this costs."""
        if self.unit is None:
            return None
        held, silent = self._look(), time.monotonic() - self._heard
        if self._limits.memory_bytes is not None and held > self._limits.memory_bytes:
            said = f"{held / 2**30:.1f} GiB of memory, {self._limits.memory_bytes / 2**30:.1f} are allowed"
            # Once more in a fresh process: what it held may be what slides before had left in it.
            return self._stopped(f"its process held {said} (--memory-limit)", hopeless=False)
        if silent > self._patience():
            silence = f"no progress for {self._limits.stall_seconds:.0f} s (--stall-seconds)"
            return self._stopped(silence if self.ready else "it hung at its start", hopeless=True)
        if self._process.poll() is not None and not self.connection.poll():
            # Nobody says so on the line, where a process that it forked holds the other end.
            return next(iter(self._dead()), None)
        return None

    def stop(self) -> None:
        """Kill it and whatever it started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        self.connection.close()
        self.gone = True

    def _patience(self) -> float:
        """Seconds that it may say nothing."""
        most = self._limits.stall_seconds + _MISSED_BY
        return most if self.ready else max(most, START_SECONDS)

    def _look(self) -> int:
        import psutil

        try:
            held = int(self._watched.memory_info().rss)
        except psutil.Error:
            return 0
        self._peak = max(self._peak, held)
        return held

    def _stopped(self, reason: str, *, hopeless: bool) -> Report:
        reached = self._alive.step, max(0, self._alive.found)
        self.stop()
        return self._report(
            Died(reason, by_itself=True, hopeless=hopeless, reached=reached, began=self.ready)
        )

    def _dead(self) -> list[Report]:
        """Of a process that is gone: its last words are how it ended."""
        try:
            code = self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:  # its end of the line is closed, and it does not end
            code = -signal.SIGKILL
        self.stop()  # and what it started
        if code > 0 and not self.ready:
            raise UnfitError(
                f"a worker process on {socket.gethostname()} could not start (exit code {code})",
                action="Its own message is above; --workers 0 does everything in one process",
            )
        if self.unit is None:
            return []
        by_itself = code > 0 or -code in _FAULTS
        how = died_of(-code) if code < 0 else f"exit code {code}"
        said = f"its process ended by {how}" + (
            f" while it held {self._peak >> 20} MiB" if self._peak else ""
        )
        reached = self._alive.step, max(0, self._alive.found)
        return [self._report(Died(said, by_itself=by_itself, reached=reached, began=self.ready))]

    def _report(self, result: Result) -> Report:
        assert self.unit is not None
        unit, self.unit = self.unit, None
        return Report(unit, result, self.name, time.monotonic() - self._begun, self._peak)


def died_of(signal_number: int) -> str:
    """A signal's name, in words.

    >>> died_of(11)
    'segmentation fault (SIGSEGV)'
    """
    try:
        words = f"{signal.strsignal(signal_number) or ''} ({signal.Signals(signal_number).name})"
    except ValueError:
        return f"signal {signal_number}"
    return words[0].lower() + words[1:]
