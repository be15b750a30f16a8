"""Laws over the corpus of faults: each input has the outcome it must have, and none harms anything else."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from corpus.fault import Fault, Processed, Reader, Rejected, Warned
from corpus.faults import FAULTS
from corpus.nursery import Ending, Nursery
from corpus.slides import Cut, svs, tile_words

MOST_BYTES = 1 << 30
LONGEST = 200
"""Characters of an error, without the folder in which the file is."""


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    process = Nursery()
    yield process
    process.close()


def look(top: Path) -> dict[str, str]:
    """Everything under a folder: what it is, and its bytes where it is a file."""
    found = {}
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            content = ""
            if stat.S_ISREG(mode):
                content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            elif stat.S_ISLNK(mode):
                content = os.readlink(path)
            found[os.path.relpath(path, top)] = f"{mode:o} {content}"
    return found


@dataclass(frozen=True)
class Scene:
    """Where a case plays: input, output, the child's own folder, and what nobody may touch."""

    root: Path

    def __post_init__(self) -> None:
        for name in ("in", "home", "sound"):
            (self.root / name).mkdir()
        (self.root / "canary").write_text("nobody writes here")

    def kept(self) -> dict[str, str]:
        """All but what a command may write: its output."""
        return {name: is_ for name, is_ in look(self.root).items() if name.split("/")[0] != "out"}

    @property
    def out(self) -> Path:
        return self.root / "out"

    def slides(self) -> Path:
        return self.out / "slides"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def store_of(out: Path, slide_id: str) -> dict[str, str]:
    """All that is kept of a slide."""
    return look(out / "slides" / slide_id)


@cache
def alone(nursery: Nursery, words: tuple[str, ...], folder: Path) -> dict[str, str]:
    """What the sound slide gives when no other is beside it."""
    home = folder / "home"
    home.mkdir(parents=True)
    slide = svs(folder / "sound.svs")
    ending = nursery.run([*tile_words(slide, out=folder / "out"), *words], home=home)
    assert (ending.code, ending.err) == (0, "")
    return store_of(folder / "out", "sound")


def obey_the_laws_of_all(ending: Ending) -> None:
    """No hang, no crash, no traceback, no bug of ours, in bounded memory."""
    said = ending.out + ending.err
    assert not ending.hung, said
    assert 0 <= ending.code != 70, said
    assert "Traceback" not in said
    assert "unexpected" not in said
    assert ending.peak_bytes < MOST_BYTES


def is_one_good_line(line: str, fault: Fault, paths: list[Path]) -> None:
    """It names the file, says what is wrong and what to do, and is short."""
    assert isinstance(fault.outcome, Rejected)
    assert "\n" not in line
    short = line.removeprefix("ERROR ").replace(f"{paths[0].parent}/", "")
    assert any(path.name in short for path in paths), line
    assert re.search(fault.outcome.says, short), short
    assert re.search(r"\. [A-Z]", short), f"no action in: {short}"
    assert len(short) <= LONGEST, f"{len(short)}: {short}"


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.reader is Reader.TILE], ids=lambda f: f.name)
def test_a_slide_ends_as_it_must_and_a_sound_one_beside_it_is_cut_as_if_alone(
    fault: Fault, scene: Scene, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory
) -> None:
    given = fault.make(scene.root / "in")
    paths = given if isinstance(given, list) else [given]
    sound = svs(scene.root / "sound" / "sound.svs")
    before = scene.kept()
    words = [*tile_words(*paths, sound, out=scene.out), *fault.words, "--json"]
    ending = nursery.run(words, home=scene.root / "home")
    after = {name: is_ for name, is_ in scene.kept().items() if name not in ("home/stdout", "home/stderr")}
    assert after == before
    obey_the_laws_of_all(ending)
    if isinstance(fault.outcome, Rejected) and fault.outcome.code != 1:
        assert ending.code == fault.outcome.code
        is_one_good_line(ending.err.rstrip("\n"), fault, paths)
        assert not scene.out.exists()
        return
    ends = {line["slide"]: line for line in map(json.loads, ending.out.splitlines())}
    bad = [line for name, line in ends.items() if name != "sound"]
    assert ends["sound"]["status"] == "done"
    base = tmp_path_factory.getbasetemp() / f"alone-{abs(hash(fault.words))}"
    assert store_of(scene.out, "sound") == alone(nursery, fault.words, base)
    if isinstance(fault.outcome, Rejected):
        assert ending.code == 1
        assert ending.err == ""
        for line in bad:
            assert line["status"] == "failed"
            is_one_good_line(line["reason"], fault, paths)
        assert sorted(p.name for p in scene.slides().iterdir() if (p / "store.zarr" / "tiles").exists()) == [
            "sound"
        ]
        return
    assert ending.code == 0, ending.out
    warned = ending.err.splitlines()
    if isinstance(fault.outcome, Warned):
        (line,) = bad
        assert line["status"] == "done", line
        assert any(re.search(fault.outcome.says, one) and paths[0].name in one for one in warned), warned
    else:
        assert isinstance(fault.outcome, Processed)
        assert not warned
        for line in bad:
            assert line["status"] == fault.outcome.status, line
    for line in bad:
        if fault.outcome.holds and line["status"] == "done":
            fault.outcome.holds(Cut(scene.out, line["slide"], ending.out + ending.err))
