"""Heads: from a bag of feature vectors to a slide's class. One file each, to be read alone."""

from __future__ import annotations

from mil.heads.contract import Criterion, Head, HeadOutput, Settings
from mil.heads.gated_abmil import GatedABMIL
from wsi.errors import UsageError

__all__ = ["DEFAULT_HEAD", "HEADS", "Criterion", "Head", "HeadOutput", "Settings", "build_head"]

HEADS: dict[str, type[Head]] = {head.name: head for head in (GatedABMIL,)}
"""Heads by name."""

DEFAULT_HEAD = GatedABMIL.name


def build_head(name: str, *, dim: int, classes: int, settings: Settings | None = None) -> Head:
    """Make a head with weights from torch's current generator.

    Raises
    ------
    UsageError
        No such head, or settings that it does not have.
    """
    if name not in HEADS:
        raise UsageError(f"there is no head {name!r}", action=f"Use one of {', '.join(sorted(HEADS))}")
    try:
        return HEADS[name](dim, classes, **(settings or {}))
    except TypeError as error:
        raise UsageError(
            f"head {name!r} does not take these settings: {error}", action="Leave them out, or correct them"
        ) from error
