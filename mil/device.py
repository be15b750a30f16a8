"""Where and with which numbers networks compute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import torch

from wsi.errors import UsageError

_DEVICE_TYPES = ("cpu", "cuda", "mps")


class Precision(Enum):
    """The numbers that an encoder computes with."""

    FP32 = "fp32"
    """32-bit floats throughout."""
    BF16 = "bf16"
    """Matrix products and convolutions in bfloat16 by autocast: 8 bits of precision, the range of fp32."""
    FP16 = "fp16"
    """The same in float16: 11 bits of precision, and nothing above 65,504. For GPUs without bfloat16."""

    @property
    def autocast(self) -> torch.dtype:
        """The type that autocast is given; for FP32 it is to be off."""
        return torch.float16 if self is Precision.FP16 else torch.bfloat16


def choose_device(name: str) -> torch.device:
    """The device of that name as torch spells it, or with ``auto`` the first GPU if there is one.

    Raises
    ------
    UsageError
        No such device here, or of a kind that is neither a CPU nor a GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in _DEVICE_TYPES:  # "meta" takes part in everything, and computes nothing
            raise RuntimeError(f"this program computes on {', '.join(_DEVICE_TYPES)}")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"there is no device {name!r} here ({str(error).splitlines()[0]})",
            action="Use cpu, or auto to take a GPU where there is one",
        ) from error
    return device


def suits(precision: Precision, device: torch.device) -> bool:
    """Whether the precision makes sense on that device."""
    return not (precision is Precision.FP16 and device.type == "cpu")


def require_precision(precision: Precision, device: torch.device) -> Precision:
    """The precision, if it makes sense on that device.

    Raises
    ------
    UsageError
        fp16 on a CPU. Measured on one with AVX-512 (`benchmarks/encode.py`): a tenth of the speed of fp32.
    """
    if not suits(precision, device):
        raise UsageError(
            "fp16 is for GPUs: a CPU takes many times as long as with fp32",
            action="Leave out --precision: the fastest that this machine has is taken",
        )
    return precision


def best_batch_size(device: torch.device) -> int:
    """Tiles to encode at once.

    On a CPU few stay in its caches. Measured on one AVX-512 core in fp32, processor time a tile of 32 at once
    against 8: 1.30 times for EfficientNet-Lite0, 1.23 for ResNet-50, 1.15 for ViT-S/16.
    """
    return 128 if device.type == "cuda" else 8


def best_precision(device: torch.device) -> Precision:
    """bf16 where the processor multiplies it in hardware, fp32 elsewhere.

    Measured on a core with AMX (`benchmarks/encode.py`): 2.6 times the tiles a second of a plain fp32 loop
    for EfficientNet-Lite0, 3.5 for ResNet-50, 3.3 for ViT-S/16.
    """
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Newer torch only; without an answer fp32 is slower, and never wrong.
        capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return Precision.BF16 if fast else Precision.FP32


def describe_devices() -> list[tuple[str, str]]:
    """What `microtome doctor` says of them: (name, value)."""
    rows = [
        ("torch threads", str(torch.get_num_threads())),
        ("precision on the CPU", best_precision(torch.device("cpu")).value),
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        rows.append((f"GPU {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    return rows


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators of this device inside, and leave them as they were: dropout knows no other."""
    with untouched(device):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextlib.contextmanager
def untouched(device: torch.device) -> Iterator[None]:
    """Leave torch's generators of this device as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
