"""How good a tile is to look at: sharpness, focus, ink and folds, measured on the pixels as scanned.

Two reduced pictures of the tile serve all measures: a *fine* one of `FINE_MPP` and a *coarse* one of four
times that. Both are area averages, so tiles of other resolutions compare. A tile that is coarser than
`FINE_MPP` is its own fine picture: all lengths grow with it, and its sharpness compares only with that of
tiles of the same resolution.

A tile knows nothing of its slide. So three things are beyond these measures:

- **Ink that has the stain's colour.** Giemsa is as blue as a marker. It is told apart by what a stroke is and
  tissue is not: greener, or evenly deep over `WIDE_UM`. Green and red ink on Giemsa are missed, and thin blue
  ink on it. A Giemsa stain that is greener than the one seen here would be called ink, and so may be black
  pigment: the QC page says so where much of a slide is.
- **Thin ink, and dark tissue under ink.** The tissue's colour wins over ink that lets much light through: of
  pale blue on H&E 20 % of the area is found, of green on deep H&E 20 to 30 %; of deep blue, red and black 70
  to 100 %. Yellow and orange are not looked for: DAB and eosin have them.
- **"Dark" is absolute.** On a pale section a fold may stay below the limit, on a very dark stain all tissue
  is above it. It ranks the tiles of one slide, and drops none.

Tiles of 128 µm from 22 sections that bear no ink, as shares of the tiles, in per cent:

=========================  =====  ==================  ==================  ========================
stain                      tiles  more ink than 0.1   dark above 0.2      blurred above 0.5
=========================  =====  ==================  ==================  ========================
H&E, 16 sections            5086  0                   1.5                 0
DAB, 3 sections             1200  0                   0                   0.3 (dust on glass)
CISH                         400  0                   0                   8 (it is out of focus)
Giemsa                       400  0                   91.5                0
trypsin                       95  1.1 (black focus)   0                   0
=========================  =====  ==================  ==================  ========================

The limits were chosen on these sections, but for two of the H&E (CMU-1-Small-Region and TCGA-CR-7395).

References
----------
J. L. Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a comparative study", ICPR 2000:
the variance of the Laplacian.
P. A. Bautista and Y. Yagi, "Detection of tissue folds in whole slide images", IEEE EMBC 2009: saturation
minus luminance.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.geometry import MPP_RANGE

PEN_MEASURES = ("pen_blue", "pen_green", "pen_red", "pen_black")
MEASURES: tuple[str, ...] = ("sharpness", "blurred", *PEN_MEASURES, "dark")
"""Names of the columns of `measure`, in order.

sharpness
    Variance of the Laplacian of the grey fine picture, in squared grey levels on the scale of OpenCV's
    ``ksize=3`` (16 times that of the plain kernel). A Gaussian of 3 pixels goes before it: without, tiles
    that were resampled differ more by that than by focus. On sections in focus the median is 960 to 7900;
    blurred by 2 µm 40 to 350, by 3 µm 13 to 80. The same tissue at 0.25, 0.3, 0.5 or 1 µm agrees to 9 %; at
    resolutions that do not divide a micron (0.45, 0.9) it reads up to a quarter less. Glass counts too:
    half-empty tiles have less.
blurred
    Share of the tile's tissue that is out of focus, 0 to 1; 0 where there is no tissue.
pen_blue, pen_green, pen_red, pen_black
    Share of the tile under ink of that colour, 0 to 1.
dark
    Share of the tile that is as dark and saturated as tissue lying double, ink left out, 0 to 1.
"""

MEANING = {
    "tissue": "share of the tile that is tissue",
    "sharpness": "variance of the Laplacian at 1 µm per pixel; higher is sharper",
    "blurred": "share of the tissue that is out of focus",
    "pen_blue": "share under blue ink, or what has its colour",
    "pen_green": "share under green ink",
    "pen_red": "share under red ink",
    "pen_black": "share under black ink, or black pigment",
    "dark": "share as dark as folded tissue",
}
"""What a number of a tile says, for readers of pages: of each measure, and of the share of tissue."""
NO_MEANING = "a measure of another version"
"""Of a measure that is not among them."""

FINE_MPP = 1.0
"""Microns per pixel at which sharpness is measured: nuclei are resolved, and every 10x scan reaches it."""
_COARSER = 4
"""Fine pixels along a coarse one."""
_BLOCK = 32
"""Fine pixels along the blocks that are in focus or out of it: wide enough to hold an edge of something."""
_TISSUE_GREY = 225
"""Darker pixels of the coarse picture are tissue, for the share that is out of focus."""
_FOCUS_RATIO, _FOCUS_FLOOR = 0.03, 10.0
"""A block is out of focus when its fine Laplacian energy is below this share of its coarse one, plus the
floor: a share, because the strength of the stain is in both. Of the blocks of 18 sections in focus that are
0.2 % as scanned, 6 % after a Gaussian blur of 1 µm, 59 % after 1.5 µm and 99 % after 2 µm. The floor is what
rounding, noise and JPEG leave in a block that has no structure at all."""

STROKE_UM, WIDE_UM = 20.0, 60.0
"""A pen's stroke fills squares of this width: pigment, DAB and chromatin do not. The wide one is for what has
the colour of Giemsa too."""
_WHOLE = (0, 255)
_INKS: tuple[tuple[str, tuple[tuple[int, int], ...], tuple[int, int], tuple[int, int], float], ...] = (
    ("pen_blue", ((96, 110),), (120, 255), (80, 255), STROKE_UM),  # greener than Giemsa
    ("pen_blue", ((96, 126),), (170, 255), (50, 190), WIDE_UM),  # deep
    ("pen_green", ((36, 99),), (55, 255), (50, 255), STROKE_UM),
    ("pen_red", ((170, 180), (0, 7)), (150, 255), (90, 255), STROKE_UM),
    ("pen_black", (_WHOLE,), (0, 76), (0, 80), STROKE_UM),  # chroma below 25
    ("pen_black", (_WHOLE,), _WHOLE, (0, 32), STROKE_UM),
)
"""The measure, the hues, saturations and values on OpenCV's scale, first and last, and the width of a stroke.
The limits lie where no stain of the sections named above has more than specks."""


def _ink_table() -> NDArray[np.uint8]:
    """``(1, 256, 3)``: bit i of each is set where hue, saturation, value is within those of ink i."""
    table = np.zeros((1, 256, 3), np.uint8)
    for bit, (_, hues, saturation, value, _) in enumerate(_INKS):
        for channel, ranges in enumerate((hues, (saturation,), (value,))):
            for first, last in ranges:
                table[0, first : last + 1, channel] |= 1 << bit
    return table


_INK_TABLE = _ink_table()
_FOLD_UM = 28.0
"""Darkness is averaged over this width: a fold is wider, a crowd of nuclei has gaps."""
_FOLD_LEVEL = 20
"""Saturation minus luminance from which on it is one."""

MAX_PEN = 0.1
"""The largest share of ink that a tile may have and be kept. Of 7181 tiles without ink one has more, a black
focus; and ink on less than a tenth leaves the tissue beside it to be seen."""

_Picture = NDArray[np.uint8]


def measure(tile: NDArray[np.uint8], *, mpp: float) -> NDArray[np.float32]:
    """The measures of one tile, alone and always the same; any number of threads may call this at once.

    Parameters
    ----------
    tile
        ``(s, s, 3)`` uint8 RGB as scanned: stain normalisation changes all of it.
    mpp
        Its microns per pixel.

    Returns
    -------
    ``(len(MEASURES),)`` float32, in the order of `MEASURES`.

    Raises
    ------
    ValueError
        Not such a tile, or `mpp` out of `wsi.geometry.MPP_RANGE`.
    """
    if tile.ndim != 3 or tile.shape != (len(tile), len(tile), 3) or tile.dtype != np.uint8 or not len(tile):
        raise ValueError(f"a tile is (s, s, 3) uint8, got {tile.shape} {tile.dtype}")
    if not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        raise ValueError(f"mpp is {mpp:g}; needed: {MPP_RANGE[0]} to {MPP_RANGE[1]}")
    extent = tile.shape[0] * mpp
    # Each from the tile: general area averages are slow in OpenCV, but of one channel they are bearable.
    fine_px = max(1, round(extent / max(FINE_MPP, mpp)))
    fine = _reduced(np.asarray(cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY), np.uint8), fine_px)
    coarse = _reduced(tile, round(fine_px / _COARSER))
    sharpness, blurred = _focus(fine, coarse)
    pitch = extent / coarse.shape[0]
    inks, dark = _inks(coarse, pitch), _folds(coarse, pitch)
    for ink in inks.values():
        dark &= ~ink
    shares = [np.count_nonzero(inks[name]) if name in inks else 0 for name in PEN_MEASURES]
    shares.append(np.count_nonzero(dark))
    return np.array([sharpness, blurred, *(share / dark.size for share in shares)], np.float32)


def _reduced(picture: _Picture, size: int) -> _Picture:
    """Its average on a square of that many pixels, one at least; never enlarged."""
    size = max(1, size)
    if size >= picture.shape[0]:
        return picture
    while picture.shape[0] % 2 == 0 and picture.shape[0] > 2 * size:  # OpenCV has a fast way for halving
        half = picture.shape[0] // 2
        picture = np.asarray(cv2.resize(picture, (half, half), interpolation=cv2.INTER_AREA))
    # Less than two to one: there interpolation looks at as many pixels as an average, in a fifth of the time.
    narrow = size * 2 >= picture.shape[0]
    interpolation = cv2.INTER_LINEAR if narrow and size * 2 != picture.shape[0] else cv2.INTER_AREA
    return np.asarray(cv2.resize(picture, (size, size), interpolation=interpolation))


def _focus(fine: _Picture, coarse: _Picture) -> tuple[float, float]:
    """Variance of the Laplacian, and the share of the tissue that lies in blocks without fine structure.

    `fine` is grey, `coarse` has colours.
    """
    coarse_grey = cv2.cvtColor(coarse, cv2.COLOR_RGB2GRAY)
    blocks = max(1, round(fine.shape[0] / _BLOCK))
    smooth = cv2.GaussianBlur(fine, (3, 3), 0, borderType=cv2.BORDER_REPLICATE)
    energy = _block_means(_energy(smooth), blocks)
    # With its border repeated, a picture's Laplacian adds up to nothing: the mean square is the variance.
    sharpness = float(energy.sum()) / energy.size
    unsharp = energy < _FOCUS_RATIO * _block_means(_energy(coarse_grey), blocks) + _FOCUS_FLOOR
    if not unsharp.any():
        return sharpness, 0.0
    tissue = _block_means((np.asarray(coarse_grey) < _TISSUE_GREY).astype(np.uint8), blocks)
    total = float(tissue.sum())
    return sharpness, float(tissue[unsharp].sum()) / total if total else 0.0


def _energy(grey: Any) -> Any:
    """The squared Laplacian of each pixel, float32."""
    laplacian = cv2.Laplacian(grey, cv2.CV_16S, ksize=3, borderType=cv2.BORDER_REPLICATE)
    return cv2.multiply(laplacian, laplacian, dtype=cv2.CV_32F)


def _block_means(picture: Any, blocks: int) -> NDArray[np.float32]:
    """``(blocks, blocks)`` averages; a picture that is smaller than that is spread."""
    interpolation = cv2.INTER_AREA if blocks <= picture.shape[0] else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(picture, (blocks, blocks), interpolation=interpolation), np.float32)


def _inks(coarse: _Picture, pitch: float) -> dict[str, NDArray[np.bool_]]:
    """Where ink is, for those colours that are there at all; `pitch` is microns per pixel."""
    inks: dict[str, NDArray[np.bool_]] = {}
    hue, saturation, value = cv2.split(cv2.LUT(cv2.cvtColor(coarse, cv2.COLOR_RGB2HSV), _INK_TABLE))
    bits = np.asarray(cv2.bitwise_and(cv2.bitwise_and(hue, saturation), value), np.uint8)
    present = int(np.bitwise_or.reduce(bits, axis=None))
    for bit, (name, *_, stroke_um) in enumerate(_INKS):
        if present >> bit & 1:  # on most tiles none is
            width = max(1, round(stroke_um / pitch))
            found = bits & np.uint8(1 << bit)
            strokes = cv2.morphologyEx(found, cv2.MORPH_OPEN, np.ones((width, width), np.uint8)) > 0
            inks[name] = inks[name] | strokes if name in inks else strokes
    return inks


def _folds(coarse: _Picture, pitch: float) -> NDArray[np.bool_]:
    """Where the surroundings are as dark and saturated as tissue lying double."""
    width = 2 * round((_FOLD_UM / pitch - 1) / 2) + 1
    smooth = cv2.blur(coarse, (width, width), borderType=cv2.BORDER_REPLICATE) if width > 1 else coarse
    saturation = cv2.extractChannel(cv2.cvtColor(smooth, cv2.COLOR_RGB2HSV), 1)
    excess = cv2.subtract(saturation, cv2.cvtColor(smooth, cv2.COLOR_RGB2GRAY))
    return np.asarray(excess) >= _FOLD_LEVEL


@dataclass(frozen=True, slots=True)
class QualityFilter:
    """Which tiles are dropped for what `measure` found; the default keeps all."""

    min_sharpness: float | None = None
    """Tiles of less are dropped."""
    drop_pen: bool = False
    """Drop tiles with more ink than `max_pen`."""
    max_pen: float = MAX_PEN
    """Share of a tile that ink of all colours together may cover."""

    def __post_init__(self) -> None:
        if self.min_sharpness is not None and not 0 <= self.min_sharpness < np.inf:
            raise ValueError(f"min_sharpness is {self.min_sharpness:g}; it must be a number of at least 0")
        if not 0 <= self.max_pen <= 1:
            raise ValueError(f"max_pen is {self.max_pen:g}; it must be from 0 to 1")

    def as_json(self) -> dict[str, Any]:
        """The rules as they are stored."""
        return asdict(self)

    def reasons(self, values: NDArray[np.float32]) -> list[str | None]:
        """Why each tile is dropped: ``"pen"`` or else ``"sharpness"``, None for tiles to keep.

        Parameters
        ----------
        values
            ``(n, len(MEASURES))``, rows of `measure`.
        """
        if values.ndim != 2 or values.shape[1] != len(MEASURES):
            raise ValueError(f"measures have the shape (n, {len(MEASURES)}), got {values.shape}")
        inked = np.zeros(len(values), np.bool_)
        if self.drop_pen:
            inked = ~(pen_share(values) <= self.max_pen)
        unsharp = np.zeros(len(values), np.bool_)
        if self.min_sharpness is not None:
            unsharp = ~(values[:, MEASURES.index("sharpness")] >= self.min_sharpness)
        return [
            "pen" if ink else "sharpness" if blur else None
            for ink, blur in zip(inked.tolist(), unsharp.tolist(), strict=True)
        ]

    def keep(self, values: NDArray[np.float32]) -> NDArray[np.bool_]:
        """``(n,)``: which tiles no rule drops."""
        return np.array([reason is None for reason in self.reasons(values)], np.bool_)


def pen_share(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(n,)`` share of each tile under ink of any colour, of ``(n, len(MEASURES))`` measures."""
    return np.asarray(
        values[:, [MEASURES.index(name) for name in PEN_MEASURES]].sum(axis=1, dtype=np.float32)
    )
