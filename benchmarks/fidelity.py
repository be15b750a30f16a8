"""How close tiles are to the scene when JPEG is decoded at half scale, instead of whole and averaged.

    python -m benchmarks.fidelity a.svs b.svs

Prints Markdown: peak signal to noise in dB, the higher the closer. The originals are squares of tissue from
the slides, their level 0 averaged two to one: as sharp as pixels can be, which is harder than a scan. They
are encoded as tiles, read back at half the resolution in both ways, and compared with their own average.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi.geometry import Region
from wsi.jpeg import TileStream
from wsi.resample import area_resample
from wsi.slide import Slide
from wsi.tissue import find_tissue

Bytes = NDArray[np.uint8]

SQUARE, TILE = 1024, 256
SQUARES = 6
"""Of each slide."""
QUALITIES = (70, 80, 85, 88, 90, 95)
SAMPLINGS = ("444", "422", "420", "440", "411")


def squares(path: Path) -> Iterator[Bytes]:
    """Tissue, level 0 averaged two to one."""
    with Slide(path) as slide:
        mask, mpp = find_tissue(slide), slide.require_resolution().mpp
        rows, columns = np.nonzero(mask.mask)
        for index in np.linspace(0, len(rows) - 1, SQUARES + 2).astype(int)[1:-1]:
            x, y = int(columns[index] * mask.scale_x), int(rows[index] * mask.scale_y)
            yield slide.read(x, y, size=(SQUARE, SQUARE), mpp=2 * mpp, exact=True)


def both(image: Bytes, quality: int, sampling: str) -> tuple[Bytes, Bytes]:
    """The image through JPEG tiles, decoded whole and at half scale."""
    whole, half = np.empty_like(image), np.empty((SQUARE // 2, SQUARE // 2, 3), np.uint8)
    stream, edge = TileStream((TILE, TILE), b"", False), TILE // 2
    for row in range(SQUARE // TILE):
        for column in range(SQUARE // TILE):
            place = slice(row * TILE, (row + 1) * TILE), slice(column * TILE, (column + 1) * TILE)
            small = slice(row * edge, (row + 1) * edge), slice(column * edge, (column + 1) * edge)
            options = {"colorspace": "rgb", "outcolorspace": "ycbcr", "subsampling": sampling}
            data = bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(image[place]), quality, **options))
            whole[place], half[small] = stream.decode(data), stream.decode(data, reduce=2)
    return whole, half


def loss(found: list[Bytes], right: list[Bytes]) -> float:
    """PSNR over all of the pictures."""
    errors = [((a.astype(float) - b) ** 2).mean() for a, b in zip(found, right, strict=True)]
    return float(10 * np.log10(255**2 / np.mean(errors)))


def on_the_grid(originals: list[Bytes]) -> None:
    """Two to one, from the corner on: each half-scale pixel is an output pixel."""
    print("| sampling | " + " | ".join(f"quality {quality}" for quality in QUALITIES) + " |")
    print("|---" * (len(QUALITIES) + 1) + "|")
    right = [average(image, Region(0, 0, SQUARE, SQUARE)) for image in originals]
    for sampling in SAMPLINGS:
        cells = []
        for quality in QUALITIES:
            decoded = [both(image, quality, sampling) for image in originals]
            whole = loss([average(pair[0], Region(0, 0, SQUARE, SQUARE)) for pair in decoded], right)
            half = loss([pair[1] for pair in decoded], right)
            cells.append(f"{whole:.1f}, {half - whole:+.2f}")
        print(f"| {':'.join(sampling)} | " + " | ".join(cells) + " |", flush=True)


def average(image: Bytes, window: Region, size: int = SQUARE // 2) -> Bytes:
    return area_resample(image, window, (size, size))


def off_the_grid(originals: list[Bytes]) -> None:
    """Where the half-scale picture has to be interpolated, and JPEG 2000."""
    print("\n| | whole and averaged | half scale |\n|---|---|---|")
    decoded = [both(image, 85, "420") for image in originals]
    for name, start, ratio, size in (
        ("a ratio of 1.9", 0.0, 1.9, 512),
        ("a ratio of 2 from an odd pixel", 1.0, 2.0, 504),
    ):
        wide, half = Region(start, start, ratio * size, ratio * size), ratio * size / 2
        right = [average(image, wide, size) for image in originals]
        found = [average(pair[0], wide, size) for pair in decoded]
        small = [average(pair[1], Region(start / 2, start / 2, half, half), size) for pair in decoded]
        print(f"| JPEG 4:2:0, quality 85, {name} | {loss(found, right):.1f} | {loss(small, right):.1f} |")
    everything = Region(0, 0, SQUARE, SQUARE)
    right = [average(image, everything) for image in originals]
    streams = [bytes(imagecodecs.jpeg2k_encode(image, level=40)) for image in originals]
    whole = [average(imagecodecs.jpeg2k_decode(data), everything) for data in streams]
    half = [reduced(data) for data in streams]
    print(f"| JPEG 2000 | {loss(whole, right):.1f} | {loss(half, right):.1f} |")


def reduced(data: bytes) -> Bytes:
    """The half-resolution part of the wavelets."""
    with Image.open(io.BytesIO(data), formats=("JPEG2000",)) as picture:
        picture.reduce = 1  # type: ignore[method-assign, assignment]
        picture.load()
        return np.asarray(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("slides", type=Path, nargs="+")
    cv2.setNumThreads(1)
    originals = [image for path in parser.parse_args().slides for image in squares(path)]
    print(f"{len(originals)} squares of {SQUARE} px; dB of whole decoding, and what half scale adds\n")
    on_the_grid(originals)
    off_the_grid(originals)


if __name__ == "__main__":
    main()
