"""Laws of the pool: what it packs is what its bags would give, and a part of it is itself a pool."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mil.bags import Bag, pack
from mil.fewshot.pool import UNKNOWN_SITE, Pool, numbered, pool_of
from wsi.errors import UsageError

CLASSES = ("a", "b", "c")
PATIENTS = ("q", "p", "p", "r", "q", "p", "q")
LABELS = (2, 0, 1, 2, 2, 0, 1)
SITES = ("Oslo", None, None, "Rome", "Oslo", None, "Oslo")


def bags(sizes: tuple[int, ...] = (3, 1, 4, 1, 5, 9, 2), *, dtype: type = np.float16) -> list[Bag]:
    rng = np.random.default_rng(0)
    return [
        Bag(
            f"s{number}",
            rng.normal(size=(size, 5)).astype(dtype),
            rng.integers(0, 9, (size, 2)).astype(np.int32) * 64,
            LABELS[number],
            PATIENTS[number],
        )
        for number, size in enumerate(sizes)
    ]


def numbers(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


@pytest.fixture
def pool() -> Pool:
    return pool_of(bags(), classes=CLASSES, sites=SITES)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("sizes", [(3, 1, 4, 1, 5, 9, 2), (1,) * 7])
@pytest.mark.parametrize("order", [(0,), (6, 5, 4, 3, 2, 1, 0), (5, 0, 5), (3, 1)])
def test_it_packs_what_its_bags_would_give(
    dtype: type, sizes: tuple[int, ...], order: tuple[int, ...]
) -> None:
    every = bags(sizes, dtype=dtype)
    pool = pool_of(every, classes=CLASSES)
    ours, theirs = pool.pack(numbers(*order)), pack([every[number] for number in order])
    for name in ("features", "bag_of_row", "places"):
        mine, expected = getattr(ours, name), getattr(theirs, name)
        assert mine.dtype == expected.dtype
        assert torch.equal(mine, expected)
    assert ours.sizes == theirs.sizes
    assert pool.of_tiles == (max(sizes) == 1)
    assert (len(pool), pool.dim) == (7, 5)


def test_packing_leaves_the_pool_alone() -> None:
    pool = pool_of(bags(dtype=np.float32), classes=CLASSES)
    before = pool.features.copy()
    pool.pack(numbers(0, 1)).features.zero_()
    assert (pool.features == before).all()


def test_no_bags_and_bags_that_are_not_there_are_refused(pool: Pool) -> None:
    with pytest.raises(UsageError, match="no bags"):
        pool.pack(numbers())
    for wrong in ((7,), (-1, 0)):
        with pytest.raises(IndexError, match="of 7"):
            pool.pack(numbers(*wrong))


def test_names_and_numbers_fit(pool: Pool) -> None:
    assert pool.patient_ids == ("q", "p", "r")
    assert tuple(pool.patient_ids[number] for number in pool.patients) == PATIENTS
    assert tuple(pool.site_ids[number] or None for number in pool.sites) == SITES
    unknown = pool_of(bags(), classes=CLASSES)
    assert unknown.site_ids == (UNKNOWN_SITE,)
    assert not unknown.sites.any()
    alone = pool_of([replace(bag, patient=None) for bag in bags()], classes=CLASSES)
    assert alone.patient_ids == alone.slide_ids == tuple(f"s{number}" for number in range(7))
    found, names = numbered(["x", "y", "x"])
    assert (found.tolist(), names) == ([0, 1, 0], ("x", "y"))


def test_a_part_keeps_names_and_order_of_what_is_left(pool: Pool) -> None:
    part = pool.only(classes=("c", "b"), patients={"q", "r"})
    assert (part.classes, part.patient_ids, part.site_ids) == (("b", "c"), ("q", "r"), ("Oslo", "Rome"))
    assert part.slide_ids == ("s0", "s3", "s4", "s6")
    kept = numbers(0, 3, 4, 6)
    for number, bag in enumerate(kept.tolist()):
        assert part.classes[part.labels[number]] == CLASSES[LABELS[bag]]
        assert part.patient_ids[part.patients[number]] == PATIENTS[bag]
        assert part.site_ids[part.sites[number]] == SITES[bag]
        assert part.slide_ids[part.slides[number]] == f"s{bag}"
    assert torch.equal(part.pack(numbers(0, 1, 2, 3)).features, pool.pack(kept).features)
    assert torch.equal(part.pack(numbers(2)).places, pool.pack(numbers(4)).places)
    whole = pool.only()
    assert (whole.features == pool.features).all()
    assert whole.slide_ids == pool.slide_ids


def test_asking_for_what_is_not_there_names_it(pool: Pool) -> None:
    with pytest.raises(UsageError, match=r"class 'd'\. There are 'a', 'b', 'c'"):
        pool.only(classes=("a", "d"))
    with pytest.raises(UsageError, match="patient 'x'"):
        pool.only(patients=("x",))
    with pytest.raises(UsageError, match="no bag"):
        pool.only(classes=("a",), patients=("r",))
    with pytest.raises(UsageError, match="no bag"):
        pool.only(classes=())


def test_a_slide_of_two_patients_or_two_sites_is_refused(pool: Pool) -> None:
    slides = np.where(pool.slides == 3, 0, pool.slides)
    with pytest.raises(UsageError, match="slide 's0' is of two patients, 'q' and 'r'"):
        replace(pool, slides=slides)
    with pytest.raises(UsageError, match="slide 's0' is of two sites, 'Oslo' and 'Rome'"):
        replace(pool, slides=slides, patients=np.zeros(7, np.int64))


@pytest.mark.parametrize(
    "change",
    [
        {"labels": numbers(0, 1, 2, 3, 0, 0, 0)},
        {"labels": numbers(0, 1, 2, -1, 0, 0, 0)},
        {"patients": numbers(0, 0)},
        {"sizes": numbers(3, 1, 4, 1, 5, 9, 3)},
        {"sizes": numbers(0, 4, 4, 1, 5, 9, 2)},
        {"classes": ("a", "b", "a")},
        {"features": np.zeros((25, 5))},
        {"features": np.zeros(25, np.float32)},
        {"places": np.zeros((25, 3), np.int64)},
    ],
)
def test_arrays_that_do_not_fit_are_refused(pool: Pool, change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"bags|features|twice"):
        replace(pool, **change)  # type: ignore[arg-type]


def test_bags_that_are_no_pool_are_refused() -> None:
    with pytest.raises(UsageError, match="no labelled bags"):
        pool_of([], classes=CLASSES)
    with pytest.raises(UsageError, match="'s0' has no label"):
        pool_of([replace(bags()[0], label=None)], classes=CLASSES)
    first, second = bags()[:2]
    with pytest.raises(UsageError, match="'s0' and 's1' have features of length 5 and 4"):
        pool_of([first, replace(second, features=second.features[:, :4])], classes=CLASSES)
