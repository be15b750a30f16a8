"""`fit`: train a head on bags. Seeded, without side effects, the same bits every time on one machine.

On a CPU the same bits are promised for one version of torch and one number of threads. On a GPU the same seed
gives the same draws and first weights, but rows are summed there in no fixed order: results differ in
their last digits, and with them, seldom, in the epoch that is chosen.

::

    m  slides        B  bags of a step        C  classes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from mil.bags import Bag, BagSource, PackedBags, pack_in_parts
from mil.calibration import probabilities
from mil.device import seeded, untouched
from mil.ensemble import bag_logits
from mil.heads import DEFAULT_HEAD, Criterion, Head, Settings, build_head
from mil.training.figures import balanced_accuracy, macro_auroc
from mil.training.losses import CrossEntropy, Loss, balanced_weights
from mil.training.sampling import Sampling
from mil.training.stopping import BestWeights, Metric, ValidationFigures
from wsi.errors import MicrotomeError, UsageError

MAX_SEED = 2**63 - 1
"""The largest seed that every generator of torch takes."""

BYTES_AT_A_TIME = 8 << 20
"""Features that go through a head together in training; a step takes the sum of its parts' gradients.

More at a time are no faster. On a CPU they are slower: what is larger than 32 MiB is given back to the system
and fetched anew each time.
"""

Batch = Sequence[PackedBags]
"""The bags of a step, in parts that go through the head one after the other."""
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """How a head is trained.

    Raises
    ------
    UsageError
        A number that is none of this kind.
    """

    head: str = DEFAULT_HEAD
    """A name of `HEADS`."""
    settings: Settings = field(default_factory=dict)
    """Hyper-parameters that differ from the head's defaults."""
    adaptor: str | None = None
    """A name of `mil.adaptors.ADAPTORS`: what features pass through before the head."""
    loss: Loss = field(default_factory=CrossEntropy)
    """What is lowered."""
    balance_classes: bool = True
    """Weigh each class by the inverse of how often it occurs."""
    epochs: int = 40
    """Passes over all slides, at most."""
    learning_rate: float = 2e-4
    """Of AdamW at its highest."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    warm_up: float = 0.1
    """Share of the steps over which the learning rate rises; then it falls to zero along a cosine."""
    patience: int = 10
    """Epochs without a better figure of the validation slides after which to stop; 0 for the last epoch."""
    metric: Metric = Metric.AUROC
    """The figure by which the epoch is chosen."""
    bags_per_step: int = 4
    """Bags packed into one step."""
    tiles_per_bag: int = 4096
    """Tiles of a slide that an epoch sees, drawn anew each time; 0 for all."""
    instance_dropout: float = 0.0
    """Share of these that is left out."""
    feature_noise: float = 0.0
    """Gaussian noise on features, in standard deviations of each; see `Sampling`."""
    seed: int = 0
    """Of the first weights, the order of bags, dropout and draws; at most `MAX_SEED`."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("epochs", self.epochs, 1),
            ("bags per step", self.bags_per_step, 1),
            ("patience", self.patience, 0),
            ("seed", self.seed, 0),
            ("weight decay", self.weight_decay, 0),
        ):
            if not value >= least:
                raise _refused(f"{name} is {value}; at least {least} is needed")
        if self.weight_decay == math.inf:
            raise _refused("weight decay is infinite")
        if self.seed > MAX_SEED:
            raise UsageError(
                f"seed is {self.seed}; at most {MAX_SEED} is possible", action="Choose a smaller seed"
            )
        if not 0 < self.learning_rate <= 1:
            raise _refused(f"the learning rate is {self.learning_rate:g}; it must be above 0 and at most 1")
        if not 0 <= self.warm_up < 1:
            raise _refused(f"warm-up is {self.warm_up:g} of the steps; it must be 0 or more, and below 1")
        _ = self.sampling  # refuses what it cannot do

    @property
    def sampling(self) -> Sampling:
        """How tiles are drawn."""
        return Sampling(self.tiles_per_bag, self.instance_dropout, self.feature_noise)

    def as_json(self) -> dict[str, Any]:
        """For the model's card."""
        return asdict(self) | {"loss": self.loss.as_json(), "metric": self.metric.value}


@dataclass(frozen=True, slots=True)
class Epoch:
    """What is known after an epoch."""

    number: int
    """From 1."""
    of: int
    """Epochs at most."""
    learning_rate: float
    """Of its last step."""
    training_loss: float
    """Mean over slides, as they passed, with dropout."""
    validation: ValidationFigures | None
    """None without validation slides."""
    best: bool
    """Whether its weights are better than all before; without validation slides, whether it is the last."""


EpochReport = Callable[[Epoch], None]
"""Called after each epoch. The last one that is `best` is the one whose weights `fit` returns."""


def fit(
    sources: Sequence[BagSource],
    *,
    class_count: int,
    recipe: TrainingRecipe,
    validation: Sequence[BagSource] = (),
    device: torch.device | None = None,
    report: EpochReport | None = None,
) -> Head:
    """Train a head to tell the slides' labels, with AdamW.

    With validation slides the result is that of the epoch which judged them best, and training ends when
    `recipe.patience` epochs brought nothing better. Without them, or with a patience of 0, it is that of the
    last epoch. Judging validation slides leaves no trace: epoch for epoch the weights are the same without.

    Parameters
    ----------
    sources
        Each with a label. Another order gives another, equally good, result. Of a slide with more than
        `recipe.tiles_per_bag` tiles only those that are drawn are read.
    class_count
        Labels run from 0 to one less.
    recipe
        How to train.
    validation
        Slides that are not learned from, each with a label; read whole.
    device
        Where; by default the CPU.
    report
        Called after each epoch.

    Returns
    -------
    The head, in eval mode, on `device`.

    Raises
    ------
    UsageError
        Fewer than two classes among the slides, or a label missing or out of range.
    MicrotomeError
        The loss became NaN or infinite.
    """
    device = device or torch.device("cpu")
    labels = torch.tensor(_labels(sources, class_count))  # (m,)
    if len(set(labels.tolist())) < 2:
        raise UsageError("there is only one class to learn", action="Label slides of at least two classes")
    weights = balanced_weights(labels, class_count) if recipe.balance_classes else torch.ones(class_count)
    criterion = recipe.loss.criterion(weights.to(device))
    judges = _Validation(validation, _labels(validation, class_count), criterion) if validation else None
    with seeded(recipe.seed, device):
        head = build_head(
            recipe.head,
            dim=sources[0].dim,
            classes=class_count,
            settings=recipe.settings,
            adaptor=recipe.adaptor,
        )
        head = head.to(device).train()
        step = _make_step(head, recipe, criterion, steps_in_all=_steps(len(sources), recipe))
        best = BestWeights(head, metric=recipe.metric, patience=recipe.patience)
        for number, batches in enumerate(_epochs(sources, labels, recipe, device), start=1):
            loss, rate = 0.0, 0.0
            for batch, truth in batches:
                total, rate = step(batch, truth)
                loss += total / len(sources)
            figures = judges.look(head) if judges else None
            _refuse_divergence(number, loss, figures)
            chosen = best.offer(number, figures) if figures and recipe.patience else number == recipe.epochs
            if report:
                report(Epoch(number, recipe.epochs, rate, loss, figures, chosen))
            if best.is_out_of_patience(number):
                break
    return best.head().eval()


def _steps(count: int, recipe: TrainingRecipe) -> int:
    return math.ceil(count / recipe.bags_per_step) * recipe.epochs


def _epochs(
    sources: Sequence[BagSource], labels: Tensor, recipe: TrainingRecipe, device: torch.device
) -> Iterator[Iterator[tuple[Batch, Tensor]]]:
    """For each epoch its batches with their labels ``(B,)``: all slides once, in an order of its own."""
    order = torch.Generator().manual_seed(recipe.seed)
    rows = max(1, BYTES_AT_A_TIME // (4 * sources[0].dim))
    in_memory = all(isinstance(source, Bag) for source in sources)

    def batches(epoch: int) -> Iterator[tuple[Batch, Tensor]]:
        shuffled = torch.randperm(len(sources), generator=order)
        for chosen in torch.split(shuffled, min(recipe.bags_per_step, len(shuffled))):
            bags = [recipe.sampling.draw(sources[i], seed=recipe.seed, epoch=epoch) for i in chosen.tolist()]
            yield pack_in_parts(bags, rows=rows, device=device), labels[chosen].to(device)

    for epoch in range(recipe.epochs):
        yield batches(epoch) if in_memory else _ahead(batches(epoch))


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each made by a thread while the one before is in use: the device need not wait."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def _make_step(
    head: Head, recipe: TrainingRecipe, criterion: Criterion, *, steps_in_all: int
) -> Callable[[Batch, Tensor], tuple[float, float]]:
    """The function that takes one step on a batch and its labels ``(B,)``.

    It returns the sum of the bags' losses, and the learning rate of the step.
    """
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    rising = int(recipe.warm_up * steps_in_all)
    falling = steps_in_all - rising

    def share(step: int) -> float:
        """Of the highest learning rate: up a line, down half a cosine, zero only after the last step."""
        if step < rising:
            return (step + 1) / (rising + 1)
        return (1 + math.cos(math.pi * (step - rising) / falling)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)

    def step(parts: Batch, labels: Tensor) -> tuple[float, float]:
        optimizer.zero_grad()
        total = torch.zeros((), device=labels.device)
        for part, truth in zip(parts, torch.split(labels, [len(part) for part in parts]), strict=True):
            losses = head.losses(part, truth, criterion)  # (b,)
            torch.autograd.backward(losses.sum() / len(labels))
            total += losses.detach().sum()
        rate = float(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        return float(total), rate

    return step


@dataclass(frozen=True, slots=True)
class _Validation:
    """Slides that are judged after each epoch."""

    sources: Sequence[BagSource]
    labels: list[int]
    criterion: Criterion

    def look(self, head: Head) -> ValidationFigures:
        """In eval mode, without gradients, and without touching torch's generators."""
        device = next(head.parameters()).device
        with untouched(device):
            logits = torch.from_numpy(bag_logits(head, self.sources))  # (m, C)
        labels = torch.tensor(self.labels)  # (m,)
        losses = self.criterion(logits.float().to(device), labels.to(device))  # (m,)
        if not losses.isfinite().all():
            return ValidationFigures(math.nan, None, math.nan)
        judged, truth = probabilities(logits.numpy(), 1.0), labels.numpy()
        return ValidationFigures(
            float(losses.double().mean()), macro_auroc(truth, judged), balanced_accuracy(truth, judged)
        )


def _refuse_divergence(epoch: int, loss: float, figures: ValidationFigures | None) -> None:
    for name, value in (("loss", loss), ("validation loss", figures.loss if figures else 0.0)):
        if not math.isfinite(value):
            raise MicrotomeError(
                f"training diverged: the {name} is {value} in epoch {epoch}",
                action="Train with a smaller learning rate",
            )


def _labels(sources: Sequence[BagSource], class_count: int) -> list[int]:
    labels = []
    for source in sources:
        if source.label is None or not 0 <= source.label < class_count:
            raise UsageError(
                f"slide {source.slide_id!r} has label {source.label}, which is none of the {class_count} "
                "classes",
                action="Correct the labels",
            )
        labels.append(source.label)
    return labels


def _refused(reason: str) -> UsageError:
    return UsageError(reason, action="Correct the recipe")
