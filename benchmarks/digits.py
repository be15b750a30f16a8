"""Bags of handwritten digits: how many bags heads need, and which explanation finds the digit that matters.

    python -m benchmarks.digits [--heads gated_abmil max_embedding mean] [--bags 50 100 200 400] [--seeds 3]

What the bags are, `benchmarks/digit_bags.py` says. One recipe for all heads (`recipe`, with `SETTINGS`): the
last epoch counts, no bag chooses an epoch, and each seed draws its own training bags and first weights. All
are judged by the same 400 bags of other images. Prints Markdown: means over seeds ± their deviation.

1. Area under the ROC curve over the test bags, for each head and number of training bags.
2. For the first head, trained on `--explained` bags: for each explanation, the area between its removal
   curves over the positive test bags, and the AUC of its scores for 9 against the rest within a bag. After a
   comma: with the mean feature of the training bags as the baseline, instead of zeros.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.digit_bags import DigitBag, digit_bags
from mil.bags import Bag
from mil.evaluation import slide_auc
from mil.explain import Case, Effort, ExplanationReport, Sample, explain_bags
from mil.explain.judge import probabilities
from mil.heads import HEADS, Head
from mil.training import TrainingRecipe, fit

TEST_BAGS = 400
EPOCHS = 60
WIDTHS = {"hidden": 128, "attention": 64}
SETTINGS = {
    "gated_abmil": WIDTHS,
    "abmil": WIDTHS,
    "mean": {"hidden": 128},
    "max_embedding": {"hidden": 128},
}
"""Of heads whose usual widths are for features of a thousand numbers; others are taken as they are."""
WITH_BASELINE = ("integrated_gradients", "shapley")


def recipe(head: str, seed: int) -> TrainingRecipe:
    """The one recipe."""
    return TrainingRecipe(
        head=head,
        settings=SETTINGS.get(head, {}),
        epochs=EPOCHS,
        learning_rate=2e-3,
        bags_per_step=8,
        seed=seed,
    )


def train(head: str, count: int, seed: int) -> tuple[Head, list[Bag]]:
    """A head after its last epoch, and the bags that it learned from."""
    bags = [drawn.bag for drawn in digit_bags(count, seed=seed)]
    return fit(bags, class_count=2, recipe=recipe(head, seed)), bags


def auc(head: Head, drawn: Sequence[DigitBag]) -> float:
    """Area under the ROC curve of the bags' probability of holding a 9."""
    said = [float(probabilities(head, d.bag, [torch.arange(len(d.bag))])[0, 1]) for d in drawn]
    found = slide_auc([d.bag.label or 0 for d in drawn], said)
    assert found is not None
    return found


def explained(
    head: Head,
    drawn: Sequence[DigitBag],
    *,
    methods: Sequence[str] | None = None,
    effort: Effort | None = None,
) -> ExplanationReport:
    """Explain the positive bags' probability of holding a 9."""
    cases = [Case(head, d.bag, class_index=1, lesion_share=d.needle) for d in drawn if d.bag.label]
    everything = Sample(slides=len(cases))
    return explain_bags(cases, classes=("no 9", "9"), methods=methods, effort=effort, sample=everything)


def explanations(
    head: Head, bags: Sequence[Bag], drawn: Sequence[DigitBag]
) -> dict[str, tuple[float, float]]:
    """Area between removal curves and AUC within bags, by method."""
    mean = np.concatenate([bag.features for bag in bags]).mean(axis=0)
    zero = explained(head, drawn, methods=None)
    other = explained(head, drawn, methods=WITH_BASELINE, effort=Effort(baseline=mean))
    found = {}
    for report, suffix in ((zero, ""), (other, ", mean")):
        for result in report.methods:
            if suffix and result.name not in WITH_BASELINE:
                continue
            assert result.localisation is not None
            found[result.name + suffix] = (result.gain.mean, result.localisation.auc.mean)
    return found


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = ["gated_abmil", "max_embedding", "mean"]
    parser.add_argument("--heads", nargs="+", default=default, choices=sorted(HEADS), metavar="NAME")
    parser.add_argument("--bags", nargs="+", type=int, default=[50, 100, 200, 400], help="for training")
    parser.add_argument("--explained", type=int, default=200, help="training bags of the head to explain")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    test, start = digit_bags(TEST_BAGS, seed=0, test=True), time.perf_counter()

    print(f"AUC over {TEST_BAGS} test bags, {options.seeds} seeds, {EPOCHS} epochs:\n")
    print(f"| head | {' | '.join(f'{count} bags' for count in options.bags)} |")
    print("|---|" + "---|" * len(options.bags))
    for head in options.heads:
        cells = [
            spread([auc(train(head, count, seed)[0], test) for seed in range(options.seeds)])
            for count in options.bags
        ]
        print(f"| {head} | {' | '.join(cells)} |", flush=True)

    name, rows = options.heads[0], []
    for seed in range(options.seeds):
        head, bags = train(name, options.explained, seed)
        rows.append(explanations(head, bags, test))
    positive = sum(bool(drawn.bag.label) for drawn in test)
    print(f"\nExplanations of {name}, {options.explained} training bags, {positive} positive test bags:\n")
    print("| method | area between removal curves | AUC of 9 within a bag |")
    print("|---|---|---|")
    for method in sorted(rows[0], key=lambda key: -float(np.mean([row[key][0] for row in rows]))):
        area, found = zip(*(row[method] for row in rows), strict=True)
        print(f"| {method} | {spread(area)} | {spread(found)} |")
    seconds = f"{time.perf_counter() - start:.0f} s, of which {time.process_time():.0f} s on the processor"
    print(f"\n{seconds}, torch {torch.__version__}, one thread")


if __name__ == "__main__":
    main()
