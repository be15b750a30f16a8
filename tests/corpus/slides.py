"""Slides to spoil: small, of tissue, sound as they are; and what must be true of the tiles cut of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from corpus.forge import Pixels
from tiling.output import Output
from tiling.store import TileStore
from wsi.synthetic import write_slide, write_svs

MPP = 0.5
"""Microns per pixel of the slides."""
TILE = 128
"""Pixels along each side of a compressed tile; tiles of 64 px at 1 µm lie on the same places."""
COLUMNS, ROWS = 4, 3
"""Compressed tiles of the finest level."""
RICH = 5
"""Number of one that is full of tissue: column 1, row 1."""
WHITE = np.full((ROWS * TILE, COLUMNS * TILE, 3), 244, np.uint8)
CENTIMETRE = {"resolution": (1e4 / MPP,) * 2, "resolutionunit": "CENTIMETER"}
"""How a generic TIFF states `MPP`."""


@cache
def tissue() -> Pixels:
    """``(384, 512, 3)``: what the slides show."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        write_slide(path, seed=6, lesion=False, size=(COLUMNS * TILE, ROWS * TILE), mpp=MPP)
        return np.asarray(tifffile.imread(path, key=0), np.uint8)


def svs(path: Path, *, mpp: float | None = MPP, label_image: bool = False) -> Path:
    """A sound slide as Aperio writes them: three levels and a thumbnail, all of it JPEG."""
    write_svs(path, tissue(), mpp=mpp, tile_px=TILE, label_image=label_image)
    return path


def tiff(path: Path, pixels: np.ndarray | None = None, **options: Any) -> Path:
    """A generic TIFF of one level, without loss; the first directory stands before the pixels."""
    usual: dict[str, Any] = {
        "photometric": "rgb",
        "tile": (TILE, TILE),
        "compression": "zlib",
        "metadata": None,
        **CENTIMETRE,
    }
    given = {name: value for name, value in (usual | options).items() if value is not None}
    tifffile.imwrite(path, tissue() if pixels is None else pixels, **given)
    return path


def spoilt(spoil: Callable[[Path], object]) -> Callable[[Path], Path]:
    """Makes a sound slide, and spoils it."""

    def make(folder: Path) -> Path:
        path = svs(folder / f"{folder.name}.svs")
        spoil(path)
        return path

    return make


# What came of it -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """The tiles that were cut of a slide."""

    out: Path
    """The output folder."""
    slide_id: str
    """Whose."""
    said: str
    """What was printed, on both streams."""

    @property
    def store(self) -> TileStore:
        """Where they are."""
        return TileStore(Output(self.out), self.slide_id)

    def tiles(self) -> dict[tuple[int, int], bytes]:
        """Pixels by origin."""
        store = self.store
        pixels = store.read_pixels(np.arange(len(store)))
        origins = [(int(x), int(y)) for x, y in store.origins]
        return {origin: tile.tobytes() for origin, tile in zip(origins, pixels, strict=True)}


def all_but(places: Sequence[tuple[int, int]], *, of: Callable[[Path], Path] = svs) -> Callable[[Cut], None]:
    """All tiles of the sound slide but these; all with the pixels of its."""

    def holds(cut: Cut) -> None:
        whole = cut_alone(of)
        expected = {place: tile for place, tile in whole.items() if place not in places}
        assert len(expected) == len(whole) - len(places)
        assert cut.tiles() == expected

    return holds


def like(of: Callable[[Path], Path], *, within: float = 0, but: int = 0) -> Callable[[Cut], None]:
    """The places of another slide, `but` so many, and tiles whose pixels differ by so much in the mean."""

    def holds(cut: Cut) -> None:
        expected, found = cut_alone(of), cut.tiles()
        assert len(found.keys() ^ expected.keys()) <= but
        for place in found.keys() & expected.keys():
            pair = (np.frombuffer(pixels, np.uint8).astype(int) for pixels in (found[place], expected[place]))
            assert np.abs(np.subtract(*pair)).mean() <= within, place

    return holds


@cache
def cut_alone(of: Callable[[Path], Path]) -> dict[tuple[int, int], bytes]:
    """What `Cut.tiles` gives of a sound slide, without colours changed."""
    import cli

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = of(folder / "sound.svs")
        assert cli.main([*tile_words(path, out=folder / "out"), *AS_IT_IS, "--quiet"]) == 0
        return Cut(folder / "out", "sound", "").tiles()


AS_IT_IS = ("--stain", "none")
"""Colours that are not normalised: a tile then depends on no other."""


def tile_words(*slides: Path, out: Path) -> list[str]:
    """The command that cuts them."""
    settings = ["--mpp", "1", "--tile-size", "64", "--workers", "1"]
    return ["tile", *map(str, slides), "-o", str(out), *settings]
