r"""A head as a learner of few examples: its loss as a function of its parameters, and where adapting begins.

The last layer is a matter of the task, not of the head: the classes are others each time. It begins

- at *zero*: no class is preferred, any number of classes is possible, and their order does not matter. C.
  Kao, W. Chiu, P. Chen, "MAML is a Noisy Contrastive Learner in Disguise", ICLR 2022 (arXiv:2106.15367). Rows
  that are all alike, whatever they are, would give the very same steps: a softmax does not see what is added
  to every logit.
- at *prototypes*: from the mean embedding :math:`c_k` of each class's support, :math:`w_k = 2 c_k` and
  :math:`b_k = -|c_k|^2`, so that the logits rank classes by the squared distance to their prototypes. E.
  Triantafillou et al., "Meta-Dataset", ICLR 2020 (arXiv:1903.03096), section 3.
- as *learnt*: the classic start, with the number of classes that it was learnt with. The only one for heads
  whose last layer does not see an embedding of the bag (`Head.embeds`).

::

    n  bags of a support or query set        L  length of an embedding
    C  classes of the task                   D  length of a feature vector
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from mil.fewshot.stacking import Bags, packed
from mil.heads import Head, build_head
from mil.metalearning import Parameters
from wsi.errors import UsageError

Labelled = tuple[Bags, Tensor]
"""Bags with their labels ``(n,)`` int64, 0 to C - 1."""


class LastLayer(Enum):
    """Where the last layer begins; see the module's text."""

    ZERO = "zero"
    PROTOTYPES = "prototypes"
    LEARNT = "learnt"


@dataclass(frozen=True, eq=False, slots=True)
class Learner:
    """A head, of which only the form counts, for a task of so many classes. Always in eval mode.

    Raises
    ------
    UsageError
        A head without embeddings for another number of classes than its own, or from another start.
    """

    head: Head
    """Gives buffers and form. Not changed."""
    classes: int
    """C."""
    last_layer: LastLayer
    """Where its last layer begins."""

    def __post_init__(self) -> None:
        if not self.head.embeds and self.last_layer is not LastLayer.LEARNT:
            raise UsageError(
                f"the last layer of head {self.head.name!r} sees no embedding of a bag, and cannot begin at "
                f"{self.last_layer.value}",
                action="Use another head, such as gated_abmil, or the start 'learnt'",
            )
        if self.last_layer is LastLayer.LEARNT and self.classes != self.head.classes:
            raise UsageError(
                f"this head was learnt for {self.head.classes} classes, and there are {self.classes}",
                action="Use a method whose last layer begins at zero or at prototypes",
            )

    @property
    def of_last_layer(self) -> tuple[str, ...]:
        """Names of the last layer's parameters, weight first."""
        names = [name for name, _ in self.head.named_parameters()]
        return tuple(name for name in names if name.rpartition(".")[0] == self.head.last_layer)

    def logits(self, parameters: Parameters, bags: Bags) -> Tensor:
        """``(n, C)``: what the head says with these parameters."""
        seen, count = packed(bags)
        output: Tensor = functional_call(self.head, dict(parameters), (seen,)).logits
        return output[:count]

    def embed(self, parameters: Parameters, bags: Bags) -> Tensor:
        """``(n, L)``: what the last layer sees. It is had from the head itself, by a last layer of ones."""
        weight, *bias = self.of_last_layer
        width = parameters[weight].shape[1]
        ones = torch.eye(width, dtype=parameters[weight].dtype, device=parameters[weight].device)
        through = {weight: ones}
        through |= {name: parameters[name].new_zeros(width) for name in bias}
        return self.logits({**parameters, **through}, bags)

    def loss(self, parameters: Parameters, data: Labelled) -> Tensor:
        """Mean cross-entropy of the bags' logits."""
        bags, labels = data
        return functional.cross_entropy(self.logits(parameters, bags), labels)

    def start(self, parameters: Parameters, support: Labelled) -> dict[str, Tensor]:
        """The parameters with the last layer where it is to begin."""
        if self.last_layer is LastLayer.LEARNT:
            return dict(parameters)
        weight, *bias = self.of_last_layer
        if self.last_layer is LastLayer.ZERO:
            rows = parameters[weight].new_zeros((self.classes, parameters[weight].shape[1]))  # (C, L)
            offsets = rows[:, 0]  # (C,)
        else:
            rows, offsets = self._prototypes(parameters, support)
        return {**parameters, weight: rows, **dict.fromkeys(bias, offsets)}

    def _prototypes(self, parameters: Parameters, support: Labelled) -> tuple[Tensor, Tensor]:
        bags, labels = support
        z = self.embed(parameters, bags)  # (n, L)
        centres = class_means(z, labels, self.classes)  # (C, L)
        return 2 * centres, -centres.square().sum(dim=1)

    def as_head(self, parameters: Mapping[str, Tensor]) -> Head:
        """A head of its own with these parameters, for C classes, in eval mode, on the CPU.

        Parameters that only the head's own way of training uses, and whose shape depends on the classes, are
        as a new head's of seed 0.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            head = build_head(
                self.head.name,
                dim=self.head.dim,
                classes=self.classes,
                settings=self.head.settings,
                adaptor=self.head.adaptor,
            )
        own = head.state_dict()
        given = {**dict(self.head.named_buffers()), **parameters}
        fitting = {
            name: value.detach().cpu() for name, value in given.items() if own[name].shape == value.shape
        }
        assert set(self.of_last_layer) <= fitting.keys()
        head.load_state_dict({**own, **fitting})
        return head.eval()


def class_means(vectors: Tensor, labels: Tensor, classes: int) -> Tensor:
    """``(C, L)``: the mean of the vectors ``(n, L)`` of each class; every class has one at least."""
    of_class = (labels[:, None] == torch.arange(classes, device=labels.device)).to(vectors.dtype)  # (n, C)
    return of_class.T @ vectors / of_class.sum(dim=0)[:, None]
