"""The sinusoids of MAML's paper: how well ten points tell a curve, before a gradient step and after some.

    python -m benchmarks.sinusoid [--iterations 5000] [--quick]

C. Finn, P. Abbeel, S. Levine, ICML 2017 (arXiv:1703.03400), section 5.1. A task is a curve y = A sin(x - p)
with A from 0.1 to 5 and p from 0 to pi; the learner sees ten points of it, x from -5 to 5, and is judged by
the squared error of others. A perceptron with two hidden layers of 40, ReLU; one inner step of 0.01 while it
learns to learn; Adam with 1e-3, 25 tasks a step, each with ten points of support and ten of query. (The
authors' program has an inner rate of 1e-3 unless told otherwise, with which it learns far less.)

Prints Markdown: mean squared error over 600 other curves, 100 points each, after so many steps on ten
points, ± half of the 95 % interval over curves. `--quick` is for 1,000 iterations of MAML alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from mil.device import seeded
from mil.metalearning import Inner, Parameters, Slopes, Stack, adapt_tasks, fomaml, maml, rates_of

Gradient = Callable[[Inner, Parameters, Parameters, Stack], Slopes]
"""Of the outer loop."""
Points = tuple[Tensor, Tensor]
"""x and y: ``(n, 1)`` of one curve, ``(T, n, 1)`` of T."""

METHODS: dict[str, Gradient] = {"MAML": maml, "FOMAML": fomaml}
HIDDEN, RATE, OUTER_RATE, PER_STEP, SHOTS = 40, 0.01, 1e-3, 25, 10
TEST_CURVES, TEST_POINTS, TEST_STEPS = 600, 100, 10
ITERATIONS, QUICK_ITERATIONS = 5000, 1000
SHOWN = (0, 1, 2, 5, 10)
WANTED = {ITERATIONS: {1: 0.75, 5: 0.30}, QUICK_ITERATIONS: {1: 1.4}}
"""By iterations of MAML: what the error is to be below, by steps."""


@dataclass(frozen=True, slots=True)
class Curves:
    """T sinusoids."""

    amplitudes: Tensor
    """``(T, 1, 1)``."""
    phases: Tensor
    """``(T, 1, 1)``."""

    @classmethod
    def draw(cls, count: int, generator: torch.Generator) -> Curves:
        """So many of the paper's."""
        amplitudes = 0.1 + 4.9 * torch.rand((count, 1, 1), generator=generator)
        return cls(amplitudes, torch.pi * torch.rand((count, 1, 1), generator=generator))

    def points(self, count: int, generator: torch.Generator) -> Points:
        """Draw so many of each."""
        x = 10 * torch.rand((len(self.phases), count, 1), generator=generator) - 5  # (T, n, 1)
        return x, self.amplitudes * torch.sin(x - self.phases)


@dataclass(frozen=True, slots=True)
class Errors:
    """Mean squared error after each number of steps from 0 on."""

    means: list[float]
    """Over curves."""
    halves: list[float]
    """Of the 95 % interval: 1.96 deviations of the mean."""


def network() -> nn.Sequential:
    """Of the paper."""
    return nn.Sequential(
        nn.Linear(1, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
    )


def loss(parameters: Parameters, points: Points) -> Tensor:
    """Mean squared error of one curve's points."""
    y: Tensor = functional_call(_NETWORK, dict(parameters), (points[0],))
    return functional.mse_loss(y, points[1])


with torch.device("meta"):
    _NETWORK = network()  # its shape alone: weights are always given


def learn(gradient: Gradient, *, iterations: int, seed: int = 0) -> dict[str, Tensor]:
    """Parameters from which one step leads far."""
    with seeded(seed, torch.device("cpu")):
        parameters = dict(network().named_parameters())
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(parameters.values(), lr=OUTER_RATE)
    inner = Inner(loss, steps=1)
    for _ in range(iterations):
        curves = Curves.draw(PER_STEP, generator)
        tasks = Stack(curves.points(SHOTS, generator), curves.points(SHOTS, generator))
        now = {name: parameter.detach() for name, parameter in parameters.items()}
        slopes = gradient(inner, now, rates_of(now, RATE), tasks)
        for name, parameter in parameters.items():
            parameter.grad = slopes.parameters[name]
        optimizer.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


def judge(parameters: Parameters, *, seed: int = 0) -> Errors:
    """On curves that nothing was learnt from; the same for all of one seed."""
    generator = torch.Generator().manual_seed(2**32 + seed)
    curves = Curves.draw(TEST_CURVES, generator)
    support, test = curves.points(SHOTS, generator), curves.points(TEST_POINTS, generator)
    found = Errors([], [])
    for steps in range(TEST_STEPS + 1):
        adapted = adapt_tasks(Inner(loss, steps=steps), parameters, rates_of(parameters, RATE), support)
        errors = vmap(loss)(adapted, test)  # (600,)
        found.means.append(float(errors.mean()))
        found.halves.append(float(1.96 * errors.std() / len(errors) ** 0.5))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ITERATIONS} iterations of MAML alone")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    iterations = QUICK_ITERATIONS if options.quick else options.iterations
    print(f"Mean squared error, {SHOTS} points, {iterations:,} iterations, seed {options.seed}:\n")
    print("| | " + " | ".join(f"step {steps}" for steps in SHOWN) + " | seconds on the processor |")
    print("|---" * (len(SHOWN) + 2) + "|")
    of_maml = None
    for name in ("MAML",) if options.quick else METHODS:
        start = time.process_time()
        learnt = learn(METHODS[name], iterations=iterations, seed=options.seed)
        seconds = time.process_time() - start
        errors = judge(learnt, seed=options.seed)
        cells = [f"{errors.means[steps]:.2f} ± {errors.halves[steps]:.2f}" for steps in SHOWN]
        print(f"| {name} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)
        of_maml = of_maml or errors
    assert of_maml is not None
    if iterations in WANTED:
        print("\n| MAML after | wanted below | measured | |\n|---|---|---|---|")
        for steps, most in WANTED[iterations].items():
            word = "reached" if of_maml.means[steps] < most else "**missed**"
            print(f"| {steps} step{'s' * (steps > 1)} | {most:.2f} | {of_maml.means[steps]:.2f} | {word} |")
    print(f"\ntorch {torch.__version__}, one thread")


if __name__ == "__main__":
    main()
