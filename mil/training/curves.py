"""The picture of a training: losses and figures of the validation slides over epochs."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mil.training.fitting import Epoch
from mil.training.records import MemberHistory
from mil.training.stopping import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DOTS_PER_INCH = 100


def draw_learning_curve(histories: Sequence[MemberHistory], *, metric: Metric) -> bytes:
    """A PNG: above the losses of each member in training and validation, below its validation figure.

    A dot marks the epoch that was kept. Without validation slides there are training losses alone. The same
    numbers give the same bytes, with one version of matplotlib.

    Parameters
    ----------
    histories
        At least one member.
    metric
        The figure that is shown below, by which epochs were chosen.
    """
    # The object interface: pyplot would keep figures, and choose a window system, for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    judged = any(history.epochs[0].validation for history in histories)
    figure = Figure(figsize=(9, 7 if judged else 4), dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if judged else 1, 1, sharex=True, squeeze=False)[:, 0]
    for number, history in enumerate(histories):
        colour = f"C{number % 10}"
        _line(axes[0], history, lambda epoch: epoch.training_loss, colour, style=":", marked=not judged)
        if judged:
            name = f"member {history.member}, epoch {history.kept.number} kept"
            _line(axes[0], history, _validation_loss, colour, label=name)
            _line(axes[1], history, _figure_of(metric), colour)
    axes[0].set_ylabel("loss: validation (line), training (dotted)" if judged else "training loss")
    axes[0].set_ylim(bottom=-0.02 * axes[0].get_ylim()[1])
    if judged:
        axes[0].legend(fontsize="small", ncols=1 + len(histories) // 6)
        shown = Metric.BALANCED_ACCURACY if metric is Metric.BALANCED_ACCURACY else Metric.AUROC
        axes[1].set_ylabel(f"validation {'AUROC' if shown is Metric.AUROC else 'balanced accuracy'}")
        axes[1].set_ylim(-0.03, 1.03)
    axes[-1].set_xlabel("epoch")
    for one in axes:
        one.grid(visible=True, alpha=0.3)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _line(
    axes: Axes,
    history: MemberHistory,
    value: Callable[[Epoch], float | None],
    colour: str,
    *,
    style: str = "-",
    label: str | None = None,
    marked: bool = True,
) -> None:
    """One member's value over epochs, where there is one, and a dot at the epoch that was kept."""
    points = [(epoch.number, found) for epoch in history.epochs if (found := value(epoch)) is not None]
    axes.plot(*zip(*points, strict=True) if points else ([], []), style, color=colour, lw=1.3, label=label)
    kept = value(history.kept)
    if marked and kept is not None:
        axes.plot([history.kept.number], [kept], "o", color=colour, ms=7, mec="black", mew=0.8)


def _validation_loss(epoch: Epoch) -> float | None:
    return epoch.validation.loss if epoch.validation else None


def _figure_of(metric: Metric) -> Callable[[Epoch], float | None]:
    def value(epoch: Epoch) -> float | None:
        if epoch.validation is None:
            return None
        if metric is Metric.BALANCED_ACCURACY:
            return epoch.validation.balanced_accuracy
        return epoch.validation.auroc

    return value
