r"""Clustering-constrained attention: gated attention whose extremes also have to be told apart.

M. Y. Lu et al., "Data-efficient and weakly supervised computational pathology on whole-slide images",
Nature Biomedical Engineering 2021 (arXiv:2004.09666). Two heads: `ClamSB` has one attention for all
classes, `ClamMB` one for each.

.. math::

    h_i    &= \mathrm{ReLU}(P x_i) \\
    a_{ic} &= w_c^\top \left( \tanh(V h_i) \odot \mathrm{sigm}(U h_i) \right) \\
    y_c    &= W_c \sum_i \mathrm{softmax}_i(a_c) \, h_i

In training, the k tiles with the most attention and the k with the least are given labels of their own, 1
and 0, and a classifier of tiles that belongs to the slide's class has to tell them apart. With `subtyping`
(every tile of the slide is of one class at most) the most attended tiles are also labelled 0 for every
other class.

The loss of a bag is ``bag_weight`` (0.7) times the criterion of y, plus the rest (0.3) times the mean
cross-entropy of the labelled tiles; with subtyping that is averaged over the C classifiers. (The paper also
offers a smooth SVM loss for tiles; cross-entropy is what it is compared with, and needs nothing further.)

No tile gets both labels: of a bag of fewer than 2 k tiles, half are labelled 1 (the larger half where the
number is odd), the others 0. The tile of a bag of one is labelled 1.

::

    N  rows of all bags       L  hidden width       D  length of a feature vector
    B  bags                   A  attention width    C  classes        K  attentions, 1 or C
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.bags import PackedBags
from mil.heads.contract import Criterion, Head, HeadOutput
from mil.heads.dropout import Dropout
from mil.segments import at_least_float32, segment_rank, segment_sizes, segment_softmax, segment_sum


class _Clam(Head):
    """Both heads: they differ in how many attentions they have."""

    attention_per_class: ClassVar[bool]

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        hidden: int = 512,
        attention: int = 256,
        dropout: float = 0.25,
        k_sample: int = 8,
        bag_weight: float = 0.7,
        subtyping: bool = False,
    ) -> None:
        super().__init__()
        if k_sample < 1 or not 0 <= bag_weight <= 1:
            raise ValueError("k_sample must be at least 1, and bag_weight between 0 and 1")
        self.dim, self.classes = dim, classes
        self.settings = {
            "hidden": hidden,
            "attention": attention,
            "dropout": dropout,
            "k_sample": k_sample,
            "bag_weight": bag_weight,
            "subtyping": subtyping,
        }
        self.k_sample, self.bag_weight, self.subtyping = k_sample, bag_weight, bool(subtyping)
        self.P = nn.Linear(dim, hidden)
        self.V = nn.Linear(hidden, attention)
        self.U = nn.Linear(hidden, attention)
        self.w = nn.Linear(attention, classes if self.attention_per_class else 1)
        self.W = nn.Linear(hidden, classes)
        self.tiles = nn.Linear(hidden, 2 * classes)  # one classifier of tiles, 0 or 1, for each class
        self.dropout = Dropout(dropout)
        self.gate_dropout = Dropout(1 - (1 - dropout) ** 2)  # of two branches, each with its own

    def forward(self, bags: PackedBags) -> HeadOutput:
        """Judge bags; see `Head.forward`."""
        return self._judge(bags)[0]

    def losses(self, bags: PackedBags, labels: Tensor, criterion: Criterion) -> Tensor:
        """``(B,)``: 0.7 of the bag's loss and 0.3 of its tiles', by default; see the module's text."""
        output, h = self._judge(bags)
        of_bags = criterion(output.logits, labels)  # (B,)
        of_tiles = self._tile_losses(h, output.attention_logits, bags, labels)  # (B,)
        return self.bag_weight * of_bags + (1 - self.bag_weight) * of_tiles

    def _judge(self, bags: PackedBags) -> tuple[HeadOutput, Tensor]:
        """What is said of the bags, and the hidden vectors ``(N, L)``."""
        h = self.dropout(torch.relu(self.P(bags.features)))  # (N, L)
        gated = torch.tanh(self.V(h)) * torch.sigmoid(self.U(h))  # (N, A)
        a = self.w(self.gate_dropout(gated))  # (N, K)
        alpha = segment_softmax(a, bags.bag_of_row, len(bags))  # (N, K)
        contributions = alpha * functional.linear(h, self.W.weight)  # (N, C)
        logits = segment_sum(contributions, bags.bag_of_row, len(bags)) + self.W.bias  # (B, C)
        return HeadOutput(logits, a, contributions), h

    def _tile_losses(self, h: Tensor, a: Tensor, bags: PackedBags, labels: Tensor) -> Tensor:
        """``(B,)``: cross-entropy of the labelled tiles, as the module's text says."""
        extremes = Extremes.of(a, bags, self.k_sample)
        total = at_least_float32(h.new_zeros(len(bags)))  # (B,)
        for c in range(self.classes):
            column = c if self.attention_per_class else 0
            of_class = (labels == c)[bags.bag_of_row]  # (N,)
            most, least = extremes.most[:, column], extremes.least[:, column]  # (N,)
            chosen = of_class & (most | least)  # (N,)
            if self.subtyping:
                chosen = chosen | (~of_class & most)
            rows = chosen.nonzero().squeeze(1)  # (r,)
            scores = at_least_float32(functional.linear(h[rows], *self._tile_classifier(c)))  # (r, 2)
            targets = (of_class & most)[rows].long()  # (r,)
            losses = functional.cross_entropy(scores, targets, reduction="none")  # (r,)
            bag_of_row = bags.bag_of_row[rows]  # (r,)
            counts = segment_sizes(bag_of_row, len(bags)).clamp(min=1)  # (B,)
            total = total + segment_sum(losses[:, None], bag_of_row, len(bags)).squeeze(1) / counts
        return total / self.classes if self.subtyping else total

    def _tile_classifier(self, c: int) -> tuple[Tensor, Tensor]:
        """Weight ``(2, L)`` and bias ``(2,)`` of class c's."""
        return self.tiles.weight[2 * c : 2 * c + 2], self.tiles.bias[2 * c : 2 * c + 2]


@dataclass(frozen=True, slots=True)
class Extremes:
    """The tiles with the most and the least attention of each bag."""

    most: Tensor
    """``(N, K)`` bool."""
    least: Tensor
    """``(N, K)`` bool; never where `most` is."""

    @classmethod
    def of(cls, a: Tensor, bags: PackedBags, k: int) -> Extremes:
        """By attention logits ``(N, K)``; k of either, or half of a smaller bag each."""
        rank = segment_rank(a, bags.bag_of_row, len(bags))  # (N, K)
        sizes = segment_sizes(bags.bag_of_row, len(bags))[bags.bag_of_row, None]  # (N, 1)
        most = ((sizes + 1) // 2).clamp(max=k)  # (N, 1)
        least = (sizes // 2).clamp(max=k)  # (N, 1)
        return cls(rank < most, rank >= sizes - least)


class ClamSB(_Clam):
    """One attention for all classes (K is 1). See the module's text.

    Parameters
    ----------
    dim
        D.
    classes
        C.
    hidden
        L.
    attention
        A.
    dropout
        Share of hidden values, and of each attention branch's, left out in training.
    k_sample
        Tiles labelled 1, and as many labelled 0, in each bag.
    bag_weight
        Of the bag's loss; the tiles' has the rest.
    subtyping
        Whether the most attended tiles are counter-examples for the other classes.
    """

    name = "clam_sb"
    attention_per_class: ClassVar[bool] = False


class ClamMB(_Clam):
    """An attention for each class (K is C). See the module's text; the parameters are those of `ClamSB`."""

    name = "clam_mb"
    embeds = False
    attention_per_class: ClassVar[bool] = True
