"""Laws of training: it learns, it repeats itself to the bit, and it leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mil.bags import Bag, PackedBags
from mil.evaluation import slide_auc
from mil.heads import HEADS, Head, HeadOutput
from mil.heads.gated_abmil import GatedABMIL
from mil.predict import predict_bag
from mil.training import TrainingRecipe, fit
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
    seen: list[tuple[int, int, float]] = []
    head = fit(cohort(9), class_count=2, recipe=QUICK, report=lambda *epoch: seen.append(epoch))
    assert not any(module.training for module in head.modules())
    assert [(done, total) for done, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(0 < loss < 2 for _, _, loss in seen)


@pytest.mark.parametrize(
    "change", [{"epochs": 4}, {"learning_rate": 1e-3}, {"weight_decay": 0.1}, {"bags_per_step": 2}]
)
def test_every_setting_does_something(change: dict[str, float]) -> None:
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
    ],
)
def test_absurd_recipes_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        TrainingRecipe(**settings)
