"""What an evaluation may be asked to do otherwise."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mil.assessment.lesions import Lesions
from mil.checkpoint import Calibration
from mil.evaluation.bootstrap import Resampling
from mil.gate import Gate
from mil.uncertainty import PASSES
from wsi.errors import UsageError


@dataclass(frozen=True, slots=True)
class AssessmentSettings:
    """How a model is evaluated.

    Raises
    ------
    UsageError
        A number out of range.
    """

    alpha: float = 0.1
    """Share of slides whose conformal set may lack the true class."""
    gate: Gate = field(default_factory=Gate)
    """Which slides are confirmed."""
    resampling: Resampling = field(default_factory=Resampling)
    """Of patients, for intervals; its seed is also that of all other draws."""
    mc_dropout: int = PASSES
    """Passes with dropout left on; 0 for none. Only where features are at hand."""
    explain: bool = False
    """Whether explanations are measured too. Only where features are at hand."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UsageError(f"alpha is {self.alpha}; it must lie between 0 and 1", action="Correct --alpha")
        if self.mc_dropout < 0 or self.mc_dropout == 1:
            raise UsageError(
                f"{self.mc_dropout} passes with dropout show no spread",
                action="Give 0 to --mc-dropout, or at least 2",
            )

    @property
    def needs_features(self) -> bool:
        """Whether something is asked for that the logits kept by training cannot tell."""
        return self.explain or self.mc_dropout > 0

    @property
    def seed(self) -> int:
        """Of all draws."""
        return self.resampling.seed

    def as_json(self) -> dict[str, Any]:
        """For the report, and to tell whether another run would give another one."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user asks for; None for what the model was trained for."""

    alpha: float | None = None
    """See `AssessmentSettings`; None for that of the model's own conformal rule."""
    threshold: float | None = None
    """Of the gate; None for that of the model's own."""
    resampling: Resampling = field(default_factory=Resampling)
    """See `AssessmentSettings`, as all that follows."""
    mc_dropout: int = PASSES
    """Passes with dropout left on."""
    explain: bool = False
    """Whether explanations are measured too."""
    lesions: Lesions | None = None
    """What explanations should find, where that is known."""

    def for_model(self, calibration: Calibration | None) -> AssessmentSettings:
        """The settings for a model with this calibration; the usual ones where it has none.

        Raises
        ------
        UsageError
            A number out of range.
        """
        usual = AssessmentSettings()
        own = (calibration.conformal.alpha, calibration.gate) if calibration else (usual.alpha, usual.gate)
        return AssessmentSettings(
            alpha=own[0] if self.alpha is None else self.alpha,
            gate=own[1] if self.threshold is None else Gate(self.threshold),
            resampling=self.resampling,
            mc_dropout=self.mc_dropout,
            explain=self.explain,
        )
