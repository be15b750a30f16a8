"""Slides of odd colours, scales, levels and sizes, whole as files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from corpus import forge
from corpus.fault import Fault, Outcome, Processed, Rejected, Warned
from corpus.slides import (
    AS_IT_IS,
    COLUMNS,
    ROWS,
    TILE,
    WHITE,
    Cut,
    like,
    spoilt,
    svs,
    tiff,
    tissue,
)
from corpus.tampering import field_at, patch, write_pages
from wsi.synthetic import write_huge_slide, write_svs

Make = Callable[[Path], Path]


def pixels(change: Callable[[np.ndarray], np.ndarray], **options: Any) -> Make:
    """A lossless slide of the tissue, changed."""
    return lambda folder: tiff(folder / f"{folder.name}.tiff", change(tissue()), **options)


def grey(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[..., 1])


def deep(image: np.ndarray) -> np.ndarray:
    return image.astype(np.uint16) * 257


def with_alpha(image: np.ndarray) -> np.ndarray:
    return np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])


def holed(image: np.ndarray) -> np.ndarray:
    """The left half was never scanned: transparent, and black under it."""
    image = with_alpha(image)
    image[:, : image.shape[1] // 2] = 0
    return image


def only_the_right(cut: Cut) -> None:
    """No tile of what was never scanned."""
    assert len(cut.store)
    assert (cut.store.origins[:, 0] >= COLUMNS * TILE // 2).all()


def stack(folder: Path, pages: int, image: Callable[[], np.ndarray]) -> Path:
    return write_pages(folder / f"{folder.name}.tiff", [image()] * pages)


GREY_ALIKE = like(lambda path: tiff(path, np.repeat(grey(tissue())[..., None], 3, axis=2)))
PALETTE = np.arange(768, dtype=np.uint16).reshape(3, 256) * 85
RGB_NEEDED = "8-bit RGB is needed.*Convert"


def refused(found: str) -> Outcome:
    return Rejected(f"{found}; {RGB_NEEDED}")


COLOURS = (
    Fault("px_rgb", "RGB without loss", pixels(lambda i: i), Processed(holds=like(tiff)), words=AS_IT_IS),
    Fault("px_gray8", "grey", pixels(grey, photometric="minisblack"), Processed("no tissue")),
    Fault(
        "px_gray16",
        "grey of 16 bits",
        pixels(lambda i: deep(grey(i)), photometric="minisblack"),
        refused("has 16-bit samples"),
    ),
    Fault("px_rgb16", "RGB of 16 bits", pixels(deep), refused("has 16-bit samples")),
    Fault(
        "px_1bit",
        "black and white",
        pixels(lambda i: grey(i) > 127, photometric="minisblack", compression=None),
        refused("has 1-bit samples"),
    ),
    Fault(
        "px_int8",
        "signed numbers",
        pixels(lambda i: i.view(np.int8)),
        refused("holds signed or fractional numbers"),
    ),
    Fault(
        "px_float32",
        "fractional numbers",
        pixels(lambda i: i.astype(np.float32)),
        refused("holds signed or fractional numbers"),
    ),
    Fault("px_cmyk", "inks", pixels(with_alpha, photometric="separated"), refused("is CMYK")),
    Fault(
        "px_palette",
        "numbers of colours",
        pixels(grey, photometric="palette", colormap=PALETTE),
        refused("with a palette"),
    ),
    Fault("px_lab", "CIELab", pixels(lambda i: i, photometric="cielab"), refused("is CIELab")),
    Fault(
        "px_miniswhite", "a negative", pixels(grey, photometric="miniswhite"), refused("is grey in negative")
    ),
    Fault(
        "px_ycbcr_raw",
        "YCbCr that is no JPEG",
        pixels(lambda i: i, photometric="ycbcr"),
        refused("is YCbCr that is no JPEG"),
    ),
    Fault(
        "px_5ch",
        "five channels in a pixel",
        pixels(lambda i: np.dstack([i, grey(i), grey(i)]), extrasamples=[0, 0]),
        refused("has 5 channels that are not those of RGB"),
    ),
    Fault(
        "px_2ch",
        "grey and opacity",
        pixels(lambda i: np.dstack([grey(i)] * 2), photometric="minisblack", extrasamples=[2]),
        refused("has 2 channels that are not those of RGB"),
    ),
    Fault(
        "px_webp",
        "WebP without loss, which OpenSlide does not read",
        pixels(lambda i: i, compression="webp"),
        Processed(holds=like(tiff)),
        words=AS_IT_IS,
    ),
    Fault(
        "px_planar",
        "a plane for each colour",
        pixels(lambda i: i.transpose(2, 0, 1).copy(), planarconfig="separate"),
        Processed(holds=like(tiff)),
        words=AS_IT_IS,
    ),
    Fault(
        "px_rgba",
        "RGB and opacity",
        pixels(with_alpha, extrasamples=["unassalpha"]),
        Processed(holds=like(tiff)),
        words=AS_IT_IS,
    ),
    Fault(
        "px_rgba_holes",
        "places never scanned, transparent and black",
        pixels(holed, extrasamples=["unassalpha"]),
        Processed(holds=only_the_right),
        words=AS_IT_IS,
    ),
    Fault(
        "fluor_5ch",
        "five pages of one channel each",
        partial(stack, pages=5, image=lambda: grey(tissue())),
        Rejected("is a stack of 5 images"),
    ),
    Fault(
        "zstack_5",
        "five focal planes",
        partial(stack, pages=5, image=tissue),
        Rejected("is a stack of 5 images"),
    ),
    Fault(
        "turned",
        "a picture that is stored on its side",
        pixels(lambda i: i, extratags=[(274, 3, 1, 6, True)]),
        Rejected("turned or mirrored.*upright"),
    ),
)


# Scale -----------------------------------------------------------------------------------------------------


def stating(text: str) -> Make:
    """An Aperio slide that states this as its microns per pixel."""

    def spoil(path: Path) -> None:
        data = path.read_bytes()
        assert b"|MPP = 0.5000" in data
        path.write_bytes(data.replace(b"|MPP = 0.5000", b"|MPP = " + text.encode().ljust(6)))

    return spoilt(spoil)


def resolution(x: float, y: float, unit: str = "CENTIMETER") -> Make:
    return lambda folder: tiff(folder / f"{folder.name}.tiff", resolution=(x, y), resolutionunit=unit)


def over_zero(folder: Path) -> Path:
    path = tiff(folder / f"{folder.name}.tiff")
    for tag in (282, 283):
        patch(path, field_at(path, tag)[1], bytes(8))
    return path


def ome(text: str) -> Make:
    """An OME-TIFF whose XML is given."""

    def make(folder: Path) -> Path:
        path = folder / f"{folder.name}.ome.tiff"
        usual: dict[str, Any] = {"tile": (TILE, TILE), "photometric": "rgb", "metadata": None}
        with tifffile.TiffWriter(path) as file:
            file.write(tissue(), subifds=1, description=text, **usual)
            file.write(forge.smaller(tissue(), 2), subfiletype=1, **usual)
        return path

    return make


OME = (
    '<?xml version="1.0" encoding="UTF-8"?>{}<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="512" SizeY="384" '
    'SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeY="0.5"><Channel ID="Channel:0:0" '
    'SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
)
LAUGHS = (
    "<!DOCTYPE l [<!ENTITY a 'ha'>"
    + "".join(f"<!ENTITY {chr(98 + i)} '{f'&{chr(97 + i)};' * 10}'>" for i in range(9))
    + "]>"
)
ABSURD = Rejected("outside 0.05 to 20.*--mpp-override")
NONE = Rejected("states no microns per pixel.*--mpp-override")

SCALES = (
    Fault("mpp_missing", "no microns per pixel", lambda f: svs(f / f"{f.name}.svs", mpp=None), NONE),
    Fault(
        "mpp_missing_tiff",
        "a generic TIFF without resolution",
        lambda f: tiff(f / f"{f.name}.tiff", resolution=None, resolutionunit=None),
        NONE,
    ),
    Fault("mpp_no_unit", "a resolution without unit", resolution(20_000, 20_000, "NONE"), NONE),
    Fault("mpp_over_zero", "a resolution of 0 over 0", over_zero, NONE),
    Fault("mpp_zero", "0", stating("0"), Rejected("mpp.* is 0; it must be above 0.*--mpp-override")),
    Fault("mpp_negative", "less than 0", stating("-0.5"), Rejected("mpp.* is -0.5.*--mpp-override")),
    Fault("mpp_nan", "nan", stating("nan"), Rejected("mpp.*nan.*--mpp-override")),
    Fault("mpp_inf", "infinity", stating("inf"), Rejected("mpp.*inf.*--mpp-override")),
    Fault("mpp_text", "a word", stating("fine"), Rejected("mpp is 'fine', which is not a number")),
    Fault("mpp_huge", "350 µm", stating("350"), ABSURD),
    Fault("mpp_tiny", "0.001 µm", stating("0.001"), ABSURD),
    Fault("mpp_screen", "72 dots an inch", resolution(72, 72, "INCH"), ABSURD),
    Fault("mpp_comma", "a decimal comma", stating("0,5000"), Processed(holds=like(svs)), words=AS_IT_IS),
    Fault("mpp_spaces", "blanks around it", stating(" 0.5"), Processed(holds=like(svs)), words=AS_IT_IS),
    Fault(
        "mpp_anisotropic",
        "other figures for x and y",
        resolution(20_000, 18_000),
        Warned(r"mpp differs between x \(0.5\) and y \(0.5555"),
    ),
    Fault(
        "mpp_coarse",
        "coarser than the tiles that are asked for",
        stating("2.0"),
        Rejected("would invent detail.*--mpp 2 or more"),
    ),
    Fault(
        "mpp_ome",
        "microns in OME-XML",
        ome(OME.format("")),
        Processed(holds=like(tiff, within=1)),
        words=AS_IT_IS,
    ),
    Fault(
        "xml_laughs",
        "XML whose entities would fill the memory",
        ome(OME.format(LAUGHS)),
        Processed(holds=like(tiff, within=1)),
        words=AS_IT_IS,
    ),
    Fault(
        "desc_8mb",
        "8 MB of description",
        lambda f: tiff(f / f"{f.name}.tiff", description="x" * 8_000_000),
        Processed(holds=like(tiff)),
        words=AS_IT_IS,
    ),
)


# Levels and sizes ------------------------------------------------------------------------------------------


def levels(*ratios: float, odd: tuple[int, int] = (0, 0)) -> Make:
    """A JPEG pyramid of these levels, in this order; the last is so many pixels off."""

    def make(folder: Path) -> Path:
        pictures = []
        for ratio in ratios:
            image = forge.smaller(tissue(), int(ratio))
            if ratio == ratios[-1] and any(odd):
                image = image[: image.shape[0] - odd[1], : image.shape[1] - odd[0]]
            tiles = forge.cut(image, (TILE, TILE), forge.jpeg)
            fields = {254: (4, [0 if ratio == min(ratios) else 1])}
            size = (image.shape[1], image.shape[0])
            pictures.append(forge.Picture(size, (TILE, TILE), tiles, fields=fields))
        return forge.write_tiff(folder / f"{folder.name}.tiff", pictures)

    return make


def of_size(width: int, height: int, colour: tuple[int, int, int] = (200, 120, 170)) -> Make:
    return lambda folder: tiff(
        folder / f"{folder.name}.tiff", np.full((height, width, 3), colour, np.uint8), tile=(16, 16)
    )


def flat(colour: tuple[int, int, int]) -> Make:
    def make(folder: Path) -> Path:
        write_svs(folder / f"{folder.name}.svs", np.full_like(WHITE, colour), mpp=0.5, tile_px=TILE)
        return folder / f"{folder.name}.svs"

    return make


def huge(folder: Path) -> Path:
    """Of tests/test_scale.py, whose is three times as wide."""
    return write_huge_slide(folder / f"{folder.name}.svs", size=(30_000, 30_000), tissue_px=512)


def some_tiles(cut: Cut) -> None:
    assert 0 < len(cut.store) <= 9


def every_place(cut: Cut) -> None:
    assert len(cut.store) == COLUMNS * ROWS


JPEG_ALIKE = like(tiff, within=4, but=1)

SHAPES = (
    Fault("no_pyramid", "one level", levels(1), Processed(holds=JPEG_ALIKE), words=AS_IT_IS),
    Fault(
        "level_order",
        "the small level first",
        levels(4, 1),
        Rejected("takes a level of 128 x 96 pixels for the slide, which has 512 x 384"),
    ),
    Fault(
        "level_inconsistent",
        "a level that is no whole part of the slide",
        levels(1, 3),
        Processed(holds=JPEG_ALIKE),
        words=AS_IT_IS,
    ),
    Fault(
        "level_other_shape",
        "a level of another shape than the slide",
        levels(1, 2, odd=(96, 0)),
        Processed(holds=JPEG_ALIKE),
        words=AS_IT_IS,
    ),
    Fault("all_white", "glass", flat((244, 244, 244)), Processed("no tissue")),
    Fault("all_black", "black", flat((0, 0, 0)), Processed("no tissue")),
    Fault(
        "all_tissue",
        "one colour of tissue all over",
        flat((200, 120, 170)),
        Warned("stain could not be fitted", every_place),
    ),
    Fault("one_tile", "a slide of one tile", of_size(128, 128), Processed("no tissue")),
    Fault("tiny", "10 x 10 pixels", of_size(10, 10), Processed("no tissue")),
    Fault("thin", "1 x 5,000 pixels", of_size(1, 5_000), Processed("no tissue")),
    Fault("one_pixel", "1 x 1 pixel", of_size(1, 1), Processed("no tissue")),
    Fault("huge", "30,000 x 30,000 pixels, almost all glass", huge, Processed(holds=some_tiles)),
)
