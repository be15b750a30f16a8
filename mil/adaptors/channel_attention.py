r"""Channel attention: what is in the slide as a whole says which features matter.

J. Hu, L. Shen, G. Sun, "Squeeze-and-Excitation Networks", CVPR 2018 (arXiv:1709.01507), equations 2 to 4,
with a bag's tiles in place of a picture's positions:

.. math::

    s    &= \tfrac1n \sum_i x_i \\
    g    &= \mathrm{sigm}(W_2 \, \mathrm{ReLU}(W_1 s)) \\
    x'_i &= g \odot x_i

::

    N  rows of all bags       D  length of a feature vector
    B  bags                   R  D / reduction
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.adaptors.contract import Adaptor
from mil.bags import PackedBags
from mil.segments import segment_mean


class ChannelAttention(Adaptor):
    """See the module's text.

    Parameters
    ----------
    dim
        D.
    reduction
        How many times narrower the hidden layer is; it has 1 value at least.
    """

    name = "channel_attention"

    def __init__(self, dim: int, *, reduction: int = 16) -> None:
        super().__init__()
        if reduction < 1:
            raise ValueError(f"the reduction is {reduction}; at least 1 is needed")
        self.dim = self.width = dim
        self.settings = {"reduction": reduction}
        self.W1 = nn.Linear(dim, max(1, dim // reduction))
        self.W2 = nn.Linear(max(1, dim // reduction), dim)

    def forward(self, bags: PackedBags) -> Tensor:
        """See `Adaptor.forward`."""
        s = segment_mean(bags.features, bags.bag_of_row, len(bags))  # (B, D)
        g = torch.sigmoid(self.W2(torch.relu(self.W1(s))))  # (B, D)
        return bags.features * g[bags.bag_of_row]  # (N, D)
