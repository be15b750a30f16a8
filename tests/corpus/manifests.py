"""Manifests (slide, id, mpp, label, patient) as spreadsheets leave them, and what must come of each.

Each is a file in a folder that also holds the slides `THERE`; paths in it count from that folder.
"""

from __future__ import annotations

from dataclasses import dataclass

from corpus.fault import Rejected

THERE = ("a/s1.svs", "b/s1.svs", "b/s2.svs", "s2.svs", "s2.tiff", "S2.svs")
"""Sound slides beside the manifest."""


@dataclass(frozen=True)
class Entries:
    """The table is sound, and means these slides."""

    ids: tuple[str, ...]
    """In order."""
    mpp: tuple[float | None, ...] = ()
    """What it states of each; blank stands for none of any."""


@dataclass(frozen=True)
class ManifestFault:
    """One manifest and its outcome."""

    name: str
    what: str
    content: bytes
    outcome: Rejected | Entries


def refused(says: str) -> Rejected:
    """Nothing is started; the line of error names the manifest."""
    return Rejected(says, code=2)


def of(name: str, what: str, content: str | bytes, outcome: Rejected | Entries) -> ManifestFault:
    return ManifestFault(name, what, content.encode() if isinstance(content, str) else content, outcome)


SOUND = "slide,id,mpp,label,patient\na/s1.svs,one,0.25,tumour,p1\nb/s2.svs,two,,normal,p2\n"
BOTH = Entries(("one", "two"), (0.25, None))

MANIFESTS = (
    of("sound", "as it should be", SOUND, BOTH),
    of("csv_bom_crlf", "a mark in front and other line ends", "\ufeff" + SOUND.replace("\n", "\r\n"), BOTH),
    of(
        "csv_blanks",
        "blanks around values, and lines without any",
        SOUND.replace(",", " , ").replace("\n", "\n,,,,\n", 1),
        BOTH,
    ),
    of("csv_other_columns", "columns of other programs", "age,slide\n50,a/s1.svs\n", Entries(("s1",))),
    of("csv_mpp_comma", "a decimal comma", SOUND.replace("0.25", '"0,25"'), BOTH),
    of(
        "csv_lead_zero",
        "ids that look like numbers or nothing",
        "slide,id\na/s1.svs,00123\nb/s1.svs,123\nb/s2.svs,1e5\ns2.svs,NA\n",
        Entries(("00123", "123", "1e5", "NA")),
    ),
    of(
        "csv_html",
        "a script as an id",
        "slide,id\na/s1.svs,<img src=x onerror=alert(1)>\n",
        Entries(("<img src=x onerror=alert(1)>",)),
    ),
    of(
        "csv_formula",
        "a formula as an id: data, and escaped where it is shown",
        "slide,id\na/s1.svs,=1+1\n",
        Entries(("=1+1",)),
    ),
    of("csv_empty", "an empty file", "", refused(r"no column slide \(columns found: none\)")),
    of("csv_header_only", "columns and no line", "slide,id\n", refused("holds no slides")),
    of("csv_no_column", "other columns", "name,class\ns1,a\n", refused(r"no column slide .*name, class")),
    of("csv_dup_column", "a column twice", "slide,id,id\na/s1.svs,a,b\n", refused("column id twice")),
    of("csv_semicolon", "semicolons", SOUND.replace(",", ";"), refused("semicolons")),
    of("csv_tabs", "tabs", SOUND.replace(",", "\t"), refused("tabs")),
    of(
        "csv_utf16",
        "UTF-16, as Excel's Unicode text",
        SOUND.encode("utf-16"),
        refused("is UTF-16 text, not UTF-8"),
    ),
    of(
        "csv_latin1",
        "Latin-1",
        SOUND.replace("tumour", "Tumör").encode("latin-1"),
        refused("is not UTF-8 text .line 2"),
    ),
    of(
        "csv_nul",
        "a zero byte",
        SOUND.replace("one", "o\0ne"),
        refused("holds a NUL character in line 2"),
    ),
    of(
        "csv_ragged",
        "a line of more values",
        "slide,id\na/s1.svs,a,b\n",
        refused("line 2 has 3 values under 2 columns"),
    ),
    of("csv_open_quote", "a quote that does not end", 'slide,id\na/s1.svs,"a\n', refused("is not CSV")),
    of("csv_no_slide", "a line without slide", "slide,id\n,a\n", refused("line 2 has no slide")),
    of(
        "csv_dup_id",
        "an id twice",
        "slide,id\na/s1.svs,x\nb/s1.svs,x\n",
        refused("has the id 'x' in line 3 and in line 2"),
    ),
    of(
        "csv_dup_case",
        "ids that differ in capitals only",
        "slide,id\na/s1.svs,X\nb/s1.svs,x\n",
        refused("has the id 'x' in line 3 and in line 2, there spelled 'X'"),
    ),
    of(
        "csv_dup_file",
        "a slide twice",
        "slide,id\na/s1.svs,x\na/../a/s1.svs,y\n",
        refused("in line 2 and in line 3"),
    ),
    of(
        "csv_traversal",
        "a path as id",
        "slide,id\na/s1.svs,../../evil\n",
        refused("line 2.*'../../evil' cannot be a slide id"),
    ),
    of(
        "csv_absolute",
        "an absolute path as id",
        "slide,id\na/s1.svs,/etc/passwd\n",
        refused("line 2.*cannot be a slide id"),
    ),
    of(
        "csv_hidden",
        "an id that hides",
        "slide,id\na/s1.svs,.work\n",
        refused("line 2.*cannot be a slide id"),
    ),
    of(
        "csv_missing_file",
        "slides that are not there, all named at once",
        "slide\na/s1.svs\ngone.svs\naway.svs\n",
        refused("gone.svs.*away.svs"),
    ),
    of(
        "dup_stem_dirs",
        "one name in two folders, and no ids",
        "slide\na/s1.svs\nb/s1.svs\n",
        refused("'s1'.*line"),
    ),
    of(
        "dup_stem_ext",
        "one name with two suffixes, and no ids",
        "slide\ns2.svs\ns2.tiff\n",
        refused("'s2'.*line"),
    ),
    of("dup_stem_id", "the same with ids", "slide,id\na/s1.svs,a\nb/s1.svs,b\n", Entries(("a", "b"))),
    of("csv_mpp_text", "a word as mpp", SOUND.replace("0.25", "fine"), refused("line 2 has mpp 'fine'")),
    of("csv_mpp_nan", "nan as mpp", SOUND.replace("0.25", "nan"), refused("line 2.*nan")),
    of("csv_mpp_huge", "350 µm", SOUND.replace("0.25", "350"), refused("line 2.*350")),
    of("csv_mpp_negative", "less than 0", SOUND.replace("0.25", "-0.25"), refused("line 2.*-0.25")),
)
