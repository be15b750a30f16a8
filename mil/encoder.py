"""What an encoder is: a network that turns a tile into a vector, with its weights and its input."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.device import Precision
from mil.weights import State
from wsi.errors import UsageError

Triple = tuple[float, float, float]


class Interpolation(Enum):
    """How a tile is brought to the encoder's input size."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


@dataclass(frozen=True, slots=True)
class Transform:
    """From pixels to an encoder's input. It travels with the encoder: nobody else knows mean and std."""

    input_size: int
    """Pixels along each side of the input."""
    mean: Triple
    """Of each channel, on the scale 0 to 1."""
    std: Triple
    """Likewise."""
    interpolation: Interpolation = Interpolation.BICUBIC
    """Used only where the tile has another size; always anti-aliased, and the whole tile is kept."""

    def __call__(self, tiles: Tensor) -> Tensor:
        """Resize and normalise ``(b, s, s, 3)`` uint8 RGB to ``(b, 3, i, i)`` float32."""
        x = tiles.permute(0, 3, 1, 2).float()  # (b, 3, s, s), channels last in memory: no copy made
        if tiles.shape[1] != self.input_size:
            size = (self.input_size, self.input_size)
            x = functional.interpolate(x, size, mode=self.interpolation.value, antialias=True)
            x = x.clamp(0, 255)  # bicubic overshoots at edges; a picture cannot
        mean = x.new_tensor(self.mean).view(3, 1, 1) * 255
        std = x.new_tensor(self.std).view(3, 1, 1) * 255
        return (x - mean) / std


@dataclass(frozen=True, slots=True)
class EncoderRow:
    """What is known of an encoder before its weights are loaded."""

    name: str
    """What the user calls it."""
    timm_name: str
    """Architecture, and tag of the weights on the hub, as timm names them."""
    dim: int
    """Length of a feature vector."""
    transform: Transform
    """How tiles become input."""
    pooling: str
    """timm's ``global_pool``: "avg" for the mean over positions, "token" for the class token."""
    licence: str
    """Of the weights."""
    mpp: float | None = None
    """Microns per pixel that it was trained at; None where it never saw a slide."""
    packaged_weights: Callable[[], Path] | None = None
    """Finds a weights file that comes with an installed package, so that no network is needed."""
    rename: Callable[[State], State] | None = None
    """Brings foreign tensor names into timm's; leaves timm's own alone."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A network with its weights, ready to encode: in eval mode, without gradients."""

    row: EncoderRow
    """What it is."""
    module: nn.Module
    """``(b, 3, i, i)`` float32 to ``(b, dim)``."""
    weights: str
    """``sha256:...`` of the weights in use (`mil.weights.digest_state`), or how they were drawn."""
    device: torch.device
    """Where the module is."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.row.name

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self.row.dim

    @property
    def key(self) -> str:
        """The name as a folder can bear it."""
        return folder_name(self.name)

    def identity(self) -> dict[str, Any]:
        """Everything that decides the features but precision, as JSON has it. Unequal: never mixed."""
        transform = self.row.transform
        return {
            "name": self.name,
            "dim": self.dim,
            "input_size": transform.input_size,
            "mean": list(transform.mean),
            "std": list(transform.std),
            "interpolation": transform.interpolation.value,
            "pooling": self.row.pooling,
            "weights": self.weights,
        }

    @torch.inference_mode()
    def __call__(self, tiles: Tensor, *, precision: Precision = Precision.FP32) -> Tensor:
        """Encode ``(b, s, s, 3)`` uint8 RGB tiles to ``(b, dim)`` float32, on the encoder's device."""
        x = self.row.transform(tiles.to(self.device))  # (b, 3, i, i)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision is Precision.BF16):
            features = self.module(x)  # (b, dim)
        assert isinstance(features, Tensor)
        return features.float()


def folder_name(name: str) -> str:
    """An encoder's name as a folder can bear it: what `TileStore.features` is asked for."""
    return re.sub(r"[^\w.-]", "-", name)


def require_identity(encoder: Encoder, expected: Mapping[str, Any]) -> None:
    """Refuse an encoder that is not the one that a model was trained with.

    Raises
    ------
    UsageError
        What differs is named.
    """
    found = encoder.identity()
    differing = [key for key in expected if found.get(key) != expected[key]]
    if differing:
        what = "; ".join(f"{key} {found.get(key)}, not {expected[key]}" for key in differing)
        raise UsageError(
            f"encoder {encoder.name!r} is not the one that the model was trained with ({what})",
            action="Give the file of its weights with --weights",
        )
