"""Coordinates and features in the HDF5 layouts of CLAM and TRIDENT, out of a store and into one.

Field by field as their public sources write them (mahmoodlab/CLAM at 53e2409, mahmoodlab/TRIDENT at a91fa84);
`tests/tiling/test_interchange.py` holds the tables. All coordinates are level-0 pixels on both sides.
"""

from __future__ import annotations

from tiling.interchange.adopt import adopt_coordinates, adopt_features
from tiling.interchange.clam import export_clam
from tiling.interchange.foreign import CoordinateFile, FeatureFile, import_coordinates, import_features
from tiling.interchange.steps import ForeignSlide, find_foreign, import_steps, pick_slides
from tiling.interchange.trident import export_trident

__all__ = [
    "CoordinateFile",
    "FeatureFile",
    "ForeignSlide",
    "adopt_coordinates",
    "adopt_features",
    "export_clam",
    "export_trident",
    "find_foreign",
    "import_coordinates",
    "import_features",
    "import_steps",
    "pick_slides",
]
