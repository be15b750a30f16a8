"""Compiled encoders: the same network, its steps fused by torch's compiler. On request, for long runs.

Compiling takes minutes, once a process and for each new size of batch. Fused steps round at other places: in
fp32 the last bit of a feature may change, as it may with the size of a batch, and in bf16 features change
about as much as bf16 itself changes them. Slides of either precision may be mixed, so this is no part of the
recipe: the record of the features says it.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from mil.encoder import Encoder
from wsi.errors import UsageError


def compile_encoder(encoder: Encoder) -> Encoder:
    """The encoder with its network compiled, which happens when the first batch comes.

    Raises
    ------
    UsageError
        Nothing can be compiled for that device here: a trifle is, to find out before any work.
    """
    try:
        torch.compile(_trifle)(torch.zeros(8, device=encoder.device))
    except Exception as error:  # compilers, their absence and torch's own faults come as anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(
            f"encoders cannot be compiled on this machine for {encoder.device} ({reason[0]})",
            action="Leave out --compile, or install a C++ compiler (g++)",
        ) from error
    module = torch.compile(encoder.module)
    assert isinstance(module, torch.nn.Module)
    return replace(encoder, module=module, compiled=True)


def _trifle(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
