"""Laws of the spread of an ensemble, and of dropout that is left on without disturbing anything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mil.bags import Bag, PackedBags
from mil.calibration import probabilities
from mil.ensemble import bag_logits
from mil.heads import HEADS, Head, HeadOutput, build_head
from mil.uncertainty import has_dropout, mc_dropout, spread
from wsi.errors import MicrotomeError, UsageError


def bag(tiles: int = 30) -> Bag:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(tiles, 8)).astype(np.float32)
    return Bag("slide", features, np.zeros((tiles, 2), np.int32))


class Watched(Head):
    """Notes in which mode its parts were whenever it was called."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.dim, self.classes, self.settings = 8, 2, {}
        self.norm = nn.BatchNorm1d(8)
        self.inner = nn.Sequential(nn.Linear(8, 2), nn.Dropout(dropout))
        self.seen: list[dict[str, bool]] = []

    def forward(self, bags: PackedBags) -> HeadOutput:
        self.seen.append({name: module.training for name, module in self.named_modules()})
        rows: Tensor = self.inner(self.norm(bags.features))
        return HeadOutput(rows.mean(dim=0, keepdim=True), rows[:, :1])


@pytest.mark.parametrize("training", [False, True])
def test_only_dropout_is_in_training_mode_and_all_is_put_back(training: bool) -> None:
    head = Watched().train(training)
    head.inner.eval()  # a mixed state has to come back too
    before = {name: module.training for name, module in head.named_modules()}
    state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    found = mc_dropout(head, bag(), passes=5)
    assert found.shape == (5, 2)
    assert len(head.seen) == 5
    for modes in head.seen:
        assert [name for name, on in modes.items() if on] == ["inner.1"]
    assert {name: module.training for name, module in head.named_modules()} == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in head.state_dict().items())


def test_the_callers_random_numbers_and_modes_survive_an_error_too() -> None:
    class Failing(Watched):
        def forward(self, bags: PackedBags) -> HeadOutput:
            torch.rand(3)
            raise RuntimeError("broken")

    head = Failing().train()
    before = torch.random.get_rng_state()
    with pytest.raises(RuntimeError, match="broken"):
        mc_dropout(head, bag())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(module.training for module in head.modules())


def test_the_callers_random_numbers_are_untouched_and_a_seed_repeats() -> None:
    head = build_head("gated_abmil", dim=8, classes=2).eval()
    torch.random.get_rng_state()
    before = torch.random.get_rng_state()
    first, again, other = (mc_dropout(head, bag(), passes=6, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (first == again).all()
    assert not (first == other).all()
    assert first.std(axis=0).min() > 0
    assert first.sum(axis=1) == pytest.approx(np.ones(6))


def test_a_head_without_dropout_does_not_waver() -> None:
    head = Watched(dropout=0.0).eval()
    assert not has_dropout(head)
    assert has_dropout(Watched())
    found = mc_dropout(head, bag(), passes=4)
    assert np.ptp(found, axis=0).max() == 0


@pytest.mark.parametrize("name", HEADS)
def test_every_head_wavers_with_dropout_and_only_then(name: str) -> None:
    """Also those that draw more than dropout while they train: parts of a bag, masked tiles."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        settings = {"project_values": 1} if name == "dsmil" else {}  # where its dropout is
        head = build_head(name, dim=8, classes=2, settings=settings).eval()
    for module in head.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5  # some heads have none unless asked
    settled = bag_logits(head, [bag()])
    found = mc_dropout(head, bag(), passes=8)
    assert bool(np.ptp(found, axis=0).max() > 0) == has_dropout(head)
    assert (mc_dropout(head, bag(), passes=8) == found).all()
    assert (bag_logits(head, [bag()]) == settled).all()
    for module in head.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    quiet = mc_dropout(head, bag(), passes=3)
    assert quiet == pytest.approx(np.repeat(probabilities(settled, 1.0), 3, axis=0), abs=1e-6)


def test_a_temperature_divides_the_logits() -> None:
    head = build_head("gated_abmil", dim=8, classes=2).eval()
    plain, warm = mc_dropout(head, bag(), passes=3), mc_dropout(head, bag(), passes=3, temperature=2.0)
    assert np.log(warm[:, 1] / warm[:, 0]) == pytest.approx(np.log(plain[:, 1] / plain[:, 0]) / 2, abs=1e-6)


def test_members_that_agree_have_no_spread_and_those_that_disagree_all_there_is() -> None:
    same = np.tile([[[0.3, 0.7], [0.9, 0.1]]], (5, 1, 1))
    found = spread(same)
    assert found.deviation == pytest.approx([0, 0])
    assert found.information == pytest.approx([0, 0])
    split = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    found = spread(split)
    assert found.information == pytest.approx([np.log(2)])
    assert found.deviation == pytest.approx([np.sqrt(0.5)])
    assert found.mean.tolist() == [[0.5, 0.5]]


def test_members_that_are_unsure_alike_inform_of_nothing() -> None:
    rng = np.random.default_rng(3)
    values = rng.dirichlet([1, 1, 1], size=(4, 20))
    found = spread(values)
    assert (found.information >= 0).all()
    assert (found.information <= np.log(3)).all()
    assert found.mean == pytest.approx(values.mean(axis=0))


def test_unsound_input_is_refused() -> None:
    with pytest.raises(UsageError, match="no spread"):
        spread(np.ones((1, 4, 2)))
    with pytest.raises(MicrotomeError, match="NaN"):
        spread(np.full((2, 1, 2), np.nan))
    with pytest.raises(UsageError, match="1 passes"):
        mc_dropout(Watched(), bag(), passes=1)
