"""`Ensemble`: the trained members of a study, each with its temperature, who judge a slide together.

::

    M  members        C  classes        n  tiles of a slide
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mil.bags import BagSource, pack
from mil.calibration import probabilities
from mil.heads import Head
from wsi.errors import UsageError


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Heads for the same features and classes. Their calibrated probabilities are averaged.

    Raises
    ------
    UsageError
        No members, members that do not fit one another, or a temperature that is none.
    """

    members: tuple[Head, ...]
    """M heads."""
    temperatures: tuple[float, ...]
    """M, each fitted on its member's validation slides; 1 for a member that is not calibrated."""

    def __post_init__(self) -> None:
        kinds = {(member.dim, member.classes) for member in self.members}
        if len(kinds) != 1 or len(self.members) != len(self.temperatures):
            raise UsageError(
                f"{len(self.members)} heads of {len(kinds)} shapes and {len(self.temperatures)} temperatures "
                "are no ensemble",
                action="Train the model again",
            )
        if not all(0 < temperature < np.inf for temperature in self.temperatures):
            raise UsageError(
                f"{self.temperatures} are no temperatures: each must be above 0",
                action="Train the model again",
            )

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self.members[0].dim

    @property
    def classes(self) -> int:
        """C."""
        return self.members[0].classes

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.members[0].parameters()).device

    def calibrated(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """``(M, C)`` probabilities from the members' logits ``(M, C)`` of one slide."""
        each = zip(logits, self.temperatures, strict=True)
        return np.concatenate([probabilities(row[None], temperature) for row, temperature in each])


def as_ensemble(head: Head | Ensemble) -> Ensemble:
    """A head alone as an ensemble of one, not calibrated; an ensemble as it is."""
    return head if isinstance(head, Ensemble) else Ensemble((head,), (1.0,))


@torch.inference_mode()
def bag_logits(head: Head, sources: Sequence[BagSource]) -> NDArray[np.float64]:
    """``(m, C)``: what a head says of slides, in eval mode; read and judged one after the other.

    Raises
    ------
    UsageError
        A slide's features have another length than the head takes.
    """
    device, rows = next(head.parameters()).device, []
    with in_eval_mode(head):
        for source in sources:
            check_length(source, head.dim)
            rows.append(head(pack([source.read()], device=device)).logits.double().cpu())  # (1, C)
    return np.asarray(torch.cat(rows).numpy(), np.float64)


def check_length(bag: BagSource, dim: int) -> None:
    """Refuse a slide whose features have another length than a head takes; the slide is named."""
    if bag.dim != dim:
        raise UsageError(
            f"slide {bag.slide_id!r} has features of length {bag.dim}, the model takes {dim}",
            action="Encode it with the model's encoder",
        )


@contextlib.contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Dropout off inside; outside each part as before, so that judging amid training does not end it."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
