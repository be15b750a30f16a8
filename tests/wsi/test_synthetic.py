"""Laws of the synthetic slides: same seed same bytes, readable by two libraries, lesions where they say."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile
import tiffslide

from wsi.errors import UsageError
from wsi.synthetic import SyntheticSlide, write_cohort, write_huge_slide, write_slide

SMALL = (1280, 1024)


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    path = tmp_path_factory.mktemp("synthetic") / "sick.svs"
    return write_slide(path, seed=5, lesion=True, size=SMALL)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    path = tmp_path_factory.mktemp("synthetic") / "healthy.svs"
    return write_slide(path, seed=5, lesion=False, size=SMALL)


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_huge_slide(tmp_path_factory.mktemp("huge") / "huge.svs", tissue_px=8192)


def pixels(path: Path) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def tissue_share(image: np.ndarray) -> float:
    return float((image.max(axis=-1).astype(int) - image.min(axis=-1) > 20).mean())


def test_same_seed_same_bytes_other_seed_other_picture(tmp_path: Path, sick: SyntheticSlide) -> None:
    again = write_slide(tmp_path / "again.svs", seed=5, lesion=True, size=SMALL)
    other = write_slide(tmp_path / "other.svs", seed=6, lesion=True, size=SMALL)
    assert again.path.read_bytes() == sick.path.read_bytes()
    assert np.array_equal(again.lesion, sick.lesion)
    assert not np.array_equal(other.lesion, sick.lesion)


@pytest.mark.parametrize("tile_px", [240, 256])
@pytest.mark.parametrize("suffix", [".svs", ".tiff"])
def test_both_libraries_see_all_levels_and_the_scale(tmp_path: Path, suffix: str, tile_px: int) -> None:
    path = write_slide(
        tmp_path / f"s{suffix}", seed=1, lesion=False, size=SMALL, mpp=0.5, tile_px=tile_px
    ).path
    sizes = ((1280, 1024), (320, 256), (80, 64))
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == sizes
        assert slide.properties["openslide.vendor"] == {".svs": "aperio", ".tiff": "generic-tiff"}[suffix]
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5, rel=1e-4)
        assert slide.properties["openslide.level[0].tile-width"] == str(tile_px)
        assert list(slide.associated_images) == (["thumbnail"] if suffix == ".svs" else [])
    with tiffslide.TiffSlide(path) as slide:
        assert slide.level_dimensions == sizes
        assert float(slide.properties["tiffslide.mpp-y"]) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("suffix", [".svs", ".tiff"])
def test_without_mpp_no_reader_finds_one(tmp_path: Path, suffix: str) -> None:
    path = write_slide(tmp_path / f"s{suffix}", seed=1, lesion=False, size=(512, 512), mpp=None).path
    with openslide.OpenSlide(path) as slide:
        assert "openslide.mpp-x" not in slide.properties
        assert "openslide.objective-power" not in slide.properties
    with tiffslide.TiffSlide(path) as slide:
        assert slide.properties["tiffslide.mpp-x"] is None


def test_label_and_macro_come_only_when_asked(tmp_path: Path, sick: SyntheticSlide) -> None:
    asked = write_slide(tmp_path / "s.svs", seed=1, lesion=False, size=(512, 512), label_image=True)
    with openslide.OpenSlide(asked.path) as slide:
        assert set(slide.associated_images) == {"thumbnail", "label", "macro"}
        assert len(slide.level_dimensions) == 3
    with openslide.OpenSlide(sick.path) as slide:
        assert set(slide.associated_images) == {"thumbnail"}


def test_no_field_holds_a_date_or_a_library_version(sick: SyntheticSlide) -> None:
    with tifffile.TiffFile(sick.path) as tiff:
        for page in tiff.pages:
            assert "DateTime" not in page.tags
            assert page.tags["Software"].value == "Microtome synthetic slide"
            assert "Date" not in page.description


@pytest.mark.parametrize("seed", range(6))
def test_tissue_covers_a_quarter_to_a_half_and_touches_no_border(tmp_path: Path, seed: int) -> None:
    image = pixels(write_slide(tmp_path / "s.svs", seed=seed, lesion=False, size=SMALL).path)
    assert 0.2 < tissue_share(image) < 0.5
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (border.min(axis=-1) > 200).mean() > 0.95


@pytest.mark.parametrize("seed", range(6))
def test_a_lesion_is_a_compact_part_of_the_tissue(tmp_path: Path, seed: int) -> None:
    slide = write_slide(tmp_path / "s.svs", seed=seed, lesion=True, size=SMALL)
    assert slide.lesion.shape == (64, 80)
    assert slide.lesion_scale == 16
    assert cv2.connectedComponents(slide.lesion.astype(np.uint8))[0] - 1 in (1, 2)
    image = pixels(slide.path)
    whole = cv2.resize(slide.lesion.astype(np.uint8), (1280, 1024), interpolation=cv2.INTER_NEAREST) > 0
    inside = image[whole]
    assert (inside.max(axis=-1).astype(int) - inside.min(axis=-1) > 12).mean() > 0.9  # coloured: not glass
    assert 0.1 < whole.mean() / tissue_share(image) < 0.45


def test_a_slide_is_elsewhere_the_same_without_its_lesion(
    sick: SyntheticSlide, healthy: SyntheticSlide
) -> None:
    assert not healthy.lesion.any()
    difference = np.abs(pixels(sick.path).astype(int) - pixels(healthy.path)).max(axis=-1)
    near = cv2.dilate(sick.lesion.astype(np.uint8), np.ones((31, 31)))  # a gland that a lesion displaces
    near = cv2.resize(near, SMALL, interpolation=cv2.INTER_NEAREST) > 0
    assert (~near).mean() > 0.2
    assert difference[~near].max() <= 8  # JPEG blocks that reach over
    assert difference[near].mean() > 15


def test_a_lesion_is_darker_than_the_tissue_around_it(sick: SyntheticSlide, healthy: SyntheticSlide) -> None:
    whole = cv2.resize(sick.lesion.astype(np.uint8), SMALL, interpolation=cv2.INTER_NEAREST) > 0
    red_sick, red_healthy = (pixels(slide.path)[..., 0][whole].mean() for slide in (sick, healthy))
    assert red_sick < red_healthy - 20  # red is the light that haematoxylin takes


def test_a_cohort_is_balanced_stratified_and_told(tmp_path: Path) -> None:
    slides = write_cohort(tmp_path / "cohort", count=8, seed=3, size=(512, 384))
    with (tmp_path / "cohort" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["slide_id", "label", "patient", "split"]
    assert [row["slide_id"] for row in rows] == [slide.path.stem for slide in slides]
    assert len({row["patient"] for row in rows}) == 8
    for split in ("train", "test"):
        labels = [row["label"] for row in rows if row["split"] == split]
        assert labels.count("tumour") == labels.count("normal") > 0
    for row, slide in zip(rows, slides, strict=True):
        truth = cv2.imread(
            str(tmp_path / "cohort" / "lesions" / f"{row['slide_id']}.png"), cv2.IMREAD_GRAYSCALE
        )
        assert np.array_equal(truth > 0, slide.lesion)
        assert slide.lesion.any() == (row["label"] == "tumour")
    assert len({slide.path.read_bytes() for slide in slides}) == 8


@pytest.mark.parametrize("wrong", [{"size": (4096, 100)}, {"tile_px": 250}])
def test_impossible_wishes_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="at least 256"):
        write_slide(tmp_path / "s.svs", seed=0, lesion=False, **wrong)  # type: ignore[arg-type]


def test_the_default_size_takes_seconds_of_one_processor(tmp_path: Path) -> None:
    begin = time.process_time()
    write_slide(tmp_path / "s.svs", seed=0, lesion=True)
    assert time.process_time() - begin < 10  # about 1.5 on a quiet machine


def test_a_huge_slide_is_small_on_disk_and_opens_as_aperio(huge: Path) -> None:
    assert huge.stat().st_size < 5_000_000
    with openslide.OpenSlide(huge) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert slide.level_dimensions == ((100_000, 100_000), (25_000, 25_000), (6250, 6250), (1562, 1562))
        assert slide.properties["openslide.mpp-x"] == "0.25"
        assert list(slide.associated_images) == ["thumbnail"]
    with tiffslide.TiffSlide(huge) as slide:
        assert len(slide.level_dimensions) == 4


def test_the_levels_of_a_huge_slide_show_one_picture(huge: Path) -> None:
    corner = (100_000 - 8192) // 2 // 64 * 64 - 1024
    with openslide.OpenSlide(huge) as slide:
        base = np.asarray(slide.read_region((corner, corner), 0, (4096, 4096)).convert("RGB"), float)
        for level, scale in ((1, 4), (2, 16)):
            edge = 4096 // scale
            shown = np.asarray(slide.read_region((corner, corner), level, (edge, edge)).convert("RGB"), float)
            wanted = base.reshape(edge, scale, edge, scale, 3).mean(axis=(1, 3))
            assert np.abs(shown - wanted).mean() < 6
            assert np.abs(shown.mean(axis=(0, 1)) - wanted.mean(axis=(0, 1))).max() < 1


def test_a_huge_slide_is_glass_but_for_its_square(huge: Path) -> None:
    with openslide.OpenSlide(huge) as slide:
        overview = np.asarray(slide.read_region((0, 0), 3, slide.level_dimensions[3]).convert("RGB"))
        far = np.asarray(slide.read_region((99_000, 99_000), 0, (900, 900)).convert("RGB"))
    coloured = overview.max(axis=-1).astype(int) - overview.min(axis=-1) > 20
    rows, columns = np.nonzero(coloured)
    assert np.ptp(rows) + 1 == pytest.approx(128, abs=3)
    assert np.ptp(columns) + 1 == pytest.approx(128, abs=3)
    assert rows.mean() == pytest.approx(781, abs=3)
    assert coloured[rows.min() : rows.max(), columns.min() : columns.max()].mean() > 0.9
    assert far.min() > 235
