r"""Meta-learning: parameters from which a few gradient steps on a few examples lead far.

A *task* has support data, from which a learner adapts, and query data, by which the adapted learner is
judged. The inner loop takes k steps on the support's loss, each layer l with a rate of its own,

.. math::

    \phi_0 = s(\theta), \qquad \phi_{i+1}^l = \phi_i^l - \alpha^l \, \nabla_{\phi^l} L_S(\phi_i),

where s says where it begins (by default at the parameters themselves). The outer loop moves theta:

- *MAML*: along the gradient of the query's loss :math:`L_Q(\phi_k)` with respect to theta, through all
  steps, second derivatives included. C. Finn, P. Abbeel, S. Levine, ICML 2017 (arXiv:1703.03400).
- *FOMAML*: the same with the inner gradients held constant; same paper, section 5.2.
- *ANIL*: MAML whose inner loop moves the last layer alone. A. Raghu et al., ICLR 2020 (arXiv:1909.09157).
- *Reptile*: towards the adapted parameters, by :math:`\phi_0 - \phi_k`; it needs no queries, so all of a
  task is support. A. Nichol, J. Achiam, J. Schulman 2018 (arXiv:1803.02999).
- *Meta-SGD*: the rates are learnt too, here one a layer. Z. Li et al. 2017 (arXiv:1707.09835). They are held
  as logarithms, so that none can turn negative. In FOMAML and Reptile their gradient is of first order.

All is a pure function of its arguments, through `torch.func`: no module is changed, nothing is patched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

Parameters = Mapping[str, Tensor]
"""Tensors by name."""
Data = Any
"""What a loss understands. To be stacked (see `Stack`) it must be tensors, or tuples of them."""
Loss = Callable[[Parameters, Data], Tensor]
"""From parameters and data to a scalar: the mean over what the data hold."""
Start = Callable[[Parameters, Data], Parameters]
"""From the parameters that are meta-learned and the support data to where the inner loop begins."""

STEPS, RATE = 5, 0.01
"""Of the inner loop, by default."""
_CHUNK = 64  # tasks that are adapted at a time: bounds memory


@dataclass(frozen=True, slots=True)
class Task:
    """What a learner adapts to, and what it is then judged by."""

    support: Data
    query: Data


@dataclass(frozen=True, slots=True)
class Stack:
    """Tasks of one shape, every tensor with an axis of T tasks in front: they are computed side by side."""

    support: Data
    query: Data


Tasks = Sequence[Task] | Stack


def from_parameters(parameters: Parameters, support: Data) -> Parameters:
    """Begin at the parameters as they are."""
    return parameters


@dataclass(frozen=True, slots=True)
class Inner:
    """The inner loop.

    Raises
    ------
    ValueError
        A negative number of steps.
    """

    loss: Loss
    """Of support and query data."""
    steps: int = STEPS
    """Gradient steps on the support's loss, of all of it at once."""
    moving: Collection[str] | None = None
    """Names of the parameters that it moves; None for all. ANIL: those of the last layer."""
    start: Start = from_parameters
    """Where it begins."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"{self.steps} steps cannot be taken")

    def adapt(
        self, parameters: Parameters, log_rates: Parameters, support: Data, *, second_order: bool = False
    ) -> dict[str, Tensor]:
        """The parameters after the steps.

        Parameters
        ----------
        parameters
            Where the meta-learned parameters are.
        log_rates
            Natural logarithm of each layer's rate, a scalar by the parameter's name; see `rates_of`.
        support
            What to adapt to.
        second_order
            Whether a derivative of the result goes through the inner gradients; else they are constants.
            The values are the same.

        Returns
        -------
        All parameters that `start` gives, adapted.
        """
        adapted = dict(self.start(parameters, support))
        moving = tuple(name for name in adapted if self.moving is None or name in self.moving)
        fixed = {name: value for name, value in adapted.items() if name not in moving}

        def loss_of(some: dict[str, Tensor]) -> Tensor:
            return self.loss({**fixed, **some}, support)

        for _ in range(self.steps):
            before = {name: adapted[name] for name in moving}
            slopes = grad(loss_of)(before)
            for name in moving:
                slope = slopes[name] if second_order else slopes[name].detach()
                adapted[name] = before[name] - log_rates[name].exp() * slope
        return adapted


def rates_of(parameters: Parameters, rate: float = RATE) -> dict[str, Tensor]:
    """The logarithm of one rate for every parameter, as the inner loop takes them.

    >>> {name: round(value.exp().item(), 4) for name, value in rates_of({"w": torch.ones(3)}).items()}
    {'w': 0.01}
    """
    return {name: value.new_tensor(rate).log() for name, value in parameters.items()}


@dataclass(frozen=True, slots=True)
class Slopes:
    """What the outer loop lowers, and where it has to go; each is a mean over tasks."""

    loss: Tensor
    """A scalar: the query's loss after the inner loop; of Reptile that of the whole task."""
    parameters: dict[str, Tensor]
    """By name: what is subtracted from the parameters, times the outer rate."""
    log_rates: dict[str, Tensor]
    """The same for the logarithms of the rates."""


def maml(inner: Inner, parameters: Parameters, log_rates: Parameters, tasks: Tasks) -> Slopes:
    """The exact gradient of the query's loss, second derivatives included."""
    return _through_queries(inner, parameters, log_rates, tasks, second_order=True)


def fomaml(inner: Inner, parameters: Parameters, log_rates: Parameters, tasks: Tasks) -> Slopes:
    """The gradient of the query's loss with the inner gradients held constant."""
    return _through_queries(inner, parameters, log_rates, tasks, second_order=False)


def reptile(inner: Inner, parameters: Parameters, log_rates: Parameters, tasks: Tasks) -> Slopes:
    """How far the inner loop came, turned round: subtracted, it leads towards the adapted parameters.

    The support has to be all of a task; queries are not looked at. The slope of a rate is that of the
    support's loss after the last step, of first order.
    """

    def distance(
        theta: Parameters, log_rates: Parameters, support: Data
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        def loss_of(log_rates: Parameters) -> tuple[Tensor, dict[str, Tensor]]:
            adapted = inner.adapt(theta, log_rates, support)
            return inner.loss(adapted, support), adapted

        of_rates, (loss, adapted) = grad_and_value(loss_of, has_aux=True)(dict(log_rates))
        begun = inner.start(theta, support)
        return loss, {name: begun[name] - adapted[name] for name in adapted}, of_rates

    if isinstance(tasks, Stack):
        found = vmap(distance, in_dims=(None, None, 0), chunk_size=_CHUNK)(
            dict(parameters), dict(log_rates), tasks.support
        )
        return Slopes(found[0].mean(), *(_mean_of_axis(part) for part in found[1:]))
    losses, ways, of_rates = zip(
        *(distance(parameters, log_rates, task.support) for task in tasks), strict=True
    )
    return Slopes(_mean(losses), _mean_of_each(ways), _mean_of_each(of_rates))


def adapt_tasks(
    inner: Inner, parameters: Parameters, log_rates: Parameters, supports: Data
) -> dict[str, Tensor]:
    """The adapted parameters of stacked tasks: every tensor with an axis of T tasks in front.

    Parameters
    ----------
    inner, parameters, log_rates
        See `Inner.adapt`.
    supports
        Support data with an axis of T tasks in front; see `Stack`.
    """
    found: dict[str, Tensor] = vmap(inner.adapt, in_dims=(None, None, 0), chunk_size=_CHUNK)(
        dict(parameters), dict(log_rates), supports
    )
    return found


def _through_queries(
    inner: Inner, parameters: Parameters, log_rates: Parameters, tasks: Tasks, *, second_order: bool
) -> Slopes:
    def query_loss(theta: Parameters, log_rates: Parameters, support: Data, query: Data) -> Tensor:
        adapted = inner.adapt(theta, log_rates, support, second_order=second_order)
        return inner.loss(adapted, query)

    both = grad_and_value(query_loss, argnums=(0, 1))
    theta, rates = dict(parameters), dict(log_rates)
    if isinstance(tasks, Stack):
        slopes, losses = vmap(both, in_dims=(None, None, 0, 0), chunk_size=_CHUNK)(
            theta, rates, tasks.support, tasks.query
        )
        return Slopes(losses.mean(), *(_mean_of_axis(part) for part in slopes))
    each = [both(theta, rates, task.support, task.query) for task in tasks]
    loss = _mean([value for _, value in each])
    return Slopes(loss, *(_mean_of_each([slopes[i] for slopes, _ in each]) for i in (0, 1)))


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(values)).mean(dim=0)


def _mean_of_axis(stacked: Parameters) -> dict[str, Tensor]:
    return {name: values.mean(dim=0) for name, values in stacked.items()}


def _mean_of_each(each: Sequence[Parameters]) -> dict[str, Tensor]:
    """Summed one after the other: all tasks' gradients need never be stacked."""
    total = dict(each[0])
    for one in each[1:]:
        total = {name: total[name] + one[name] for name in total}
    return {name: value / len(each) for name, value in total.items()}
