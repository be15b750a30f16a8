"""Names of files, and folders that hold more than slides."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from corpus.fault import Fault, Given, Processed, Rejected, Warned
from corpus.slides import AS_IT_IS, Cut, like, svs
from tiling.output import Output


def kept_as_it_is(cut: Cut) -> None:
    """The id is what the file is called, to the letter: a table of ours has to be found by it again."""
    assert Output(cut.out).slide_ids() == sorted({*Output(cut.out).slide_ids(), cut.slide_id})
    assert len(cut.store)


NO_ID = Rejected("cannot be a slide id.*Rename the file")


def named(name: str) -> Callable[[Path], Path]:
    """A sound slide of that name."""
    return lambda folder: svs(folder / name)


def dup(*names: str) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> Given:
        paths = [folder / name for name in names]
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            svs(path)
        return paths

    return make


SAME = Rejected("would both be slide.*Rename one", code=2)
NAMES = (
    *(
        Fault(f"name_{short}", what, named(name), Processed(holds=kept_as_it_is))
        for short, what, name in (
            ("space", "blanks", "case 1  left.svs"),
            ("unicode", "letters of other alphabets", "Größe_肿瘤_жираф.svs"),
            ("emoji", "a picture", "😐.svs"),
            ("dash", "an option of rm", "-rf.svs"),
            ("option", "an option of ours", "--overwrite.svs"),
            ("long", "150 bytes", "n" * 150 + ".svs"),
            ("quote", "quotes", 'it\'s "quoted".svs'),
            ("dollar", "a command of a shell", "$(touch pwned) `touch pwned`; touch pwned.svs"),
            ("html", "a script", "<img src=x onerror=alert(1)>.svs"),
            ("formula", "a formula of a spreadsheet", "=cmd|' C calc'!A0.svs"),
            ("percent", "codes of addresses", "%2e%2e%2f%s%n.svs"),
            ("nfd", "accents apart from their letters", "e\u0301.svs"),
            ("reserved", "a name of DOS", "CON.svs"),
            ("dots", "several dots", "a.b..c.svs"),
            ("glob", "wildcards", "[a-z]*?.svs"),
            ("number", "a number", "00123.svs"),
            ("item", "a name of ours", "store.zarr.svs"),
        )
    ),
    *(
        Fault(f"name_{short}", what, named(name), NO_ID)
        for short, what, name in (
            ("newline", "two lines", "two\nlines.svs"),
            ("escape", "commands of a terminal", "\x1b[31mred.svs"),
            ("not_utf8", "bytes that are no text", os.fsdecode(b"\xff\xfe.svs")),
            ("230", "230 characters", "n" * 230 + ".svs"),
            ("backslash", "a path of Windows", "..\\..\\evil.svs"),
            ("trailing_space", "a blank at the end", "a .svs"),
            ("leading_space", "a blank in front", " a.svs"),
            ("hidden", "a hidden file", ".hidden.svs"),
            ("direction", "letters that turn the line round", "\u202egnp.svs"),
        )
    ),
    *(
        Fault(short, what, named(f"{short}{suffix}"), Processed(holds=like(svs)), words=AS_IT_IS)
        for short, what, suffix in (
            ("no_ext", "no suffix", ""),
            ("tiff_as_ndpi", "the suffix of another format", ".ndpi"),
            ("tiff_as_mrxs", "that of a cover whose folder would be missing", ".mrxs"),
            ("tiff_as_vms", "that of a text that names other files", ".vms"),
            ("tiff_as_dcm", "that of one level of several", ".dcm"),
            ("svs_as_jpg", "the suffix of a picture", ".jpg"),
            ("svs_as_h5", "the suffix of features", ".h5"),
        )
    ),
    Fault(
        "svs_as_csv",
        "the suffix of a manifest",
        named("svs_as_csv.csv"),
        Rejected("holds a NUL character|is not UTF-8", code=2),
    ),
    Fault("upper_case", "a suffix in capitals", named("UPPER.SVS"), Processed()),
    Fault("dup_stem_dirs", "one name in two folders", dup("a/s.svs", "b/s.svs"), SAME),
    Fault("dup_stem_ext", "one name with two suffixes", dup("s.svs", "s.tiff"), SAME),
    Fault("dup_case", "names that differ in capitals only", dup("s.svs", "S.svs"), SAME),
    Fault("dup_nfd", "names that differ in how accents are written", dup("\u00e9.svs", "e\u0301.svs"), SAME),
)


# Folders ---------------------------------------------------------------------------------------------------


def fifo(folder: Path) -> Path:
    path = folder / f"{folder.name}_pipe.svs"
    os.mkfifo(path)
    return path


def linked(target: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / f"{folder.name}.svs").symlink_to(target)
        return folder / f"{folder.name}.svs"

    return make


def link_to_slide(folder: Path) -> Path:
    (folder / "archive").mkdir()
    svs(folder / "archive" / "x.svs")
    return linked("archive/x.svs")(folder)


def a_socket(folder: Path) -> Path:
    """Bound by a short name: that is how long they may be."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"{folder.name}.svs")
    finally:
        os.chdir(before)
    return folder / f"{folder.name}.svs"


def a_folder(folder: Path) -> Path:
    (folder / f"{folder.name}.svs").mkdir()
    svs(folder / f"{folder.name}.svs" / "inside.svs")
    return folder / f"{folder.name}.svs"


def circle(folder: Path) -> Path:
    """A slide, folders that lead in a circle, and one that leads to slides of others; as a pattern."""
    cohort, others = folder / "cohort", folder / "others"
    for inside in (cohort / "a", others):
        inside.mkdir(parents=True)
    svs(cohort / "a" / f"{folder.name}.svs")
    svs(others / "secret.svs")
    (cohort / "a" / "back").symlink_to(cohort)
    (cohort / "elsewhere").symlink_to(others)
    return cohort


def pattern(*parts: str) -> Callable[[Path], Path]:
    return lambda folder: circle(folder).joinpath(*parts)


def linked_folder(folder: Path) -> Path:
    """A link to a folder, that is named itself."""
    (folder / "archive").mkdir()
    svs(folder / "archive" / f"{folder.name}.svs")
    (folder / "cohort").symlink_to("archive")
    return folder / "cohort"


def mrxs_folder(folder: Path) -> Path:
    """The folder that belongs to an .mrxs, given in its place."""
    inside = folder / "case"
    inside.mkdir()
    for name in ("Slidedat.ini", "Index.dat", "Data0000.dat"):
        (inside / name).touch()
    return inside


def odd_tree(folder: Path) -> Path:
    """A folder of everything at once, that is given as such; one slide in it is sound."""
    fifo(folder)
    linked("gone.svs")(folder)
    for name, target in (("round", "tree_round.svs"), ("endless", "/dev/zero"), ("evil", "/etc/passwd")):
        (folder / f"tree_{name}.svs").symlink_to(target)
    (folder / "tree_folder.svs").mkdir()
    (folder / "notes.txt").write_text("no slide")
    return folder


def unfinished(folder: Path) -> Path:
    """A sound slide, and what downloads and other systems leave beside one."""
    whole = svs(folder / "fine.svs").read_bytes()
    for name in ("x.svs.partial", "._fine.svs", ".x.svs", "x.svs.part", "x.svs.crdownload", "x.svs~"):
        (folder / name).write_bytes(whole[:5000])
    (folder / "md5sums.txt").write_text("0  fine.svs\n")
    return folder


def strangers(folder: Path) -> Path:
    """A sound slide, and what lies beside slides without looking like one."""
    svs(folder / "beside.svs")
    sums = ("beside.svs.md5", "beside.svs.sha256", "beside.md5", "SHA256SUMS", "MANIFEST.txt")
    others = (
        "beside.xml",
        "beside.jpg",
        "beside.h5",
        "beside.geojson",
        "beside.csv",
        "Thumbs.db",
        ".DS_Store",
        "README",
    )
    for name in (*sums, *others):
        (folder / name).write_bytes(b"no slide")
    return folder


NO_FILE = "is a pipe, socket or device"
FOLDERS = (
    Fault("missing", "a file that is not there", lambda f: f / f"{f.name}.svs", Rejected("does not exist")),
    Fault("fifo", "a pipe that nobody writes to", fifo, Rejected(NO_FILE)),
    Fault("socket", "a socket", a_socket, Rejected(NO_FILE)),
    Fault("device", "a device without end", linked("/dev/zero"), Rejected(NO_FILE)),
    Fault(
        "dangling",
        "a link to nothing",
        linked("gone.svs"),
        Rejected("is a link to gone.svs, which does not exist"),
    ),
    Fault("link_loop", "a link to itself", linked("link_loop.svs"), Rejected("cannot be read")),
    Fault(
        "link_out",
        "a link to a file of the system",
        linked("/etc/passwd"),
        Rejected("is a text, not a slide"),
    ),
    Fault("link_to_slide", "a link to a slide", link_to_slide, Processed()),
    Fault("folder_named_svs", "a folder that is called as a slide is", a_folder, Processed()),
    Fault(
        "mrxs_folder",
        "the folder of an .mrxs, in its place",
        mrxs_folder,
        Rejected("no slide in this folder", code=2),
    ),
    Fault("linked_folder", "a link to a folder of slides, named itself", linked_folder, Processed()),
    Fault("links_below", "'**' over links that lead in a circle", pattern("**", "*.svs"), Processed()),
    Fault(
        "links_met",
        "'*' that meets a link to a folder",
        pattern("*", "*.svs"),
        Warned("1 file that looks like a slide left out .behind links: 1.*elsewhere"),
        words=AS_IT_IS,
    ),
    Fault(
        "links_only",
        "a pattern whose slides lie behind a link",
        pattern("else*", "*.svs"),
        Rejected(
            "no slide fits this pattern. Links to folders are left out: name .*elsewhere itself", code=2
        ),
    ),
    Fault("odd_tree", "a folder of all these", odd_tree, Rejected("")),
    Fault(
        "empty_folder", "a folder without slides", lambda f: f, Rejected("no slide in this folder", code=2)
    ),
    Fault("strangers_beside", "sums, pictures and tables beside a slide", strangers, Processed()),
    Fault(
        "partial_download",
        "what downloads leave beside a slide",
        unfinished,
        Warned(r"5 files that look like a slide left out \(hidden: 2, unfinished: 3\)"),
        words=("--overlap", "0"),  # by itself: what is left out of all that is given is counted together
    ),
)
