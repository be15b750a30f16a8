"""Single bits that flip in what holds a slide together: header, directories, tables, heads of JPEG streams.

``PYTHONPATH=.:tests python -m corpus.bits 9`` flips every ninth of them and counts what comes of it.
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile

from corpus import forge
from corpus.slide_files import pyramid
from corpus.slide_pixels import OME, ome
from corpus.slides import COLUMNS, RICH, ROWS, TILE, svs, tiff, tissue
from wsi.errors import MicrotomeError
from wsi.slide import Slide


def with_tables(path: Path) -> Path:
    """JPEG tiles that leave their tables to the directory."""
    pictures = []
    for ratio in (1, 4):
        image = forge.smaller(tissue(), ratio)
        tiles = [forge.abbreviate(tile) for tile in forge.cut(image, (TILE, TILE), forge.jpeg)]
        size = (image.shape[1], image.shape[0])
        pictures.append(forge.Picture(size, (TILE, TILE), [bare for _, bare in tiles], tables=tiles[0][0]))
    return forge.write_tiff(path, pictures)


def as_ome(path: Path) -> Path:
    """Levels in SubIFDs, nothing compressed."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        return ome(OME.format(""))(Path(folder)).rename(path)


FILES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "aperio": (".svs", svs),
    "pyramid": (".tiff", pyramid),
    "tables": (".tiff", with_tables),
    "deflate": (".tiff", tiff),
    "ome": (".ome.tiff", as_ome),
}
"""How files are called, and made."""

UNSEEN = {
    r"JPEGTables data|head of a tile": "a quantisation table may hold any number",
    r"[XY]Resolution data": "so may a resolution; from 1 % on its two figures are told apart",
    r"ResolutionUnit (tag|value)": "a unit that is missing is the inch, as the format says",
    r"PhotometricInterpretation value": "both RGB and YCbCr are stored as JPEG",
    r"directory [1-9] Image(Width|Length) value": "levels are off by a pixel or two in sound files too",
    r"TileOffsets (data|value)": "pixels without any compression look like any others",
}
"""Where a flip may go unseen, and why."""

_ONE_OF = ("tag", "tag", "type", "type", *["count"] * 4, *["value"] * 4)  # bytes of a directory's entry
_TABLES = {258, 273, 279, 282, 283, 324, 325, 330, 347}


def structure(path: Path) -> dict[int, str]:
    """What stands where in a sound file, byte by byte; pixels and texts left out."""
    found = dict.fromkeys(range(8), "header")
    with tifffile.TiffFile(path) as file:
        pages = [page for chained in file.pages for page in (chained, *(chained.pages or ()))]
        for number, page in enumerate(pages):
            for at in range(2 + 12 * len(page.tags) + 4):
                found[page.offset + at] = f"directory {number}"
            for tag in page.tags.values():
                name = f"directory {number} {tag.name}"
                found |= {tag.offset + at: f"{name} {part}" for at, part in enumerate(_ONE_OF)}
                if tag.code in _TABLES and tag.valueoffset > tag.offset + 8:
                    found |= dict.fromkeys(
                        range(tag.valueoffset, tag.valueoffset + tag.valuebytecount), f"{name} data"
                    )
        if pages[0].compression == forge.JPEG:
            start, length = pages[0].dataoffsets[RICH], pages[0].databytecounts[RICH]
            head = path.read_bytes()[start : start + length].index(b"\xff\xda")
            found |= dict.fromkeys(range(start, start + head), "head of a tile")
    return found


def flipped(sound: bytes, byte: int, bit: int) -> bytes:
    return sound[:byte] + bytes([sound[byte] ^ (1 << bit)]) + sound[byte + 1 :]


@dataclass
class Seen:
    """What is read of a slide."""

    refused: str = ""
    """The line of error; the rest is then empty."""
    facts: Sequence[object] = ()
    """Size, and microns per pixel."""
    pixels: list[np.ndarray | str] = field(default_factory=list)
    """At two scales; of a place that cannot be read, why."""
    said: list[str] = field(default_factory=list)
    """Warnings of ours."""


def see(path: Path) -> Seen:
    """Read all of a slide of the size of ours."""
    seen, listener = Seen(), logging.Handler(logging.WARNING)
    listener.emit = lambda record: seen.said.append(record.getMessage())  # type: ignore[method-assign]
    ours = logging.getLogger("wsi")
    ours.addHandler(listener)
    try:
        with Slide(path) as slide:
            resolution = slide.require_resolution()
            seen.facts = slide.size, (resolution.x, resolution.y)
            for mpp, x, y in _places():
                try:
                    seen.pixels.append(slide.read(x, y, size=(64, 64), mpp=mpp).astype(np.int16))
                except MicrotomeError as error:
                    seen.pixels.append(str(error))
    except MicrotomeError as error:
        seen.refused = str(error)
    finally:
        ours.removeHandler(listener)
    return seen


def _places() -> Iterator[tuple[float, int, int]]:
    yield from ((1.0, x * TILE, y * TILE) for y in range(ROWS) for x in range(COLUMNS))
    yield from ((4.0, x, 0) for x in range(0, COLUMNS * TILE, 256))


def verdict(seen: Seen, sound: Seen) -> str:
    """``"refused"``, ``"places"`` are named, ``"same"`` pixels, ``"warned"``, or ``"other"`` without a word.

    A level that is gone is no harm: its pixels are then made of the finer ones, which is the same but for
    how they are averaged.
    """
    if seen.refused:
        return "refused"
    pairs = [(a, b) for a, b in zip(seen.pixels, sound.pixels, strict=True) if not isinstance(a, str)]
    if seen.facts == sound.facts and all(np.abs(a - b).mean() <= 2 for a, b in pairs):
        return "same" if len(pairs) == len(seen.pixels) else "places"
    return "warned" if seen.said else "other"


def reason(where: str) -> str | None:
    """Why a flip there may go unseen; None where it may not."""
    return next((why for pattern, why in UNSEEN.items() if re.search(pattern, where)), None)


def main(step: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for kind, (suffix, make) in FILES.items():
            path = make(Path(folder) / f"sound{suffix}")
            data, sound, other = path.read_bytes(), see(path), Path(folder) / f"flipped{suffix}"
            places, counts = structure(path), Counter[str]()
            flips = [(byte, bit) for byte in sorted(places) for bit in range(8)][::step]
            for byte, bit in flips:
                other.write_bytes(flipped(data, byte, bit))
                said, where = verdict(see(other), sound), places[byte]
                counts[said if said != "other" else reason(where) or f"unseen: {where}"] += 1
            sys.stdout.write(f"{kind}: {len(flips)} flips, {dict(counts)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
