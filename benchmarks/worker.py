"""One piece of work in a process of its own, asked for by `benchmarks.costs.Worker`.

Libraries are imported and warmed up before the clock starts; opening the slide counts.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.costs import serve
from benchmarks.readers import READERS, Bytes, Task

Work = Callable[[], Iterator[float]]
"""Does it once, and yields how much of it was done: tiles, or megapixels."""


def read(name: str, task: dict[str, Any], keep: list[int], kept: str, unit: float) -> Work:
    """Read the tiles, each worth `unit`; those of the numbers `keep` are left in the file `kept`."""
    todo, reader = Task(**task), READERS[name].read
    found = [np.array(tile) for tile in reader(todo.chosen(keep))]
    assert len(found) == len(keep), f"{len(found)} tiles came for {len(keep)}"
    np.save(kept, np.stack(found))

    def work() -> Iterator[float]:
        for _ in reader(todo):
            yield unit

    return work


def decode(name: str, reduce: int, task: dict[str, Any]) -> Work:
    """Decode the JPEG tiles under the task's tiles, which are in memory, to megapixels of the slide."""
    streams, edge = compressed(Task(**task))
    decoder = DECODERS[name](edge, reduce)
    decoder(streams[0])

    def work() -> Iterator[float]:
        for stream in streams:
            decoder(stream)
            yield edge**2 / 1e6

    return work


def compressed(task: Task) -> tuple[list[bytes], int]:
    """Each JPEG tile of level 0 under the tiles once, as a whole stream, and its edge in pixels."""
    from tifffile import TiffFile

    with TiffFile(task.path) as tiff:
        page = tiff.pages.first
        places = under(task, (page.imagewidth, page.imagelength), page.tilewidth)
        streams = []
        for index in places:
            tiff.filehandle.seek(page.dataoffsets[index])
            stream = tiff.filehandle.read(page.databytecounts[index])
            # Abbreviated streams get the directory's tables, without their end of image.
            streams.append(page.jpegtables[:-2] + stream[2:] if page.jpegtables else stream)
        return streams, page.tilewidth


def under(task: Task, slide_size: tuple[int, int], edge: int) -> list[int]:
    """Indices of the level-0 tiles of the file that lie under the tiles."""
    across, down = -(-slide_size[0] // edge), -(-slide_size[1] // edge)
    found = {
        row * across + column
        for x, y in task.origins
        for row in range(y // edge, min(-(-(y + task.source_px) // edge), down))
        for column in range(x // edge, min(-(-(x + task.source_px) // edge), across))
    }
    return sorted(found)


Decoder = Callable[[bytes], object]


def simplejpeg_decoder(edge: int, reduce: int) -> Decoder:
    import simplejpeg

    picture = np.empty((edge // reduce, edge // reduce, 3), np.uint8)
    side = edge // reduce
    options = {} if reduce == 1 else {"min_height": side, "min_width": side, "min_factor": reduce}
    return lambda stream: simplejpeg.decode_jpeg(stream, colorspace="RGB", buffer=picture, **options)


def turbojpeg_decoder(edge: int, reduce: int) -> Decoder:
    """The machine's own library: ``tjDecompress2`` of TurboJPEG's API, pixel format 0 (RGB)."""
    library = ctypes.CDLL(ctypes.util.find_library("turbojpeg") or "libturbojpeg.so.0")
    library.tjInitDecompress.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(library.tjInitDecompress())
    side = edge // reduce
    picture = np.empty((side, side, 3), np.uint8)
    target = ctypes.c_void_p(picture.ctypes.data)

    def decoder(stream: bytes) -> object:
        size = ctypes.c_ulong(len(stream))
        failed = library.tjDecompress2(handle, stream, size, target, side, 0, side, 0, 0)
        assert not failed, "libturbojpeg refuses the stream"
        return picture

    return decoder


DECODERS = {"simplejpeg": simplejpeg_decoder, "libturbojpeg (ctypes)": turbojpeg_decoder}


def stain(name: str, tiles: str) -> Work:
    """Normalise tiles from a file, megapixel by megapixel."""
    pixels: Bytes = np.load(tiles)
    normalize = STAINS[name](pixels)
    normalize(pixels[0])

    def work() -> Iterator[float]:
        for tile in pixels:
            normalize(tile)
            yield tile[..., 0].size / 1e6

    return work


Normalize = Callable[[Bytes], object]


def own_stain(tiles: Bytes) -> Normalize:
    from tiling.stain import Macenko

    normalizer = Macenko().fit(tiles.reshape(-1, 3))
    difference = np.abs(normalizer(tiles).astype(int) - in_float64(normalizer, tiles))
    assert difference.max() <= 1, "not the same normalisation"
    return normalizer


def float64_stain(tiles: Bytes) -> Normalize:
    from tiling.stain import Macenko

    normalizer = Macenko().fit(tiles.reshape(-1, 3))
    return lambda tile: in_float64(normalizer, tile[None])


def in_float64(normalizer: Any, tiles: Bytes) -> Bytes:
    """What the paper says, spelt out: densities, concentrations, scaling, and light again."""
    from tiling.stain import REFERENCE_MAXIMA, REFERENCE_STAINS

    done = np.empty_like(tiles)
    for tile, target in zip(tiles, done, strict=True):
        density = -np.log((tile.reshape(-1, 3).astype(np.float64) + 1) / normalizer.light)
        concentration = np.linalg.lstsq(np.array(normalizer.stains).T, density.T, rcond=None)[0]
        concentration *= (np.array(REFERENCE_MAXIMA) / np.array(normalizer.maxima))[:, None]
        light = normalizer.light * np.exp(-np.array(REFERENCE_STAINS).T @ concentration)
        target[...] = np.rint(np.clip(light, 0, 255)).astype(np.uint8).T.reshape(tile.shape)
    return done


def torchstain(tiles: Bytes) -> Normalize:
    from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

    theirs = NumpyMacenkoNormalizer()
    return lambda tile: theirs.normalize(tile, stains=False)


FLOAT64_STAIN = "float64 NumPy, fitted once"
OUR_STAIN = "**`MacenkoNormalizer`**, fitted once"
STAINS = {
    FLOAT64_STAIN: float64_stain,
    OUR_STAIN: own_stain,
    "torchstain (NumPy), fits every tile": torchstain,
}


def cut(path: str, out: str, threads: int) -> Work:
    """All of a slide in one go, to the tiles that came of it; removing the last result counts too."""
    from tiling.cut import cut_slide
    from tiling.output import Output
    from tiling.recipe import CutRecipe
    from tiling.store import TileStore
    from wsi.slide import Slide

    def work() -> Iterator[float]:
        shutil.rmtree(out, ignore_errors=True)
        output = Output(Path(out))
        with output.lock(), Slide(path) as slide:
            store = TileStore(output, "slide")
            cut_slide(slide, store, CutRecipe(), workers=threads)
            yield len(store)

    return work


WORK: dict[str, Callable[..., Work]] = {"read": read, "decode": decode, "stain": stain, "cut": cut}


def main() -> None:
    cv2.setNumThreads(1)
    request = json.loads(sys.stdin.readline())
    work = WORK[request.pop("kind")](**request)
    print("{}", flush=True)  # ready
    serve(work, sys.stdin)


if __name__ == "__main__":
    main()
