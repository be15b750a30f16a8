"""What an encoder is: a network that turns a tile into a vector, with its weights and its input."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.device import Precision
from mil.networks.weights import State
from wsi.errors import UsageError

Triple = tuple[float, float, float]

_RECORDED_LATER = {"architecture", "resized"}
"""Keys of an identity that the first versions did not write."""
_ANEW = "Run 'microtome encode --overwrite' on the slides that it was trained on, and train it again"


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
    """Used only where the tile has another size; always anti-aliased."""
    resized: int | None = None
    """Pixels along each side that a tile is brought to before the middle is cut out of it; None for the
    input size, so that the whole tile is kept."""

    def __post_init__(self) -> None:
        """Refuse a crop that is larger than what it is cut from."""
        if self.resized is not None and self.resized < self.input_size:
            raise ValueError(f"{self.input_size} pixels cannot be cut out of {self.resized}")

    def __call__(self, tiles: Tensor) -> Tensor:
        """Resize, crop and normalise ``(b, s, s, 3)`` uint8 RGB to ``(b, 3, i, i)`` float32."""
        x = tiles.permute(0, 3, 1, 2).float()  # (b, 3, s, s), channels last in memory: no copy made
        side = self.resized or self.input_size
        if tiles.shape[1] != side:
            x = functional.interpolate(x, (side, side), mode=self.interpolation.value, antialias=True)
            x = x.clamp(0, 255)  # bicubic overshoots at edges; a picture cannot
        edge = (side - self.input_size) // 2
        x = x[:, :, edge : edge + self.input_size, edge : edge + self.input_size]
        return (x - _of_bytes(self.mean, x.device)) / _of_bytes(self.std, x.device)


@cache  # a copy to a GPU waits for all that the GPU has to do: once is enough
def _of_bytes(values: Triple, device: torch.device) -> Tensor:
    """``(3, 1, 1)`` float32: one value a channel, on the scale 0 to 255."""
    with torch.inference_mode(mode=False):
        return torch.tensor(values, device=device).view(3, 1, 1) * 255


class Pooling(Enum):
    """How a network's output becomes one vector."""

    AVERAGE = "avg"
    """Mean over all positions (timm's ``global_pool="avg"``)."""
    CLASS = "token"
    """The class token (timm's ``global_pool="token"``)."""
    CLASS_AND_MEAN = "token+mean"
    """The class token, and after it the mean of the patch tokens; register tokens take no part."""
    MAP = "map mean"
    """Mean over the positions of an inner feature map, which ``out_indices`` names."""
    AS_TIMM = "timm default"
    """Whatever timm does for that network."""


class Positions(Enum):
    """What is done with position embeddings that were learnt for another input size."""

    AS_THEY_ARE = "as they are"
    """Nothing: weights of another size are refused."""
    ANTIALIASED = "antialiased bicubic"
    """Resampled once, when they are loaded, as timm's ``dynamic_img_size`` would at each pass."""
    PLAIN = "bicubic"
    """Likewise without anti-aliasing, as ``transformers`` does: other numbers where the grid shrinks."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where an encoder comes from, and on what conditions its weights are to be had."""

    paper: str
    """Reference of the publication."""
    hub: str | None = None
    """``owner/name`` on huggingface.co; None where the weights are not there."""
    gated: bool = False
    """Whether conditions have to be accepted on its page first."""
    page: str = ""
    """Another place that the authors give the weights out at."""
    facts: str = ""
    """Where the row's values were read."""

    @property
    def address(self) -> str:
        """The page to send a user to."""
        return self.page or f"https://huggingface.co/{self.hub}"


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
    pooling: Pooling
    """How the output becomes one vector."""
    licence: str
    """Of the weights."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the architecture beyond its name, as JSON has them; see `mil.networks.architecture`."""
    mpp: float | None = None
    """Microns per pixel to cut tiles at; None where it never saw a slide."""
    other_mpp: tuple[float, ...] = ()
    """Other resolutions that it was trained at too."""
    packaged_weights: Callable[[], Path] | None = None
    """Finds a weights file that comes with an installed package, so that no network is needed."""
    rename: Callable[[State], State] | None = None
    """Brings foreign tensor names into timm's; leaves timm's own alone."""
    unused: tuple[str, ...] = ()
    """Tensors of pre-training that may be in the file and that no feature needs, in timm's names; one that
    ends with a dot stands for all that begin so. Anything else that is left over is refused."""
    positions: Positions = Positions.AS_THEY_ARE
    """What is done with position embeddings of another size."""
    source: Source | None = None
    """Where it comes from; None for networks that timm itself describes."""


@dataclass(slots=True)
class Room:
    """How many tiles a device has memory for at once: found by trying, and known to its encoder."""

    most: int | None = None
    """None: as many as were asked for, so far."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A network with its weights, ready to encode: in eval mode, without gradients."""

    row: EncoderRow
    """What it is."""
    module: nn.Module
    """``(b, 3, i, i)`` float32 to ``(b, dim)``."""
    weights: str
    """``sha256:...`` of the weights in use (`mil.networks.weights.digest_state`), or how they were drawn."""
    device: torch.device
    """Where the module is."""
    compiled: bool = False
    """Whether torch's compiler made the module; see `mil.networks.compiled`."""
    room: Room = field(default_factory=Room, compare=False)
    """What is known of the device's memory."""

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
            "architecture": {"name": self.row.timm_name, **self.row.settings},
            "dim": self.dim,
            "input_size": transform.input_size,
            "resized": transform.resized or transform.input_size,
            "mean": list(transform.mean),
            "std": list(transform.std),
            "interpolation": transform.interpolation.value,
            "pooling": self.row.pooling.value,
            "weights": self.weights,
        }

    @torch.inference_mode()
    def __call__(self, tiles: Tensor, *, precision: Precision = Precision.FP32) -> Tensor:
        """Encode ``(b, s, s, 3)`` uint8 RGB tiles to ``(b, dim)`` float32, on the encoder's device.

        On a GPU the result may still be under way, and tiles from pinned memory are not waited for.
        """
        on_cuda = self.device.type == "cuda"  # on MPS a copy that is not waited for may come to nothing
        x = self.row.transform(tiles.to(self.device, non_blocking=on_cuda))  # (b, 3, i, i)
        with torch.autocast(self.device.type, precision.autocast, enabled=precision is not Precision.FP32):
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
    if words := older_identity(found, expected):
        raise UsageError(f"the model cannot be used with this version of Microtome: {words}", action=_ANEW)
    differing = [key for key in expected if found.get(key) != expected[key]]
    if differing:
        what = "; ".join(f"{key} {found.get(key)}, not {expected[key]}" for key in differing)
        raise UsageError(
            f"encoder {encoder.name!r} is not the one that the model was trained with ({what})",
            action="Give the file of its weights with --weights",
        )


def older_identity(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """What to say of two identities of which an earlier version wrote one, with fewer keys; else None.

    What was not written down cannot be compared: such features are encoded again, never mixed.
    """
    missing = one.keys() ^ other.keys()
    if not missing or not missing <= _RECORDED_LATER:
        return None
    return f"an earlier version did not record {' and '.join(sorted(missing))} of the encoder"
