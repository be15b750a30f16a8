"""The encoders that there are: one table of rows, one way to load them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mil.device import choose_device
from mil.efficientnet_lite import packaged_weights, to_timm_names
from mil.encoder import Encoder, EncoderRow, Interpolation, Transform, Triple
from mil.torchvision_shim import import_timm
from mil.weights import State, digest_state, load_strictly, read_state
from wsi.errors import UsageError

_IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
_IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
_HALF: Triple = (0.5, 0.5, 0.5)
_TIMM_PREFIX = "timm:"
_TIMM_POOLING = "timm default"


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
