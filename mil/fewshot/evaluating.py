"""Every way to learn from few bags, judged on the very same tasks.

::

    S  numbers of shots        M  methods        E  tasks of each number of shots        P  patients
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mil.bags import PackedBags
from mil.fewshot.episodes import Episode, EpisodeSampler, Shape
from mil.fewshot.methods import Method, Support
from mil.fewshot.pool import Pool
from wsi.errors import UsageError

EPISODES = 600
"""Tasks of each number of shots: the number that few-shot papers report."""
WORST_LOSS = 100.0
"""The log loss of a bag is this at most, and of one whose logits are not finite: it counts as wrong."""
_TASKS_AT_ONCE = 25  # that are judged side by side, unless they have more rows than
_ROWS_AT_ONCE = 1 << 16  # in memory: 400 MiB of 1,536 features
Progress = Callable[[int, int], None]
"""Called with the tasks that are judged, over all numbers of shots, and of how many."""


@dataclass(frozen=True, slots=True)
class FewshotSettings:
    """Which tasks the methods are judged on.

    Raises
    ------
    UsageError
        A number out of range.
    """

    shots: tuple[int, ...] = (1, 5, 10)
    """Support bags of a class: each number for itself."""
    ways: int | None = None
    """Classes of a task; None for as many as in training, or as there are."""
    queries: int = 10
    """Query bags of a class."""
    episodes: int = EPISODES
    """E."""
    within_site: bool = False
    """Whether support and query of a task come from one site."""
    seed: int = 0
    """Of tasks, and of the resampling of patients."""

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 1 or len(set(self.shots)) < len(self.shots):
            raise UsageError(
                f"shots are {list(self.shots)}; each is at least 1, and named once", action="Correct --shots"
            )
        least = (("ways", self.ways, 2), ("queries", self.queries, 1), ("episodes", self.episodes, 2))
        for name, number, at_least in (*least, ("seed", self.seed, 0)):
            if number is not None and number < at_least:
                raise UsageError(
                    f"{name} is {number}; at least {at_least} is needed", action=f"Correct --{name}"
                )

    def shapes(self, classes: int) -> tuple[Shape, ...]:
        """Of the tasks of each number of shots, where `ways` is None of at most so many classes.

        Raises
        ------
        UsageError
            Fewer than two.
        """
        ways = classes if self.ways is None else self.ways
        return tuple(Shape(ways=ways, shots=shots, queries=self.queries) for shots in self.shots)

    def as_json(self) -> dict[str, Any]:
        """For the report, and to tell whether another run would give another one."""
        return asdict(self) | {"shots": list(self.shots)}


@dataclass(frozen=True, eq=False, slots=True)
class FewshotFigures:
    """What every method made of every task.

    Tasks have as many queries of each class, so accuracy is balanced accuracy too.
    """

    methods: tuple[str, ...]
    """Names, in the order that was asked for."""
    left_out: Mapping[str, str]
    """Methods that cannot learn such tasks, and why."""
    shots: tuple[int, ...]
    """Numbers of shots."""
    ways: int
    """Classes of a task."""
    queries: int
    """Query bags of a class."""
    accuracy: NDArray[np.float64]
    """``(S, M, E)`` share of a task's queries that are judged right; of equal logits the first counts."""
    log_loss: NDArray[np.float64]
    """``(S, M, E)`` mean over a task's queries of -ln of their class's probability; see `WORST_LOSS`."""
    diverged: NDArray[np.int64]
    """``(S, M)`` tasks with a logit that is not finite."""
    patient_ids: tuple[str, ...]
    """Of the pool."""
    asked: NDArray[np.int64]
    """``(S, P)`` how often a bag of each patient was a query, over all tasks."""
    right: NDArray[np.int64]
    """``(S, M, P)`` how often it was judged right."""

    @property
    def episodes(self) -> int:
        """E."""
        return int(self.accuracy.shape[2])


def evaluate_methods(
    pool: Pool,
    methods: Sequence[Method],
    settings: FewshotSettings,
    *,
    device: torch.device | None = None,
    report: Progress | None = None,
) -> FewshotFigures:
    """Judge every method on the same tasks: those that `EpisodeSampler.draw(seed, 0 ... E - 1)` draws.

    Parameters
    ----------
    pool
        What tasks are drawn from.
    methods
        With different names, and their tensors on `device`; see `mil.fewshot.meta.on_device`.
    settings
        Which tasks; of all classes of the pool where `ways` is None.
    device
        Where; by default the CPU.
    report
        Called after each part of the tasks.

    Raises
    ------
    UsageError
        Such tasks cannot be drawn, see `EpisodeSampler`; or no method can learn them.
    ValueError
        Two methods have one name.
    """
    if len({method.name for method in methods}) < len(methods):
        raise ValueError(f"a name occurs twice among {[method.name for method in methods]}")
    shapes = settings.shapes(len(pool.classes))
    samplers = [EpisodeSampler(pool, shape, within_site=settings.within_site) for shape in shapes]
    device = device or torch.device("cpu")
    able, left_out = _able(methods, _Tasks(pool, [samplers[0].draw(settings.seed, 0)], device))
    judged = [_judge_all(able, sampler, settings, device, report) for sampler in samplers]
    accuracy, log_loss, diverged, asked, right = (np.stack(values) for values in zip(*judged, strict=True))
    return FewshotFigures(
        methods=tuple(method.name for method in able),
        left_out=left_out,
        shots=settings.shots,
        ways=shapes[0].ways,
        queries=settings.queries,
        accuracy=accuracy,
        log_loss=log_loss,
        diverged=diverged.sum(axis=2),
        patient_ids=pool.patient_ids,
        asked=asked,
        right=right,
    )


class _Tasks:
    """Some tasks with their bags, on the device."""

    def __init__(self, pool: Pool, episodes: Sequence[Episode], device: torch.device) -> None:
        self.supports: list[Support] = []
        self.queries: list[PackedBags] = []
        for episode in episodes:
            labels = torch.from_numpy(episode.support_labels).to(device)
            self.supports.append(Support(pool.pack(episode.support, device), labels, len(episode.classes)))
            self.queries.append(pool.pack(episode.query, device))
        self.truth = np.stack([episode.query_labels for episode in episodes])  # (e, q)
        self.patients = np.stack([pool.patients[episode.query] for episode in episodes])  # (e, q)

    def judge(self, method: Method) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.bool_]]:
        """``(e, q)`` whether each query is judged right, its log loss, and whether its logits are finite."""
        with torch.no_grad():
            logits = torch.stack([each.float() for each in method.judge(self.supports, self.queries)]).cpu()
        truth = torch.from_numpy(self.truth)
        finite = logits.isfinite().all(dim=2)  # (e, q)
        loss = functional.cross_entropy(logits.double().movedim(2, 1), truth, reduction="none")  # (e, q)
        loss = torch.where(finite, loss, WORST_LOSS).clamp(max=WORST_LOSS)
        right = (logits.argmax(dim=2) == truth) & finite
        return right.numpy(), loss.numpy(), finite.numpy()


def _able(methods: Sequence[Method], first: _Tasks) -> tuple[list[Method], dict[str, str]]:
    """The methods that can learn a first task, and why the others cannot."""
    able, left_out = list[Method](), dict[str, str]()
    for method in methods:
        try:
            first.judge(method)
        except UsageError as error:
            left_out[method.name] = error.reason
        else:
            able.append(method)
    if not able:
        why = next(iter(left_out.values()), "there is none")
        raise UsageError(f"no method can learn such tasks: {why}", action="Ask for other tasks")
    return able, left_out


def _parts(sampler: EpisodeSampler, settings: FewshotSettings, device: torch.device) -> Iterator[_Tasks]:
    shape = sampler.shape
    most = shape.ways * (shape.shots + shape.queries) * int(sampler.pool.sizes.max())  # rows of a task
    each = max(1, min(_TASKS_AT_ONCE, _ROWS_AT_ONCE // most))
    for first in range(0, settings.episodes, each):
        numbers = range(first, min(first + each, settings.episodes))
        yield _Tasks(sampler.pool, [sampler.draw(settings.seed, number) for number in numbers], device)


def _judge_all(
    methods: Sequence[Method],
    sampler: EpisodeSampler,
    settings: FewshotSettings,
    device: torch.device,
    report: Progress | None,
) -> tuple[NDArray[Any], ...]:
    """``(M, E)`` accuracies, log losses and whether it diverged; ``(P,)`` asked and ``(M, P)`` right."""
    accuracy, log_loss, diverged = list[Any](), list[Any](), list[Any]()
    patients = len(sampler.pool.patient_ids)
    asked, right = np.zeros(patients, np.int64), np.zeros((len(methods), patients), np.int64)
    done = 0
    for tasks in _parts(sampler, settings, device):
        judged = [tasks.judge(method) for method in methods]
        rights, losses, finite = (np.stack(values) for values in zip(*judged, strict=True))  # (M, e, q)
        accuracy.append(rights.mean(axis=2))
        log_loss.append(losses.mean(axis=2))
        diverged.append(~finite.all(axis=2))
        asked += np.bincount(tasks.patients.ravel(), minlength=patients)
        right += np.stack([np.bincount(tasks.patients[found], minlength=patients) for found in rights])
        done += len(tasks.supports)
        if report:
            before = settings.shots.index(sampler.shape.shots) * settings.episodes
            report(before + done, len(settings.shots) * settings.episodes)
    joined = (np.concatenate(values, axis=1) for values in (accuracy, log_loss, diverged))
    return *joined, asked, right
