"""Laws over the corpus of faults: each input has the outcome it must have, and none harms anything else."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from corpus.fault import Fault, Processed, Reader, Rejected, Warned
from corpus.faults import FAULTS, GROUPS
from corpus.learning import Evil
from corpus.manifests import MANIFESTS, THERE, Entries, ManifestFault
from corpus.nursery import SECONDS, Ending, Nursery
from corpus.slides import Cut, svs, tile_words
from corpus.table import DOCUMENT, replaced
from tiling.manifest import find_entries, read_manifest
from wsi.errors import UsageError
from wsi.messages import printable

MOST_BYTES = 1 << 30
LONGEST = 200
"""Characters of an error, behind the path of the file."""


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
    """Where cases play: their inputs, a sound slide, the child's own folder, and what nobody may touch."""

    root: Path

    def __post_init__(self) -> None:
        for name in ("in", "home", "sound"):
            (self.root / name).mkdir()
        (self.root / "canary").write_text("nobody writes here")

    @property
    def out(self) -> Path:
        return self.root / "out"

    def given(self, fault: Fault) -> list[Path]:
        """The input of a case, made in a folder of its name."""
        folder = self.root / "in" / fault.name
        folder.mkdir()
        given = fault.make(folder)
        return given if isinstance(given, list) else [given]

    def run(
        self, nursery: Nursery, words: Sequence[str], *, library: bool = False, seconds: float = SECONDS
    ) -> Ending:
        """Run a command, which obeys the laws of all: it ends, by itself, in bounded memory, and says no
        word of a bug; and it writes nothing but its output."""
        before = self._kept()
        ending = nursery.run(words, home=self.root / "home", library=library, seconds=seconds)
        said = ending.out + ending.err
        assert not ending.hung, said
        assert 0 <= ending.code != 70, said
        assert "Traceback" not in said
        assert not re.search(r"unexpected \w+(Error|Exception|Exit)", said)
        assert ending.peak_bytes < MOST_BYTES
        assert self._kept() == before
        return ending

    def _kept(self) -> dict[str, str]:
        """All but the output, and what the child said."""
        allowed = {"home/stdout", "home/stderr"}
        found = {name: is_ for name, is_ in look(self.root).items() if name.split("/")[0] != "out"}
        return {name: is_ for name, is_ in found.items() if name not in allowed}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def is_one_good_line(line: str, fault: Fault, paths: list[Path]) -> None:
    """It names the file, says what is wrong and what to do, and is short."""
    assert isinstance(fault.outcome, Rejected)
    assert line.count("\n") == 0, line
    short = line.removeprefix("ERROR ").replace(f"{paths[0].parent}/", "")
    names = [name for path in paths for name in (path.name, repr(path.stem)[:50])]
    names += ["slide 'odd'", "'odd'"] if fault.reader is Reader.FEATURES else []
    assert any(name in short for name in names), line
    assert re.search(fault.outcome.says, short), short
    assert re.search(r"\. [A-Z]", short), f"no action in: {short}"
    rest = re.sub(r"^[^:]+: ", "", short)
    assert len(rest) <= LONGEST, f"{len(rest)}: {short}"


# Slides ----------------------------------------------------------------------------------------------------

MOST_CASES = 12
"""In one run: a run for each would cost four times as much."""


def batches() -> Iterator[tuple[str, tuple[Fault, ...]]]:
    """Cases that are given in one command: of a group, with the same settings. What stops all is alone."""
    for name, group in GROUPS.items():
        together: dict[tuple[str, ...], list[Fault]] = {}
        for fault in group:
            if fault.reader is not Reader.TILE:
                continue
            if isinstance(fault.outcome, Rejected) and fault.outcome.code != 1:
                yield fault.name, (fault,)
            else:
                together.setdefault(fault.words, []).append(fault)
        for faults in together.values():
            for start in range(0, len(faults), MOST_CASES):
                some = faults[start : start + MOST_CASES]
                yield f"{name}: {some[0].name} to {some[-1].name}", tuple(some)


BATCHES = dict(batches())


@pytest.fixture(scope="session")
def alone(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """What the sound slide gives when no other is beside it, by the settings."""

    @cache
    def cut(words: tuple[str, ...]) -> dict[str, str]:
        scene = Scene(tmp_path_factory.mktemp("alone"))
        slide = svs(scene.root / "sound" / "sound.svs")
        ending = scene.run(nursery, [*tile_words(slide, out=scene.out), *words])
        assert (ending.code, ending.err) == (0, "")
        return look(scene.out / "slides" / "sound")

    return cut


@pytest.mark.parametrize("name", BATCHES)
def test_slides_end_as_they_must_and_a_sound_one_among_them_is_cut_as_if_alone(
    name: str, scene: Scene, nursery: Nursery, alone: Callable[..., dict[str, str]]
) -> None:
    faults = BATCHES[name]
    paths = {fault.name: scene.given(fault) for fault in faults}
    sound, words = svs(scene.root / "sound" / "sound.svs"), faults[0].words
    every = [path for some in paths.values() for path in some]
    ending = scene.run(nursery, [*tile_words(*every, sound, out=scene.out), *words, "--json"])
    if isinstance(faults[0].outcome, Rejected) and faults[0].outcome.code != 1:
        assert ending.code == faults[0].outcome.code
        is_one_good_line(ending.err.rstrip("\n"), faults[0], every)
        assert not scene.out.exists()
        return
    ends = {line["slide"]: line for line in map(json.loads, ending.out.splitlines())}
    assert ends.pop("sound")["status"] == "done"
    assert look(scene.out / "slides" / "sound") == alone(words)
    failed = sum(line["status"] == "failed" for line in ends.values())
    assert ending.code == (1 if failed else 0)
    wrong = {}
    for fault in faults:
        known = ids(paths[fault.name])
        mine = {slide: line for slide, line in ends.items() if slide in known}
        warned = [line for line in ending.err.splitlines() if f"/in/{fault.name}/" in line]
        try:
            assert mine, sorted(ends)
            judge(fault, paths[fault.name], mine, warned, scene)
        except AssertionError as error:
            wrong[fault.name] = str(error)
        ends = {slide: line for slide, line in ends.items() if slide not in mine}
    assert not wrong, "\n\n".join(f"{name}: {what}" for name, what in wrong.items())
    assert not ends


def ids(paths: list[Path]) -> set[str]:
    """Of the slides that are meant, as they are printed."""
    files = [
        path
        for given in paths
        for path in (given.iterdir() if given.is_dir() and not given.suffix else [given])
    ]
    return {printable(unicodedata.normalize("NFC", path.stem)) for path in files}


def judge(fault: Fault, paths: list[Path], ends: dict[str, Any], warned: list[str], scene: Scene) -> None:
    """Whether the slides of a case ended as they must."""
    outcome = fault.outcome
    for name, line in ends.items():
        if isinstance(outcome, Rejected):
            assert line["status"] == "failed", (line, warned)
            is_one_good_line(line["reason"], fault, paths if len(ends) == 1 else [paths[0] / f"{name}.svs"])
            assert not (scene.out / "slides" / name / "store.zarr" / "tiles").exists()
            continue
        assert line["status"] == (outcome.status if isinstance(outcome, Processed) else "done"), (
            line,
            warned,
        )
        if outcome.holds and line["status"] == "done":
            outcome.holds(Cut(scene.out, name, ""))
    if isinstance(outcome, Warned):
        assert any(re.search(outcome.says, line) for line in warned), warned
    elif isinstance(outcome, Processed):
        assert not warned


# Tables, regions, features, models -------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.reader is not Reader.TILE], ids=lambda f: f.name)
def test_what_is_no_slide_is_read_as_it_must_be(fault: Fault, scene: Scene, nursery: Nursery) -> None:
    (path,) = scene.given(fault)
    ending = scene.run(nursery, [fault.reader.value, str(path)], library=True)
    outcome = fault.outcome
    if isinstance(outcome, Rejected):
        assert (ending.code, ending.out) == (outcome.code, ""), ending
        is_one_good_line(ending.err.rstrip("\n"), fault, [path])
        return
    assert ending.code == 0, ending.err
    if isinstance(outcome, Warned):
        assert re.search(outcome.says, ending.err)
    else:
        assert ending.err == ""
    if outcome.holds:
        outcome.holds(json.loads(ending.out))


# The laws --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("misdeed", ["hang", "crash", "grow", "trust"])
def test_the_laws_catch_what_breaks_them(misdeed: str, scene: Scene, nursery: Nursery) -> None:
    path = scene.root / "in" / "bad"
    os.mkfifo(path) if misdeed == "hang" else path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(AssertionError):
        scene.run(nursery, [misdeed, str(path)], library=True, seconds=1)
    again = nursery.run(["labels", "/dev/null"], home=scene.root / "home", library=True)
    assert again.code == 2


# The table -------------------------------------------------------------------------------------------------


def test_the_document_lists_the_corpus_as_it_is() -> None:
    document = DOCUMENT.read_text()
    assert replaced(document) == document, "PYTHONPATH=.:tests python -m corpus.table writes it anew"
    assert len(FAULTS) >= 100


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the slides that manifests name; nothing of them is read."""
    folder = tmp_path_factory.mktemp("manifests")
    for name in THERE:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.name)
def test_manifests_name_their_slides_or_are_refused_before_any_work(
    manifest: ManifestFault, beside: Path
) -> None:
    path = beside / f"{manifest.name}.csv"
    path.write_bytes(manifest.content)
    if isinstance(manifest.outcome, Entries):
        entries = read_manifest(path)
        assert tuple(entry.slide_id for entry in entries) == manifest.outcome.ids
        assert [entry.path.exists() for entry in entries] == [True] * len(entries)
        stated = tuple(entry.mpp for entry in entries)
        assert stated == (manifest.outcome.mpp or (None,) * len(entries))
        return
    with pytest.raises(UsageError) as refused:
        find_entries([path])
    line = str(refused.value)
    assert refused.value.exit_code == manifest.outcome.code
    assert re.search(manifest.outcome.says, line), line
    assert str(path) in line
    assert "\n" not in line
    assert len(line.replace(str(beside), "")) <= LONGEST, line
