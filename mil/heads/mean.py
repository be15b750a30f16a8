r"""The mean of hidden vectors: every tile counts the same.

The simplest head, and the first to hold another against (arXiv:2502.20823 holds a mean with a perceptron
against attention, on features of foundation models). What one tile in a thousand shows is a thousandth of
the mean.

.. math::

    h_i &= \mathrm{ReLU}(P x_i) \\
    y   &= W \, \frac{1}{n} \sum_i h_i

::

    N  rows of all bags       L  hidden width       D  length of a feature vector
    B  bags                   C  classes
"""

from __future__ import annotations

import torch
from torch import nn

from mil.bags import PackedBags
from mil.heads.contract import Head, HeadOutput
from mil.heads.dropout import Dropout
from mil.segments import segment_sizes, segment_sum


class Mean(Head):
    """See the module's text.

    Parameters
    ----------
    dim
        D.
    classes
        C.
    hidden
        L.
    dropout
        Share of hidden values left out in training.
    """

    name = "mean"
    stacks = True

    def __init__(self, dim: int, classes: int, *, hidden: int = 512, dropout: float = 0.25) -> None:
        super().__init__()
        self.dim, self.classes = dim, classes
        self.settings = {"hidden": hidden, "dropout": dropout}
        self.P = nn.Linear(dim, hidden)
        self.W = nn.Linear(hidden, classes)
        self.dropout = Dropout(dropout)

    def forward(self, bags: PackedBags) -> HeadOutput:
        """Judge bags; see `Head.forward`. K is 1, and all tiles have the same attention."""
        h = self.dropout(torch.relu(self.P(bags.features)))  # (N, L)
        sizes = segment_sizes(bags.bag_of_row, len(bags))[bags.bag_of_row, None]  # (N, 1)
        share = 1 / sizes.to(torch.promote_types(h.dtype, torch.float32))  # (N, 1)
        # W of a mean is the mean of W, which is narrower.
        contributions = share * nn.functional.linear(h, self.W.weight)  # (N, C)
        logits = segment_sum(contributions, bags.bag_of_row, len(bags)) + self.W.bias  # (B, C)
        return HeadOutput(logits, torch.zeros_like(share), contributions)  # (B, C), (N, 1), (N, C)
