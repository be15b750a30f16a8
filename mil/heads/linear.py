r"""A linear classifier of tiles, and of a slide by the mean of what is said of its tiles.

.. math::

    y = W \, \frac{1}{n} \sum_i x_i + b

No hidden layer. Of one tile it is plain softmax regression, the first classifier to hold another against on
features of a network that nobody trains any more; behind `mil.adaptors.unit_length` its rows can be class
prototypes, which makes it the nearest-centroid rule of Y. Wang et al., "SimpleShot: Revisiting
Nearest-Neighbor Classification for Few-Shot Learning", 2019 (arXiv:1911.04623).

::

    N  rows of all bags       D  length of a feature vector
    B  bags                   C  classes
"""

from __future__ import annotations

import torch
from torch import nn

from mil.bags import PackedBags
from mil.heads.contract import Head, HeadOutput
from mil.heads.dropout import Dropout
from mil.segments import segment_sizes, segment_sum


class Linear(Head):
    """See the module's text.

    Parameters
    ----------
    dim
        D.
    classes
        C.
    dropout
        Share of feature values left out in training.
    """

    name = "linear"
    stacks = True

    def __init__(self, dim: int, classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dim, self.classes = dim, classes
        self.settings = {"dropout": dropout}
        self.W = nn.Linear(dim, classes)
        self.dropout = Dropout(dropout)

    def forward(self, bags: PackedBags) -> HeadOutput:
        """Judge bags; see `Head.forward`. K is 1, and all tiles have the same attention."""
        x = self.dropout(bags.features)  # (N, D)
        sizes = segment_sizes(bags.bag_of_row, len(bags))[bags.bag_of_row, None]  # (N, 1)
        share = 1 / sizes.to(torch.promote_types(x.dtype, torch.float32))  # (N, 1)
        contributions = share * nn.functional.linear(x, self.W.weight)  # (N, C)
        logits = segment_sum(contributions, bags.bag_of_row, len(bags)) + self.W.bias  # (B, C)
        return HeadOutput(logits, torch.zeros_like(share), contributions)  # (B, C), (N, 1), (N, C)
