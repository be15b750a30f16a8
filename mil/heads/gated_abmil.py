r"""Gated attention-based multiple-instance learning.

M. Ilse, J. M. Tomczak, M. Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018
(arXiv:1802.04712), equations 7 and 9, with the widths and dropout that became usual for slides.

A bag is a set of N feature vectors x. Each becomes a hidden vector h; a small network weighs it; the bag's
embedding z is the weighted mean, and a linear layer classifies it:

.. math::

    h_i &= \mathrm{ReLU}(P x_i) \\
    a_i &= w^\top \left( \tanh(V h_i) \odot \mathrm{sigm}(U h_i) \right) \\
    z   &= \sum_i \mathrm{softmax}_i(a) \, h_i \\
    y   &= W z

The gate, sigm(U h), lets the network say "nothing here" where tanh alone is nearly linear around zero. The
sum does not know the order of the tiles, nor, for equal proportions, their number.

W is linear, so y is also a sum over tiles, of softmax(a) times W h, and a bias. It is computed so: that is
narrower than z, and says what each tile adds.

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


class GatedABMIL(Head):
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
        Share of hidden values, and of each attention branch's, left out in training.
    """

    name = "gated_abmil"
    stacks = True

    def __init__(
        self, dim: int, classes: int, *, hidden: int = 512, attention: int = 256, dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.dim, self.classes = dim, classes
        self.settings = {"hidden": hidden, "attention": attention, "dropout": dropout}
        self.P = nn.Linear(dim, hidden)
        self.V = nn.Linear(hidden, attention)
        self.U = nn.Linear(hidden, attention)
        self.w = nn.Linear(attention, 1)
        self.W = nn.Linear(hidden, classes)
        self.dropout = Dropout(dropout)
        self.gate_dropout = Dropout(1 - (1 - dropout) ** 2)  # of two branches, each with its own

    def forward(self, bags: PackedBags) -> HeadOutput:
        """Judge bags; see `Head.forward`. K is 1: one attention for all classes."""
        h = self.dropout(torch.relu(self.P(bags.features)))  # (N, L)
        gated = torch.tanh(self.V(h)) * torch.sigmoid(self.U(h))  # (N, A)
        a = self.w(self.gate_dropout(gated))  # (N, 1)
        alpha = segment_softmax(a, bags.bag_of_row, len(bags))  # (N, 1)
        contributions = alpha * nn.functional.linear(h, self.W.weight)  # (N, C)
        logits = segment_sum(contributions, bags.bag_of_row, len(bags)) + self.W.bias  # (B, C)
        return HeadOutput(logits, a, contributions)  # (B, C), (N, 1), (N, C)
