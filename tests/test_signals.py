"""Told to end, a command ends within seconds, says that it can go on, leaves nothing, and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from wsi.stopping import Stopped, stop_code, stoppable

ROOT = Path(__file__).resolve().parent.parent


def test_tile_encode_and_train_end_at_once_and_go_on_to_the_same_bytes(
    small_run: Any, tmp_path: Path
) -> None:
    slides, temporary = tmp_path / "slides", tmp_path / "temporary"
    slides.mkdir()
    temporary.mkdir()
    names = [f"a{number}" for number in range(6)]
    for name in names:
        os.link(small_run.slides / "s2.svs", slides / f"{name}.svs")
    rows = [f"{name},{'yes' if number % 2 else 'no'}\n" for number, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("slide_id,label\n" + "".join(rows))
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "signal_driver.py"), str(tmp_path), str(small_run.weights)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"stops": 9, "wrong": []}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_raised_where_the_work_is_and_its_handler_goes_again(number: int, code: int) -> None:
    with pytest.raises(KeyboardInterrupt) as caught, stoppable():
        os.kill(os.getpid(), number)
    assert stop_code(caught.value) == code
    assert signal.getsignal(number) is signal.SIG_DFL


def test_ctrl_c_has_the_code_that_shells_know() -> None:
    assert stop_code(KeyboardInterrupt()) == 130
    assert stop_code(Stopped(signal.SIGTERM)) == 143


def test_a_handler_of_others_is_kept_and_so_is_being_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_in_another_thread_nothing_is_set() -> None:
    seen = []

    def work() -> None:
        with stoppable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]
