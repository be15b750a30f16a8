from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsi.errors import ResolutionError
from wsi.slide import Slide
from wsi.synthetic import write_slide
from wsi.tissue import (
    CleanUp,
    HlsThresholds,
    SaturationOtsu,
    TissueMask,
    find_tissue,
    glass_colour,
    segment,
)

GLASS = (243, 241, 244)
PINK, PURPLE = (214, 150, 190), (150, 95, 165)
GIEMSA = (60, 70, 165)
MASKS = arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))
SCALES = st.floats(0.5, 40)


def glass(rng: np.random.Generator, *, size: int = 300, colour: tuple[int, ...] = GLASS) -> np.ndarray:
    """Bare glass with a scanner's noise."""
    noise = rng.normal(0, 1.2, (size, size, 3))
    return np.clip(np.rint(np.array(colour) + noise), 0, 255).astype(np.uint8)


def stained(rng: np.random.Generator, shape: tuple[int, int], *colours: tuple[int, ...]) -> np.ndarray:
    """Tissue: a random mixture of colours, blotchy at about 60 µm."""
    blotches = cv2.GaussianBlur(rng.normal(0, 1, shape), (0, 0), 4)
    share = np.clip(0.5 + blotches / blotches.std() / 3, 0, 1)[..., None]
    mixture = np.array(colours[0]) * share + np.array(colours[-1]) * (1 - share)
    return np.clip(np.rint(mixture + rng.normal(0, 4, (*shape, 3))), 0, 255).astype(np.uint8)


def disc(size: int, *, x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] + 0.5
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def section(rng: np.random.Generator, *colours: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A round section of 1.2 mm in the middle of 2.4 mm of glass, at 8 mpp; and where it is."""
    picture, truth = glass(rng), disc(300, x=150, y=150, radius=75)
    picture[truth] = stained(rng, (300, 300), *(colours or (PINK, PURPLE)))[truth]
    return picture, truth


def hls(picture: np.ndarray, *, mpp: float = 8.0, **settings: float) -> np.ndarray:
    return segment(picture, mpp=mpp, method=HlsThresholds(**settings))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


# Fractions -------------------------------------------------------------------------------------------------


@given(MASKS, SCALES, SCALES)
def test_the_fraction_of_the_whole_is_the_mean(mask: np.ndarray, scale_x: float, scale_y: float) -> None:
    tissue = TissueMask(mask, scale_x, scale_y, mpp=8)
    width, height = mask.shape[1] * scale_x, mask.shape[0] * scale_y
    whole = tissue.fraction([(0, 0)], width=width, height=height)
    assert whole.dtype == np.float32
    assert whole == pytest.approx([mask.mean()], abs=1e-6)


@given(MASKS, SCALES, st.integers(1, 7), st.integers(1, 7))
def test_the_parts_of_a_partition_add_up(mask: np.ndarray, scale: float, across: int, down: int) -> None:
    tissue = TissueMask(mask, scale, 2 * scale, mpp=8)
    width, height = mask.shape[1] * scale / across, mask.shape[0] * 2 * scale / down
    origins = [(x * width, y * height) for x in range(across) for y in range(down)]
    parts = tissue.fraction(origins, width=width, height=height)
    assert parts.mean() == pytest.approx(mask.mean(), abs=1e-5)


@given(MASKS, st.data())
def test_the_fraction_equals_the_overlap_with_every_pixel(mask: np.ndarray, data: st.DataObject) -> None:
    x, y = data.draw(st.floats(-30, 60)), data.draw(st.floats(-30, 60))
    width, height = data.draw(st.floats(0.5, 50)), data.draw(st.floats(0.5, 50))
    scale_x, scale_y = 3.7, 5.0

    def covered(start: float, length: float, scale: float, count: int) -> np.ndarray:
        edges = np.arange(count + 1) * scale
        return np.clip(np.minimum(edges[1:], start + length) - np.maximum(edges[:-1], start), 0, None)

    down = covered(y, height, scale_y, mask.shape[0])
    across = covered(x, width, scale_x, mask.shape[1])
    naive = (down @ mask @ across) / (width * height)
    found = TissueMask(mask, scale_x, scale_y, mpp=8).fraction([(x, y)], width=width, height=height)
    assert found == pytest.approx([naive], abs=1e-5)


def test_what_overhangs_the_mask_is_background() -> None:
    tissue = TissueMask(np.ones((4, 4), np.bool_), 10, 10, mpp=8)
    origins = [(-20, 0), (20, 20), (400, 400), (0, 0)]
    assert tissue.fraction(origins, width=40, height=40).tolist() == [0.5, 0.25, 0, 1]
    assert tissue.fraction(np.empty((0, 2)), width=40, height=40).shape == (0,)


def test_nonsense_is_refused() -> None:
    tissue = TissueMask(np.ones((4, 4), np.bool_), 10, 10, mpp=8)
    with pytest.raises(ValueError, match=r"\(n, 2\)"):
        tissue.fraction([1, 2, 3], width=5, height=5)
    with pytest.raises(ValueError, match="positive size"):
        tissue.fraction([(1, 2)], width=0, height=5)
    with pytest.raises(ValueError, match="2-D bool"):
        TissueMask(np.ones((4, 4)), 10, 10, mpp=8)
    with pytest.raises(ValueError, match="positive"):
        TissueMask(np.ones((4, 4), np.bool_), 10, 0, mpp=8)
    with pytest.raises(ValueError, match="uint8"):
        segment(np.ones((4, 4, 3)), mpp=8, method=HlsThresholds())
    with pytest.raises(ValueError, match="min_area_um2"):
        SaturationOtsu(min_area_um2=-1)


def test_area_is_physical() -> None:
    mask = np.zeros((50, 50), np.bool_)
    mask[:25, :20] = True  # 500 pixels of 20 x 20 µm
    assert TissueMask(mask, 40, 40, mpp=20).area_mm2 == pytest.approx(0.2)


# Outlines --------------------------------------------------------------------------------------------------


@given(MASKS)
def test_outlines_enclose_the_tissue_in_level_0_pixels(mask: np.ndarray) -> None:
    signed = 0.0
    for ring in TissueMask(mask, 3.0, 2.0, mpp=8).outline():
        x0, y0, x1, y1 = *ring[:-1].T, *ring[1:].T
        signed += float((x0 * y1 - x1 * y0).sum() / 2)
        assert not (ring % (3.0, 2.0)).any()
    assert signed == pytest.approx(mask.sum() * 6.0)


def test_the_look_draws_on_a_copy_and_only_along_the_border(rng: np.random.Generator) -> None:
    picture, truth = section(rng)
    before = picture.copy()
    drawn = TissueMask(truth, 16, 16, mpp=8).look(picture)
    assert (picture == before).all()
    changed = (drawn != picture).any(axis=2)
    near = cv2.dilate(truth.astype(np.uint8), np.ones((5, 5))) > cv2.erode(
        truth.astype(np.uint8), np.ones((5, 5))
    )
    assert changed.sum() > 200
    assert not (changed & ~near).any()
    twice = cv2.resize(picture, None, fx=2, fy=2)
    assert TissueMask(truth, 16, 16, mpp=8).look(twice).shape == twice.shape


# What tissue is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "colours",
    [(PINK, PURPLE), ((236, 222, 232), (228, 214, 230)), (GIEMSA,), ((200, 168, 140), (232, 232, 234))],
    ids=["H&E", "pale H&E", "Giemsa", "DAB and grey counterstain"],
)
def test_a_section_is_found(rng: np.random.Generator, colours: tuple[tuple[int, ...], ...]) -> None:
    picture, truth = section(rng, *colours)
    before = picture.copy()
    found = hls(picture)
    assert overlap(found, truth) > 0.95
    assert (picture == before).all()
    assert (hls(picture) == found).all()


@pytest.mark.parametrize(
    "tint", [(0.97, 0.94, 0.96), (0.9, 0.92, 0.88), (1.03, 1.02, 1.04), (1, 0.95, 0.86), (0.7, 0.7, 0.7)]
)
def test_the_colour_of_the_glass_does_not_matter(rng: np.random.Generator, tint: tuple[float, ...]) -> None:
    picture, _ = section(rng)
    tinted = np.clip(np.rint(picture * np.array(tint)), 0, 255).astype(np.uint8)
    assert overlap(hls(tinted), hls(picture)) > 0.99


def test_glass_is_the_mode_of_what_looks_like_glass(rng: np.random.Generator) -> None:
    picture, _ = section(rng)
    picture[:, :60] = 255  # padding beside what was scanned
    assert glass_colour(picture) == pytest.approx(GLASS, abs=1)
    assert glass_colour(stained(rng, (90, 90), PINK, PURPLE)) is None
    assert glass_colour(np.full((9, 9, 3), 255, np.uint8)) is None


def test_padding_is_not_tissue(rng: np.random.Generator) -> None:
    picture, truth = section(rng)
    picture[:, :60] = 255
    assert overlap(hls(picture), truth) > 0.95


EMPTY = {
    "white": lambda rng: np.full((200, 200, 3), 255, np.uint8),
    "glass": glass,
    "noisy glass": lambda rng: np.clip(rng.normal(238, 4, (200, 200, 3)), 0, 255).astype(np.uint8),
    "nearly white": lambda rng: rng.integers(252, 256, (200, 200, 3)).astype(np.uint8),
    "black": lambda rng: np.zeros((200, 200, 3), np.uint8),
    "noisy black": lambda rng: rng.integers(0, 12, (200, 200, 3)).astype(np.uint8),
    "fluorescence": lambda rng: stained(rng, (200, 200), (2, 2, 160), (1, 1, 10)),
    "one pixel": lambda rng: np.full((1, 1, 3), 255, np.uint8),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_slide_has_no_tissue(rng: np.random.Generator, name: str) -> None:
    picture = EMPTY[name](rng)
    assert not hls(picture).any()
    assert hls(picture).shape == picture.shape[:2]


@pytest.mark.parametrize("colours", [(PINK,), (PINK, PURPLE), ((235, 205, 226),)])
def test_without_glass_all_is_tissue(rng: np.random.Generator, colours: tuple[tuple[int, ...], ...]) -> None:
    assert hls(stained(rng, (200, 200), *colours)).all()


def test_pale_grey_tissue_beside_stained_tissue_is_kept_and_dust_is_not(rng: np.random.Generator) -> None:
    picture, truth = section(rng)
    right = truth & (np.arange(300) > 150)
    picture[right] = glass(rng, colour=(226, 226, 228))[right]  # as grey as the dust
    clean = hls(picture)
    assert overlap(clean, truth) > 0.95
    picture[disc(300, x=40, y=40, radius=20)] = (120, 119, 121)
    picture[disc(300, x=260, y=40, radius=20)] = (226, 226, 228)
    cv2.line(picture, (20, 280), (280, 285), (190, 191, 190), 6)  # a fibre
    assert (hls(picture) == clean).all()


def test_a_hole_is_enclosed(rng: np.random.Generator) -> None:
    picture = stained(rng, (200, 200), PINK, PURPLE)
    picture[:100] = glass(rng)[:100, :200]
    picture[150:162, 90:102] = GLASS
    picture[-12:, :12] = GLASS
    found = hls(picture)
    assert found[156, 96]  # a lumen
    assert not found[-4, 4]  # as large, and open to the slide's border


@pytest.mark.parametrize("mpp", [8.0, 4.0])
def test_specks_and_holes_go_by_area(rng: np.random.Generator, mpp: float) -> None:
    um = 1 / mpp
    size = int(3200 * um)
    truth = disc(size, x=1600 * um, y=1600 * um, radius=1000 * um)
    for place, radius in ((1200, 100.0), (2000, 200.0)):  # 31,416 and 125,664 µm²
        truth &= ~disc(size, x=place * um, y=1600 * um, radius=radius * um)
    truth |= disc(size, x=300 * um, y=300 * um, radius=40 * um)  # 5,027 µm²
    truth |= disc(size, x=2900 * um, y=300 * um, radius=80 * um)  # 20,106 µm²
    picture = glass(rng, size=size)
    picture[truth] = stained(rng, (size, size), PINK, PURPLE)[truth]
    found = hls(picture, mpp=mpp)

    def at(x: int, y: int) -> bool:
        return bool(found[int(y * um), int(x * um)])

    assert at(1200, 1600)
    assert not at(2000, 1600)
    assert not at(300, 300)
    assert at(2900, 300)


def test_the_same_tissue_at_two_resolutions(rng: np.random.Generator) -> None:
    size = 600
    noise = cv2.GaussianBlur(rng.normal(0, 1, (size, size)), (0, 0), 12)
    truth = disc(size, x=300, y=300, radius=220) & (noise > -noise.std())
    picture = glass(rng, size=size)
    picture[truth] = stained(rng, (size, size), PINK, PURPLE)[truth]
    coarse = cv2.resize(picture, (size // 2, size // 2), interpolation=cv2.INTER_AREA)
    fine_mm2 = hls(picture, mpp=4).sum() * 16e-6
    assert hls(coarse, mpp=8).sum() * 64e-6 == pytest.approx(fine_mm2, rel=0.04)


# Ink and edges ---------------------------------------------------------------------------------------------

INKS = {"green": (40, 150, 95), "blue": (45, 75, 175), "red": (215, 40, 60), "black": (40, 38, 42)}


def stroke(picture: np.ndarray, ink: tuple[int, ...], *points: tuple[int, int]) -> np.ndarray:
    """Draw 400 µm of transparent ink with soft edges over the picture; gives where it is."""
    line = np.zeros(picture.shape[:2], np.uint8)
    cv2.polylines(line, [np.array(points)], False, 255, 50)
    share = cv2.GaussianBlur(line, (0, 0), 1.5)[..., None] / 255
    passed = 1 - share + share * np.array(ink) / 243
    picture[:] = np.rint(picture * passed).astype(np.uint8)
    return line > 0


@pytest.mark.parametrize("ink", INKS)
def test_pen_beside_the_tissue_is_dropped(rng: np.random.Generator, ink: str) -> None:
    picture, truth = section(rng)
    stroke(picture, INKS[ink], (30, 20), (30, 280))
    assert overlap(hls(picture), truth) > 0.95


@pytest.mark.parametrize("ink", INKS)
def test_pen_across_the_border_is_dropped_and_the_rest_is_kept(rng: np.random.Generator, ink: str) -> None:
    picture, truth = section(rng)
    line = stroke(picture, INKS[ink], (90, 0), (90, 300))
    found = hls(picture)
    assert not found[line & ~truth].mean() > 0.02
    assert found[truth & ~cv2.dilate(line.astype(np.uint8), np.ones((15, 15))).astype(bool)].mean() > 0.98


def test_a_stain_of_a_pens_colour_is_no_pen(rng: np.random.Generator) -> None:
    giemsa, truth = section(rng, GIEMSA)
    stroke(giemsa, INKS["green"], (30, 20), (30, 280))  # and green pen on it is still one
    assert overlap(hls(giemsa), truth) > 0.95
    mixed, truth = section(rng, (190, 60, 80), GIEMSA)  # as in a trichrome
    assert overlap(hls(mixed), truth) > 0.95


def test_black_inside_tissue_is_tissue_and_on_glass_it_is_not(rng: np.random.Generator) -> None:
    picture, truth = section(rng)
    picture[disc(300, x=150, y=150, radius=40)] = (48, 42, 40)  # 0.3 mm² of dense DAB
    assert overlap(hls(picture), truth) > 0.95
    picture[:, :6] = 0  # a scan edge
    picture[-4:] = 12
    picture[disc(300, x=40, y=40, radius=20)] = (30, 28, 30)
    assert overlap(hls(picture), truth) > 0.95


# Every setting has an effect -------------------------------------------------------------------------------


def pale() -> np.ndarray:
    """Tissue without glass, as pale and grey as glass: nothing but the settings says which it is."""
    return stained(np.random.default_rng(4), (200, 200), (228, 216, 224), (206, 194, 202))


def scene() -> np.ndarray:
    """One thumbnail with something for every setting."""
    rng = np.random.default_rng(3)
    picture, truth = section(rng)
    rim = disc(300, x=150, y=150, radius=80) & ~truth
    picture[rim] = (236, 226, 234)  # a halo
    picture[disc(300, x=150, y=110, radius=14)] = GLASS  # a hole of 39,000 µm²
    picture[148:150, 40:80] = PINK  # a thread of 16 µm
    picture[disc(300, x=40, y=40, radius=8)] = PINK  # a piece of 13,000 µm²
    picture[disc(300, x=260, y=40, radius=20)] = (110, 100, 106)  # dust with a trace of colour
    picture[disc(300, x=260, y=110, radius=20)] = (60, 48, 60)  # and black with one
    picture[disc(300, x=40, y=100, radius=20)] = (229, 226, 230)
    half = disc(300, x=260, y=260, radius=24)
    picture[half] = (205, 205, 206)  # a grey piece,
    picture[half & (np.arange(300) > 268)] = PINK  # and a third of it coloured
    stroke(picture, INKS["green"], (60, 280), (180, 280))
    return picture


CHANGES = [
    HlsThresholds(close_radius_um=60),
    HlsThresholds(open_radius_um=0),
    HlsThresholds(min_area_um2=30_000),
    HlsThresholds(max_hole_um2=1_000),
    HlsThresholds(glass_lightness=250),
    HlsThresholds(glass_chroma=0),
    HlsThresholds(max_lightness=200),
    HlsThresholds(halo=0.0),
    HlsThresholds(black_lightness=20),
    HlsThresholds(black_chroma=4),
    HlsThresholds(min_saturation=2),
    HlsThresholds(min_chroma=70),
    HlsThresholds(colour_sigma_um=300),
    HlsThresholds(min_coloured=0.8),
    HlsThresholds(drop_pen=False),
    SaturationOtsu(close_radius_um=250),
    SaturationOtsu(open_radius_um=50),
    SaturationOtsu(min_area_um2=30_000),
    SaturationOtsu(max_hole_um2=1_000),
    SaturationOtsu(median_um=8),
    SaturationOtsu(min_saturation=120),
]


@pytest.mark.parametrize("method", CHANGES, ids=repr)
def test_every_setting_changes_the_mask(method: HlsThresholds | SaturationOtsu) -> None:
    default = type(method)()
    assert any(
        (segment(picture, mpp=8, method=method) != segment(picture, mpp=8, method=default)).any()
        for picture in (scene(), pale())
    )


def test_no_setting_is_left_out_above() -> None:
    for kind in (HlsThresholds, SaturationOtsu):
        assert issubclass(kind, CleanUp)
        names = {field.name for field in dataclasses.fields(kind)}
        changed = {
            name
            for method in CHANGES
            if type(method) is kind
            for name in names
            if getattr(method, name) != getattr(kind(), name)
        }
        assert changed == names


# The alternative -------------------------------------------------------------------------------------------


def test_otsu_finds_an_evenly_stained_section_and_nothing_on_glass(rng: np.random.Generator) -> None:
    picture, truth = section(rng)
    assert overlap(segment(picture, mpp=8, method=SaturationOtsu()), truth) > 0.9
    assert not segment(glass(rng), mpp=8, method=SaturationOtsu()).any()


# Slides ----------------------------------------------------------------------------------------------------


def test_a_slides_lesion_lies_in_the_tissue_found(tmp_path: Path) -> None:
    made = write_slide(tmp_path / "slide.svs", seed=5, lesion=True, size=(2048, 1536), mpp=0.5)
    with Slide(made.path) as slide:
        tissue = find_tissue(slide)
        assert tissue.mask.shape == (96, 128)
        assert (tissue.scale_x, tissue.scale_y, tissue.mpp) == (16, 16, 8)
        assert find_tissue(slide, mpp=4).area_mm2 == pytest.approx(tissue.area_mm2, rel=0.05)
        assert not (find_tissue(slide, SaturationOtsu()).mask == tissue.mask).all()
    rows, columns = np.nonzero(made.lesion)
    origins = np.stack([columns, rows], axis=1) * made.lesion_scale
    share = tissue.fraction(origins, width=made.lesion_scale, height=made.lesion_scale)
    assert share.mean() > 0.98
    assert 0.05 < tissue.mask.mean() < 0.9


def test_a_slide_without_resolution_is_refused(tmp_path: Path) -> None:
    made = write_slide(tmp_path / "slide.tif", seed=5, lesion=False, size=(512, 512), mpp=None)
    with Slide(made.path) as slide, pytest.raises(ResolutionError, match="--mpp-override"):
        find_tissue(slide)


def test_the_slide_that_everybody_has(data_dir: Path) -> None:
    with Slide(data_dir / "slides/vendor/CMU-1-Small-Region.svs") as slide:
        assert 0.25 < find_tissue(slide).mask.mean() < 0.45
        thumbnail = slide.thumbnail(8)
    # The thresholds that are often copied take nearly all of it.
    copied = cv2.inRange(cv2.cvtColor(thumbnail, cv2.COLOR_RGB2HLS), (0, 30, 0), (180, 255, 255))
    assert copied.mean() / 255 > 0.99


def test_one_section_in_every_wrapping_has_the_same_area(data_dir: Path) -> None:
    names = ("aperio_jpeg.svs", "aperio_jp2k_33005.svs", "generic_jpeg.tiff", "leica.scn", "philips.tiff")
    areas = []
    for name in names:
        with Slide(data_dir / "slides/formats" / name) as slide:
            areas.append(find_tissue(slide).area_mm2)
    assert areas == pytest.approx([areas[0]] * len(areas), rel=0.01)


@pytest.mark.parametrize(
    ("name", "mpp", "least"),
    [
        ("arachnoid-cyst-HE-q4.svs", None, 0.2),
        ("challenge1-betacatenin-q4.tiff", 1.0, 0.4),
        ("challenge1-calretinin-q4.tiff", 1.0, 0.35),
        ("metaplasia-trypsin-q4.svs", None, 0.5),
    ],
)
def test_pale_sections_are_found_where_saturation_alone_is_not_enough(
    data_dir: Path, name: str, mpp: float | None, least: float
) -> None:
    with Slide(data_dir / "slides/small" / name, mpp=mpp) as slide:
        found, otsu = find_tissue(slide), find_tissue(slide, SaturationOtsu())
    assert least < found.mask.mean() < least + 0.1
    assert otsu.area_mm2 < 0.8 * found.area_mm2
