"""Dropout that asks less of a CPU's generator, which is a good part of what training a head costs there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_STEPS = 2**16


class Dropout(nn.Dropout):
    """As torch's own; on a CPU four values are decided by each number that is drawn.

    torch draws a number from its generator for every value. Here one of 64 bits serves four, 16 bits each.
    The share that is left out is rounded to 1/65536, and what is kept is scaled by the rounded share.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name for it
        """Leave values out and scale the others up, in training; any shape."""
        out = round(self.p * _STEPS)
        if not self.training or input.device.type != "cpu" or out in (0, _STEPS):
            return super().forward(input)
        draws = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = draws.view(torch.int16)[: input.numel()].view(input.shape)
        kept = (bits >= out - _STEPS // 2).to(input.dtype)
        return input * kept.mul_(_STEPS / (_STEPS - out))
