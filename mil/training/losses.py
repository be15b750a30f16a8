r"""What training lowers: cross-entropy or focal loss, each class weighed by how rare it is.

With p the probability that the softmax of a bag's logits gives to its true class y, and w the class's weight:

.. math::

    \mathrm{CE} = -w_y \log p, \qquad
    \mathrm{FL} = -w_y (1 - p)^\gamma \log p

T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollár, "Focal Loss for Dense Object Detection", ICCV 2017
(arXiv:1708.02002), equations 4 and 5: the factor fades out bags that are judged rightly already. It makes
probabilities less sure than they should be; `mil.calibration` mends that.

::

    B  bags        C  classes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mil.heads import Criterion
from wsi.errors import UsageError


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Minus the logarithm of the true class's probability."""

    def criterion(self, class_weights: Tensor) -> Criterion:
        """From logits ``(B, C)`` and labels ``(B,)`` to ``(B,)``, for weights ``(C,)``."""
        return lambda logits, labels: _cross_entropies(logits, labels) * class_weights[labels]

    def as_json(self) -> dict[str, Any]:
        """For a model's card."""
        return {"name": "cross-entropy"}


@dataclass(frozen=True, slots=True)
class Focal:
    """Cross-entropy times (1 - p) to the power of gamma.

    Raises
    ------
    UsageError
        `gamma` is negative or no number.
    """

    gamma: float = 2.0
    """How much bags that are judged rightly fade: 0 is cross-entropy."""

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < float("inf"):
            raise UsageError(
                f"the focal loss's gamma is {self.gamma:g}; it must be 0 or more", action="Correct the recipe"
            )

    def criterion(self, class_weights: Tensor) -> Criterion:
        """See `CrossEntropy.criterion`."""

        def losses(logits: Tensor, labels: Tensor) -> Tensor:
            entropies = _cross_entropies(logits, labels)  # (B,)
            # 1 - p by expm1: next to p = 1 a difference of floats has lost the digits that matter. Where
            # even that is 0, the slope of a power below 1 is infinite, and times 0 it would be NaN.
            unsure = (-torch.expm1(-entropies)).clamp(min=torch.finfo(entropies.dtype).tiny)  # (B,)
            return unsure**self.gamma * entropies * class_weights[labels]

        return losses

    def as_json(self) -> dict[str, Any]:
        """For a model's card."""
        return {"name": "focal", "gamma": self.gamma}


Loss = CrossEntropy | Focal
"""How far off a bag's logits are."""


def balanced_weights(labels: Tensor, class_count: int) -> Tensor:
    """A weight a class: bags it would have if all were equally common, over bags that it has.

    The mean of the weights over all bags is 1. A class without bags has weight 0.

    Parameters
    ----------
    labels
        ``(m,)`` int64.
    class_count
        C.

    Returns
    -------
    ``(C,)`` float32.

    Examples
    --------
    >>> balanced_weights(torch.tensor([0, 0, 0, 1]), 2).tolist()
    [0.6666666865348816, 2.0]
    """
    counts = torch.bincount(labels, minlength=class_count)
    present = int((counts > 0).sum())
    return torch.where(counts > 0, len(labels) / (present * counts.clamp(min=1)), 0.0)


def _cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """``(B,)``, unweighted.

    torch's own ``weight=`` with the mean divides by the weights of the batch: in a batch of one class they
    would cancel.
    """
    return functional.cross_entropy(logits, labels, reduction="none")
