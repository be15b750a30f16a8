"""Weights from files: read without running code, loaded whole or refused."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from wsi.errors import UsageError

State = Mapping[str, Tensor]
"""Tensors by name, as `nn.Module.state_dict` gives them."""

_WRAPPERS = ("state_dict", "model")
"""Keys under which training programs keep the weights beside optimiser state and the like."""


def read_state(path: Path) -> State:
    """Read a ``.safetensors`` file, or a checkpoint of ``torch.save`` (.pth, .pt, .bin) of tensors only.

    A pickled checkpoint can run code when it is loaded. Tensors are read and nothing else
    (``weights_only=True``), and what does not load that way is refused: there is no second try.

    Raises
    ------
    UsageError
        There is no such file, it is damaged, or it holds more than tensors.
    """
    if not path.is_file():
        raise UsageError("there is no such weights file", path=path, action="Check the path")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not _all_tensors(content):
        raise UsageError(
            f"is not a set of named tensors (it holds a {type(content).__name__})",
            path=path,
            action="Give a file saved from a model's state_dict()",
        )
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _all_tensors(content: Mapping[object, object]) -> bool:
    return all(isinstance(value, Tensor) for value in content.values())


def _read_safetensors(path: Path) -> object:
    try:
        with safe_open(path, framework="pt") as file:
            # Copied: the file is mapped, and may be replaced while the network lives. One tensor at a time,
            # because the largest encoders have 4.5 GB of them.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:  # OSError: an empty file cannot be mapped
        raise UsageError(
            f"is not a whole safetensors file ({error})",
            path=path,
            action="Copy or download it again",
        ) from error


def _read_pickled(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            "is refused: it is damaged, or holds Python objects beside tensors, which could run code",
            path=path,
            action="Ask for the weights as .safetensors, or for a file that holds a state_dict() only",
        ) from error
    except Exception as error:  # torch raises KeyError, EOFError, RuntimeError... on what is no checkpoint
        raise UsageError(
            f"is not a checkpoint ({type(error).__name__})",
            path=path,
            action="Give a .safetensors file, or a .pth file saved from a model's state_dict()",
        ) from error


def load_strictly(module: nn.Module, state: State, *, path: Path | None, what: str) -> None:
    """Load every tensor into its place, as float32.

    A module on torch's meta device takes the tensors themselves, so that its weights are in memory once.

    Raises
    ------
    UsageError
        Names or shapes differ; the first few are named.
    """
    own = module.state_dict()
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    # PyTorch before 0.4.1 did not count batches, and nothing in evaluation reads the count.
    state |= {
        name: torch.zeros_like(own[name], device="cpu")
        for name in own.keys() - state.keys()
        if name.endswith(".num_batches_tracked")
    }
    problems = [
        f"{len(names)} {kind} ({_first(names)})"
        for kind, names in (
            ("missing", sorted(own.keys() - state.keys())),
            ("unexpected", sorted(state.keys() - own.keys())),
            (
                "of another shape",
                sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape),
            ),
        )
        if names
    ]
    if problems:
        raise UsageError(
            f"does not hold the weights of {what}: {'; '.join(problems)}",
            path=path,
            action="Give the weights of this very architecture, or name another one",
        )
    module.load_state_dict(state, assign=any(tensor.is_meta for tensor in own.values()))


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def digest_state(state: State) -> str:
    """SHA-256 over names, types, shapes and values: the same for the same weights in any kind of file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
