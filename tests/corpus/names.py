"""Names of files, and folders that hold more than slides."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from corpus.fault import Fault, Given, Processed, Rejected
from corpus.slides import svs

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
        Fault(f"name_{short}", what, named(name), Processed())
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
    Fault("no_ext", "no suffix", named("no_ext"), Processed()),
    Fault("tiff_as_ndpi", "the suffix of another format", named("tiff_as_ndpi.ndpi"), Processed()),
    Fault("svs_as_jpg", "the suffix of a picture", named("svs_as_jpg.jpg"), Processed()),
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
        "link_out", "a link to a file of the system", linked("/etc/passwd"), Rejected("is a text|is no slide")
    ),
    Fault("link_to_slide", "a link to a slide", link_to_slide, Processed()),
    Fault("odd_tree", "a folder of all these", odd_tree, Rejected("")),
    Fault(
        "empty_folder", "a folder without slides", lambda f: f, Rejected("no slide in this folder", code=2)
    ),
    Fault("partial_download", "what downloads leave beside a slide", unfinished, Processed()),
)
