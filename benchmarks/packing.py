"""Training time of packed bags against a plain loop of one bag a step; and what sampling tiles costs.

    python -m benchmarks.packing [--rounds 9] [--threads 1] [--only tiny small large sampled]

The loop is what tutorials write: one bag, torch's own softmax, one step of AdamW. Both sides train the same
gated attention (hidden 256, attention 128) on the same bags, which are in memory as float32; ours
(`mil.training.fit`) pays for packing them, and takes a step a batch. Ways take turns, an epoch each, for the
machine may be shared; what is printed is the best epoch of each, in CPU-seconds of the process.

A step a batch is another algorithm than a step a bag: how well each learns is printed for the sampled bags,
where a few tiles of a hundred decide: area under the ROC curve on bags that neither saw, after the same
number of epochs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.bags import Bag
from mil.evaluation import slide_auc
from mil.predict import predict_bag
from mil.training import TrainingRecipe, fit

HIDDEN, ATTENTION = 256, 128
RECIPE = TrainingRecipe(
    settings={"hidden": HIDDEN, "attention": ATTENTION, "dropout": 0.0},
    epochs=1,
    learning_rate=2e-4,
    weight_decay=1e-4,
    tiles_per_bag=0,
)
SAMPLED = 1024
HARD = 2.5
"""A shift at which not all unseen bags are told right."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Bags of one kind."""

    count: int
    """How many."""
    tiles: tuple[int, int]
    """Fewest and most in a bag."""
    per_step: int
    """Bags packed into a step."""
    wanted: float
    """How many times as fast as the loop it should be."""
    key_share: float = 0.02
    """Share of a positive bag's tiles that show it."""
    shift: float = 4.0
    """How far these are moved, in standard deviations of a feature."""
    dim: int = 512
    """Length of a feature vector."""


KINDS = {
    "tiny": Kind(count=400, tiles=(4, 20), per_step=16, wanted=4.0),
    "small": Kind(count=200, tiles=(100, 300), per_step=16, wanted=1.6),
    "large": Kind(count=40, tiles=(1000, 5000), per_step=8, wanted=1.0),
}


class Textbook(nn.Module):
    """Gated attention for one bag, as equations 7 and 9 of Ilse et al. 2018 are usually written."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(dim, HIDDEN), nn.ReLU())
        self.tanh = nn.Sequential(nn.Linear(HIDDEN, ATTENTION), nn.Tanh())
        self.gate = nn.Sequential(nn.Linear(HIDDEN, ATTENTION), nn.Sigmoid())
        self.weigh, self.classify = nn.Linear(ATTENTION, 1), nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, D)`` to ``(1, 2)``."""
        h = self.trunk(x)  # (n, L)
        a = self.weigh(self.tanh(h) * self.gate(h)).softmax(dim=0)  # (n, 1)
        return self.classify((a * h).sum(dim=0, keepdim=True))  # (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[*KINDS, "sampled"], choices=[*KINDS, "sampled"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| bags | way | CPU-s an epoch | times as fast as the loop | wanted | |")
    print("|---|---|---|---|---|---|")
    for name, kind in KINDS.items():
        if name in options.only:
            bags = draw(kind, seed=0)
            recipe = replace(RECIPE, bags_per_step=kind.per_step)
            ways = {"loop of one": loop(bags), f"packed, {kind.per_step} a step": ours(bags, recipe)}
            report(f"{kind.count} of {kind.tiles[0]} to {kind.tiles[1]}", ways, kind.wanted, options.rounds)
    if "sampled" in options.only:
        kind = KINDS["large"]
        bags = draw(kind, seed=0)
        recipe = replace(RECIPE, bags_per_step=kind.per_step, tiles_per_bag=SAMPLED)
        ways = {"loop of one": loop(bags), f"packed, {SAMPLED} tiles sampled a bag": ours(bags, recipe)}
        report(f"{kind.count} of {kind.tiles[0]} to {kind.tiles[1]}", ways, 2.5, options.rounds)
        compare_accuracy(replace(kind, count=80, shift=HARD))


def draw(kind: Kind, *, seed: int) -> list[Bag]:
    """Noise; in every second bag some tiles are shifted along one direction."""
    rng = np.random.default_rng([seed, kind.count])
    direction = np.random.default_rng(7).normal(size=kind.dim)
    direction *= kind.shift / np.linalg.norm(direction)
    bags = []
    for index in range(kind.count):
        count = int(rng.integers(kind.tiles[0], kind.tiles[1] + 1))
        features = rng.normal(size=(count, kind.dim))
        if index % 2:
            features[rng.permutation(count)[: max(1, round(kind.key_share * count))]] += direction
        origins = np.zeros((count, 2), np.int32)
        bags.append(Bag(f"bag-{index}", features.astype(np.float32), origins, label=index % 2))
    return bags


def loop(bags: list[Bag], *, epochs: int = 1) -> Callable[[], Textbook]:
    """The plain way: a bag, a step."""
    ready = [(torch.from_numpy(bag.features), torch.tensor([bag.label])) for bag in bags]

    def train() -> Textbook:
        torch.manual_seed(0)
        network = Textbook(bags[0].dim)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=RECIPE.learning_rate, weight_decay=RECIPE.weight_decay
        )
        for _ in range(epochs):
            for index in torch.randperm(len(ready)).tolist():
                features, label = ready[index]
                loss = functional.cross_entropy(network(features), label)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return network

    return train


def ours(bags: list[Bag], recipe: TrainingRecipe) -> Callable[[], object]:
    """The same number of passes by `fit`."""
    return lambda: fit(bags, class_count=2, recipe=recipe)


def report(bags: str, ways: dict[str, Callable[[], object]], wanted: float, rounds: int) -> None:
    """A line each; the first way is what the others are held against."""
    for run in ways.values():
        run()  # warm
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    (first, base), *others = ((name, min(own)) for name, own in seconds.items())
    print(f"| {bags} | {first} | {base:.2f} | 1 | | |", flush=True)
    for name, own in others:
        verdict = "reached" if base / own >= wanted else "**missed**"
        print(f"| {bags} | {name} | {own:.2f} | {base / own:.2f} | {wanted:g} | {verdict} |", flush=True)


def compare_accuracy(kind: Kind, *, epochs: int = 30, learning_rate: float = 1e-3) -> None:
    """How well each way learns, on bags that it did not see."""
    bags, unseen = draw(kind, seed=0), draw(replace(kind, count=100), seed=1)
    labels = [bag.label or 0 for bag in unseen]
    base = replace(RECIPE, bags_per_step=kind.per_step, epochs=epochs, learning_rate=learning_rate)
    network = loop(bags, epochs=epochs)().eval()
    with torch.inference_mode():
        plain = [float(network(torch.from_numpy(bag.features)).softmax(1)[0, 1]) for bag in unseen]
    print(f"\n| way, {epochs} epochs | AUC on {len(unseen)} unseen bags |\n|---|---|")
    print(f"| loop of one | {slide_auc(labels, plain):.3f} |")
    for name, recipe in (("packed, whole bags", base), ("sampled", replace(base, tiles_per_bag=SAMPLED))):
        head = fit(bags, class_count=2, recipe=recipe)
        scores = [float(predict_bag(head, bag).probabilities[1]) for bag in unseen]
        print(f"| {name} | {slide_auc(labels, scores):.3f} |", flush=True)


if __name__ == "__main__":
    main()
