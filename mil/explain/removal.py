r"""Removal curves: is an explanation true of the model? Tiles go in its order, and the model is asked again.

Tiles are taken out of the bag: nothing has to be painted over, for a bag of fewer tiles is a bag as well. So
one pair of curves holds all of the usual ones. Let n tiles be sorted by their scores:

- *insertion*: the class's probability for the k highest tiles alone. Read from the right it is the removal of
  the least relevant first. High for a good explanation.
- *deletion*: its probability for the k lowest tiles alone. Read from the right it is the removal of the most
  relevant first ("patch flipping"). Low for a good one.

The area between the two is the symmetric relevance gain (SRG) of S. Blücher et al., "Decoupling Pixel
Flipping and Occlusion Strategy for Consistent XAI Benchmarks", TMLR 2024 (arXiv:2401.06654); for bags of
tiles see J. Hense et al., "xMIL", NeurIPS 2024 (arXiv:2406.04280), and arXiv:2603.08328. It is at most 1, and
about 0 for a random order: what insertion gains, deletion loses.

This measures whether an explanation tells what the *model* goes by, not what is in the tissue.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mil.bags import Bag
from mil.explain.attribution import Scores
from mil.explain.judge import Judge, probabilities

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
"""Of the tiles that are kept. Close together at both ends: a lesion may be in few tiles, or in nearly all."""


@dataclass(frozen=True, slots=True, eq=False)
class RemovalCurves:
    """What a model says of a class while tiles are taken away; see the module's text."""

    kept: NDArray[np.float64]
    """``(g,)`` share of tiles, ascending from at least one tile to 1, which is all of them."""
    insertion: NDArray[np.float64]
    """``(g,)`` probability of the class for the highest tiles alone."""
    deletion: NDArray[np.float64]
    """``(g,)`` likewise for the lowest tiles alone. The last of both is that of the whole bag."""

    @property
    def gain(self) -> float:
        """The area between insertion and deletion (SRG), from -1 to 1: over the width of the curves."""
        width = self.kept[-1] - self.kept[0]
        return float(np.trapezoid(self.insertion - self.deletion, self.kept) / width)

    def at(self, shares: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Insertion and deletion at other shares, between neighbours on a straight line."""
        return np.interp(shares, self.kept, self.insertion), np.interp(shares, self.kept, self.deletion)


def removal_curves(model: Judge, bag: Bag, scores: Scores, class_index: int) -> RemovalCurves:
    """Judge a bag anew with only its highest, and with only its lowest tiles.

    Parameters
    ----------
    model
        Whose probabilities count: calibrated, and of an ensemble the mean.
    bag
        At least two tiles: of one, none can be taken away.
    scores
        ``(n,)``. Equal ones are ordered at random, the same way every time, so that the order of tiles on the
        slide explains nothing.
    class_index
        Whose probability.

    Returns
    -------
    The curves at `SHARES`, rounded to whole tiles and never to none.
    """
    count = len(bag)
    if count < 2 or len(scores) != count:
        raise ValueError(f"curves need two tiles and a score for each: got {count} and {len(scores)}")
    ties = np.random.default_rng(zlib.crc32(bag.slide_id.encode())).random(count)
    order = torch.from_numpy(np.lexsort((ties, scores)))  # ascending
    keep = np.unique(np.clip(np.rint(np.array(SHARES) * count).astype(int), 1, count)).tolist()
    parts = [order[-k:] for k in keep] + [order[:k] for k in keep[:-1]]  # all tiles are judged once
    said = probabilities(model, bag, parts)[:, class_index].numpy()  # (2 g - 1,)
    insertion, deletion = said[: len(keep)], said[len(keep) :]
    return RemovalCurves(np.array(keep) / count, insertion, np.append(deletion, insertion[-1]))
