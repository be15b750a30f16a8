"""The table of predictions is read back as it was written, or refused by its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mil.predictions import MemberPredictions, Part, Predictions, predictions_to_csv, read_predictions
from wsi.errors import UsageError


def entry(member: int, part: Part, count: int, seed: int) -> MemberPredictions:
    rng = np.random.default_rng(seed)
    return MemberPredictions(
        member=member,
        part=part,
        slide_ids=tuple(f'slide, "{part.value}" {index}' for index in range(count)),
        patients=tuple(f"patient-{index // 2}" for index in range(count)),
        labels=rng.integers(0, 3, count),
        logits=rng.normal(size=(count, 3)) * 10.0 ** rng.integers(-20, 20, (count, 3)),
    )


def table() -> Predictions:
    parts = [(1, Part.TEST, 4), (0, Part.TEST, 5), (0, Part.VALIDATION, 3), (1, Part.EXTERNAL, 2)]
    return Predictions(("a, b", 'c"d', "é"), tuple(entry(m, p, n, i) for i, (m, p, n) in enumerate(parts)))


def test_a_table_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    path, wanted = tmp_path / "predictions.csv", table()
    path.write_bytes(predictions_to_csv(wanted))
    found = read_predictions(path)
    assert found.classes == wanted.classes
    for ours, theirs in zip(found.members, wanted.members, strict=True):
        assert (ours.member, ours.part) == (theirs.member, theirs.part)
        assert (ours.slide_ids, ours.patients) == (theirs.slide_ids, theirs.patients)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.logits, theirs.logits)


def test_parts_come_by_member() -> None:
    assert [found.member for found in table().of(Part.TEST)] == [0, 1]
    assert table().of(Part.VALIDATION)[0].slide_ids[0] == 'slide, "validation" 0'


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace("member,", "fold,"), "no table of predictions"),
        (lambda text: text.replace("test", "tset", 1), "line 2 is unsound"),
        (lambda text: text.replace("patient-0", "patient,0", 1), "line 2 is unsound"),
        (lambda text: text.rstrip()[:-3] + "x\n", "a number that is none"),
        (lambda text: "", "no table of predictions"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: object, reason: str) -> None:
    path = tmp_path / "predictions.csv"
    assert callable(change)
    path.write_text(change(predictions_to_csv(table()).decode()))
    with pytest.raises(UsageError, match=reason):
        read_predictions(path)
