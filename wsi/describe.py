"""`describe`: what `microtome info` says of a slide, as plain values."""

from __future__ import annotations

from typing import Any

from wsi.resolution import objective_power
from wsi.slide import Slide


def describe(slide: Slide) -> dict[str, Any]:
    """Facts of an open slide, JSON-able. Pixels of label and macro images are not read."""
    resolution = slide.resolution
    width, height = slide.size
    extent = None
    if resolution:
        extent = [round(width * resolution.x / 1000, 3), round(height * resolution.y / 1000, 3)]
    facts = {
        "path": str(slide.path),
        "backend": slide.backend,
        "vendor": slide.properties.get("openslide.vendor") or slide.properties.get("tiffslide.vendor"),
        "size": [width, height],
        "mpp": [resolution.x, resolution.y] if resolution else None,
        "mpp_source": resolution.source if resolution else None,
        "objective_power": objective_power(slide.properties),
        "extent_mm": extent,
        "levels": [
            {
                "size": [level.width, level.height],
                "downsample": [round(level.downsample_x, 5), round(level.downsample_y, 5)],
            }
            for level in slide.levels
        ],
        "bounds_origin": list(slide.bounds_origin),
        "associated_images": list(slide.associated),
    }
    return facts if resolution else facts | {"mpp_fault": slide.resolution_fault}
