"""Uncertainty: how far the members of an ensemble disagree, and how far a head with dropout left on wavers.

B. Lakshminarayanan, A. Pritzel, C. Blundell, "Simple and Scalable Predictive Uncertainty Estimation using
Deep Ensembles", NeurIPS 2017 (arXiv:1612.01474); Y. Gal, Z. Ghahramani, "Dropout as a Bayesian
Approximation", ICML 2016 (arXiv:1506.02142); mutual information: N. Houlsby et al. (arXiv:1112.5745).

::

    k  members or passes        m  slides        C  classes
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from mil.bags import Bag, pack
from mil.device import seeded
from mil.heads import Head
from wsi.errors import MicrotomeError, UsageError

PASSES = 30
"""Of Monte Carlo dropout."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How far several predictions of the same slides are apart."""

    mean: NDArray[np.float64]
    """``(m, C)``: their mean."""
    deviation: NDArray[np.float64]
    """``(m,)``: standard deviation (by k - 1) of the probability of the mean's likeliest class."""
    information: NDArray[np.float64]
    """``(m,)``: mutual information in nats, entropy of the mean less the mean entropy: 0 where all agree."""


def spread(probabilities: ArrayLike) -> Spread:
    """How far predictions ``(k, m, C)`` of the same slides are apart; k is at least 2.

    Raises
    ------
    UsageError
        Another shape.
    MicrotomeError
        NaN among the probabilities.
    """
    values = np.asarray(probabilities, np.float64)
    if values.ndim != 3 or len(values) < 2:
        raise UsageError(
            f"predictions of shape {values.shape} have no spread",
            action="Give (members, slides, classes), of two members or more",
        )
    if not np.isfinite(values).all():
        raise MicrotomeError("there is NaN among the probabilities", action="Train the model again")
    mean = values.mean(axis=0)  # (m, C)
    best = values[:, np.arange(mean.shape[0]), mean.argmax(axis=1)]  # (k, m)
    information = np.maximum(_entropy(mean) - _entropy(values).mean(axis=0), 0)  # (m,); less by rounding only
    return Spread(mean, best.std(axis=0, ddof=1), information)


@torch.inference_mode()
def mc_dropout(
    head: Head, bag: Bag, *, temperature: float = 1.0, passes: int = PASSES, seed: int = 0
) -> NDArray[np.float64]:
    """Judge a bag several times with dropout left on, and everything else as in evaluation.

    Only modules of dropout are in training mode meanwhile: a normalisation that learns from batches would
    otherwise learn here. All modules, and the caller's random numbers, are left as they were. A head without
    dropout gives the same every time.

    Parameters
    ----------
    head
        Left as it was.
    bag
        The slide.
    temperature
        Divides the logits; see `mil.calibration`.
    passes
        How often.
    seed
        Of the dropout.

    Returns
    -------
    ``(passes, C)`` float64 probabilities.
    """
    if passes < 2:
        raise UsageError(f"{passes} passes show no spread", action="Give at least 2 to --mc-dropout")
    device = next(head.parameters()).device
    packed = pack([bag], device=device)
    with _only_dropout_training(head), seeded(seed, device):
        logits = torch.cat([head(packed).logits for _ in range(passes)])  # (passes, C)
    probabilities: NDArray[np.float64] = (logits.double() / temperature).softmax(dim=1).cpu().numpy()
    return probabilities


def has_dropout(head: nn.Module) -> bool:
    """Whether anything wavers when dropout is left on."""
    return any(isinstance(module, _DROPOUT) and module.p > 0 for module in head.modules())


_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@contextlib.contextmanager
def _only_dropout_training(head: nn.Module) -> Iterator[None]:
    before = [(module, module.training) for module in head.modules()]
    head.eval()
    for module in head.modules():
        if isinstance(module, _DROPOUT):
            module.train()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _entropy(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """In nats, over the last axis."""
    safe = np.where(probabilities > 0, probabilities, 1.0)  # 0 ln 0 is 0
    entropy: NDArray[np.float64] = -(probabilities * np.log(safe)).sum(axis=-1)
    return entropy
