"""A report holds nothing of a slide's file but its id and its pixels: planted texts do not come through."""

from __future__ import annotations

import base64
import getpass
import json
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tifffile

import cli
from heatmaps.report.privacy import safe_text
from heatmaps.report.run import plan_reports
from heatmaps.report.spent import read_runs
from logged import write_run_log
from tiling.cohort import Outcome, Status
from tiling.output import Output
from tiling.store import TileStore
from wsi.synthetic import write_slide

PLANTED = (
    "Doe", "Jane", "1970", "MRN", "4711", "St. Elsewhere", "jdoe", "scanner-7", "breast biopsy", "S123-9",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/home/jdoe/Jane Doe/s1.svs: cannot be read. Copy it", "[file]: cannot be read. Copy it"),
        ("'/home/jdoe/x' and C:\\Users\\jdoe\\x.svs", "[text] and [file]"),
        ("~/x, ../y/z and ./w", "[file], [file] and [file]"),
        ("level 1/2, 3 of 4, and/or 0.5 µm", "level 1/2, 3 of 4, and/or 0.5 µm"),
        ("states 'Doe, Jane' as mpp", "states [text] as mpp"),
        ("'s1' has no tiles. Run 'microtome tile'", "'s1' has no tiles. Run 'microtome tile'"),
        ("the tile's stain; the model's gate", "the tile's stain; the model's gate"),
        ("Jane-Doe.ndpi is damaged", "[file] is damaged"),
        ("unexpected KeyError: 'Doe'. Run", "unexpected KeyError. Run it with --debug and report it"),
    ],
)  # fmt: skip
def test_messages_lose_places_and_quotations_and_nothing_else(text: str, kept: str) -> None:
    assert safe_text(text, places=["/home/jdoe/Jane Doe/s1.svs"], allowed=["s1"]) == kept


def test_a_number_of_the_command_is_no_place(tmp_path: Path) -> None:
    output = Output(tmp_path)
    reason = "/home/jdoe/s1.svs: is scanned at 2.5 µm, and tiles are of 0.5 µm... nothing was cut"
    outcome = Outcome("s1", "/home/jdoe/s1.svs", Status.FAILED, reason)
    write_run_log(output, ["tile", "/home/jdoe", "..", "--mpp", "0.5", "--min-tissue", "2.5"], [outcome])
    told = read_runs(output).outcomes["s1"].reason
    assert told == "is scanned at 2.5 µm, and tiles are of 0.5 µm... nothing was cut"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, scoring: Any) -> Iterator[list[Path]]:
    """All reports of slides whose path, description and label are full of a patient, one of them damaged."""
    home = tmp_path_factory.mktemp("home") / "jdoe" / "scanner-7 Jane Doe 1970"
    home.mkdir(parents=True)
    more = "|Patient = Doe, Jane|DOB = 1970-01-01|MRN = 4711|User = jdoe|ScanScope ID = scanner-7"
    for name in ("s1", "s2", "broken"):
        path = home / f"{name}.svs"
        write_slide(path, seed=3, lesion=True, size=(768, 512), label_image=True)
        with tifffile.TiffFile(path) as file:
            description = file.pages[0].description + more
        tifffile.tiffcomment(path, description + "|Title = breast biopsy S123-9 St. Elsewhere")
    broken = home / "broken.svs"
    broken.write_bytes(broken.read_bytes()[:5000])
    out = home / "out"
    with pytest.MonkeyPatch.context() as patch:

        def microtome(*words: str) -> int:
            patch.setattr(sys, "argv", ["microtome", *words])
            return cli.main([*words, "--quiet"])

        tiles = ("--mpp", "1", "--tile-size", "64", "--stain", "none")
        assert microtome("tile", str(home), "-o", str(out), *tiles) == 1
        record = {"probabilities": {"normal": 0.25, "tumour": 0.75}, "calibrated": False}
        scoring(TileStore(Output(out), "s1"), record=record)
        assert microtome("report", str(out)) == 0
        yield [
            path
            for path in out.rglob("*")
            if path.suffix in {".html", ".json"} and "report" in str(path.relative_to(out))
        ]


def test_no_patient_no_path_no_label_no_user_and_no_machine(reports: list[Path]) -> None:
    names = sorted(path.name for path in reports)
    assert names == [
        "cohort.html", "cohort.json", "commit.json", "commit.json", "report.html", "report.html",
        "report.json", "report.json", "schema.json",
    ]  # fmt: skip
    for path in reports:
        data = path.read_text()
        pictures = [base64.b64decode(found) for found in re.findall(r"base64,([^\"]*)", data)]
        text = re.sub(r"base64,[^\"]*", "", data)
        for word in PLANTED:
            assert word.lower() not in text.lower(), (path.name, word)
            assert not any(word.encode() in picture for picture in pictures)
        for word in (socket.gethostname(), f"/{getpass.getuser()}", "/tmp", "home", ".svs"):
            assert word not in text, (path.name, word)
        assert not any(b"Exif" in picture or b"tEXt" in picture for picture in pictures)


def test_the_slide_that_failed_is_named_with_its_reason(reports: list[Path]) -> None:
    cohort = json.loads(next(path for path in reports if path.name == "cohort.json").read_bytes())
    assert [(row["slide"], row["status"]) for row in cohort["slides"]] == [
        ("broken", "failed"), ("s1", "predicted"), ("s2", "tiles only"),
    ]  # fmt: skip
    assert len(cohort["slides"][0]["message"]) > 20


def test_neither_label_nor_macro_is_looked_at(reports: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A report is made without opening the slide where the store has its pixels."""
    out = next(path for path in reports if path.name == "cohort.html").parents[2]
    monkeypatch.setattr("wsi.slide.Slide.__init__", None)
    assert plan_reports(out, given=None).publish_cohort().is_file()
