"""What is meta-learnt, and how: the learners by name, and the settings of their training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mil.fewshot.learners import LastLayer
from mil.heads import HEADS
from mil.metalearning import RATE, STEPS, Inner, Parameters, Slopes, Tasks, fomaml, maml, reptile
from mil.training.fitting import MAX_SEED
from wsi.errors import UsageError

OuterGradient = Callable[[Inner, Parameters, Parameters, Tasks], Slopes]


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to come by the parameters that adapting begins from."""

    name: str
    """What the user calls it."""
    meaning: str
    """In a few words, for tables."""
    outer: OuterGradient | None
    """How the parameters are moved; None for those that are not meta-learnt."""
    last_layer: LastLayer = LastLayer.ZERO
    """Where the last layer begins, of heads that embed; of others as it was learnt."""
    last_only: bool = False
    """Whether the inner loop moves the last layer alone."""
    is_trained: bool = True
    """Whether anything is learnt before adapting."""

    @property
    def needs_queries(self) -> bool:
        """Whether a task's query bags are kept from its inner loop."""
        return self.outer is not None and self.outer is not reptile


_KINDS = (
    Kind("scratch", "fine-tuning from random weights", None, is_trained=False),
    Kind("pretrained", "fine-tuning from ordinary training on the base classes", None),
    Kind("maml", "MAML", maml),
    Kind("fomaml", "MAML of first order", fomaml),
    Kind("anil", "MAML whose steps move the last layer alone", maml, last_only=True),
    Kind("reptile", "Reptile", reptile),
    Kind("proto_maml", "MAML from prototypes", maml, last_layer=LastLayer.PROTOTYPES),
)

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _KINDS}
"""By name, in the order of tables."""


@dataclass(frozen=True, slots=True)
class MetaRecipe:
    """How learners are meta-trained.

    Raises
    ------
    UsageError
        A setting that is none.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    """Which learners."""
    head: str = "mean"
    """A name of `mil.heads.HEADS`. On bags of one tile ``mean`` is a network of two layers."""
    settings: Mapping[str, int | float] = field(default_factory=lambda: {"hidden": 128})
    """The head's, beyond its defaults."""
    components: int = 128
    """Principal axes of the base features: learners see features as coordinates along them."""
    ways: int = 4
    """Classes of a task; fewer where the training classes are fewer."""
    shots: tuple[int, ...] = (1, 5, 10)
    """Support bags of a class: one of these a step, in turn."""
    queries: int = 10
    """Query bags of a class."""
    within_site: bool = False
    """Whether support and query of a task come from one site."""
    iterations: int = 1000
    """Steps of the outer loop, at most."""
    tasks_per_step: int = 8
    """Tasks whose gradients are averaged."""
    inner_steps: int = STEPS
    """Steps of the inner loop."""
    inner_rate: float = RATE
    """Of the inner loop, at first."""
    learn_rates: bool = False
    """Whether each layer's inner rate is learnt (Meta-SGD)."""
    outer_rate: float = 1e-3
    """Of Adam."""
    alignment: float = 0.0
    """Weight of the contrastive loss that draws a class's embeddings of different sites together."""
    look_every: int = 20
    """Steps between looks at the validation tasks."""
    patience: int = 10
    """Looks without a better one after which training ends."""
    validation_tasks: int = 100
    """Tasks that are looked at."""
    seed: int = 0
    """Of weights and tasks."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.kinds if name not in KINDS]:
            raise UsageError(f"there is no learner {unknown[0]!r}", action=f"Use some of {', '.join(KINDS)}")
        if self.head not in HEADS:
            raise UsageError(f"there is no head {self.head!r}", action=f"Use one of {', '.join(HEADS)}")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise _refused("learners are not named, or one of them twice")
        least = {
            "components": 1,
            "ways": 2,
            "queries": 1,
            "iterations": 1,
            "tasks_per_step": 1,
            "inner_steps": 1,
        }
        least |= {"look_every": 1, "patience": 1, "validation_tasks": 2, "seed": 0}
        for name, number in least.items():
            if not getattr(self, name) >= number:
                raise _refused(f"{name.replace('_', ' ')} is {getattr(self, name)}, and at least {number}")
        if not self.shots or min(self.shots) < 1:
            raise _refused(f"shots are {list(self.shots)}; each must be at least 1")
        for name, value in (("inner", self.inner_rate), ("outer", self.outer_rate)):
            if not 0 < value <= 10:
                raise _refused(f"the {name} rate is {value:g}; it must be above 0 and at most 10")
        if not 0 <= self.alignment < math.inf:
            raise _refused(f"the weight of alignment is {self.alignment:g}; it must be 0 or more")
        if self.seed > MAX_SEED:
            raise _refused(f"the seed is {self.seed}; at most {MAX_SEED} is possible")

    def as_json(self) -> dict[str, Any]:
        """For the card."""
        return asdict(self) | {"settings": dict(self.settings)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> MetaRecipe:
        """What `as_json` gave."""
        return cls(**{**content, "kinds": tuple(content["kinds"]), "shots": tuple(content["shots"])})


def _refused(reason: str) -> UsageError:
    return UsageError(reason, action="Correct the settings")
