"""Ways to learn from a few labelled bags: each makes a head that stands by itself.

Two take no gradient steps: *prototypes*, the nearest class mean after centring and scaling to unit length
(CL2N; Y. Wang et al., "SimpleShot", 2019, arXiv:1911.04623), and *logistic regression* on the same vectors.
All others are `Stepping`: a head that takes gradient steps from where `mil.fewshot.training` left it.

::

    n  bags of the support        D  length of a feature vector        C  classes
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mil.adaptors import Adaptor
from mil.bags import PackedBags
from mil.fewshot.learners import LastLayer, Learner, class_means
from mil.fewshot.stacking import Bags, Filled, plain, stack
from mil.heads import Head, build_head
from mil.heads.adapted import AdaptedHead
from mil.metalearning import Inner, Parameters, adapt_tasks
from mil.segments import segment_mean

Vectors = NDArray[np.float64]
_SHARPNESS = 10.0
"""Of the prototypes' logits: squared distances of unit vectors are at most 4, too little for a softmax."""


@dataclass(frozen=True, eq=False, slots=True)
class Support:
    """A few labelled bags."""

    bags: PackedBags
    """n bags."""
    labels: Tensor
    """``(n,)`` int64, 0 to C - 1; every class at least once."""
    classes: int
    """C."""

    @property
    def data(self) -> tuple[Bags, Tensor]:
        """As a learner takes it."""
        return plain(self.bags), self.labels


class Method(Protocol):
    """A way to learn from a support."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    def fit(self, support: Support) -> Head:
        """A head for the support's classes, in eval mode, on the CPU.

        Raises
        ------
        UsageError
            This method cannot be had for so many classes.
        """

    def judge(self, supports: Sequence[Support], queries: Sequence[PackedBags]) -> list[Tensor]:
        """For each task the logits ``(q, C)`` of its query bags: those of ``fit(support)``, to rounding."""


def _judge_each(method: Method, supports: Sequence[Support], queries: Sequence[PackedBags]) -> list[Tensor]:
    with torch.no_grad():
        return [
            method.fit(support).to(query.features.device)(query).logits
            for support, query in zip(supports, queries, strict=True)
        ]


def _unit_bags(bags: PackedBags, centre: Tensor) -> Tensor:
    """``(n, D)``: of each bag the mean of its tiles' features, centred and scaled to unit length."""
    unit = functional.normalize(bags.features - centre.to(bags.features.device), dim=1)  # (N, D)
    return segment_mean(unit, bags.bag_of_row, len(bags))


def _linear_head(weight: Tensor, bias: Tensor, *, centre: Tensor) -> Head:
    """The head ``linear`` with these weights ``(C, D)``, of features that are centred and of unit length."""
    classes, dim = weight.shape
    with torch.random.fork_rng(devices=[]):
        head = build_head("linear", dim=dim, classes=classes, adaptor="unit_length")
    state = {f"{head.last_layer}.weight": weight, f"{head.last_layer}.bias": bias, "front.centre": centre}
    head.load_state_dict({name: value.detach().float().cpu() for name, value in state.items()})
    return head.eval()


@dataclass(frozen=True, eq=False, slots=True)
class Prototypes:
    """Nearest class mean; no training at all, and what everything else has to beat."""

    centre: Tensor
    """``(D,)``: the mean of the features that other classes have."""
    name: str = "prototypes"

    def fit(self, support: Support) -> Head:
        """See `Method.fit`."""
        bags = _unit_bags(support.bags, self.centre)  # (n, D)
        means = class_means(bags, support.labels, support.classes)  # (C, D)
        return _linear_head(
            _SHARPNESS * 2 * means, -_SHARPNESS * means.square().sum(dim=1), centre=self.centre
        )

    def judge(self, supports: Sequence[Support], queries: Sequence[PackedBags]) -> list[Tensor]:
        """See `Method.judge`."""
        return _judge_each(self, supports, queries)


@dataclass(frozen=True, eq=False, slots=True)
class Logistic:
    """Multinomial logistic regression on the features that prototypes see, of a bag their mean."""

    centre: Tensor
    """``(D,)``: the mean of the features that other classes have."""
    strength: float = 100.0
    """Weight of the examples against that of the squared norm, as scikit-learn's C: vectors of unit length
    need more than its default of 1. Chosen on validation tasks."""
    name: str = "logistic"

    def fit(self, support: Support) -> Head:
        """See `Method.fit`."""
        bags = _unit_bags(support.bags, self.centre).double().cpu().numpy()  # (n, D)
        weight, bias = fit_logistic(bags, support.labels.cpu().numpy(), strength=self.strength)
        return _linear_head(torch.from_numpy(weight), torch.from_numpy(bias), centre=self.centre)

    def judge(self, supports: Sequence[Support], queries: Sequence[PackedBags]) -> list[Tensor]:
        """See `Method.judge`."""
        from threadpoolctl import threadpool_limits

        # On a handful of vectors threads wait for one another ten times as long as they compute.
        with threadpool_limits(limits=1, user_api="blas"):
            return _judge_each(self, supports, queries)


def fit_logistic(vectors: Vectors, labels: NDArray[np.int64], *, strength: float) -> tuple[Vectors, Vectors]:
    """Weights ``(C, D)`` and biases ``(C,)`` from vectors ``(n, D)``: the minimum of a convex function.

    It is the cross-entropy of all vectors, times the strength, plus half the squared norm of the weights,
    which leaves only weights within the span of the vectors. So they are turned into that span first: the
    same result, from n numbers a vector and not D.
    """
    from scipy.optimize import minimize  # takes a third of a second to import, scikit-learn's takes three

    u, s, v = np.linalg.svd(vectors, full_matrices=False)  # (n, r), (r,), (r, D)
    seen = u * s  # (n, r)
    shape = int(labels.max()) + 1, seen.shape[1] + 1  # the last column is the bias
    of_class = np.eye(shape[0])[labels]  # (n, C)

    def objective(flat: Vectors) -> tuple[float, Vectors]:
        weight, bias = np.split(flat.reshape(shape), [-1], axis=1)  # (C, r), (C, 1)
        logits = seen @ weight.T + bias.T  # (n, C)
        logits -= logits.max(axis=1, keepdims=True)
        totals = np.exp(logits).sum(axis=1, keepdims=True)  # (n, 1)
        loss = (np.log(totals) - (logits * of_class).sum(axis=1, keepdims=True)).sum()
        too_much = np.exp(logits) / totals - of_class  # (n, C)
        slope = np.concatenate([too_much.T @ seen + weight / strength, too_much.sum(axis=0)[:, None]], axis=1)
        return (loss + (weight**2).sum() / 2 / strength) / len(seen), slope.ravel() / len(seen)

    options = {"maxiter": 1000, "gtol": 1e-6, "ftol": 1e-14}
    found = minimize(objective, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options)
    weight, bias = np.split(found.x.reshape(shape), [-1], axis=1)
    return weight @ v, bias[:, 0]


@dataclass(frozen=True, eq=False, slots=True)
class Stepping:
    """Gradient steps on the support from parameters that were learnt, or from random ones."""

    name: str
    head: Head
    """Holds the parameters to begin from; never changed."""
    log_rates: Parameters
    """By the parameter's name; see `mil.metalearning.rates_of`."""
    steps: int
    """How many."""
    last_layer: LastLayer
    """Where the last layer begins."""
    last_only: bool = False
    """Whether steps move the last layer alone."""
    front: Adaptor | None = None
    """Without parameters: what features pass through before the head; None for nothing."""
    parameters: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        values = {name: value.detach() for name, value in self.head.named_parameters()}
        object.__setattr__(self, "parameters", values)

    def learner(self, classes: int) -> Learner:
        """For a task of so many classes."""
        return Learner(self.head, classes, self.last_layer)

    def inner(self, learner: Learner) -> Inner:
        """The inner loop."""
        moving = learner.of_last_layer if self.last_only else None
        return Inner(learner.loss, steps=self.steps, moving=moving, start=learner.start)

    def fit(self, support: Support) -> Head:
        """See `Method.fit`."""
        learner = self.learner(support.classes)
        data = plain(self._seen(support.bags)), support.labels
        head = learner.as_head(self.inner(learner).adapt(self.parameters, self.log_rates, data))
        return AdaptedHead(copy.deepcopy(self.front).cpu(), head).eval() if self.front else head

    def judge(self, supports: Sequence[Support], queries: Sequence[PackedBags]) -> list[Tensor]:
        """See `Method.judge`. Tasks of one shape are computed side by side, if the head can be."""
        with torch.no_grad():
            # Once, and not in every step.
            supports = [replace(support, bags=self._seen(support.bags)) for support in supports]
            queries = [self._seen(query) for query in queries]
            stacked = self._stacked(supports, queries)
            if stacked is None:
                return [self._judge(*task) for task in zip(supports, queries, strict=True)]
            known, asked = stacked
            learner = self.learner(supports[0].classes)
            labels = torch.stack([support.labels for support in supports])
            inner = self.inner(learner)
            adapted = adapt_tasks(inner, self.parameters, self.log_rates, (known, labels))
            return list(torch.func.vmap(learner.logits)(adapted, asked))

    def _stacked(
        self, supports: Sequence[Support], queries: Sequence[PackedBags]
    ) -> tuple[Tensor | Filled, Tensor | Filled] | None:
        """Supports and queries side by side; None where they cannot be."""
        if len({support.classes for support in supports}) > 1:
            return None
        fill = self.head.stacks
        known, asked = stack([support.bags for support in supports], fill=fill), stack(queries, fill=fill)
        return None if known is None or asked is None else (known, asked)

    def _seen(self, bags: PackedBags) -> PackedBags:
        """As the head takes them."""
        if self.front is None:
            return bags
        with torch.no_grad():
            return replace(bags, features=self.front(bags))

    def _judge(self, support: Support, query: PackedBags) -> Tensor:
        learner = self.learner(support.classes)
        adapted = self.inner(learner).adapt(self.parameters, self.log_rates, support.data)
        return learner.logits(adapted, plain(query))
