"""Tasks: a few support bags of each class to learn from, query bags to be asked about, no patient in both.

A patient may have bags of several classes, at tile level of all. So whole patients are dealt to the two
sides first, at random, until each class has enough on both; then bags are drawn. Whether patients can be
dealt so is a packing problem: a random walk solves all but tight cases in a few steps (choose a class that
lacks bags on a side, move one of its patients there), and a search with a limit solves the tight ones, or
shows that there is nothing to find.

::

    W  ways: classes of a task        B  bags of the pool        C  classes of the pool        P  patients
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mil.fewshot.pool import UNKNOWN_SITE, Pool
from wsi.errors import UsageError

_WALK_STEPS = 64
_SEARCH_STEPS = 5_000
_TRIES = 20  # sets of classes, where the patients of some sets cannot be dealt
_Numbers = NDArray[np.int64]
_Sides = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a task is.

    Raises
    ------
    UsageError
        One way only, or no shot, or no query.
    """

    ways: int
    """Classes."""
    shots: int
    """Support bags of each class."""
    queries: int
    """Query bags of each class."""

    def __post_init__(self) -> None:
        if self.ways < 2 or self.shots < 1 or self.queries < 1:
            raise UsageError(
                f"a task of {self.ways} ways, {self.shots} shots and {self.queries} queries is none",
                action="Give at least two ways, one shot and one query",
            )

    def __str__(self) -> str:
        return f"{self.ways}-way {self.shots}-shot {self.queries}-query"


@dataclass(frozen=True, eq=False, slots=True)
class Episode:
    """One task."""

    classes: _Numbers
    """``(W,)`` the pool's number of each of the task's classes."""
    support: _Numbers
    """``(W * shots,)`` bags of the pool, class after class."""
    query: _Numbers
    """``(W * queries,)`` bags of the pool, class after class."""
    support_labels: _Numbers
    """``(W * shots,)``, 0 to W - 1: places in `classes`."""
    query_labels: _Numbers
    """``(W * queries,)`` likewise."""


class EpisodeSampler:
    """Draws tasks from a pool.

    A class's bags are spread over its patients on their side: each gives as many as the next, as far as it
    has them, so that no large slide fills a class. Which bags of a patient they are is chance, and none is
    drawn twice.

    Parameters
    ----------
    pool
        What is drawn from.
    shape
        Of every task.
    within_site
        Support and query of a task come from one site, drawn first among the sites that have enough; else
        sites are not looked at. Bags of unknown site are then left out, if any site is known.

    Raises
    ------
    UsageError
        No such task can be drawn: too few classes; a class of one patient, or with too few bags, or with
        patients that cannot be dealt to two sides; at no site. Classes are named, with what they have.
    """

    def __init__(self, pool: Pool, shape: Shape, *, within_site: bool = False) -> None:
        self.pool, self.shape, self.within_site = pool, shape, within_site
        count = len(pool.classes)
        if count < shape.ways:
            raise UsageError(
                f"there are {count} classes ({_list(pool.classes)}), too few for {shape.ways} ways",
                action="Ask for fewer ways, or label bags of more classes",
            )
        everything = _Drawer(pool, shape, np.arange(len(pool)))
        faults = list(everything.faults().values())
        if faults:
            raise UsageError(
                "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else ""),
                action="Ask for fewer shots or queries, label more, or leave these classes out",
            )
        self._drawers = self._of_sites() if within_site else (everything,)
        self.draw(0, 0)

    def draw(self, seed: int, number: int) -> Episode:
        """Task of a number, 0 or more; the same whatever was drawn before.

        Parameters
        ----------
        seed, number
            0 or more.

        Raises
        ------
        UsageError
            Of twenty sets of classes none has patients who can be dealt to two sides. Each class by itself
            has, and sets that have are drawn if they are not very rare.
        """
        rng = np.random.default_rng([seed, number])
        for _ in range(_TRIES):
            drawer = self._drawers[rng.integers(len(self._drawers))]
            classes = rng.permutation(drawer.classes)[: self.shape.ways]
            sides = drawer.deal(classes, rng)
            if sides is not None:
                break
        else:
            raise self._cannot_deal(classes)
        support, query = (
            np.concatenate([drawer.pick(one, side, count, rng) for one in classes.tolist()])
            for side, count in ((sides, self.shape.shots), (~sides, self.shape.queries))
        )
        labels = np.arange(self.shape.ways)
        return Episode(
            classes, support, query, labels.repeat(self.shape.shots), labels.repeat(self.shape.queries)
        )

    def _of_sites(self) -> tuple[_Drawer, ...]:
        """What each site has to draw from, where that is enough for a task."""
        pool, ways = self.pool, self.shape.ways
        known = [number for number, name in enumerate(pool.site_ids) if name != UNKNOWN_SITE]
        if not known:
            raise UsageError(
                "tasks are to be of one site each, and no bag's site is known",
                action="Add a column 'site' to the table of labels, or draw across sites",
            )
        drawers = [_Drawer(pool, self.shape, np.flatnonzero(pool.sites == number)) for number in known]
        found = tuple(drawer for drawer in drawers if len(drawer.classes) >= ways)
        if not found:
            each = [
                f"{pool.site_ids[number]!r} has {len(drawer.classes)}"
                for number, drawer in zip(known, drawers, strict=True)
            ]
            more = f" and {len(each) - 5} more sites likewise" if each[5:] else ""
            raise UsageError(
                f"no site has the {ways} classes, with bags and patients enough, of a {self.shape} task: "
                f"{', '.join(each[:5])}{more}",
                action="Ask for less, or draw across sites",
            )
        never = set(range(len(pool.classes))).difference(*(drawer.classes.tolist() for drawer in found))
        if never:
            names = _list([pool.classes[one] for one in sorted(never)])
            raise UsageError(
                f"no site that tasks can be of has bags and patients enough of {names}, for {self.shape}",
                action="Leave these classes out, ask for less, or draw across sites",
            )
        return found

    def _cannot_deal(self, classes: _Numbers) -> UsageError:
        names = _list([self.pool.classes[one] for one in sorted(classes.tolist())])
        others = "" if len(self.pool.classes) == len(classes) else ", nor those of other sets of classes"
        return UsageError(
            f"the patients of classes {names} cannot be dealt to two sides so that each class has "
            f"{self.shape.shots} shots on the one and {self.shape.queries} queries on the other{others}",
            action="Ask for fewer shots or queries, or label bags of more patients",
        )


class _Drawer:
    """What the whole pool, or one site, has to draw from: the bags of each class, patient by patient.

    Patients have numbers of their own here, without those who have no bag.
    """

    def __init__(self, pool: Pool, shape: Shape, bags: _Numbers) -> None:
        self._pool, self._shape = pool, shape
        bags = bags[np.lexsort((pool.patients[bags], pool.labels[bags]))]
        self._patient_ids, patients = np.unique(pool.patients[bags], return_inverse=True)
        pairs = pool.labels[bags] * len(self._patient_ids) + patients.reshape(-1)  # ascending
        found, starts, sizes = np.unique(pairs, return_index=True, return_counts=True)
        label, patient = np.divmod(found, len(self._patient_ids))
        bounds = np.searchsorted(label, np.arange(len(pool.classes) + 1)).tolist()
        self._bags = bags
        self._groups = [
            (patient[start:stop], starts[start:stop], sizes[start:stop]) for start, stop in pairwise(bounds)
        ]
        # More bags than this on a side are as good as this many.
        capped = np.minimum(sizes, max(shape.shots, shape.queries))
        self._counts = np.zeros((len(pool.classes), len(self._patient_ids)), np.int64)
        self._counts[label, patient] = capped
        faulty = self.faults()
        self.classes = np.array([one for one in range(len(pool.classes)) if one not in faulty], np.int64)

    def faults(self) -> dict[int, str]:
        """Why no task can hold a class, for each class of which that is so."""
        return {one: fault for one in range(len(self._groups)) if (fault := self._fault(one))}

    def _fault(self, one: int) -> str:
        patients, _, sizes = self._groups[one]
        shots, queries = self._shape.shots, self._shape.queries
        name, kind = self._pool.classes[one], "tiles" if self._pool.of_tiles else "slides"
        held = f"class {name!r} has {sizes.sum()} {kind} of {len(patients)} patients"
        if len(patients) < 2:
            ids = [self._pool.patient_ids[self._patient_ids[patient]] for patient in patients]
            whose = f"of one patient only, {ids[0]!r}" if ids else "of nobody"
            return f"class {name!r} has {kind} {whose}, and support and query are of different patients"
        if sizes.sum() < shots + queries:
            return f"{held}, fewer than {shots} shots and {queries} queries"
        if not _divides(self._counts[one, patients].tolist(), shots, queries):
            return f"{held} who cannot be dealt to two sides with {shots} shots and {queries} queries"
        return ""

    def deal(self, classes: _Numbers, rng: np.random.Generator) -> _Sides | None:
        """``(P,)`` which patients are for the support, all others for the query; None if no way was found.

        Each of the classes then has enough bags on both sides.
        """
        counts = self._counts[classes]  # (W, P)
        involved = np.flatnonzero(counts.any(axis=0))
        counts = counts[:, involved]
        need = self._shape.shots, self._shape.queries
        dealt = _walk(counts, need, rng)
        if dealt is None:
            dealt = _search(counts, need, rng)
        if dealt is None:
            return None
        sides = np.zeros(len(self._patient_ids), np.bool_)
        sides[involved] = dealt
        return sides

    def pick(self, one: int, side: _Sides, count: int, rng: np.random.Generator) -> _Numbers:
        """``(count,)`` different bags of a class, spread over the patients of one side."""
        patients, starts, sizes = self._groups[one]
        there = rng.permutation(np.flatnonzero(side[patients]))
        if count <= len(there):  # the usual case: one bag of each
            there = there[:count]
            return np.asarray(self._bags[starts[there] + rng.integers(sizes[there])])
        shares = _shares(count, sizes[there].tolist())
        chances, found = rng.random(count).tolist(), list[int]()
        for start, size, share in zip(starts[there].tolist(), sizes[there].tolist(), shares, strict=True):
            chosen = _subset(size, chances[len(found) : len(found) + share])
            found += [start + number for number in chosen]
        return self._bags[found]


def _divides(counts: list[int], shots: int, queries: int) -> bool:
    """Whether numbers can be dealt to two sides that sum to this much at least."""
    if len(counts) >= shots + queries:
        return True
    sums = 1  # bit k: some of the numbers sum to k
    for count in counts:
        sums |= sums << count
    room = sum(counts) - queries - shots
    return room >= 0 and bool(sums >> shots & ((1 << room + 1) - 1))


def _walk(counts: _Numbers, need: tuple[int, int], rng: np.random.Generator) -> _Sides | None:
    """Deal patients at random, and move one at a time to where a class lacks bags; None if that led nowhere.

    Parameters
    ----------
    counts
        ``(W, P)`` bags of each class and patient.
    need
        Bags that each class needs on the support's side and on the query's.
    """
    sides: _Sides = np.asarray(rng.random(counts.shape[1]) < 0.5)  # (P,)
    support, total = counts @ sides, counts.sum(axis=1)  # (W,)
    for _ in range(_WALK_STEPS):
        lacking = np.flatnonzero(np.concatenate([support < need[0], total - support < need[1]]))
        if not len(lacking):
            return sides
        to_query, one = divmod(int(lacking[rng.integers(len(lacking))]), len(counts))
        movable = np.flatnonzero((sides == bool(to_query)) & (counts[one] > 0))
        if not len(movable):
            return None
        moved = movable[rng.integers(len(movable))]
        sides[moved] = not to_query
        support += -counts[:, moved] if to_query else counts[:, moved]
    return None


def _search(counts: _Numbers, need: tuple[int, int], rng: np.random.Generator) -> _Sides | None:
    """As `_walk`, patient by patient and back from dead ends: finds what there is, if the limit allows."""
    chance = rng.permutation(counts.shape[1])
    order = chance[np.argsort(-(counts[:, chance] > 0).sum(axis=0), kind="stable")]  # most classes first
    counts = counts[:, order]
    count = len(order)
    left = np.concatenate([counts[:, ::-1].cumsum(axis=1)[:, ::-1], np.zeros((len(counts), 1), np.int64)], 1)
    lacks = np.empty((count + 1, 2, len(counts)), np.int64)  # of each class on the query's side and support's
    lacks[0] = np.array(need[::-1])[:, None]
    tried = np.zeros(count + 1, np.int64)
    sides: _Sides = np.asarray(rng.random(count) < 0.5)
    depth = 0
    for _ in range(_SEARCH_STEPS):
        lack = lacks[depth]
        if not lack.any():
            found = np.empty(count, np.bool_)
            found[order] = sides
            return found
        if tried[depth] == 2 or (lack.sum(axis=0) > left[:, depth]).any():
            tried[depth] = 0
            depth -= 1
            if depth < 0:
                return None
            continue
        if tried[depth] == 0:
            relief = np.minimum(lack, counts[:, depth]).sum(axis=1)  # (2,)
            sides[depth] = relief[1] > relief[0] or (relief[1] == relief[0] and rng.random() < 0.5)
        else:
            sides[depth] = not sides[depth]
        tried[depth] += 1
        lacks[depth + 1] = lack
        side = int(sides[depth])
        lacks[depth + 1, side] = np.maximum(lack[side] - counts[:, depth], 0)
        depth += 1
    return None


def _shares(count: int, sizes: list[int]) -> list[int]:
    """How many each gives of `sizes` that it has, as evenly as these allow; the first give one more."""
    shares = [0] * len(sizes)
    able = list(range(len(sizes)))
    while count:
        each = max(1, count // len(able))
        for one in able:
            more = min(each, count, sizes[one] - shares[one])
            shares[one] += more
            count -= more
        able = [one for one in able if shares[one] < sizes[one]]
    return shares


def _subset(size: int, chances: list[float]) -> list[int]:
    """As many different numbers below `size` as there are chances (in [0, 1)), every subset equally likely.

    R. W. Floyd's method: J. Bentley, "Programming Pearls: A Sample of Brilliance", Communications of the ACM
    30(9), 1987. For j = size - count ... size - 1: a random number up to j, or j where that was taken.
    """
    taken: dict[int, None] = {}  # a set that keeps the order
    for j, chance in enumerate(chances, size - len(chances)):
        number = int(chance * (j + 1))
        taken[j if number in taken else number] = None
    return list(taken)


def _list(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
