"""`ExplanationReport`: how well each method told what a model goes by, over a cohort."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mil.explain.estimate import Estimate
from mil.explain.settings import Effort, Sample


@dataclass(frozen=True, slots=True)
class Localisation:
    """How well a method's scores find a known lesion, each slide by itself. Means over slides with one."""

    auc: Estimate
    """Area under the ROC curve over a slide's tiles; see `mil.evaluation.localisation_auc`."""
    precision: Estimate
    """Average precision over a slide's tiles."""
    prevalence: float
    """Share of lesion among tiles: the average precision of a random order."""

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {
            "auc": self.auc.as_json(),
            "average_precision": self.precision.as_json(),
            "prevalence": self.prevalence,
        }


@dataclass(frozen=True, slots=True)
class MethodResult:
    """How one method fared."""

    name: str
    """In `METHODS`."""
    gain: Estimate
    """Area between its removal curves (SRG): 0 for an order that knows nothing, at most 1."""
    over_random: Estimate
    """Its gain less that of a random order of the same tiles."""
    over_attention: Estimate
    """Its gain less that of attention."""
    gain_by_class: Mapping[str, float]
    """Mean gain over the slides that were explained for each class."""
    insertion: tuple[float, ...]
    """Mean probability of the class when only the highest share of tiles is there, at each of `SHARES`."""
    deletion: tuple[float, ...]
    """Likewise when only the lowest is."""
    localisation: Localisation | None
    """None where no lesion is known."""

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {
            "gain": self.gain.as_json(),
            "over_random": self.over_random.as_json(),
            "over_attention": self.over_attention.as_json(),
            "gain_by_class": dict(self.gain_by_class),
            "insertion": list(self.insertion),
            "deletion": list(self.deletion),
            "localisation": self.localisation.as_json() if self.localisation else None,
        }


@dataclass(frozen=True, slots=True)
class ExplanationReport:
    """What was explained, and how the methods fared."""

    offered: int
    """Slides that could have been explained."""
    slide_ids: tuple[str, ...]
    """Those that were, in the order given."""
    one_tile: tuple[str, ...]
    """Those that were drawn and left out, for of their only tile nothing can be taken away."""
    cut: int
    """Slides of which not all tiles were used."""
    shares: tuple[float, ...]
    """Of tiles, along the mean curves."""
    methods: tuple[MethodResult, ...]
    """By gain, the highest first."""
    effort: Effort
    """How finely each slide was explained."""
    sample: Sample
    """What of the cohort was to be explained at most."""

    def result(self, name: str) -> MethodResult:
        """One method's; `KeyError` where it was not tried."""
        found = {result.name: result for result in self.methods}
        return found[name]

    @property
    def best(self) -> MethodResult:
        """The method with the highest gain. Being the highest of several flatters it somewhat."""
        return next(result for result in self.methods if result.name != "random")

    @property
    def scope(self) -> str:
        """What was explained, in a sentence."""
        text = f"{len(self.slide_ids)} of {self.offered} slides explained"
        if self.cut:
            text += f", {self.cut} of them by {self.sample.tiles} tiles drawn at random"
        if self.one_tile:
            text += f"; {len(self.one_tile)} drawn with a single tile left out"
        return f"{text}."

    @property
    def verdict(self) -> str:
        """Which method is best here, and whether it can be told apart from attention and from chance."""
        best = self.best
        text = f"{best.name} is truest to the model: area between removal curves {best.gain}"
        if not best.over_random.positive:
            return (
                f"No method can be told apart from a random order on {best.gain.slides} slides "
                f"(the best is {best.name}, {best.over_random} above it): believe none of them."
            )
        if best.name != "attention":
            chance = "" if best.over_attention.positive else ", which may be chance"
            text += f", {best.over_attention} above attention's{chance}"
        text += f"; a random order has {self.result('random').gain.mean:.3f}."
        found = [result for result in self.methods if result.localisation and result.name != "random"]
        if found:
            finder = max(found, key=_auc)
            text += f" {finder.name} finds the lesion best: tile AUC {_auc(finder):.3f}"
            text += f" (attention {_auc(self.result('attention')):.3f})."
        return text

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {
            "offered": self.offered,
            "slides": list(self.slide_ids),
            "one_tile": list(self.one_tile),
            "cut": self.cut,
            "shares": list(self.shares),
            "methods": {result.name: result.as_json() for result in self.methods},
            "best": self.best.name,
            "scope": self.scope,
            "verdict": self.verdict,
            "effort": self.effort.as_json(),
            "sample": self.sample.as_json(),
        }


def _auc(result: MethodResult) -> float:
    assert result.localisation is not None
    return result.localisation.auc.mean
