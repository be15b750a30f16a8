"""Laws of the label table: a sound one is read as it was meant, any other is refused with its lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from mil.labels import LabelTable, Split, labels_to_csv, read_labels
from wsi.errors import UsageError

GOOD = "slide_id,label,patient,split\n007,tumour,p1,train\ns2,normal,p2,train\ns3,normal,p3,test\n"


def read(tmp_path: Path, content: str | bytes) -> LabelTable:
    path = tmp_path / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_labels(path)


def test_a_table_is_read_as_text(tmp_path: Path) -> None:
    table = read(tmp_path, GOOD)
    assert [row.slide_id for row in table.rows] == ["007", "s2", "s3"]
    assert table.classes == ("normal", "tumour")
    assert [row.slide_id for row in table.of(Split.TEST)] == ["s3"]
    assert [row.patient for row in table.of(Split.TRAIN)] == ["p1", "p2"]
    assert [row.line for row in table.rows] == [2, 3, 4]


@pytest.mark.parametrize(
    "spelled",
    [
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.replace(",", " , "),
        GOOD.rstrip(),
        '"slide_id",label,patient,split\n"007","tumour",p1,TRAIN\ns2,normal,p2,train\ns3,normal,p3,test\n',
    ],
)
def test_spelling_does_not_matter(tmp_path: Path, spelled: str) -> None:
    assert read(tmp_path, spelled).rows == read(tmp_path, GOOD).rows


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    table = read(tmp_path, GOOD.replace("\ns2", "\n\n,,,\ns2"))
    assert [row.line for row in table.rows] == [2, 5, 6]


def test_columns_come_in_any_order_and_others_are_ignored(tmp_path: Path) -> None:
    table = read(tmp_path, "age,label,slide_id\n50,a,s1\n60,b,s2\n")
    assert [(row.slide_id, row.label, row.patient, row.split) for row in table.rows] == [
        ("s1", "a", None, None),
        ("s2", "b", None, None),
    ]
    assert len(table.of(Split.TRAIN)) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", r"no column slide_id nor label \(columns found: none\)"),
        ("slide_id;label\ns1;a\n", "divided by semicolons, not by commas"),
        ("case,label\ns1,a\n", r"no column slide_id \(columns found: case, label\)"),
        ("slide_id,label,label\ns1,a,b\n", "column label twice"),
        ("slide_id,label\n", "holds no slides"),
        ("slide_id,label\ns1,a\ns2,b\ns1,a\n", r"slide 's1' more than once \(lines 2, 4\)"),
        ("slide_id,label\ns1,a\ns2, \n", "line 3 has no label"),
        ("slide_id,label\n,a\ns2,b\n", "line 2 has no slide_id"),
        ("slide_id,label,patient\ns1,a,\ns2,b,p\n", "line 2 has no patient"),
        ("slide_id,label\ns1,a,x\ns2,b\n", "line 2 has 3 values under 2 columns"),
        ("slide_id,label\ns1\n", "line 2 has 1 values under 2 columns"),
        ("slide_id,label\ns1,a\ns2,a\n", "one label .'a'. to train on"),
        ("slide_id,label,split\ns1,a,test\ns2,b,test\n", "no slides to train on"),
        ("slide_id,label,split\ns1,a,train\ns2,a,train\ns3,b,test\n", "one label"),
        ("slide_id,label,split\ns1,a,train\ns2,b,train\ns3,c,test\n", r"not trained on: 'c' \(line 4\)"),
        ("slide_id,label\ns1,Tumour\ns2,tumour\ns3,b\n", "'Tumour' in line 2, 'tumour' in line 3"),
        ("slide_id,label,split\ns1,a,training\ns2,b,train\n", "line 2 has split 'training'"),
        (
            "slide_id,label,patient,split\ns1,a,p,train\ns2,b,q,train\ns3,a,p,test\n",
            r"patient 'p' in both train and test \(lines 2, 4\)",
        ),
        ('slide_id,label\ns1,"a\nb"\ns2,c\n', r"label 'a\\nb', which .* one line \(line 3\)"),
        ("slide_id,label\ns1,a\x07\ns2,c\ns3,a\x07\n", r"cannot be printed on one line \(lines 2, 4\)"),
        ("slide_id,label\ns1,a: b\ns2,c\n", r"label 'a: b', which holds a colon \(line 2\)"),
        ("slide_id,label\ns1,a\ns2,Attention Rank\n", r"another channel of heatmaps \(line 3\)"),
        ("slide_id,label\ns1,a\ns2,uncertainty\n", r"another channel of heatmaps \(line 3\)"),
        (f"slide_id,label\ns1,a\ns2,{'é' * 51}\n", r"longer than 100 bytes \(line 3\)"),
        ("slide_id,label\né,a\ns2,b\ne\u0301,a\n", r"slide 'é' more than once \(lines 2, 4\)"),
        ('slide_id,label\ns1,"a\n', "is not CSV"),
        ("slide_id,label,fold\ns1,a,0\ns2,b,-1\n", "line 3 has fold '-1'"),
        ("slide_id,label,fold\ns1,a,0\ns2,b,1.0\n", "line 3 has fold '1.0'"),
        ("slide_id,label,fold\ns1,a,0\ns2,b,99999\n", "line 3 has fold '99999'"),
        ("slide_id,label,fold\ns1,a,1\ns2,b,2\n", "no slide in fold 0"),
        ("slide_id,label,fold\ns1,a,0\ns2,b,\n", r"no fold to some slides \(line 3\)"),
        (
            "slide_id,label,patient,fold\ns1,a,p,0\ns2,b,q,0\ns3,a,p,1\n",
            r"patient 'p' in two folds, 0 and 1 \(lines 2, 4\)",
        ),
        (
            "slide_id,label,split,fold\ns1,a,train,0\ns2,b,train,1\ns3,a,test,1\n",
            r"gives a fold to slides for testing \(line 4\)",
        ),
        (b"slide_id,label\ns1,\xff\n", "not UTF-8 text"),
    ],
)
def test_what_would_spoil_an_experiment_is_refused(tmp_path: Path, content: str | bytes, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        read(tmp_path, content)
    assert caught.value.path == str(tmp_path / "labels.csv")
    assert caught.value.action
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    [
        "slide_id,label\ns1,a\ns2,a\n",
        "slide_id,label,split\ns1,a,test\ns2,b,test\n",
        "slide_id,label,split\ns1,a,train\ns2,b,train\ns3,c,test\n",
        "slide_id,label,fold\ns1,a,1\ns2,b,3\n",
    ],
)
def test_a_table_that_nobody_learns_from_may_have_one_class_or_be_all_test(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(content)
    assert len(read_labels(path, to_train=False).rows) == content.count("\n") - 1
    with pytest.raises(UsageError):
        read_labels(path)


def test_a_patient_on_two_sides_is_refused_whoever_reads(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("slide_id,label,patient,split\ns1,a,p,train\ns2,a,p,test\n")
    with pytest.raises(UsageError, match="both train and test"):
        read_labels(path, to_train=False)


def test_letters_with_accents_have_one_spelling(tmp_path: Path) -> None:
    table = read(tmp_path, "slide_id,label\nmu\u0308,é\ns2,e\u0301\ns3,b\n")
    assert table.classes == ("b", "é")
    assert table.rows[0].slide_id == "mü"


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_labels(tmp_path / "none.csv")
    with pytest.raises(UsageError, match="cannot be read"):
        read_labels(tmp_path)


def test_one_patient_may_have_several_slides_on_one_side(tmp_path: Path) -> None:
    rows = "slide_id,label,patient,split\ns1,a,p,train\ns2,b,p,train\ns3,a,q,test\n"
    assert len(read(tmp_path, rows).rows) == 3


def test_folds_are_read_and_left_to_the_program_where_blank(tmp_path: Path) -> None:
    table = read(tmp_path, "slide_id,label,split,fold\ns1,a,train,1\ns2,b,train,0\ns3,a,test,\n")
    assert [row.fold for row in table.rows] == [1, 0, None]
    assert table.folds == 2
    for content in (GOOD, "slide_id,label,fold\ns1,a,\ns2,b, \n"):
        assert read(tmp_path, content).folds == 0


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        'slide_id,label\n"a,1",x\nb,y\n',
        "slide_id,label,split,fold\ns1,a,train,1\ns2,b,train,0\ns3,a,test,\n",
        "slide_id,label,fold\ns1,a,\ns2,b,\n",
        'site,slide_id,label,patient\n"Oslo, A",s1,a,p\n,s2,b,q\n',
        "slide_id,label,site\ns1,a,\ns2,b, \n",
    ],
)
def test_a_table_is_written_as_it_was_read(tmp_path: Path, content: str) -> None:
    table = read(tmp_path, content)
    again = read(tmp_path, labels_to_csv(table))
    assert again == table
    assert labels_to_csv(again) == labels_to_csv(table)


def test_a_site_may_be_unknown_and_is_written_back_if_any_is_known(tmp_path: Path) -> None:
    table = read(tmp_path, "slide_id,site,label\ns1, e\u0301 1 ,a\ns2,,b\n")
    assert [row.site for row in table.rows] == ["é 1", None]
    assert labels_to_csv(table).decode() == "slide_id,label,site\ns1,a,é 1\ns2,b,\n"
    for content in (GOOD, "slide_id,label,site\ns1,a,\ns2,b, \n"):
        unknown = read(tmp_path, content)
        assert {row.site for row in unknown.rows} == {None}
        assert b"site" not in labels_to_csv(unknown)
    with pytest.raises(UsageError, match="column site twice"):
        read(tmp_path, "slide_id,label,site,site\ns1,a,x,y\ns2,b,x,y\n")
