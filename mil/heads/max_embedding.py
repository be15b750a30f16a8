r"""The maximum over hidden vectors, value by value: a slide is described by the strongest of each trait.

X. Wang et al., "Revisiting Multiple Instance Neural Networks", Pattern Recognition 2018 (arXiv:1610.02501),
MI-Net with maximum pooling.

.. math::

    h_i &= \mathrm{ReLU}(P x_i) \\
    z_l &= \max_i h_{il} \\
    y   &= W z

Not the maximum over scores (`max_instance`): each hidden value may come from another tile, and up to L
tiles learn in a step.

::

    N  rows of all bags       L  hidden width       D  length of a feature vector
    B  bags                   C  classes
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.bags import PackedBags
from mil.heads.contract import Head, HeadOutput
from mil.heads.dropout import Dropout
from mil.segments import at_least_float32, segment_max, segment_sum


class MaxEmbedding(Head):
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

    name = "max_embedding"
    stacks = True

    def __init__(self, dim: int, classes: int, *, hidden: int = 512, dropout: float = 0.25) -> None:
        super().__init__()
        self.dim, self.classes = dim, classes
        self.settings = {"hidden": hidden, "dropout": dropout}
        self.P = nn.Linear(dim, hidden)
        self.W = nn.Linear(hidden, classes)
        self.dropout = Dropout(dropout)

    def forward(self, bags: PackedBags) -> HeadOutput:
        """Judge bags; see `Head.forward`. K is 1: attention is the share of z that a tile holds."""
        h = self.dropout(torch.relu(self.P(bags.features)))  # (N, L)
        z = segment_max(h, bags.bag_of_row, len(bags))  # (B, L)
        shares = self._shares(h.detach(), z.detach(), bags)  # (N, L)
        contributions = nn.functional.linear(shares * h, self.W.weight)  # (N, C)
        attention = shares.sum(dim=1, keepdim=True)  # (N, 1)
        tiny = torch.finfo(attention.dtype).tiny  # a tile that holds nothing; where all hold nothing, alike
        return HeadOutput(at_least_float32(self.W(z)), attention.clamp(min=tiny).log(), contributions)

    @staticmethod
    def _shares(h: Tensor, z: Tensor, bags: PackedBags) -> Tensor:
        """``(N, L)``: how much of each value of z is a tile's; equal tiles share; a 0 is nobody's."""
        holds = at_least_float32(((h == z[bags.bag_of_row]) & (h > 0)).to(h.dtype))  # (N, L)
        sharing = segment_sum(holds, bags.bag_of_row, len(bags)).clamp(min=1)  # (B, L)
        return holds / sharing[bags.bag_of_row]
