"""Questions about slides: one that crashes or hangs its process has no answer, and the others have theirs."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest
import toy_steps as toy

import cli
from tiling import batch
from tiling.manifest import SlideEntry
from tiling.workers.ask import ask_each, ask_here
from tiling.workers.limits import Limits
from wsi.errors import MicrotomeError, SlideError
from wsi.slide import Slide
from wsi.synthetic import write_slide


def entries(*names: str) -> list[SlideEntry]:
    return [SlideEntry(name, Path(f"{name}.svs")) for name in names]


def test_each_slide_has_its_answer_whatever_its_neighbours_do(tmp_path: Path) -> None:
    slides = entries(
        "sound-1", "segfault-1", "sound-2", "damaged-1", "hang-1", "bug-1", "leaves-1", "sound-3"
    )
    question = partial(toy.asked, log=tmp_path)
    found = list(ask_each(slides, question, limits=Limits(stall_seconds=1.0)))
    assert [slide for slide, _ in found] == slides
    answers = {slide.slide_id: answer for slide, answer in found}
    for name in ("sound-1", "sound-2", "sound-3"):
        assert answers[name] == name.upper()
    for name, words in (
        ("segfault-1", "SIGSEGV"),
        ("damaged-1", "is damaged"),
        ("hang-1", "no progress for 1 s"),
        ("bug-1", "unexpected ZeroDivisionError"),
        ("leaves-1", "exit code 3"),
    ):
        assert isinstance(answers[name], MicrotomeError)
        assert words in str(answers[name])
        assert name in str(answers[name])
    tries = [path.name.partition(".")[0] for path in tmp_path.iterdir()]
    assert tries.count("segfault-1") == tries.count("leaves-1") == 2  # another process may fare better
    assert tries.count("hang-1") == 1
    assert not any(path.name.endswith(f".{os.getpid()}") for path in tmp_path.iterdir())


def test_here_the_answers_are_the_same(tmp_path: Path) -> None:
    slides, question = entries("sound-1", "damaged-1", "bug-1"), partial(toy.asked, log=tmp_path)
    here = [str(answer) for _, answer in ask_here(slides, question)]
    assert here == [str(answer) for _, answer in ask_each(slides, question)]


def test_nobody_is_started_for_no_slide(tmp_path: Path) -> None:
    assert list(ask_each([], partial(toy.asked, log=tmp_path))) == []
    first = next(iter(ask_each(entries("sound-1", "hang-1"), partial(toy.asked, log=tmp_path))))
    assert first[1] == "SOUND-1"  # and nobody waits for the second


def test_where_no_process_can_be_started_each_slide_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*words: object, **settings: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    for _, answer in ask_each(entries("sound-1", "sound-2"), partial(toy.asked, log=tmp_path)):
        assert isinstance(answer, MicrotomeError)
        assert "no process can be started" in str(answer)


def test_info_goes_on_after_a_fault_of_ours_and_ends_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        write_slide(tmp_path / f"{name}.svs", seed=2, lesion=False, size=(256, 256))
    describe = batch.describe

    def faulty(slide: Slide) -> dict[str, object]:
        return {}["fault"] if slide.path.stem == "a" else describe(slide)

    monkeypatch.setattr(batch, "describe", faulty)
    assert cli.main(["info", str(tmp_path), "--json"]) == 70
    out, err = capsys.readouterr()
    assert [Path(json.loads(line)["path"]).stem for line in out.splitlines()] == ["b", "c"]
    assert "a.svs: unexpected KeyError" in err


def test_info_and_plans_ask_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slide(tmp_path / "s.svs", seed=2, lesion=False, size=(512, 384))
    (tmp_path / "t.svs").write_bytes((tmp_path / "s.svs").read_bytes()[:3000])
    words = [str(tmp_path), "--json"]
    assert cli.main(["info", *words]) == 1
    here = capsys.readouterr()
    monkeypatch.setenv("MICROTOME_WORKERS", "2")
    monkeypatch.setattr("wsi.describe.describe", _not_here)
    monkeypatch.setattr("tiling.batch.describe", _not_here)
    assert cli.main(["info", *words]) == 1
    there = capsys.readouterr()
    assert json.loads(there.out) == json.loads(here.out)
    assert there.err == here.err
    monkeypatch.setattr("tiling.doctor.plan.find_tissue", _not_here)
    plan = ["doctor", str(tmp_path / "out"), "--plan", str(tmp_path), "--speed-test", "0", "--json"]
    cli.main([*plan, "--mpp", "1", "--tile-size", "64"])
    said = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert "tiles" in said["plan: s"]["value"]
    assert said["plan: t"]["value"] == "cannot be cut"


def _not_here(*words: object, **settings: object) -> None:
    raise SlideError("was opened in the command's own process")
