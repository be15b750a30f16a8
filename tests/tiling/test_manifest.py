"""Laws of naming slides: a sound manifest is read as it was meant, any other is refused with its lines."""

from __future__ import annotations

import csv
import io
import logging
import os
import unicodedata
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cli
from mil.labels import read_labels
from tiling.manifest import SlideEntry, find_entries, list_entries, mpp_by_path, read_manifest
from tiling.output import Output
from tiling.store import TileStore
from wsi.arguments import open_slide
from wsi.errors import UsageError
from wsi.find import search
from wsi.synthetic import write_slide

FULL = "slide,id,mpp,label,patient\na.svs,00123,0.25,NA,p1\nsub/b.svs,1e5,,normal,\n"


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Files named like slides, and empty; and a folder with one more."""
    (tmp_path / "sub").mkdir()
    for name in ("a.svs", "sub/b.svs", "c.svs"):
        (tmp_path / name).touch()
    return tmp_path


def read(folder: Path, content: str | bytes) -> tuple[SlideEntry, ...]:
    path = folder / "manifest.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_manifest(path)


# Manifests ------------------------------------------------------------------------------------------------


def test_a_manifest_is_read_as_text_and_its_paths_count_from_its_folder(cohort: Path) -> None:
    assert read(cohort, FULL) == (
        SlideEntry("00123", cohort / "a.svs", 0.25, "NA", "p1"),
        SlideEntry("1e5", cohort / "sub/b.svs", None, "normal", None),
    )


@pytest.mark.parametrize(
    "spelled",
    [
        "\ufeff" + FULL,
        FULL.replace("\n", "\r\n"),
        FULL.replace(",", " , "),
        FULL.replace("0.25", '"0,25"'),
        FULL.replace("id,", "slide_id,"),
        FULL.rstrip() + "\n\n,,,,\n",
    ],
)
def test_what_spreadsheets_do_to_it_does_not_matter(cohort: Path, spelled: str) -> None:
    assert read(cohort, spelled) == read(cohort, FULL)


def test_one_column_is_enough_and_others_are_let_be(cohort: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert [e.slide_id for e in read(cohort, "slide\na.svs\nsub/b.svs\n")] == ["a", "b"]
    with caplog.at_level(logging.INFO):
        assert read(cohort, "age,slide,scanner\n50,a.svs,x\n")[0] == SlideEntry("a", cohort / "a.svs")
    assert "say nothing to us: age, scanner" in caplog.text


def test_an_absolute_path_is_a_path_and_an_id_may_repeat_in_no_spelling(cohort: Path) -> None:
    assert read(cohort, f"slide\n{cohort / 'a.svs'}\n")[0].path == cohort / "a.svs"


def test_a_file_is_found_whichever_way_its_accents_are_spelled(tmp_path: Path) -> None:
    (tmp_path / "mu\u0308ller.svs").touch()
    (entry,) = read(tmp_path, "slide\nm\u00fcller.svs\n")
    assert entry.slide_id == "m\u00fcller"
    assert entry.path.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", r"no column slide \(columns found: none\)"),
        ("path,id\na.svs,1\n", r"no column slide \(columns found: path, id\)"),
        ("slide_id,label\na,x\n", r"no column slide \(columns found: slide_id, label\)"),
        ("slide;id\na.svs;1\n", "divided by semicolons, not by commas"),
        ("slide\tid\na.svs\t1\n", "divided by tabs, not by commas"),
        ("slide,id\n", "holds no slides"),
        ("slide,id\n,\n\n", "holds no slides"),
        ("slide,slide\na.svs,b\n", "column slide twice"),
        ("slide,id,slide_id\na.svs,1,1\n", "both a column id and a column slide_id"),
        ("slide,id\na.svs,1,x\n", "line 2 has 3 values under 2 columns"),
        ("slide,id\na.svs\n", "line 2 has 1 values under 2 columns"),
        ('slide,id\n"a.svs,1\n', "line 2 is not CSV"),
        ("slide,id\n,1\n", "line 2 has no slide"),
        ("slide,id\na.svs,1\nc.svs,1\n", "has the id '1' in line 3 and in line 2"),
        ("slide,id\na.svs,S\nc.svs,s\n", "has the id 's' in line 3 and in line 2, there spelled 'S'"),
        ("slide,id\na.svs,x\na.svs,y\n", "names the file 'a.svs' in line 2 and in line 3"),
        ("slide,id\na.svs,x\n./sub/../a.svs,y\n", "in line 2 and in line 3"),
        ("slide,id\na.svs,../../evil\n", r"line 2: '../../evil' cannot be a slide id"),
        ("slide,id\na.svs,/etc/passwd\n", "line 2: '/etc/passwd' cannot be a slide id"),
        ("slide,id\na.svs,.hidden\n", "cannot be a slide id"),
        ("slide,id\na.svs," + "x" * 200 + "\n", "cannot be a slide id"),
        ('slide,id\na.svs,"a\nb"\n', "cannot be a slide id"),
        ("slide,mpp\na.svs,fine\n", "line 2 has mpp 'fine', which is not a number"),
        ("slide,mpp\na.svs,0\n", "line 2: microns per pixel are overridden by 0; 0.05 to 100 are possible"),
        ("slide,mpp\na.svs,nan\n", "0.05 to 100 are possible"),
        ("slide,mpp\na.svs,-0.5\n", "0.05 to 100 are possible"),
        ("slide,mpp\na.svs,1e9\n", "0.05 to 100 are possible"),
        (b"slide,id\na.svs,1\0\n", "holds a NUL character in line 2"),
        (FULL.encode("utf-16"), "is UTF-16 text"),
        (FULL.encode("utf-16-be"), "is UTF-16 text"),
        ("slide,id\na.svs,ä\n".encode("latin-1"), r"not UTF-8 text \(line 2, byte 0xE4"),
        ("slide\nno.svs\na.svs\nsub\n", r"2 of 3 slide files are missing: 'no.svs', 'sub' \(lines 2, 4\)"),
        ("slide\n" + "".join(f"{i}.svs\n" for i in range(9)), "9 of 9 slide files are missing: .*, ..."),
    ],
)
def test_what_would_spoil_a_run_is_refused_before_it(cohort: Path, content: str | bytes, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        read(cohort, content)
    assert caught.value.path == str(cohort / "manifest.csv")
    assert caught.value.action
    assert len(str(caught.value).splitlines()) == 1


def test_a_pipe_and_a_missing_manifest_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UsageError, match="is a pipe"):
        read_manifest(tmp_path / "pipe.csv")
    with pytest.raises(UsageError, match="no such file"):
        read_manifest(tmp_path / "none.csv")


@settings(max_examples=60)
@given(st.text() | st.binary())
def test_no_bytes_whatever_do_more_than_be_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: str | bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UsageError) as caught:
        read_manifest(path)
    assert len(caught.value.reason) < 400


LETTERS = st.characters(categories=["L", "N", "P", "S"], exclude_characters="/\\")
VALUES = st.text(LETTERS, min_size=1, max_size=20).map(partial(unicodedata.normalize, "NFC"))


@settings(max_examples=40)
@given(st.lists(VALUES.map("s{}".format), min_size=1, max_size=5, unique_by=str.casefold), VALUES, VALUES)
def test_what_a_csv_writer_writes_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str], label: str, patient: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "round-trip"
    folder.mkdir(exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["slide", "id", "label", "patient"])
    for index, name in enumerate(ids):
        (folder / f"{index}.svs").touch()
        writer.writerow([f"{index}.svs", name, label, patient])
    assert read(folder, text.getvalue()) == tuple(
        SlideEntry(name, folder / f"{index}.svs", None, label, patient) for index, name in enumerate(ids)
    )


def test_a_manifest_will_do_as_a_table_of_labels(cohort: Path) -> None:
    path = cohort / "manifest.csv"
    path.write_text("slide,id,label,patient\na.svs,00123,tumour,p\nsub/b.svs,,normal,q\ngone.svs,,normal,q\n")
    rows = read_labels(path).rows
    assert [(r.slide_id, r.label, r.patient, r.line) for r in rows] == [
        ("00123", "tumour", "p", 2),
        ("b", "normal", "q", 3),
        ("gone", "normal", "q", 4),  # encoded long ago: its file is not asked for
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("slide,id\na.svs,1\n", r"no column label \(columns found: slide, id\)"),
        ("slide,label\na.svs,x\nc.svs,\n", "line 3 has no label"),
        ("slide,label\na.svs,x\nsub/a.svs,y\n", "slide 'a' more than once"),
    ],
)
def test_a_manifest_that_labels_nothing_says_what_is_missing(cohort: Path, content: str, reason: str) -> None:
    (cohort / "manifest.csv").write_text(content)
    with pytest.raises(UsageError, match=reason):
        read_labels(cohort / "manifest.csv")


# Files, folders, patterns ---------------------------------------------------------------------------------


def names(folder: Path, *named: str) -> list[str]:
    return [str(path.relative_to(folder)) for path in search(folder / name for name in named).paths]


def test_patterns_are_expanded_by_us(cohort: Path) -> None:
    (cohort / "sub" / "d.ndpi").touch()
    (cohort / "sub" / "notes.txt").touch()
    (cohort / "sub" / "x.bin").touch()
    assert names(cohort, "*.svs") == ["a.svs", "c.svs"]
    assert names(cohort, "**/*.svs") == ["a.svs", "c.svs", "sub/b.svs"]
    assert names(cohort, "**") == names(cohort, "**/*") == ["a.svs", "c.svs", "sub/b.svs", "sub/d.ndpi"]
    assert names(cohort, "[ac].*") == ["a.svs", "c.svs"]
    assert names(cohort, "su?") == ["sub/b.svs", "sub/d.ndpi"]  # a folder, as a shell would have it
    assert names(cohort, "sub/*.bin") == ["sub/x.bin"]
    with pytest.raises(UsageError, match="no slide fits this pattern"):
        names(cohort, "*.scn")


def test_a_name_that_is_there_is_no_pattern(cohort: Path) -> None:
    (cohort / "a[1].svs").touch()
    (cohort / "a1.svs").touch()
    assert names(cohort, "a[1].svs") == ["a[1].svs"]
    assert names(cohort, "nowhere.svs") == ["nowhere.svs"]  # opening it says what is wrong with it


def test_a_folder_s_circle_of_links_is_not_walked(cohort: Path) -> None:
    (cohort / "sub" / "loop").symlink_to(cohort)
    assert names(cohort, "**/*.svs") == ["a.svs", "c.svs", "sub/b.svs"]


@pytest.mark.parametrize("named", ["", "*", "**/*"])
def test_what_only_looks_like_a_slide_is_left_out_and_counted(
    cohort: Path, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("._a.svs", ".x.svs", "big.svs.partial", "notes.partial", "._notes"):
        (cohort / name).touch()
    (cohort / "m.mrxs").mkdir()
    (cohort / ".git").mkdir()
    (cohort / ".git" / "z.svs").touch()
    found = search([cohort / named])
    assert [p.name for p in found.paths if p.parent == cohort] == ["a.svs", "c.svs"]
    assert sorted((p.name, kind) for p, kind in found.ignored) == [
        ("._a.svs", "hidden"), (".x.svs", "hidden"), ("big.svs.partial", "unfinished"), ("m.mrxs", "folders"),
    ]  # fmt: skip
    list_entries([cohort / named])
    assert "4 files that look like a slide left out (folders: 1, hidden: 2, unfinished: 1)" in caplog.text


def test_an_empty_folder_says_where_slides_are(cohort: Path) -> None:
    (cohort / "gdc" / "uuid").mkdir(parents=True)
    (cohort / "gdc" / "uuid" / "s.svs").touch()
    with pytest.raises(UsageError, match=r"some further down: give '.*/\*\*/\*' in quotes"):
        search([cohort / "gdc"])
    (cohort / "nothing").mkdir()
    with pytest.raises(UsageError, match="no slide in this folder"):
        search([cohort / "nothing"])


def test_levels_of_a_dicom_slide_are_not_taken_for_slides(cohort: Path) -> None:
    for name in ("1.dcm", "2.dcm"):
        (cohort / "sub" / name).touch()
    for named in ("sub", "sub/*.dcm", "**/*"):
        with pytest.raises(UsageError, match="several DICOM files"):
            search([cohort / named])


def test_entries_have_ids_of_their_own(cohort: Path) -> None:
    (cohort / "sub" / "A.tif").touch()
    with pytest.raises(UsageError, match=r"a\.svs and .*A\.tif would both be slide 'A'"):
        find_entries([cohort, cohort / "sub"])
    manifest = cohort / "manifest.csv"
    manifest.write_text("slide,id,mpp\nsub/A.tif,A2,0.5\n")
    found = find_entries([cohort, manifest])
    assert list(found) == ["a", "c", "A2"]
    assert mpp_by_path(found) == {cohort / "sub/A.tif": 0.5}
    assert list(find_entries([cohort, cohort / "a.svs", cohort / "sub/../a.svs"])) == ["a", "c"]
    with pytest.raises(UsageError, match=r"named twice, as 'A2' with 0\.5 microns per pixel and as 'A'"):
        find_entries([manifest, cohort / "sub" / "A.tif"])


def test_a_manifest_s_resolution_goes_before_the_command_s(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.svs", seed=1, lesion=False, size=(512, 512))
    arguments = Namespace(mpp_override=2.0, trust_objective=False)
    for stated, wanted in (({}, 2.0), ({tmp_path / "a.svs": 0.3}, 0.3), ({tmp_path / "b.svs": 0.3}, 2.0)):
        with open_slide(tmp_path / "a.svs", arguments, stated) as slide:
            assert slide.require_resolution().mpp == wanted


# A command over a manifest --------------------------------------------------------------------------------


def test_tile_cuts_a_manifest_s_slides_at_their_own_resolutions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    write_slide(slides / "one.svs", seed=1, lesion=False, size=(1024, 768), mpp=None)
    write_slide(slides / "two.svs", seed=2, lesion=False, size=(1024, 768), mpp=0.5)
    manifest, out = tmp_path / "cohort.csv", tmp_path / "out"
    manifest.write_text("slide,id,mpp,label\nslides/one.svs,001,1,x\nslides/two.svs,002,,y\n")
    words = ["--mpp", "1", "--tile-size", "64", "-o", str(out)]
    assert cli.main(["tile", str(manifest), *words]) == 0
    stores = {name: TileStore(Output(out), name) for name in ("001", "002")}
    assert Output(out).slide_ids() == ["001", "002"]
    assert stores["001"].tiles.recipe["resolution"] == {"x": 1.0, "y": 1.0, "source": "override"}
    assert stores["002"].tiles.recipe["resolution"]["source"] == "vendor property"
    manifest.write_text("slide\nslides/one.svs\nslides/none.svs\n")
    capsys.readouterr()
    assert cli.main(["tile", str(manifest), "-o", str(tmp_path / "new")]) == 2
    assert "1 of 2 slide files are missing: 'slides/none.svs' (line 3)" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
