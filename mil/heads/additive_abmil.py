r"""Additive attention-based multiple-instance learning: a slide's logits are the sum of what its tiles say.

S. A. Javed et al., "Additive MIL: Intrinsically Interpretable Multiple Instance Learning for Pathology",
NeurIPS 2022 (arXiv:2206.01794), equation 4: the classifier sees each weighted tile, not their mean.

.. math::

    h_i &= \mathrm{ReLU}(P x_i) \\
    a_i &= w^\top \left( \tanh(V h_i) \odot \mathrm{sigm}(U h_i) \right) \\
    y   &= \sum_i \psi(\mathrm{softmax}_i(a) \, h_i), \qquad \psi(h) = W \, \mathrm{ReLU}(M h)

The classifier psi has no biases here. Then psi(alpha h) is alpha psi(h): the sum is y without a remainder,
and a slide cut into twice as many tiles gets the same y, where with biases each further tile would add
some.

::

    N  rows of all bags       L  hidden width       D  length of a feature vector
    B  bags                   A  attention width    C  classes        M  width within the classifier
"""

from __future__ import annotations

import torch
from torch import nn

from mil.bags import PackedBags
from mil.heads.contract import Head, HeadOutput
from mil.heads.dropout import Dropout
from mil.segments import segment_softmax, segment_sum


class AdditiveABMIL(Head):
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
    classifier
        M.
    dropout
        Share of hidden values, and of each attention branch's, left out in training.
    """

    name = "additive_abmil"
    embeds = False

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        hidden: int = 512,
        attention: int = 256,
        classifier: int = 256,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.dim, self.classes = dim, classes
        self.settings = {
            "hidden": hidden,
            "attention": attention,
            "classifier": classifier,
            "dropout": dropout,
        }
        self.P = nn.Linear(dim, hidden)
        self.V = nn.Linear(hidden, attention)
        self.U = nn.Linear(hidden, attention)
        self.w = nn.Linear(attention, 1)
        self.M = nn.Linear(hidden, classifier, bias=False)
        self.W = nn.Linear(classifier, classes, bias=False)
        self.dropout = Dropout(dropout)
        self.gate_dropout = Dropout(1 - (1 - dropout) ** 2)  # of two branches, each with its own

    def forward(self, bags: PackedBags) -> HeadOutput:
        """Judge bags; see `Head.forward`. K is 1, and the contributions sum to the logits."""
        h = self.dropout(torch.relu(self.P(bags.features)))  # (N, L)
        gated = torch.tanh(self.V(h)) * torch.sigmoid(self.U(h))  # (N, A)
        a = self.w(self.gate_dropout(gated))  # (N, 1)
        alpha = segment_softmax(a, bags.bag_of_row, len(bags))  # (N, 1)
        contributions = alpha * self.W(torch.relu(self.M(h)))  # (N, C)
        logits = segment_sum(contributions, bags.bag_of_row, len(bags))  # (B, C)
        return HeadOutput(logits, a, contributions)  # (B, C), (N, 1), (N, C)
