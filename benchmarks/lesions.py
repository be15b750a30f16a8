"""End to end on synthetic slides with known lesions: slide figures, and which explanation finds the lesion.

    python -m benchmarks.lesions [--slides 60] [--out lesions-out] [--device auto]

Slides are drawn (every second one has a lesion), tiled, encoded, and a five-fold model learns from slide
labels alone: `tile`, `encode`, `train`, `evaluate`, as a user types them. Then the lesions, which no command
saw, are held against each explanation of `mil.explain`: every slide with a lesion is explained by the member
that was tested on it. Printed are the mean over slides of the area under the ROC curve over tiles, with an
interval of 95 % over slides, and the area between removal curves, which needs no lesion.

The slides are made to be told apart. What is compared here are explanations, not models.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.commands import microtome
from mil.checkpoint import load_model
from mil.demo import SIZE, lesion_share
from mil.encoder import folder_name
from mil.explain import Case, ExplanationReport, explain_bags
from mil.features import open_bag
from mil.predictions import Part, read_predictions
from tiling.output import Output
from tiling.store import TileStore
from wsi.synthetic import SyntheticSlide, write_cohort

CLASS = "tumour"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slides", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("lesions-out"))
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    slides, results, model = (options.out / name for name in ("slides", "results", "model"))
    cohort = write_cohort(slides, count=options.slides, seed=31, size=SIZE)
    labels = options.out / "labels.csv"
    make_all_train(slides / "labels.csv", labels)
    microtome("tile", str(slides), "-o", str(results), "--mpp", "0.5", "--tile-size", "224", "--quiet")
    microtome("encode", str(results), "--device", options.device, "--quiet")
    if not model.exists():
        microtome("train", str(results), "--labels", str(labels), "-m", str(model), "--quiet")
    microtome("evaluate", str(results), "-m", str(model), "-o", str(options.out / "evaluation"))
    print_report(explain(Output(results), model, cohort))


def make_all_train(written: Path, wanted: Path) -> None:
    """The cohort's table without its column of splits: every slide is tested once, by cross-validation."""
    lines = [line.split(",") for line in written.read_text().split()]
    kept = [lines[0].index(name) for name in ("slide_id", "label")]
    wanted.write_text("\n".join(",".join(line[i] for i in kept) for line in lines) + "\n")


def explain(output: Output, folder: Path, cohort: Sequence[SyntheticSlide]) -> ExplanationReport:
    """Every slide with a lesion, by the member that neither learned from it nor was chosen by it."""
    model, ensemble = load_model(folder)
    key, truth = folder_name(str(model.features.encoder["name"])), {s.path.stem: s for s in cohort}
    cases = []
    for entry in read_predictions(folder / "predictions.csv").of(Part.TEST):
        for slide_id in entry.slide_ids:
            if truth[slide_id].lesion.any():
                store = TileStore(output, slide_id)
                share = lesion_share(store, truth[slide_id])
                bag = open_bag(store, key)
                cases.append(Case(ensemble.members[entry.member], bag, model.classes.index(CLASS), share))
    return explain_bags(cases, classes=model.classes)


def print_report(report: ExplanationReport) -> None:
    """A line a method, the one that finds the lesion best first."""
    print(f"\n{report.scope}\n\n| explanation | tile AUC against the lesion | area between removal curves |")
    print("|---|---|---|")
    found = [(result, result.localisation.auc) for result in report.methods if result.localisation]
    for result, auc in sorted(found, key=lambda pair: -pair[1].mean):
        print(f"| {result.name} | {auc} | {result.gain} |")
    print(f"\n{report.verdict}")


if __name__ == "__main__":
    main()
