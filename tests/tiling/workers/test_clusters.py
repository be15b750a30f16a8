"""Clusters that a file describes, and commands that work on them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import cli
from tiling.output import Output
from tiling.workers.clusters import read_cluster
from wsi.errors import UsageError
from wsi.synthetic import write_slide

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for seed in (1, 2):
        write_slide(folder / f"s{seed}.svs", seed=seed, lesion=False, size=(1024, 768))
    return folder


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def words(slides: Path, out: Path, *more: str) -> list[str]:
    return ["tile", str(slides), "-o", str(out), "--mpp", "1", "--tile-size", "64", *more]


def microtome(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *words],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_file_says_which_cluster_and_what_its_class_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text('kind = "slurm"\njobs = 20\n[options]\ncores = 8\nqueue = "slides"\n')
    kind, jobs, options = read_cluster(path)
    assert (kind, jobs) == ("slurm", 20)
    assert options == {"cores": 8, "queue": "slides"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind = ", "no TOML"),
        ('kind = "cray"', "its kind is 'cray'"),
        ("jobs = 3", "its kind is None"),
        ('kind = "pbs"\njobs = 0', "jobs is 0"),
        ('kind = "pbs"\njobs = true', "jobs is True"),
        ('kind = "pbs"\noptions = 3', "options is no table"),
        ('kind = "pbs"\nworkers = 3', "has 'workers', which means nothing here"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "cluster.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=said) as refused:
        read_cluster(path)
    assert str(path) in str(refused.value)
    assert "slurm, pbs, lsf, sge" in str(refused.value)


SUBMIT = """\
#!/bin/sh
# A queueing system of one machine: the job is a process group, and its number that of the group.
copy=$(mktemp -p "{folder}")
for script in "$@"; do :; done
if [ -n "$script" ]; then cp "$script" "$copy"; else cat > "$copy"; fi
grep '^{mark}' "$copy" >> "{folder}/asked"
setsid sh "$copy" > /dev/null 2>&1 < /dev/null &
echo "{said}"
"""
CANCEL = """\
#!/bin/sh
echo "$@" >> "{folder}/cancelled"
for job in "$@"; do kill -9 -- "-${job%%.*}"; done
"""


@dataclass(frozen=True)
class System:
    """A queueing system, by its manual."""

    submit: str
    cancel: str
    mark: str
    """Of lines of the script that are meant for it, as grep takes it."""
    said: str
    """When a job was submitted."""


SYSTEMS = {
    "slurm": System("sbatch", "scancel", "#SBATCH", "Submitted batch job $!"),
    "pbs": System("qsub", "qdel", "#PBS", "$!.server"),
    "lsf": System("bsub", "bkill", "#BSUB", "Job <$!> is submitted to queue <slides>."),
    "sge": System("qsub", "qdel", "#\\$", 'Your job $! (\\"dask-worker\\") has been submitted'),
}


def queueing_system(folder: Path, system: System) -> dict[str, str]:
    """The environment of a machine with its commands."""
    folder.mkdir()
    known = {"folder": str(folder), "mark": system.mark, "said": system.said}
    for name, text in ((system.submit, SUBMIT), (system.cancel, CANCEL)):
        for key, value in known.items():
            text = text.replace(f"{{{key}}}", value)  # noqa: PLW2901 - to the end
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("kind", SYSTEMS)
def test_jobs_of_a_queueing_system_do_a_command_and_end_with_it(
    slides: Path, tmp_path: Path, kind: str
) -> None:
    """Of each a stand-in that takes and gives what its manual says."""
    path, commands, jobs = tmp_path / "cluster.toml", tmp_path / "commands", 2 if kind == "slurm" else 1
    path.write_text(
        f'kind = "{kind}"\njobs = {jobs}\n[options]\ncores = 1\nprocesses = 1\nmemory = "2GB"\n'
        'walltime = "12:00"\nqueue = "slides"\ninterface = "lo"\n'
        'worker_extra_args = ["--lifetime", "11h", "--lifetime-stagger", "10m"]\n'
    )
    asked = words(slides / "s1.svs", tmp_path / "out", "--cluster", str(path), "--json")
    done = microtome(*asked, **queueing_system(commands, SYSTEMS[kind]), STARTED_BY=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "dashboard http" in done.stderr
    assert {json.loads(line)["status"] for line in done.stdout.splitlines()} == {"done"}
    assert cli.main(words(slides / "s1.svs", tmp_path / "here")) == 0
    assert tree(tmp_path / "out" / "slides") == tree(tmp_path / "here" / "slides")
    submitted = (commands / "asked").read_text()
    assert submitted.count("12:00") == len(re.findall(r"-[pq] slides", submitted)) == jobs
    assert len((commands / "cancelled").read_text().split()) == jobs
    left = [process for process in psutil.process_iter() if _started_by(process, tmp_path)]
    _, alive = psutil.wait_procs(left, timeout=15)
    assert not alive


def test_jobs_that_cannot_be_submitted_end_the_run(slides: Path, tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text('kind = "slurm"\n[options]\ncores = 1\nmemory = "2GB"\ninterface = "lo"\n')
    done = microtome(*words(slides, tmp_path / "out", "--cluster", str(path)))
    assert done.returncode == 2
    assert "no job can be submitted" in done.stderr
    assert "sbatch" in done.stderr
    assert "Traceback" not in done.stderr


def _started_by(process: psutil.Process, test: Path) -> bool:
    """Whether that test, or whoever it started, did: others have clusters of their own meanwhile."""
    try:
        return process.environ().get("STARTED_BY") == str(test)
    except psutil.Error:
        return False


def test_a_class_that_refuses_its_options_is_told_of(slides: Path, tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text('kind = "slurm"\n[options]\nno_such_option = 3\n')
    done = microtome(*words(slides, tmp_path / "out", "--cluster", str(path)))
    assert done.returncode == 2
    assert "SLURMCluster" in done.stderr
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr


def test_two_clusters_and_workers_of_this_machine_are_refused_before_any_work(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, said in (
        (("--scheduler", "tcp://a:1", "--cluster", "c.toml"), "--scheduler and --cluster name two clusters"),
        (("--scheduler", "tcp://a:1", "--workers", "3"), "--workers is for this machine"),
        (("--workers", "-1"), "--workers is -1"),
        (("--threads", "0"), "--threads is 0"),
        (("--workers", "1", "--memory-limit", "0"), "--memory-limit is 0"),
        (("--workers", "1", "--stall-seconds", "-3"), "--stall-seconds is -3"),
    ):
        assert cli.main(words(slides, tmp_path / "out", *more)) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_ends_at_once_leaves_nobody_and_goes_on(slides: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for n in range(12):
        os.link(slides / "s1.svs", many / f"s{n:02}.svs")
    running = subprocess.Popen(
        [sys.executable, "-m", "cli", *words(many, tmp_path / "out", "--workers", "2")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    running.stdout.readline()  # the first slide is done
    children = psutil.Process(running.pid).children()
    start = time.monotonic()
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert time.monotonic() - start < 5
    assert "again" in err
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    (log,) = (tmp_path / "out" / "runs").glob("*.json")
    assert json.loads(log.read_bytes())["slides"]
    done = Output(tmp_path / "out").slide_ids()
    assert 1 <= len(done) < 12
    assert cli.main(words(many, tmp_path / "out")) == 0
    assert cli.main(words(many, tmp_path / "whole")) == 0
    assert tree(tmp_path / "out" / "slides") == tree(tmp_path / "whole" / "slides")
