"""From a row to a network: timm builds it, and what timm cannot say is pooled here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mil.encoder import EncoderRow, Pooling
from mil.networks.conv_stem import ConvStem
from mil.networks.torchvision_shim import import_timm

_TIMM_POOLING: dict[Pooling, dict[str, Any]] = {
    Pooling.AVERAGE: {"global_pool": "avg"},
    Pooling.CLASS: {"global_pool": "token"},
    Pooling.CLASS_AND_MEAN: {"global_pool": ""},  # all tokens, normalised
    Pooling.MAP: {"features_only": True},
    Pooling.AS_TIMM: {},
}


class ClassAndMean(nn.Module):
    """The class token, and after it the mean of the patch tokens."""

    def __init__(self, network: nn.Module, *, prefix: int) -> None:
        """`prefix` is the number of tokens that are no patch: the class token and the registers."""
        super().__init__()
        self.network = network
        self.prefix = prefix

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``(b, 3, i, i)`` to ``(b, 2 d)``."""
        tokens = self.network(x)  # (b, prefix + patches, d)
        return torch.cat((tokens[:, 0], tokens[:, self.prefix :].mean(dim=1)), dim=1)  # (b, 2 d)


class MapMean(nn.Module):
    """The mean over positions of the one feature map that a network gives."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``(b, 3, i, i)`` to ``(b, d)``."""
        (maps,) = self.network(x)  # (b, d, h, w)
        assert isinstance(maps, Tensor)
        return maps.mean(dim=(2, 3))  # (b, d)


def build(row: EncoderRow, *, seed: int = 0, pretrained: bool = False) -> nn.Module:
    """The network of a row, without its pooling: what its weights are loaded into.

    ``row.settings`` are arguments of timm's ``create_model`` that JSON can hold; three of them stand for
    something that it cannot: ``mlp_layer`` and ``embed_layer`` name a class, ``norm_eps`` is the epsilon of
    all layer norms where it is not timm's 1e-6.

    Parameters
    ----------
    row
        What to build.
    seed
        Of the weights that it is born with. The caller's generator is left alone.
    pretrained
        Whether timm fetches the weights that its name stands for.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = import_timm().create_model(
            row.timm_name,
            pretrained=pretrained,
            # A network that gives inner maps has no classifier to leave out.
            **({} if row.pooling is Pooling.MAP else {"num_classes": 0}),
            **_TIMM_POOLING[row.pooling],
            **_arguments(row.settings),
        )
    assert isinstance(module, nn.Module)
    return module


def build_empty(row: EncoderRow) -> nn.Module:
    """The network without memory for its weights (torch's meta device), however large it is."""
    with torch.device("meta"):
        return build(row)


def pooled(row: EncoderRow, network: nn.Module) -> nn.Module:
    """The network with what the row's pooling needs after it: ``(b, 3, i, i)`` to ``(b, row.dim)``."""
    if row.pooling is Pooling.CLASS_AND_MEAN:
        prefix = network.num_prefix_tokens
        assert isinstance(prefix, int)
        return ClassAndMean(network, prefix=prefix)
    return MapMean(network) if row.pooling is Pooling.MAP else network


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    arguments = dict(settings)
    if "mlp_layer" in arguments:
        arguments["mlp_layer"] = getattr(import_timm().layers, arguments["mlp_layer"])
    if "embed_layer" in arguments:
        arguments["embed_layer"] = {"ConvStem": ConvStem}[arguments["embed_layer"]]
    if "norm_eps" in arguments:
        arguments["norm_layer"] = partial(nn.LayerNorm, eps=arguments.pop("norm_eps"))
    return arguments
