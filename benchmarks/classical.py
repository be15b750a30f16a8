"""Accuracy on the classical multiple-instance benchmarks, by the protocol of their papers, without a leak.

    python -m benchmarks.classical [--sets musk1 musk2 elephant] [--heads abmil gated_abmil] [--repeats 5]

Ten-fold cross-validation, five times with other folds (Ilse et al. 2018, table 1). What is done and what not:

- folds are stratified by class, and drawn anew for each repetition (seed: its number);
- features are brought to mean 0 and deviation 1 with the *training folds'* instances only; the papers' code
  uses those of all the data;
- one recipe for all sets and heads (`RECIPE`), with the published attention's width and each set's published
  learning rate and weight decay (Wang et al. 2018, "Revisiting multiple instance neural networks": there for
  SGD, here for AdamW); nothing was chosen by a test fold: not the epoch (the last one counts), not the
  threshold (the likelier class), not the seed;
- no early stopping: there is no validation fold.

Published, for comparison: what each head's paper says, 10 folds x 5. Ranges: what an honest run gives. A
figure far above them would mean a leak, such as an epoch that was chosen by the test fold.

The data (MUSK: UCI, CC-BY-4.0; ELEPHANT: Andrews et al. 2002) are read from the folder that MICROTOME_DATA
names, data/mil/NAME.npz: `X` (instances, features), `bag` (instances,), `bag_y` (bags,).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from mil.bags import Bag
from mil.evaluation import slide_auc
from mil.predict import predict_bag
from mil.training import TrainingRecipe, fit

FOLDS = 10
RECIPE = TrainingRecipe(
    settings={"hidden": 256, "attention": 64},
    epochs=50,
    bags_per_step=4,
    tiles_per_bag=0,
)
RATES = {"musk1": (5e-4, 5e-3), "musk2": (5e-4, 3e-2), "elephant": (1e-4, 5e-3)}
"""Learning rate and weight decay."""
PUBLISHED = {
    ("musk1", "abmil"): "0.892 ± 0.040",
    ("musk1", "gated_abmil"): "0.900 ± 0.050",
    ("musk2", "abmil"): "0.858 ± 0.048",
    ("musk2", "gated_abmil"): "0.863 ± 0.042",
    ("elephant", "abmil"): "0.868 ± 0.022",
    ("elephant", "gated_abmil"): "0.857 ± 0.027",
}
HONEST = {"musk1": (0.85, 0.91), "musk2": (0.82, 0.90), "elephant": (0.84, 0.89)}


@dataclass(frozen=True, slots=True)
class Fold:
    """What one fold gave."""

    correct: NDArray[np.bool_]
    """``(m,)``: whether each test bag was told right."""
    labels: NDArray[np.int64]
    """``(m,)``."""
    scores: NDArray[np.float64]
    """``(m,)``: probability of class 1."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", default=sorted(HONEST), choices=sorted(HONEST))
    parser.add_argument("--heads", nargs="+", default=["abmil", "gated_abmil"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1, help="folds at a time, one thread each")
    options = parser.parse_args()
    print(f"{RECIPE}\nlearning rate and weight decay: {RATES}\n")
    print("| set | head | accuracy ± s.e.m. | repetitions' deviation | AUC | published | honest range | |")
    print("|---|---|---|---|---|---|---|---|")
    spawned = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(
        options.processes, spawned, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for name in options.sets:
            read_set(name)  # refused here rather than in a process
            for head in options.heads:
                start = time.perf_counter()
                units = [
                    (name, head, repeat, fold) for repeat in range(options.repeats) for fold in range(FOLDS)
                ]
                folds = list(pool.map(run_fold, *zip(*units, strict=True)))
                rounds = [folds[i : i + FOLDS] for i in range(0, len(folds), FOLDS)]
                print(row(name, head, rounds), f"{time.perf_counter() - start:.0f} s", flush=True)


def read_set(name: str) -> tuple[list[NDArray[np.float64]], NDArray[np.int64]]:
    """Each bag's instances ``(n, D)``, and the bags' labels."""
    path = Path(os.environ.get("MICROTOME_DATA", "../shared")) / "data" / "mil" / f"{name}.npz"
    if not path.is_file():
        raise SystemExit(f"{path} is not there: set MICROTOME_DATA to the folder with data/mil/{name}.npz")
    with np.load(path) as content:
        labels = content["bag_y"].astype(np.int64)
        numbers, index = np.unique(content["bag"], return_inverse=True)
        assert len(numbers) == len(labels)
        return [content["X"][index == bag].astype(np.float64) for bag in range(len(labels))], labels


def run_fold(name: str, head: str, repeat: int, fold: int) -> Fold:
    """Train on nine folds, judge the tenth."""
    features, labels = read_set(name)
    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=repeat)
    train, test = list(splitter.split(labels, labels))[fold]
    known = np.concatenate([features[i] for i in train])
    mean, std = known.mean(axis=0), known.std(axis=0)
    std[std == 0] = 1  # constant on the training folds: 87 of the animals' 230 features
    bags = [as_bag(i, (features[i] - mean) / std, int(labels[i])) for i in range(len(labels))]
    rate, decay = RATES[name]
    recipe = replace(RECIPE, head=head, seed=1000 * repeat + fold, learning_rate=rate, weight_decay=decay)
    trained = fit([bags[i] for i in train], class_count=2, recipe=recipe)
    scores = np.array([predict_bag(trained, bags[i]).probabilities[1] for i in test], np.float64)
    return Fold((scores > 0.5) == labels[test], labels[test], scores)


def as_bag(index: int, features: NDArray[np.float64], label: int) -> Bag:
    """Instances have no places."""
    origins = np.zeros((len(features), 2), np.int32)
    return Bag(slide_id=f"bag-{index}", features=features.astype(np.float32), origins=origins, label=label)


def row(name: str, head: str, rounds: list[list[Fold]]) -> str:
    """One line of the table."""
    by_fold = np.array([[fold.correct.mean() for fold in folds] for folds in rounds])  # (repeats, folds)
    by_repeat = by_fold.mean(axis=1)
    mean, error = by_fold.mean(), by_fold.std(ddof=1) / np.sqrt(by_fold.size)
    aucs = [
        slide_auc(np.concatenate([f.labels for f in folds]), np.concatenate([f.scores for f in folds]))
        for folds in rounds
    ]
    low, high = HONEST[name]
    verdict = "within" if low <= mean <= high else "**outside**"
    deviation = f"{by_repeat.std(ddof=1):.3f}" if len(rounds) > 1 else "n/a"
    auc = np.mean([value for value in aucs if value is not None])
    return (
        f"| {name} | {head} | {mean:.3f} ± {error:.3f} | {deviation} | {auc:.3f} "
        f"| {PUBLISHED.get((name, head), 'n/a')} | {low:.2f} to {high:.2f} | {verdict} |"
    )


if __name__ == "__main__":
    main()
