"""Meta-training: learners learn from tasks of the base classes, and stop by tasks that they never learn from.

A learner that gets ever better on its own tasks soon gets worse on others, the more so the fewer base classes
there are. So every so many steps it adapts to a fixed set of *validation tasks*, of other classes where there
are enough, else of other patients; its weights are those of the best look. How many steps to take on a new
task, and for learners without learnt rates how long, is chosen by the same tasks.

::

    T  tasks of a step        n, q  support and query bags of a task        D  length of a feature vector
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad
from torch.nn import functional

from mil.adaptors.principal import Principal
from mil.device import seeded
from mil.fewshot.alignment import alignment_loss
from mil.fewshot.components import principal_components
from mil.fewshot.episodes import Episode, EpisodeSampler, Shape
from mil.fewshot.learners import LastLayer
from mil.fewshot.methods import Stepping, Support
from mil.fewshot.pool import Pool
from mil.fewshot.recipe import Kind, MetaRecipe
from mil.fewshot.stacking import plain, stack
from mil.heads import HEADS, Head, build_head
from mil.metalearning import Slopes, Stack, Task, Tasks, rates_of
from wsi.errors import MicrotomeError, UsageError

_RATES_PACE = 20.0  # learnt logarithms of rates have tenfolds to go where weights have thousandths
_BATCH = 64  # bags of a step of ordinary training
_LOOK_STEPS, _LOOK_RATE = 20, 0.1  # how a head is fine-tuned when ordinary training is looked at
_STEPS_TRIED = (1, 2, 4, 10, 20, 40)  # times the inner steps of training
_TUNED = tuple(
    product((10, 30, 100, 300), (0.03, 0.1, 0.3))
)  # steps and rates of learners without learnt ones
_ROWS_AT_ONCE = 8192  # that pass the front: 50 MiB of 1,536 features
_AT_ONCE = 25  # validation tasks that are judged side by side


@dataclass(frozen=True, slots=True)
class Look:
    """What is known after some steps."""

    step: int
    """From 1."""
    loss: float
    """Mean of the outer loss since the look before."""
    accuracy: float
    """Mean over the validation tasks, after adapting."""
    best: bool
    """Whether it is better than all before."""


LookReport = Callable[[Look], None]
"""Called after each look."""


@dataclass(frozen=True, eq=False, slots=True)
class TrainedLearner:
    """A learner as meta-training left it."""

    method: Stepping
    """Ready to adapt, its front included."""
    looks: tuple[Look, ...]
    """Its learning curve; empty of one that is not trained."""
    accuracy: float
    """On the validation tasks, with the steps that were chosen by them: a little flattered."""


class MetaTraining:
    """Base and validation tasks, and the training of one learner after the other on them.

    Parameters
    ----------
    base
        What is learnt from.
    validation
        What is looked at; no bag of it is in `base`.
    recipe
        How.
    device
        Where; by default the CPU.

    Raises
    ------
    UsageError
        Tasks of the recipe's shape cannot be drawn; see `EpisodeSampler`. The head does not take these
        settings, or cannot be had for such tasks; an alignment would do nothing.
    """

    def __init__(
        self, base: Pool, validation: Pool, recipe: MetaRecipe, *, device: torch.device | None = None
    ) -> None:
        self.recipe, self.device = recipe, device or torch.device("cpu")
        self.front = front_of(base, recipe.components)
        self.base, self.validation = (_seen(pool, self.front) for pool in (base, validation))
        self._refuse_kinds()
        self._refuse_alignment()
        self._samplers = [self._sampler(base, shots) for shots in recipe.shots]
        self._looked_at = [self._sampler(validation, shots) for shots in recipe.shots]
        self._bags_of = [np.flatnonzero(base.labels == label) for label in range(len(base.classes))]
        with seeded(recipe.seed, self.device):
            self._head(classes=2)  # settings that it does not take are refused now

    def _sampler(self, pool: Pool, shots: int) -> EpisodeSampler:
        ways = min(self.recipe.ways, len(pool.classes))
        shape = Shape(ways=ways, shots=shots, queries=self.recipe.queries)
        return EpisodeSampler(pool, shape, within_site=self.recipe.within_site)

    def _refuse_kinds(self) -> None:
        """Heads without embeddings have the last layer, and so the number of classes, that they learnt."""
        ways, others = (min(self.recipe.ways, len(pool.classes)) for pool in (self.base, self.validation))
        if HEADS[self.recipe.head].embeds:
            return
        named = [name for name in ("pretrained", "proto_maml") if name in self.recipe.kinds]
        if named or ways != others:
            what = (
                f"{named[0]} cannot be had"
                if named
                else f"tasks of {ways} and of {others} classes cannot be had"
            )
            raise UsageError(
                f"{what} with head {self.recipe.head!r}, whose last layer sees no embedding of a bag",
                action="Use a head such as mean or gated_abmil, or "
                + ("leave that learner out with --learners" if named else f"give --ways {min(ways, others)}"),
            )

    def _refuse_alignment(self) -> None:
        """Where it would do nothing, nobody is to believe that it did."""
        if not self.recipe.alignment:
            return
        if not HEADS[self.recipe.head].embeds:
            raise UsageError(
                f"head {self.recipe.head!r} has no embedding of a bag that sites could be drawn together in",
                action="Use a head such as mean or gated_abmil, or leave out --alignment",
            )
        pairs = set(zip(self.base.labels.tolist(), self.base.sites.tolist(), strict=True))
        if len(pairs) == len(self.base.classes):
            raise UsageError(
                "no class of those that are learnt from is at two sites: there is nothing to align",
                action="Give --labels with a column 'site', or leave out --alignment",
            )

    def train(self, kind: Kind, *, report: LookReport | None = None) -> TrainedLearner:
        """Train one learner; the same recipe and pools give the same weights, whatever was trained before.

        Raises
        ------
        MicrotomeError
            The loss became NaN or infinite.
        """
        looks: list[Look] = []
        with seeded(self.recipe.seed, self.device):
            kept = self._begin(kind)
            if kind.is_trained:
                kept = self._best(kind, kept, looks, report)
            steps = [(times * self.recipe.inner_steps, None) for times in _STEPS_TRIED]
            method, accuracy = self._tune(kept, _TUNED if kind.outer is None else steps)
        return TrainedLearner(replace(method, front=self.front), tuple(looks), accuracy)

    def _best(self, kind: Kind, begun: Stepping, looks: list[Look], report: LookReport | None) -> Stepping:
        """The learner as it was at the best look; all looks are added to the list."""
        best, kept = -1.0, begun
        for step, loss, now in self._steps(kind, begun):
            accuracy = self._accuracy(now)
            looks.append(Look(step, loss, accuracy, accuracy > best))
            if accuracy > best:
                best, kept = accuracy, _copy(now)
            if report:
                report(looks[-1])
            if step - next(one.step for one in reversed(looks) if one.best) >= self._patience():
                break
        return kept

    def _patience(self) -> int:
        return self.recipe.patience * self.recipe.look_every

    def _begin(self, kind: Kind) -> Stepping:
        """The learner with random weights."""
        ordinary = kind.is_trained and kind.outer is None  # all base classes at once, and no tasks
        classes = len(self.base.classes) if ordinary else self._samplers[0].shape.ways
        head = self._head(classes=classes).to(self.device).eval()
        parameters = dict(head.named_parameters())
        if kind.outer is None:
            rates, steps = rates_of(parameters, _LOOK_RATE), _LOOK_STEPS
        else:
            rates, steps = rates_of(parameters, self.recipe.inner_rate), self.recipe.inner_steps
        last_layer = kind.last_layer if head.embeds else LastLayer.LEARNT
        return Stepping(kind.name, head, rates, steps, last_layer, kind.last_only)

    def _head(self, *, classes: int) -> Head:
        """What is trained, with random weights; it sees features that passed the front."""
        recipe = self.recipe
        return build_head(recipe.head, dim=self.front.width, classes=classes, settings=recipe.settings)

    # The outer loop --------------------------------------------------------------------------------------

    def _steps(self, kind: Kind, method: Stepping) -> Iterator[tuple[int, float, Stepping]]:
        """After every `look_every` steps: their number, the mean loss since, and the learner as it is."""
        rates = {name: value.clone() for name, value in method.log_rates.items()}
        optimizer = self._optimizer(kind, method.head, rates)
        moved, total = replace(method, log_rates=rates), 0.0
        for step in range(1, self.recipe.iterations + 1):
            slopes = (
                self._ordinary(method.head, step) if kind.outer is None else self._meta(kind, moved, step)
            )
            total += float(slopes.loss)
            if not np.isfinite(total):
                raise MicrotomeError(
                    f"meta-training of {kind.name} diverged in step {step}", action="Give smaller rates"
                )
            for name, parameter in method.head.named_parameters():
                parameter.grad = slopes.parameters[name]
            for name, rate in rates.items():
                rate.grad = slopes.log_rates.get(name)
            optimizer.step()
            if step % self.recipe.look_every == 0 or step == self.recipe.iterations:
                yield step, total / ((step - 1) % self.recipe.look_every + 1), moved
                total = 0.0

    def _optimizer(self, kind: Kind, head: Head, rates: dict[str, Tensor]) -> torch.optim.Optimizer:
        """Adam, for Reptile too (its paper's section 5): a distance may be of any size."""
        rate = self.recipe.outer_rate
        groups: list[dict[str, Any]] = [{"params": list(head.parameters()), "lr": rate}]
        if self.recipe.learn_rates and kind.outer is not None:
            groups.append({"params": list(rates.values()), "lr": _RATES_PACE * rate})
        return torch.optim.Adam(groups, lr=rate)

    def _meta(self, kind: Kind, method: Stepping, step: int) -> Slopes:
        """The slopes of one step's tasks."""
        assert kind.outer is not None
        sampler = self._samplers[step % len(self._samplers)]
        first = step * self.recipe.tasks_per_step
        episodes = [sampler.draw(self.recipe.seed, first + i) for i in range(self.recipe.tasks_per_step)]
        learner = method.learner(sampler.shape.ways)
        tasks = self._tasks(episodes, method.head, joined=not kind.needs_queries)
        slopes = kind.outer(method.inner(learner), method.parameters, method.log_rates, tasks)
        return self._aligned(slopes, method, np.concatenate([_all_bags(episode) for episode in episodes]))

    def _tasks(self, episodes: Sequence[Episode], head: Head, *, joined: bool) -> Tasks:
        """As the outer gradients take them: stacked where that can be. `joined`: all bags are support."""
        if joined:  # queries are not looked at
            supports = queries = [
                self._labelled(
                    self.base, _all_bags(each), np.concatenate([each.support_labels, each.query_labels])
                )
                for each in episodes
            ]
        else:
            supports = [self._labelled(self.base, each.support, each.support_labels) for each in episodes]
            queries = [self._labelled(self.base, each.query, each.query_labels) for each in episodes]
        known, asked = (stack([one.bags for one in side], fill=head.stacks) for side in (supports, queries))
        if known is not None and asked is not None:
            of_known, of_asked = (torch.stack([one.labels for one in side]) for side in (supports, queries))
            return Stack((known, of_known), (asked, of_asked))
        return [Task(one.data, other.data) for one, other in zip(supports, queries, strict=True)]

    def _labelled(self, pool: Pool, bags: NDArray[np.int64], labels: NDArray[np.int64]) -> Support:
        classes = int(labels.max()) + 1
        return Support(pool.pack(bags, self.device), torch.from_numpy(labels).to(self.device), classes)

    def _aligned(self, slopes: Slopes, method: Stepping, bags: NDArray[np.int64]) -> Slopes:
        """The slopes with those of the alignment of these bags' embeddings, if it has a weight."""
        if not self.recipe.alignment or not method.head.embeds:
            return slopes
        bags = np.unique(bags)
        packed = plain(self.base.pack(bags, self.device))
        labels, sites = (
            torch.from_numpy(of[bags]).to(self.device) for of in (self.base.labels, self.base.sites)
        )
        learner = method.learner(method.head.classes)

        def loss(parameters: dict[str, Tensor]) -> Tensor:
            return alignment_loss(learner.embed(parameters, packed), labels, sites)

        found = grad(loss)(dict(method.parameters))
        weight = self.recipe.alignment
        moved = {name: slope + weight * found[name] for name, slope in slopes.parameters.items()}
        return replace(slopes, parameters=moved)

    def _ordinary(self, head: Head, step: int) -> Slopes:
        """The gradient of one step of ordinary training: a batch of base bags, all classes alike."""
        rng = np.random.default_rng([self.recipe.seed, step])
        classes = rng.integers(len(self.base.classes), size=_BATCH)
        bags = np.array([rng.choice(self._bags_of[label]) for label in classes])
        packed = self.base.pack(bags, self.device)
        head.train()
        head.zero_grad()
        loss = functional.cross_entropy(head(packed).logits, torch.from_numpy(classes).to(self.device))
        torch.autograd.backward(loss)
        head.eval()
        slopes = {
            name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in head.named_parameters()
        }
        method = Stepping("pretrained", head, rates_of(slopes), 0, LastLayer.LEARNT)
        return self._aligned(Slopes(loss.detach(), slopes, {}), method, bags)

    # Looking ---------------------------------------------------------------------------------------------

    def _accuracy(self, method: Stepping) -> float:
        """Mean over all validation tasks."""
        each = max(1, self.recipe.validation_tasks // len(self._looked_at))
        found = []
        for sampler in self._looked_at:
            for first in range(0, each, _AT_ONCE):
                numbers = range(first, min(first + _AT_ONCE, each))
                # Other tasks than those of training even where pools were the same: a seed of their own.
                episodes = [sampler.draw(self.recipe.seed + 1, number) for number in numbers]
                supports = [self._labelled(self.validation, e.support, e.support_labels) for e in episodes]
                queries = [self.validation.pack(e.query, self.device) for e in episodes]
                for logits, episode in zip(method.judge(supports, queries), episodes, strict=True):
                    right = logits.argmax(dim=1).cpu().numpy() == episode.query_labels
                    found.append(float(right.mean()))
        return float(np.mean(found))

    def _tune(self, method: Stepping, settings: Sequence[tuple[int, float | None]]) -> tuple[Stepping, float]:
        """The learner with the steps, and rate, that do best on the validation tasks; of equals the first."""
        best: tuple[Stepping, float] | None = None
        for steps, rate in settings:
            rates = method.log_rates if rate is None else rates_of(method.parameters, rate)
            tried = replace(method, steps=steps, log_rates=rates)
            accuracy = self._accuracy(tried)
            if best is None or accuracy > best[1]:
                best = tried, accuracy
        assert best is not None
        return best


def _all_bags(episode: Episode) -> NDArray[np.int64]:
    return np.concatenate([episode.support, episode.query])


def _copy(method: Stepping) -> Stepping:
    """The learner as it is now, in memory of its own: training goes on without it."""
    rates = {name: value.detach().clone() for name, value in method.log_rates.items()}
    return replace(method, head=copy.deepcopy(method.head), log_rates=rates)


def front_of(base: Pool, components: int) -> Principal:
    """What all learners see features through: the axes along which those of the base vary most."""
    with torch.random.fork_rng(devices=[]):  # its first axes are random, and replaced
        front = Principal(base.dim, components=components)
    found = principal_components(base.features, front.width)
    front.set_statistics(
        torch.from_numpy(found.mean), torch.from_numpy(found.axes), torch.tensor(found.deviation)
    )
    return front


def _seen(pool: Pool, front: Principal) -> Pool:
    """The same bags, their features passed through the front."""
    starts = range(0, len(pool.features), _ROWS_AT_ONCE)
    parts = (torch.from_numpy(pool.features[start : start + _ROWS_AT_ONCE]).float() for start in starts)
    return replace(pool, features=np.concatenate([front.project(part).numpy() for part in parts]))
