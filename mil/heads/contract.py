"""What every head takes and gives.

::

    N  rows (tiles) of all bags of a batch      B  bags
    D  length of a feature vector               C  classes
    K  attention branches (1, or one a class)   L  width of an embedding
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from mil.bags import PackedBags

Settings = Mapping[str, int | float]
"""Hyper-parameters by name, beyond `dim` and `classes`."""

Criterion = Callable[[Tensor, Tensor], Tensor]
"""From logits ``(B, C)`` and labels ``(B,)`` int64 to a loss a bag, ``(B,)``."""


@dataclass(frozen=True, slots=True)
class HeadOutput:
    """What a head says of a batch of bags."""

    logits: Tensor
    """``(B, C)``, before the softmax over classes."""
    attention_logits: Tensor
    """``(N, K)``, before the softmax over a bag's rows. Columns are classes where K is C and more than 1."""
    contributions: Tensor | None = None
    """``(N, C)``: what each tile adds to its bag's logits, where these are such a sum and a bias."""


class Head(nn.Module):
    """From the feature vectors of packed bags to class logits.

    The result for a bag depends on no other bag of the batch, and not on the order of its rows (a head that
    knows of positions takes them from `PackedBags.places`). A subclass is one file, stands in `HEADS`, and
    takes ``(dim, classes, **settings)``.
    """

    name: str
    """What the user calls it."""
    uses_places: bool = False
    """Whether it knows where tiles stand; if not, any order and any places give the same result."""
    last_layer: str = "W"
    """Name of the `nn.Linear` that ends in the logits, as `named_modules` has it."""
    embeds: bool = True
    """Whether a bag has an embedding z of length L, and the logits are the last layer's ``W z + b``.

    z, and how it comes about, then know nothing of the number of classes: in `torch.func.functional_call` any
    number of rows may stand in that layer, and with those of the identity and no bias the "logits" are z.
    """
    stacks: bool = False
    """Whether it can judge bags of many sizes side by side under `torch.func.vmap`.

    Of `PackedBags.sizes` it then reads nothing but how many there are, and no shape depends on a value.
    """
    adaptor: str | None = None
    """The adaptor in front, by its name in `mil.adaptors.ADAPTORS`; see `mil.heads.adapted`."""
    dim: int
    """D."""
    classes: int
    """C."""
    settings: Settings
    """The hyper-parameters it was made with, so that a checkpoint can make it again."""

    def forward(self, bags: PackedBags) -> HeadOutput:
        """Judge bags: D-long features in, float32 logits out; float64 ones if features and weights are."""
        raise NotImplementedError

    def losses(self, bags: PackedBags, labels: Tensor, criterion: Criterion) -> Tensor:
        """``(B,)``: what training lowers, for labels ``(B,)`` int64.

        By default the criterion of the bags' logits. A method with a loss of its own overrides this, and says
        in its docstring how the parts are weighed.
        """
        return criterion(self(bags).logits, labels)
