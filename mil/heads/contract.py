"""What every head takes and gives.

::

    N  rows (tiles) of all bags of a batch      B  bags
    D  length of a feature vector               C  classes
    K  attention branches (1, or one a class)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

Settings = Mapping[str, int | float]
"""Hyper-parameters by name, beyond `dim` and `classes`."""


@dataclass(frozen=True, slots=True)
class HeadOutput:
    """What a head says of a batch of bags."""

    logits: Tensor
    """``(B, C)``, before the softmax over classes."""
    attention_logits: Tensor
    """``(N, K)``, before the softmax over a bag's rows."""


class Head(nn.Module):
    """From the feature vectors of packed bags to class logits.

    The result for a bag depends on no other bag of the batch. A subclass is one file, stands in `HEADS`, and
    takes ``(dim, classes, **settings)``.
    """

    name: ClassVar[str]
    """What the user calls it."""
    dim: int
    """D."""
    classes: int
    """C."""
    settings: Settings
    """The hyper-parameters it was made with, so that a checkpoint can make it again."""

    def forward(self, features: Tensor, bag_of_row: Tensor, bag_count: int) -> HeadOutput:
        """Judge bags.

        Parameters
        ----------
        features
            ``(N, D)`` float32, bag after bag.
        bag_of_row
            ``(N,)`` int64: which bag each row belongs to.
        bag_count
            B; every bag has at least one row.
        """
        raise NotImplementedError
