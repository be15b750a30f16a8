r"""Attention-challenging multiple-instance learning: attentions that are kept unlike, and from settling.

Y. Zhang et al., "Attention-Challenging Multiple Instance Learning for Whole Slide Image Classification",
ECCV 2024 (arXiv:2311.07125), with gated attention.

Attention likes to settle on a handful of tiles, and the head then learns these by heart. Two remedies. T
branches weigh the tiles, each with a classifier of its own, and a loss keeps their weights unlike one
another; and in training a share of each branch's most attended tiles is left out at random (STKIM):

.. math::

    h_i         &= \mathrm{ReLU}(P x_i) \\
    a_{it}      &= w_t^\top \left( \tanh(V h_i) \odot \mathrm{sigm}(U h_i) \right) \\
    \alpha_t    &= \mathrm{softmax}_i(a_t), \qquad \bar\alpha = \tfrac1T \sum_t \alpha_t \\
    y_t         &= W_t \sum_i \alpha_{it} h_i \\
    y           &= W \sum_i \bar\alpha_i h_i

The loss of a bag is the criterion of y, plus the mean criterion of the y_t, plus the mean cosine of the
pairs of alpha_t; each weighs 1.

What is left out gets minus infinity before the softmax, never all tiles of a bag. The defaults are the
paper's method (5 branches, 60 % of the top 10); those of the authors' program, one branch and no masking,
are plain gated attention.

::

    N  rows of all bags       L  hidden width       D  length of a feature vector
    B  bags                   A  attention width    C  classes        T  branches
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.bags import PackedBags
from mil.heads.contract import Criterion, Head, HeadOutput
from mil.heads.dropout import Dropout
from mil.segments import segment_log_softmax, segment_rank, segment_sizes, segment_softmax, segment_sum


class ACMIL(Head):
    """See the module's text.

    Parameters
    ----------
    dim
        D.
    classes
        C.
    hidden
        L.
    attention
        A.
    branches
        T.
    top
        How many of a branch's most attended tiles may be left out in training; 0 for none.
    masked
        Share of these that is.
    dropout
        Share of hidden values left out in training.
    """

    name = "acmil"

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        hidden: int = 512,
        attention: int = 128,
        branches: int = 5,
        top: int = 10,
        masked: float = 0.6,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if branches < 1 or top < 0 or not 0 <= masked <= 1:
            raise ValueError("branches must be at least 1, top at least 0, and masked between 0 and 1")
        self.dim, self.classes = dim, classes
        self.branches, self.top, self.masked = branches, top, masked
        self.settings = {
            "hidden": hidden,
            "attention": attention,
            "branches": branches,
            "top": top,
            "masked": masked,
            "dropout": dropout,
        }
        self.P = nn.Linear(dim, hidden, bias=False)
        self.V = nn.Linear(hidden, attention)
        self.U = nn.Linear(hidden, attention)
        self.w = nn.Linear(attention, branches)
        self.Wt = nn.Linear(hidden, branches * classes)  # T classifiers
        self.W = nn.Linear(hidden, classes)
        self.dropout = Dropout(dropout)

    def forward(self, bags: PackedBags) -> HeadOutput:
        """Judge bags; see `Head.forward`. K is 1: the mean of the branches' attentions, unmasked."""
        judged = self._judge(bags)
        each = segment_log_softmax(judged.a, bags.bag_of_row, len(bags))  # (N, T)
        mean = each.logsumexp(dim=1, keepdim=True)  # (N, 1): of the softmax, but for a constant
        return HeadOutput(judged.logits, mean, judged.contributions)

    def losses(self, bags: PackedBags, labels: Tensor, criterion: Criterion) -> Tensor:
        """``(B,)``: of the bag, of its branches, and of how alike these are; see the module's text."""
        judged = self._judge(bags)
        repeated = labels.repeat_interleave(self.branches)  # (B * T,)
        of_branches = criterion(judged.branch_logits.flatten(0, 1), repeated)  # (B * T,)
        of_bags = criterion(judged.logits, labels)  # (B,)
        return of_bags + of_branches.view(-1, self.branches).mean(dim=1) + self._likeness(judged.alpha, bags)

    def _judge(self, bags: PackedBags) -> _Judged:
        h = self.dropout(torch.relu(self.P(bags.features)))  # (N, L)
        a = self.w(torch.tanh(self.V(h)) * torch.sigmoid(self.U(h)))  # (N, T)
        seen = self._mask(a, bags) if self.training else a  # (N, T)
        alpha = segment_softmax(seen, bags.bag_of_row, len(bags))  # (N, T)
        says = functional.linear(h, self.Wt.weight)  # (N, T * C)
        weighted = (alpha[:, :, None] * says.view(-1, self.branches, self.classes)).flatten(1)  # (N, T * C)
        of_branches = segment_sum(weighted, bags.bag_of_row, len(bags)) + self.Wt.bias  # (B, T * C)
        contributions = alpha.mean(dim=1, keepdim=True) * functional.linear(h, self.W.weight)  # (N, C)
        return _Judged(
            a=a,
            alpha=alpha,
            branch_logits=of_branches.view(-1, self.branches, self.classes),
            contributions=contributions,
            logits=segment_sum(contributions, bags.bag_of_row, len(bags)) + self.W.bias,
        )

    def _mask(self, a: Tensor, bags: PackedBags) -> Tensor:
        """``(N, T)``: the attention with some of each branch's top tiles at minus infinity."""
        sizes = segment_sizes(bags.bag_of_row, len(bags))[bags.bag_of_row, None]  # (N, 1)
        drawn_from = sizes.clamp(max=self.top)  # (N, 1)
        number = (drawn_from * self.masked).long().clamp(max=sizes - 1)  # (N, 1)
        at_top = segment_rank(a, bags.bag_of_row, len(bags)) < drawn_from  # (N, T)
        draw = torch.rand(a.shape, device=a.device).masked_fill(~at_top, -1.0)  # (N, T)
        return a.masked_fill(segment_rank(draw, bags.bag_of_row, len(bags)) < number, -torch.inf)

    def _likeness(self, alpha: Tensor, bags: PackedBags) -> Tensor:
        """``(B,)``: mean cosine of the pairs of branches' attentions; 0 where there is one branch."""
        pairs = torch.combinations(torch.arange(self.branches, device=alpha.device))  # (p, 2)
        if not len(pairs):
            return alpha.new_zeros(len(bags))
        lengths = segment_sum(alpha.square(), bags.bag_of_row, len(bags)).sqrt()  # (B, T)
        products = alpha[:, pairs[:, 0]] * alpha[:, pairs[:, 1]]  # (N, p)
        cosines = segment_sum(products, bags.bag_of_row, len(bags)) / lengths[:, pairs].prod(dim=2)  # (B, p)
        return cosines.mean(dim=1)


@dataclass(frozen=True, slots=True)
class _Judged:
    a: Tensor
    """``(N, T)``: attention before the softmax and before any masking."""
    alpha: Tensor
    """``(N, T)``: after both."""
    branch_logits: Tensor
    """``(B, T, C)``."""
    contributions: Tensor
    """``(N, C)``: what each tile adds to `logits`."""
    logits: Tensor
    """``(B, C)``."""
