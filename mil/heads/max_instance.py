r"""The maximum over tile scores: a slide is what its most telling tile is, for each class.

The oldest rule of multiple-instance learning; as a network: X. Wang et al., "Revisiting Multiple Instance
Neural Networks", Pattern Recognition 2018 (arXiv:1610.02501), mi-Net with maximum pooling; on slides: G.
Campanella et al., Nature Medicine 2019.

.. math::

    s_i &= W \, \mathrm{ReLU}(P x_i) \\
    y_c &= \max_i s_{ic}

Every step of training reaches one tile a class, so it needs many slides.

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
from mil.segments import at_least_float32, segment_max, segment_sum


class MaxInstance(Head):
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

    name = "max_instance"
    embeds = False

    def __init__(self, dim: int, classes: int, *, hidden: int = 512, dropout: float = 0.25) -> None:
        super().__init__()
        self.dim, self.classes = dim, classes
        self.settings = {"hidden": hidden, "dropout": dropout}
        self.P = nn.Linear(dim, hidden)
        self.W = nn.Linear(hidden, classes)
        self.dropout = Dropout(dropout)

    def forward(self, bags: PackedBags) -> HeadOutput:
        """Judge bags; see `Head.forward`. K is C, and the scores themselves are the attention's logits.

        The contributions are those of the tiles that hold the maximum; the others add nothing.
        """
        h = self.dropout(torch.relu(self.P(bags.features)))  # (N, L)
        scores = at_least_float32(self.W(h))  # (N, C)
        logits = segment_max(scores, bags.bag_of_row, len(bags))  # (B, C)
        holds = (scores == logits[bags.bag_of_row]).to(scores.dtype)  # (N, C)
        sharing = segment_sum(holds, bags.bag_of_row, len(bags))[bags.bag_of_row]  # (N, C)
        contributions = holds / sharing * (scores - self.W.bias)  # (N, C)
        return HeadOutput(logits, scores, contributions)  # (B, C), (N, C), (N, C)
