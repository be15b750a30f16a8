"""HDF5 files that other tools, broken transfers and strangers leave for `import`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from corpus.fault import Fault, Outcome, Processed, Reader, Rejected

PLACES = np.array([[0, 0], [128, 0], [0, 128]], np.int64)
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
SIZE = {"patch_size": 128, "patch_level": 0}
"""What CLAM says of a tile."""
TRIDENT = {"patch_size": 64, "patch_size_level0": 128, "level0_magnification": 20, "target_magnification": 10}


def write(path: Path, *, attributes: dict[str, Any] | None = None, **datasets: Any) -> None:
    """A file of these datasets; the attributes are those of `coords`."""
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
        if "coords" in file:
            file["coords"].attrs.update(SIZE if attributes is None else attributes)


def given(change: Callable[[Path], object]) -> Callable[[Path], Path]:
    """A folder in which `change` makes the file of slide s1."""

    def make(folder: Path) -> Path:
        (folder / "theirs").mkdir()
        change(folder / "theirs" / "s1.h5")
        return folder / "theirs"

    return make


def case(name: str, what: str, outcome: str | Outcome, change: Callable[[Path], object]) -> Fault:
    """A case of one file; of an outcome that is text, that is what must be said, of this very file."""
    wanted = Rejected(outcome, code=2) if isinstance(outcome, str) else outcome
    return Fault(name, what, given(change), wanted, Reader.FOREIGN)


def holding(**content: Any) -> Callable[[Path], None]:
    """A file of places, and of what else is named."""
    return lambda path: write(path, **{"coords": PLACES, **content})


def cut(share: float) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        write(path, coords=PLACES, features=np.zeros((3, 4096), np.float32))
        os.truncate(path, round(path.stat().st_size * share))

    return make


def claiming(**shapes: tuple[int, ...]) -> Callable[[Path], None]:
    """Datasets of these shapes, of which nothing was ever written: a small file."""

    def make(path: Path) -> None:
        write(path, **{name: values for name, values in {"coords": PLACES}.items() if name not in shapes})
        with h5py.File(path, "a") as file:
            for name, shape in shapes.items():
                chunks = tuple(min(side, 1024) for side in shape)
                file.create_dataset(name, shape, np.float32, chunks=chunks)
            file["coords"].attrs.update(SIZE)

    return make


def elsewhere(path: Path) -> None:
    """Features that are a link into a file of somebody else's."""
    write(path, coords=PLACES)
    with h5py.File(path, "a") as file:
        file["features"] = h5py.ExternalLink("/etc/passwd", "features")


def round_link(path: Path) -> None:
    write(path, attributes={})
    with h5py.File(path, "a") as file:
        file["coords"] = h5py.SoftLink("/coords")


def a_group(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("coords")


def two_sizes(path: Path) -> None:
    for folder in ("20x_128", "20x_256"):
        write(path.parent / folder / "s1.h5", coords=PLACES)


def beside(path: Path) -> None:
    """A sound file, and what is none of ours: passed over."""
    write(path, coords=PLACES)
    for name in ("s1.h5.md5", "summary.csv", "s1.pt", "log.txt"):
        (path.parent / name).write_bytes(b"nothing")


def reads(rows: int, shape: tuple[int, int] | None = None) -> Processed:
    def holds(found: Any) -> None:
        assert found == {"s1": [rows, list(shape) if shape else None]}

    return Processed(holds=holds)


def stating(**attributes: Any) -> Callable[[Path], None]:
    return holding(attributes=attributes)


CUT_SHORT = "s1.h5: cannot be read as HDF5, or is cut short"
FOREIGN = (
    case("h5_clam", "places as CLAM writes them", reads(3), holding()),
    case(
        "h5_trident",
        "places and features as TRIDENT writes them",
        reads(3, (3, 4)),
        holding(features=ROWS, attributes=TRIDENT),
    ),
    case("h5_beside", "sums and tables beside a file", reads(3), beside),
    case("h5_zero_byte", "an empty file", CUT_SHORT, Path.touch),
    case("h5_html", "a login page", CUT_SHORT, lambda path: path.write_bytes(b"<html>Please log in")),
    case("h5_cut", "half of a file", CUT_SHORT, cut(0.5)),
    case("h5_cut_1", "a hundredth of a file", CUT_SHORT, cut(0.01)),
    case("h5_fifo", "a pipe that nobody writes to", "s1.h5: is a pipe, socket or device", os.mkfifo),
    case("h5_other", "other datasets", "holds no dataset 'coords'", lambda path: write(path, data=ROWS)),
    case("h5_group", "a folder in place of places", "'coords' is not a dataset of its own", a_group),
    case("h5_round", "a link to itself", CUT_SHORT, round_link),
    case("h5_elsewhere", "features in another file", "'features' is not a dataset of its own", elsewhere),
    case("h5_no_size", "no tile size", "does not state a patch_size", stating()),
    case(
        "h5_size_nan",
        "nan as a tile's size",
        "states a patch_size of nan",
        stating(patch_size=np.nan, patch_level=0),
    ),
    case(
        "h5_size_text",
        "a word as a tile's size",
        "states a patch_size of 'large'",
        stating(patch_size="large", patch_level=0),
    ),
    case("h5_flat", "places in one row", "has the shape", holding(coords=np.arange(6))),
    case("h5_three", "places of three numbers", "has the shape", holding(coords=np.zeros((3, 3), int))),
    case("h5_words", "words as places", "are of type object", holding(coords=[[b"a", b"b"]])),
    case("h5_nan", "NaN among places", "are no level-0 pixels", holding(coords=PLACES * np.nan)),
    case("h5_negative", "places left of the slide", "are no level-0 pixels", holding(coords=PLACES - 1)),
    case("h5_twice", "one place twice", "1 of 3 coords twice", holding(coords=PLACES * [[0], [1], [0]])),
    case("h5_fewer", "fewer features than places", "3 coords and 2 rows", holding(features=ROWS[:2])),
    case(
        "h5_whole", "whole numbers as features", "features of type int64", holding(features=ROWS.astype(int))
    ),
    case(
        "h5_feat_nan",
        "NaN among features",
        "NaN or infinite features in 3 of 3",
        holding(features=ROWS * np.nan),
    ),
    case("h5_feat_flat", "features in one row", "'features' has the shape", holding(features=ROWS[0])),
    case(
        "h5_long",
        "places without end, in a small file",
        "rows, 10,000,000 at most",
        claiming(coords=(2**40, 2)),
    ),
    case(
        "h5_wide",
        "features of a billion numbers, in a small file",
        "'features' has 1,073,741,824 numbers a row",
        claiming(features=(3, 2**30)),
    ),
    case(
        "h5_unwritten",
        "features that nobody wrote, and would be zeros",
        "'features' was never written",
        claiming(features=(3, 4)),
    ),
    case("h5_two_sizes", "one slide at two tile sizes", "are both of slide 's1'", two_sizes),
)
