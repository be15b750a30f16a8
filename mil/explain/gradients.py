r"""Scores by derivatives of the log-odds v with respect to the features: x times gradient, and its integral.

M. Sundararajan, A. Taly, Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017 (arXiv:1703.01365).
With X the bag and X' the baseline, as many tiles that say nothing, in the places of the bag's:

.. math::

    s_i = \sum_d (x_{id} - x'_d) \int_0^1 \frac{\partial v(X' + t (X - X'))}{\partial x_{id}} \, dt

The scores of all tiles sum to v(X) - v(X'): what the model says more of the bag than of nothing.

*The baseline* is zeros by default: it needs no training data, and is the same for every model. It is no tile
that an encoder would give. The mean feature of the slides that were learned from is one that speaks for
nothing in particular, and can be given (`Effort.baseline`); on digits it does somewhat better
(docs/explanations.md).

::

    n  tiles      D  length of a feature vector      S  points on the way
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from mil.bags import Bag, PackedBags
from mil.ensemble import in_eval_mode
from mil.explain.attribution import Scores, baseline_tile
from mil.explain.judge import ROWS_PER_SLICE, Voice
from mil.explain.settings import Effort


def gradient_times_input(voice: Voice, bag: Bag, effort: Effort) -> Scores:
    r"""The sum over features of x times the slope of the log-odds at the bag: one point of the integral.

    It is exact for what is linear, and sees only the nearest surroundings of what is not.
    """
    with _differentiable(voice):
        tiles = voice.pack(bag)
        x = tiles.features.requires_grad_()  # (n, D)
        value = voice.log_odds(voice.head(tiles).logits).sum()
        (slope,) = torch.autograd.grad(value, x)  # (n, D); no parameter's gradient is touched
    return _summed(x.detach() * slope)


def integrated_gradients(voice: Voice, bag: Bag, effort: Effort) -> Scores:
    """The mean slope on the way from the baseline to the bag, times that way; see the module's text.

    Computed by captum, by Gauss and Legendre's rule; several points are judged as packed bags at a time where
    the bag is small.
    """
    from captum.attr import IntegratedGradients  # takes seconds to import

    with _differentiable(voice):
        tiles = voice.pack(bag)
        x = tiles.features.requires_grad_()[None]  # (1, n, D)

        def log_odds(copies: Tensor) -> Tensor:
            """``(S, n, D)`` to ``(S,)``."""
            return voice.log_odds(voice.head(_as_bags(copies, tiles.places)).logits)

        scores = IntegratedGradients(log_odds).attribute(
            x,
            baselines=baseline_tile(bag, effort).to(x.device).expand_as(x),
            n_steps=effort.steps,
            method="gausslegendre",
            internal_batch_size=max(1, ROWS_PER_SLICE // len(bag)),
        )  # (1, n, D)
    return _summed(scores[0].detach())


def _as_bags(copies: Tensor, places: Tensor) -> PackedBags:
    """``(S, n, D)`` copies of a bag as S packed bags of n tiles in the same places."""
    count, size = copies.shape[:2]
    bag_of_row = torch.arange(count, device=copies.device).repeat_interleave(size)  # (S n,)
    return PackedBags(copies.flatten(0, 1), bag_of_row, places.repeat(count, 1), (size,) * count)


@contextmanager
def _differentiable(voice: Voice) -> Iterator[None]:
    """Eval mode, and gradients even where the caller has none."""
    with in_eval_mode(voice.head), torch.inference_mode(mode=False), torch.enable_grad():
        yield


def _summed(values: Tensor) -> Scores:
    """``(n, D)`` to ``(n,)``."""
    return np.asarray(values.double().sum(dim=1).cpu().numpy(), np.float64)
