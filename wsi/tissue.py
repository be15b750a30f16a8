"""Where the tissue is: `find_tissue(slide)` gives a `TissueMask`.

The default method thresholds hue, lightness and saturation (HLS) *relative to the glass*:

1. the colour of the glass is estimated and divided out, so that glass is white whatever the lamp;
2. what is darker than glass is a candidate: lightness finds pale tissue that has hardly any colour, which
   saturation cannot (near white it is unstable);
3. black marks and strokes of pen are taken out where they lie on glass;
4. gaps are closed, holes filled and specks dropped by area;
5. a piece stays if enough of it is coloured, by saturation and chroma: dust, fibres and scratches are grey.

Everything works on one thumbnail at `TISSUE_MPP`; all lengths are in microns and all areas in µm², so that
a mask at another resolution finds the same tissue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi.outline import rings
from wsi.pen import FRINGE_UM, disc, on_glass, pen_marks
from wsi.reader import Damage
from wsi.slide import Slide

TISSUE_MPP = 8.0
"""Microns per pixel of the thumbnail that tissue is sought on: an 80,000 px slide becomes 2,500 px."""
GLASS_SHARE = 0.02
"""With less of the thumbnail than this looking like glass, none is visible, and white is taken for it."""
DIM_LIGHTNESS, DIM_CHROMA = 120, 48
"""Flat glass under a dim or tinted lamp has no channel below, and no more chroma than this."""
BLACK = 50
"""Without glass, a thumbnail whose median is darker is no brightfield scan, and has no tissue."""

Mask = NDArray[np.bool_]
Image = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class CleanUp:
    """What is done to a raw mask, in physical units: close, fill holes, open, drop specks."""

    close_radius_um: float = 20.0
    """Gaps up to twice this wide are closed: fat is a net of thin walls."""
    open_radius_um: float = 8.0
    """Threads narrower than twice this are dropped."""
    min_area_um2: float = 10_000.0
    """Smaller pieces are dropped: specks under 100 µm square."""
    max_hole_um2: float = 60_000.0
    """Enclosed holes up to this area are filled: lumina, alveoli, fat cells (a disc of 280 µm)."""

    def __post_init__(self) -> None:
        for name in ("close_radius_um", "open_radius_um", "min_area_um2", "max_hole_um2"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}, and must be a number of at least 0")


@dataclass(frozen=True, kw_only=True)
class HlsThresholds(CleanUp):
    """Tissue by lightness and saturation relative to the glass; the default.

    Lightness, saturation and chroma (largest minus smallest channel) are on OpenCV's 8-bit scale, 0 to 255,
    after the glass was brought to white.
    """

    glass_lightness: int = 180
    """Glass is sought among pixels with no channel below this."""
    glass_chroma: int = 16
    """Glass is sought among pixels with no more chroma than this: a tinted lamp, not pale tissue."""
    max_lightness: int = 244
    """Lighter pixels are glass."""
    halo: float = 0.15
    """Stray light darkens the glass beside tissue by up to this share of the tissue's median darkness;
    on deeply stained slides this lowers `max_lightness`."""
    black_lightness: int = 90
    """Darker pixels without colour are scan edges, black pen or dust, unless tissue surrounds them."""
    black_chroma: int = 24
    """The chroma below which a dark pixel has no colour."""
    min_saturation: int = 20
    """A pixel with less is grey."""
    min_chroma: int = 3
    """A pixel with less is grey too: near white saturation says nothing."""
    colour_sigma_um: float = 16.0
    """Saturation and chroma are measured after a Gaussian blur of this sigma: JPEG quantises pale colour."""
    min_coloured: float = 0.3
    """A piece with a smaller coloured share is dust, fibre or scratch. Grey parts of coloured pieces stay:
    counterstained tissue can be as grey as dust."""
    drop_pen: bool = True
    """Drop green, blue and red pen where the stain has no such colour (see `wsi.pen`)."""


@dataclass(frozen=True, kw_only=True)
class SaturationOtsu(CleanUp):
    """Tissue by Otsu's threshold on the median-filtered saturation (HSV); the alternative.

    It takes the threshold from the slide: good on evenly stained sections, and wrong where one strong
    colour sets it, on blank slides, and where no glass is visible.

    References
    ----------
    N. Otsu, "A threshold selection method from gray-level histograms", IEEE SMC 9 (1979).
    """

    median_um: float = 56.0
    """Width of the median filter."""
    min_saturation: int = 8
    """The threshold never falls below this: a blank slide has no tissue."""


TissueMethod = HlsThresholds | SaturationOtsu


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Which part of a slide is tissue."""

    mask: Mask
    """``(rows, columns)`` bool; pixel (0, 0) has its corner at level-0 (0, 0)."""
    scale_x: float
    """Level-0 pixels per mask pixel along x."""
    scale_y: float
    """The same along y."""
    mpp: float
    """Microns per mask pixel."""

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != np.bool_ or self.mask.size == 0:
            raise ValueError(f"a tissue mask is a 2-D bool array, got {self.mask.dtype} {self.mask.shape}")
        if not (self.scale_x > 0 and self.scale_y > 0 and self.mpp > 0):
            raise ValueError(f"scales must be positive: {self.scale_x}, {self.scale_y}, {self.mpp} mpp")

    @property
    def area_mm2(self) -> float:
        """Area of the tissue in mm²."""
        return float(np.count_nonzero(self.mask)) * self.mpp**2 / 1e6

    def fraction(self, origins: ArrayLike, *, width: float, height: float) -> NDArray[np.float32]:
        """The share of each rectangle that is tissue, exactly.

        Parameters
        ----------
        origins
            ``(n, 2)`` level-0 (x, y) of the top-left corners.
        width, height
            Size of every rectangle in level-0 pixels; fractions are allowed.

        Returns
        -------
        ``(n,)`` float32, 0 to 1. What lies outside the mask counts as background.
        """
        corners = np.asarray(origins, np.float64)
        if corners.ndim != 2 or corners.shape[1] != 2:
            raise ValueError(f"origins must have the shape (n, 2), got {corners.shape}")
        if not (width > 0 and height > 0):
            raise ValueError(f"a rectangle needs a positive size, got {width:g} x {height:g}")
        total = np.asarray(cv2.integral(self.mask.astype(np.uint8)), np.int32)
        left, top = corners[:, 0] / self.scale_x, corners[:, 1] / self.scale_y
        right, bottom = (corners[:, 0] + width) / self.scale_x, (corners[:, 1] + height) / self.scale_y
        tissue = _at(total, bottom, right) - _at(total, top, right)
        tissue -= _at(total, bottom, left) - _at(total, top, left)
        share = tissue * (self.scale_x * self.scale_y / (width * height))
        return np.clip(share, 0, 1).astype(np.float32)

    def outline(self) -> list[NDArray[np.float64]]:
        """The mask's border as rings along its pixels' edges.

        Returns
        -------
        A list of ``(k, 2)`` float64 level-0 (x, y), the last point repeating the first. No ring meets itself.
        Tissue lies to the right of the way: on screen, outer rings run clockwise and holes the other way,
        so that the signed areas (shoelace formula) add up to the area of the tissue.
        """
        return [ring * (self.scale_x, self.scale_y) for ring in rings(self.mask)]

    def look(self, thumbnail: Image, *, colour: tuple[int, int, int] = (0, 160, 0)) -> Image:
        """The thumbnail (of any size) with the outline drawn: ``(h, w, 3)`` uint8, a copy."""
        picture = np.ascontiguousarray(thumbnail).copy()
        rows, columns = self.mask.shape
        scale = (picture.shape[1] / columns, picture.shape[0] / rows)
        # OpenCV counts from pixel centres, in sixteenths of a pixel.
        lines = [np.rint((ring * scale - 0.5) * 16).astype(np.int32) for ring in rings(self.mask)]
        thickness = max(1, round(max(picture.shape[:2]) / 600))
        cv2.polylines(picture, lines, True, colour, thickness, cv2.LINE_AA, 4)
        return picture


def find_tissue(
    slide: Slide,
    method: TissueMethod = HlsThresholds(),
    *,
    mpp: float = TISSUE_MPP,
    damage: Damage | None = None,
) -> TissueMask:
    """Find the tissue on a slide. With `damage`, a spot that cannot be decoded is taken for glass, and told.

    Raises
    ------
    ResolutionError
        The slide states no microns per pixel, or is coarser than `mpp`.
    SlideError
        The slide cannot be decoded.
    """
    scale_x, scale_y = slide.scale(mpp)
    mask = segment(slide.thumbnail(mpp, damage=damage), mpp=mpp, method=method)
    return TissueMask(mask=mask, scale_x=scale_x, scale_y=scale_y, mpp=mpp)


def segment(thumbnail: Image, *, mpp: float, method: TissueMethod) -> Mask:
    """Tissue on a thumbnail: ``(h, w, 3)`` uint8 RGB at `mpp` microns per pixel to ``(h, w)`` bool."""
    if thumbnail.ndim != 3 or thumbnail.shape[2] != 3 or thumbnail.dtype != np.uint8:
        raise ValueError(f"a thumbnail is (h, w, 3) uint8, got {thumbnail.shape} {thumbnail.dtype}")
    if isinstance(method, SaturationOtsu):
        return _by_otsu(thumbnail, mpp, method)
    return _by_hls(thumbnail, mpp, method)


def glass_colour(thumbnail: Image, method: HlsThresholds = HlsThresholds()) -> NDArray[np.float64] | None:
    """The glass: per channel the mode of bright pixels of low chroma, ``(3,)`` RGB; None where none is seen.

    Pure white is left out: it is padding of what was not scanned, or glass that needs no correction. Dim or
    strongly tinted glass has the colour of pale tissue; it is taken for glass where it is flat, as tissue
    never is.
    """
    lowest, highest = _range(thumbnail)
    chroma = highest - lowest
    bright = (lowest >= method.glass_lightness) & (lowest < 255) & (chroma <= method.glass_chroma)
    if np.count_nonzero(bright) >= max(GLASS_SHARE * bright.size, 1):
        return _mode(thumbnail, bright)
    dim = (lowest >= DIM_LIGHTNESS) & (lowest < 255) & (chroma <= DIM_CHROMA)
    if np.count_nonzero(dim) < max(GLASS_SHARE * dim.size, 1):
        return None
    mode = _mode(thumbnail, dim)
    flat = (np.abs(thumbnail[dim] - mode) <= 4).all(axis=1)
    return mode if flat.mean() > 0.5 else None


def _mode(thumbnail: Image, where: Mask) -> NDArray[np.float64]:
    """The commonest value of each channel, ``(3,)``."""
    inside = where.astype(np.uint8)
    counts = [cv2.calcHist([thumbnail], [i], inside, [256], [0, 256]).ravel() for i in range(3)]
    # Smoothed: the peak of noisy glass is broad, and JPEG leaves combs in it.
    return np.array([np.argmax(np.convolve(count, [1, 2, 3, 2, 1], "same")) for count in counts], np.float64)


def _by_hls(thumbnail: Image, mpp: float, method: HlsThresholds) -> Mask:
    glass = glass_colour(thumbnail, method)
    if glass is None and np.median(thumbnail) < BLACK:
        return np.zeros(thumbnail.shape[:2], np.bool_)  # black or fluorescence: not a brightfield scan
    relative = _divide(thumbnail, glass)
    hue, lightness, _ = _channels(cv2.cvtColor(relative, cv2.COLOR_RGB2HLS))
    lowest, highest = _range(relative)
    chroma = highest - lowest

    candidates = lightness <= method.max_lightness
    if not candidates.any():
        return candidates
    darkness = 255 - float(np.median(lightness[candidates]))
    candidates &= lightness <= 255 - method.halo * darkness

    black = (lightness < method.black_lightness) & (chroma < method.black_chroma)
    coloured = _is_coloured(relative, mpp, method) & candidates & ~black
    foreign = on_glass(black & candidates, candidates, fringe_px=FRINGE_UM / mpp)
    if method.drop_pen:
        foreign |= pen_marks(hue, chroma, candidates, coloured=coloured, mpp=mpp)
    candidates &= ~foreign
    pieces = _clean(candidates, mpp, method)
    return _keep_coloured(pieces, coloured & candidates, candidates, least=method.min_coloured)


def _by_otsu(thumbnail: Image, mpp: float, method: SaturationOtsu) -> Mask:
    _, saturation, _ = _channels(cv2.cvtColor(thumbnail, cv2.COLOR_RGB2HSV))
    width = 2 * round(method.median_um / mpp / 2) + 1
    smooth = cv2.medianBlur(saturation, min(width, 255))
    threshold, _ = cv2.threshold(smooth, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return _clean(smooth > max(threshold, method.min_saturation), mpp, method)


def _divide(thumbnail: Image, glass: NDArray[np.float64] | None) -> Image:
    """Bring the glass to white, channel by channel."""
    if glass is None:
        return thumbnail
    table = np.clip(np.rint(np.arange(256)[:, None] * (255 / glass)), 0, 255)
    return np.asarray(cv2.LUT(thumbnail, table.astype(np.uint8)[None]), np.uint8)


def _channels(image: object) -> tuple[Image, Image, Image]:
    """The three channels of an image, each ``(h, w)``."""
    first, second, third = cv2.split(np.asarray(image, np.uint8))
    return np.asarray(first, np.uint8), np.asarray(second, np.uint8), np.asarray(third, np.uint8)


def _range(image: Image) -> tuple[Image, Image]:
    """The smallest and the largest channel of each pixel."""
    a, b, c = _channels(image)
    lowest, highest = cv2.min(cv2.min(a, b), c), cv2.max(cv2.max(a, b), c)
    return np.asarray(lowest, np.uint8), np.asarray(highest, np.uint8)


def _is_coloured(relative: Image, mpp: float, method: HlsThresholds) -> Mask:
    """Whether a pixel's neighbourhood has colour, by saturation and chroma together."""
    sigma = max(method.colour_sigma_um / mpp, 0.1)
    smooth = np.asarray(cv2.GaussianBlur(relative, (0, 0), sigma), np.uint8)
    _, _, saturation = _channels(cv2.cvtColor(smooth, cv2.COLOR_RGB2HLS))
    lowest, highest = _range(smooth)
    return (saturation >= method.min_saturation) & (highest - lowest >= method.min_chroma)


def _clean(mask: Mask, mpp: float, method: CleanUp) -> Mask:
    """Close gaps, fill holes, drop threads and specks."""
    mask = _morph(mask, cv2.MORPH_CLOSE, method.close_radius_um / mpp)
    mask = mask | _small(~mask, below=method.max_hole_um2 / mpp**2, connectivity=4, enclosed=True)
    mask = _morph(mask, cv2.MORPH_OPEN, method.open_radius_um / mpp)
    return mask & ~_small(mask, below=method.min_area_um2 / mpp**2, connectivity=8)


def _morph(mask: Mask, operation: int, radius: float) -> Mask:
    """Morphology with a disc; the border's pixels are taken to go on outside."""
    reach = int(radius)
    if reach == 0:
        return mask
    padded = np.pad(mask.astype(np.uint8), reach, mode="edge")
    return np.asarray(cv2.morphologyEx(padded, operation, disc(radius))[reach:-reach, reach:-reach], np.bool_)


def _small(mask: Mask, *, below: float, connectivity: int, enclosed: bool = False) -> Mask:
    """The pieces of fewer than `below` pixels; with `enclosed`, only those that do not touch the border."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=connectivity)
    small = stats[:, cv2.CC_STAT_AREA] < below
    small[0] = False  # what is not in the mask
    if enclosed:
        edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        small[np.unique(edge)] = False
    return np.asarray(small[labels], np.bool_)


def _keep_coloured(pieces: Mask, coloured: Mask, candidates: Mask, *, least: float) -> Mask:
    """The pieces in which at least this share of the candidates is coloured."""
    count, labels = cv2.connectedComponents(pieces.astype(np.uint8), connectivity=8)
    hits = np.bincount(labels[coloured], minlength=count)
    size = np.bincount(labels[candidates], minlength=count)
    keep = (hits >= least * size) & (hits > 0)
    keep[0] = False
    return np.asarray(keep[labels], np.bool_)


def _at(
    total: NDArray[np.int32], row: NDArray[np.float64], column: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The integral image at fractional positions: inside a pixel it is bilinear, so this is exact."""
    row, column = np.clip(row, 0, total.shape[0] - 1), np.clip(column, 0, total.shape[1] - 1)
    r = np.minimum(row.astype(np.intp), total.shape[0] - 2)
    c = np.minimum(column.astype(np.intp), total.shape[1] - 2)
    v, u = row - r, column - c
    upper = total[r, c] * (1 - u) + total[r, c + 1] * u
    lower = total[r + 1, c] * (1 - u) + total[r + 1, c + 1] * u
    return np.asarray(upper * (1 - v) + lower * v)
