"""What a slide does to its process, no other slide feels."""

from __future__ import annotations

import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import toy_steps as toy

from tiling.cohort import Outcome, Status
from tiling.output import Output
from tiling.workers.children import Children
from tiling.workers.limits import Limits
from tiling.workers.run import run_slides
from tiling.workers.unit import Orders, SlideFile, Work

UNLIMITED = Limits()


def run(
    folder: Path,
    names: list[str],
    make: toy.Toy,
    *,
    workers: int = 2,
    limits: Limits = UNLIMITED,
) -> dict[str, Outcome]:
    """Toy slides by real processes, into ``folder/out``."""
    make.log.mkdir(exist_ok=True)

    def pool(work: Work, told: object) -> Children:
        return Children(work, workers=workers, limits=limits)

    slides = {name: SlideFile(Path(f"{name}.svs")) for name in names}
    outcomes = run_slides(Output(folder / "out"), slides, Orders(make), command=["toy"], pool=pool)
    return {outcome.slide_id: outcome for outcome in outcomes}


def undisturbed(folder: Path, names: list[str], make: toy.Toy) -> dict[str, bytes]:
    """What one process makes of them."""
    slides = {name: SlideFile(Path(f"{name}.svs")) for name in names}
    run_slides(Output(folder / "undisturbed"), slides, Orders(make), command=["toy"])
    return toy.results(Output(folder / "undisturbed"))


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    yield
    assert not psutil.Process().children(recursive=True)


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
    assert count["hang-1.0"] == count["hog-1.0"] == 1
    assert count["segfault-1.0"] == 2
    assert toy.results(Output(tmp_path / "out")) == undisturbed(tmp_path, sound, make)


def test_processes_killed_at_any_time_cost_no_more_than_the_part_in_flight(tmp_path: Path) -> None:
    names = [f"sound-{n}" for n in range(5)]
    make = toy.Toy(tmp_path / "log", parts=12, seconds=0.1)
    rng, ended, kills = random.Random(5), threading.Event(), [0]

    def kill() -> None:
        while not ended.wait(rng.uniform(0.5, 1.5)):
            children = psutil.Process().children()
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
