"""Tables of labels as spreadsheets and accidents leave them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corpus.fault import Fault, Outcome, Processed, Reader, Rejected

SOUND = "slide_id,label,patient\ns1,tumour,p1\ns2,normal,p2\n"
ROWS = [["s1", "tumour", "p1"], ["s2", "normal", "p2"]]


def reads(*rows: tuple[str, str, str | None]) -> Processed:
    """The table holds these lines, and nothing else."""

    def holds(found: Any) -> None:
        assert found["rows"] == [list(row) for row in rows]

    return Processed(holds=holds)


AS_MEANT = reads(("s1", "tumour", "p1"), ("s2", "normal", "p2"))


def table(name: str, what: str, content: str | bytes, outcome: Outcome | str) -> Fault:
    """A case of one file; of an outcome that is text, that is what must be said."""

    def make(folder: Path) -> Path:
        path = folder / "labels.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    wanted = Rejected(outcome, code=2) if isinstance(outcome, str) else outcome
    return Fault(name, what, make, wanted, Reader.LABELS)


def odd(name: str, what: str, make: Callable[[Path], object], says: str) -> Fault:
    """A case whose file is no file."""

    def made(folder: Path) -> Path:
        make(folder / "labels.csv")
        return folder / "labels.csv"

    return Fault(name, what, made, Rejected(says, code=2), Reader.LABELS)


def lines(*rows: str, columns: str = "slide_id,label") -> str:
    return "\n".join((columns, *rows)) + "\n"


TABLES = (
    table(
        "csv_bom_crlf",
        "a mark in front and other line ends",
        ("\ufeff" + SOUND.replace("\n", "\r\n")),
        AS_MEANT,
    ),
    table("csv_no_last_end", "no end of the last line", SOUND.rstrip(), AS_MEANT),
    table("csv_mac_ends", "the line ends of old Macs", SOUND.replace("\n", "\r"), AS_MEANT),
    table(
        "csv_blanks",
        "blanks around values, and lines without any",
        SOUND.replace(",", " , ").replace("\n", "\n ,,\n", 1),
        AS_MEANT,
    ),
    table(
        "csv_lead_zero",
        "ids that look like numbers, dates or nothing",
        lines("00123,a", "123,b", "1e5,a", "NA,b", "TRUE,a", "1-2,b"),
        reads(
            *(
                (name, label, None)
                for name, label in zip(("00123", "123", "1e5", "NA", "TRUE", "1-2"), "ababab", strict=True)
            )
        ),
    ),
    table(
        "csv_quotes",
        "quotes in values",
        lines('"s,1",a', '"s""2",b'),
        reads(("s,1", "a", None), ('s"2', "b", None)),
    ),
    table(
        "csv_html",
        "a script as an id",
        lines("<script>alert(1)</script>,a".replace("/", ""), "s2,b"),
        reads(("<script>alert(1)<script>", "a", None), ("s2", "b", None)),
    ),
    table("csv_empty", "an empty file", "", r"no column slide_id nor label \(columns found: none\)"),
    table("csv_header_only", "columns and no line", "slide_id,label\n", "holds no slides"),
    table(
        "csv_no_column",
        "other columns",
        "name,class\ns1,a\n",
        r"no column slide_id nor label \(columns found: name, class\)",
    ),
    table(
        "csv_no_header", "no columns", "s1,tumour\ns2,normal\n", r"no column .*\(columns found: s1, tumour\)"
    ),
    table("csv_dup_column", "a column twice", "slide_id,label,label\ns1,a,b\n", "column label twice"),
    table(
        "csv_semicolon",
        "semicolons",
        SOUND.replace(",", ";"),
        "is divided by semicolons, not by commas",
    ),
    table("csv_tabs", "tabs", SOUND.replace(",", "\t"), "is divided by tabs, not by commas"),
    table(
        "csv_utf16", "UTF-16, as Excel's Unicode text", SOUND.encode("utf-16"), "is UTF-16 text, not UTF-8"
    ),
    table("csv_utf16_bare", "UTF-16 without a mark", SOUND.encode("utf-16-le"), "is UTF-16 text, not UTF-8"),
    table("csv_latin1", "Latin-1", SOUND.replace("tumour", "Tumör").encode("latin-1"), "is not UTF-8"),
    table("csv_nul", "a zero byte", SOUND.replace("s2", "s\0002"), "holds a NUL character in line 3"),
    table(
        "csv_ragged", "a line of more values", lines("s1,a,x", "s2,b"), "line 2 has 3 values under 2 columns"
    ),
    table("csv_short", "a line of fewer", lines("s1", "s2,b"), "line 2 has 1 values under 2 columns"),
    table("csv_open_quote", "a quote that does not end", lines('s1,"a', "s2,b"), "is not CSV"),
    table(
        "csv_huge_field",
        "a value of a megabyte",
        lines(f"s1,{'a' * 2**20}", "s2,b"),
        "line 2 is not CSV .field larger than",
    ),
    table(
        "csv_is_a_zip",
        "an .xlsx that was renamed",
        b"PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0b\xee\x9dh",
        "holds a NUL character in line 1: it is damaged, or no text",
    ),
    table(
        "csv_dup_id",
        "a slide twice",
        lines("s1,a", "s2,b", "s1,a"),
        r"slide 's1' more than once \(lines 2, 4\)",
    ),
    table(
        "csv_traversal",
        "a path as id",
        lines("../../evil,a", "s2,b"),
        r"'../../evil' cannot be a slide id.*\(line 2\)",
    ),
    table(
        "csv_absolute",
        "an absolute path",
        lines("s1,a", "/etc/passwd,b"),
        r"'/etc/passwd' cannot be a slide id.*\(line 3\)",
    ),
    table(
        "csv_formula",
        "a formula as a label",
        lines("s1,=cmd|' /C calc'!A0", "s2,b"),
        r"takes for a formula \(line 2\)",
    ),
    table(
        "csv_formula_plus",
        "another one",
        lines("s1,a", "s2,+cmd|' /C calc'!A0"),
        r"takes for a formula \(line 3\)",
    ),
    table("csv_one_class", "one label", lines("s1,a", "s2,a"), "one label .'a'. to train on"),
    table("csv_label_empty", "a line without label", lines("s1,a", "s2,"), "line 3 has no label"),
    table(
        "csv_label_case",
        "one label in two spellings",
        lines("s1,Tumor", "s2,tumor", "s3,b"),
        "'Tumor' in line 2, 'tumor' in line 3",
    ),
    table(
        "csv_label_space",
        "a label with a blank behind it",
        lines("s1,Tumor ", "s2,Tumor", "s3,b"),
        reads(("s1", "Tumor", None), ("s2", "Tumor", None), ("s3", "b", None)),
    ),
    table(
        "csv_label_colon",
        "a colon, which divides classes in QuPath",
        lines("s1,a: b", "s2,b"),
        "holds a colon",
    ),
    table("csv_label_newline", "a label of two lines", lines('s1,"a\nb"', "s2,b"), "one line"),
    table(
        "csv_label_unseen",
        "a label in the test alone",
        lines("s1,a,train", "s2,b,train", "s3,c,test", columns="slide_id,label,split"),
        r"not trained on: 'c' \(line 4\)",
    ),
    table(
        "csv_patient_leak",
        "a patient on both sides",
        lines("s1,a,p,train", "s2,b,q,train", "s3,a,p,test", columns="slide_id,label,patient,split"),
        r"patient 'p' in both train and test \(lines 2, 4\)",
    ),
    table(
        "csv_patient_folds",
        "a patient in two folds",
        lines("s1,a,p,0", "s2,b,q,0", "s3,a,p,1", columns="slide_id,label,patient,fold"),
        "patient 'p' in two folds",
    ),
    odd("csv_missing", "no file", lambda path: None, "no such file"),
    odd("csv_folder", "a folder", Path.mkdir, "cannot be read"),
    odd("csv_fifo", "a pipe that nobody writes to", os.mkfifo, "is a pipe, socket or device"),
    odd(
        "csv_device",
        "a device without end",
        lambda path: path.symlink_to("/dev/zero"),
        "is a pipe, socket or device",
    ),
)
