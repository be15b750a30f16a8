"""Position embeddings that were learnt for another input size: resampled as the row says, or refused."""

from __future__ import annotations

from math import isqrt
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from mil.encoder import EncoderRow, Positions
from mil.networks.weights import State
from wsi.errors import UsageError

_NAME = "pos_embed"


def fit_positions(row: EncoderRow, state: State, network: nn.Module, *, path: Path | None) -> State:
    """The state with its position embeddings brought to the network's grid, where the row allows that.

    The published networks differ in how they do it, and the features with them: bicubic with anti-aliasing
    (timm) or without (transformers). Either acts on the patches' embeddings ``(1, n, d)`` as a picture of
    ``sqrt(n) x sqrt(n)``; those of the class token stay.

    Raises
    ------
    UsageError
        They are of another grid, and the row does not say how to resample them.
    """
    own = network.state_dict().get(_NAME)
    found = state.get(_NAME)
    if own is None or found is None or own.shape == found.shape:
        return state
    grid = network.patch_embed.grid_size  # type: ignore[union-attr]
    assert isinstance(grid, tuple)
    prefix = own.shape[1] - grid[0] * grid[1]
    side = isqrt(max(found.shape[1] - prefix, 0))
    if found.ndim != 3 or found.shape[2] != own.shape[2] or side * side != found.shape[1] - prefix:
        return state  # of no grid, or of another network: refused by name when it is loaded
    if row.positions is Positions.AS_THEY_ARE:
        raise UsageError(
            f"its position embeddings are for {side} x {side} patches, and {row.name} has "
            f"{grid[0]} x {grid[1]} of them",
            path=path,
            action="Give weights for this input size: how to resample them is not known for this encoder",
        )
    kept, patches = found[:, :prefix].float(), found[:, prefix:].float()
    picture = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, d, side, side)
    antialias = row.positions is Positions.ANTIALIASED
    picture = functional.interpolate(picture, size=grid, mode="bicubic", antialias=antialias)
    patches = picture.flatten(2).transpose(1, 2)  # (1, n, d)
    return {**state, _NAME: torch.cat((kept, patches), dim=1)}
