"""Laws that every head obeys, with every adaptor in front."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mil.adaptors import ADAPTORS
from mil.bags import PackedBags, each_alone
from mil.heads import HEADS, Criterion, Head, HeadOutput, build_head
from mil.segments import segment_softmax, segment_sum
from wsi.errors import UsageError

Rows = Callable[..., Tensor]
Packed = Callable[..., PackedBags]
Make = Callable[..., Head]
CLASSES = 3


@torch.inference_mode()
def judge(head: Head, bags: PackedBags) -> HeadOutput:
    output: HeadOutput = head(bags)
    return output


def company(rows: Rows) -> list[Tensor]:
    """Bags of 1 to 50 tiles, two of one size, and one with features thirty times as large."""
    sizes, scales = (4, 1, 50, 7, 50), (1, 1, 30, 1, 1)
    return [rows(n, seed) * scale for seed, (n, scale) in enumerate(zip(sizes, scales, strict=True))]


def sharpened(head: Head) -> Head:
    """The same with attention logits about eight times as far apart."""
    sharp = copy.deepcopy(head)
    with torch.no_grad():
        for name, parameter in sharp.named_parameters():
            if {"w", "Q2", "qkv"} & set(name.split(".")):
                parameter.mul_(8)
    return sharp


def assert_alike(ours: HeadOutput, theirs: Sequence[HeadOutput], *, tolerance: float = 2e-5) -> None:
    assert_close(ours.logits, torch.cat([o.logits for o in theirs]), atol=tolerance, rtol=tolerance)
    assert_close(ours.attention_logits, torch.cat([o.attention_logits for o in theirs]), atol=2e-4, rtol=2e-4)
    if ours.contributions is not None:
        parts = [o.contributions for o in theirs if o.contributions is not None]
        assert_close(ours.contributions, torch.cat(parts), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("sharp", [False, True], ids=["soft", "sharp"])
def test_a_bag_is_judged_the_same_alone_and_in_company(
    head: Head, sharp: bool, rows: Rows, packed: Packed
) -> None:
    """Sharp attention makes the inverse in TransMIL ill-conditioned: rounding shows in the fifth digit."""
    head, tolerance = (sharpened(head), 1e-4) if sharp else (head, 2e-5)
    bags = company(rows)
    alone = [judge(head, packed([bag])) for bag in bags]
    assert_alike(judge(head, packed(bags)), alone, tolerance=tolerance)


def test_a_bag_has_the_same_loss_alone_and_in_company(
    head: Head, rows: Rows, packed: Packed, criterion: Criterion
) -> None:
    bags, labels = company(rows), torch.tensor([0, 1, 2, 1, 0])
    with torch.inference_mode():
        together = head.losses(packed(bags), labels, criterion)
        alone = [head.losses(packed([bag]), labels[i : i + 1], criterion) for i, bag in enumerate(bags)]
    assert together.shape == (5,)
    assert_close(together, torch.cat(alone), atol=2e-5, rtol=2e-5)


def test_rows_may_be_stored_in_any_order(head: Head, rows: Rows, packed: Packed) -> None:
    bags = packed([rows(20), rows(9, 1)])
    generator = torch.Generator().manual_seed(1)
    order = torch.cat([torch.randperm(20, generator=generator), 20 + torch.randperm(9, generator=generator)])
    shuffled = PackedBags(bags.features[order], bags.bag_of_row, bags.places[order], bags.sizes)
    straight, other = judge(head, bags), judge(head, shuffled)
    assert_close(straight.logits, other.logits, atol=1e-5, rtol=1e-5)
    assert_close(straight.attention_logits[order], other.attention_logits, atol=1e-4, rtol=1e-4)


def test_a_head_that_knows_of_no_places_does_not_depend_on_them(
    head: Head, rows: Rows, packed: Packed
) -> None:
    bag = rows(20)
    anywhere = torch.randint(0, 99, (20, 2), generator=torch.Generator().manual_seed(2))
    straight, elsewhere = judge(head, packed([bag])), judge(head, packed([bag], [anywhere]))
    alike = torch.allclose(straight.logits, elsewhere.logits, atol=1e-6)
    assert alike is not head.uses_places


def test_where_the_grid_begins_does_not_matter(head: Head, rows: Rows, packed: Packed) -> None:
    bags = packed([rows(20), rows(9, 1)])
    moved = PackedBags(bags.features, bags.bag_of_row, bags.places + torch.tensor([7, 100]), bags.sizes)
    assert_close(judge(head, bags).logits, judge(head, moved).logits, atol=1e-6, rtol=1e-6)


def test_every_tile_twice_changes_nothing(head: Head, rows: Rows, packed: Packed) -> None:
    """But for two heads: a sequence has twice the length then, and pseudo-bags are dealt anew."""
    bag = packed([rows(9)])
    twice = PackedBags(bag.features.repeat(2, 1), bag.bag_of_row.repeat(2), bag.places.repeat(2, 1), (18,))
    alike = torch.allclose(judge(head, bag).logits, judge(head, twice).logits, atol=1e-5, rtol=1e-5)
    assert alike is (head.name not in {"transmil", "dtfd"})


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_tiles_are_a_bag_in_eval_and_in_training(
    head: Head, count: int, rows: Rows, packed: Packed, criterion: Criterion
) -> None:
    bags = packed([rows(count), rows(count, 1)])
    output = judge(head, bags)
    assert output.logits.shape == (2, CLASSES)
    assert output.logits.isfinite().all()
    assert output.attention_logits.isfinite().all()
    head.train()
    losses = head.losses(bags, torch.tensor([0, 2]), criterion)
    losses.sum().backward()
    assert losses.isfinite().all()


def test_tiles_alone_are_as_many_bags(head: Head, rows: Rows, packed: Packed) -> None:
    tiles = rows(6)
    assert_alike(judge(head, each_alone(tiles)), [judge(head, packed([tile[None]])) for tile in tiles])


@pytest.mark.parametrize("of_loss", [False, True], ids=["logits", "losses"])
def test_no_gradient_reaches_another_bag(
    head: Head, of_loss: bool, rows: Rows, packed: Packed, criterion: Criterion
) -> None:
    features = rows(24).requires_grad_()
    bags = packed(features.split([12, 12]))
    values = head.losses(bags, torch.tensor([0, 1]), criterion) if of_loss else head(bags).logits.sum(dim=1)
    values[0].backward()
    assert features.grad is not None
    assert (features.grad[12:] == 0).all()
    assert (features.grad[:12] != 0).any()


@pytest.mark.parametrize("content", ["usual", "huge", "zero", "constant"])
def test_no_gradient_is_nan(
    head: Head, content: str, rows: Rows, packed: Packed, criterion: Criterion
) -> None:
    scale, offset = {"usual": (1, 0), "huge": (1e3, 0), "zero": (0, 0), "constant": (0, 1)}[content]
    features = (rows(43) * scale + offset).requires_grad_()
    bags = packed(features.split([1, 2, 10, 30]))
    head.train()
    head.losses(bags, torch.tensor([0, 1, 2, 0]), criterion).mean().backward()
    for name, values in [("features", features), *head.named_parameters()]:
        assert values.grad is None or values.grad.isfinite().all(), name


def test_evaluation_draws_no_random_numbers(head: Head, rows: Rows, packed: Packed) -> None:
    bags = packed([rows(30)])
    with torch.random.fork_rng():
        state = torch.get_rng_state()
        first = judge(head, bags)
        assert torch.equal(state, torch.get_rng_state())
        torch.manual_seed(77)
        again = judge(head, bags)
    assert torch.equal(first.logits, again.logits)
    assert torch.equal(first.attention_logits, again.attention_logits)


def test_dropout_acts_in_training_only(variant: str, make: Make, rows: Rows, packed: Packed) -> None:
    settings = {"dropout": 0.5} | ({"project_values": True} if variant == "dsmil" else {})
    head, bags = make(variant, **settings), packed([rows(30)])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert not torch.equal(head(bags).logits, head(bags).logits)
        head.eval()
        assert torch.equal(head(bags).logits, head(bags).logits)


def test_training_repeats_with_the_generator(
    head: Head, rows: Rows, packed: Packed, criterion: Criterion
) -> None:
    bags, labels = packed([rows(30), rows(8, 1)]), torch.tensor([0, 1])
    head.train()
    losses = []
    with torch.random.fork_rng():
        for _ in range(2):
            torch.manual_seed(3)
            losses.append(head.losses(bags, labels, criterion))
    assert torch.equal(*losses)


def test_a_head_can_be_made_again_from_its_settings(head: Head, rows: Rows, packed: Packed) -> None:
    settings = json.loads(json.dumps(head.settings))
    again = build_head(head.name, dim=head.dim, classes=head.classes, settings=settings, adaptor=head.adaptor)
    again.load_state_dict(head.state_dict())
    assert again.settings == head.settings
    bags = packed([rows(15)])
    assert torch.equal(judge(head, bags).logits, judge(again.eval(), bags).logits)


def test_attention_is_of_every_tile_and_contributions_sum_to_the_logits(
    head: Head, rows: Rows, packed: Packed
) -> None:
    bags = packed([rows(15), rows(1, 1), rows(40, 2) * 3])
    output = judge(head, bags)
    assert output.attention_logits.shape in {(56, 1), (56, CLASSES)}
    shares = segment_sum(segment_softmax(output.attention_logits, bags.bag_of_row, 3), bags.bag_of_row, 3)
    assert_close(shares, torch.ones_like(shares))
    if output.contributions is not None:
        assert output.contributions.shape == (56, CLASSES)
        rest = output.logits - segment_sum(output.contributions, bags.bag_of_row, 3)  # the bias, for all bags
        assert_close(rest, rest[:1].expand(3, -1), atol=1e-5, rtol=1e-5)


def test_contributions_are_missing_only_where_logits_are_no_sum_over_tiles(
    variant: str, plain: Head, rows: Rows, packed: Packed
) -> None:
    missing = judge(plain, packed([rows(5)])).contributions is None
    assert missing is (variant in {"transmil", "dtfd of picked tiles"})


def test_reduced_precision_is_no_other_judgement(plain: Head, rows: Rows, packed: Packed) -> None:
    bags = packed([rows(30), rows(3, 1)])
    exact = judge(plain, bags)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = judge(plain, bags)
    assert reduced.logits.dtype == torch.float32
    assert_close(reduced.logits, exact.logits, atol=0.1, rtol=0.1)


COUNTS = {
    "linear": 2_050,
    "mean": 525_826,
    "max_instance": 525_826,
    "max_embedding": 525_826,
    "abmil": 657_411,
    "gated_abmil": 788_739,
    "additive_abmil": 919_297,
    "clam_sb": 790_791,
    "clam_mb": 791_048,
    "dsmil": 153_860,
    "transmil": 2_672_146,
    "dtfd": 789_254,
    "acmil": 662_417,
}
"""Of two classes and 1,024 features. Those of the methods are as in the authors' programs; abmil and
additive_abmil, whose authors worked on other features, are the gated head without U, and with a classifier of
two layers."""


@pytest.mark.parametrize("name", sorted(HEADS))
def test_the_defaults_have_the_parameters_of_the_method(name: str) -> None:
    assert sum(p.numel() for p in HEADS[name](1024, 2).parameters()) == COUNTS[name]


def test_the_page_on_heads_has_every_head_and_adaptor_with_its_size() -> None:
    page = (Path(__file__).parents[3] / "docs" / "heads.md").read_text()
    modules = [kind(1024, 2) for kind in HEADS.values()] + [kind(1024) for kind in ADAPTORS.values()]
    for module in modules:
        (line,) = (line for line in page.splitlines() if line.startswith(f"| `{module.name}` |"))
        assert f" {sum(p.numel() for p in module.parameters()):,} |" in line
        assert all(f"`{name}`" in line or "as `" in line for name in module.settings)


def test_dsmil_that_projects_values_has_the_parameters_of_the_method() -> None:
    head = build_head("dsmil", dim=1024, classes=2, settings={"project_values": True})
    assert sum(p.numel() for p in head.parameters()) == 1_203_460


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gated_abmil", {"depth": 3}),
        ("gated_abmil", {"dropout": 2.0}),
        ("gated_abmil", {"dim": 3}),
        ("clam_sb", {"k_sample": 0}),
        ("clam_mb", {"bag_weight": 1.5}),
        ("transmil", {"heads": 3, "hidden": 16}),
        ("transmil", {"landmarks": 0}),
        ("dtfd", {"groups": 0}),
        ("acmil", {"branches": 0}),
        ("acmil", {"masked": 1.1}),
        ("mean", {"adaptor.reduction": 4}),
        ("mean", {"hidden": -1}),
        ("mean", {"hidden": 0}),
        ("mean", {"hidden": 8.5}),
        ("mean", {"hidden": 10**12}),
        ("abmil", {"hidden": 10**6, "attention": 10**6}),
        ("mean", {"dropout": float("nan")}),
        ("mean", {"dropout": 1}),
        ("clam_sb", {"k_sample": 2.5}),
        ("clam_sb", {"subtyping": 2}),
        ("clam_mb", {"bag_weight": float("nan")}),
        ("dsmil", {"project_values": float("nan")}),
        ("transmil", {"iterations": float("nan")}),
        ("transmil", {"iterations": -1}),
        ("dtfd", {"groups": 2.5}),
        ("acmil", {"top": float("nan")}),
    ],
)
def test_settings_that_a_head_does_not_have_are_refused(name: str, settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"head '{name}' does not take these settings"):
        build_head(name, dim=4, classes=2, settings=settings)


@pytest.mark.parametrize("reduction", [0, -1, 1.5, float("nan"), 10**30])
def test_settings_that_an_adaptor_cannot_have_are_refused(reduction: float) -> None:
    with pytest.raises(UsageError, match="adaptor 'cbam' does not take these settings"):
        build_head("mean", dim=4, classes=2, adaptor="cbam", settings={"adaptor.reduction": reduction})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no head 'clam'.*gated_abmil"):
        build_head("clam", dim=4, classes=2)
    with pytest.raises(UsageError, match=r"no adaptor 'se'.*channel_attention"):
        build_head("mean", dim=4, classes=2, adaptor="se")
    with pytest.raises(UsageError, match=r"adaptor 'feature_pyramid'.*length 4 are not those of 3 scales"):
        build_head("mean", dim=4, classes=2, adaptor="feature_pyramid", settings={"adaptor.scales": 3})
