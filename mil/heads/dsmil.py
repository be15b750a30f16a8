r"""Dual-stream multiple-instance learning: the most telling tile, and all tiles as they resemble it.

B. Li, Y. Li, K. W. Eliceiri, "Dual-stream Multiple Instance Learning Network for Whole Slide Image
Classification with Self-supervised Contrastive Learning", CVPR 2021 (arXiv:2011.08939), section 3.2.

The first stream scores tiles and takes the maximum; the tile that holds it, one for each class, is
critical. The second weighs every tile by how close its query is to the critical tile's:

.. math::

    s_i    &= W_0 x_i, \qquad m_c = \arg\max_i s_{ic} \\
    q_i    &= \tanh(Q_2 \, \mathrm{ReLU}(Q_1 x_i)) \\
    a_{ic} &= q_i^\top q_{m_c} / \sqrt{A} \\
    b_c    &= \sum_i \mathrm{softmax}_i(a_c) \, v_i, \qquad v_i = x_i
              \text{ or } \mathrm{ReLU}(W_v x_i) \\
    y      &= \tfrac12 \left( s_{m} + W (b_1, \dots, b_C) \right)

The loss of a bag is half the criterion of each stream's logits; the prediction is the mean of the two
streams' logits, as the paper's. There each class is a sigmoid of its own; here the classes of a slide
exclude one another, so the criterion is one over all C logits, and both streams have one for every class,
the negative one as well.

::

    N  rows of all bags       A  query width        D  length of a feature vector
    B  bags                   C  classes
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.bags import PackedBags
from mil.heads.contract import Criterion, Head, HeadOutput
from mil.heads.dropout import Dropout
from mil.segments import at_least_float32, segment_argmax, segment_softmax, segment_sum


class DSMIL(Head):
    """See the module's text.

    Parameters
    ----------
    dim
        D.
    classes
        C.
    attention
        A.
    project_values
        Whether v is a projection of x (D x D parameters) or x itself.
    dropout
        Share of feature values left out in training before that projection.
    """

    name = "dsmil"
    embeds = False

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        attention: int = 128,
        project_values: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.classes = dim, classes
        self.settings = {"attention": attention, "project_values": project_values, "dropout": dropout}
        self.W0 = nn.Linear(dim, classes)
        self.Q1 = nn.Linear(dim, attention)
        self.Q2 = nn.Linear(attention, attention)
        self.W = nn.Linear(classes * dim, classes)
        self.Wv = nn.Linear(dim, dim) if project_values else None
        self.dropout = Dropout(dropout)

    def forward(self, bags: PackedBags) -> HeadOutput:
        """Judge bags; see `Head.forward`. K is C: each class has its critical tile, and so its attention."""
        streams = self._streams(bags)
        alone = streams.scores.gather(0, streams.critical) - self.W0.bias  # (B, C)
        of_critical = torch.zeros_like(streams.contributions).scatter(0, streams.critical, alone)  # (N, C)
        logits = (streams.first + streams.second) / 2  # (B, C)
        return HeadOutput(logits, streams.attention_logits, (streams.contributions + of_critical) / 2)

    def losses(self, bags: PackedBags, labels: Tensor, criterion: Criterion) -> Tensor:
        """``(B,)``: half the criterion of either stream."""
        streams = self._streams(bags)
        return (criterion(streams.first, labels) + criterion(streams.second, labels)) / 2

    def _streams(self, bags: PackedBags) -> _Streams:
        x = bags.features  # (N, D)
        scores = at_least_float32(self.W0(x))  # (N, C)
        critical = segment_argmax(scores, bags.bag_of_row, len(bags))  # (B, C)
        q = torch.tanh(self.Q2(torch.relu(self.Q1(x))))  # (N, A)
        alike = [(q * q[rows][bags.bag_of_row]).sum(dim=1) for rows in critical.unbind(dim=1)]  # C of (N,)
        a = torch.stack(alike, dim=1) / q.shape[1] ** 0.5  # (N, C)
        alpha = segment_softmax(a, bags.bag_of_row, len(bags))  # (N, C)
        v = x if self.Wv is None else torch.relu(self.Wv(self.dropout(x)))  # (N, D)
        # W of the C weighted sums is a sum over tiles of what W makes of v: C x C numbers, not C x D.
        says = functional.linear(v, self.W.weight.view(self.classes**2, self.dim))  # (N, C * C)
        contributions = (says.view(-1, self.classes, self.classes) * alpha[:, None]).sum(dim=2)  # (N, C)
        return _Streams(
            scores=scores,
            critical=critical,
            first=scores.gather(0, critical),
            second=segment_sum(contributions, bags.bag_of_row, len(bags)) + self.W.bias,
            attention_logits=a,
            contributions=contributions,
        )


@dataclass(frozen=True, slots=True)
class _Streams:
    scores: Tensor
    """``(N, C)``: of each tile."""
    critical: Tensor
    """``(B, C)`` int64: rows of the tiles with the highest score."""
    first: Tensor
    """``(B, C)``: their scores."""
    second: Tensor
    """``(B, C)``: logits of the weighted sums."""
    attention_logits: Tensor
    """``(N, C)``."""
    contributions: Tensor
    """``(N, C)``: what each tile adds to `second`."""
