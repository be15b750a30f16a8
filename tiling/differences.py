"""In what two recipes differ, said so that it fits a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """The first settings that differ between two recipes, for a message."""
    parts = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            parts.append(difference(before, after, f"{prefix}{key}."))
        else:
            parts.append(f"{prefix}{key} {_short(before)}, not {_short(after)}")
    return "; ".join(parts[:3])


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
