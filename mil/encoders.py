"""The encoders that there are: one table of rows, one way to load them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mil.device import choose_device
from mil.encoder import Encoder, EncoderRow, Interpolation, Pooling, Source, Transform
from mil.foundation import FOUNDATION, HALF, IMAGENET_MEAN, IMAGENET_STD
from mil.networks.architecture import build, build_empty, pooled
from mil.networks.efficientnet_lite import packaged_weights, to_timm_names
from mil.networks.foreign_names import without
from mil.networks.hub import fetch_weights
from mil.networks.position_embeddings import fit_positions
from mil.networks.torchvision_shim import import_timm
from mil.networks.weights import State, digest_state, load_strictly, read_state
from wsi.errors import UsageError

_TIMM_PREFIX = "timm:"
_MPP_TOLERANCE = 1.2
"""Tiles that are this many times coarser or finer than an encoder was trained at are worth a word."""


def load_encoder(name: str, *, weights: Path | None = None, device: str = "cpu") -> Encoder:
    """Build an encoder and load its weights.

    Parameters
    ----------
    name
        A name of `ENCODERS`, or ``timm:`` and any name that timm knows.
    weights
        A ``.safetensors``, ``.pth`` or ``.bin`` file; by default the row's packaged file, else the hub. A
        classifier in it is left out, for features end before it, and so is what the row names as of use in
        pre-training only. Everything else must fit.
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
    if weights is None and row.source is not None:
        weights = fetch_weights(row)
    network = _fetch(row) if weights is None else _load(row, weights)
    return _finish(row, network, weights=f"sha256:{digest_state(network.state_dict())}", device=device)


def untrained_encoder(name: str, *, seed: int, device: str = "cpu") -> Encoder:
    """The architecture with weights drawn at random, and an identity that says so: for tests and speed."""
    row = find_row(name)
    return _finish(row, build(row, seed=seed), weights=f"untrained seed {seed}", device=device)


def check_mpp(row: EncoderRow, mpp: float) -> str | None:
    """What to tell a user whose tiles are not at a resolution that the encoder was trained at.

    None where they are within a fifth of one (up or down), or the encoder never saw a slide.
    """
    known = [row.mpp, *row.other_mpp] if row.mpp is not None else []
    if not known or any(1 / _MPP_TOLERANCE <= mpp / trained <= _MPP_TOLERANCE for trained in known):
        return None
    others = f" (also {', '.join(f'{value:g}' for value in row.other_mpp)})" if row.other_mpp else ""
    return (
        f"{row.name} was trained at {row.mpp:g} microns per pixel{others}, and the tiles are at {mpp:g}: "
        "expect worse features, or cut the tiles anew"
    )


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
    with torch.device("meta"), torch.inference_mode():  # shapes alone: no memory, no arithmetic
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
        name, timm_name, features.shape[1], transform, Pooling.AS_TIMM, config.license or "not stated"
    )


def _load(row: EncoderRow, path: Path) -> nn.Module:
    network = build_empty(row)
    if {name for name, _ in network.named_buffers()} - network.state_dict().keys():
        network = build(row)  # some buffers are in no file, but computed when it is built, in real memory
    state = fit_positions(row, _usable(row, read_state(path)), network, path=path)
    load_strictly(network, state, path=path, what=row.name)
    return network


def _fetch(row: EncoderRow) -> nn.Module:
    try:
        return build(row, pretrained=True)
    except (OSError, RuntimeError) as error:  # no network, no such file there, or no weights at all
        raise UsageError(
            f"the weights of {row.name} cannot be had from the hub ({type(error).__name__})",
            action="Give them as a file: --weights FILE (.safetensors, .pth or .bin)",
        ) from error


def _usable(row: EncoderRow, state: State) -> State:
    """In timm's names, and without the classifier and what pre-training alone needed."""
    state = row.rename(state) if row.rename else state
    classifier = import_timm().get_pretrained_cfg(row.timm_name).classifier or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return without(state, (*row.unused, *(f"{head}." for head in heads)))


def _finish(row: EncoderRow, network: nn.Module, *, weights: str, device: str) -> Encoder:
    place = choose_device(device)
    module = pooled(row, network).eval().requires_grad_(requires_grad=False)
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
            pooling=Pooling.AVERAGE,
            licence="Apache-2.0",
            packaged_weights=packaged_weights,
            rename=to_timm_names,
        ),
        EncoderRow(
            name="resnet50",
            timm_name="resnet50.a1_in1k",
            dim=2048,
            transform=Transform(224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
            pooling=Pooling.AVERAGE,
            licence="Apache-2.0",
        ),
        EncoderRow(
            name="vit_small_patch16_224",
            timm_name="vit_small_patch16_224.augreg_in21k_ft_in1k",
            dim=384,
            transform=Transform(224, mean=HALF, std=HALF),
            pooling=Pooling.CLASS,
            licence="Apache-2.0",
        ),
        EncoderRow(
            name="resnet50-layer3",
            timm_name="resnet50.tv_in1k",
            settings={"out_indices": [3]},
            dim=1024,
            transform=Transform(
                224, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation=Interpolation.BILINEAR
            ),
            pooling=Pooling.MAP,
            licence="BSD-3-Clause",
            unused=("layer4.", "fc."),  # CLAM cuts the network after its third stage
            source=Source(
                "M. Y. Lu et al., Nature Biomedical Engineering 5 (2021), doi 10.1038/s41551-020-00682-w",
                hub="timm/resnet50.tv_in1k",
                page="https://download.pytorch.org/models/resnet50-19c8e357.pth",
            ),
        ),
        *FOUNDATION,
    )
}
"""Encoders by name. A new one is a new row; those of pathology are in `mil.foundation`."""

DEFAULT_ENCODER = "efficientnet_lite0"
"""Works without a network."""
