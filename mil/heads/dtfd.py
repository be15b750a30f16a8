r"""Double-tier feature distillation: a slide is split into pseudo-bags, and these are a bag again.

H. Zhang et al., "DTFD-MIL: Double-Tier Feature Distillation Multiple Instance Learning for Histopathology
Whole Slide Image Classification", CVPR 2022 (arXiv:2203.12081).

The tiles of a slide are dealt to M pseudo-bags g. Both tiers are gated attention with a classifier:

.. math::

    h_i &= \mathrm{ReLU}(P x_i) \\
    y_g &= W_1 z_g, \qquad z_g = \sum_{i \in g} \mathrm{softmax}_{i \in g}(a_1(h_i)) \, h_i \\
    y   &= W_2 \sum_g \mathrm{softmax}_g(a_2(z_g)) \, z_g

So far the paper's AFS: what a pseudo-bag hands on is its attended mean. With ``picked`` above 0 it is
MaxMinS: the tiles of a pseudo-bag that speak most and least for the class that the pseudo-bag is given, so
many of either, by the softmax of their part in y_g. (For two classes that is the authors' rule, which
always asks for the second class: the same tiles, for both ends are taken.)

The loss of a bag is the mean criterion of its pseudo-bags, which have the slide's label, plus the criterion
of y. The second tier's loss does not reach the hidden vectors: each tier learns from its own.

In training the split is drawn anew each time. Else tiles are dealt in turn in raster order, so that every
pseudo-bag is a thinned-out slide, and the same slide always gives the same result. That is the only use it
makes of places. A slide of fewer than M tiles has a pseudo-bag for each.

::

    N  rows of all bags       L  hidden width       D  length of a feature vector
    B  bags                   A  attention width    C  classes
    G  pseudo-bags of all bags                      R  vectors handed to the second tier
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.bags import PackedBags
from mil.heads.contract import Criterion, Head, HeadOutput
from mil.heads.dropout import Dropout
from mil.heads.raster import raster_order
from mil.segments import (
    segment_log_softmax,
    segment_mean,
    segment_rank,
    segment_sizes,
    segment_softmax,
    segment_sum,
)


class DTFD(Head):
    """See the module's text.

    Parameters
    ----------
    dim
        D.
    classes
        C.
    hidden
        L.
    attention
        A, of both tiers.
    groups
        M.
    picked
        0: a pseudo-bag hands on its attended mean. Else: its so many most and so many least telling tiles.
    dropout
        Share of hidden values left out in training.
    """

    name = "dtfd"
    uses_places = True
    last_layer = "second.W"
    embeds = False

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        hidden: int = 512,
        attention: int = 128,
        groups: int = 4,
        picked: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if groups < 1 or picked < 0:
            raise ValueError("groups must be at least 1, and picked at least 0")
        self.dim, self.classes, self.groups, self.picked = dim, classes, groups, picked
        self.settings = {
            "hidden": hidden,
            "attention": attention,
            "groups": groups,
            "picked": picked,
            "dropout": dropout,
        }
        self.P = nn.Linear(dim, hidden, bias=False)
        self.first = _Tier(hidden, attention, classes)
        self.second = _Tier(hidden, attention, classes)
        self.dropout = Dropout(dropout)

    def forward(self, bags: PackedBags) -> HeadOutput:
        """Judge bags; see `Head.forward`. K is 1.

        A tile's attention is its share of its pseudo-bag times the pseudo-bag's share of the slide. With
        `picked` at 0 the contributions are given.
        """
        h, split, first = self._first_tier(bags)
        handed = self._distil(h, split, first)
        second = self.second(handed.vectors, split.bag_of_group[handed.group], len(bags))
        shares = segment_sum(second.alpha, handed.group, len(split.bag_of_group))  # (G, 1)
        tiny = torch.finfo(shares.dtype).tiny
        within = segment_log_softmax(first.a, split.group_of_row, len(shares))  # (N, 1)
        attention_logits = within + shares.clamp(min=tiny).log()[split.group_of_row]  # (N, 1)
        contributions = None
        if not self.picked:
            weight = first.alpha * second.alpha[split.group_of_row]  # (N, 1)
            contributions = weight * functional.linear(h, self.second.W.weight)  # (N, C)
        return HeadOutput(second.logits, attention_logits, contributions)

    def losses(self, bags: PackedBags, labels: Tensor, criterion: Criterion) -> Tensor:
        """``(B,)``: the mean criterion of the pseudo-bags plus that of the bag."""
        h, split, first = self._first_tier(bags)
        handed = self._distil(h, split, first)
        second = self.second(handed.vectors.detach(), split.bag_of_group[handed.group], len(bags))
        of_groups = criterion(first.logits, labels[split.bag_of_group])[:, None]  # (G, 1)
        of_bags = criterion(second.logits, labels)  # (B,)
        return segment_mean(of_groups, split.bag_of_group, len(bags)).squeeze(1) + of_bags

    def _first_tier(self, bags: PackedBags) -> tuple[Tensor, _Split, _Judged]:
        """Hidden vectors ``(N, L)``, pseudo-bags, and what the first tier says of these."""
        h = self.dropout(torch.relu(self.P(bags.features)))  # (N, L)
        if self.training:
            order = torch.rand(len(h), device=h.device).argsort()  # (N,)
            order = order[bags.bag_of_row[order].argsort(stable=True)]
        else:
            order = raster_order(bags)
        split = _Split.deal(order, bags, self.groups)
        return h, split, self.first(h, split.group_of_row, len(split.bag_of_group))

    def _distil(self, h: Tensor, split: _Split, first: _Judged) -> _Handed:
        group_count = len(split.bag_of_group)
        if not self.picked:
            z = segment_sum(first.alpha * h, split.group_of_row, group_count)  # (G, L)
            return _Handed(z, torch.arange(group_count, device=h.device))
        leading = first.logits.argmax(dim=1)[split.group_of_row, None]  # (N, 1)
        speaks = first.contributions.detach().softmax(dim=1).gather(1, leading)  # (N, 1)
        ends = (segment_rank(end, split.group_of_row, group_count) for end in (speaks, -speaks))  # (N, 1)
        rows = torch.cat([(rank.squeeze(1) < self.picked).nonzero().squeeze(1) for rank in ends])  # (R,)
        return _Handed(h[rows], split.group_of_row[rows])


@dataclass(frozen=True, slots=True)
class _Split:
    """Tiles dealt to pseudo-bags."""

    group_of_row: Tensor
    """``(N,)`` int64: which of the G pseudo-bags each row is in."""
    bag_of_group: Tensor
    """``(G,)`` int64: whose pseudo-bag it is, ascending."""

    @classmethod
    def deal(cls, order: Tensor, bags: PackedBags, groups: int) -> _Split:
        """Deal each bag's rows in turn, in an order ``(N,)`` that goes bag after bag."""
        sizes = segment_sizes(bags.bag_of_row, len(bags))  # (B,)
        counts = sizes.clamp(max=groups)  # (B,): none of them empty
        within = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[bags.bag_of_row]
        group = (counts.cumsum(0) - counts)[bags.bag_of_row] + within % counts[bags.bag_of_row]  # (N,)
        numbers = torch.arange(len(bags), device=order.device)
        return cls(torch.empty_like(order).scatter(0, order, group), numbers.repeat_interleave(counts))


@dataclass(frozen=True, slots=True)
class _Handed:
    """What the first tier hands to the second."""

    vectors: Tensor
    """``(R, L)``."""
    group: Tensor
    """``(R,)`` int64: the pseudo-bag that each is from."""


@dataclass(frozen=True, slots=True)
class _Judged:
    """What a tier says of its bags."""

    a: Tensor
    """``(N, 1)``: attention before the softmax."""
    alpha: Tensor
    """``(N, 1)``: after it."""
    contributions: Tensor
    """``(N, C)``: what each row adds to the logits."""
    logits: Tensor
    """``(B, C)``."""


class _Tier(nn.Module):
    """Gated attention and a classifier, from hidden vectors; see `mil.heads.gated_abmil`."""

    def __init__(self, hidden: int, attention: int, classes: int) -> None:
        super().__init__()
        self.V = nn.Linear(hidden, attention)
        self.U = nn.Linear(hidden, attention)
        self.w = nn.Linear(attention, 1)
        self.W = nn.Linear(hidden, classes)

    def forward(self, h: Tensor, bag_of_row: Tensor, bag_count: int) -> _Judged:
        a = self.w(torch.tanh(self.V(h)) * torch.sigmoid(self.U(h)))  # (N, 1)
        alpha = segment_softmax(a, bag_of_row, bag_count)  # (N, 1)
        contributions = alpha * functional.linear(h, self.W.weight)  # (N, C)
        logits = segment_sum(contributions, bag_of_row, bag_count) + self.W.bias  # (B, C)
        return _Judged(a, alpha, contributions, logits)
