"""Laws of the cohorts of many tissues: same seed same bytes, sites apart, and the truth in three forms."""

from __future__ import annotations

import csv
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest

from wsi.annotations import read_annotations
from wsi.errors import UsageError
from wsi.polygons import fill
from wsi.tissue_cohort import (
    BACKGROUNDS,
    FINDINGS,
    Findings,
    Mixed,
    TissueSlide,
    site_of,
    write_tissue_cohort,
)

SMALL = (1024, 1024)
CLASSES = ("stroma", "lymphoid", "tumour", "liver")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[TissueSlide]:
    folder = tmp_path_factory.mktemp("cohort")
    plan = Mixed(CLASSES, per_slide=3)
    return write_tissue_cohort(folder, plan=plan, sites=[0, 3, 5], patients_per_site=2, seed=4, size=SMALL)


def pixels(path: Path) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_same_bytes_and_a_site_needs_no_other(tmp_path: Path, mixed: list[TissueSlide]) -> None:
    plan = Mixed(CLASSES, per_slide=3)
    write_tissue_cohort(tmp_path, plan=plan, sites=[3], patients_per_site=2, seed=4, size=SMALL)
    again, whole = files(tmp_path), files(mixed[0].path.parent)
    del again["labels.csv"]
    assert len(again) == 2 * 3 + 1
    assert all(whole[name] == data for name, data in again.items())


def test_slides_open_as_aperio_with_their_scale(mixed: list[TissueSlide]) -> None:
    for one in mixed:
        with openslide.OpenSlide(one.path) as slide:
            assert slide.properties["openslide.vendor"] == "aperio"
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5, rel=1e-4)
            assert slide.level_dimensions == ((1024, 1024), (256, 256), (64, 64))


def test_the_table_names_slide_label_patient_and_site(mixed: list[TissueSlide]) -> None:
    with (mixed[0].path.parent / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["slide_id", "label", "patient", "site"]
    assert [row["slide_id"] for row in rows] == [one.path.stem for one in mixed]
    assert [row["site"] for row in rows] == ["site0"] * 2 + ["site3"] * 2 + ["site5"] * 2
    assert len({row["patient"] for row in rows}) == 6
    for row, one in zip(rows, mixed, strict=True):
        assert row["label"] == one.label
        assert one.mosaic.shares()[one.label] == max(one.mosaic.shares().values())


def test_masks_and_annotations_agree(mixed: list[TissueSlide]) -> None:
    folder = mixed[0].path.parent
    numbers = [line.split(",") for line in (folder / "classes.csv").read_text().split()]
    assert numbers == [["number", "name"], *([str(i), name] for i, name in enumerate(CLASSES, 1))]
    for one in mixed:
        mask = cv2.imread(str(folder / "masks" / f"{one.path.stem}.png"), cv2.IMREAD_UNCHANGED)
        assert mask is not None
        assert mask.shape == (64, 64)
        found = read_annotations(folder / "annotations" / f"{one.path.stem}.geojson")
        assert {annotation.name for annotation in found} <= set(one.mosaic.classes)
        assert {CLASSES[number - 1] for number in np.unique(mask[mask > 0])} == set(one.mosaic.classes)
        for annotation in found:
            inside = fill(annotation.polygons, shape=(64, 64), scale_x=16, scale_y=16)
            assert set(np.unique(mask[inside])) == {CLASSES.index(annotation.name or "") + 1}


def test_what_is_annotated_is_painted(mixed: list[TissueSlide]) -> None:
    """Lymphoid tissue and tumour are crowded with nuclei: less red light passes than through stroma."""
    compared = 0
    for one in mixed:
        red = cv2.resize(pixels(one.path)[..., 0], (64, 64), interpolation=cv2.INTER_AREA)
        glass = red[one.mosaic.index == 0].mean()
        light = {name: red[one.mosaic.index == i].mean() for i, name in enumerate(one.mosaic.classes, 1)}
        assert max(light.values()) < glass - 5
        for dense in {"lymphoid", "tumour"} & set(light):
            for loose in {"stroma", "liver"} & set(light):
                assert light[dense] < light[loose] - 5
                compared += 1
    assert compared > 4


def test_sites_differ_in_colour_more_than_slides_of_a_site(mixed: list[TissueSlide]) -> None:
    """The median colour of stroma, where it is on both slides."""
    colours: dict[str, list[np.ndarray]] = {}
    for one in mixed:
        if "stroma" not in one.mosaic.classes:
            continue
        index = cv2.resize(one.mosaic.index, SMALL, interpolation=cv2.INTER_NEAREST)
        stroma = pixels(one.path)[index == one.mosaic.classes.index("stroma") + 1]
        colours.setdefault(one.site, []).append(np.median(stroma, axis=0))
    within = [np.abs(a - b).mean() for each in colours.values() for a, b in pairwise(each)]
    between = [np.abs(a[0] - b[0]).mean() for a, b in combinations(colours.values(), 2)]
    assert within
    assert len(between) == 3
    assert np.mean(between) > 2 * np.mean(within)


def test_findings_are_a_tenth_to_three_tenths_of_two_backgrounds(tmp_path: Path) -> None:
    plan = Findings(("nerve", "tumour"))
    slides = write_tissue_cohort(
        tmp_path, plan=plan, sites=[1], patients_per_site=2, slides_per_patient=2, seed=1, size=SMALL
    )
    assert len(slides) == 4
    for one in slides:
        assert len(set(one.mosaic.classes) & set(BACKGROUNDS)) == 2
        assert set(one.mosaic.classes) - set(BACKGROUNDS) == {one.label}
        assert 0.1 <= one.mosaic.shares()[one.label] <= 0.3
    labels = {one.patient: one.label for one in slides}
    assert all(labels[one.patient] == one.label for one in slides)
    assert Counter(labels.values()) == {"nerve": 1, "tumour": 1}


@pytest.mark.parametrize("patients", [3, 8, 20])
def test_plans_are_fair(patients: int) -> None:
    mixed = Mixed(per_slide=5).slides(np.random.default_rng(0), patients, 2)
    assert all(len(one) == 5 for one in mixed)
    counts = Counter(name for one in mixed for name in one)
    assert max(counts.values()) - min(counts[name] for name in Mixed().classes) <= 1
    findings = Findings().slides(np.random.default_rng(0), patients, 1)
    counts = Counter(name for one in findings for name in one if name in FINDINGS)
    assert max(counts.values()) - min(counts[name] for name in FINDINGS) <= 1
    assert all(sum(one.values()) == pytest.approx(1) for one in findings)


def test_conditions_of_a_site_rest_on_seed_and_number() -> None:
    assert np.array_equal(site_of(1, 2).table(), site_of(1, 2).table())
    assert not np.array_equal(site_of(1, 2).table(), site_of(1, 3).table())
    assert not np.array_equal(site_of(1, 2).table(), site_of(2, 2).table())


def test_plans_that_cannot_be_kept_are_refused() -> None:
    with pytest.raises(UsageError, match="unicorn"):
        Mixed(("stroma", "unicorn"), per_slide=1)
    with pytest.raises(UsageError, match="3 classes of"):
        Mixed(("stroma", "tumour"), per_slide=3)
    with pytest.raises(UsageError, match="classes of"):
        Findings(("stroma",))
    with pytest.raises(UsageError, match="2 classes of"):
        Findings(("tumour",), backgrounds=("stroma",))
