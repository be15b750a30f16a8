"""Faults of the machine: no room on the disk. Finished work stays, and a re-run completes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cli
from tiling.commit import find_damage, load_commit
from tiling.output import Output
from wsi.synthetic import write_slide

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for seed in (1, 2):
        write_slide(folder / f"s{seed}.svs", seed=seed, lesion=False, size=(1024, 768))
    return folder


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def words(slides: Path, out: Path) -> list[str]:
    return ["tile", str(slides), "-o", str(out), "--mpp", "1", "--tile-size", "64"]


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
import cli
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("limit", [2_000, 60_000, 150_000])
def test_a_write_that_fails_ends_with_74_and_the_next_run_completes(
    slides: Path, tmp_path: Path, limit: int
) -> None:
    """A limit on the size of a file fails like a full disk, at whichever file is first beyond it."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", LIMITED, str(limit), *words(slides, out)]
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert failed.returncode == 74, failed.stderr
    assert "cannot be written" in failed.stderr
    assert "Traceback" not in failed.stderr
    for item in Output(out).items():
        assert not list(find_damage(item, load_commit(item), full=True)), item
    assert cli.main(words(slides, out)) == 0
    assert cli.main(words(slides, tmp_path / "undisturbed")) == 0
    assert tree(out / "slides") == tree(tmp_path / "undisturbed" / "slides")


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_keeps_the_finished_slides(slides: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        f"mount -t tmpfs -o size=1200k none '{disk}' || exit 99; "
        f"'{sys.executable}' -m cli {' '.join(words(slides, disk / 'out'))}; code=$?; "
        f"'{sys.executable}' -m cli verify '{disk}/out' --full --json; "
        f"exit $code"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("no private mounts here")
    assert done.returncode == 74, done.stdout + done.stderr
    assert "Free some space and run the same command again" in done.stderr
    assert '"damaged": 0' in done.stdout
