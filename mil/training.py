"""`fit`: train a head on bags. Seeded, without side effects, the same bits every time on one machine."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mil.bags import Bag, PackedBags, pack
from mil.heads import DEFAULT_HEAD, Head, Settings, build_head
from wsi.errors import MicrotomeError, UsageError

MAX_SEED = 2**63 - 1
"""The largest seed that every generator of torch takes."""

EpochReport = Callable[[int, int, float], None]
"""Called after each epoch with (epochs done, epochs in all, mean training loss)."""


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """How a head is trained."""

    head: str = DEFAULT_HEAD
    """A name of `HEADS`."""
    settings: Settings = field(default_factory=dict)
    """Hyper-parameters that differ from the head's defaults."""
    epochs: int = 30
    """Passes over all bags."""
    learning_rate: float = 2e-4
    """Of AdamW at the start; falls to zero along a cosine."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    bags_per_step: int = 4
    """Bags packed into one step."""
    balance_classes: bool = True
    """Weigh each class by the inverse of how often it occurs."""
    seed: int = 0
    """Of the first weights, the order of bags and the dropout; at most `MAX_SEED`."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("epochs", self.epochs, 1),
            ("bags per step", self.bags_per_step, 1),
            ("seed", self.seed, 0),
            ("weight decay", self.weight_decay, 0),
        ):
            if value < least:
                raise UsageError(
                    f"{name} is {value}; at least {least} is needed", action="Correct the recipe"
                )
        if self.seed > MAX_SEED:
            raise UsageError(
                f"seed is {self.seed}; at most {MAX_SEED} is possible", action="Choose a smaller seed"
            )
        if not 0 < self.learning_rate <= 1:
            raise UsageError(
                f"the learning rate is {self.learning_rate:g}; it must be above 0 and at most 1",
                action="Correct the recipe",
            )

    def as_json(self) -> dict[str, Any]:
        """For the model's card."""
        return asdict(self)


def fit(
    bags: Sequence[Bag],
    *,
    class_count: int,
    recipe: TrainingRecipe,
    device: torch.device | None = None,
    report: EpochReport | None = None,
) -> Head:
    """Train a head to tell the bags' labels, by cross-entropy.

    The result is that of the last epoch: no bag is set aside to choose another by.

    Parameters
    ----------
    bags
        Each with a label. Another order gives another, equally good, result.
    class_count
        Labels run from 0 to one less.
    recipe
        How to train.
    device
        Where; by default the CPU, and only there the same bits are promised.
    report
        Called after each epoch.

    Returns
    -------
    The head, in eval mode, on `device`.

    Raises
    ------
    UsageError
        Fewer than two classes among the bags, or a label missing or out of range.
    MicrotomeError
        The loss became NaN or infinite.
    """
    device = device or torch.device("cpu")
    labels = torch.tensor(_labels(bags, class_count))  # (bags,)
    class_weights = _class_weights(labels, class_count) if recipe.balance_classes else torch.ones(class_count)
    order = torch.Generator().manual_seed(recipe.seed)
    with _seeded(recipe.seed, device):
        head = build_head(recipe.head, dim=bags[0].dim, classes=class_count, settings=recipe.settings)
        step = _make_step(head.to(device).train(), recipe, steps_in_all=_steps(len(bags), recipe))
        for epoch in range(recipe.epochs):
            loss = 0.0
            for chosen in torch.split(torch.randperm(len(bags), generator=order), recipe.bags_per_step):
                batch = pack([bags[i] for i in chosen.tolist()], device=device)
                loss += step(batch, labels[chosen].to(device), class_weights.to(device)) / len(bags)
            if not math.isfinite(loss):
                raise MicrotomeError(
                    f"training diverged: the loss is {loss} in epoch {epoch + 1}",
                    action="Train with a smaller learning rate",
                )
            if report:
                report(epoch + 1, recipe.epochs, loss)
    return head.eval()


def _steps(bag_count: int, recipe: TrainingRecipe) -> int:
    return math.ceil(bag_count / recipe.bags_per_step) * recipe.epochs


def _make_step(
    head: Head, recipe: TrainingRecipe, *, steps_in_all: int
) -> Callable[[PackedBags, Tensor, Tensor], float]:
    """The function that takes one step on a batch, its labels (B,) and the class weights (C,).

    It returns the sum of the bags' losses.
    """
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps_in_all)

    def step(batch: PackedBags, labels: Tensor, class_weights: Tensor) -> float:
        logits = head(batch).logits  # (B, C)
        losses = _weighted_losses(logits, labels, class_weights)  # (B,)
        optimizer.zero_grad()
        torch.autograd.backward(losses.mean())
        optimizer.step()
        schedule.step()
        return float(losses.detach().sum())

    return step


def _labels(bags: Sequence[Bag], class_count: int) -> list[int]:
    labels = []
    for bag in bags:
        if bag.label is None or not 0 <= bag.label < class_count:
            raise UsageError(
                f"slide {bag.slide_id!r} has label {bag.label}, which is none of the {class_count} classes",
                action="Correct the labels",
            )
        labels.append(bag.label)
    if len(set(labels)) < 2:
        raise UsageError("there is only one class to learn", action="Label slides of at least two classes")
    return labels


def _class_weights(labels: Tensor, class_count: int) -> Tensor:
    """``(C,)``: bags per class if all were equal, over bags there are; the mean over all bags is 1."""
    counts = torch.bincount(labels, minlength=class_count)
    present = int((counts > 0).sum())
    return torch.where(counts > 0, len(labels) / (present * counts.clamp(min=1)), 0.0)


def _weighted_losses(logits: Tensor, labels: Tensor, class_weights: Tensor) -> Tensor:
    """``(B,)`` cross-entropies times their class's weight.

    torch's own ``weight=`` with the mean divides by the weights of the batch: in a batch of one class they
    would cancel.
    """
    return functional.cross_entropy(logits, labels, reduction="none") * class_weights[labels]


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators of this device inside, and leave them as they were: dropout knows no other."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
