r"""A feature pyramid over the scales of a tile: the wide view informs the close one.

After T.-Y. Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017 (arXiv:1612.03144):
lateral projections, and a sum from the coarsest level down. The levels of a tile have one centre, so that
nothing has to be enlarged, and a linear layer takes the place of their convolution of 3 x 3. The ReLU keeps
the whole from being one linear map.

.. math::

    m_S &= \mathrm{ReLU}(L_S x_S) \\
    m_s &= \mathrm{ReLU}(L_s x_s + m_{s+1}) \\
    x'  &= F (m_1, \dots, m_S)

::

    N  rows of all bags       S  scales, the finest first       d  length of a scale's vector, D / S
    w  width of the levels and of the result
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.adaptors.contract import Adaptor, scale_width, split_scales
from mil.bags import PackedBags


class FeaturePyramid(Adaptor):
    """See the module's text.

    Parameters
    ----------
    dim
        D = S d: the scales' vectors one after the other, the finest first.
    scales
        S.
    width
        w.
    """

    name = "feature_pyramid"

    def __init__(self, dim: int, *, scales: int = 2, width: int = 512) -> None:
        super().__init__()
        d = scale_width(dim, scales)
        self.dim, self.width, self.scales = dim, width, scales
        self.settings = {"scales": scales, "width": width}
        self.L = nn.ModuleList([nn.Linear(d, width) for _ in range(scales)])
        self.F = nn.Linear(scales * width, width)

    def forward(self, bags: PackedBags) -> Tensor:
        """See `Adaptor.forward`."""
        x = split_scales(bags.features, self.scales)  # (N, S, d)
        above = x.new_zeros(1)
        levels: list[Tensor] = []
        for s in reversed(range(self.scales)):
            above = torch.relu(self.L[s](x[:, s]) + above)  # (N, w)
            levels.insert(0, above)
        fused: Tensor = self.F(torch.cat(levels, dim=1))  # (N, w)
        return fused
