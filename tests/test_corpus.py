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

import numpy as np
import pytest

from corpus import edges
from corpus.bits import FILES, flipped, reason, structure
from corpus.edges import COARSE, EDGED, FINE, SIZE
from corpus.fault import Fault, Processed, Reader, Rejected, Warned
from corpus.faults import FAULTS, GROUPS
from corpus.forge import Pixels
from corpus.kinds import KINDS
from corpus.learning import Evil
from corpus.manifests import MANIFESTS, THERE, Entries, ManifestFault
from corpus.nursery import SECONDS, Ending, Nursery
from corpus.slides import MPP, Cut, svs, tile_words
from corpus.table import DOCUMENT, replaced
from mil.labels import LabelTable, SlideLabel, labels_to_csv, read_labels
from tiling.commit import Draft, begin
from tiling.manifest import find_entries, read_manifest
from wsi.backends import OpenSlideBackend, TiffSlideBackend
from wsi.errors import SlideError, UsageError
from wsi.messages import printable
from wsi.slide import Slide

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
    files: list[Path] = []
    for given in paths:
        before, is_pattern, _ = str(given).partition("*")
        if is_pattern and not given.exists():
            files += Path(before).rglob("*")
        else:
            files += given.iterdir() if given.is_dir() else [given]
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


# Bits ------------------------------------------------------------------------------------------------------

FLIPS = 60
"""Of each kind of file; all five have some 43,000 together."""


@pytest.mark.parametrize("kind", FILES)
def test_a_bit_that_flips_in_what_holds_a_slide_together_is_seen_or_changes_nothing(
    kind: str, scene: Scene, nursery: Nursery
) -> None:
    suffix, make = FILES[kind]
    folder = scene.root / "in" / "flips"
    folder.mkdir()
    path = make(folder / f"sound{suffix}")
    sound, places = path.read_bytes(), structure(path)
    rng, where = np.random.default_rng(8), {}
    for byte, bit in zip(rng.choice(sorted(places), FLIPS), rng.integers(0, 8, FLIPS), strict=True):
        (folder / f"{byte}-{bit}{suffix}").write_bytes(flipped(sound, byte, bit))
        where[f"{byte}-{bit}{suffix}"] = places[byte]
    ending = scene.run(nursery, ["flips", str(folder)], library=True)
    assert ending.code == 0, ending.err
    found = json.loads(ending.out)
    assert found.pop(path.name) == ["same", ""]
    assert {"refused", "same"} <= {verdict for verdict, _ in found.values()}
    for name, (verdict, line) in found.items():
        assert verdict != "other" or reason(where[name]), f"{name}: {where[name]}"
        if verdict == "refused":
            assert re.fullmatch(rf"{re.escape(str(folder / name))}: .*\. [A-Z].*", line), line


# Edges -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EDGED)
def test_the_pixels_of_the_last_tiles_are_those_that_the_file_was_made_of(name: str, tmp_path: Path) -> None:
    edged = EDGED[name]
    path = edged.make(tmp_path / f"s{edged.suffix}")
    (width, height), tile = SIZE, edges.TILE

    def same(pixels: Pixels, golden: Pixels) -> bool:
        return int(np.abs(pixels.astype(int) - golden).max()) <= edged.within

    for reader in (OpenSlideBackend, TiffSlideBackend):
        if reader.name not in edged.readers:
            continue
        backend = reader(path)
        for number, (level, golden) in enumerate(zip(backend.levels, (FINE, COARSE), strict=False)):
            assert (level.height, level.width) == golden.shape[:2]
            x, y = level.width // tile * tile, level.height // tile * tile
            for left, top in ((0, 0), (x, 0), (0, y), (x, y)):
                size = level.width - left, level.height - top
                assert same(backend.read_level(number, left, top, size), golden[top:, left:])
        backend.close()
    with Slide(path, mpp=MPP) as slide:
        assert slide.backend in edged.readers
        origins = [(x, y) for y in range(0, height, tile) for x in range(0, width, tile)]
        tiles = slide.read_tiles(origins, size=(tile, tile), mpp=MPP)
        for (x, y), found in zip(origins, tiles, strict=True):
            inside = FINE[y : y + tile, x : x + tile]
            assert same(found[: inside.shape[0], : inside.shape[1]], inside)
            assert (found[inside.shape[0] :] == 255).all()
            assert (found[:, inside.shape[1] :] == 255).all()


# Real scans ------------------------------------------------------------------------------------------------

TIFFS = {".svs", ".tif", ".tiff", ".scn", ".ndpi"}
CUTS = (0.99, 0.9, 0.5, 0.1, 0.01)
LARGEST = 20 << 20
"""Bytes of files that are copied."""


def test_the_first_part_of_a_real_scan_is_refused_by_name(data_dir: Path, tmp_path: Path) -> None:
    folders = [data_dir / "slides" / name for name in ("vendor", "small", "formats")]
    paths = [path for folder in folders for path in folder.rglob("*")]
    paths = [path for path in paths if path.suffix in TIFFS and path.stat().st_size <= LARGEST]
    assert paths
    for path in paths:
        copy = tmp_path / path.name
        size = path.stat().st_size
        with path.open("rb") as file:
            copy.write_bytes(file.read(int(size * CUTS[0])))
        for share in CUTS:  # shorter and shorter: one copy will do
            os.truncate(copy, int(size * share))
            with pytest.raises(SlideError, match=re.escape(path.name)) as refused:
                Slide(copy)
            assert re.search(r"truncated|beyond|cut off|shrank", str(refused.value)), refused.value
        copy.unlink()


@pytest.mark.parametrize(("name", "cut"), [("dicom", "*.dcm"), ("hamamatsu", "hamamatsu.jpg")])
def test_of_a_real_scan_in_several_files_what_was_cut_off_is_named_by_place(
    name: str, cut: str, data_dir: Path, tmp_path: Path
) -> None:
    """Their files do not say how long they are; no place gives other pixels than it has."""
    source = data_dir / "slides" / "formats" / name
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    largest = max(tmp_path.glob(cut), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    opened = next(tmp_path.glob("*.vms"), largest)
    size, mpp, lost, same = (256, 256), 0.5, 0, 0
    with Slide(source / opened.name, mpp=0.25) as whole, Slide(opened, mpp=0.25) as slide:
        assert slide.size == whole.size
        for y in range(0, slide.size[1], 1024):
            for x in range(0, slide.size[0], 1024):
                try:
                    found = slide.read(x, y, size=size, mpp=mpp)
                except SlideError as error:
                    lost += opened.name in str(error)
                else:
                    assert np.array_equal(found, whole.read(x, y, size=size, mpp=mpp)), (x, y)
                    same += 1
    assert lost
    assert same
    assert lost + same == -(-slide.size[0] // 1024) * -(-slide.size[1] // 1024)


# Journals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        "[]",
        "7",
        '{"files": []}',
        '{"files": {}}',
        '{"part": "p", "files": [1]}',
    ],
    ids=lambda line: line[:20],
)
def test_a_line_of_a_journal_that_is_none_of_ours_vouches_for_nothing(line: str, tmp_path: Path) -> None:
    def start() -> Draft:
        return begin(tmp_path / "item", {"step": "test"}, work=tmp_path / ".work")

    draft = start()
    (draft.folder / "kept").write_bytes(b"kept")
    draft.finish_part("first", [draft.folder / "kept"])
    (draft.folder / "left").write_bytes(b"nobody knows of it")
    (journal,) = (tmp_path / ".work").glob("*.journal")
    journal.write_text(f"{line}\n{journal.read_text()}{line}\n")
    again = start()
    assert list(again.parts) == ["first"]
    assert os.listdir(again.folder) == ["kept"]


# Formulas --------------------------------------------------------------------------------------------------


FORMULAS = ("=cmd|' C calc'!A0", "=1+1", "+1", "-rf", "@SUM(A1)", '"a,b"', "00123", "1e5", "TRUE")


@pytest.mark.parametrize("name", FORMULAS)
def test_an_id_comes_back_from_every_table_to_the_letter(name: str, tmp_path: Path) -> None:
    """A spreadsheet may take it for a formula; changed, it would be another slide's, or nobody's."""
    path, ids = tmp_path / "labels.csv", [name, "other"]
    rows = [SlideLabel(one, label, None, None, None, None, 2) for one, label in zip(ids, "ab", strict=True)]
    path.write_bytes(labels_to_csv(LabelTable(path, tuple(rows))))
    assert [row.slide_id for row in read_labels(path).rows] == ids


# The laws --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("misdeed", ["hang", "crash", "grow", "trust"])
def test_the_laws_catch_what_breaks_them(misdeed: str, scene: Scene, nursery: Nursery) -> None:
    path = scene.root / "in" / "bad"
    os.mkfifo(path) if misdeed == "hang" else path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(AssertionError):
        scene.run(nursery, [misdeed, str(path)], library=True, seconds=1)
    again = nursery.run(["labels", "/dev/null"], home=scene.root / "home", library=True)
    assert again.code == 2


def test_every_kind_of_fault_that_is_known_has_an_input_or_a_test() -> None:
    inputs = {fault.name for fault in FAULTS} | {manifest.name for manifest in MANIFESTS}
    folder = Path(__file__).parent
    for kind, shown in KINDS.items():
        for name in shown:
            file, is_test, test = name.partition("::")
            assert f"\ndef {test}" in (folder / file).read_text() if is_test else name in inputs, (kind, name)


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
