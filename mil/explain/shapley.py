r"""Shapley values of groups of like tiles.

L. S. Shapley, "A Value for n-Person Games", 1953. Players are k groups of tiles; the worth v(S) of a
coalition S is the log-odds that the head gives the bag of its tiles, and that of the empty one is what it
gives a bag of one baseline tile (see `mil.explain.gradients`). A player's value is what it adds to those who
came before it, the mean over all orders in which the players can come:

.. math::

    \phi_i = \sum_{S \not\ni i} \frac{|S|! \, (k - |S| - 1)!}{k!} \left( v(S \cup i) - v(S) \right)

The values sum to v(all) - v(none). Players that add nothing to any coalition get nothing; players that can be
exchanged get the same. Where the :math:`2^k` coalitions cost no more than the sample would, all are tried;
else the mean is over random orders, each with its reverse (R. Mitchell et al., "Sampling Permutations for
Shapley Value Estimation", JMLR 2022, on such antithetic pairs): a player who comes early in one comes late in
the other. The sum is exact in every order, so it is in the sample.

Single tiles would be thousands of players, none of which matters; like tiles stand and fall together, so
groups are found by k-means on the features, and a group's value is shared evenly by its tiles.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from mil.bags import Bag, each_alone
from mil.ensemble import in_eval_mode
from mil.explain.attribution import Scores, baseline_tile
from mil.explain.judge import Voice, part_logits
from mil.explain.settings import Effort

Coalitions = NDArray[np.bool_]
"""``(S, k)``: who takes part in each of S coalitions."""

Worth = Callable[[Coalitions], NDArray[np.float64]]
"""From coalitions to ``(S,)``."""


@torch.inference_mode()
def shapley(voice: Voice, bag: Bag, effort: Effort) -> Scores:
    """The Shapley value of each tile's group, over the group's size; see the module's text."""
    seed = [effort.seed, zlib.crc32(bag.slide_id.encode())]
    group = tile_groups(bag, count=effort.clusters, seed=seed)  # (n,)
    tiles, players = voice.pack(bag), int(group.max()) + 1
    group_of_row = torch.from_numpy(group)
    with in_eval_mode(voice.head):
        nothing = voice.head(each_alone(baseline_tile(bag, effort).to(tiles.features.device))).logits
        empty = float(voice.log_odds(nothing))

        def worth(coalitions: Coalitions) -> NDArray[np.float64]:
            values = np.full(len(coalitions), empty)
            some = coalitions.any(axis=1)
            members = torch.from_numpy(coalitions[some])  # (s, k)
            parts = [torch.nonzero(row[group_of_row])[:, 0] for row in members]
            values[some] = voice.log_odds(part_logits(voice.head, tiles, parts)).cpu().numpy()
            return values

        values = shapley_values(worth, players, pairs=effort.permutation_pairs, seed=seed)  # (k,)
    return np.asarray((values / np.bincount(group))[group])


def tile_groups(bag: Bag, *, count: int, seed: list[int]) -> NDArray[np.int64]:
    """``(n,)`` numbers from 0: which of at most `count` groups of like tiles each is in. None is empty."""
    if len(bag) <= count:
        return np.arange(len(bag))
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    state = int(np.random.default_rng(seed).integers(2**31))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different tiles than groups: so be it
        found = KMeans(count, n_init=1, random_state=state).fit(bag.features.astype(np.float32)).labels_
    return np.asarray(np.unique(found, return_inverse=True)[1], np.int64)


def shapley_values(worth: Worth, players: int, *, pairs: int, seed: list[int]) -> NDArray[np.float64]:
    """``(k,)`` Shapley values of a game: exact where that is as cheap, else the mean over random orders.

    Parameters
    ----------
    worth
        The game. Asked once, for all coalitions that are needed, each once.
    players
        k, at least 1.
    pairs
        Random orders, each of which is also taken in reverse.
    seed
        Of the orders.
    """
    if players < 30 and 2**players <= 2 * pairs * (players - 1) + 2:
        return exact_values(worth, players)
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(players) for _ in range(pairs)])  # (pairs, k)
    return values_in_orders(worth, np.concatenate([orders, orders[:, ::-1]]))


def exact_values(worth: Worth, players: int) -> NDArray[np.float64]:
    """``(k,)``: all coalitions, by the formula in the module's text."""
    number = np.arange(2**players)
    coalitions = (number[:, None] >> np.arange(players)) & 1 == 1  # (2^k, k)
    values, sizes = worth(coalitions), coalitions.sum(axis=1)
    share = np.array([1 / (players * math.comb(players - 1, size)) for size in range(players)])
    found = np.empty(players)
    for player in range(players):
        without = number[~coalitions[:, player]]
        found[player] = share[sizes[without]] @ (values[without | (1 << player)] - values[without])
    return found


def values_in_orders(worth: Worth, orders: NDArray[np.int64]) -> NDArray[np.float64]:
    """``(k,)``: what each player adds to those before it, the mean over ``(o, k)`` orders."""
    count, players = orders.shape
    place = np.argsort(orders, axis=1)  # (o, k): when each player comes
    steps = place[:, None, :] < np.arange(players + 1)[:, None]  # (o, k + 1, k): who is there after each
    different, which = np.unique(steps.reshape(-1, players), axis=0, return_inverse=True)
    values = worth(different)[which.reshape(count, players + 1)]  # (o, k + 1)
    added = np.take_along_axis(np.diff(values, axis=1), place, axis=1)  # (o, k), by player
    return np.asarray(added.mean(axis=0))
