"""Laws of the report over a cohort: what is drawn, what is compared, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from mil.bags import Bag, PackedBags
from mil.ensemble import Ensemble
from mil.evaluation import localisation_auc
from mil.explain import METHODS, Case, Effort, Sample, explain, explain_bags
from mil.explain.cohort import USUAL, affordable
from mil.explain.estimate import estimate_mean
from mil.explain.removal import removal_curves
from mil.heads import Head, HeadOutput, build_head
from wsi.errors import UsageError

MakeBag = Callable[..., Bag]
DIM = 6
NAMES = ("normal", "tumour")
QUICK = Effort(steps=4, clusters=4, permutation_pairs=1)


class Sum(Head):
    """The logit of class 1 is the sum of the tiles' first features; attention looks at the second."""

    name = "sum"

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.classes, self.settings = DIM, 2, {}
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, bags: PackedBags) -> HeadOutput:
        added = self.scale * bags.features[:, :1] * torch.tensor([[0.0, 1.0]])  # (N, 2)
        logits = torch.stack([rows.sum(dim=0) for rows in added.split(bags.sizes)])
        return HeadOutput(logits, bags.features[:, 1:2], added)


class Silent(Sum):
    """The same without saying what each tile adds."""

    name = "silent"

    def forward(self, bags: PackedBags) -> HeadOutput:
        return replace(super().forward(bags), contributions=None)


def lesions(count: int, *, tiles: int = 12) -> list[Case]:
    """Slides of two patients in three, each with three lesion tiles."""
    cases = []
    for index in range(count):
        rng = np.random.default_rng(index)
        features = rng.normal(size=(tiles, DIM)).astype(np.float32) / 5
        share = np.zeros(tiles)
        share[rng.choice(tiles, 3, replace=False)] = 1
        features[share == 1, 0] += 1.5
        bag = Bag(f"s{index}", features, np.zeros((tiles, 2), np.int32), label=1, patient=f"p{index // 2}")
        cases.append(Case(Sum(), bag, class_index=1, lesion_share=share))
    return cases


def test_the_report_says_who_knows_who_does_not_and_where_the_lesion_is() -> None:
    seen: list[tuple[int, int]] = []
    report = explain_bags(lesions(12), classes=NAMES, effort=QUICK, report=lambda *done: seen.append(done))
    assert seen == [(done, 12) for done in range(13)]
    assert {result.name for result in report.methods} == set(USUAL)
    assert [r.gain.mean for r in report.methods] == sorted(
        (r.gain.mean for r in report.methods), reverse=True
    )
    for name in ("single", "contribution", "gradient_times_input", "integrated_gradients"):
        result = report.result(name)
        assert result.over_random.positive
        assert result.over_attention.positive
        assert result.localisation is not None
        assert result.localisation.auc.mean > 0.99
        assert result.localisation.precision.mean > 0.99
        assert result.localisation.prevalence == pytest.approx(0.25)
    random = report.result("random")
    assert random.over_random.mean == 0
    assert abs(random.gain.mean) < 0.1 < report.best.gain.mean
    assert report.best.name in report.verdict
    assert "above attention's" in report.verdict
    assert "finds the lesion best" in report.verdict


def test_a_gain_is_the_mean_over_slides_and_its_interval_has_it_inside() -> None:
    cases = lesions(8)
    report = explain_bags(cases, classes=NAMES, methods=["single"], effort=QUICK)
    gains = []
    for case in cases:
        assert isinstance(case.bag, Bag)
        scores = explain(case.model, case.bag, 1, method="single")
        gains.append(removal_curves(case.model, case.bag, scores, 1).gain)
    found = report.result("single")
    assert found.gain.mean == pytest.approx(np.mean(gains))
    assert found.gain.slides == 8
    assert found.gain_by_class == {"tumour": pytest.approx(np.mean(gains))}
    assert found.gain.low is not None
    assert found.gain.high is not None
    assert found.gain.low < found.gain.mean < found.gain.high
    assert {result.name for result in report.methods} == {"single", "attention", "random"}
    over = found.gain.mean - report.result("attention").gain.mean
    assert found.over_attention.mean == pytest.approx(over)


def test_localisation_is_that_of_scikit_learn_within_each_slide() -> None:
    cases = lesions(4, tiles=30)
    for case in cases:
        assert case.lesion_share is not None
        case.lesion_share[case.lesion_share == 0] = np.tile([0, 0.3, 0], 9)  # in between: left out
    found = explain_bags(cases, classes=NAMES, methods=["attention"]).result("attention").localisation
    assert found is not None
    auc, precision, prevalence = [], [], []
    for case in cases:
        assert isinstance(case.bag, Bag)
        share = np.asarray(case.lesion_share)
        scores = explain(case.model, case.bag, 1, method="attention")
        auc.append(localisation_auc(scores, share))
        sure = share != 0.3
        precision.append(average_precision_score(share[sure] == 1, scores[sure]))
        prevalence.append(np.mean(share[sure] == 1))
    assert found.auc.mean == pytest.approx(np.mean(auc))
    assert found.precision.mean == pytest.approx(np.mean(precision))
    assert found.prevalence == pytest.approx(np.mean(prevalence))


def test_the_same_report_twice_and_strict_json() -> None:
    first, second = (
        json.dumps(explain_bags(lesions(3), classes=NAMES, effort=QUICK).as_json(), allow_nan=False)
        for _ in range(2)
    )
    assert first == second
    content = json.loads(first)
    assert content["offered"] == 3
    assert set(content["methods"]) == set(USUAL)
    assert content["best"] != "random"


def test_a_head_that_knows_nothing_is_believed_in_nothing(make_bag: MakeBag) -> None:
    class Deaf(Sum):
        def forward(self, bags: PackedBags) -> HeadOutput:
            output = super().forward(bags)
            return HeadOutput(0 * output.logits, output.attention_logits, 0 * bags.features[:, :2])

    report = explain_bags(
        [Case(Deaf(), make_bag(seed=seed), class_index=1) for seed in range(6)], classes=NAMES, effort=QUICK
    )
    assert all(result.gain.mean == 0 for result in report.methods)
    assert "believe none of them" in report.verdict
    assert all(result.localisation is None for result in report.methods)


def test_one_patient_proves_nothing() -> None:
    cases = lesions(2)
    report = explain_bags(cases, classes=NAMES, effort=QUICK)
    assert report.best.gain.low is None
    assert "believe none of them" in report.verdict
    json.dumps(report.as_json(), allow_nan=False)


@dataclass(frozen=True)
class Source:
    """A slide on disk that notes what is read of it."""

    inner: Bag
    reads: list[NDArray[np.int64] | None]

    slide_id = property(lambda self: self.inner.slide_id)
    label = property(lambda self: self.inner.label)
    patient = property(lambda self: self.inner.patient)
    dim = property(lambda self: self.inner.dim)

    def __len__(self) -> int:
        return len(self.inner)

    def read(self, rows: NDArray[np.int64] | None = None) -> Bag:
        self.reads.append(rows)
        return self.inner.read(rows)


def test_of_a_large_cohort_some_slides_and_of_a_large_slide_some_tiles() -> None:
    cases = lesions(10, tiles=40)
    sources = [Source(case.bag, []) for case in cases if isinstance(case.bag, Bag)]
    cases = [Case(case.model, source, class_index=1) for case, source in zip(cases, sources, strict=True)]
    quick = {"classes": NAMES, "methods": ["single"]}
    sample = Sample(slides=4, tiles=15)
    report = explain_bags(cases, **quick, sample=sample)
    assert len(report.slide_ids) == report.cut == 4
    assert report.scope == "4 of 10 slides explained, 4 of them by 15 tiles drawn at random."
    for source in sources:
        (rows,) = source.reads or [None]
        if source.slide_id in report.slide_ids:
            assert rows is not None
            assert len(np.unique(rows)) == 15
            assert (np.diff(rows) > 0).all()
        else:
            assert not source.reads
    again = explain_bags(cases, **quick, sample=sample)
    assert again.slide_ids == report.slide_ids
    other = explain_bags(cases, **quick, sample=replace(sample, seed=1))
    assert other.slide_ids != report.slide_ids
    whole = explain_bags(cases, **quick)
    assert whole.cut == 0
    assert whole.scope == "10 of 10 slides explained."


def test_of_a_head_that_costs_more_fewer_slides_are_drawn_and_no_clock_decides_how_many() -> None:
    rng = np.random.default_rng(0)
    bags = [
        Bag(f"s{i}", np.zeros((900, 64), np.float32), rng.integers(0, 99, (900, 2), np.int32))
        for i in range(40)
    ]
    drawn = {}
    for name in ("gated_abmil", "transmil"):
        head = build_head(name, dim=64, classes=2)
        cases = [Case(head, bag, class_index=1) for bag in bags]
        drawn[name] = affordable(cases, Sample()).slides
        assert affordable(cases, Sample(slides=5)).slides == 5
        assert affordable(cases, Sample(operations=1)).slides == Sample().fewest
        five = Ensemble((head,) * 5, (1.0,) * 5)
        assert affordable([Case(five, bag, class_index=1) for bag in bags], Sample()).slides < 30
    assert drawn == {"gated_abmil": 30, "transmil": 8}


def test_a_rare_class_is_drawn_as_often_as_the_others() -> None:
    cases = [
        replace(case, class_index=int(i in (3, 17)), lesion_share=None) for i, case in enumerate(lesions(30))
    ]
    report = explain_bags(cases, classes=NAMES, methods=["single"], sample=Sample(slides=6))
    assert {"s3", "s17"} <= set(report.slide_ids)
    assert set(report.result("single").gain_by_class) == {"normal", "tumour"}


def test_without_a_class_the_models_own_word_is_explained() -> None:
    cases = [replace(case, class_index=None, lesion_share=None) for case in lesions(4)]
    report = explain_bags(cases, classes=NAMES, effort=QUICK)
    assert set(report.result("single").gain_by_class) == {"tumour"}  # every slide has a lesion


def test_a_method_that_a_head_cannot_give_is_left_out_or_refused_when_asked_for() -> None:
    cases = [replace(case, model=Silent()) for case in lesions(3)]
    report = explain_bags(cases, classes=NAMES, effort=QUICK)
    assert {result.name for result in report.methods} == set(USUAL) - {"contribution"}
    with pytest.raises(UsageError, match="'silent' is no sum over tiles"):
        explain_bags(cases, classes=NAMES, methods=["contribution"])
    with pytest.raises(KeyError):
        report.result("contribution")


def test_slides_of_one_tile_are_left_out_by_name(make_bag: MakeBag) -> None:
    cases = [Case(Sum(), make_bag(count, seed=count), class_index=1) for count in (1, 5, 6)]
    report = explain_bags(cases, classes=NAMES, effort=QUICK)
    assert report.one_tile == ("s1",)
    assert report.slide_ids == ("s5", "s6")
    assert "1 drawn with a single tile left out" in report.scope
    with pytest.raises(UsageError, match="no slide has two tiles"):
        explain_bags(cases[:1], classes=NAMES)


def test_absurd_questions_are_refused(make_bag: MakeBag) -> None:
    with pytest.raises(UsageError, match="no slides to explain"):
        explain_bags([], classes=NAMES)
    with pytest.raises(UsageError, match="no explanation 'lime'"):
        explain_bags(lesions(2), classes=NAMES, methods=["lime"])
    with pytest.raises(ValueError, match="give class_index too"):
        Case(Sum(), make_bag(5), lesion_share=np.zeros(5))
    with pytest.raises(ValueError, match="5 tiles and lesion shares"):
        Case(Sum(), make_bag(5), class_index=1, lesion_share=np.zeros(4))
    for change in ({"slides": 0}, {"tiles": 1}, {"resamples": 0}, {"seed": -1}):
        with pytest.raises(UsageError, match="is needed"):
            Sample(**change)


def test_every_method_can_be_asked_for(make_bag: MakeBag) -> None:
    report = explain_bags(lesions(2), classes=NAMES, methods=sorted(METHODS), effort=QUICK)
    assert {result.name for result in report.methods} == set(METHODS)


# The interval -----------------------------------------------------------------------------------------------


def test_the_interval_of_many_independent_slides_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(0.3, 2, 400)
    found = estimate_mean(values, [str(i) for i in range(400)], resamples=4000, seed=0)
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_more_slides_of_the_same_patients_are_no_more_knowledge() -> None:
    values = np.random.default_rng(0).normal(size=30)
    names = [str(i) for i in range(30)]
    once = estimate_mean(values, names, resamples=500, seed=0)
    thrice = estimate_mean(np.tile(values, 3), names * 3, resamples=500, seed=0)
    assert (once.low, once.high) == pytest.approx((thrice.low, thrice.high))
    taken_apart = estimate_mean(np.tile(values, 3), [str(i) for i in range(90)], resamples=500, seed=0)
    assert taken_apart.low > once.low


def test_a_trained_kind_of_head_goes_through(make_bag: MakeBag) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = build_head("gated_abmil", dim=DIM, classes=2)
    report = explain_bags(
        [Case(head, make_bag(30, seed=seed)) for seed in range(3)], classes=NAMES, effort=QUICK
    )
    assert {result.name for result in report.methods} == set(USUAL)
