"""Which epoch's weights are kept, by what the validation slides say of each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from mil.heads import Head


class Metric(Enum):
    """By which figure of the validation slides an epoch is chosen. Ties go to the lower loss."""

    AUROC = "auroc"
    """Area under the ROC curve; with slides of one class there is none, and the loss decides."""
    BALANCED_ACCURACY = "balanced-accuracy"
    """Share of slides judged rightly, the mean over classes."""
    LOSS = "loss"
    """What training lowers, without the head's own additions."""


@dataclass(frozen=True, slots=True)
class ValidationFigures:
    """How the validation slides are judged after an epoch."""

    loss: float
    """Mean over slides, weighted as in training."""
    auroc: float | None
    """See `macro_auroc`; None where a class is missing."""
    balanced_accuracy: float
    """See `mil.training.figures.balanced_accuracy`."""

    def rank(self, metric: Metric) -> tuple[float, float]:
        """Lower is better; between equals the lower loss."""
        if metric is Metric.AUROC and self.auroc is not None:
            return -self.auroc, self.loss
        if metric is Metric.BALANCED_ACCURACY:
            return -self.balanced_accuracy, self.loss
        return self.loss, self.loss


class BestWeights:
    """Keeps the weights of the best epoch so far.

    Parameters
    ----------
    head
        Which is being trained.
    metric
        What is best.
    patience
        Epochs without a better one after which to stop.
    """

    def __init__(self, head: Head, *, metric: Metric, patience: int) -> None:
        self._head, self._metric, self._patience = head, metric, patience
        self._rank: tuple[float, float] | None = None
        self._number = 0
        self._state: dict[str, Tensor] | None = None

    def offer(self, number: int, figures: ValidationFigures) -> bool:
        """Look at an epoch; whether it is the best so far."""
        rank = figures.rank(self._metric)
        if self._rank is not None and rank >= self._rank:
            return False
        self._rank, self._number = rank, number
        self._state = {name: tensor.detach().clone() for name, tensor in self._head.state_dict().items()}
        return True

    def is_out_of_patience(self, number: int) -> bool:
        """Whether so many epochs brought nothing better that training ends."""
        return self._state is not None and number - self._number >= self._patience

    def head(self) -> Head:
        """The head, with the best weights."""
        if self._state is not None:
            self._head.load_state_dict(self._state)
        return self._head
