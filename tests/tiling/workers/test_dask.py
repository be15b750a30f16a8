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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import toy_steps as toy
from distributed import Client

from tiling.batch import MakeSteps
from tiling.cohort import Outcome, Status
from tiling.manifest import SlideEntry
from tiling.output import Output
from tiling.versions import versions
from tiling.workers.announce import announced
from tiling.workers.clusters import connected
from tiling.workers.dask_pool import Crew, DaskPool
from tiling.workers.limits import Limits
from tiling.workers.pool import Pool
from tiling.workers.run import OpenPool, run_slides
from tiling.workers.unit import Died, Orders, Unit, Work
from wsi.errors import SchedulerLostError, UnfitError, UsageError
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

    def start(self, name: str, *words: str, **environment: str) -> subprocess.Popen[bytes]:
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
            env=os.environ | {"PYTHONPATH": path} | quiet | environment,
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


def unsaid(text: str) -> None:
    """Nobody listens."""


def by(
    cluster: Cluster,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    say: Callable[[str], None] = unsaid,
) -> OpenPool:
    """A pool of the cluster's workers."""

    def pool(work: Work, told: object) -> DaskPool:
        stack = contextlib.ExitStack()
        client = stack.enter_context(connected(scheduler_file=str(cluster.file)))
        opened = DaskPool(client, work, limits=limits, say=say)
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


WORKER = ("--nthreads", "1", "--no-dashboard", "--memory-limit", "0", "--death-timeout", "60")


@contextlib.contextmanager
def joined(cluster: Cluster, name: str, *words: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """One more worker, for as long."""
    process = cluster.start("worker", *WORKER, "--name", name, *words, **environment)
    try:
        with connected(scheduler_file=str(cluster.file)) as client:
            client.wait_for_workers(3, timeout=60)
        yield process
    finally:
        family = _family(process.pid)
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        cluster.processes.remove(process)
        psutil.wait_procs(family, timeout=5)


def test_a_worker_that_cannot_take_part_is_left_out_by_name_and_the_others_do_all(
    cluster: Cluster, tmp_path: Path
) -> None:
    names = [f"sound-{n}" for n in range(8)]
    make, said = toy.UnfitWhereTold(tmp_path / "log", parts=3, seconds=0.1), list[str]()
    with joined(cluster, "other", TOY_UNFIT="the worker has numpy 1.0"):
        found = run(tmp_path, names, make, by(cluster, say=said.append))
        (left_out,) = (text for text in said if "left out" in text)
    assert "other is left out: the worker has numpy 1.0" in left_out
    assert {one.status for one in found.values()} == {Status.DONE}, found
    assert toy.parents(tmp_path / "log", "tiles") <= set(worker_pids(cluster).values())
    assert len(toy.attempts(tmp_path / "log")) == 8 * 3


def test_where_no_worker_can_take_part_the_run_ends_with_what_they_said(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = time.monotonic()
    with pytest.raises(UsageError, match="no such thing"):  # wrong settings: nobody is waited for
        run(tmp_path, ["sound-1", "sound-2"], toy.Unmakable(tmp_path / "log"), by(cluster))
    assert time.monotonic() - start < 40
    # Another version: one that is right may come.
    monkeypatch.setattr("tiling.workers.dask_pool._FIT_SECONDS", 0.5)
    other = replace(work_in(tmp_path), versions={"numpy": "1.0"})
    output = Output(tmp_path / "out")
    with output.lock(), announced(output, other.run), contextlib.closing(by(cluster)(other, unsaid)) as pool:
        pool.give(Unit(SlideEntry("sound-1", Path("sound-1.svs"))))
        with pytest.raises(UnfitError, match=r"has numpy .*was started with 1\.0"):
            wait_for_ever(pool)
    assert not output.slide_ids()


def test_a_worker_without_microtome_is_named_before_any_work(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "bare" / "tiling").mkdir(parents=True)
    (tmp_path / "bare" / "tiling" / "__init__.py").write_text("raise ModuleNotFoundError('none is here')")
    with (
        joined(cluster, "bare", PYTHONPATH=str(tmp_path / "bare")),
        pytest.raises(UnfitError, match=r"imported by tcp://[0-9.:]+ .*none is here.*Install the same"),
    ):
        run(tmp_path, ["sound-1"], toy.Toy(tmp_path / "log"), by(cluster))
    assert not toy.attempts(tmp_path / "log")


def wait_for_ever(pool: Pool) -> None:
    end = time.monotonic() + 40
    while time.monotonic() < end:
        assert not pool.wait()


def work_in(folder: Path) -> Work:
    (folder / "log").mkdir(exist_ok=True)
    return Work(Orders(toy.Toy(folder / "log")), folder / "out", Path.cwd(), "a run", versions())


def test_a_worker_that_has_got_over_it_takes_part_again(cluster: Cluster, tmp_path: Path) -> None:
    """As when a folder is mounted late: both say that they cannot, and a moment later they can."""
    make, said = toy.UnfitForAWhile(tmp_path / "log", parts=3), list[str]()
    not_yet = tmp_path / "not-yet"
    not_yet.touch()
    threading.Timer(4.0, not_yet.unlink).start()
    names = [f"sound-{n}" for n in range(6)]
    found = run(tmp_path, names, make, by(cluster, say=said.append))
    assert {one.status for one in found.values()} == {Status.DONE}, found
    assert len([text for text in said if "is left out" in text]) >= 2
    assert toy.parents(tmp_path / "log", "tiles") == set(worker_pids(cluster).values())


def test_a_gpu_that_cannot_be_prepared_ends_the_run_with_the_reason(cluster: Cluster, tmp_path: Path) -> None:
    """What wants it is not given to workers without one."""
    log = tmp_path / "log"
    make = toy.TwoToys(toy.Toy(log, parts=2), toy.WantsWhatIsNotThere(log, item="qc", wants_gpu=True))
    with pytest.raises(UsageError, match="no encoder 'x'"):
        run(tmp_path, ["sound-1", "sound-2"], make, by(cluster))


def test_a_worker_whose_gpu_is_of_no_use_does_what_wants_none(cluster: Cluster, tmp_path: Path) -> None:
    """Another one with a GPU does the rest, and it is said once."""
    log, said = tmp_path / "log", list[str]()
    make = toy.TwoToys(toy.Toy(log, parts=2, seconds=0.1), toy.UnfitGpu(log, item="qc", wants_gpu=True))
    ill = {"TOY_UNFIT": "its GPU is of another kind"}
    with joined(cluster, "ill", "--resources", "GPU=1", **ill) as nanny:
        parents = {process.pid for process in psutil.Process(nanny.pid).children()}
        found = run(tmp_path, [f"sound-{n}" for n in range(12)], make, by(cluster, say=said.append))
    assert {one.status for one in found.values()} == {Status.DONE}, found
    (words,) = (text for text in said if "left out" in text)
    assert "its GPU is of another kind" in words
    assert toy.parents(log, "qc") == {worker_pids(cluster)["with-gpu"]}
    assert parents & toy.parents(log, "tiles")


def test_a_worker_whose_processes_die_at_once_is_left_out(cluster: Cluster, tmp_path: Path) -> None:
    names, said = [f"sound-{n}" for n in range(4)], list[str]()
    make = toy.DiesWhereTold(tmp_path / "log", parts=3, seconds=0.5)
    with joined(cluster, "ill", TOY_DIES="1"):
        found = run(tmp_path, names, make, by(cluster, say=said.append))
    assert {one.status for one in found.values()} == {Status.DONE}, found
    (words,) = (text for text in said if "left out" in text)
    assert "ill is left out: processes on" in words
    assert "SIGILL" in words


def test_a_worker_that_is_frozen_keeps_nobody_from_ending(cluster: Cluster, tmp_path: Path) -> None:
    output, work = Output(tmp_path / "out"), work_in(tmp_path)
    with joined(cluster, "frozen") as nanny, output.lock(), announced(output, work.run):
        pool = by(cluster)(work, unsaid)
        frozen = psutil.Process(nanny.pid).children(recursive=True)
        try:
            for process in frozen:
                process.suspend()
            start = time.monotonic()
            pool.close()
            assert time.monotonic() - start < 30
        finally:
            for process in frozen:
                process.resume()


def test_who_is_waited_for_is_said(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers with a GPU may have left for good while there is work for them."""
    monkeypatch.setattr("tiling.workers.dask_pool.GPU", "WHAT-NOBODY-HAS")
    monkeypatch.setattr("tiling.workers.dask_pool._LOST_SECONDS", 0.0)
    work, output, said = work_in(tmp_path), Output(tmp_path / "out"), list[str]()
    with output.lock(), announced(output, work.run):
        pool = by(cluster, say=said.append)(work, unsaid)
        try:
            assert pool.room(on_gpu=False) > 0
            assert not said
            pool.give(Unit(SlideEntry("sound-1", Path("sound-1.svs")), on_gpu=True))
            assert not pool.wait()
        finally:
            pool.close()
    (words,) = said
    assert "waiting for workers with the resource WHAT-NOBODY-HAS" in words


DRIVER = """\
import sys; sys.path += [sys.argv[1], sys.argv[2]]
from pathlib import Path
import toy_steps as toy, test_dask
if __name__ == "__main__":
    folder = Path(sys.argv[3])
    cluster = test_dask.Cluster(Path(sys.argv[4]))
    make = toy.Toy(folder / "log", parts=10, seconds=0.3)
    test_dask.run(folder, ["sound-1", "sound-2"], make, test_dask.by(cluster))
"""


def test_a_run_after_one_whose_command_was_killed_needs_not_wait(cluster: Cluster, tmp_path: Path) -> None:
    """The workers' processes know nothing of it, and are in the middle of the same slides."""
    script, log = tmp_path / "driver.py", tmp_path / "log"
    script.write_text(DRIVER)
    log.mkdir()
    words = [sys.executable, str(script), str(ROOT), str(HERE), str(tmp_path), str(cluster.folder)]
    driver = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while len(toy.attempts(log)) < 6:
            assert driver.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()
    names, make = ["sound-1", "sound-2"], toy.Toy(log, parts=10, seconds=0.3)
    found = run(tmp_path, names, make, by(cluster))
    assert {one.status for one in found.values()} == {Status.DONE}, found
    begun = toy.attempts(log)
    assert len(begun) - len(set(begun)) <= 2  # what the two workers had in hand
    assert toy.results(Output(tmp_path / "out")) == undisturbed(tmp_path, names, replace(make, seconds=0.0))


class FakeChild:
    """Hears nothing, and can be stopped."""

    def __init__(self, crew: list[Crew], work: bytes, **settings: object) -> None:
        crew[0].teardown(None)  # the run ends in this very moment
        self.gone = False

    def stop(self) -> None:
        self.gone = True


def test_a_process_that_starts_while_the_run_ends_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Told:
        memory_manager = SimpleNamespace(memory_limit=8 << 30)
        state = SimpleNamespace(nthreads=4, total_resources={"GPU": 1.0})

    crew = Crew("crew", work_in(tmp_path), Limits())
    crew.setup(Told())
    assert crew._limits.memory_bytes == 1 << 30  # for each thread, and four for the GPU's process
    assert crew._gpu_limits.memory_bytes == 4 << 30
    children: list[FakeChild] = []

    def start(work: bytes, **settings: object) -> FakeChild:
        children.append(FakeChild([crew], work))
        return children[0]

    monkeypatch.setattr("tiling.workers.dask_pool.Child", start)
    crew._start(None)
    assert children[0].gone
    report = crew.do(Unit(SlideEntry("sound-1", Path("sound-1.svs"))))
    assert isinstance(report.result, Died)
    assert len(children) == 1


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
