r"""Features as coordinates along a few orthogonal axes: what varies most is kept, and the rest is left out.

.. math::

    x' = A (x - \mu) / \sigma

With the principal axes of some features as A (I. T. Jolliffe, "Principal Component Analysis", 2002, chapter
2) no map to K values keeps more of their variance. Sigma is one for all: axes of little variance are not
blown up. All three are constants (buffers, saved with the weights), not learnt: `Principal.set_statistics`
sets them. Training a head does not. Where nobody sets them, the axes are random, which keeps distances
roughly (W. B. Johnson, J. Lindenstrauss, 1984), the mean is 0 and the deviation 1.

::

    N  rows of all bags       D  length of a feature vector       K  axes
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.adaptors.contract import Adaptor, statistic
from mil.bags import PackedBags

_TOLERANCE = 1e-3  # by which products of axes may differ from 1 or 0: they may have been float16


class Principal(Adaptor):
    """See the module's text.

    Parameters
    ----------
    dim
        D.
    components
        K, or D where that is less.
    """

    name = "principal"
    mean: Tensor
    """``(D,)``: mu."""
    axes: Tensor
    """``(K, D)``: the rows of A, orthogonal and of length 1."""
    deviation: Tensor
    """``()``: sigma."""

    def __init__(self, dim: int, *, components: int = 128) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"there are {components} components; at least 1 is needed")
        self.dim, self.width = dim, min(components, dim)
        self.settings = {"components": components}
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("axes", nn.init.orthogonal_(torch.empty(self.width, dim)))
        self.register_buffer("deviation", torch.ones(()))

    def set_statistics(self, mean: Tensor, axes: Tensor, deviation: Tensor) -> None:
        """Use these from now on.

        Parameters
        ----------
        mean
            ``(D,)``, and all three of any float type.
        axes
            ``(K, D)``.
        deviation
            ``()``.

        Raises
        ------
        ValueError
            Other shapes, numbers that are not finite, axes that are not orthogonal or not of length 1, or a
            deviation that is not above 0.
        """
        dim, width = self.dim, self.width
        checked = (
            statistic("the mean", mean, (dim,)),
            statistic("the axes", axes, (width, dim)),
            statistic("the deviation", deviation, ()),
        )
        products = checked[1].double() @ checked[1].double().T
        if (
            products - torch.eye(width, dtype=products.dtype, device=products.device)
        ).abs().max() > _TOLERANCE:
            raise ValueError("the axes are not orthogonal, or not of length 1")
        if not deviation > 0:
            raise ValueError(f"the deviation is {float(deviation):g}; it must be above 0")
        for buffer, value in zip((self.mean, self.axes, self.deviation), checked, strict=True):
            buffer.copy_(value)

    def forward(self, bags: PackedBags) -> Tensor:
        """See `Adaptor.forward`."""
        return self.project(bags.features)

    def project(self, features: Tensor) -> Tensor:
        """``(N, K)`` of features ``(N, D)``."""
        return (features - self.mean) @ self.axes.T / self.deviation
