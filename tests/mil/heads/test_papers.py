"""Every head against the formulas of its paper, written out for one bag, tile by tile or matrix by matrix."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from mil.bags import PackedBags
from mil.heads import Criterion, Head
from mil.heads.acmil import ACMIL
from mil.heads.clam import ClamMB, ClamSB, Extremes
from mil.heads.dsmil import DSMIL
from mil.heads.dtfd import DTFD
from mil.heads.gated_abmil import GatedABMIL
from mil.heads.transmil import TransMIL

Rows = Callable[..., Tensor]
Packed = Callable[..., PackedBags]
Make = Callable[..., Head]
SIZES = (12, 1, 17, 4)
LABELS = torch.tensor([0, 1, 2, 1])


@pytest.fixture
def bags(rows: Rows) -> list[Tensor]:
    return [rows(n, seed) for seed, n in enumerate(SIZES)]


def logits_of(head: Head, bags: PackedBags) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = head(bags).logits
    return logits


def affine(layer: nn.Linear, x: Tensor) -> Tensor:
    """As the papers write it."""
    return layer.weight @ x if layer.bias is None else layer.weight @ x + layer.bias


def gated(head: nn.Module, h: Tensor) -> Tensor:
    """Attention logits ``(K,)`` of one hidden vector."""
    gate = 1 / (1 + torch.exp(-affine(head.U, h)))
    return affine(head.w, torch.tanh(affine(head.V, h)) * gate)


def weighted(a: list[Tensor], h: list[Tensor], column: int = 0) -> Tensor:
    """The attended mean."""
    weights = [torch.exp(logit[column]) for logit in a]
    total = torch.stack([weight * hidden for weight, hidden in zip(weights, h, strict=True)]).sum(0)
    return total / torch.stack(weights).sum()


def hidden(head: Head, bag: Tensor) -> list[Tensor]:
    return [torch.relu(affine(head.P, x)) for x in bag]


def mean(head: Head, bag: Tensor) -> Tensor:
    h = hidden(head, bag)
    return affine(head.W, sum(h) / len(h))


def max_instance(head: Head, bag: Tensor) -> Tensor:
    scores = [affine(head.W, h) for h in hidden(head, bag)]
    return torch.tensor([max(float(s[c]) for s in scores) for c in range(3)])


def max_embedding(head: Head, bag: Tensor) -> Tensor:
    h = hidden(head, bag)
    return affine(head.W, torch.tensor([max(float(v[i]) for v in h) for i in range(len(h[0]))]))


def abmil(head: Head, bag: Tensor) -> Tensor:
    h = hidden(head, bag)
    return affine(head.W, weighted([affine(head.w, torch.tanh(affine(head.V, v))) for v in h], h))


def gated_abmil(head: Head, bag: Tensor) -> Tensor:
    h = hidden(head, bag)
    return affine(head.W, weighted([gated(head, v) for v in h], h))


def additive_abmil(head: Head, bag: Tensor) -> Tensor:
    h = hidden(head, bag)
    alpha = torch.stack([gated(head, v) for v in h]).softmax(0)
    return torch.stack(
        [affine(head.W, torch.relu(affine(head.M, alpha[i] * v))) for i, v in enumerate(h)]
    ).sum(0)


def clam_sb(head: Head, bag: Tensor) -> Tensor:
    return gated_abmil(head, bag)


def clam_mb(head: Head, bag: Tensor) -> Tensor:
    h = hidden(head, bag)
    a = [gated(head, v) for v in h]
    return torch.stack([affine(head.W, weighted(a, h, c))[c] for c in range(3)])


def acmil(head: Head, bag: Tensor) -> Tensor:
    h = hidden(head, bag)
    alpha = torch.stack([gated(head, v) for v in h]).softmax(0).mean(1)
    return affine(head.W, torch.stack([w * v for w, v in zip(alpha, h, strict=True)]).sum(0))


def dsmil_streams(head: DSMIL, bag: Tensor) -> tuple[Tensor, Tensor]:
    scores = [affine(head.W0, x) for x in bag]
    q = [torch.tanh(affine(head.Q2, torch.relu(affine(head.Q1, x)))) for x in bag]
    v = [x if head.Wv is None else torch.relu(affine(head.Wv, x)) for x in bag]
    first, b = [], []
    for c in range(3):
        m = max(range(len(bag)), key=lambda i: scores[i][c].item())
        first.append(scores[m][c])
        a = [(query @ q[m] / math.sqrt(len(query)))[None] for query in q]
        b.append(weighted(a, v))
    kernel = head.W.weight.view(3, 3, -1)  # of the authors' convolution over D, C channels in and out
    second = torch.stack([(kernel[c] * torch.stack(b)).sum() + head.W.bias[c] for c in range(3)])
    return torch.stack(first), second


def dsmil(head: DSMIL, bag: Tensor) -> Tensor:
    first, second = dsmil_streams(head, bag)
    return (first + second) / 2


FORMULAS = {
    "mean": mean,
    "max_instance": max_instance,
    "max_embedding": max_embedding,
    "abmil": abmil,
    "gated_abmil": gated_abmil,
    "additive_abmil": additive_abmil,
    "clam_sb": clam_sb,
    "clam_mb": clam_mb,
    "dsmil": dsmil,
    "dsmil with values": dsmil,
    "acmil": acmil,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_head_is_the_formula_of_its_paper(
    name: str, bags: list[Tensor], make: Make, packed: Packed
) -> None:
    head = make(name).eval()
    with torch.inference_mode():
        expected = torch.stack([FORMULAS[name](head, bag) for bag in bags])
    assert_close(logits_of(head, packed(bags)), expected, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_gated_attention_is_that_of_the_formula(rows: Rows, packed: Packed) -> None:
    """Finite differences prove the loop in doubles; the head, which sums in float32, must equal the loop."""
    head = GatedABMIL(5, 2, hidden=6, attention=4).double().eval()
    features = rows(7, 2, 5).double()
    assert torch.autograd.gradcheck(lambda x: gated_abmil(head, x), features.requires_grad_())
    head.float()
    ours, theirs = (features.detach().float().requires_grad_() for _ in range(2))
    head(packed(ours.split([3, 4]))).logits.square().sum().backward()
    torch.stack([gated_abmil(head, bag) for bag in theirs.split([3, 4])]).square().sum().backward()
    assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def entropy(scores: Tensor, label: int) -> Tensor:
    return torch.logsumexp(scores, 0) - scores[label]


@pytest.mark.parametrize("name", ["clam_sb", "clam_mb", "clam_sb of subtypes", "clam_mb of subtypes"])
def test_the_loss_of_clam_is_that_of_a_loop(
    name: str, bags: list[Tensor], make: Make, packed: Packed, criterion: Criterion
) -> None:
    head = make(name).eval()
    assert isinstance(head, ClamSB | ClamMB)
    expected = []
    for bag, label in zip(bags, LABELS.tolist(), strict=True):
        h = hidden(head, bag)
        a = torch.stack([gated(head, v) for v in h])  # (n, K)
        most, least = min(3, math.ceil(len(bag) / 2)), min(3, len(bag) // 2)
        of_classes = []
        for c in range(3):
            order = a[:, c if a.shape[1] > 1 else 0].argsort(descending=True).tolist()
            if c == label:
                marked = [(i, 1) for i in order[:most]] + [(i, 0) for i in order[len(bag) - least :]]
            else:
                marked = [(i, 0) for i in order[:most]] if head.subtyping else []
            scores = [affine(head.tiles, h[i])[2 * c : 2 * c + 2] for i, _ in marked]
            losses = [entropy(s, target) for s, (_, target) in zip(scores, marked, strict=True)]
            of_classes += [sum(losses) / len(losses)] if losses else []
        forward = clam_mb if isinstance(head, ClamMB) else clam_sb
        of_tiles = sum(of_classes) / len(of_classes)
        expected.append(0.7 * entropy(forward(head, bag), label) + 0.3 * of_tiles)
    assert_close(head.losses(packed(bags), LABELS, criterion), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_no_tile_of_clam_is_taught_both_ways(rows: Rows, packed: Packed) -> None:
    sizes = tuple(range(1, 20))
    extremes = Extremes.of(rows(sum(sizes), width=1), packed(list(rows(sum(sizes)).split(sizes))), 8)
    assert not (extremes.most & extremes.least).any()
    for size, most, least in zip(sizes, extremes.most.split(sizes), extremes.least.split(sizes), strict=True):
        assert (int(most.sum()), int(least.sum())) == (min(8, math.ceil(size / 2)), min(8, size // 2))


@pytest.mark.parametrize("name", ["dsmil", "dsmil with values"])
def test_the_loss_of_dsmil_is_half_of_each_stream(
    name: str, bags: list[Tensor], make: Make, packed: Packed, criterion: Criterion
) -> None:
    head = make(name).eval()
    assert isinstance(head, DSMIL)
    expected = [
        sum(entropy(stream, label) for stream in dsmil_streams(head, bag)) / 2
        for bag, label in zip(bags, LABELS.tolist(), strict=True)
    ]
    assert_close(head.losses(packed(bags), LABELS, criterion), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_the_loss_of_acmil_is_that_of_a_loop(
    bags: list[Tensor], make: Make, packed: Packed, criterion: Criterion
) -> None:
    head = make("acmil").eval()
    assert isinstance(head, ACMIL)
    expected = []
    for bag, label in zip(bags, LABELS.tolist(), strict=True):
        h = hidden(head, bag)
        alpha = torch.stack([gated(head, v) for v in h]).softmax(0)  # (n, T)
        z = [torch.stack([alpha[i, t] * v for i, v in enumerate(h)]).sum(0) for t in range(4)]
        branches = [entropy(affine(head.Wt, z[t])[3 * t : 3 * t + 3], label) for t in range(4)]
        cosines = [
            functional.cosine_similarity(alpha[:, s], alpha[:, t], dim=0)
            for s, t in itertools.combinations(range(4), 2)
        ]
        of_bag = entropy(acmil(head, bag), label)
        expected.append(of_bag + sum(branches) / 4 + sum(cosines) / 6)
    assert_close(head.losses(packed(bags), LABELS, criterion), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_acmil_leaves_out_its_share_of_the_top_tiles_and_never_all(
    make: Make, rows: Rows, packed: Packed
) -> None:
    head = make("acmil", top=5, masked=0.6)
    assert isinstance(head, ACMIL)
    sizes = (30, 5, 2, 1)
    batch = packed([rows(n, n) for n in sizes])
    a = rows(sum(sizes), 1, 4)
    seen = head._mask(a, batch)
    for logits, left, dropped in zip(a.split(sizes), seen.split(sizes), (3, 3, 1, 0), strict=True):
        out = left == -torch.inf
        assert (out.sum(0) == dropped).all()
        assert torch.equal(left[~out], logits[~out])
        top = logits >= logits.sort(0, descending=True).values[min(5, len(logits)) - 1]
        assert top[out].all()
    everything = make("acmil", top=5, masked=1.0)
    assert isinstance(everything, ACMIL)
    left = [part != -torch.inf for part in everything._mask(a, batch).split(sizes)]
    assert [int(part.sum(0).min()) for part in left] == [25, 1, 1, 1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = torch.stack([head._mask(a, batch)[:30] == -torch.inf for _ in range(300)]).float().mean(0)
    chance = torch.where(draws > 0, draws, torch.nan).nanmean(0)
    assert_close(chance, torch.full((4,), 0.6), atol=0.02, rtol=0)


def raster_groups(count: int, places: Tensor) -> list[list[int]]:
    order = sorted(range(len(places)), key=lambda i: (int(places[i, 1]), int(places[i, 0])))
    return [order[g::count] for g in range(min(count, len(places)))]


@pytest.mark.parametrize("picked", [0, 1, 2])
def test_both_tiers_of_dtfd_are_those_of_a_loop(
    picked: int, bags: list[Tensor], make: Make, packed: Packed, criterion: Criterion
) -> None:
    head = make("dtfd", picked=picked).eval()
    assert isinstance(head, DTFD)
    batch = packed(bags)
    logits, losses = [], []
    places = batch.places.split(SIZES)
    for bag, where, label in zip(bags, places, LABELS.tolist(), strict=True):
        h = hidden(head, bag)
        handed, of_groups = [], []
        for group in raster_groups(4, where):
            inside = [h[i] for i in group]
            a = [gated(head.first, v) for v in inside]
            z = weighted(a, inside)
            y = affine(head.first.W, z)
            of_groups.append(entropy(y, label))
            alpha = torch.stack(a).softmax(0)
            parts = torch.stack([w * (head.first.W.weight @ v) for w, v in zip(alpha, inside, strict=True)])
            order = parts.softmax(1)[:, y.argmax()].argsort(descending=True).tolist()
            chosen = order[:picked] + order[max(0, len(order) - picked) :] if picked else []
            handed += [inside[i] for i in chosen] if picked else [z]
        y = affine(head.second.W, weighted([gated(head.second, v) for v in handed], handed))
        logits.append(y)
        losses.append(sum(of_groups) / len(of_groups) + entropy(y, label))
    assert_close(logits_of(head, batch), torch.stack(logits), atol=1e-5, rtol=1e-5)
    assert_close(head.losses(batch, LABELS, criterion), torch.stack(losses), atol=1e-5, rtol=1e-5)


def test_the_tiers_of_dtfd_learn_apart_but_are_explained_together(
    bags: list[Tensor], make: Make, packed: Packed, criterion: Criterion
) -> None:
    head = make("dtfd").eval()
    assert isinstance(head, DTFD)

    def gradients(of: Tensor) -> tuple[Tensor, Tensor]:
        head.zero_grad()
        of.backward()
        assert head.P.weight.grad is not None
        return head.P.weight.grad.clone(), head.second.W.weight.grad.clone()

    both = gradients(head.losses(packed(bags), LABELS, criterion).sum())
    first_only = head._first_tier(packed(bags))
    split, judged = first_only[1], first_only[2]
    per_group = criterion(judged.logits, LABELS[split.bag_of_group])
    share = torch.tensor([1 / min(4, n) for n in SIZES])[split.bag_of_group]
    head.zero_grad()
    (per_group * share).sum().backward()
    assert_close(head.P.weight.grad, both[0], atol=1e-6, rtol=1e-5)
    assert (both[1] != 0).any()
    trunk, _ = gradients(head(packed(bags)).logits.square().sum())
    assert (trunk != 0).any()  # gradient x input and integrated gradients go through both tiers


def test_dtfd_deals_anew_in_training_and_evenly(make: Make, rows: Rows, packed: Packed) -> None:
    head = make("dtfd")
    assert isinstance(head, DTFD)
    sizes = (30, 3, 1, 9)
    batch = packed([rows(n, n) for n in sizes])
    splits = [head._first_tier(batch)[1] for _ in range(2)]
    assert not torch.equal(splits[0].group_of_row, splits[1].group_of_row)
    for split in splits:
        counts = torch.bincount(split.group_of_row).tolist()
        assert split.bag_of_group.tolist() == [0] * 4 + [1] * 3 + [2] + [3] * 4
        assert sorted(counts[:4]) == [7, 7, 8, 8]
        assert counts[4:8] == [1, 1, 1, 1]
        assert sorted(counts[8:]) == [2, 2, 2, 3]
        assert torch.equal(split.bag_of_group[split.group_of_row], batch.bag_of_row)


def test_tiles_at_one_place_are_told_apart_by_what_they_show(make: Make, rows: Rows, packed: Packed) -> None:
    """So that the two heads that know of places do not depend on the order of storage even then."""
    bag, places = rows(12), torch.tensor([[0, 0], [1, 0], [1, 1]]).repeat(4, 1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(4))
    for name in ("transmil", "dtfd"):
        head = make(name).eval()
        straight = logits_of(head, packed([bag], [places]))
        assert_close(straight, logits_of(head, packed([bag[order]], [places[order]])), atol=1e-5, rtol=1e-5)


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def attention_layer(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """``(S, L)`` to the same, and the first token's attention ``(S,)``, with whole matrices."""
    tokens, width = x.shape
    d = width // layer.heads
    q, k, v = (layer.qkv.weight @ layer_norm(layer.norm, x).T).T.split(width, dim=1)
    outputs, firsts = [], []
    for head in range(layer.heads):
        part = slice(head * d, head * d + d)
        qh, kh, vh = q[:, part] / math.sqrt(d), k[:, part], v[:, part]
        if tokens <= layer.landmarks:
            matrix = (qh @ kh.T).softmax(1)
        else:
            block = math.ceil(tokens / layer.landmarks)
            ends = list(range(tokens, 0, -block))[::-1]  # blocks are counted from the back
            blocks = [range(max(0, end - block), end) for end in ends]
            ql, kl = (torch.stack([t[list(b)].mean(0) for b in blocks]) for t in (qh, kh))
            core = (ql @ kl.T).softmax(1)
            z = core.T / (core.sum(0).max() * core.sum(1).max())
            one = torch.eye(len(core), dtype=core.dtype)
            for _ in range(layer.iterations):
                cz = core @ z
                z = z @ (13 * one - cz @ (15 * one - cz @ (7 * one - cz))) / 4
            matrix = (qh @ kl.T).softmax(1) @ z @ (ql @ kh.T).softmax(1)
        kernel = layer.near.weight[head, 0, :, 0]
        reach = len(kernel) // 2
        near = torch.zeros_like(vh)
        for t in range(tokens):
            for tap in range(len(kernel)):
                if 0 <= t + tap - reach < tokens:
                    near[t] += kernel[tap] * vh[t + tap - reach]
        outputs.append(matrix @ vh + near)
        firsts.append(matrix[0])
    return x + torch.cat(outputs, 1) @ layer.out.weight.T + layer.out.bias, torch.stack(firsts).mean(0)


def transmil(head: TransMIL, bag: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the attention of each tile; for a bag that is in raster order."""
    h = torch.stack(hidden(head, bag))
    side = math.ceil(math.sqrt(len(h)))
    more = side**2 - len(h)
    x, _ = attention_layer(head.first, torch.cat([head.cls[None], h, h[:more]]))
    grid = x[1:].T.reshape(1, -1, side, side)
    for convolution in (head.ppeg.wide, head.ppeg.middle, head.ppeg.narrow):
        pad = convolution.kernel_size[0] // 2
        grid = grid + functional.conv2d(
            x[1:].T.reshape(1, -1, side, side),
            convolution.weight,
            convolution.bias,
            padding=pad,
            groups=x.shape[1],
        )
    x, first = attention_layer(head.second, torch.cat([x[:1], grid.flatten(2)[0].T]))
    attention = first[1 : 1 + len(h)].clone()
    attention[:more] += first[1 + len(h) :]
    return affine(head.W, layer_norm(head.norm, x)[0]), attention


@pytest.mark.parametrize("landmarks", [3, 6, 40])
def test_transmil_is_the_paper_with_whole_matrices(
    landmarks: int, bags: list[Tensor], make: Make, packed: Packed
) -> None:
    head = make("transmil", landmarks=landmarks).eval()
    assert isinstance(head, TransMIL)
    with torch.inference_mode():
        output = head(packed(bags))
        expected = [transmil(head, bag) for bag in bags]
    assert_close(output.logits, torch.stack([logits for logits, _ in expected]), atol=1e-4, rtol=1e-4)
    attention = torch.cat([attention for _, attention in expected])
    positive = attention > 1e-6
    assert_close(
        output.attention_logits.squeeze(1)[positive].exp(), attention[positive], atol=1e-5, rtol=1e-3
    )
