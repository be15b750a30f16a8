"""Every method judges the same tasks; and what is made of its answers is what a textbook would say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from mil.bags import Bag, PackedBags
from mil.fewshot.episodes import EpisodeSampler, Shape
from mil.fewshot.evaluating import WORST_LOSS, FewshotFigures, FewshotSettings, evaluate_methods
from mil.fewshot.methods import Logistic, Method, Prototypes, Support
from mil.fewshot.pool import Pool, pool_of
from mil.fewshot.verdicts import Ranking, Verdict, in_words, over_tasks, rank, resampled
from mil.heads import Head
from wsi.errors import UsageError

DIM = 6
SETTINGS = FewshotSettings(shots=(1, 3), ways=3, queries=4, episodes=30, seed=5)


def make_pool(
    *, classes: int = 4, patients: int = 6, each: int = 5, signal: float = 2.0, rows: int = 1
) -> Pool:
    """Every patient has bags of every class; the first features say which class, the last which patient."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, DIM)) * signal
    bags = [
        Bag(
            f"slide-{patient}-{label}-{number}",
            (centres[label] + rng.normal(size=(rows, DIM))).astype(np.float32),
            np.zeros((rows, 2), np.int32),
            label=label,
            patient=f"patient-{patient}",
        )
        for patient in range(patients)
        for label in range(classes)
        for number in range(each)
    ]
    return pool_of(bags, classes=[f"class-{label}" for label in range(classes)])


@dataclass
class Fake:
    """Logits made of the tasks' own numbers, and a note of every task."""

    name: str
    answer: Any
    asked: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def fit(self, support: Support) -> Head:
        raise AssertionError("tasks are judged side by side")

    def judge(self, supports: Sequence[Support], queries: Sequence[PackedBags]) -> list[Tensor]:
        assert not torch.is_grad_enabled()
        for support, query in zip(supports, queries, strict=True):
            self.asked.append((support.bags.features, support.labels, query.features))
        return [self.answer(support, query) for support, query in zip(supports, queries, strict=True)]


def truth_of(classes: int, queries: int) -> Tensor:
    return torch.arange(classes).repeat_interleave(queries)


def always(support: Support, query: PackedBags) -> Tensor:
    return 8 * torch.eye(support.classes)[truth_of(support.classes, len(query) // support.classes)]


def never(support: Support, query: PackedBags) -> Tensor:
    return -always(support, query)


def nobody_knows(support: Support, query: PackedBags) -> Tensor:
    seed = int(query.features.abs().sum() * 1000)
    return torch.randn(len(query), support.classes, generator=torch.Generator().manual_seed(seed))


def of_features(support: Support, query: PackedBags) -> Tensor:
    return query.features[:, : support.classes]


def broken(support: Support, query: PackedBags) -> Tensor:
    logits = always(support, query)
    logits[0, 1] = torch.nan
    return logits


def refuses(support: Support, query: PackedBags) -> Tensor:
    raise UsageError(f"not for {support.classes} classes")


def known(pool: Pool) -> list[Method]:
    mean = torch.from_numpy(pool.mean())
    return [Prototypes(mean), Prototypes(100 * torch.ones(DIM), name="logistic")]


# Judging -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
def test_every_method_judges_the_tasks_that_the_sampler_draws(rows: int) -> None:
    pool = make_pool(rows=rows)
    spies = Fake("a", always), Fake("b", never)
    done: list[tuple[int, int]] = []
    evaluate_methods(pool, spies, SETTINGS, report=lambda *now: done.append(now))
    first, second = (spy.asked[1:] for spy in spies)  # a first task tells who is able
    assert len(first) == 60
    assert done[-1] == (60, 60)
    for tasks in zip(first, second, strict=True):
        assert all(torch.equal(*values) for values in zip(*tasks, strict=True))
    sampler = EpisodeSampler(pool, Shape(ways=3, shots=3, queries=4))
    for number in (0, 24, 29):
        episode = sampler.draw(5, number)
        support, labels, query = first[30 + number]
        assert torch.equal(support, pool.pack(episode.support).features)
        assert torch.equal(query, pool.pack(episode.query).features)
        assert labels.tolist() == episode.support_labels.tolist()


def test_who_is_always_right_has_one_and_who_never_is_has_nothing() -> None:
    figures = evaluate_methods(make_pool(), [Fake("a", always), Fake("b", never)], SETTINGS)
    assert (figures.accuracy[:, 0] == 1).all()
    assert (figures.accuracy[:, 1] == 0).all()
    sure = float(torch.nn.functional.cross_entropy(torch.tensor([[8.0, 0, 0]]), torch.tensor([0])))
    wrong = float(torch.nn.functional.cross_entropy(torch.tensor([[-8.0, 0, 0]]), torch.tensor([0])))
    np.testing.assert_allclose(figures.log_loss[:, 0], sure, rtol=1e-4)
    np.testing.assert_allclose(figures.log_loss[:, 1], wrong, rtol=1e-5)
    assert (figures.right[:, 0] == figures.asked).all()
    assert not figures.right[:, 1].any()


def test_who_guesses_is_right_by_chance() -> None:
    settings = FewshotSettings(shots=(1,), ways=3, queries=4, episodes=300)
    figures = evaluate_methods(make_pool(), [Fake("a", nobody_knows)], settings)
    assert abs(figures.accuracy.mean() - 1 / 3) < 4 * (2 / 9 / (300 * 12)) ** 0.5


def test_the_order_of_methods_does_not_matter() -> None:
    pool = make_pool()
    methods = [*known(pool), Fake("maml", nobody_knows)]
    one, other = (evaluate_methods(pool, order, SETTINGS) for order in (methods, methods[::-1]))
    for name in ("accuracy", "log_loss", "diverged", "right"):
        assert (getattr(one, name) == getattr(other, name)[:, ::-1]).all()
    for ours, theirs in zip(rank(one), rank(other), strict=True):
        assert sorted(map(repr, ours.standings)) == sorted(map(repr, theirs.standings))
        assert (ours.winner, ours.best_baseline) == (theirs.winner, theirs.best_baseline)


def test_answers_about_patients_are_those_of_the_tasks() -> None:
    pool = make_pool()
    figures = evaluate_methods(pool, known(pool), SETTINGS)
    assert figures.asked.sum(axis=1).tolist() == [30 * 12, 30 * 12]
    share = figures.right.sum(axis=2) / figures.asked.sum(axis=1)[:, None]
    np.testing.assert_allclose(share, figures.accuracy.mean(axis=2), rtol=1e-12)


def test_features_that_tell_classes_apart_are_better_than_chance_and_better_with_more_shots() -> None:
    pool = make_pool(signal=1.0)
    mean = torch.from_numpy(pool.mean())
    settings = replace(SETTINGS, shots=(1, 8), episodes=12)
    figures = evaluate_methods(pool, [Prototypes(mean), Logistic(mean)], settings)
    one, eight = figures.accuracy.mean(axis=2)
    assert (one > 0.45).all()
    assert (eight > one).all()


def test_logits_that_are_not_finite_are_wrong_and_counted() -> None:
    figures = evaluate_methods(make_pool(), [Fake("a", broken)], SETTINGS)
    assert (figures.diverged == 30).all()
    np.testing.assert_allclose(figures.accuracy, 11 / 12)
    assert (figures.log_loss > WORST_LOSS / 12).all()
    assert (figures.log_loss < WORST_LOSS / 11).all()


def test_a_method_that_cannot_learn_such_tasks_is_left_out_and_says_why() -> None:
    figures = evaluate_methods(make_pool(), [Fake("a", refuses), Fake("b", always)], SETTINGS)
    assert figures.methods == ("b",)
    assert figures.left_out == {"a": "not for 3 classes"}
    with pytest.raises(UsageError, match="no method can learn such tasks: not for 3 classes"):
        evaluate_methods(make_pool(), [Fake("a", refuses)], SETTINGS)


def test_two_methods_of_one_name_and_settings_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="a name occurs twice"):
        evaluate_methods(make_pool(), [Fake("a", always), Fake("a", never)], SETTINGS)
    for wrong in (
        {"shots": ()},
        {"shots": (1, 1)},
        {"shots": (0,)},
        {"ways": 1},
        {"episodes": 1},
        {"seed": -1},
    ):
        with pytest.raises(UsageError, match=r"shots|ways|episodes|seed"):
            FewshotSettings(**wrong)
    with pytest.raises(UsageError, match="fewer than"):
        evaluate_methods(make_pool(), [Fake("a", always)], FewshotSettings(shots=(50,), ways=2))


# Verdicts ------------------------------------------------------------------------------------------------


def figures_of(rows: dict[str, Any], *, patients: int = 40) -> FewshotFigures:
    """Accuracies of one number of shots, each task asking about one patient ten times."""
    accuracy = np.array(list(rows.values()), np.float64)[None]  # (1, M, E)
    episodes = accuracy.shape[2]
    owner = np.arange(episodes) % patients
    right = np.stack([np.bincount(owner, np.round(10 * row), patients) for row in accuracy[0]])
    return FewshotFigures(
        methods=tuple(rows),
        left_out={},
        shots=(5,),
        ways=2,
        queries=5,
        accuracy=accuracy,
        log_loss=np.ones_like(accuracy),
        diverged=np.zeros(accuracy.shape[:2], np.int64),
        patient_ids=tuple(f"patient-{number}" for number in range(patients)),
        asked=10 * np.bincount(owner, minlength=patients)[None],
        right=right.astype(np.int64)[None],
    )


def ranking_of(rows: dict[str, Any], **more: Any) -> Ranking:
    (ranking,) = rank(figures_of(rows, **more))
    return ranking


def verdicts(ranking: Ranking) -> dict[str, Verdict | None]:
    return {one.method: one.to_best.verdict if one.to_best else None for one in ranking.standings}


def drawn(mean: float, spread: float = 0.1, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(mean, spread, size=600).clip(0, 1)


def test_intervals_are_those_of_the_normal_distribution_and_nearly_those_of_student() -> None:
    values = drawn(0.6)
    found = over_tasks(values)
    error = stats.sem(values)
    np.testing.assert_allclose((found.low, found.high), stats.norm.interval(0.95, values.mean(), error))
    student = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose((found.low, found.high), (student.low, student.high), rtol=1e-4)
    of_five = over_tasks(values, comparisons=5)
    np.testing.assert_allclose((of_five.low, of_five.high), stats.norm.interval(0.99, values.mean(), error))


def test_differences_are_paired() -> None:
    common, more = drawn(0.5), drawn(0.01, 0.01, seed=1)
    ranking = ranking_of({"prototypes": common, "maml": common + more})
    found = ranking.standings[1].to_best
    assert found is not None
    assert found == ranking.standings[1].to_prototypes
    student = stats.ttest_rel(common + more, common).confidence_interval(0.95)
    np.testing.assert_allclose(
        (found.over_tasks.low, found.over_tasks.high), (student.low, student.high), 1e-3
    )
    # Unpaired the two could not be told apart.
    assert stats.ttest_ind(common + more, common).pvalue > 0.05
    assert found.verdict is Verdict.GAIN


def test_a_clear_gain_wins() -> None:
    rows = {"prototypes": drawn(0.6), "logistic": drawn(0.7, seed=1), "maml": drawn(0.8, seed=2)}
    rows |= {"anil": drawn(0.77, seed=3), "reptile": drawn(0.5, seed=4)}
    ranking = ranking_of(rows)
    assert ranking.best_baseline == "logistic"
    assert ranking.winner == "maml"
    assert verdicts(ranking) == {
        "prototypes": Verdict.LOSS,
        "logistic": None,
        "maml": Verdict.GAIN,
        "anil": Verdict.GAIN,
        "reptile": Verdict.LOSS,
    }
    first, *more = in_words(ranking)
    assert first.startswith("maml wins with 0.79")
    assert "against logistic, the best of the baselines" in first
    assert more == ["likewise with a gain: anil", "below prototypes, which need no training at all: reptile"]


def test_no_gain_is_claimed_where_the_interval_holds_zero() -> None:
    ranking = ranking_of({"prototypes": drawn(0.7), "maml": drawn(0.703, seed=1)})
    assert verdicts(ranking)["maml"] is Verdict.NONE
    assert ranking.winner is None
    assert in_words(ranking)[0].startswith("no gain is shown: no meta-learner is better than prototypes")


def test_where_all_meta_learners_lose_the_best_baseline_wins() -> None:
    rows = {"maml": drawn(0.6, seed=1), "prototypes": drawn(0.7), "logistic": drawn(0.71, seed=2)}
    ranking = ranking_of(rows)
    assert verdicts(ranking)["maml"] is Verdict.LOSS
    assert ranking.winner == "logistic"
    first = in_words(ranking)[0]
    assert first.startswith("logistic wins: every meta-learner loses to logistic")
    assert "(not told apart from it: prototypes)" in first
    assert "the nearest, maml, has -0.1" in first


def test_who_is_as_right_in_every_task_is_the_same() -> None:
    rows = {"prototypes": drawn(0.7), "maml": drawn(0.7), "logistic": drawn(0.7)}
    ranking = ranking_of(rows)
    assert ranking.best_baseline == "prototypes"
    assert ranking.winner is None
    assert verdicts(ranking) == {"prototypes": None, "maml": Verdict.SAME, "logistic": Verdict.SAME}
    assert "maml, is exactly as right in every task" in in_words(ranking)[0]


def test_a_gain_of_one_among_many_must_be_clearer_than_of_one_alone() -> None:
    base = drawn(0.6, 0.05)
    difference = drawn(0.5, 0.1, seed=1) - 0.5
    difference += 2.3 * stats.sem(difference) - difference.mean()  # 2.3 standard errors: p = 0.02
    rows = {"prototypes": base, "maml": base + difference}
    assert verdicts(ranking_of(rows))["maml"] is Verdict.GAIN
    others = {name: drawn(0.5, seed=seed) for seed, name in enumerate(("fomaml", "anil", "reptile"), 5)}
    ranking = ranking_of(rows | others)
    assert verdicts(ranking)["maml"] is Verdict.NONE
    assert ranking.winner is None
    assert "for 4 meta-learners at once" in in_words(ranking)[0]


def test_gains_are_seldom_claimed_where_there_are_none() -> None:
    claimed = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        names = ("prototypes", "logistic", "maml", "fomaml", "anil", "reptile", "proto_maml")
        rows = {name: rng.normal(0.7, 0.1, 100).clip(0, 1) for name in names}
        claimed += any(verdict is Verdict.GAIN for verdict in verdicts(ranking_of(rows)).values())
    assert claimed <= 5


def test_a_gain_that_one_patient_makes_is_said_to_be_one() -> None:
    base = np.full(600, 0.5)
    one_patient = base + 0.5 * (np.arange(600) % 8 == 0)
    ranking = ranking_of({"prototypes": base, "maml": one_patient}, patients=8)
    assert ranking.winner == "maml"
    assert any("is one on these patients" in text for text in in_words(ranking))
    everybody = ranking_of({"prototypes": base, "maml": base + 0.1}, patients=8)
    assert not any("is one on these patients" in text for text in in_words(everybody))


def test_resampled_patients_spread_as_the_bootstrap_says() -> None:
    rng = np.random.default_rng(0)
    asked = np.full(50, 20)
    right = rng.binomial(20, 0.7, size=(2, 50))
    found = resampled(right, asked, seed=3)
    assert found is not None
    assert found.shape == (2000, 2)
    np.testing.assert_allclose(found.mean(axis=0), right.sum(axis=1) / 1000, atol=0.002)
    np.testing.assert_allclose(found.std(axis=0), (right / 20).std(axis=1) / 50**0.5, rtol=0.05)
    assert resampled(right[:, :1], asked[:1], seed=3) is None
    # Who was not asked about is nobody.
    padded = resampled(np.pad(right, ((0, 0), (0, 9))), np.pad(asked, (0, 9)), seed=3)
    assert padded is not None
    assert (padded == found).all()


def test_without_a_baseline_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(UsageError, match="no baseline was judged"):
        ranking_of({"maml": drawn(0.6)})
    alone = ranking_of({"prototypes": drawn(0.6), "logistic": drawn(0.5, seed=1)})
    assert alone.winner == "prototypes"
    assert in_words(alone)[0].startswith("no meta-learner was judged")
