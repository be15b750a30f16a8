"""Adaptors against the formulas of their papers; tests/mil/heads/test_laws.py tries them before heads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from mil.adaptors.cbam import CBAM
from mil.adaptors.channel_attention import ChannelAttention
from mil.adaptors.cross_scale import CrossScale
from mil.adaptors.feature_pyramid import FeaturePyramid
from mil.adaptors.neighbours import find_neighbours
from mil.adaptors.principal import Principal
from mil.adaptors.unit_length import UnitLength
from mil.bags import PackedBags
from mil.checkpoint import write_weights
from mil.heads import build_head
from mil.heads.adapted import AdaptedHead
from mil.networks.weights import digest_state, read_state
from wsi.errors import UsageError


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def packed(features: Sequence[Tensor], places: Sequence[Tensor]) -> PackedBags:
    sizes = tuple(len(part) for part in features)
    bag_of_row = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return PackedBags(torch.cat(list(features)), bag_of_row, torch.cat(list(places)), sizes)


def some_places(count: int, *, side: int, seed: int) -> Tensor:
    """Different places in a square."""
    chosen = torch.randperm(side * side, generator=torch.Generator().manual_seed(seed))[:count]
    return torch.stack([chosen % side, chosen // side], dim=1)


@torch.inference_mode()
def test_channel_attention_is_squeeze_and_excitation() -> None:
    adaptor = ChannelAttention(12, reduction=3)
    bags = [draw(7, 12), draw(1, 12, seed=1), draw(30, 12, seed=2)]
    result = adaptor(packed(bags, [torch.zeros(len(bag), 2, dtype=torch.long) for bag in bags]))
    for bag, part in zip(bags, result.split([7, 1, 30]), strict=True):
        gate = torch.sigmoid(adaptor.W2(functional.relu(adaptor.W1(bag.mean(0)))))
        assert_close(part, bag * gate)


def on_a_grid(adaptor: CBAM, bag: Tensor, places: Tensor) -> Tensor:
    """CBAM with a whole picture, zero where there is no tile."""
    x = bag * torch.sigmoid(adaptor.mlp(bag.mean(0)) + adaptor.mlp(bag.amax(0)))
    width, height = (places.amax(0) + 1).tolist()
    picture = torch.zeros(1, 2, height, width)
    for column, row in places.unique(dim=0).tolist():
        here = x[(places == torch.tensor([column, row])).all(1)]
        picture[0, 0, row, column] = here.mean(1).mean()
        picture[0, 1, row, column] = here.amax(1).mean()
    where = torch.sigmoid(functional.conv2d(picture, adaptor.f.weight, adaptor.f.bias, padding=3))[0, 0]
    return x * where[places[:, 1], places[:, 0], None]


@torch.inference_mode()
def test_cbam_is_the_convolution_over_the_grid_of_tiles() -> None:
    adaptor = CBAM(12, reduction=3)
    bags = [draw(40, 12), draw(1, 12, seed=1), draw(60, 12, seed=2)]
    places = [some_places(40, side=9, seed=0), torch.tensor([[3, 2]]), some_places(60, side=30, seed=1)]
    result = adaptor(packed(bags, places))
    expected = [on_a_grid(adaptor, bag, where) for bag, where in zip(bags, places, strict=True)]
    assert_close(result, torch.cat(expected), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_cbam_takes_the_mean_of_tiles_at_one_place() -> None:
    adaptor = CBAM(12, reduction=3)
    bag, places = draw(20, 12), some_places(10, side=5, seed=0).repeat(2, 1)
    assert_close(adaptor(packed([bag], [places])), on_a_grid(adaptor, bag, places), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_tiles_that_stand_far_apart_need_no_grid_between_them() -> None:
    """A picture of these places would have 4e18 pixels."""
    adaptor = CBAM(12, reduction=3)
    near = some_places(10, side=4, seed=0)
    places = torch.cat([near, near + torch.tensor([2**31, 0]), near + torch.tensor([2**20, 2**31])])
    bag = draw(30, 12)
    far_apart = adaptor(packed([bag], [places]))
    apart = torch.cat([near, near + torch.tensor([20, 0]), near + torch.tensor([0, 20])])
    assert_close(far_apart, on_a_grid(adaptor, bag, apart), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reach", [1, 3])
def test_neighbours_are_those_of_a_search_through_all_places(reach: int) -> None:
    places = [some_places(30, side=9, seed=0), some_places(25, side=40, seed=1) * 3, torch.tensor([[0, 0]])]
    bags = packed([draw(len(part), 1) for part in places], places)
    found = find_neighbours(bags, reach=reach)
    at = {}
    for bag, where, place in zip(
        bags.bag_of_row.tolist(), bags.places.tolist(), found.place_of_row.tolist(), strict=True
    ):
        at[bag, *where] = place
    steps = range(-reach, reach + 1)
    for (bag, column, row), place in at.items():
        expected = [at.get((bag, column + x, row + y), len(at)) for y in steps for x in steps]
        assert found.neighbours[place].tolist() == expected


@torch.inference_mode()
def test_the_pyramid_sums_from_the_coarsest_scale_down() -> None:
    adaptor = FeaturePyramid(12, scales=3, width=5)
    x = draw(4, 12)
    fine, middle, coarse = x.split(4, dim=1)
    m3 = functional.relu(adaptor.L[2](coarse))
    m2 = functional.relu(adaptor.L[1](middle) + m3)
    m1 = functional.relu(adaptor.L[0](fine) + m2)
    expected = adaptor.F(torch.cat([m1, m2, m3], dim=1))
    assert_close(adaptor(packed([x], [torch.zeros(4, 2, dtype=torch.long)])), expected)


@torch.inference_mode()
def test_scales_attend_to_one_another_as_torchs_own_attention_does() -> None:
    adaptor = CrossScale(12, scales=3, width=8, heads=2)
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    reference.in_proj_weight.copy_(adaptor.qkv.weight)
    reference.in_proj_bias.copy_(adaptor.qkv.bias)
    reference.out_proj.load_state_dict(adaptor.O.state_dict())
    x = draw(4, 12)
    tokens = adaptor.E(x.view(4, 3, 4)) + adaptor.e
    normed = adaptor.norm(tokens)
    attended, _ = reference(normed, normed, normed)
    expected = (tokens + attended).mean(dim=1)
    assert_close(adaptor(packed([x], [torch.zeros(4, 2, dtype=torch.long)])), expected)


def test_a_head_takes_what_its_adaptor_gives() -> None:
    head = build_head(
        "gated_abmil", dim=12, classes=2, adaptor="cross_scale", settings={"adaptor.width": 8, "hidden": 6}
    )
    assert isinstance(head, AdaptedHead)
    assert (head.name, head.adaptor, head.dim, head.head.dim) == ("gated_abmil", "cross_scale", 12, 8)
    assert head.settings["hidden"] == 6
    assert head.settings["adaptor.width"] == 8
    assert head.settings["adaptor.scales"] == 2
    assert build_head("gated_abmil", dim=12, classes=2).adaptor is None
    with pytest.raises(ValueError, match="gives 12 numbers a tile, and the head takes 8"):
        AdaptedHead(CBAM(12), head.head)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("channel_attention", {"reduction": 0}),
        ("cbam", {"reduction": -1}),
        ("cbam", {"kernel": 3}),
        ("feature_pyramid", {"scales": 5}),
        ("feature_pyramid", {"scales": 1}),
        ("cross_scale", {"scales": 0}),
        ("principal", {"components": 0}),
        ("cross_scale", {"width": 9, "heads": 2}),
    ],
)
def test_settings_that_an_adaptor_does_not_have_are_refused(name: str, settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"adaptor '{name}' does not take these settings"):
        build_head(
            "mean",
            dim=12,
            classes=2,
            adaptor=name,
            settings={f"adaptor.{key}": value for key, value in settings.items()},
        )


def in_front(adaptor: torch.nn.Module, x: Tensor) -> Tensor:
    adapted: Tensor = adaptor(packed([x], [torch.zeros(len(x), 2, dtype=torch.long)]))
    return adapted


def some_axes(count: int, *, seed: int = 0) -> Tensor:
    return torch.linalg.qr(draw(12, count, seed=seed).double())[0].T


@torch.inference_mode()
def test_features_along_all_axes_keep_their_distances_and_along_some_never_gain_any() -> None:
    x = 3 * draw(40, 12)
    mean = draw(12, seed=1)
    for count in (1, 5, 12, 200):
        adaptor = Principal(12, components=count)
        width = min(count, 12)
        assert adaptor.width == width
        adaptor.set_statistics(mean, some_axes(width), torch.tensor(0.5))
        result = in_front(adaptor, x)
        assert result.shape == (40, width)
        exact = partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")
        longer = exact(x, x) / 0.5 - exact(result, result)
        assert longer.min() > -1e-4
        assert (longer.max() < 1e-4) == (width == 12)
        assert_close(in_front(adaptor, mean[None]), torch.zeros(1, width))


@torch.inference_mode()
def test_axes_that_nobody_set_are_orthogonal() -> None:
    adaptor = Principal(12, components=5)
    assert_close(adaptor.axes @ adaptor.axes.T, torch.eye(5))
    x = draw(30, 12)
    assert_close(in_front(adaptor, x), x @ adaptor.axes.T)


@torch.inference_mode()
def test_features_of_unit_length_are_directions_from_the_centre() -> None:
    x, centre = draw(30, 12) * 3, draw(12, seed=1)
    adaptor = UnitLength(12)
    adaptor.set_statistics(centre)
    result = in_front(adaptor, x)
    assert_close(result, functional.normalize(x - centre))
    for scale in (1e-30, 1e-6, 1e30):  # squares of such numbers are no float32
        adaptor.set_statistics(torch.zeros(12))
        assert_close(in_front(adaptor, x * scale), functional.normalize(x))
    adaptor.set_statistics(x[3])
    assert (in_front(adaptor, x)[3] == 0).all()
    assert in_front(adaptor, x).isfinite().all()


def test_the_gradient_through_a_length_is_that_of_the_formula() -> None:
    """The largest value is divided out first, as if it were a constant."""
    x = draw(5, 12).double().requires_grad_()
    adaptor = UnitLength(12).double()
    adaptor.set_statistics(draw(12, seed=1))
    assert torch.autograd.gradcheck(lambda values: in_front(adaptor, values), x)
    assert torch.autograd.gradgradcheck(lambda values: in_front(adaptor, values), x)


@torch.inference_mode()
def test_a_centre_that_nobody_set_changes_nothing_but_the_length() -> None:
    x = draw(30, 12)
    assert_close(in_front(UnitLength(12), x), functional.normalize(x))


@pytest.mark.parametrize("name", ["principal", "unit_length"])
def test_statistics_are_saved_with_the_weights_and_are_not_learnt(name: str, tmp_path: Path) -> None:
    head, again = (build_head("linear", dim=12, classes=2, adaptor=name) for _ in range(2))
    assert isinstance(head, AdaptedHead)
    before = digest_state(head.state_dict())
    front = head.front
    if isinstance(front, Principal):
        front.set_statistics(draw(12).double(), some_axes(12, seed=1).requires_grad_(), torch.tensor(2))
    else:
        assert isinstance(front, UnitLength)
        front.set_statistics(draw(12))
    assert digest_state(head.state_dict()) != before
    assert {name for name, _ in head.named_parameters()} == {"head.W.weight", "head.W.bias"}
    assert not any(buffer.requires_grad for buffer in head.buffers())
    write_weights(tmp_path / "weights.safetensors", head)
    again.load_state_dict(read_state(tmp_path / "weights.safetensors"))
    assert digest_state(again.state_dict()) == digest_state(head.state_dict())
    one = packed([draw(4, 12)], [torch.zeros(4, 2, dtype=torch.long)])
    assert torch.equal(again(one).logits, head(one).logits)


def test_statistics_of_other_features_are_refused() -> None:
    mean, axes, one = draw(12), some_axes(5), torch.ones(())
    holed = mean.clone()
    holed[5] = torch.nan
    adaptor = Principal(12, components=5)
    before = digest_state(adaptor.state_dict())
    for statistics, words in (
        ((mean[:11], axes, one), r"the mean: shape \(11,\), and of these features it is \(12,\)"),
        ((holed, axes, one), "the mean: some values are not finite"),
        ((mean, axes[:4], one), r"the axes: shape \(4, 12\)"),
        ((mean, 1.01 * axes, one), "the axes are not orthogonal, or not of length 1"),
        ((mean, axes[[0, 1, 2, 3, 3]], one), "the axes are not orthogonal, or not of length 1"),
        ((mean, axes, 0 * one), "the deviation is 0; it must be above 0"),
        ((mean, axes, -one), "the deviation is -1; it must be above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            adaptor.set_statistics(*statistics)
    assert digest_state(adaptor.state_dict()) == before
    with pytest.raises(ValueError, match="the centre: some values are not finite"):
        UnitLength(12).set_statistics(holed)
