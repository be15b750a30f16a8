"""How good the scores are, against what is known: figures, each with how sure it is. No files, no model."""

from __future__ import annotations

from mil.evaluation.areas import LESION_SHARE, localisation_auc, slide_auc

__all__ = ["LESION_SHARE", "localisation_auc", "slide_auc"]
