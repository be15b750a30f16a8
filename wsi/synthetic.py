"""Seeded H&E-like slides whose lesions are known, for tests, documentation and the demo.

What is on the glass is drawn by `wsi.specimen`; here it becomes files. They imitate Aperio's: pyramid levels
are top-level directories, and the second directory is the thumbnail. Readers count on that order, and see a
single level where it is not kept.
"""

from __future__ import annotations

import csv
import io
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile

from wsi.durable import make_folder, open_new, replacing, write_file
from wsi.errors import UsageError
from wsi.picture import encode_png
from wsi.specimen import (
    MASK_SCALE,
    Specimen,
    draw_specimen,
    draw_stains,
    paint,
    with_lesion,
)
from wsi.texture import Bools, Bytes

_ASSUMED_MPP = 0.5  # the scale to draw at when the file is to state none
_DOWNSAMPLES = (1, 4, 16)
_QUALITY = 85  # of all JPEG

_HUGE_DOWNSAMPLES = (1, 4, 16, 64)
_HUGE_TILE = 256
_PERIOD = 1024  # level-0 pixels after which the tissue of a huge slide repeats: 16 pixels of its last level
_SNAP = 64  # level-0 pixels under one pixel of the last level: its square keeps to multiples of it
_TIFF_TYPES = {np.dtype("<u2"): 3, np.dtype("<u4"): 4, np.dtype("<u8"): 16}


@dataclass(frozen=True)
class SyntheticSlide:
    """A slide on disk and the truth about it."""

    path: Path
    """The slide file."""
    lesion: Bools
    """(rows, columns): where the lesion is; all False on a slide without one."""
    lesion_scale: float
    """Level-0 pixels per pixel of `lesion`, whose corner (0, 0) lies on level-0 (0, 0)."""


def write_slide(
    path: Path,
    *,
    seed: int,
    lesion: bool,
    size: tuple[int, int] = (4096, 3072),
    mpp: float | None = 0.5,
    tile_px: int = 256,
    label_image: bool = False,
) -> SyntheticSlide:
    """Write one slide; the same arguments give the same bytes.

    Parameters
    ----------
    path
        ``.svs`` gives an Aperio-like file, ``.tif`` or ``.tiff`` a generic pyramidal TIFF.
    seed
        Chooses tissue, stains and lesion.
    lesion
        Whether to put a lesion into the tissue. Around it, the slide is that of the same seed without one.
    size
        (width, height) of level 0, at least 256 each.
    mpp
        Microns per pixel that the file states and that nuclei are drawn at; None states none (drawn at 0.5).
    tile_px
        Edge of the JPEG tiles, a multiple of 16.
    label_image
        Whether an ``.svs`` also holds a label and a macro image.

    Raises
    ------
    UsageError
        A slide too small, or tiles that JPEG blocks of 16 pixels do not fill.
    """
    if min(size) < 256 or tile_px % 16:
        found = f"a slide of {size[0]} x {size[1]} pixels in tiles of {tile_px}"
        raise UsageError(found, path=path, action="Ask for at least 256 x 256 and tiles in steps of 16")
    pixels, mask = _draw(seed, lesion=lesion, size=size, mpp=mpp or _ASSUMED_MPP)
    if path.suffix.lower() == ".svs":
        write_svs(path, pixels, mpp=mpp, tile_px=tile_px, label_image=label_image)
    else:
        _write_tiff(path, pixels, mpp=mpp, tile_px=tile_px)
    return SyntheticSlide(path=path, lesion=mask, lesion_scale=float(MASK_SCALE))


def _draw(seed: int, *, lesion: bool, size: tuple[int, int], mpp: float) -> tuple[Bytes, Bools]:
    """The pixels of level 0 and the mask of the lesion; each step has its own stream of lots."""
    streams = np.random.default_rng(seed).spawn(4)
    specimen = draw_specimen(streams[0], size=size, mpp=mpp)
    if lesion:
        specimen = with_lesion(streams[1], specimen)
    return paint(streams[2], specimen, draw_stains(streams[3])), specimen.lesion


def write_cohort(
    folder: Path,
    *,
    count: int,
    seed: int,
    size: tuple[int, int] = (4096, 3072),
    mpp: float | None = 0.5,
) -> list[SyntheticSlide]:
    """Write `count` slides, every second with a lesion, and the truth about them.

    Beside ``synth-000.svs`` and so on, `folder` then holds ``labels.csv`` (columns slide_id, label, patient,
    split; a third of each label for testing) and ``lesions/<slide_id>.png`` (255 where the lesion is).
    """
    make_folder(folder / "lesions")
    slides, rows = [], []
    for index in range(count):
        sick = index % 2 == 1
        name = f"synth-{index:03d}"
        own_seed = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
        slide = write_slide(folder / f"{name}.svs", seed=own_seed, lesion=sick, size=size, mpp=mpp)
        write_file(folder / "lesions" / f"{name}.png", encode_png(slide.lesion.astype(np.uint8) * 255))
        slides.append(slide)
        split = "test" if index // 2 % 3 == 1 else "train"
        rows.append((name, "tumour" if sick else "normal", f"patient-{index:03d}", split))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("slide_id", "label", "patient", "split"))
    writer.writerows(rows)
    write_file(folder / "labels.csv", text.getvalue().encode())
    return slides


def _levels(pixels: Bytes) -> list[Bytes]:
    height, width = pixels.shape[:2]
    sizes = [(max(width // scale, 1), max(height // scale, 1)) for scale in _DOWNSAMPLES]
    levels = [pixels]
    for size in sizes[1:]:
        smaller = cv2.resize(levels[-1], size, interpolation=cv2.INTER_AREA)
        levels.append(np.asarray(smaller, np.uint8))
    return levels


def _jpeg(quality: int = _QUALITY, /, **options: Any) -> dict[str, Any]:
    """What every JPEG directory asks of tifffile; no field depends on the day or on tifffile's version."""
    return {
        "photometric": "rgb",
        "subsampling": (2, 2),
        "compression": "jpeg",
        "compressionargs": {"level": quality},
        "metadata": None,
        "software": "Microtome synthetic slide",
        **options,
    }


def _aperio_description(size: tuple[int, int], *, shown: str, mpp: float | None) -> str:
    title = (
        f"Aperio Image Library v12.0.0 (synthetic)\r\n{size[0]}x{size[1]} [0,0 {size[0]}x{size[1]}] {shown}"
    )
    scale = "" if mpp is None else f"|AppMag = {10 / mpp:.4g}|MPP = {mpp:.4f}"
    return f"{title}{scale}|Source = synthetic"


def write_svs(
    path: Path,
    pixels: Bytes,
    *,
    mpp: float | None,
    tile_px: int = 256,
    label_image: bool = False,
    quality: int = _QUALITY,
) -> None:
    """Write (height, width, 3) RGB as an Aperio-like file; `quality` is that of all its JPEG."""
    size = (pixels.shape[1], pixels.shape[0])
    levels = _levels(pixels)

    def described(shown: str) -> str:
        return _aperio_description(size, shown=shown, mpp=mpp)

    tiles = f"({tile_px}x{tile_px})"
    with replacing(path) as temporary, open_new(temporary) as stream, tifffile.TiffWriter(stream) as tiff:
        tile = {"tile": (tile_px, tile_px)}
        tiff.write(pixels, description=described(f"{tiles} JPEG/YCC Q={quality}"), **_jpeg(quality, **tile))
        small = levels[-1]
        seen = f"-> {small.shape[1]}x{small.shape[0]} - "
        tiff.write(small, description=described(seen), **_jpeg(quality, rowsperstrip=16))
        for level in levels[1:]:
            shown = f"{tiles} -> {level.shape[1]}x{level.shape[0]} JPEG/YCC Q={quality}"
            tiff.write(level, description=described(shown), **_jpeg(quality, **tile))
        if label_image:
            _write_label(tiff, small)


def _write_label(tiff: Any, thumbnail: Bytes) -> None:
    """The two images of Aperio that may show a patient's name: the label and the whole glass."""
    label = np.full((200, 240, 3), 250, np.uint8)
    for line, text in enumerate(("SYNTHETIC", "NAME: DOE", "S-00-0000")):
        cv2.putText(label, text, (12, 60 + 50 * line), cv2.FONT_HERSHEY_SIMPLEX, 1, (20, 20, 20), 2)
    macro = np.full((300, 880, 3), 225, np.uint8)
    macro[50:250, 20:260] = label
    macro[30:270, 300:860] = cv2.resize(thumbnail, (560, 240), interpolation=cv2.INTER_AREA)
    for name, image, kind in (("label", label, 1), ("macro", macro, 9)):
        description = f"Aperio Image Library v12.0.0 (synthetic)\r\n{name} {image.shape[1]}x{image.shape[0]}"
        tiff.write(image, description=description, **_jpeg(rowsperstrip=16, subfiletype=kind))


def _write_tiff(path: Path, pixels: Bytes, *, mpp: float | None, tile_px: int) -> None:
    with replacing(path) as temporary, open_new(temporary) as stream, tifffile.TiffWriter(stream) as tiff:
        for number, (level, scale) in enumerate(zip(_levels(pixels), _DOWNSAMPLES, strict=True)):
            known = (
                {}
                if mpp is None
                else {
                    "resolution": (1e4 / mpp / scale,) * 2,
                    "resolutionunit": "CENTIMETER",
                }
            )
            options = _jpeg(tile=(tile_px, tile_px), subfiletype=min(number, 1), **known)
            tiff.write(level, **options)


def write_huge_slide(
    path: Path, *, size: tuple[int, int] = (100_000, 100_000), mpp: float = 0.25, tissue_px: int = 16_384
) -> Path:
    """Write an Aperio-like BigTIFF of gigapixels that takes a few megabytes on disk.

    All is white glass but for a centred square of H&E-like tissue, `tissue_px` level-0 pixels wide (rounded
    up to a multiple of 64). The levels, at 1, 4, 16 and 64, show the same picture. The tissue repeats every
    1024 pixels, so that the tile tables point again and again to the same few tiles.
    """
    side = math.ceil(tissue_px / _SNAP) * _SNAP
    starts = [(edge - side) // 2 // _SNAP * _SNAP for edge in size]
    texture, glass = _tissue_texture(mpp)
    file = bytearray(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
    link = 8  # where the position of the next directory is to be written
    for scale in _HUGE_DOWNSAMPLES:
        smaller = cv2.resize(texture, (_PERIOD // scale,) * 2, interpolation=cv2.INTER_AREA)
        pattern = np.asarray(smaller, np.uint8)
        columns, rows = (
            _pattern_indices(edge // scale, (start // scale, (start + side) // scale), _PERIOD // scale)
            for edge, start in zip(size, starts, strict=True)
        )
        table = _place_tiles(file, rows, columns, pattern=pattern, glass=glass)
        title = _aperio_description(size, shown="(256x256) JPEG/YCC", mpp=mpp)
        fields = {**_image_fields((size[0] // scale, size[1] // scale), title), **table}
        link = _append_directory(file, link, fields)
        if scale == 1:
            step = max(max(size) // 768, 1)
            seen = [axis.ravel()[:edge:step] for axis, edge in zip((rows, columns), size[::-1], strict=True)]
            link = _append_thumbnail(file, link, _compose(*seen, pattern=pattern, glass=glass), title)
    write_file(path, bytes(file))
    return path


def _tissue_texture(mpp: float) -> tuple[Bytes, Bytes]:
    """(1024, 1024, 3) of nothing but tissue, and the (3,) colour of the glass around it."""
    everywhere = np.ones((_PERIOD // MASK_SCALE,) * 2, np.bool_)
    specimen = Specimen(size=(_PERIOD, _PERIOD), mpp=mpp, tissue=everywhere, lesion=~everywhere)
    rng = np.random.default_rng(0)
    stains = draw_stains(rng)
    return paint(rng, specimen, stains), np.rint(stains.glass).astype(np.uint8)


def _pattern_indices(edge: int, inside: tuple[int, int], period: int) -> npt.NDArray[np.int64]:
    """(tiles, 256): along one axis, which row or column of the pattern each pixel shows; -1 is glass."""
    place = np.arange(math.ceil(edge / _HUGE_TILE) * _HUGE_TILE)
    shown = np.where((place >= inside[0]) & (place < inside[1]), place % period, -1)
    return shown.reshape(-1, _HUGE_TILE)


def _compose(
    rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], *, pattern: Bytes, glass: Bytes
) -> Bytes:
    shows_tissue = (rows >= 0)[:, None, None] & (columns >= 0)[None, :, None]
    return np.where(shows_tissue, pattern[np.ix_(rows, columns)], glass)


def _place_tiles(
    file: bytearray,
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    *,
    pattern: Bytes,
    glass: Bytes,
) -> dict[int, npt.NDArray[Any]]:
    """Append each distinct tile of a level once; return the fields that say which tile lies where."""
    rows, row_kinds = np.unique(rows, axis=0, return_inverse=True)
    columns, column_kinds = np.unique(columns, axis=0, return_inverse=True)
    offsets = np.zeros((len(rows), len(columns)), "<u8")
    counts = np.zeros((len(rows), len(columns)), "<u4")
    for i, j in np.ndindex(offsets.shape):
        jpeg = _jpeg_bytes(_compose(rows[i], columns[j], pattern=pattern, glass=glass))
        offsets[i, j], counts[i, j] = len(file), len(jpeg)
        file += jpeg
    which = np.ix_(row_kinds.ravel(), column_kinds.ravel())
    edge = np.array([_HUGE_TILE], "<u4")
    return {322: edge, 323: edge, 324: offsets[which].ravel(), 325: counts[which].ravel()}


def _append_thumbnail(file: bytearray, link: int, picture: Bytes, title: str) -> int:
    jpeg = _jpeg_bytes(picture)
    where = {273: np.array([len(file)], "<u8"), 279: np.array([len(jpeg)], "<u4")}
    file += jpeg
    height, width = picture.shape[:2]
    strip = {278: np.array([height], "<u4"), **where}  # one strip for the whole picture
    return _append_directory(file, link, {**_image_fields((width, height), title), **strip})


def _jpeg_bytes(picture: Bytes) -> bytes:
    encoded = imagecodecs.jpeg8_encode(
        picture, _QUALITY, colorspace="rgb", outcolorspace="ycbcr", subsampling="420"
    )
    return bytes(encoded)


def _image_fields(size: tuple[int, int], description: str) -> dict[int, npt.NDArray[Any] | bytes]:
    """Fields of a directory by their TIFF 6.0 tags: an RGB picture, JPEG with halved chroma."""
    return {
        256: np.array([size[0]], "<u4"),
        257: np.array([size[1]], "<u4"),
        258: np.array([8, 8, 8], "<u2"),
        259: np.array([7], "<u2"),
        262: np.array([6], "<u2"),
        270: description.encode() + b"\0",
        277: np.array([3], "<u2"),
        284: np.array([1], "<u2"),
        530: np.array([2, 2], "<u2"),
    }


def _append_directory(file: bytearray, link: int, fields: dict[int, npt.NDArray[Any] | bytes]) -> int:
    """Append a BigTIFF directory, point `link` at it, and return where the position of the next belongs."""
    file += bytes(-len(file) % 8)
    start = len(file)
    link_after = start + 8 + 20 * len(fields)
    entries, values = bytearray(), bytearray()
    for tag, value in sorted(fields.items()):
        if isinstance(value, bytes):
            raw, kind, count = value, 2, len(value)
        else:
            raw, kind, count = value.tobytes(), _TIFF_TYPES[value.dtype], value.size
        entries += struct.pack("<HHQ", tag, kind, count)
        if len(raw) <= 8:
            entries += raw.ljust(8, b"\0")
        else:
            entries += struct.pack("<Q", link_after + 8 + len(values))
            values += raw
    struct.pack_into("<Q", file, link, start)
    file += struct.pack("<Q", len(fields)) + entries + bytes(8) + values
    return link_after
