"""End to end on real slides: H&E against special stains, from EfficientNet-Lite0 features, grouped by case.

    python -m benchmarks.stains [--out stains-out] [--device auto]

A sanity run that should be near perfect: the stain of a section is certain, and can be seen from afar. All is
done by the commands that a user types: `tile` (no stain normalisation: nothing would be left to tell),
`encode`, `train` (five folds, no case on two sides) and `evaluate`. Each slide is judged by the fold that had
neither it nor another section of its case.

Slides and their table are read from the folder that MICROTOME_DATA names: slides/labels.csv with the columns
slide_id, path, stain, case. Slides that state no resolution are taken to be scanned at `ASSUMED_MPP`.
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path

from benchmarks.commands import microtome
from wsi.durable import make_folder, write_file
from wsi.errors import MicrotomeError
from wsi.slide import Slide

ASSUMED_MPP = 1.01
TILING = ["--mpp", "2.02", "--tile-size", "224", "--stain", "none"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("stains-out"))
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    table = read_table()
    labels = options.out / "labels.csv"
    make_folder(options.out)
    lines = ["slide_id,label,patient", *(f"{path.stem},{kind(row)},{row['case']}" for path, row in table)]
    write_file(labels, ("\n".join(lines) + "\n").encode())
    stated = [str(path) for path, _ in table if states_resolution(path)]
    silent = [str(path) for path, _ in table if not states_resolution(path)]
    results, model = str(options.out / "results"), options.out / "model"
    microtome("tile", *stated, "-o", results, *TILING, "--quiet")
    if silent:
        microtome("tile", *silent, "-o", results, *TILING, "--mpp-override", str(ASSUMED_MPP), "--quiet")
    microtome("encode", results, "--device", options.device, "--quiet")
    if not model.exists():
        microtome("train", results, "--labels", str(labels), "-m", str(model))
    microtome("evaluate", results, "-m", str(model), "-o", str(options.out / "evaluation"))


def read_table() -> list[tuple[Path, dict[str, str]]]:
    """Slide files with their lines of the table."""
    folder = Path(os.environ.get("MICROTOME_DATA", "../shared")) / "slides"
    path = folder / "labels.csv"
    if not path.is_file():
        raise SystemExit(f"{path} is not there: set MICROTOME_DATA to the folder with slides/labels.csv")
    with path.open(newline="") as stream:
        return [(folder / row["path"], row) for row in csv.DictReader(stream)]


def kind(row: dict[str, str]) -> str:
    """The class: which special stain it is, 20 slides cannot teach."""
    return "HE" if row["stain"] == "HE" else "special"


def states_resolution(path: Path) -> bool:
    """Whether the file says how large its pixels are."""
    with Slide(path) as slide:
        try:
            slide.require_resolution()
        except MicrotomeError:
            return False
    return True


if __name__ == "__main__":
    main()
