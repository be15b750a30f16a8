"""Heads against torchmil's, which are independent of ours, with the same weights.

torchmil has one logit for two classes where ours has two: the difference of ours must be its one, or ours is
made with one class. Its TransMIL (no ReLU, no residual convolution) and DTFD-MIL (plain attention, a random
split from NumPy's global generator) are other networks, of which parts can be compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mil.bags import PackedBags
from mil.heads import build_head
from mil.heads.dsmil import DSMIL
from mil.heads.nystrom import Landmarks, attend
from mil.heads.transmil import TransMIL
from mil.networks.torchvision_shim import ensure_torchvision

Rows = Callable[..., Tensor]
Packed = Callable[..., PackedBags]


@pytest.fixture(scope="module")
def models() -> ModuleType:
    ensure_torchvision()  # torchmil imports it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on import, of its own dependencies
        pytest.importorskip("torchmil.models")
        import torchmil.models
    models: ModuleType = torchmil.models
    return models


def copy(ours: nn.Linear, theirs: nn.Linear) -> None:
    with torch.no_grad():
        theirs.weight.copy_(ours.weight)
        if theirs.bias is not None:
            theirs.bias.copy_(ours.bias)


def copy_difference(ours: nn.Linear, theirs: nn.Linear) -> None:
    """Of the second class to the first."""
    with torch.no_grad():
        theirs.weight.copy_(ours.weight[1:] - ours.weight[:1])
        theirs.bias.copy_(ours.bias[1:] - ours.bias[:1])


@pytest.mark.parametrize("name", ["abmil", "gated_abmil", "clam_sb"])
def test_attention_heads_equal_torchmils(models: ModuleType, name: str, rows: Rows, packed: Packed) -> None:
    settings = {"hidden": 16, "attention": 8}
    ours = build_head(name, dim=12, classes=2, settings=settings).eval()
    trunk = nn.Sequential(nn.Linear(12, 16), nn.ReLU())
    kind = models.CLAM_SB if name == "clam_sb" else models.ABMIL
    theirs = kind(in_shape=(12,), att_dim=8, gated=name != "abmil", feat_ext=trunk).eval()
    copy(ours.P, trunk[0])
    copy(ours.V, theirs.pool.fc1.module)
    copy(ours.w, theirs.pool.fc2)
    copy_difference(ours.W, theirs.classifier.module)
    if name != "abmil":
        copy(ours.U, theirs.pool.fc_gated.module)
    bags = [rows(9), rows(1, 1), rows(30, 2)]
    with torch.inference_mode():
        output = ours(packed(bags))
        each = [theirs(bag[None], return_att=True) for bag in bags]
    assert_close(output.logits[:, 1] - output.logits[:, 0], torch.cat([logit for logit, _ in each]))
    attention = torch.cat([attention.squeeze(0) for _, attention in each])  # without the bias, which cancels
    assert_close(output.attention_logits.squeeze(1) - ours.w.bias, attention)


def test_dsmil_equals_torchmils(models: ModuleType, rows: Rows, packed: Packed) -> None:
    ours = DSMIL(12, 1, attention=8).eval()
    theirs = models.DSMIL(in_shape=(12,), att_dim=8, nonlinear_q=True, nonlinear_v=False).eval()
    copy(ours.W0, theirs.inst_classifier)
    copy(ours.Q1, theirs.q_nn[0])
    copy(ours.Q2, theirs.q_nn[2])
    copy(ours.W, theirs.bag_classifier)
    bags = [rows(9), rows(1, 1), rows(30, 2)]
    with torch.inference_mode():
        each = torch.cat([theirs.predict(bag[None]) for bag in bags])
        assert_close(ours(packed(bags)).logits.squeeze(1), each)


def test_nystrom_attention_equals_torchmils(models: ModuleType, rows: Rows) -> None:
    """For one head and bag, where its start of the inverse is the matrix's own, and nothing is padded."""
    from torchmil.nn.attention.nystrom_attention import NystromAttention

    theirs = NystromAttention(in_dim=12, att_dim=12, n_heads=1, n_landmarks=5, pinv_iterations=6).eval()
    x = rows(20)[None]
    with torch.inference_mode():
        q, k, v = (part[:, None] for part in theirs.qkv_nn(x).chunk(3, dim=-1))
        landmarks = Landmarks.of(q, k, count=5, iterations=6)
        assert_close(attend(q, k, v, landmarks)[:, 0], theirs(x), atol=1e-5, rtol=1e-5)


def test_position_encoding_equals_torchmils(models: ModuleType, rows: Rows) -> None:
    from torchmil.models.transmil import PPEG

    ours, theirs = TransMIL(12, 2, hidden=16, heads=2).ppeg, PPEG(16)
    for our_layer, their_layer in (
        (ours.wide, theirs.proj),
        (ours.middle, theirs.proj1),
        (ours.narrow, theirs.proj2),
    ):
        their_layer.load_state_dict(our_layer.state_dict())
    x = rows(26, width=16)[None]
    with torch.inference_mode():
        assert_close(ours(x, 5), theirs(x, 5, 5), atol=1e-5, rtol=1e-5)
