"""The pictures of a report, as PNG. Same numbers, same bytes, with one version of matplotlib."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mil.assessment.findings import Finding, one_against_the_rest
from mil.evaluation.reliability import Reliability
from mil.evaluation.selective import risk_coverage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 100


def draw(finding: Finding) -> dict[str, bytes]:
    """All pictures of a cohort, by file name."""
    return {
        "reliability.png": draw_reliability(finding),
        "roc.png": draw_curves(finding),
        "confusion.png": draw_confusion(finding),
        "risk-coverage.png": draw_risk_coverage(finding),
    }


def draw_explanations(told: Mapping[str, Any]) -> bytes:
    """Mean probability of the explained class with only the highest tiles (insertion) and only the lowest."""
    figure = _figure(10, 4.5)
    above, below = figure.subplots(1, 2, sharey=True)
    for name, found in sorted(told["methods"].items(), key=lambda pair: -pair[1]["gain"]["mean"]):
        style = {"color": "grey", "ls": ":"} if name == "random" else {}
        label = f"{name} (area between {found['gain']['mean']:.2f})"
        above.plot(told["shares"], found["insertion"], lw=1.5, label=label, **style)
        below.plot(told["shares"], found["deletion"], lw=1.5, label=label, **style)
    _unit_square(above, "share of tiles: only the highest are there", "probability of the explained class")
    _unit_square(below, "share of tiles: only the lowest are there", "")
    above.set_title("insertion: high is good", fontsize="small")
    below.set_title("deletion: low is good", fontsize="small")
    handles, labels = above.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize="small", loc="outside right center")
    figure.suptitle(f"{len(told['slides'])} {told['cohort']}", fontsize="small")
    return _png(figure)


def draw_reliability(finding: Finding) -> bytes:
    """Accuracy over confidence, before and after calibration, above the number of slides in each bin.

    Grey bars are what a perfectly calibrated model would show in 95 of 100 such cohorts.
    """
    figure = _figure(9, 5.5)
    axes = figure.subplots(2, 2, sharex=True, height_ratios=[3, 1])
    for column, (name, found) in enumerate((("before", finding.before), ("after", finding.after))):
        _diagram(axes[0, column], axes[1, column], found)
        axes[0, column].set_title(
            f"{name} calibration\nexpected calibration error {found.error:.3f},"
            f"\nperfectly calibrated {found.null_mean:.3f} ({found.null_low:.3f} to {found.null_high:.3f})",
            fontsize="small",
        )
    figure.suptitle(_title(finding), fontsize="small")
    axes[0, 0].legend(fontsize="x-small", loc="upper left")
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("slides")
    return _png(figure)


def draw_curves(finding: Finding) -> bytes:
    """ROC and precision-recall curves: of each class against the rest, or of the second of two."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    judged = finding.cohort.after
    figure = _figure(9, 4.5)
    roc, precision = figure.subplots(1, 2)
    roc.plot([0, 1], [0, 1], ":", color="grey", lw=1)
    for index in one_against_the_rest(judged):
        truth = judged.labels == index
        name = f"{judged.classes[index]} ({truth.sum()} of {len(judged)} slides)"
        if truth.all() or not truth.any():
            roc.plot([], [], label=f"{name}: n/a")
            continue
        scores = judged.probabilities[:, index]
        false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
        figures = finding.content["figures"]
        area = figures["AUROC" if len(judged.classes) == 2 else f"AUROC of {judged.classes[index]}"]["value"]
        roc.plot(false, true, label=f"{name}: AUROC {area:.3f}", lw=1.5)
        exact, found, _ = precision_recall_curve(truth, scores)
        (line,) = precision.step(found, exact, where="post", lw=1.5)
        precision.axhline(truth.mean(), ls=":", lw=1, color=line.get_color())
    _unit_square(
        roc, "1 - specificity: share of the others called so", "sensitivity: share of the class found"
    )
    _unit_square(precision, "recall (sensitivity)", "precision (dotted: without knowledge)")
    roc.legend(fontsize="small", loc="lower right")
    figure.suptitle(_title(finding), fontsize="small")
    return _png(figure)


def draw_confusion(finding: Finding) -> bytes:
    """Slides by truth and likeliest class; the colour is the share of the truth's row."""
    matrix, classes = np.array(finding.content["confusion"]), finding.cohort.after.classes
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.7 * len(classes)
    figure = _figure(side + 1, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count}\n{shares[row, column]:.0%}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("likeliest class")
    axes.set_ylabel("truth")
    axes.set_title(_title(finding), fontsize="small", wrap=True)
    return _png(figure)


def draw_risk_coverage(finding: Finding) -> bytes:
    """Share of errors among the surest slides, for every share of them; and where the gate stands."""
    judged = finding.cohort.after
    curve = risk_coverage(judged.confidence, judged.correct)
    figure = _figure(6, 4.5)
    axes = figure.subplots()
    axes.step(curve.coverage, curve.risk, where="post", lw=1.5, label="by confidence")
    axes.axhline(curve.risk[-1], ls=":", lw=1, color="grey", label="without a gate")
    gate = finding.content["gate"]
    if gate["accuracy_of_confirmed"]["value"] is not None:
        risk = 1 - gate["accuracy_of_confirmed"]["value"]
        axes.plot([gate["confirmed"]["value"]], [risk], "o", color="black", label="confirmed by the gate")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(bottom=-0.01)
    axes.set_xlabel("share of slides, the surest first")
    axes.set_ylabel("share of errors among them")
    axes.set_title(f"{_title(finding)}; area under the curve {curve.area:.3f}", fontsize="small")
    axes.legend(fontsize="small")
    axes.grid(visible=True, alpha=0.3)
    return _png(figure)


def _diagram(above: Axes, below: Axes, found: Reliability) -> None:
    middle = np.array([(one.low + one.high) / 2 for one in found.bins])
    width = found.bins[0].high - found.bins[0].low
    low, high = (np.array(list(_of(found, name))) for name in ("expected_low", "expected_high"))
    above.plot([0, 1], [0, 1], ":", color="grey", lw=1)
    chance = "95 of 100 perfectly calibrated models"
    above.bar(middle, np.maximum(high - low, 0.004), width * 0.9, bottom=low, color="lightgrey", label=chance)
    above.plot(
        list(_of(found, "confidence")), list(_of(found, "accuracy")), "o-", ms=5, lw=1, label="this model"
    )
    above.set_ylim(-0.02, 1.02)
    counts = [one.count for one in found.bins]
    below.bar(middle, counts, width * 0.9)
    for place, count in zip(middle, counts, strict=True):
        below.text(place, count, str(count), ha="center", va="bottom", fontsize="x-small")
    below.set_ylim(0, 1.3 * max(counts))
    below.set_xlabel("confidence")


def _title(finding: Finding) -> str:
    cohort = finding.cohort
    return f"{cohort.name}: {len(cohort)}, of {cohort.after.patient_count} patients"


def _of(found: Reliability, name: str) -> Iterator[float]:
    return (getattr(one, name) for one in found.bins)


def _unit_square(axes: Axes, across: str, up: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_aspect("equal")
    axes.grid(visible=True, alpha=0.3)


def _figure(width: float, height: float) -> Figure:
    # The object interface: pyplot would keep figures, and choose a window system, for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
