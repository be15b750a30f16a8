"""Laws that every head obeys, and gated attention against the paper's formula in a loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from mil.bags import PackedBags
from mil.heads import HEADS, Head, HeadOutput, build_head
from mil.heads.gated_abmil import GatedABMIL
from wsi.errors import UsageError

DIM, CLASSES = 12, 3


@pytest.fixture(params=sorted(HEADS))
def head(request: pytest.FixtureRequest) -> Head:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return build_head(request.param, dim=DIM, classes=CLASSES).eval()


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn((count, DIM), generator=torch.Generator().manual_seed(seed))


def packed(features: Tensor, sizes: Sequence[int]) -> PackedBags:
    """Bags of tiles that stand in one row each."""
    bag_of_row = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    columns = torch.cat([torch.arange(size) for size in sizes])
    return PackedBags(features, bag_of_row, torch.stack([columns, 0 * columns], dim=1), tuple(sizes))


@torch.inference_mode()
def judge(head: Head, bags: Sequence[Tensor]) -> HeadOutput:
    return head(packed(torch.cat(list(bags)), [len(bag) for bag in bags]))


def test_a_bag_is_judged_the_same_alone_and_in_company(head: Head) -> None:
    bags = [rows(n, seed) * scale for seed, (n, scale) in enumerate([(4, 1), (1, 1), (50, 30), (7, 1)])]
    together = judge(head, bags)
    alone = [judge(head, [bag]) for bag in bags]
    torch.testing.assert_close(together.logits, torch.cat([o.logits for o in alone]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        together.attention_logits, torch.cat([o.attention_logits for o in alone]), atol=1e-5, rtol=1e-5
    )


def test_the_order_of_tiles_does_not_matter(head: Head) -> None:
    bag = rows(20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    straight, shuffled = judge(head, [bag]), judge(head, [bag[order]])
    torch.testing.assert_close(straight.logits, shuffled.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(straight.attention_logits[order], shuffled.attention_logits)


def test_every_tile_twice_changes_nothing(head: Head) -> None:
    bag = rows(9)
    torch.testing.assert_close(
        judge(head, [bag]).logits, judge(head, [torch.cat([bag, bag])]).logits, atol=1e-5, rtol=1e-5
    )


def test_one_tile_is_a_bag(head: Head) -> None:
    output = judge(head, [rows(1)])
    assert output.logits.shape == (1, CLASSES)
    assert output.logits.isfinite().all()


def test_no_gradient_reaches_another_bag(head: Head) -> None:
    features = rows(10).requires_grad_()
    output = head(packed(features, [4, 6]))
    output.logits[0].sum().backward()
    assert features.grad is not None
    assert (features.grad[4:] == 0).all()
    assert (features.grad[:4] != 0).any()


def test_the_gradient_is_that_of_the_formula() -> None:
    """Finite differences prove the loop in doubles; the head, which sums in float32, must equal the loop."""
    head = GatedABMIL(5, 2, hidden=6, attention=4).double().eval()
    features = torch.randn((7, 5), dtype=torch.double, generator=torch.Generator().manual_seed(2))
    bag_of_row = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    assert torch.autograd.gradcheck(lambda x: naive(head, x, bag_of_row, 2), features.requires_grad_())
    head.float()
    ours = features.detach().float().requires_grad_()
    theirs = features.detach().float().requires_grad_()
    head(packed(ours, [3, 4])).logits.square().sum().backward()
    naive(head, theirs, bag_of_row, 2).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def naive(head: GatedABMIL, features: Tensor, bag_of_row: Tensor, bag_count: int) -> Tensor:
    """Equations 7 and 9 of the paper, bag by bag and tile by tile."""
    logits = []
    for index in range(bag_count):
        h = [torch.relu(head.P.weight @ x + head.P.bias) for x in features[bag_of_row == index]]
        weights = []
        for hidden in h:
            tanh = torch.tanh(head.V.weight @ hidden + head.V.bias)
            gate = 1 / (1 + torch.exp(-(head.U.weight @ hidden + head.U.bias)))
            weights.append(torch.exp(head.w.weight[0] @ (tanh * gate) + head.w.bias[0]))
        z = sum(weight * hidden for weight, hidden in zip(weights, h, strict=True)) / sum(weights)
        logits.append(head.W.weight @ z + head.W.bias)
    return torch.stack(logits)


def test_gated_attention_is_the_papers_formula() -> None:
    head = GatedABMIL(DIM, CLASSES).eval()
    features, bag_of_row = rows(30), torch.tensor([0] * 12 + [1] + [2] * 17)
    with torch.inference_mode():
        ours = head(packed(features, [12, 1, 17])).logits
        torch.testing.assert_close(ours, naive(head, features, bag_of_row, 3), atol=1e-5, rtol=1e-5)


def test_contributions_of_tiles_sum_to_the_logit() -> None:
    head = GatedABMIL(DIM, CLASSES).eval()
    output = judge(head, [rows(15)])
    assert output.contributions is not None
    total = output.contributions.sum(0) + head.W.bias
    torch.testing.assert_close(total, output.logits[0], atol=1e-5, rtol=1e-5)


def test_the_default_has_the_parameters_of_the_slide_flavour() -> None:
    head = GatedABMIL(1024, 2)
    assert sum(p.numel() for p in head.parameters()) == 788_739


def test_dropout_acts_in_training_only() -> None:
    head = GatedABMIL(DIM, CLASSES)
    bag = packed(rows(6), [6])
    assert not torch.equal(head(bag).logits, head(bag).logits)
    head.eval()
    assert torch.equal(head(bag).logits, head(bag).logits)


def test_a_head_can_be_made_again_from_its_settings(head: Head) -> None:
    again = build_head(head.name, dim=head.dim, classes=head.classes, settings=head.settings)
    again.load_state_dict(head.state_dict())
    np.testing.assert_array_equal(judge(head, [rows(5)]).logits, judge(again.eval(), [rows(5)]).logits)


def test_unknown_names_and_settings_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no head 'clam'.*gated_abmil"):
        build_head("clam", dim=4, classes=2)
    with pytest.raises(UsageError, match="does not take these settings"):
        build_head("gated_abmil", dim=4, classes=2, settings={"depth": 3})
