"""Import timm where the published torchvision does not fit the torch that is installed.

timm imports torchvision. PyPI's torchvision is built for CUDA; beside a CPU-only torch its compiled library
does not load, so its operators are never declared, and the import fails on a decorator that names one:
"operator torchvision::nms does not exist" (pytorch/vision#8985). Declaring the two names is enough to import
everything; calling one of the operators still fails, with a clear message, and nothing here calls them.

The cure is applied only after that very failure: declared first, the names would clash with those of a
torchvision that works.
"""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_timm() -> ModuleType:
    """The timm package, with torchvision made importable first. The only way that `mil` imports timm."""
    ensure_torchvision()
    import timm

    return timm  # type: ignore[no-any-return]  # timm has no types


@cache  # the result must stay referenced: the declarations live as long as the library object
def ensure_torchvision() -> torch.library.Library | None:
    """Make ``import torchvision`` work; None where it does by itself."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return None
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(operator + _SCHEMA)  # type: ignore[no-untyped-call]
    import torchvision  # noqa: F401

    return library
