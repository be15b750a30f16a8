"""Every head, and every adaptor, can be taught to find one telling tile among many."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from mil.adaptors import ADAPTORS
from mil.bags import PackedBags
from mil.heads import Criterion, Head

TILES, BAGS, PER_STEP, STEPS = 15, 240, 40, 60
ATTENTIVE = {"abmil", "gated_abmil", "additive_abmil", "clam_sb", "acmil", "dtfd"}
"""Heads with one attention for all classes, which then has to be on the tile that decides."""

Packed = Callable[..., PackedBags]
Make = Callable[..., Head]


def cohort(seed: int, *, bags: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bags ``(bags, TILES, 12)``, their labels 0 to 2, and which tiles tell: one in each of class 1 and 2."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn((bags, TILES, 12), generator=generator)
    labels = torch.arange(bags) % 3
    telling = torch.zeros(bags, TILES, dtype=torch.bool)
    places = torch.randint(0, TILES, (bags,), generator=generator)
    for bag, (label, place) in enumerate(zip(labels.tolist(), places.tolist(), strict=True)):
        if label:
            telling[bag, place] = True
            features[bag, place, label::3] += 5.0  # at all scales, where these are three
    return features, labels, telling


def taught(head: Head, packed: Packed, criterion: Criterion) -> Head:
    features, labels, _ = cohort(1, bags=BAGS)
    optimizer = torch.optim.AdamW(head.train().parameters(), lr=1e-2, weight_decay=1e-2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for step in range(STEPS):
            chosen = (torch.arange(PER_STEP) + step * PER_STEP) % BAGS
            optimizer.zero_grad()
            head.losses(packed(list(features[chosen])), labels[chosen], criterion).mean().backward()
            optimizer.step()
    return head.eval()


def check(head: Head, packed: Packed) -> None:
    features, labels, telling = cohort(2, bags=60)
    with torch.inference_mode():
        output = head(packed(list(features)))
    probabilities = functional.softmax(output.logits.double(), dim=1)
    assert roc_auc_score(labels.numpy(), probabilities.numpy(), multi_class="ovr") > 0.9
    if head.name in ATTENTIVE:
        present = labels > 0
        attention = output.attention_logits.view(60, TILES)[present]
        assert roc_auc_score(telling[present].flatten().numpy(), attention.flatten().numpy()) > 0.9


def test_a_head_finds_the_telling_tile(
    variant: str, make: Make, packed: Packed, criterion: Criterion
) -> None:
    check(taught(make(variant, dropout=0.0), packed, criterion), packed)


@pytest.mark.parametrize("adaptor", sorted(ADAPTORS))
def test_a_head_finds_it_after_an_adaptor(
    adaptor: str, make: Make, packed: Packed, criterion: Criterion
) -> None:
    check(taught(make("gated_abmil", adaptor, dropout=0.0), packed, criterion), packed)
