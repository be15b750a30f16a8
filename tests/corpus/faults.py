"""All cases, by what they are about."""

from __future__ import annotations

from corpus.areas import AREAS
from corpus.fault import Fault, one_of_each
from corpus.fields import FIELDS
from corpus.foreign import FOREIGN
from corpus.learning import FEATURES, MODELS, WEIGHTS
from corpus.names import FOLDERS, NAMES
from corpus.slide_files import CONTRADICTIONS, CUT_OFF, DAMAGE, PRIVACY, STRANGERS
from corpus.slide_pixels import COLOURS, SCALES, SHAPES
from corpus.tables import TABLES

GROUPS: dict[str, tuple[Fault, ...]] = {
    "Slides cut off": CUT_OFF,
    "Files that are something else": STRANGERS,
    "Slides that contradict themselves": CONTRADICTIONS,
    "Slides that lost a field": FIELDS,
    "Damaged tiles": DAMAGE,
    "Colours": COLOURS,
    "Microns per pixel": SCALES,
    "Levels and sizes": SHAPES,
    "Names": NAMES,
    "Folders and links": FOLDERS,
    "Privacy": PRIVACY,
    "Label tables": TABLES,
    "Regions": AREAS,
    "Features": FEATURES,
    "Files of other tools": FOREIGN,
    "Models": MODELS,
    "Weights of others": WEIGHTS,
}
FAULTS: tuple[Fault, ...] = one_of_each(*GROUPS.values())
