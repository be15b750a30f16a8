"""A script that opens a heatmap in QuPath: it imports the files beside it, and sets colours and the map.

QuPath's API as it is in 0.5.1, 0.6.0 and 0.7.0, from its public source: `PathIO.readObjects`,
`PathObjectHierarchy.addObjects` and `removeObjects`, `PathClass.fromString` and `setColor`, `ColorMaps`,
`MeasurementMapper`, `OverlayOptions`. A class that a session knows keeps its colour when a file is imported,
so the script sets colours itself. Tiles replace those that are there by their ids; regions are added only
where none has that id, so that what a user changed of one stays as he left it.

Names are the only text that is not ours. They enter as string literals, and nowhere else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi.classes import Colour
from wsi.durable import write_file

COLOUR_MAP = "Viridis"
"""QuPath's own of that name: the one of `heatmaps.colour`."""

_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


@dataclass(frozen=True, eq=False, slots=True)
class Opening:
    """What a script is to open, and how."""

    slide_id: str
    """The slide; the script warns where the image is called otherwise."""
    slide_size: tuple[int, int]
    """Level-0 (width, height) of the whole slide."""
    bounds_origin: tuple[float, float]
    """Level-0 (x, y) that was subtracted from the files' coordinates."""
    slide_bounds: tuple[float, float]
    """Where the slide's bounds begin: the same, unless the files count from the slide's own corner."""
    tiles: str
    """Name of the file of tiles, in the script's folder."""
    regions: str
    """Name of the file of regions, likewise."""
    measurements: Sequence[str]
    """Of the tiles; those that can be shown."""
    shown: int
    """Which of them is shown first: its index."""
    classes: Mapping[str, Colour]
    """Colours of classes, by their names as QuPath holds them."""
    vmin: float = 0.0
    """Number at the low end of the colours."""
    vmax: float = 1.0
    """At the high end."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.vmin) and math.isfinite(self.vmax) and self.vmin < self.vmax):
            raise ValueError(f"a range needs vmin < vmax, got {self.vmin:g} to {self.vmax:g}")
        if not 0 <= self.shown < len(self.measurements):
            raise ValueError(f"measurement {self.shown} of {len(self.measurements)}")
        if not self.classes:
            raise ValueError("a script needs a class")


def write_script(path: Path, opening: Opening) -> None:
    """Write the script; `OutputError` where it cannot be written."""
    write_file(path, script(opening).encode("ascii"))


def script(opening: Opening) -> str:
    """The script: ASCII, whatever the names are."""
    classes = [
        f"    ({literal(name)}): [{', '.join(map(str, colour))}],\n"
        for name, colour in opening.classes.items()
    ]
    measurements = [f"    {literal(name)},  // {place}\n" for place, name in enumerate(opening.measurements)]
    places = {
        "shown": str(opening.shown),
        "lowest": json.dumps(float(opening.vmin)),
        "highest": json.dumps(float(opening.vmax)),
        "map": literal(COLOUR_MAP),
        "slide": literal(opening.slide_id),
        "tiles": literal(opening.tiles),
        "regions": literal(opening.regions),
        "width": str(int(opening.slide_size[0])),
        "height": str(int(opening.slide_size[1])),
        "cropped": "true" if tuple(opening.bounds_origin) != (0, 0) else "false",
        "whole": "true" if tuple(opening.bounds_origin) != tuple(opening.slide_bounds) else "false",
        "measurements": "".join(measurements),
        "classes": "".join(classes),
    }
    parts = _SCRIPT.split("@")  # every other part is the name of a place: no text is looked at twice
    return "".join(places[part] if number % 2 else part for number, part in enumerate(parts))


def literal(text: str) -> str:
    r"""A Groovy string literal, in ASCII, that stands for the text and does nothing else.

    Single quotes: no ``$`` is heeded within. Groovy before 3 replaces ``\u`` and four digits before it looks
    for quotes, so no ASCII character that prints is written in that way; and that a backslash of the text
    never comes before a ``u`` or such digits, the literal is parted there.

    >>> print(literal("it's ${1} \\user"))
    'it\'s ${1} \\' + 'user'
    """
    units = memoryview(text.encode("utf-16-le", "surrogatepass")).cast("H")
    written: list[str] = []
    for unit in units:
        character = chr(unit)
        plain = character if " " <= character <= "~" else f"\\u{unit:04x}"
        one = _ESCAPES.get(character, plain)
        if written and written[-1] == _ESCAPES["\\"] and one.lstrip("\\").startswith("u"):
            written.append("' + '")
        written.append(one)
    return "'" + "".join(written) + "'"


_SCRIPT = """\
// Opens a heatmap in QuPath 0.5 or later: tiles with their measurements, regions, colours, and a map.
//
// Open the slide, then this file in the script editor (Automate, Script editor), and run it. Run it again
// after a new heatmap: it replaces the tiles, and adds the regions that are new. Regions that you have
// changed stay as they are; those of before are not removed.
//
// A tile's score is a model's opinion of that tile alone, and no diagnosis.

import javafx.application.Platform
import qupath.lib.color.ColorMaps
import qupath.lib.gui.scripting.QPEx
import qupath.lib.gui.tools.MeasurementMapper
import qupath.lib.io.PathIO
import qupath.lib.objects.classes.PathClass
import qupath.lib.scripting.ScriptAttributes

// What you may change -----------------------------------------------------------------------------

// Which measurement is shown: its number in the list below. The range is the same on every slide.
int shown = @shown@
double lowest = @lowest@
double highest = @highest@
String colourMap = @map@
// The folder of this script. QuPath says it where the script was opened from its file; otherwise set it here.
File folder = null

// What the files hold -----------------------------------------------------------------------------

String slide = @slide@
String tilesFile = @tiles@
String regionsFile = @regions@
List measurements = [
@measurements@]
Map classes = [
@classes@]

// Is this the image, opened as the files count? ---------------------------------------------------

def server = QPEx.getCurrentServer()
if (server == null) {
    throw new IllegalStateException('Open the slide first')
}
if (!String.valueOf(QPEx.getCurrentImageName()).contains(slide)) {
    println 'WARNING: the image is called ' + QPEx.getCurrentImageName() + ', the heatmap is of ' + slide
}
boolean whole = server.getWidth() == @width@ && server.getHeight() == @height@
if (@cropped@ && whole) {
    throw new IllegalStateException('The image is the whole slide, opened with --no-crop, and the files ' +
            'count from the corner of its bounds: make the heatmap again with --qupath-origin slide')
}
if (@whole@ && !whole) {
    throw new IllegalStateException('The image is cropped to the bounds of the slide, and the files ' +
            'count from the corner of the slide: make the heatmap again without --qupath-origin slide')
}

// Import ------------------------------------------------------------------------------------------

if (folder == null) {
    try {
        folder = new File(String.valueOf(getProperty(ScriptAttributes.FILE_PATH))).getParentFile()
    } catch (MissingPropertyException e) {
        throw new IllegalStateException('Open this script from its file, or set the folder in it')
    }
}
def hierarchy = QPEx.getCurrentHierarchy()

def tiles = PathIO.readObjects(new File(folder, tilesFile).toPath())
def regions = PathIO.readObjects(new File(folder, regionsFile).toPath())
def tileIds = tiles.collect { it.getID() } as Set
def present = hierarchy.getAllObjects(false)
hierarchy.removeObjects(present.findAll { it.isTile() && tileIds.contains(it.getID()) }, true)
hierarchy.addObjects(tiles)
def regionIds = present.collect { it.getID() } as Set
def added = regions.findAll { !regionIds.contains(it.getID()) }
hierarchy.addObjects(added)
// Colours of classes that were known stay as they were on import.
classes.each { name, rgb -> PathClass.fromString(name).setColor(rgb[0], rgb[1], rgb[2]) }
println tiles.size() + ' tiles, ' + added.size() + ' new regions of ' + regions.size()

// Show --------------------------------------------------------------------------------------------

def viewer = QPEx.getCurrentViewer()
if (viewer != null && !tiles.isEmpty()) {
    def map = ColorMaps.getColorMaps().get(colourMap) ?: ColorMaps.getDefaultColorMap()
    def mapper = new MeasurementMapper(map, measurements[shown], tiles)
    mapper.setDisplayMinValue(lowest)
    mapper.setDisplayMaxValue(highest)
    Platform.runLater {
        def known = QPEx.getQuPath().getAvailablePathClasses()
        classes.keySet().collect { PathClass.fromString(it) }.each { if (!known.contains(it)) known.add(it) }
        def options = viewer.getOverlayOptions()
        options.setShowDetections(true)
        options.setFillDetections(true)
        options.setMeasurementMapper(mapper)
        viewer.repaintEntireImage()
    }
}
"""
