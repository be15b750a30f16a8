r"""Attention-based multiple-instance learning, without the gate.

M. Ilse, J. M. Tomczak, M. Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018
(arXiv:1802.04712), equations 7 and 8, with the widths and dropout that became usual for slides.

.. math::

    h_i &= \mathrm{ReLU}(P x_i) \\
    a_i &= w^\top \tanh(V h_i) \\
    z   &= \sum_i \mathrm{softmax}_i(a) \, h_i \\
    y   &= W z

As in `gated_abmil`, y is computed as the sum over tiles of softmax(a) times W h, and a bias.

::

    N  rows of all bags       L  hidden width       D  length of a feature vector
    B  bags                   A  attention width    C  classes
"""

from __future__ import annotations

import torch
from torch import nn

from mil.bags import PackedBags
from mil.heads.contract import Head, HeadOutput
from mil.heads.dropout import Dropout
from mil.segments import segment_softmax, segment_sum


class ABMIL(Head):
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
        A.
    dropout
        Share of hidden values, and of the attention's, left out in training.
    """

    name = "abmil"
    stacks = True

    def __init__(
        self, dim: int, classes: int, *, hidden: int = 512, attention: int = 256, dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.dim, self.classes = dim, classes
        self.settings = {"hidden": hidden, "attention": attention, "dropout": dropout}
        self.P = nn.Linear(dim, hidden)
        self.V = nn.Linear(hidden, attention)
        self.w = nn.Linear(attention, 1)
        self.W = nn.Linear(hidden, classes)
        self.dropout = Dropout(dropout)

    def forward(self, bags: PackedBags) -> HeadOutput:
        """Judge bags; see `Head.forward`. K is 1: one attention for all classes."""
        h = self.dropout(torch.relu(self.P(bags.features)))  # (N, L)
        a = self.w(self.dropout(torch.tanh(self.V(h))))  # (N, 1)
        alpha = segment_softmax(a, bags.bag_of_row, len(bags))  # (N, 1)
        contributions = alpha * nn.functional.linear(h, self.W.weight)  # (N, C)
        logits = segment_sum(contributions, bags.bag_of_row, len(bags)) + self.W.bias  # (B, C)
        return HeadOutput(logits, a, contributions)  # (B, C), (N, 1), (N, C)
