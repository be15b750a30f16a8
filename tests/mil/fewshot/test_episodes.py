"""Laws of tasks: no patient on both sides, exact counts, no bag twice, and all that there is comes up."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mil.fewshot import episodes
from mil.fewshot.episodes import Episode, EpisodeSampler, Shape
from mil.fewshot.pool import Pool
from wsi.errors import UsageError

Counts = Sequence[Sequence[int]]


def make_pool(counts: Counts, *, seed: int = 0, sites: Sequence[int] | None = None, rows: int = 1) -> Pool:
    """`counts[c][p]` bags of class c and patient p, shuffled; a site for each patient."""
    table = np.array(counts, np.int64)
    pairs = np.repeat(np.arange(table.size), table.ravel())
    np.random.default_rng(seed).shuffle(pairs)
    labels, patients = np.divmod(pairs, table.shape[1])
    of_patient = np.zeros(table.shape[1], np.int64) if sites is None else np.array(sites, np.int64)
    known = sites is not None
    return Pool(
        classes=tuple(f"class {number}" for number in range(len(table))),
        labels=labels,
        patients=patients,
        sites=of_patient[patients],
        slides=patients,
        patient_ids=tuple(f"p{number}" for number in range(table.shape[1])),
        site_ids=tuple(f"site {number}" if known else "" for number in range(int(of_patient.max()) + 1)),
        slide_ids=tuple(f"s{number}" for number in range(table.shape[1])),
        features=np.zeros((rows * len(pairs), 2), np.float16),
        places=np.zeros((rows * len(pairs), 2), np.int64),
        sizes=np.full(len(pairs), rows),
    )


def check(pool: Pool, shape: Shape, episode: Episode) -> None:
    """All that a task promises."""
    assert len(set(episode.classes.tolist())) == len(episode.classes) == shape.ways
    sides = (
        (episode.support, episode.support_labels, shape.shots),
        (episode.query, episode.query_labels, shape.queries),
    )
    for bags, labels, count in sides:
        assert labels.tolist() == [way for way in range(shape.ways) for _ in range(count)]
        assert (pool.labels[bags] == episode.classes[labels]).all()
        for way in range(shape.ways):
            _check_spread(pool, bags[labels == way], _patients(pool, episode, bags is episode.support))
    every = np.concatenate([episode.support, episode.query])
    assert len(np.unique(every)) == len(every)
    assert not set(pool.patients[episode.support]) & set(pool.patients[episode.query])


def _patients(pool: Pool, episode: Episode, support: bool) -> set[int]:
    return set(pool.patients[episode.support if support else episode.query].tolist())


def _check_spread(pool: Pool, bags: NDArray[np.int64], side: set[int]) -> None:
    """Of the patients known to be on this side none could give more while another gives two more than it."""
    given_by = Counter(pool.patients[bags].tolist())
    label = pool.labels[bags[0]]
    for patient in side:
        has = int(((pool.labels == label) & (pool.patients == patient)).sum())
        if given_by[patient] < has:
            assert max(given_by.values()) <= given_by[patient] + 1


def divides(counts: Counts, shape: Shape) -> bool:
    """Whether any way of dealing patients to two sides leaves every class enough: all ways are tried."""
    for sides in itertools.product((False, True), repeat=len(counts[0])):
        support = [sum(n for n, side in zip(row, sides, strict=True) if side) for row in counts]
        if all(
            one >= shape.shots and sum(row) - one >= shape.queries
            for one, row in zip(support, counts, strict=True)
        ):
            return True
    return False


@st.composite
def studies(draw: st.DrawFn) -> tuple[list[list[int]], Shape]:
    classes, patients = draw(st.integers(2, 4)), draw(st.integers(1, 6))
    few = st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 12))
    counts = draw(st.lists(st.lists(few, min_size=patients, max_size=patients), min_size=classes))
    counts = counts[:4]
    if not any(map(any, counts)):
        counts[0][0] = 1
    return counts, Shape(len(counts), draw(st.integers(1, 4)), draw(st.integers(1, 4)))


@settings(deadline=None, max_examples=200)
@given(studies(), st.integers(0, 2**40))
def test_a_task_is_drawn_if_any_exists_and_refused_if_none_does(
    study: tuple[list[list[int]], Shape], seed: int
) -> None:
    counts, shape = study
    pool = make_pool(counts)
    if not divides(counts, shape):
        with pytest.raises(UsageError, match="class"):
            EpisodeSampler(pool, shape)
        return
    sampler = EpisodeSampler(pool, shape)
    for number in range(3):
        check(pool, shape, sampler.draw(seed, number))


@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 2**32),
    st.integers(2, 5),
    st.integers(1, 6),
    st.integers(1, 6),
    st.booleans(),
)
def test_no_patient_is_on_both_sides(seed: int, ways: int, shots: int, queries: int, one_each: bool) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, (ways + 2, 12)) * (rng.random((ways + 2, 12)) < 0.6)
    counts[:, -4:] = 6
    if one_each:  # patients of one class each
        counts = np.kron(np.eye(ways + 2, dtype=np.int64), np.array([6, 6, 3]))
    pool, shape = make_pool(counts.tolist(), seed=seed), Shape(ways, shots, queries)
    sampler = EpisodeSampler(pool, shape)
    for number in range(5):
        check(pool, shape, sampler.draw(seed, number))


@pytest.mark.parametrize(
    "counts",
    [
        [[5, 5]] * 6,  # two patients who have all classes: one is for the support of all
        np.kron(np.eye(8, dtype=np.int64), [5, 5]).tolist(),  # two patients for each class
        [[5, 5, 0, 0], [0, 5, 5, 0], [0, 0, 5, 5], [5, 0, 0, 5]],  # a ring: every second one
        [[9, 1, 1, 1, 1, 1], [7, 2, 1, 1, 1, 0]],  # one patient against all others
    ],
)
def test_tight_studies_are_dealt(counts: Counts) -> None:
    pool, shape = make_pool(counts), Shape(len(counts), 5, 5)
    sampler = EpisodeSampler(pool, shape)
    for number in range(50):
        check(pool, shape, sampler.draw(0, number))


@pytest.mark.parametrize("counts", [[[5, 5, 5, 0, 0], [5, 0, 5, 5, 0], [0, 5, 0, 5, 5]], [[3, 2, 4]] * 3])
def test_the_search_alone_deals_what_the_walk_does(counts: Counts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "_walk", lambda *_: None)
    shape = Shape(len(counts), 4, 3)
    pool = make_pool(counts)
    sampler = EpisodeSampler(pool, shape)
    support = set()
    for number in range(60):
        check(pool, shape, episode := sampler.draw(0, number))
        support.add(frozenset(pool.patients[episode.support].tolist()))
    assert len(support) > 1  # chance has a say


def test_what_no_search_can_deal_ends_and_says_why() -> None:
    counts = np.kron(np.ones((3, 1), np.int64), np.full((1, 40), 1))
    ring = np.eye(15, dtype=np.int64) + np.roll(np.eye(15, dtype=np.int64), 1, axis=1)  # of odd length
    for rows, shape in ((ring, Shape(15, 1, 1)), (counts, Shape(3, 21, 20))):
        with pytest.raises(UsageError, match=r"class.*(cannot be dealt|fewer than)"):
            EpisodeSampler(make_pool(rows.tolist()), shape)


def test_a_task_depends_on_seed_and_number_only() -> None:
    pool, shape = make_pool([[4, 7, 3, 5]] * 5), Shape(3, 2, 3)
    one, other = EpisodeSampler(pool, shape), EpisodeSampler(pool, shape)
    forward = [one.draw(7, number) for number in range(20)]
    backward = [other.draw(7, number) for number in reversed(range(20))][::-1]
    for first, second in zip(forward, backward, strict=True):
        assert all((getattr(first, name) == getattr(second, name)).all() for name in Episode.__slots__)
    assert len({episode.support.tobytes() for episode in forward}) == 20
    assert any((one.draw(8, number).support != forward[number].support).any() for number in range(20))


@settings(deadline=None, max_examples=20)
@given(st.permutations([f"name {number}" for number in range(5)]), st.integers(0, 2**32))
def test_names_of_patients_change_nothing(names: list[str], seed: int) -> None:
    pool, shape = make_pool([[4, 7, 3, 5, 1]] * 3), Shape(2, 2, 3)
    renamed = replace(pool, patient_ids=tuple(names), slide_ids=tuple(names))
    first, second = EpisodeSampler(pool, shape).draw(seed, 3), EpisodeSampler(renamed, shape).draw(seed, 3)
    assert all((getattr(first, name) == getattr(second, name)).all() for name in Episode.__slots__)


def test_classes_patients_and_bags_all_come_up() -> None:
    """Chi-square of 6 classes in 900 tasks of 2: 5 degrees of freedom, 15.1 at one per cent."""
    pool, shape = make_pool([[6, 2, 9, 4, 1]] * 6), Shape(2, 2, 3)
    sampler = EpisodeSampler(pool, shape)
    tasks = [sampler.draw(0, number) for number in range(900)]
    times = np.bincount(np.concatenate([task.classes for task in tasks]), minlength=6)
    assert ((times - 300) ** 2 / 300).sum() * 5 / 4 < 15.1  # without putting back: a smaller variance
    first = np.bincount([task.classes[0] for task in tasks], minlength=6)
    assert ((first - 150) ** 2 / 150).sum() < 15.1
    for side in ("support", "query"):
        assert set(np.concatenate([getattr(task, side) for task in tasks]).tolist()) == set(range(len(pool)))


def test_bags_of_a_patient_are_alike() -> None:
    """Chi-square over 10 bags: 9 degrees of freedom, 21.7 at one per cent; 3 of them are drawn at a time."""
    pool, shape = make_pool([[10, 10]] * 2), Shape(2, 3, 3)
    sampler = EpisodeSampler(pool, shape)
    its = np.flatnonzero((pool.labels == 0) & (pool.patients == 0))
    drawn = [sampler.draw(1, number) for number in range(1000)]
    times = np.bincount(np.concatenate([np.concatenate([one.support, one.query]) for one in drawn]))[its]
    assert times.sum() == 3000
    assert ((times - 300) ** 2 / 300).sum() * 9 / 7 < 21.7


def test_a_large_slide_does_not_fill_a_class() -> None:
    pool, shape = make_pool([[500, 3, 3, 3, 3, 3]] * 2), Shape(2, 3, 3)
    sampler = EpisodeSampler(pool, shape)
    large = np.concatenate([sampler.draw(0, number).support for number in range(200)])
    assert (pool.patients[large] == 0).mean() < 0.25  # a sixth if patients were drawn alike; 97 % of bags


def test_a_task_may_be_of_one_site() -> None:
    site_of_patient = [0, 1, 0, 1, 0, 1, 0]
    counts = [[4, 4, 4, 4, 4, 4, 4], [4, 4, 4, 4, 4, 4, 4], [4, 0, 4, 0, 0, 0, 0], [0, 4, 0, 4, 4, 0, 0]]
    pool, shape = make_pool(counts, sites=site_of_patient), Shape(2, 2, 2)
    sampler = EpisodeSampler(pool, shape, within_site=True)
    seen: Counter[int] = Counter()
    for number in range(200):
        check(pool, shape, episode := sampler.draw(0, number))
        (site,) = set(pool.sites[np.concatenate([episode.support, episode.query])].tolist())
        assert set(episode.classes.tolist()) <= ({0, 1, 2} if site == 0 else {0, 1, 3})
        seen[site] += 1
    assert 60 < seen[0] < 140
    across = EpisodeSampler(pool, shape)
    assert any(len(set(pool.sites[across.draw(0, number).support])) == 2 for number in range(20))


def test_bags_of_unknown_site_are_left_out_of_tasks_of_one_site() -> None:
    pool = make_pool([[4] * 6] * 2, sites=[0, 0, 0, 1, 1, 1])
    pool = replace(pool, site_ids=("", "Oslo"))
    sampler = EpisodeSampler(pool, Shape(2, 2, 2), within_site=True)
    assert all((pool.sites[sampler.draw(0, number).support] == 1).all() for number in range(30))


@pytest.mark.parametrize(
    ("counts", "shape", "reason"),
    [
        ([[5, 5]], Shape(2, 1, 1), r"1 classes \('class 0'\), too few for 2 ways"),
        ([[5, 5], [5, 0]], Shape(2, 1, 1), r"class 'class 1' has tiles of one patient only, 'p0'"),
        ([[5, 5], [0, 0]], Shape(2, 1, 1), r"class 'class 1' has tiles of nobody"),
        (
            [[5, 5], [3, 4]],
            Shape(2, 5, 5),
            r"'class 1' has 7 tiles of 2 patients, fewer than 5 shots and 5 queries",
        ),
        ([[5, 5], [100, 1]], Shape(2, 5, 5), r"'class 1' has 101 tiles of 2 patients who cannot be dealt"),
        ([[9, 1], [1, 9]], Shape(2, 5, 1), r"patients of classes 'class 0', 'class 1' cannot be dealt"),
        ([[1, 0]] * 7 + [[1, 1]], Shape(2, 1, 1), r"'class 4' .*; and 2 more\. Ask for fewer"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(counts: Counts, shape: Shape, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        EpisodeSampler(make_pool(counts), shape)
    assert caught.value.action
    with pytest.raises(UsageError):
        EpisodeSampler(make_pool(counts), shape, within_site=True)


def test_slides_are_called_slides() -> None:
    with pytest.raises(UsageError, match="has 2 slides of 2 patients, fewer than 5 shots"):
        EpisodeSampler(make_pool([[1, 1]] * 2, rows=3), Shape(2, 5, 1))


def test_sites_that_cannot_hold_a_task_are_named() -> None:
    shape = Shape(2, 2, 2)
    with pytest.raises(UsageError, match=r"no bag's site is known\. Add a column 'site'"):
        EpisodeSampler(make_pool([[4, 4]] * 2), shape, within_site=True)
    apart = make_pool([[4, 4, 0, 0], [0, 0, 4, 4]], sites=[0, 0, 1, 1])
    with pytest.raises(UsageError, match=r"no site has the 2 classes.*'site 0' has 1, 'site 1' has 1"):
        EpisodeSampler(apart, shape, within_site=True)
    check(apart, shape, EpisodeSampler(apart, shape).draw(0, 0))
    never = make_pool([[4, 4, 4, 4], [4, 4, 4, 4], [0, 4, 4, 0]], sites=[0, 0, 1, 1])
    with pytest.raises(UsageError, match=r"no site .* enough of 'class 2', for 2-way 2-shot 2-query"):
        EpisodeSampler(never, shape, within_site=True)


@pytest.mark.parametrize("wrong", [(1, 1, 1), (2, 0, 1), (2, 1, 0), (-1, 1, 1)])
def test_a_shape_without_ways_shots_or_queries_is_none(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="is none"):
        Shape(*wrong)
