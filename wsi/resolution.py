"""Where a slide's microns per pixel come from, in order of trust. Nothing is guessed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from wsi.geometry import MPP_RANGE, Resolution

_OBJECTIVE_UM = 10.0
"""Microns per pixel times nominal power: the convention of 0.25 at 40x and 0.5 at 20x."""
_OME_UNITS = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}
_OME_SIZE = r'PhysicalSize{axis}="([^"]+)"'
_OME_UNIT = r'PhysicalSize{axis}Unit="([^"]+)"'


def find_resolution(properties: Mapping[str, str], *, description: str = "") -> Resolution | None:
    """Read microns per level-0 pixel from a slide's own metadata.

    Parameters
    ----------
    properties
        As OpenSlide or tiffslide name them.
    description
        The first TIFF directory's ImageDescription; OME-XML in it is understood.

    Returns
    -------
    The resolution with its source, or None where the slide states none.

    Raises
    ------
    ValueError
        The slide states one that no microscope has (0, negative, not a number, outside `MPP_RANGE`).
    """
    found = _stated(properties, description)
    if found and not found.is_plausible:
        low, high = MPP_RANGE
        raise ValueError(f"the file states an mpp of {found.mpp:g}, outside {low:g} to {high:g}")
    return found


def _stated(properties: Mapping[str, str], description: str) -> Resolution | None:
    stated = _pair(properties, "openslide.mpp-{axis}") or _pair(properties, "tiffslide.mpp-{axis}")
    if stated:
        # OpenSlide derives a generic TIFF's figure from its resolution tags, a vendor's from the vendor's.
        vendor = properties.get("openslide.vendor") or properties.get("tiffslide.vendor") or ""
        source = "TIFF resolution" if vendor in {"generic-tiff", ""} else "vendor property"
        return Resolution(*stated, source=source)
    if aperio := properties.get("aperio.MPP"):
        return Resolution(_number(aperio), _number(aperio), source="vendor property")
    if ome := _from_ome(description):
        return Resolution(*ome, source="vendor property")
    return None


def resolution_of_power(power: float) -> Resolution:
    """Nominal microns per pixel of an objective: a convention, off by up to 10 % on real scanners.

    >>> resolution_of_power(20).mpp
    0.5
    """
    return Resolution(_OBJECTIVE_UM / power, _OBJECTIVE_UM / power, source="objective power")


def objective_power(properties: Mapping[str, str]) -> float | None:
    """The objective's nominal power, where the slide states a usable one."""
    for key in ("openslide.objective-power", "tiffslide.objective-power", "aperio.AppMag"):
        if key in properties:
            try:
                power = _number(properties[key])
            except ValueError:
                continue
            if math.isfinite(power) and power > 0:
                return power
    return None


def _pair(properties: Mapping[str, str], key: str) -> tuple[float, float] | None:
    x, y = (properties.get(key.format(axis=axis)) for axis in "xy")
    return (_number(x), _number(y)) if x is not None and y is not None else None


def _number(text: str) -> float:
    """Parse a figure as scanners write it: some put a decimal comma."""
    try:
        return float(text.strip().replace(",", "."))
    except ValueError:
        raise ValueError(f"mpp is {text.strip()!r}, which is not a number") from None


def _from_ome(description: str) -> tuple[float, float] | None:
    """PhysicalSizeX and Y of OME-XML (OME 2016-06 schema; microns unless a unit is given).

    Searched, not parsed: no XML entity is ever expanded.
    """
    if "<OME" not in description:
        return None
    found = []
    for axis in "XY":
        size = re.search(_OME_SIZE.format(axis=axis), description)
        unit = re.search(_OME_UNIT.format(axis=axis), description)
        factor = _OME_UNITS.get(unit.group(1) if unit else "µm")
        if size is None or factor is None:
            return None
        found.append(_number(size.group(1)) * factor)
    return found[0], found[1]
