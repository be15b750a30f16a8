"""Options of the command line that say which encoder, device, labels and model, beside what they set."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiling.pipeline import Step


def add_encoder(parser: ArgumentParser) -> None:
    """Which encoder."""
    parser.add_argument(
        "--encoder", default="efficientnet_lite0", help="a known name, or timm:NAME (default %(default)s)"
    )


def add_network(parser: ArgumentParser) -> None:
    """Its weights, and what it runs on."""
    parser.add_argument("--weights", type=Path, help="file with the encoder's weights (.safetensors, .pth)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default auto)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: the fastest this machine has")


def add_model(parser: ArgumentParser) -> None:
    """The folder of a trained model."""
    parser.add_argument("-m", "--model", type=Path, required=True, help="folder of the model")


def add_training(parser: ArgumentParser) -> None:
    """What is learnt, and how."""
    parser.add_argument("--labels", type=Path, required=True, help="CSV: slide_id,label[,patient][,split]")
    parser.add_argument("--head", help="kind of head (default gated_abmil)")
    parser.add_argument("--epochs", type=int, help="passes over all slides (default 30)")
    parser.add_argument("--seed", type=int, help="of weights, order and dropout (default 0)")


def encoding(
    arguments: Namespace, name: str, *, workers: int, expected: Mapping[str, Any] | None = None
) -> Step:
    """The step that encodes as `add_network` says; `expected` is the identity that a model needs."""
    from mil.device import Precision, choose_device
    from mil.encoder import require_identity
    from mil.encoders import load_encoder
    from mil.steps import encode_step

    encoder = load_encoder(name, weights=arguments.weights, device=str(choose_device(arguments.device)))
    if expected is not None:
        require_identity(encoder, expected)
    precision = Precision(arguments.precision) if arguments.precision else None
    return encode_step(encoder, precision=precision, workers=workers)
