r"""What a model says of one class, as a number that can be explained.

That number is the log-odds of the class against the rest, for logits y and a temperature T:

.. math::

    v = \log \frac{p_c}{1 - p_c} = \frac{y_c}{T} - \log \sum_{j \ne c} e^{y_j / T}

Not the logit: a softmax stays the same when one number is added to all logits, so a single logit has a part
that means nothing, and may rise while its class becomes less probable. Not the probability: it saturates, and
what saturates has no gradient. For two classes v is the difference of the logits.

::

    N  rows of all bags      B  bags      C  classes      n  tiles of the bag that is explained
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from mil.bags import Bag, PackedBags, pack
from mil.ensemble import Ensemble, as_ensemble, check_length, in_eval_mode
from mil.heads import Head

ROWS_PER_SLICE = 4096
"""Rows that are judged at a time where that is free to choose: it bounds memory, and changes no value."""


Judge = Head | Ensemble
"""Who judges a bag: one head, or several whose probabilities are averaged."""


@dataclass(frozen=True, slots=True)
class Voice:
    """One head, asked for one class."""

    head: Head
    """Who speaks."""
    class_index: int
    """Of which class."""
    temperature: float = 1.0
    """What the logits are divided by."""

    def log_odds(self, logits: Tensor) -> Tensor:
        """From ``(B, C)`` logits to ``(B,)``: v in the module's text. Differentiable."""
        scaled = logits / self.temperature  # (B, C)
        others = torch.cat([scaled[:, : self.class_index], scaled[:, self.class_index + 1 :]], dim=1)
        return scaled[:, self.class_index] - others.logsumexp(dim=1)  # (B,)

    def pack(self, bag: Bag) -> PackedBags:
        """A bag as the head takes it.

        Raises
        ------
        UsageError
            The features have another length than the head takes.
        """
        check_length(bag, self.head.dim)
        return pack([bag], device=next(self.head.parameters()).device)


def voices(model: Judge, class_index: int) -> tuple[Voice, ...]:
    """Who is to be asked: the head, or each member of an ensemble.

    An ensemble's explanation is the mean of its members': it explains the mean of their log-odds, which is
    not quite the log-odds of their mean probability, but adds up.
    """
    ensemble = as_ensemble(model)
    if not 0 <= class_index < ensemble.classes:
        raise ValueError(f"there is no class {class_index} among {ensemble.classes}")
    each = zip(ensemble.members, ensemble.temperatures, strict=True)
    return tuple(Voice(head, class_index, temperature) for head, temperature in each)


def probabilities(model: Judge, bag: Bag, parts: Sequence[Tensor]) -> Tensor:
    """``(S, C)`` float64: what the model says of S bags of some of a bag's tiles each; see `part_logits`."""
    said = []
    for voice in voices(model, 0):
        with in_eval_mode(voice.head), torch.inference_mode():
            logits = part_logits(voice.head, voice.pack(bag), parts)  # (S, C)
        said.append((logits.double() / voice.temperature).softmax(dim=1))
    return torch.stack(said).mean(dim=0)


def part_logits(head: Head, tiles: PackedBags, parts: Sequence[Tensor]) -> Tensor:
    """Judge bags of some of a bag's tiles each, as many at a time as memory allows.

    Parameters
    ----------
    tiles
        One bag of n tiles. Tiles keep their places, whichever others are there.
    parts
        S times ``(k,)`` int64: rows of the bag, at least one.

    Returns
    -------
    ``(S, C)``.
    """
    said = []
    for some in _slices(parts):
        sizes = tuple(len(rows) for rows in some)
        rows = torch.cat(list(some)).to(tiles.features.device)  # (N,)
        bag_of_row = torch.repeat_interleave(torch.tensor(sizes)).to(rows.device)  # (N,)
        said.append(head(PackedBags(tiles.features[rows], bag_of_row, tiles.places[rows], sizes)).logits)
    return torch.cat(said)


def _slices(parts: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Neighbours that have no more rows together than are judged at a time, or a single one."""
    start, ends = 0, list(accumulate(len(rows) for rows in parts))
    while start < len(parts):
        before = ends[start - 1] if start else 0
        stop = start + 1
        while stop < len(parts) and ends[stop] - before <= ROWS_PER_SLICE:
            stop += 1
        yield parts[start:stop]
        start = stop
