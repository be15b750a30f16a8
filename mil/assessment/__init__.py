"""`microtome evaluate`: a trained model's predictions become a report that a paper can rest on."""

from __future__ import annotations

from mil.assessment.calibrating import Calibrations, MemberCalibration, calibrate
from mil.assessment.settings import AssessmentSettings, Wanted

__all__ = ["AssessmentSettings", "Calibrations", "MemberCalibration", "Wanted", "calibrate"]
