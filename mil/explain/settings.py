"""How much work explanations may take, and from where they count."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import UsageError


@dataclass(frozen=True, slots=True, eq=False)
class Effort:
    """How finely one bag is explained. Each number costs time in proportion, and none costs memory."""

    steps: int = 32
    """Points on the way from the baseline to the bag, for integrated gradients."""
    clusters: int = 12
    """Players of the Shapley game: groups of like tiles. A bag of so few tiles has each play for itself."""
    permutation_pairs: int = 4
    """Orders in which the players come, each with its reverse, where not all coalitions are tried."""
    baseline: NDArray[np.float32] | None = None
    """``(D,)``: the tile that says nothing. None for zeros; see `integrated_gradients`."""
    seed: int = 0
    """Of clusters, permutations and the random order; with each slide's name, so slides differ."""

    def __post_init__(self) -> None:
        _at_least(1, steps=self.steps, clusters=self.clusters, permutation_pairs=self.permutation_pairs)
        _at_least(0, seed=self.seed)

    def as_json(self) -> dict[str, Any]:
        """For a report."""
        named = {name: getattr(self, name) for name in ("steps", "clusters", "permutation_pairs", "seed")}
        return named | {"baseline": "zero" if self.baseline is None else "given"}


@dataclass(frozen=True, slots=True)
class Sample:
    """What of a cohort is explained, so that a large one takes minutes too. A report says what it was."""

    slides: int = 30
    """At most so many slides, drawn as evenly over the explained classes as these allow."""
    operations: int = 60 * 10**9
    """Floating-point operations that judging all of these once may take: of a head that needs more, fewer are
    drawn. Explaining a slide takes some hundred times what judging it does. Counted, not timed, so that the
    machine decides nothing."""
    fewest: int = 8
    """But never fewer slides than this, while there are."""
    tiles: int = 1000
    """A slide with more tiles is explained as the bag of so many of them, drawn at random."""
    resamples: int = 2000
    """Draws of patients, for the intervals."""
    seed: int = 0
    """Of all of these draws."""

    def __post_init__(self) -> None:
        _at_least(
            1, slides=self.slides, resamples=self.resamples, operations=self.operations, fewest=self.fewest
        )
        _at_least(2, tiles=self.tiles)
        _at_least(0, seed=self.seed)

    def as_json(self) -> dict[str, Any]:
        """For a report."""
        return asdict(self)


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise UsageError(
                f"{name.replace('_', ' ')} is {value}; at least {least} is needed",
                action="Give a larger number",
            )
