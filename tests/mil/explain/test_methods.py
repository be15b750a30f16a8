"""Laws of the methods: each against its definition in a loop, and none leaves a trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mil.bags import Bag, PackedBags, pack
from mil.ensemble import Ensemble
from mil.explain import METHODS, Effort, attribution, explain, gradients, judge
from mil.explain.judge import Voice
from mil.heads import Head, HeadOutput
from mil.heads.gated_abmil import GatedABMIL
from wsi.errors import MicrotomeError, UsageError

MakeBag = Callable[..., Bag]

DIM, CLASSES = 6, 3
SMALL = {"hidden": 8, "attention": 4}


@pytest.fixture
def gated() -> GatedABMIL:
    return scaled(GatedABMIL(DIM, CLASSES, **SMALL), seed=1)


def scaled(head: GatedABMIL, *, seed: int) -> GatedABMIL:
    """Weights large enough that the head is far from linear."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head.eval()


@torch.inference_mode()
def log_odds(head: Head, bag: Bag, class_index: int) -> float:
    """From probabilities, as the word says."""
    p = head(pack([bag])).logits[0].double().softmax(dim=0)[class_index]
    return float(torch.log(p / (1 - p)))


def available(head: Head, bag: Bag) -> list[str]:
    if head(pack([bag])).contributions is None:
        return [name for name in METHODS if name != "contribution"]
    return list(METHODS)


def test_every_method_gives_each_tile_a_number_and_leaves_no_trace(head: Head, make_bag: MakeBag) -> None:
    bag = make_bag()
    expected = {name: explain(head, bag, 1, method=name) for name in available(head, bag)}
    head.train()
    quiet = next(module for module in head.modules() if module is not head)
    quiet.eval()
    first = next(head.parameters())
    first.requires_grad_(False)
    last = list(head.parameters())[-1]
    last.grad = torch.ones_like(last)
    modes = [module.training for module in head.modules()]
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    for name, before in expected.items():
        scores = explain(head, bag, 1, method=name)
        assert scores.shape == (len(bag),)
        assert scores.dtype == np.float64
        np.testing.assert_array_equal(scores, before, err_msg=f"{name} depends on the head's mode")
        assert [module.training for module in head.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tobytes() == numpy_state  # noqa: NPY002
    assert not first.requires_grad
    assert last.requires_grad
    assert torch.equal(last.grad, torch.ones_like(last))
    assert all(p.grad is None for p in head.parameters() if p is not last)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_caller_without_gradients_gets_the_same(gated: GatedABMIL, make_bag: MakeBag, name: str) -> None:
    bag = make_bag()
    expected = explain(gated, bag, 0, method=name)
    with torch.inference_mode():
        np.testing.assert_array_equal(explain(gated, bag, 0, method=name), expected)
    with torch.no_grad():
        np.testing.assert_array_equal(explain(gated, bag, 0, method=name), expected)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_number_added_to_all_logits_explains_nothing(
    gated: GatedABMIL, make_bag: MakeBag, name: str
) -> None:
    bag = make_bag()
    before = explain(gated, bag, 2, method=name)
    with torch.no_grad():
        gated.W.bias += 3
        gated.W.weight += torch.linspace(-1, 1, 8)  # the same for each class, whatever the tile
    np.testing.assert_allclose(explain(gated, bag, 2, method=name), before, atol=2e-4)


def test_tiles_in_another_order_have_the_same_scores(head: Head, make_bag: MakeBag) -> None:
    bag = make_bag(9)
    order = np.random.default_rng(1).permutation(9)
    for name in set(available(head, bag)) - {"random", "shapley"}:  # these draw for rows, not for tiles
        straight = explain(head, bag, 1, method=name)
        shuffled = explain(head, bag.read(order), 1, method=name)
        np.testing.assert_allclose(shuffled, straight[order], atol=1e-4, rtol=1e-3, err_msg=name)


def test_single_is_the_log_odds_of_each_tile_as_a_bag(
    head: Head, make_bag: MakeBag, monkeypatch: pytest.MonkeyPatch
) -> None:
    bag = make_bag()
    expected = [log_odds(head, bag.read(np.array([row])), 1) for row in range(len(bag))]
    np.testing.assert_allclose(explain(head, bag, 1, method="single"), expected, atol=1e-4)
    monkeypatch.setattr(attribution, "ROWS_PER_SLICE", 4)
    np.testing.assert_allclose(explain(head, bag, 1, method="single"), expected, atol=1e-4)


def test_leave_one_out_is_what_is_missing_without_the_tile(gated: GatedABMIL, make_bag: MakeBag) -> None:
    bag = make_bag(70)
    rows = np.arange(70)
    whole = log_odds(gated, bag, 0)
    expected = [whole - log_odds(gated, bag.read(rows[rows != row]), 0) for row in rows]
    np.testing.assert_allclose(explain(gated, bag, 0, method="leave_one_out"), expected, atol=1e-5)
    alone = bag.read(rows[:1])
    nothing = replace(alone, features=0 * alone.features)
    scores = explain(gated, alone, 0, method="leave_one_out")
    assert scores == pytest.approx(log_odds(gated, alone, 0) - log_odds(gated, nothing, 0), abs=1e-5)


def test_attention_is_the_softmax_and_knows_no_class(gated: GatedABMIL, make_bag: MakeBag) -> None:
    bag = make_bag()
    scores = explain(gated, bag, 0, method="attention")
    with torch.inference_mode():
        expected = gated(pack([bag])).attention_logits[:, 0].softmax(dim=0)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    np.testing.assert_array_equal(scores, explain(gated, bag, 2, method="attention"))


class Branches(Head):
    """Attends for each class to one feature; says what each class's attention finds in it."""

    name = "branches"

    def __init__(self, classes: int, branches: int) -> None:
        super().__init__()
        self.dim, self.classes, self.branches, self.settings = DIM, classes, branches, {}
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, bags: PackedBags) -> HeadOutput:
        logits = torch.stack(
            [rows[:, : self.classes].amax(dim=0) for rows in bags.features.split(bags.sizes)]
        )
        return HeadOutput(self.gain * logits, bags.features[:, : self.branches])


def test_a_class_with_its_own_attention_is_explained_by_it(make_bag: MakeBag) -> None:
    bag = make_bag()
    alpha = torch.from_numpy(bag.features).softmax(dim=0).numpy()
    for index in range(3):
        own = explain(Branches(3, 3), bag, index, method="attention")
        np.testing.assert_allclose(own, alpha[:, index], rtol=1e-5)
    shared = explain(Branches(3, 5), bag, 1, method="attention")
    np.testing.assert_allclose(shared, alpha[:, :5].mean(axis=1), rtol=1e-5)


def test_contributions_sum_to_the_log_odds_of_two_classes(make_bag: MakeBag) -> None:
    head, bag = scaled(GatedABMIL(DIM, 2, **SMALL), seed=2), make_bag()
    bias = float((head.W.bias[1] - head.W.bias[0]).detach())
    total = explain(head, bag, 1, method="contribution").sum() + bias
    assert total == pytest.approx(log_odds(head, bag, 1), abs=1e-4)


def test_contributions_of_several_classes_go_by_the_slope_of_the_log_odds(
    gated: GatedABMIL, make_bag
) -> None:
    bag = make_bag()
    with torch.inference_mode():
        output = gated(pack([bag]))
    y = output.logits[0].double().numpy()
    step, slope = 1e-4, np.empty(CLASSES)
    for index in range(CLASSES):
        shift = step * np.eye(CLASSES)[index]
        slope[index] = (odds(y + shift, 1) - odds(y - shift, 1)) / (2 * step)
    expected = output.contributions.double().numpy() @ slope
    np.testing.assert_allclose(explain(gated, bag, 1, method="contribution"), expected, atol=1e-5)


def odds(logits: NDArray[np.float64], class_index: int) -> float:
    p = np.exp(logits - logits.max())
    p /= p.sum()
    return float(np.log(p[class_index] / (1 - p[class_index])))


def test_gradient_times_input_is_the_slope_when_a_tile_grows(gated: GatedABMIL, make_bag: MakeBag) -> None:
    bag, step = make_bag(), 1e-3
    expected = []
    for row in range(len(bag)):
        values = []
        for factor in (1 + step, 1 - step):
            features = bag.features.copy()
            features[row] *= factor
            values.append(log_odds(gated, replace(bag, features=features), 1))
        expected.append((values[0] - values[1]) / (2 * step))
    found = explain(gated, bag, 1, method="gradient_times_input")
    np.testing.assert_allclose(found, expected, atol=5e-3, rtol=1e-2)


@pytest.mark.parametrize("given", [False, True])
def test_integrated_gradients_are_complete(head: Head, make_bag: MakeBag, given: bool) -> None:
    """Sum = f(bag) - f(baseline), to 1 % of what there is to share out."""
    bag = make_bag(20)
    tile = np.full(DIM, 0.1, np.float32) if given else np.zeros(DIM, np.float32)
    effort = Effort(steps=128, baseline=tile if given else None)
    scores = explain(head, bag, 1, method="integrated_gradients", effort=effort)
    nothing = replace(bag, features=np.broadcast_to(tile, bag.features.shape).copy())
    total = log_odds(head, bag, 1) - log_odds(head, nothing, 1)
    assert scores.sum() == pytest.approx(total, rel=0.02, abs=0.02 * np.abs(scores).sum() + 1e-4)


def test_points_judged_together_change_nothing(
    gated: GatedABMIL, make_bag: MakeBag, monkeypatch: pytest.MonkeyPatch
) -> None:
    bag = make_bag()
    together = explain(gated, bag, 1, method="integrated_gradients")
    monkeypatch.setattr(gradients, "ROWS_PER_SLICE", 1)
    alone = explain(gated, bag, 1, method="integrated_gradients")
    np.testing.assert_allclose(alone, together, atol=1e-5)


class Linear(Head):
    """The logits are a weight times the mean tile."""

    name = "linear"

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.classes, self.settings = DIM, 2, {}
        self.W = nn.Linear(DIM, 2)

    def forward(self, bags: PackedBags) -> HeadOutput:
        mean = torch.stack([rows.mean(dim=0) for rows in bags.features.split(bags.sizes)])
        return HeadOutput(self.W(mean), bags.features[:, :1])


def test_on_a_linear_head_all_derivatives_agree(make_bag: MakeBag) -> None:
    bag = make_bag()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = Linear()
    weight = (head.W.weight[1] - head.W.weight[0]).detach().numpy()
    expected = bag.features @ weight / len(bag)
    for name in ("gradient_times_input", "integrated_gradients", "shapley"):
        found = explain(head, bag, 1, method=name, effort=Effort(clusters=9))
        if name == "shapley":  # a coalition's mean is no sum: only the total is the same
            assert found.sum() == pytest.approx(expected.sum(), abs=1e-5)
        else:
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_random_knows_the_slide_and_the_seed_and_nothing_else(gated: GatedABMIL, make_bag: MakeBag) -> None:
    bag = make_bag()
    first = explain(gated, bag, 0, method="random")
    np.testing.assert_array_equal(first, explain(gated, bag, 1, method="random"))
    assert not np.array_equal(first, explain(gated, bag, 0, method="random", effort=Effort(seed=1)))
    assert not np.array_equal(first, explain(gated, make_bag(name="other"), 0, method="random"))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_an_ensemble_is_explained_by_the_mean_of_its_calibrated_members(make_bag: MakeBag, name: str) -> None:
    heads = tuple(scaled(GatedABMIL(DIM, CLASSES, **SMALL), seed=seed) for seed in (4, 5))
    bag = make_bag()
    each = []
    for head, temperature in zip(heads, (1.0, 2.5), strict=True):
        cooled = GatedABMIL(DIM, CLASSES, **SMALL).eval()
        cooled.load_state_dict(head.state_dict())
        with torch.no_grad():
            cooled.W.weight /= temperature
            cooled.W.bias /= temperature
        each.append(explain(cooled, bag, 1, method=name))
    found = explain(Ensemble(heads, (1.0, 2.5)), bag, 1, method=name)
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-5)


def test_what_cannot_be_explained_is_refused(gated: GatedABMIL, make_bag: MakeBag) -> None:
    bag = make_bag()
    with pytest.raises(UsageError, match=r"no explanation 'lime'.*single"):
        explain(gated, bag, 0, method="lime")
    with pytest.raises(ValueError, match="no class 3 among 3"):
        explain(gated, bag, 3, method="single")
    with pytest.raises(UsageError, match="features of length 4, the model takes 6"):
        explain(gated, replace(bag, features=bag.features[:, :4]), 0, method="single")
    with pytest.raises(UsageError, match="'branches' is no sum over tiles"):
        explain(Branches(3, 3), bag, 0, method="contribution")
    with pytest.raises(UsageError, match=r"baseline has shape \(2,\)"):
        explain(gated, bag, 0, method="integrated_gradients", effort=Effort(baseline=np.zeros(2, np.float32)))
    with torch.no_grad():
        gated.W.weight[0] = torch.nan
    with pytest.raises(MicrotomeError, match="gives NaN for slide 's0'"):
        explain(gated, bag, 0, method="single")


@pytest.mark.parametrize("change", [{"steps": 0}, {"clusters": 0}, {"permutation_pairs": 0}, {"seed": -1}])
def test_absurd_effort_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="is needed"):
        Effort(**change)


def test_parts_are_judged_as_bags_of_their_own(
    head: Head, make_bag: MakeBag, monkeypatch: pytest.MonkeyPatch
) -> None:
    bag = make_bag()
    parts = [torch.tensor(rows) for rows in ([0, 1, 2, 3], [2], [8, 4, 0, 1, 5, 6], [0, 1, 2])]
    packed = Voice(head, 0).pack(bag)
    with torch.inference_mode():
        expected = torch.cat([one(head, packed, rows) for rows in parts])
        for size in (1, 5, 4096):
            monkeypatch.setattr(judge, "ROWS_PER_SLICE", size)
            torch.testing.assert_close(judge.part_logits(head, packed, parts), expected, atol=1e-4, rtol=1e-4)


def one(head: Head, bag: PackedBags, rows: Tensor) -> Tensor:
    count = len(rows)
    logits: Tensor = head(
        PackedBags(bag.features[rows], torch.zeros(count, dtype=torch.int64), bag.places[rows], (count,))
    ).logits
    return logits
