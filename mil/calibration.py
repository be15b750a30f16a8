r"""Calibration: one temperature a member makes its probabilities mean what they say.

C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On Calibration of Modern Neural Networks", ICML 2017
(arXiv:1706.04599), section 4.2:

.. math::

    p = \mathrm{softmax}(z / T), \qquad
    T = \arg\min_T \; -\sum_i \log p_{i, y_i}

T is the same for all classes and slides, so the order of a slide's classes never changes. With two classes
the order of slides does not either, and with it no ROC curve of one member, but for probabilities so near 1
that they round to it and tie; with more classes it may, by the softmax.

::

    m  slides        C  classes
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi.errors import MicrotomeError, UsageError

LEAST, LARGEST = 0.05, 20.0
"""Between these a temperature is sought: a factor of twenty in either direction."""


def probabilities(logits: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """Softmax of logits over a temperature.

    Parameters
    ----------
    logits
        ``(m, C)``.
    temperature
        Above 0; 1 leaves the logits as they are, more makes the model less sure.

    Returns
    -------
    ``(m, C)`` float64, rows summing to 1.

    Raises
    ------
    MicrotomeError
        NaN or infinity among the logits.
    UsageError
        Another shape, or a temperature that is none.

    Examples
    --------
    >>> probabilities([[0.0, 2.0]], 1.0).round(3).tolist()
    [[0.119, 0.881]]
    >>> probabilities([[0.0, 2.0]], 2.0).round(3).tolist()
    [[0.269, 0.731]]
    """
    if not 0 < temperature < np.inf:
        raise UsageError(f"a temperature of {temperature} is none", action="Give one above 0")
    return np.exp(_log_softmax(_checked(logits) / temperature))


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature under which the labels are likeliest; fit it on validation slides only.

    The likelihood is concave in 1/T, so there is one maximum; it is sought between `LEAST` and `LARGEST`.
    Where slides do not determine a temperature it is 1, and `why_not_fitted` says why.

    Parameters
    ----------
    logits
        ``(m, C)``, before the softmax.
    labels
        ``(m,)``: index of the true class.

    Raises
    ------
    MicrotomeError
        NaN or infinity among the logits.
    UsageError
        Shapes that do not fit, or labels out of range.
    """
    values, truth = _checked(logits), check_labels(labels, np.shape(logits))
    if why_not_fitted(values, truth):
        return 1.0
    from scipy.optimize import minimize_scalar  # takes a third of a second to import

    rows = np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        return float(-_log_softmax(values * np.exp(-log_temperature))[rows, truth].mean())

    bounds = (np.log(LEAST), np.log(LARGEST))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def why_not_fitted(logits: ArrayLike, labels: ArrayLike) -> str | None:
    """Why these slides determine no temperature; None where they do.

    Where each true class has the largest logit, the likelihood grows for ever as T falls: nothing tells how
    sure to be, and being surer than the model is would be a guess on the unsafe side. Slides of one class say
    nothing of how sure to be of the other.
    """
    values = np.asarray(logits, np.float64)
    truth = check_labels(labels, values.shape)
    if len(truth) == 0:
        return "there are no validation slides"
    if len(np.unique(truth)) < 2:
        return "all validation slides are of one class"
    if (values[np.arange(len(truth)), truth] == values.max(axis=1)).all():
        return "no validation slide is misjudged, so their likelihood has no maximum"
    return None


def check_labels(labels: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """``(m,)`` labels that fit logits or probabilities of this shape.

    Raises
    ------
    UsageError
        Not one whole number for each row, or one that names no column.
    """
    truth = np.asarray(labels)
    if len(shape) != 2 or truth.shape != shape[:1]:
        raise UsageError(
            f"{truth.shape} labels do not fit numbers of shape {shape}", action="Give one label a slide"
        )
    if truth.size and not np.issubdtype(truth.dtype, np.integer):
        raise UsageError(f"labels are {truth.dtype}, not whole numbers", action="Give indices of classes")
    if truth.size and not 0 <= truth.min() <= truth.max() < shape[1]:
        outside = truth[(truth < 0) | (truth >= shape[1])][0]
        raise UsageError(
            f"label {outside} is none of the {shape[1]} classes, 0 to {shape[1] - 1}",
            action="Correct the labels",
        )
    return truth.astype(np.int64)


def _checked(logits: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(logits, np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise UsageError(
            f"logits of shape {values.shape} are none of slides and classes", action="Give (slides, classes)"
        )
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise MicrotomeError(
            f"the logits of slide number {row} are not finite", action="Train the model again"
        )
    return values


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(m, C)``: logarithms of the softmax of each row, without overflow."""
    shifted = values - values.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
