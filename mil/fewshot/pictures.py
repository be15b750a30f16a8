"""The picture of a few-shot report, as PNG. Same numbers, same bytes, with one version of matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from mil.fewshot.verdicts import BASELINES

_DOTS_PER_INCH = 100
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
"""Told apart by eyes of every kind: M. Okabe, K. Ito, "Color Universal Design", 2008; markers differ too."""
_GREYS = ("#000000", "#555555", "#888888", "#AAAAAA")
_MARKERS = "osD^vP*Xph"
_WIDTH = 0.6  # of the methods' places beside one another, where numbers of shots are 1 apart


def draw_accuracy(content: Mapping[str, Any]) -> bytes:
    """Mean accuracy and its interval over tasks of every method, over the number of shots.

    Baselines are grey and dashed, meta-learners coloured; thin lines are intervals over patients.
    """
    # The object interface: pyplot would keep figures, and choose a window system, for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [one["method"] for one in content["shots"][0]["methods"]]
    figure = Figure(figsize=(9, 5), dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axhline(1 / content["tasks"]["ways"], ls=":", lw=1, color="grey", label="by chance")
    for number, name in enumerate(names):
        found = [shots["methods"][number] for shots in content["shots"]]
        aside = _WIDTH * ((number + 0.5) / len(names) - 0.5)
        across = [place + aside for place in range(len(found))]
        means = [one["accuracy"]["mean"] for one in found]
        halves = [one["accuracy"]["high"] - one["accuracy"]["mean"] for one in found]
        style = _style(name, names) | {"marker": _MARKERS[number % len(_MARKERS)]}
        axes.errorbar(across, means, halves, ms=5, lw=1, elinewidth=2.5, label=name, **style)
        for place, one in zip(across, found, strict=True):
            if one["over_patients"]:
                ends = one["over_patients"]["low"], one["over_patients"]["high"]
                axes.vlines(place, *ends, color=style["color"], lw=0.7)
    shots = [str(found["shots"]) for found in content["shots"]]
    axes.set_xticks(range(len(shots)), shots)
    axes.set_xlim(-0.5, len(shots) - 0.5)
    axes.set_xlabel("shots: labelled bags of a class")
    axes.set_ylabel("accuracy")
    tasks = content["tasks"]
    axes.set_title(
        f"{tasks['episodes']} tasks of {tasks['ways']} classes each; thick: 95 % interval over tasks, "
        "thin: over patients",
        fontsize="small",
    )
    axes.grid(visible=True, axis="y", alpha=0.3)
    figure.legend(fontsize="small", loc="outside right center")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _style(name: str, names: list[str]) -> dict[str, Any]:
    if name in BASELINES:
        return {"color": _GREYS[BASELINES.index(name) % len(_GREYS)], "ls": "--"}
    learners = [one for one in names if one not in BASELINES]
    return {"color": _COLOURS[learners.index(name) % len(_COLOURS)], "ls": "-"}
