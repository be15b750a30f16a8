"""Faults of the machine: writes that fail, no room, no permission. Finished work stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="mounting, and becoming somebody else, need root")


def one_slide(small_run: Any) -> list[str]:
    """The command, but for -o: the smallest that there is."""
    slide, weights = str(small_run.slides / "s2.svs"), str(small_run.weights)
    return ["run", slide, "-m", str(small_run.model), "--weights", weights, "--device", "cpu"]


def drive(driver: str, *words: str, private: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tests" / driver), *words]
    return subprocess.run(
        [*(["unshare", "-m"] if private else []), *command],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_whichever_change_of_a_file_fails_the_run_ends_with_74_and_the_next_one_completes(
    small_run: Any, tmp_path: Path
) -> None:
    """Every write, sync, rename, new file, new folder and deletion of a run of six steps, each once."""
    done = drive("fault_driver.py", json.dumps(one_slide(small_run)), str(tmp_path), "4", "1")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr  # of a thread, or at the very end
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["changes"] > 400
    assert found["packed"] > 10
    assert found["survived"] == []
    assert {"open", "write", "fsync", "rename", "mkdir", "unlink"} <= set(found["kinds"])


@AS_ROOT
def test_on_a_full_disk_whatever_does_not_fit_finished_items_stay_and_with_room_the_run_completes(
    small_run: Any, tmp_path: Path
) -> None:
    """Full by size, and by number of files."""
    done = drive("full_disk_driver.py", json.dumps(one_slide(small_run)), str(tmp_path), "7", private=True)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("no private mounts here")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr  # of a thread, or at the very end
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["disks"] == 14
    assert len(set(found["places"])) >= 8, found["places"]  # another kind of file is the first not to fit


REFUSED = textwrap.dedent(
    """
    import contextlib, io, json, os, shutil, sys
    import cli
    import wsi.slide
    from mil.encoders import load_encoder
    def opened(self):
        raise AssertionError("a slide was opened")
    wsi.slide.Slide._open = opened
    user, commands, place, scratch = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]
    if user:  # who cannot import what lies in root's home: so everything is imported before
        shutil.copytree(place, scratch)
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            for words in commands:
                cli.main([word.replace(place, scratch) for word in words])
        os.setgid(user)
        os.setuid(user)
    found = []
    for words in commands:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = cli.main(words)
        found.append([code, said.getvalue()])
    print(json.dumps(found))
    """
)


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that nobody may read; those of pytest are its user's alone."""
    with tempfile.TemporaryDirectory(prefix="microtome-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@AS_ROOT
@pytest.mark.parametrize("way", ["nobody", "read-only"])
def test_an_output_that_cannot_be_written_is_refused_by_name_before_any_slide_is_opened(
    small_run: Any, open_to_all: Path, way: str
) -> None:
    """As an ordinary user (the superuser may write anywhere), and on a disk that is mounted read-only."""
    place, scratch = open_to_all / "place", open_to_all / "scratch"
    shutil.copytree(small_run.weights.parent, open_to_all / "given")
    (open_to_all / "given").chmod(0o755)
    (open_to_all / "given" / small_run.weights.name).chmod(0o644)
    copies = {name: open_to_all / "given" / path.name for name, path in small_run._asdict().items()}
    run, slides = one_slide(small_run._replace(**copies)), str(copies["slides"])
    (place / "there" / "slides" / "s2" / "store.zarr" / "tiles").mkdir(parents=True)
    (place / "there" / "slides" / "s2" / "store.zarr" / "tiles" / "commit.json").write_text("{}")
    there, fresh = str(place / "there"), str(place / "fresh")
    commands = [[*run, "-o", fresh], [*run, "-o", there]]
    commands += [["tile", slides, "-o", out] for out in (fresh, there)]
    commands += [["heatmap", there, "-m", str(copies["model"])], ["report", there]]
    words = [sys.executable, "-c", REFUSED, "65534" if way == "nobody" else "0", json.dumps(commands)]
    words += [str(place), str(scratch)]
    if way == "read-only":
        bind = f"mount --bind '{place}' '{place}' && mount -o remount,ro,bind '{place}'"
        mount = f'{bind} || exit 99; exec "$@"'
        words = ["unshare", "-m", "sh", "-c", mount, "sh", *words]
    done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("no private mounts here")
    assert done.returncode == 0, done.stderr
    for words, (code, said) in zip(commands, json.loads(done.stdout), strict=True):
        out = fresh if fresh in words else there
        assert code == 74, (words, said)
        assert said.startswith(f"ERROR {out}"), said
        assert "cannot be written (" in said
        assert said.count("\n") == 1


def test_results_that_nobody_can_take_any_more_are_an_output_that_cannot_be_written(small_run: Any) -> None:
    """Standard output on a full disk."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cli", "info", str(small_run.slides / "s2.svs"), "--json"],
            cwd=ROOT, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 74, done.stderr
    assert "standard output" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
