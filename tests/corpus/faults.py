"""All cases."""

from __future__ import annotations

from corpus.fault import Fault, one_of_each
from corpus.names import FOLDERS, NAMES
from corpus.slide_files import SLIDE_FILES
from corpus.slide_pixels import SLIDE_PIXELS

FAULTS: tuple[Fault, ...] = one_of_each(SLIDE_FILES, SLIDE_PIXELS, NAMES, FOLDERS)
