"""Small heads of every kind, with and without adaptors, and bags whose tiles stand in a plane."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mil.adaptors import ADAPTORS
from mil.bags import PackedBags
from mil.heads import HEADS, Criterion, Head, Settings, build_head

DIM, CLASSES = 12, 3

VARIANTS: dict[str, tuple[str, Settings]] = {
    "linear": ("linear", {}),
    "mean": ("mean", {"hidden": 16}),
    "max_instance": ("max_instance", {"hidden": 16}),
    "max_embedding": ("max_embedding", {"hidden": 16}),
    "abmil": ("abmil", {"hidden": 16, "attention": 8}),
    "gated_abmil": ("gated_abmil", {"hidden": 16, "attention": 8}),
    "additive_abmil": ("additive_abmil", {"hidden": 16, "attention": 8, "classifier": 6}),
    "clam_sb": ("clam_sb", {"hidden": 16, "attention": 8, "k_sample": 3}),
    "clam_sb of subtypes": ("clam_sb", {"hidden": 16, "attention": 8, "k_sample": 3, "subtyping": True}),
    "clam_mb": ("clam_mb", {"hidden": 16, "attention": 8, "k_sample": 3}),
    "clam_mb of subtypes": ("clam_mb", {"hidden": 16, "attention": 8, "k_sample": 3, "subtyping": True}),
    "dsmil": ("dsmil", {"attention": 8}),
    "dsmil with values": ("dsmil", {"attention": 8, "project_values": True}),
    "transmil": ("transmil", {"hidden": 16, "heads": 2, "landmarks": 6}),
    "dtfd": ("dtfd", {"hidden": 16, "attention": 8}),
    "dtfd of picked tiles": ("dtfd", {"hidden": 16, "attention": 8, "picked": 2}),
    "acmil": ("acmil", {"hidden": 16, "attention": 8, "branches": 4, "top": 5}),
}
OF_ADAPTORS: dict[str, Settings] = {
    "channel_attention": {"adaptor.reduction": 3},
    "cbam": {"adaptor.reduction": 3},
    "feature_pyramid": {"adaptor.scales": 3, "adaptor.width": 10},
    "cross_scale": {"adaptor.scales": 3, "adaptor.width": 8, "adaptor.heads": 2},
    "principal": {"adaptor.components": 7},
    "unit_length": {},
}
assert {name for name, _ in VARIANTS.values()} == set(HEADS)
assert set(OF_ADAPTORS) == set(ADAPTORS)


def make_head(variant: str, adaptor: str | None = None, *, seed: int = 5, **settings: float) -> Head:
    """A small head in training mode."""
    name, small = VARIANTS[variant]
    in_front = OF_ADAPTORS[adaptor] if adaptor else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = build_head(
            name, dim=DIM, classes=CLASSES, settings={**small, **in_front, **settings}, adaptor=adaptor
        )
        for name, buffer in head.named_buffers():  # statistics of some features, in front of the head
            if name != "front.axes":  # which are orthogonal as they are
                buffer.copy_(torch.rand(buffer.shape) + 0.5)
        return head


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Heads this small are slower with several, and much slower on a machine that has other work."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


UNLIKE = ("gated_abmil", "max_embedding", "clam_mb of subtypes", "transmil", "dtfd of picked tiles")
"""Heads that do the most different things with the features: those that adaptors are tried with."""

PAIRS = [(variant, None) for variant in VARIANTS]
ADAPTED = [(variant, adaptor) for adaptor in OF_ADAPTORS for variant in UNLIKE]


@pytest.fixture(params=[*PAIRS, *ADAPTED], ids=lambda pair: " after ".join(filter(None, pair)))
def head(request: pytest.FixtureRequest) -> Head:
    """Every head, and heads after every adaptor, in eval mode."""
    return make_head(*request.param).eval()


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def plain(variant: str) -> Head:
    """Every head without an adaptor, in eval mode."""
    return make_head(variant).eval()


@pytest.fixture
def make() -> Callable[..., Head]:
    return make_head


@pytest.fixture
def rows() -> Callable[..., Tensor]:
    """Draw ``(count, width)`` features."""

    def draw(count: int, seed: int = 0, width: int = DIM) -> Tensor:
        return torch.randn((count, width), generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture
def packed() -> Callable[..., PackedBags]:
    """Pack bags ``(n, D)``; their tiles stand five in a row, but for a hole, unless places are given."""

    def pack(bags: Sequence[Tensor], places: Sequence[Tensor] | None = None) -> PackedBags:
        sizes = [len(bag) for bag in bags]
        if places is None:
            numbers = [torch.arange(size) + (torch.arange(size) > 6) for size in sizes]
            places = [torch.stack([number % 5, number // 5], dim=1) for number in numbers]
        bag_of_row = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        return PackedBags(torch.cat(list(bags)), bag_of_row, torch.cat(list(places)), tuple(sizes))

    return pack


@pytest.fixture
def criterion() -> Criterion:
    return lambda logits, labels: functional.cross_entropy(logits, labels, reduction="none")
