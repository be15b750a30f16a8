"""Laws of the doctor: each hole is named with its cure, each trial can fail, and nothing stays behind."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tiling.doctor import disk, machine
from tiling.doctor.disk import ATTEMPTS, kind_of, locks, long_names, mount_of, probing, renames, spells, tried
from tiling.doctor.finding import Finding, in_words
from tiling.doctor.software import HOLES, bundled, judged, libraries, numbers, packages
from wsi.errors import OutputError

# Software -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "bad", "good", "number", "cure"),
    [
        ("openslide-bin", "4.0.0.8", "4.0.1", "CVE-2026-48977", "openslide-bin>=4.0.1.1"),
        ("openslide-bin", "4.0.0.9", "4.0.1.1", "CVE-2026-54604", "openslide-bin>=4.0.1.1"),
        ("openslide-bin", "4.0.0.11", "4.0.1.2", "CVE-2026-54604", "openslide-bin>=4.0.1.1"),
        ("OpenSlide", "3.4.1", "4.0.1", "CVE-2026-48977", "openslide-bin>=4.0.1.1"),
        ("pillow", "12.1.1", "12.3.0", "CVE-2026-40192", "pillow>=12.3"),
        ("pillow", "12.2.0", "13.0.0", "CVE-2026-42309", "pillow>=12.3"),
        ("torch", "2.5.1+cpu", "2.10.0+cpu", "CVE-2025-32434", "torch>=2.10"),
        ("torch", "2.9.1", "2.13.0", "CVE-2026-24747", "torch>=2.10"),
        ("distributed", "2021.9.1", "2026.8.0", "CVE-2021-42343", "distributed>=2026.1.1"),
        ("distributed", "2025.12.0", "2026.1.1", "CVE-2026-23528", "distributed>=2026.1.1"),
        ("bokeh", "3.8.1", "3.8.2", "CVE-2026-21883", "bokeh>=3.8.2"),
    ],
)
def test_a_hole_is_named_with_what_to_install(part: str, bad: str, good: str, number: str, cure: str) -> None:
    advice = judged(part, part, bad).advice
    assert number in advice
    assert f"pip install '{cure}'" in advice
    assert judged(part, part, good).advice == ""
    least = numbers(cure.split(">=")[1])  # what is to be installed has none of them
    assert not [hole for hole in HOLES if hole.part == part and hole.cure and hole.is_in(least)]


@pytest.mark.parametrize(
    ("part", "bad", "good", "number"),
    [("libtiff", "4.7.1", "4.7.2", "CVE-2026-4775"), ("OpenJPEG", "2.5.4", "2.5.5", "OSV-2025-219")],
)
def test_what_a_user_cannot_exchange_is_a_note(part: str, bad: str, good: str, number: str) -> None:
    assert number in judged("x", part, bad).note
    assert judged("x", part, bad).advice == ""
    assert judged("x", part, good).note == ""
    assert judged("x", part, "unknown").note == ""


def test_every_hole_has_a_cure_or_a_guard() -> None:
    assert all(bool(hole.cure) != bool(hole.guard) for hole in HOLES)
    assert all(hole.since < hole.below for hole in HOLES)


def test_what_is_missing_is_to_be_installed_unless_it_is_optional() -> None:
    found = {finding.name: finding for finding in packages(lambda name: None)}
    assert found["torch"].advice == "pip install torch"
    assert "distributed" not in found
    assert "bokeh" not in found


def test_the_libraries_that_packages_bring_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = bundled()
    for where, library in (
        ("openslide", "OpenSlide"), ("imagecodecs", "libtiff"), ("imagecodecs", "OpenJPEG"),
        ("pillow", "libtiff"), ("pillow", "OpenJPEG"), ("opencv", "libtiff"), ("opencv", "OpenJPEG"),
    ):  # fmt: skip
        assert len(numbers(found[where][library])) == 3, (where, library)
    monkeypatch.setattr("cv2.getBuildInformation", lambda: "nothing of it")
    monkeypatch.setattr("imagecodecs.version", lambda kind: {"libtiff": "n/a"})
    assert bundled()["opencv"] == bundled()["imagecodecs"] == {}
    assert "libtiff in pillow" in {finding.name for finding in libraries()}


# The machine ----------------------------------------------------------------------------------------------


def control_groups(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


TWO = {
    "proc/self/cgroup": "0::/user/job\n",
    "sys/fs/cgroup/user/job/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/user/job/memory.max": "max\n",
    "sys/fs/cgroup/user/cpu.max": "max 100000\n",
    "sys/fs/cgroup/user/memory.max": "2147483648\n",
}
ONE = {
    "proc/self/cgroup": "4:memory:/docker/x\n2:cpu,cpuacct:/docker/x\n0::/\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "2147483648",
}


@pytest.mark.parametrize("files", [TWO, ONE])
def test_a_container_s_limits_are_found(tmp_path: Path, files: dict[str, str]) -> None:
    root = control_groups(tmp_path, files)
    assert machine.cpu_quota(root) == 1.5
    assert machine.memory_limit(root) == 2 << 30


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    most = str(2**63 - 4096)
    files = {name: text.replace("150000", "-1").replace("2147483648", most) for name, text in ONE.items()}
    root = control_groups(tmp_path, files)
    assert machine.cpu_quota(root) is None
    assert machine.memory_limit(root) is None
    assert machine.cpu_quota(tmp_path / "nothing") is machine.available_memory(tmp_path / "nothing") is None


def test_limits_are_told_with_what_follows() -> None:
    assert machine.processors(8, quota=None).value == "8"
    assert "--workers 2" in machine.processors(8, quota=2.5).note
    assert machine.memory(1 << 30, available=64 << 30).advice
    assert not machine.memory(None, available=64 << 30).advice
    assert machine.usable_processors() <= (os.cpu_count() or 1)


# The disk -------------------------------------------------------------------------------------------------

MOUNTS = (
    "/dev/sda / ext4 rw 0 0\nserver:/x /data nfs4 rw 0 0\n/dev/sdb /data/my\\040disk xfs rw 0 0\n"
    "bucket /s3 fuse.s3fs rw 0 0\noverlay /box overlay rw 0 0\ntmpfs /data/my\\040disk/hidden tmpfs rw 0 0\n"
)


@pytest.mark.parametrize(
    ("folder", "kind", "words"),
    [
        ("/home/x", "ext4", "on /"),
        ("/data/out", "nfs4 (network)", "NFS is shared by machines"),
        ("/database", "ext4", "on /"),
        ("/data/my disk/out", "xfs", "on /data/my disk"),
        ("/data/my disk/hidden/out", "tmpfs", "gone when the machine restarts"),
        ("/box/out", "overlay", "gone with the container"),
    ],
)
def test_the_kind_of_a_file_system_is_told_with_what_it_means(folder: str, kind: str, words: str) -> None:
    found = kind_of(Path(folder), MOUNTS)
    assert (found.value, found.advice) == (kind, "")
    assert words in found.note


def test_an_object_store_is_no_place_for_results_and_the_last_mount_counts() -> None:
    assert "no locks" in kind_of(Path("/s3/out"), MOUNTS).advice
    assert mount_of(Path("/data/a"), MOUNTS + "x /data ext4 rw 0 0\n") == ("ext4", Path("/data"))
    assert kind_of(Path("/x"), "").value == "not known"


def test_a_sound_disk_passes_every_trial_and_nothing_stays(tmp_path: Path) -> None:
    found = {finding.name: finding for finding in disk.disk(tmp_path / "new" / "out")}
    for name in ["output can be written", *list(ATTEMPTS)[:-1]]:
        assert found[name].value.startswith("yes"), found[name]
        assert found[name].advice == ""
    assert found["longest name"].figures["bytes"] == 255
    assert found["free disk"].figures["bytes"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays_there(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    list(disk.disk(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_lock_that_shuts_nobody_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda *arguments: None)
    found = locks(tmp_path)
    monkeypatch.setattr(fcntl, "flock", real)
    assert (found.value, bool(found.advice)) == ("no: a second process was let in", True)


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert tried("locks", locks, tmp_path).value.startswith("no: its file system does not lock files")


def test_a_rename_that_replaces_or_copies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(self: Path, target: Path) -> Path:
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.move(self, target))

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    monkeypatch.setattr(Path, "rename", replace)
    assert renames(tmp_path / "one").value == "no: what was there was replaced"
    monkeypatch.setattr(Path, "rename", shutil.copytree)
    assert renames(tmp_path / "two").value == "no: it did not arrive whole"


def test_a_file_system_that_spells_otherwise_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self, **more: self.name == "NAME" or real(self, **more))
    monkeypatch.setattr("os.listdir", lambda folder: ["name", "ne\u0301"])
    assert spells(tmp_path).value == "no: A and a are one name, accents are spelled otherwise"


def test_short_names_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.touch

    def touch(self: Path, **more: object) -> None:
        if len(os.fsencode(self.name)) > 143:
            raise OSError(36, "File name too long")
        real(self)

    monkeypatch.setattr(Path, "touch", touch)
    found = long_names(tmp_path)
    assert (found.figures["bytes"], found.advice) == (143, "Keep slide ids under 38 letters here")


def test_an_output_that_cannot_be_written_is_told_and_nothing_is_tried(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = {finding.name: finding for finding in disk.disk(tmp_path / "file" / "out")}
    assert found["output can be written"].advice
    assert not set(ATTEMPTS) & set(found)
    with probing(tmp_path / "file") as (_, fault):
        assert isinstance(fault, OutputError)


def test_a_read_only_folder_is_told_to_who_is_not_root(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    script = (
        "import os, sys; from pathlib import Path; from tiling.doctor.disk import disk\n"
        "os.setuid(65534)\n"
        "print({f.name: f.value for f in disk(Path(sys.argv[1]))}['output can be written'])"
    )
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o755)
    for step in (tmp_path, *tmp_path.parents[:2]):
        step.chmod(step.stat().st_mode | stat.S_IXGRP | stat.S_IXOTH)
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "no: cannot be written (Permission denied)", done.stderr


def test_findings_are_told_in_a_line_each() -> None:
    found = [Finding("a", "1"), Finding("b", "2", "do it", "since")]
    assert in_words(found) == {"a": "1", "b": "2  (since)  <- do it"}
