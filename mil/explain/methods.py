"""`explain`: the methods by name, for a head or for an ensemble."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mil.bags import Bag
from mil.explain.attribution import Scores, attention, contribution, leave_one_out, random, single
from mil.explain.gradients import gradient_times_input, integrated_gradients
from mil.explain.judge import Judge, Voice, voices
from mil.explain.settings import Effort
from mil.explain.shapley import shapley
from wsi.errors import MicrotomeError, UsageError

Method = Callable[[Voice, Bag, Effort], Scores]
"""From a head that is asked for a class, and a bag of n tiles, to ``(n,)``: higher speaks more for it."""

METHODS: dict[str, Method] = {
    method.__name__: method
    for method in (
        attention,
        single,
        contribution,
        gradient_times_input,
        integrated_gradients,
        shapley,
        leave_one_out,
        random,
    )
}
"""Methods by name. ``random`` is the reference that any of them has to be better than."""


def explain(model: Judge, bag: Bag, class_index: int, *, method: str, effort: Effort | None = None) -> Scores:
    """How much each tile speaks for a class, by one of `METHODS`; an ensemble's is its members' mean.

    In eval mode; modes, gradients and generators are left as they were.

    Parameters
    ----------
    model
        A head, or an `Ensemble`.
    bag
        n tiles.
    class_index
        Which class.
    method
        A name of `METHODS`.
    effort
        How finely.

    Returns
    -------
    ``(n,)`` float64. Only the order of tiles means the same in all methods; for units see each of them.

    Raises
    ------
    UsageError
        No such method, one that the head cannot give, or features that do not fit the model.
    MicrotomeError
        The model gives NaN.
    """
    if method not in METHODS:
        raise UsageError(
            f"there is no explanation {method!r}", action=f"Use one of {', '.join(sorted(METHODS))}"
        )
    said = [METHODS[method](voice, bag, effort or Effort()) for voice in voices(model, class_index)]
    scores = np.mean(said, axis=0)
    if not np.isfinite(scores).all():
        raise MicrotomeError(
            f"the model gives NaN for slide {bag.slide_id!r}",
            action="Train it again: its weights are damaged",
        )
    return np.asarray(scores, np.float64)
