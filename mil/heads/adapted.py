"""A head with an adaptor in front: still a head."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mil.adaptors import Adaptor
from mil.bags import PackedBags
from mil.heads.contract import Criterion, Head, HeadOutput

ADAPTOR_SETTING = "adaptor."
"""What the adaptor's settings begin with among those of the head."""


class AdaptedHead(Head):
    """The head judges what the adaptor makes of the features.

    Its name and classes are the head's, its D is the adaptor's, and its settings are both's, the adaptor's
    with ``adaptor.`` before their names: ``{"hidden": 512, "adaptor.reduction": 16}``. With the name of the
    adaptor, `mil.heads.build_head` makes it again from these.

    Parameters
    ----------
    front
        From ``(N, D)`` to ``(N, D')``.
    head
        Takes D'.
    """

    def __init__(self, front: Adaptor, head: Head) -> None:
        super().__init__()
        if front.width != head.dim:
            raise ValueError(f"the adaptor gives {front.width} numbers a tile, and the head takes {head.dim}")
        self.name, self.classes, self.dim = head.name, head.classes, front.dim
        self.adaptor = front.name
        self.last_layer, self.embeds = f"head.{head.last_layer}", head.embeds
        self.stacks = head.stacks and not front.uses_places
        self.uses_places = front.uses_places or head.uses_places
        of_front = {ADAPTOR_SETTING + name: value for name, value in front.settings.items()}
        self.settings = {**head.settings, **of_front}
        self.front, self.head = front, head

    def forward(self, bags: PackedBags) -> HeadOutput:
        """Judge bags; see `Head.forward`."""
        output: HeadOutput = self.head(self._adapted(bags))
        return output

    def losses(self, bags: PackedBags, labels: Tensor, criterion: Criterion) -> Tensor:
        """``(B,)``: the head's own."""
        return self.head.losses(self._adapted(bags), labels, criterion)

    def _adapted(self, bags: PackedBags) -> PackedBags:
        return replace(bags, features=self.front(bags))
