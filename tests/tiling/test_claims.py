"""A claim keeps others out as long as its process lives, and no longer."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tiling.claims import claimed, forget_claims
from tiling.output import Output
from wsi.errors import OutputBusyError

ROOT = Path(__file__).resolve().parents[2]
HOLD = """\
import sys, time
from pathlib import Path
from tiling.claims import claimed
with claimed(Path(sys.argv[1]), of=Path("x"), shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path, kind: str) -> subprocess.Popen[str]:
    """A process that holds it."""
    words = [sys.executable, "-c", HOLD, str(path), kind]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == "held\n"
    return process


@pytest.mark.parametrize(("theirs", "ours"), [("alone", False), ("alone", True), ("shared", False)])
def test_a_claim_keeps_others_out_until_its_process_is_killed(
    tmp_path: Path, theirs: str, ours: bool
) -> None:
    path = tmp_path / "x.claim"
    process = holder(path, theirs)
    try:
        said = rf"x: .*process {process.pid} on {socket.gethostname()}"
        with pytest.raises(OutputBusyError, match=said), claimed(path, of=Path("x"), shared=ours):
            pytest.fail("two have it")
        threading.Timer(0.3, process.send_signal, [signal.SIGKILL]).start()
        with claimed(path, of=Path("x"), shared=ours, patience=20):
            assert process.wait() == -signal.SIGKILL
            assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    finally:
        process.kill()
        process.wait()
    assert not path.exists()


def test_those_who_share_it_are_there_together_and_the_last_one_deletes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.claim"
    with claimed(path, of=path, shared=True):
        with claimed(path, of=path, shared=True):
            assert path.exists()
        assert path.exists()
        with pytest.raises(OutputBusyError), claimed(path, of=path):
            pytest.fail("two have it")
    assert not path.exists()


def test_many_threads_that_want_it_have_it_one_after_the_other(tmp_path: Path) -> None:
    """Whatever of creating, locking and deleting comes between that of others."""
    path, inside, most, times = tmp_path / "x.claim", [0], [0], [0]

    def work() -> None:
        for _ in range(8):
            with claimed(path, of=path, patience=60):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.0005)
                inside[0] -= 1
                times[0] += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert times == [32]
    assert not path.exists()


def test_a_file_server_may_call_a_deleted_file_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, times = fcntl.flock, [0]

    def stale(*words: object) -> None:
        times[0] += 1
        if times[0] < 3:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        lock(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", stale)
    with claimed(tmp_path / "x.claim", of=tmp_path):
        assert times[0] >= 3


def test_an_error_inside_gives_it_back(tmp_path: Path) -> None:
    path = tmp_path / "x.claim"
    with pytest.raises(ZeroDivisionError), claimed(path, of=path):
        raise ZeroDivisionError
    assert not path.exists()


def test_what_dead_processes_left_is_deleted_and_what_is_held_stays(tmp_path: Path) -> None:
    output = Output(tmp_path)
    with output.lock():
        (output.work / "old.claim").write_text("process 1 on nowhere")
        with output.claim("s"):
            output.clean()
            (held,) = output.work.glob("*.claim")
            with pytest.raises(OutputBusyError, match=str(output.slide_folder("s"))), output.claim("s"):
                pytest.fail("two have it")
        assert not held.exists()
        forget_claims(output.work, "*.claim")
