"""What a slide does to its process, no other slide feels."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pytest
import toy_steps as toy

from tiling.batch import MakeSteps
from tiling.cohort import Outcome, Status
from tiling.manifest import SlideEntry
from tiling.output import Output
from tiling.store import TileStore
from tiling.workers import supervisor
from tiling.workers.arguments import local_gpus
from tiling.workers.children import Children
from tiling.workers.limits import Limits, machine_memory
from tiling.workers.run import run_slides
from tiling.workers.unit import Orders, Work
from wsi.errors import DeviceLostError, MicrotomeError, UsageError
from wsi.synthetic import write_slide

ROOT = Path(__file__).resolve().parents[3]
UNLIMITED = Limits()


def run(
    folder: Path,
    names: list[str],
    make: MakeSteps,
    *,
    workers: int = 2,
    limits: Limits = UNLIMITED,
    threads: int = 1,
    gpus: Sequence[Mapping[str, str]] = (),
) -> dict[str, Outcome]:
    """Toy slides by real processes, into ``folder/out``."""
    (folder / "log").mkdir(exist_ok=True)

    def pool(work: Work, told: object) -> Children:
        return Children(work, workers=workers, limits=limits, gpus=gpus)

    slides = [SlideEntry(name, Path(f"{name}.svs")) for name in names]
    outcomes = run_slides(
        Output(folder / "out"), slides, Orders(make, threads=threads), command=["toy"], pool=pool
    )
    return {outcome.slide_id: outcome for outcome in outcomes}


def undisturbed(folder: Path, names: list[str], make: MakeSteps) -> dict[str, bytes]:
    """What one process makes of them."""
    slides = [SlideEntry(name, Path(f"{name}.svs")) for name in names]
    run_slides(Output(folder / "undisturbed"), slides, Orders(make), command=["toy"])
    return toy.results(Output(folder / "undisturbed"))


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    yield
    assert not [child for child in psutil.Process().children() if toy.does_units(child)]


def test_a_slide_that_takes_its_process_along_fails_by_name_and_no_other(tmp_path: Path) -> None:
    sound = [f"sound-{n}" for n in range(6)]
    bad = ["segfault-1", "killed-1", "leaves-1", "hang-1", "hog-1", "damaged-1", "bug-1", "empty-1"]
    names = [name for pair in zip(sound, bad, strict=False) for name in pair] + bad[len(sound) :]
    make = toy.Toy(tmp_path / "log")
    limits = Limits(memory_bytes=600 << 20, stall_seconds=1.0)
    found = run(tmp_path, names, make, limits=limits)
    assert {name for name, one in found.items() if one.status is Status.DONE} == set(sound)
    assert found["empty-1"].status is Status.NO_TISSUE
    for name, word in (
        ("segfault-1", "SIGSEGV"),
        ("killed-1", "SIGKILL"),
        ("leaves-1", "exit code 3"),
        ("hang-1", "no progress for 1 s"),
        ("hog-1", "GiB of memory"),
        ("damaged-1", "is damaged"),
        ("bug-1", "unexpected ZeroDivisionError"),
    ):
        assert found[name].status is Status.FAILED
        assert word in found[name].reason
        assert name in found[name].reason
        assert "\n" not in found[name].reason
    assert found["bug-1"].exit_code == 70
    # A sound part is begun once, whatever its neighbours do; so is a hopeless one.
    count = Counter(toy.attempts(make.log))
    assert {count[f"{name}.{part}"] for name in sound for part in range(4)} == {1}
    assert count["hang-1.0"] == 1
    assert count["segfault-1.0"] == count["hog-1.0"] == 2  # once more, in a fresh process
    assert toy.results(Output(tmp_path / "out")) == undisturbed(tmp_path, sound, make)


def test_processes_killed_at_any_time_cost_no_more_than_the_part_in_flight(tmp_path: Path) -> None:
    names = [f"sound-{n}" for n in range(5)]
    make = toy.Toy(tmp_path / "log", parts=12, seconds=0.1)
    rng, ended, kills = random.Random(5), threading.Event(), [0]

    def kill() -> None:
        while not ended.wait(rng.uniform(0.5, 1.5)):
            children = [child for child in psutil.Process().children() if toy.does_units(child)]
            if children:
                rng.choice(children).send_signal(signal.SIGKILL)
                kills[0] += 1

    make.log.mkdir()
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        found = run(tmp_path, names, make)
    finally:
        ended.set()
        killer.join()
    assert {one.status for one in found.values()} == {Status.DONE}, found
    assert kills[0] >= 3
    begun = toy.attempts(make.log)
    assert len(begun) - len(set(begun)) <= kills[0]
    assert toy.results(Output(tmp_path / "out")) == undisturbed(tmp_path, names, make)


def test_a_large_slide_is_shared_and_the_bytes_do_not_tell(tmp_path: Path) -> None:
    """Tiles and features of one slide by two processes, a shard each at a time, and by one alone."""
    slide = tmp_path / "s.svs"
    write_slide(slide, seed=2, lesion=True, size=(1536, 1024))
    files = [SlideEntry("s", slide)]
    orders = Orders(toy.real_steps, toy.open_slide)

    def pool(work: Work, told: object) -> Children:
        return Children(work, workers=2, limits=UNLIMITED)

    (one,) = run_slides(Output(tmp_path / "one"), files, orders, command=["run"])
    (two,) = run_slides(Output(tmp_path / "two"), files, orders, command=["run"], pool=pool)
    assert one.status is two.status is Status.DONE, two.reason
    assert toy.results(Output(tmp_path / "one")) == toy.results(Output(tmp_path / "two"))
    (log,) = (tmp_path / "two" / "runs").glob("*.json")
    (told,) = json.loads(log.read_bytes())["slides"]
    assert len(told["work"]["workers"]) == 2
    # Tissue and fit, the blocks, the rest and the features' beginning, the features' shards, their end.
    assert told["work"]["units"] > 2 * 3
    steps = {step["step"]: step for step in told["steps"]}
    assert [*steps] == ["tissue", "tiles", "features/timm-test_vit"]
    assert steps["tiles"]["activities"].keys() >= {"decode", "stain", "quality", "write"}
    assert not list((tmp_path / "two" / ".work").glob("*journal*"))


def test_processes_end_with_their_parent(tmp_path: Path) -> None:
    """Also with one that is killed, in the middle of a slide: nobody writes after it."""
    (tmp_path / "log").mkdir()
    script = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "from pathlib import Path\n"
        "import toy_steps as toy\n"
        "from tiling.output import Output\n"
        "from tiling.workers.children import Children\n"
        "from tiling.workers.limits import Limits\n"
        "from tiling.workers.run import run_slides\n"
        "from tiling.workers.unit import Orders\n"
        "from tiling.manifest import SlideEntry\n"
        "folder = Path(sys.argv[2])\n"
        "make = toy.Toy(folder / 'log', parts=1000, seconds=0.02)\n"
        "pool = lambda work, told: Children(work, workers=2, limits=Limits())\n"
        "slides = [SlideEntry(name, Path(name)) for name in ('sound-1', 'sound-2')]\n"
        "run_slides(Output(folder / 'out'), slides, Orders(make), command=['toy'], pool=pool)\n"
    )
    words = [sys.executable, "-c", script, str(Path(toy.__file__).parent), str(tmp_path)]
    parent = subprocess.Popen(words, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        wait_for(lambda: len(toy.attempts(tmp_path / "log")) > 20)
        children = psutil.Process(parent.pid).children()
        assert len(children) == 2
    finally:
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    before = len(toy.attempts(tmp_path / "log"))
    time.sleep(0.2)
    assert len(toy.attempts(tmp_path / "log")) == before


def test_steps_that_cannot_be_made_end_the_run_before_any_slide(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such thing"):
        run(tmp_path, ["sound-1", "sound-2"], toy.Unmakable(tmp_path / "log"))
    assert not toy.results(Output(tmp_path / "out"))


def test_a_process_that_cannot_even_start_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(MicrotomeError, match="could not start"):
        run(tmp_path, ["sound-1"], toy.Unpicklable(tmp_path / "log"))


def test_processes_that_hang_at_their_start_are_stopped_and_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "START_SECONDS", 4.0)
    monkeypatch.setattr(supervisor, "_MISSED_BY", 0.0)
    with pytest.raises(MicrotomeError, match="hung at its start"):
        run(tmp_path, ["sound-1"], toy.HangsAtItsStart(tmp_path / "log"), limits=Limits(stall_seconds=1.0))
    assert toy.attempts(tmp_path / "log") == ["start"] * 3


def test_a_process_whose_gpu_failed_is_replaced_and_its_slide_goes_on(tmp_path: Path) -> None:
    names = [f"sound-{n}" for n in range(4)]
    make = toy.LosesItsGpuOnce(tmp_path / "log")
    found = run(tmp_path, names, make, workers=1)
    assert {one.status for one in found.values()} == {Status.DONE}, found
    count = Counter(toy.attempts(make.log))
    assert set(count.values()) == {1}  # no finished part is made again
    assert toy.results(Output(tmp_path / "out")) == undisturbed(tmp_path, names, toy.Toy(tmp_path / "log"))


def test_a_slide_on_which_the_gpu_fails_again_and_again_fails_alone(tmp_path: Path) -> None:
    found = run(tmp_path, ["sound-1", "lost-1", "sound-2"], toy.Toy(tmp_path / "log"), workers=1)
    assert {name for name, one in found.items() if one.status is Status.DONE} == {"sound-1", "sound-2"}
    assert "the GPU failed" in found["lost-1"].reason
    assert Counter(toy.attempts(tmp_path / "log"))["lost-1.0"] == 2


def test_in_the_commands_own_process_a_gpu_that_failed_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(DeviceLostError, match=r"the GPU failed.*again") as lost:
        undisturbed(tmp_path, ["sound-1", "lost-1", "sound-2"], toy.Toy(tmp_path))
    assert lost.value.exit_code == 75
    assert toy.whole(Output(tmp_path / "undisturbed"), "sound-1")


def test_where_no_process_can_be_started_now_one_is_started_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, refused = subprocess.Popen, [3]

    def sometimes(*words: object, **settings: object) -> subprocess.Popen[bytes]:
        if refused[0]:
            refused[0] -= 1
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return begin(*words, **settings)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(subprocess, "Popen", sometimes)
    found = run(tmp_path, ["sound-1", "sound-2"], toy.Toy(tmp_path / "log"))
    assert refused == [0]
    assert {one.status for one in found.values()} == {Status.DONE}
    refused[0] = 1000
    with pytest.raises(MicrotomeError, match=r"no process can be started \(Resource temporarily"):
        run(tmp_path, ["sound-3"], toy.Toy(tmp_path / "log"))


def test_where_but_one_process_can_be_started_it_does_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, running = subprocess.Popen, list[subprocess.Popen[bytes]]()

    def one_at_a_time(*words: object, **settings: object) -> subprocess.Popen[bytes]:
        if any(process.poll() is None for process in running):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        running.append(begin(*words, **settings))  # type: ignore[call-overload]
        return running[-1]

    monkeypatch.setattr(subprocess, "Popen", one_at_a_time)
    names, make = [f"sound-{n}" for n in range(3)], toy.Toy(tmp_path / "log", parts=12, seconds=0.1)
    found = run(tmp_path, names, make, workers=8)
    assert {one.status for one in found.values()} == {Status.DONE}, found
    assert len(running) == 1
    assert set(Counter(toy.attempts(make.log)).values()) == {1}


def test_a_damaged_item_is_made_again_in_the_same_run(tmp_path: Path) -> None:
    make, output = toy.Toy(tmp_path / "log"), Output(tmp_path / "out")
    run(tmp_path, ["sound-1", "sound-2"], make)
    before = toy.results(output)
    part = TileStore(output, "sound-1").path("tiles") / "part-2"
    part.write_bytes(part.read_bytes()[:-3])
    found = run(tmp_path, ["sound-1", "sound-2"], make)
    assert {name: one.status for name, one in found.items()} == {
        "sound-1": Status.DONE,
        "sound-2": Status.ALREADY_DONE,
    }
    assert toy.results(output) == before
    assert len(list((output.root / "quarantine").iterdir())) == 1


def test_what_goes_wrong_at_the_start_is_said_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MicrotomeError, match="cannot begin: RuntimeError: CUDA out of memory"):
        run(tmp_path, ["sound-1"], toy.HasNoMemoryToBegin(tmp_path / "log"))
    assert "Traceback" not in capfd.readouterr().err


def test_a_process_with_a_gpu_has_the_memory_of_four(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    work = Work(Orders(toy.Toy(tmp_path / "log")), tmp_path, tmp_path, "a run", {})
    pool = Children(work, workers=4, limits=UNLIMITED, gpus=[{}])
    try:
        plain, gpu = pool._limits.memory_bytes, pool._gpu_limits.memory_bytes
        assert plain is not None
        assert gpu == 4 * plain
        assert 4 * plain + gpu <= machine_memory()
        assert Children(work, workers=4, limits=Limits(7), gpus=[])._gpu_limits == Limits(7)
    finally:
        pool.close()


def test_a_gpu_is_seen_by_its_own_process_which_alone_prepares_for_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    make = toy.TwoToys(toy.SeesGpus(log, parts=2), toy.SeesGpus(log, parts=2, item="qc", wants_gpu=True))
    names = [f"sound-{n}" for n in range(4)]
    found = run(tmp_path, names, make, gpus=[{"CUDA_VISIBLE_DEVICES": "GPU-7f"}])
    assert {one.status for one in found.values()} == {Status.DONE}, found
    seen = Counter(path.name.rsplit(".", 2)[0] for path in log.iterdir())
    assert {name for name in seen if name.startswith("gpus")} == {"gpus:tiles ", "gpus:qc GPU-7f"}
    assert seen["gpus:tiles "] == seen["gpus:qc GPU-7f"] == 8
    assert {name for name in seen if name.startswith("prepared")} == {"prepared:tiles ", "prepared:qc GPU-7f"}
    assert seen["prepared:qc GPU-7f"] == 1
    assert toy.results(Output(tmp_path / "out")) == undisturbed(tmp_path, names, make)


def test_an_encoder_that_cannot_be_loaded_on_the_gpu_is_known_before_a_slide_is_done(tmp_path: Path) -> None:
    log = tmp_path / "log"
    second = toy.WantsWhatIsNotThere(log, item="qc", wants_gpu=True)
    make = toy.TwoToys(toy.Toy(log, parts=40, seconds=0.5), second)
    with pytest.raises(UsageError, match="no encoder 'x'"):
        run(tmp_path, ["sound-1", "sound-2"], make, gpus=[{}])
    assert not Output(tmp_path / "out").slide_ids()


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("auto", None, ["0", "1"]),
        ("cuda", None, ["0", "1"]),
        ("cuda", "3,GPU-7f", ["3", "GPU-7f"]),
        ("auto", "", []),
        ("auto", "-1", []),
        ("cpu", None, []),
        ("mps", "0", []),
        ("cuda:1", None, [None]),  # sees what the command sees, and takes the second of it
        ("cuda:1", "3,5", [None]),
    ],
)
def test_each_gpu_that_a_device_means_has_a_process_that_sees_it_alone(
    device: str,
    visible: str | None,
    expected: list[str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tiling.workers.arguments.version", lambda package: "2.13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for number in range(2):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
    found = local_gpus(device, drivers=tmp_path)
    assert [environment.get("CUDA_VISIBLE_DEVICES") for environment in found] == expected
    assert local_gpus("auto", drivers=tmp_path / "none") == () or visible


def test_a_torch_without_cuda_has_no_gpu_whatever_the_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiling.workers.arguments.version", lambda package: "2.13.0+cpu")
    (tmp_path / "0000:00:00.0").mkdir()
    assert local_gpus("auto", drivers=tmp_path) == ()


def test_what_libraries_print_is_no_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = run(tmp_path, ["prints-1"], toy.Toy(tmp_path / "log"))
    assert found["prints-1"].status is Status.DONE
    out, err = capfd.readouterr()
    assert out == ""
    assert "a library prints" in err


def test_libraries_have_the_threads_that_the_worker_has_and_may_start_processes(tmp_path: Path) -> None:
    found = run(tmp_path, ["sound-1"], toy.LooksAround(tmp_path / "log"), threads=1)
    assert found["sound-1"].status is Status.DONE, found["sound-1"].reason
    seen = json.loads((tmp_path / "log" / "seen.json").read_text())
    assert seen == {"torch": 1, "child": 42}


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)
