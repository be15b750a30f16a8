"""Laws of training: it learns, it repeats itself to the bit, and it leaves no trace."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from mil.bags import Bag, PackedBags, Rows
from mil.ensemble import bag_logits
from mil.evaluation import slide_auc
from mil.heads import HEADS, Head, HeadOutput
from mil.heads.gated_abmil import GatedABMIL
from mil.predict import predict_bag
from mil.training import Epoch, TrainingRecipe, fit
from mil.training.losses import Focal
from mil.training.stopping import Metric, ValidationFigures
from wsi.errors import MicrotomeError, UsageError

QUICK = TrainingRecipe(settings={"hidden": 16, "attention": 8}, epochs=3)


def make_bag(index: int, label: int | None, *, seed: int = 0, key_rows: int = 2, dim: int = 8) -> Bag:
    """Noise; in a bag of class 1, a few rows are shifted: what attention has to find."""
    rng = np.random.default_rng([seed, index])
    features = rng.normal(size=(int(rng.integers(5, 30)), dim)).astype(np.float32)
    if label:
        features[:key_rows] += 3
    origins = np.zeros((len(features), 2), np.int32)
    return Bag(slide_id=f"s{index}", features=features.astype(np.float16), origins=origins, label=label)


def cohort(count: int, seed: int = 0) -> list[Bag]:
    return [make_bag(index, index % 2, seed=seed) for index in range(count)]


def weights(head: Head) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in head.state_dict().values()]


def test_a_rare_tile_is_learned() -> None:
    recipe = TrainingRecipe(settings={"hidden": 32, "attention": 16}, epochs=30, learning_rate=2e-3)
    head = fit(cohort(40), class_count=2, recipe=recipe)
    unseen = cohort(40, seed=1)
    predictions = [predict_bag(head, bag) for bag in unseen]
    auc = slide_auc([bag.label or 0 for bag in unseen], [p.probabilities[1] for p in predictions])
    assert auc is not None
    assert auc > 0.95
    found = [p.tile_scores[:2, 1].min() > p.tile_scores[2:, 1].mean() for p in predictions[1::2]]
    assert np.mean(found) > 0.8


def test_labels_at_random_are_not_predicted() -> None:
    rng = np.random.default_rng(0)
    bags = [make_bag(index, None) for index in range(30)]
    labelled = [
        Bag(slide_id=b.slide_id, features=b.features, origins=b.origins, label=int(rng.integers(2)))
        for b in bags
    ]
    head = fit(labelled, class_count=2, recipe=QUICK)
    unseen = [make_bag(index, None, seed=1) for index in range(200)]
    auc = slide_auc(rng.integers(0, 2, 200), [predict_bag(head, bag).probabilities[1] for bag in unseen])
    assert auc is not None
    assert 0.35 < auc < 0.65


def test_training_repeats_itself_to_the_bit() -> None:
    first, second = (fit(cohort(9), class_count=2, recipe=QUICK) for _ in range(2))
    assert weights(first) == weights(second)


def test_the_seed_decides_whatever_the_generator_was_and_the_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    first = fit(cohort(9), class_count=2, recipe=QUICK)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = fit(cohort(9), class_count=2, recipe=QUICK)
    assert torch.equal(before, torch.get_rng_state())
    assert weights(first) == weights(second)
    other = fit(cohort(9), class_count=2, recipe=TrainingRecipe(settings=QUICK.settings, epochs=3, seed=1))
    assert weights(first) != weights(other)


def test_a_trained_head_is_in_eval_mode_and_the_loss_is_reported() -> None:
    seen: list[Epoch] = []
    head = fit(cohort(9), class_count=2, recipe=QUICK, report=seen.append)
    assert not any(module.training for module in head.modules())
    assert [(epoch.number, epoch.of, epoch.best) for epoch in seen] == [
        (1, 3, False),
        (2, 3, False),
        (3, 3, True),
    ]
    assert all(0 < epoch.training_loss < 2 and epoch.validation is None for epoch in seen)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 4},
        {"learning_rate": 1e-3},
        {"weight_decay": 0.1},
        {"warm_up": 0.5},
        {"bags_per_step": 2},
        {"loss": Focal()},
        {"loss": Focal(gamma=1.0)},
        {"head": "abmil"},
        {"adaptor": "channel_attention"},
        {"balance_classes": False},
        {"tiles_per_bag": 5},
        {"instance_dropout": 0.5},
        {"feature_noise": 0.1},
        {"settings": {"hidden": 8, "attention": 8}},
    ],
    ids=str,
)
def test_every_setting_does_something(change: dict[str, Any]) -> None:
    plain = fit(cohort(9), class_count=2, recipe=QUICK)
    recipe = TrainingRecipe(**{"settings": QUICK.settings, "epochs": 3} | change)
    assert weights(plain) != weights(fit(cohort(9), class_count=2, recipe=recipe))


def test_balancing_lifts_the_rare_class() -> None:
    bags = [make_bag(index, int(index == 0), key_rows=0) for index in range(8)]
    score = {}
    for balance in (True, False):
        recipe = TrainingRecipe(
            settings=QUICK.settings, epochs=30, learning_rate=1e-3, balance_classes=balance
        )
        head = fit(bags, class_count=2, recipe=recipe)
        score[balance] = predict_bag(head, make_bag(99, None)).probabilities[1]
    assert score[True] > score[False]


def test_balancing_equal_classes_changes_nothing() -> None:
    heads = [
        fit(
            cohort(8),
            class_count=2,
            recipe=TrainingRecipe(settings=QUICK.settings, epochs=2, balance_classes=b),
        )
        for b in (True, False)
    ]
    assert weights(heads[0]) == weights(heads[1])


def test_one_class_a_missing_and_an_unknown_label_are_refused() -> None:
    with pytest.raises(UsageError, match="only one class"):
        fit([make_bag(i, 1) for i in range(4)], class_count=2, recipe=QUICK)
    with pytest.raises(UsageError, match="'s4' has label None"):
        fit([*cohort(4), make_bag(4, None)], class_count=2, recipe=QUICK)
    with pytest.raises(UsageError, match="'s4' has label 2"):
        fit([*cohort(4), make_bag(4, 2)], class_count=2, recipe=QUICK)


class Diverges(GatedABMIL):
    name = "diverges"

    def forward(self, bags: PackedBags) -> HeadOutput:
        output = super().forward(bags)
        return HeadOutput(output.logits * torch.inf, output.attention_logits)


def test_divergence_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS, "diverges", Diverges)
    with pytest.raises(MicrotomeError, match="training diverged: the loss is nan in epoch 1"):
        fit(cohort(6), class_count=2, recipe=TrainingRecipe(head="diverges", epochs=3))


def test_the_largest_seed_trains() -> None:
    recipe = TrainingRecipe(settings=QUICK.settings, epochs=1, seed=2**63 - 1)
    head = fit(cohort(4), class_count=2, recipe=recipe)
    assert all(torch.isfinite(weights).all() for weights in head.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"bags_per_step": 0},
        {"seed": -1},
        {"seed": 2**63},
        {"learning_rate": 0},
        {"weight_decay": -1},
        {"weight_decay": float("nan")},
        {"weight_decay": float("inf")},
        {"warm_up": 1},
        {"patience": -1},
        {"tiles_per_bag": -1},
        {"instance_dropout": 1.0},
        {"feature_noise": -0.1},
    ],
)
def test_absurd_recipes_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        TrainingRecipe(**settings)


# Validation ----------------------------------------------------------------------------------------------


def history(recipe: TrainingRecipe, *, validation: list[Bag]) -> tuple[Head, list[Epoch]]:
    seen: list[Epoch] = []
    return fit(cohort(9), class_count=2, recipe=recipe, validation=validation, report=seen.append), seen


class Watched(GatedABMIL):
    """Notes how it is called; also draws a random number each time, as some heads do."""

    name = "watched"
    calls: ClassVar[list[tuple[bool, bool]]] = []

    def forward(self, bags: PackedBags) -> HeadOutput:
        self.calls.append((self.training, torch.is_grad_enabled()))
        torch.rand(1)
        return super().forward(bags)


def test_judging_validation_slides_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout is off and gradients too; afterwards mode and random numbers are as if nothing had been."""
    monkeypatch.setitem(HEADS, "watched", Watched)
    Watched.calls.clear()
    recipe = replace(QUICK, head="watched", patience=0)
    with_validation, seen = history(recipe, validation=cohort(4, seed=1))
    assert [epoch.validation is None for epoch in seen] == [False] * 3
    steps, looks = [(True, True)] * 3, [(False, False)] * 4
    assert Watched.calls == [*steps, *looks] * 3
    without, _ = history(recipe, validation=[])
    assert weights(with_validation) == weights(without)


def test_the_best_epoch_is_kept_and_patience_ends_training() -> None:
    """Validation labels are turned round: the better it learns, the worse it is judged."""
    unseen = [replace(bag, label=1 - (bag.label or 0)) for bag in cohort(12, seed=1)]
    recipe = replace(QUICK, epochs=40, learning_rate=3e-3, patience=4, metric=Metric.LOSS)
    recipe = replace(recipe, balance_classes=False)
    head, seen = history(recipe, validation=unseen)
    losses = [epoch.validation.loss for epoch in seen if epoch.validation]
    kept = [epoch.number for epoch in seen if epoch.best][-1]
    assert kept == int(np.argmin(losses)) + 1
    assert len(seen) == kept + 4 < 40
    for epoch in seen:
        assert epoch.best == (epoch.validation.loss == min(losses[: epoch.number]))
    truth = torch.tensor([bag.label for bag in unseen])
    logits = torch.from_numpy(bag_logits(head, unseen))
    assert float(torch.nn.functional.cross_entropy(logits, truth)) == pytest.approx(min(losses), rel=1e-5)


def test_the_kept_weights_are_those_that_a_shorter_schedule_would_have_ended_with() -> None:
    """Epoch for epoch the head is the same whoever looks at it: so are the validation figures."""
    unseen = cohort(6, seed=1)
    recipe = replace(QUICK, epochs=5, learning_rate=1e-3)
    kept, seen = history(replace(recipe, patience=5), validation=unseen)
    last, again = history(replace(recipe, patience=0), validation=unseen)
    assert [epoch.validation for epoch in seen] == [epoch.validation for epoch in again]
    if seen[-1].best:
        assert weights(kept) == weights(last)
    else:
        assert weights(kept) != weights(last)


def test_equal_figures_are_decided_by_the_loss_and_a_missing_one_too() -> None:
    low, high = (ValidationFigures(loss, 1.0, 0.5) for loss in (0.1, 0.2))
    better = ValidationFigures(9.0, None, 0.9)
    assert low.rank(Metric.AUROC) < high.rank(Metric.AUROC)
    assert better.rank(Metric.BALANCED_ACCURACY) < low.rank(Metric.BALANCED_ACCURACY)
    assert better.rank(Metric.AUROC) == better.rank(Metric.LOSS) > high.rank(Metric.LOSS)


def test_a_validation_fold_of_one_class_is_judged_by_the_loss() -> None:
    _, seen = history(replace(QUICK, epochs=4), validation=[make_bag(i, 1, seed=3) for i in range(3)])
    figures = [epoch.validation for epoch in seen]
    assert all(found is not None and found.auroc is None for found in figures)
    losses = [found.loss for found in figures if found]
    assert [epoch.best for epoch in seen] == [loss == min(losses[: i + 1]) for i, loss in enumerate(losses)]


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = replace(QUICK, epochs=10, warm_up=0.3, bags_per_step=9)
    _, seen = history(recipe, validation=[])
    rates = [epoch.learning_rate / recipe.learning_rate for epoch in seen]
    assert rates[:4] == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1])
    assert rates[4:] == pytest.approx([(1 + np.cos(np.pi * i / 7)) / 2 for i in range(1, 7)])
    assert rates[-1] > 0


# What is read --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OnDisk:
    """A bag whose reader counts, as one that is too large for memory would be read."""

    bag: Bag
    reads: list[Rows | None] = field(default_factory=list)

    slide_id = property(lambda self: self.bag.slide_id)
    label = property(lambda self: self.bag.label)
    patient = property(lambda self: self.bag.patient)
    dim = property(lambda self: self.bag.dim)

    def __len__(self) -> int:
        return len(self.bag)

    def read(self, rows: Rows | None = None) -> Bag:
        self.reads.append(rows)
        return self.bag.read(rows)


def test_a_large_bag_is_never_read_whole_to_learn_from_it() -> None:
    sources = [OnDisk(bag) for bag in cohort(9)]
    fit(sources, class_count=2, recipe=replace(QUICK, tiles_per_bag=4))
    for source in sources:
        assert len(source.reads) == QUICK.epochs
        assert all(rows is not None and len(set(rows.tolist())) == 4 for rows in source.reads)
        assert len({rows.tobytes() for rows in source.reads if rows is not None}) > 1  # drawn anew


def test_where_features_are_changes_no_bit() -> None:
    recipe = replace(QUICK, tiles_per_bag=6, instance_dropout=0.2, feature_noise=0.1)
    in_memory = fit(cohort(9), class_count=2, recipe=recipe)
    on_disk = fit([OnDisk(bag) for bag in cohort(9)], class_count=2, recipe=recipe)
    assert weights(in_memory) == weights(on_disk)


def test_an_error_in_reading_is_raised_where_training_was_asked_for() -> None:
    class Broken(OnDisk):
        def read(self, rows: Rows | None = None) -> Bag:
            raise MicrotomeError("the disk is gone")

    with pytest.raises(MicrotomeError, match="the disk is gone"):
        fit([*map(OnDisk, cohort(4)), Broken(make_bag(9, 1))], class_count=2, recipe=QUICK)


def test_a_step_in_parts_is_the_step_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = TrainingRecipe(
        settings={"hidden": 16, "attention": 8, "dropout": 0.0}, epochs=3, bags_per_step=4
    )
    whole = fit(cohort(9), class_count=2, recipe=recipe)
    monkeypatch.setattr("mil.training.fitting.BYTES_AT_A_TIME", 12 * 8 * 4)
    parts = fit(cohort(9), class_count=2, recipe=recipe)
    assert weights(whole) != weights(parts)  # or nothing was split
    for name, tensor in whole.state_dict().items():
        if name == "w.bias":  # cancels in the softmax: its gradient is rounding, which Adam blows up
            continue
        torch.testing.assert_close(parts.state_dict()[name], tensor, atol=1e-5, rtol=1e-4)
