"""Encoders: networks that turn a tile into a vector. One table of rows, one way to load them."""

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

from mil.device import Precision, choose_device
from mil.efficientnet_lite import packaged_weights, to_timm_names
from mil.torchvision_shim import import_timm
from mil.weights import State, digest_state, load_strictly, read_state
from wsi.errors import UsageError

Triple = tuple[float, float, float]

_IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
_IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
_HALF: Triple = (0.5, 0.5, 0.5)
_TIMM_PREFIX = "timm:"
_TIMM_POOLING = "timm default"


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


def load_encoder(name: str, *, weights: Path | None = None, device: str = "cpu") -> Encoder:
    """Build an encoder and load its weights.

    Parameters
    ----------
    name
        A name of `ENCODERS`, or ``timm:`` and any name that timm knows.
    weights
        A ``.safetensors`` or ``.pth`` file; by default the row's packaged file, else the hub. A classifier
        in it is left out: features end before it. Everything else must fit.
    device
        As torch names it: ``cpu``, ``cuda``, ``cuda:1``.

    Raises
    ------
    UsageError
        No such encoder; the weights cannot be had, are unreadable, or belong to another network.
    """
    row = find_row(name)
    if weights is None and row.packaged_weights is not None:
        weights = row.packaged_weights()
    if weights is None:
        module = _fetch(row)
    else:
        module = _build(row)
        load_strictly(module, _usable(row, read_state(weights)), path=weights, what=row.name)
    return _finish(row, module, weights=f"sha256:{digest_state(module.state_dict())}", device=device)


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


def untrained_encoder(name: str, *, seed: int, device: str = "cpu") -> Encoder:
    """The architecture with weights drawn at random, and an identity that says so: for tests and speed."""
    row = find_row(name)
    return _finish(row, _build(row, seed=seed), weights=f"untrained seed {seed}", device=device)


def find_row(name: str) -> EncoderRow:
    """The row of an encoder; for ``timm:`` names it is made from what timm knows."""
    if name in ENCODERS:
        return ENCODERS[name]
    timm_name = name.removeprefix(_TIMM_PREFIX)
    if timm_name == name or not import_timm().is_model(timm_name):
        raise UsageError(
            f"there is no encoder {name!r}",
            action=f"Use one of {', '.join(sorted(ENCODERS))}, or timm:NAME with a name that timm knows",
        )
    return _timm_row(name, timm_name)


def _timm_row(name: str, timm_name: str) -> EncoderRow:
    timm = import_timm()
    config = timm.get_pretrained_cfg(timm_name)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        # The length of what comes out is sure; the attributes that tell it differ between networks.
        module = timm.create_model(timm_name, pretrained=False, num_classes=0).eval()
        features = module(torch.zeros(1, *config.input_size))
    if features.ndim != 2:
        raise UsageError(
            f"{name} gives features of shape {tuple(features.shape[1:])}, not one vector a tile",
            action="Name another network",
        )
    transform = Transform(
        config.input_size[-1],
        tuple(config.mean),
        tuple(config.std),
        Interpolation.BILINEAR if config.interpolation == "bilinear" else Interpolation.BICUBIC,
    )
    return EncoderRow(
        name, timm_name, features.shape[1], transform, _TIMM_POOLING, config.license or "not stated"
    )


def _build(row: EncoderRow, *, seed: int = 0, pretrained: bool = False) -> nn.Module:
    options = {} if row.pooling == _TIMM_POOLING else {"global_pool": row.pooling}
    with torch.random.fork_rng(devices=[]):  # every network is born random: the caller's generator is not
        torch.default_generator.manual_seed(seed)
        module = import_timm().create_model(row.timm_name, pretrained=pretrained, num_classes=0, **options)
    assert isinstance(module, nn.Module)
    return module


def _fetch(row: EncoderRow) -> nn.Module:
    try:
        return _build(row, pretrained=True)
    except (OSError, RuntimeError) as error:  # no network, no such file there, or no weights at all
        raise UsageError(
            f"the weights of {row.name} cannot be had from the hub ({type(error).__name__})",
            action="Give them as a file: --weights FILE (.safetensors or .pth)",
        ) from error


def _usable(row: EncoderRow, state: State) -> State:
    """In timm's names, and without the classifier."""
    state = row.rename(state) if row.rename else state
    classifier = import_timm().get_pretrained_cfg(row.timm_name).classifier or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return {
        name: value for name, value in state.items() if not name.startswith(tuple(f"{h}." for h in heads))
    }


def _finish(row: EncoderRow, module: nn.Module, *, weights: str, device: str) -> Encoder:
    place = choose_device(device)
    module = module.eval().requires_grad_(requires_grad=False)
    # Channels last: convolutions are 1.4 to 2.1 times faster, transformers the same.
    module = module.to(device=place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Encoder(row, module, weights, place)


ENCODERS: dict[str, EncoderRow] = {
    row.name: row
    for row in (
        EncoderRow(
            name="efficientnet_lite0",
            # With TensorFlow's padding ("tf_"): the weights were trained with it. timm's plain
            # efficientnet_lite0 takes the same tensors without complaint and gives other features.
            timm_name="tf_efficientnet_lite0.in1k",
            dim=1280,
            # TensorFlow's Lite models were trained on (pixel - 127) / 128.
            transform=Transform(224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3),
            pooling="avg",
            licence="Apache-2.0",
            packaged_weights=packaged_weights,
            rename=to_timm_names,
        ),
        EncoderRow(
            name="resnet50",
            timm_name="resnet50.a1_in1k",
            dim=2048,
            transform=Transform(224, mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
            pooling="avg",
            licence="Apache-2.0",
        ),
        EncoderRow(
            name="vit_small_patch16_224",
            timm_name="vit_small_patch16_224.augreg_in21k_ft_in1k",
            dim=384,
            transform=Transform(224, mean=_HALF, std=_HALF),
            pooling="token",
            licence="Apache-2.0",
        ),
    )
}
"""Encoders by name. A new one is a new row."""

DEFAULT_ENCODER = "efficientnet_lite0"
"""Works without a network."""
