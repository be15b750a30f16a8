"""Laws of folds: each slide is tested on once, no patient is on two sides, classes are spread evenly."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.training.splits import assign_folds, check_folds, fold_parts
from wsi.errors import UsageError


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[str], list[str], int]:
    """Slides of patients, several of a patient, of two to four classes with enough patients for k folds."""
    folds = draw(st.integers(3, 6))
    labels, patients = [], []
    for name in "abcd"[: draw(st.integers(2, 4))]:
        for patient in range(draw(st.integers(folds, 4 * folds))):
            for _ in range(draw(st.integers(1, 4))):
                labels.append(name)
                patients.append(f"{name}{patient}")
    order = draw(st.permutations(range(len(labels))))
    return [labels[i] for i in order], [patients[i] for i in order], folds


@settings(max_examples=30, deadline=None)
@given(cohorts(), st.integers(0, 2**63 - 1))
def test_the_laws_of_folds(cohort: tuple[list[str], list[str], int], seed: int) -> None:
    labels, patients, folds = cohort
    assigned = assign_folds(labels, patients, folds=folds, seed=seed)
    assert set(assigned.tolist()) == set(range(folds))
    tested: Counter[int] = Counter()
    for fold in range(folds):
        parts = fold_parts(assigned, fold)
        tested.update(parts.test)
        sides = [{patients[i] for i in part} for part in (parts.training, parts.validation, parts.test)]
        assert sum(map(len, sides)) == len(set.union(*sides))
        assert sorted(parts.training + parts.validation + parts.test) == list(range(len(labels)))
        assert {labels[i] for i in parts.training} == set(labels)
        assert parts.validation == fold_parts(assigned, (fold + 1) % folds).test
    assert tested == Counter(range(len(labels)))


def test_classes_have_about_equal_shares_of_each_fold() -> None:
    rng = np.random.default_rng(0)
    patients = [f"p{i}" for i in range(200) for _ in range(int(rng.integers(1, 4)))]
    rare = {f"p{i}" for i in range(0, 200, 5)}
    labels = ["rare" if patient in rare else "common" for patient in patients]
    assigned = assign_folds(labels, patients, folds=5, seed=1)
    overall = np.mean([label == "rare" for label in labels])
    for fold in range(5):
        inside = [label == "rare" for label, one in zip(labels, assigned, strict=True) if one == fold]
        assert np.mean(inside) == pytest.approx(overall, abs=0.05)
        assert len(inside) == pytest.approx(len(labels) / 5, rel=0.1)


def test_the_seed_decides_and_nothing_else() -> None:
    labels, patients = ["a", "b"] * 20, [f"p{i}" for i in range(40)]
    first = assign_folds(labels, patients, folds=5, seed=3)
    state = np.random.get_state()[1].tolist()  # noqa: NPY002  # the global one is left alone
    assert assign_folds(labels, patients, folds=5, seed=3).tolist() == first.tolist()
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002
    assert assign_folds(labels, patients, folds=5, seed=4).tolist() != first.tolist()
    golden = [
        3,
        0,
        4,
        4,
        1,
        0,
        4,
        0,
        3,
        1,
        0,
        3,
        2,
        3,
        4,
        2,
        0,
        3,
        1,
        3,
        4,
        1,
        1,
        2,
        2,
        2,
        2,
        1,
        3,
        4,
        1,
        1,
        0,
        2,
        2,
        4,
        0,
        4,
        3,
        0,
    ]
    assert first.tolist() == golden  # the same on every platform


def test_too_few_patients_of_a_class_are_named_with_what_is_possible() -> None:
    labels = ["a"] * 10 + ["b"] * 4
    patients = [str(i) for i in range(14)]
    with pytest.raises(UsageError, match=r"class 'b' has 4 patients .* 5 folds.*Use --folds 4"):
        assign_folds(labels, patients, folds=5, seed=0)
    with pytest.raises(UsageError, match=r"class 'b' has 1 patient .*at least 3 patients.*--folds 0"):
        assign_folds(
            labels,
            ["x" if label == "b" else p for label, p in zip(labels, patients, strict=True)],
            folds=5,
            seed=0,
        )
    assert set(assign_folds(labels, patients, folds=4, seed=0)) == {0, 1, 2, 3}


@pytest.mark.parametrize("folds", [-1, 1, 2])
def test_fewer_than_three_folds_are_refused(folds: int) -> None:
    with pytest.raises(UsageError, match="too few"):
        assign_folds(["a", "b"] * 9, [str(i) for i in range(18)], folds=folds, seed=0)


def test_a_patient_with_two_labels_stays_in_one_fold() -> None:
    labels = ["a", "b"] * 12
    patients = [f"p{i // 2}" for i in range(24)]  # each has a slide of either class
    assigned = assign_folds(labels, patients, folds=4, seed=0)
    assert all(len(set(assigned[2 * i : 2 * i + 2])) == 1 for i in range(12))


def test_folds_that_leave_a_member_without_a_class_are_refused() -> None:
    labels = ["a", "a", "a", "a", "b", "b"]
    with pytest.raises(UsageError, match=r"member 0 of 4 would have no slide of class 'b' .* folds 0 and 1"):
        check_folds(labels, np.array([0, 1, 2, 3, 0, 1]), action="x")
    with pytest.raises(UsageError, match="fold 1 of 3 has no slides"):
        check_folds(labels, np.array([0, 2, 2, 0, 0, 2]), action="x")
