"""The same work by the workers of a Dask cluster, of real processes that are really killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import toy_steps as toy
from distributed import Client

from tiling.batch import MakeSteps
from tiling.cohort import Outcome, Status
from tiling.manifest import SlideEntry
from tiling.output import Output
from tiling.workers.clusters import connected
from tiling.workers.dask_pool import DaskPool
from tiling.workers.limits import Limits
from tiling.workers.run import OpenPool, run_slides
from tiling.workers.unit import Orders, Work
from wsi.errors import SchedulerLostError
from wsi.synthetic import write_slide

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@dataclass
class Cluster:
    """A scheduler and its workers, each a process of its own."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "scheduler.json"

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(ROOT), str(HERE)])
        quiet = {"DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "critical"}
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                f"distributed.cli.dask_{name}",
                "--scheduler-file",
                str(self.file),
                *words,
            ],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": path} | quiet,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / f"{name}-{len(self.processes)}.log").open("wb"),
        )
        self.processes.append(process)
        return process

    def stop(self) -> None:
        family = [child for one in self.processes for child in _family(one.pid)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process in self.processes:
            process.wait()
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return []


def started(folder: Path) -> Cluster:
    """One worker of one thread, and one that declares a GPU."""
    cluster = Cluster(folder)
    common = ["--nthreads", "1", "--no-dashboard", "--memory-limit", "0", "--death-timeout", "60"]
    cluster.start("scheduler", "--port", "0", "--no-dashboard", "--host", "127.0.0.1")
    cluster.start("worker", *common, "--name", "plain")
    cluster.start("worker", *common, "--name", "with-gpu", "--resources", "GPU=1")
    return cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    one = started(tmp_path_factory.mktemp("cluster"))
    try:
        with connected(scheduler_file=str(one.file)) as client:
            client.wait_for_workers(2, timeout=60)
        yield one
    finally:
        one.stop()


def by(cluster: Cluster, limits: Limits = Limits()) -> OpenPool:  # noqa: B008 - frozen
    """A pool of the cluster's workers."""

    def pool(work: Work, told: object) -> DaskPool:
        stack = contextlib.ExitStack()
        client = stack.enter_context(connected(scheduler_file=str(cluster.file)))
        opened = DaskPool(client, work, limits=limits)
        opened.closing(stack)
        return opened

    return pool


def run(folder: Path, names: list[str], make: MakeSteps, pool: OpenPool) -> dict[str, Outcome]:
    (folder / "log").mkdir(exist_ok=True)
    slides = [SlideEntry(name, Path(f"{name}.svs")) for name in names]
    outcomes = run_slides(Output(folder / "out"), slides, Orders(make), command=["toy"], pool=pool)
    return {outcome.slide_id: outcome for outcome in outcomes}


def undisturbed(folder: Path, names: list[str], make: MakeSteps) -> dict[str, bytes]:
    slides = [SlideEntry(name, Path(f"{name}.svs")) for name in names]
    run_slides(Output(folder / "undisturbed"), slides, Orders(make), command=["toy"])
    return toy.results(Output(folder / "undisturbed"))


def worker_pids(cluster: Cluster) -> dict[str, int]:
    """Process of each worker, by its name."""
    with connected(scheduler_file=str(cluster.file)) as client:
        client.wait_for_workers(2, timeout=60)
        names = {one["id"]: address for address, one in client.scheduler_info()["workers"].items()}
        pids = client.run(os.getpid)
        return {str(name): pids[address] for name, address in names.items()}


def test_what_wants_a_gpu_goes_where_one_is_and_a_poisonous_slide_kills_no_worker(
    cluster: Cluster, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    make = toy.TwoToys(toy.Toy(log, parts=3), toy.Toy(log, parts=3, item="qc", wants_gpu=True))
    sound, bad = [f"sound-{n}" for n in range(6)], ["segfault-1", "killed-1", "hang-1"]
    before = worker_pids(cluster)
    found = run(tmp_path, sound[:3] + bad + sound[3:], make, by(cluster, Limits(stall_seconds=2.0)))
    assert {name for name, one in found.items() if one.status is Status.DONE} == set(sound), found
    assert {found[name].status for name in bad} == {Status.FAILED}
    assert worker_pids(cluster) == before
    assert toy.parents(log, "qc") == {before["with-gpu"]}
    assert toy.parents(log, "tiles") == set(before.values())
    count = Counter(toy.attempts(log))
    assert {count[f"{name}.{part}"] for name in sound for part in range(3)} == {2}  # one of each item
    assert toy.results(Output(tmp_path / "out")) == undisturbed(tmp_path, sound, make)
    # Nothing is left of the run: no process, no plugin.
    assert not [p for pid in before.values() for p in psutil.Process(pid).children() if toy.does_units(p)]


def test_libraries_have_the_workers_threads_and_not_the_nannys_one(cluster: Cluster, tmp_path: Path) -> None:
    slides = [SlideEntry("sound-1", Path("sound-1.svs"))]
    log = tmp_path / "log"
    log.mkdir()
    orders = Orders(toy.LooksAround(log, parts=1), threads=2)
    (one,) = run_slides(Output(tmp_path / "out"), slides, orders, command=["toy"], pool=by(cluster))
    assert one.status is Status.DONE, one.reason
    assert (log / "seen.json").read_text() == '{"torch": 2, "child": 42}'


def test_relative_paths_count_from_where_the_command_was_started(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers were started somewhere else."""
    write_slide(tmp_path / "s.svs", seed=2, lesion=False, size=(512, 384))
    monkeypatch.chdir(tmp_path)
    slides, orders = [SlideEntry("s", Path("s.svs"))], Orders(toy.tiles_alone, toy.open_slide)
    (one,) = run_slides(Output(Path("out")), slides, orders, command=["tile"], pool=by(cluster))
    (two,) = run_slides(Output(Path("here")), slides, orders, command=["tile"])
    assert one.status is two.status is Status.DONE, one.reason
    assert toy.results(Output(Path("out"))) == toy.results(Output(Path("here")))


def test_workers_killed_every_second_lose_no_slide_and_at_most_the_part_in_flight(
    cluster: Cluster, tmp_path: Path
) -> None:
    names = [f"sound-{n}" for n in range(4)]
    make = toy.Toy(tmp_path / "log", parts=25, seconds=0.1)
    rng, ended, kills = random.Random(3), threading.Event(), 0
    pids: set[int] = set()

    def kill() -> None:
        nonlocal kills
        while not ended.wait(rng.uniform(1.5, 2.5)):
            alive = [p for one in cluster.processes[1:] for p in psutil.Process(one.pid).children()]
            if alive:
                victim = rng.choice(alive)
                pids.add(victim.pid)
                victim.send_signal(signal.SIGKILL)
                kills += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        found = run(tmp_path, names, make, by(cluster))
    finally:
        ended.set()
        killer.join()
    assert {one.status for one in found.values()} == {Status.DONE}, found
    assert kills >= 2
    begun = toy.attempts(tmp_path / "log")
    assert len(begun) - len(set(begun)) <= kills
    assert toy.results(Output(tmp_path / "out")) == undisturbed(tmp_path, names, make)


def test_a_lost_scheduler_ends_the_run_with_75_and_another_one_goes_on(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "doomed").mkdir()
    doomed = started(tmp_path / "doomed")
    names = [f"sound-{n}" for n in range(4)]
    make = toy.Toy(tmp_path / "log", parts=12, seconds=0.1)
    (tmp_path / "log").mkdir()

    def kill_when_busy() -> None:
        end = time.monotonic() + 30
        while len(toy.attempts(tmp_path / "log")) < 10 and time.monotonic() < end:
            time.sleep(0.1)
        doomed.processes[0].kill()

    killer = threading.Thread(target=kill_when_busy)
    try:
        with connected(scheduler_file=str(doomed.file)) as client:
            client.wait_for_workers(2, timeout=60)
        killer.start()
        start = time.monotonic()
        with pytest.raises(SchedulerLostError, match=r"scheduler.*again") as lost:
            run(tmp_path, names, make, by(doomed))
        assert time.monotonic() - start < 60
        assert lost.value.exit_code == 75
    finally:
        killer.join()
        doomed.stop()
    before = len(set(toy.attempts(tmp_path / "log")))
    assert before < 4 * 12
    found = run(tmp_path, names, make, by(cluster))
    assert {one.status for one in found.values()} == {Status.DONE}
    begun = toy.attempts(tmp_path / "log")
    assert len(begun) - len(set(begun)) <= 2  # what the two workers had in hand
    assert toy.results(Output(tmp_path / "out")) == undisturbed(tmp_path, names, make)


def test_nobody_who_answers_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiling.workers.clusters._CONNECT_SECONDS", 1)
    with (
        pytest.raises(SchedulerLostError, match=r"tcp://127\.0\.0\.1:9.*dask scheduler"),
        connected(address="tcp://127.0.0.1:9"),
    ):
        pass


def test_a_client_is_no_default_of_the_process(cluster: Cluster) -> None:
    with connected(scheduler_file=str(cluster.file)), pytest.raises(ValueError, match="No client"):
        Client.current()
