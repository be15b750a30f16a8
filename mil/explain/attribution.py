r"""Scores that a head gives without derivatives: attention, a tile alone, a tile's share, a tile left out.

Each function takes a `Voice`, a bag of n tiles and the `Effort`, and gives ``(n,)`` float64, higher for what
speaks more for the class. All run in eval mode, and leave the head as it was.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil.bags import Bag, each_alone
from mil.ensemble import in_eval_mode
from mil.explain.judge import ROWS_PER_SLICE, Voice, part_logits
from mil.explain.settings import Effort
from mil.segments import segment_softmax
from wsi.errors import UsageError

Scores = NDArray[np.float64]
"""``(n,)``, one a tile."""


@torch.inference_mode()
def attention(voice: Voice, bag: Bag, effort: Effort) -> Scores:
    """How much each tile counts: the softmax over the bag.

    It has no sign: a tile that speaks against the class may weigh as much as one that speaks for it. Where a
    head attends for each class apart, it is the class's own; else the mean over the head's branches.
    """
    tiles = voice.pack(bag)
    with in_eval_mode(voice.head):
        logits = voice.head(tiles).attention_logits  # (n, K)
    weights = segment_softmax(logits, tiles.bag_of_row, 1)  # (n, K)
    own = weights.shape[1] == voice.head.classes > 1
    return _scores(weights[:, voice.class_index] if own else weights.mean(dim=1))


@torch.inference_mode()
def single(voice: Voice, bag: Bag, effort: Effort) -> Scores:
    """The log-odds of a bag that holds this tile alone: what the tile speaks for by itself.

    "Single" of arXiv:2603.08328. It cannot see what only several tiles together say.
    """
    with in_eval_mode(voice.head):
        slices = torch.split(voice.pack(bag).features, ROWS_PER_SLICE)
        return _scores(torch.cat([voice.log_odds(voice.head(each_alone(rows)).logits) for rows in slices]))


@torch.inference_mode()
def contribution(voice: Voice, bag: Bag, effort: Effort) -> Scores:
    r"""What each tile adds to the class's log-odds, for heads whose logits are a sum over tiles and a bias.

    With :math:`s_{ij}` what tile i adds to logit j, the score is :math:`\sum_j s_{ij} \, \partial v /
    \partial y_j`. For two classes the scores and the biases' difference sum to the log-odds; for more, to
    first order.

    Raises
    ------
    UsageError
        The head's logits are no such sum.
    """
    with in_eval_mode(voice.head):
        output = voice.head(voice.pack(bag))
    if output.contributions is None:
        raise UsageError(
            f"head {voice.head.name!r} is no sum over tiles, so there are no contributions",
            action="Use another method, such as integrated_gradients",
        )
    others = output.logits[0] / voice.temperature  # (C,)
    others[voice.class_index] = -torch.inf
    slope = -others.softmax(dim=0)  # (C,): of the log-odds, along each logit over T
    slope[voice.class_index] = 1
    return _scores(output.contributions @ slope / voice.temperature)


@torch.inference_mode()
def leave_one_out(voice: Voice, bag: Bag, effort: Effort) -> Scores:
    """What the log-odds lose when the tile is taken away. Its cost grows with the square of the tiles.

    What many tiles show alike, none of them is missed for. The only tile of a bag cannot be taken away:
    it is replaced by the baseline.
    """
    tiles, every = voice.pack(bag), torch.arange(len(bag))
    with in_eval_mode(voice.head):
        whole = voice.log_odds(voice.head(tiles).logits)  # (1,)
        if len(bag) == 1:
            nothing = voice.head(each_alone(baseline_tile(bag, effort).to(tiles.features.device)))
            return _scores(whole - voice.log_odds(nothing.logits))
        slices = [  # a few tiles at a time: all the lists of rows together are as large as the square
            part_logits(voice.head, tiles, [every[every != row] for row in rows])
            for rows in torch.split(every, 64)
        ]
    return _scores(whole - voice.log_odds(torch.cat(slices)))


def random(voice: Voice, bag: Bag, effort: Effort) -> Scores:
    """Numbers that know nothing: what any explanation has to be better than. The same for every member."""
    return np.random.default_rng([effort.seed, zlib.crc32(bag.slide_id.encode())]).random(len(bag))


def baseline_tile(bag: Bag, effort: Effort) -> Tensor:
    """``(1, D)``: the tile that says nothing.

    Raises
    ------
    UsageError
        The baseline that was given has another length than the features.
    """
    if effort.baseline is None:
        return torch.zeros((1, bag.dim))
    if effort.baseline.shape != (bag.dim,):
        raise UsageError(
            f"the baseline has shape {effort.baseline.shape}, features are of length {bag.dim}",
            action="Give the mean feature of the slides that the model learned from",
        )
    return torch.from_numpy(effort.baseline.astype(np.float32))[None]


def _scores(values: Tensor) -> Scores:
    return np.asarray(values.cpu().numpy(), np.float64)
