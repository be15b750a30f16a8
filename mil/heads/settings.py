"""What a user may set of a head or an adaptor: keyword arguments of its constructor, and which numbers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

from mil.heads.contract import Settings

LARGEST = 10**6
"""Of what is counted: widths, tiles, branches."""
_WIDTHS = ("hidden", "attention", "classifier", "width")


def check_settings(make: Callable[..., object], settings: Settings) -> None:
    """Refuse numbers that are not of the kind of the default: half a tile, a dropout of NaN, no width.

    Constructors take some of these, and training then fails in the middle, or learns nothing. What else a
    name may mean is the constructor's to check.

    Parameters
    ----------
    make
        A head's or an adaptor's class: its keyword arguments have defaults.
    settings
        By name.

    Raises
    ------
    ValueError
        An unknown name, or a number that is none; both are said, and what it could be.
    """
    parameters = inspect.signature(make).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}
    for name, value in settings.items():
        if name not in defaults:
            raise ValueError(f"there is no {name!r}, but {', '.join(defaults) or 'nothing to set'}")
        if wanted := _wanted(name, value, defaults[name]):
            raise ValueError(f"{name} is {value}, and must be {wanted}")


def _wanted(name: str, value: object, default: object) -> str | None:
    """What a setting must be, if it is not."""
    if isinstance(default, bool):
        return None if value in (0, 1) else "0 or 1"
    if isinstance(default, int):
        least = int(name in _WIDTHS)
        sound = isinstance(value, int) and least <= value <= LARGEST
        return None if sound else f"a whole number from {least} to {LARGEST}"
    if not isinstance(value, int | float):
        return "a number"
    if name == "dropout":
        return None if 0 <= value < 1 else "0 or more, and below 1"
    return None if math.isfinite(value) else "a finite number"
