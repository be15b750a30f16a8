"""Cohorts of slides of many tissues from several sites, with the truth as QuPath's GeoJSON and as masks.

What is on the slides, a plan says: `Mixed` for learning from regions, `Findings` for learning from whole
slides.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi.canvas import paint_mosaic
from wsi.durable import make_folder, write_file
from wsi.errors import UsageError
from wsi.geojson import write_annotations
from wsi.mosaic import Mosaic, draw_mosaic, interiors
from wsi.picture import encode_png
from wsi.sites import Site, draw_site, vary_site
from wsi.synthetic import write_svs
from wsi.tissues import TISSUES

BACKGROUNDS = ("stroma", "adipose", "muscle")
"""What most organs have."""
FINDINGS = tuple(name for name in TISSUES if name not in BACKGROUNDS)
"""All other tissues."""
_NUCLEAR = 0.05  # relative deviation of the size of nuclei between patients


@dataclass(frozen=True)
class Mixed:
    """Every slide holds some of the classes, about as much of each; its label is what covers most of it.

    At each site a class is on as many slides as any other, to within one.
    """

    classes: tuple[str, ...] = tuple(TISSUES)
    per_slide: int = 5

    def __post_init__(self) -> None:
        _check(self.classes, least=self.per_slide)

    def slides(self, rng: np.random.Generator, patients: int, each: int) -> list[dict[str, float]]:
        """What share of its tissue each slide of a site has of which class, patient after patient."""
        order = [self.classes[place] for place in rng.permutation(len(self.classes))]
        firsts = range(0, patients * each * self.per_slide, self.per_slide)
        turns = [[order[(first + place) % len(order)] for place in range(self.per_slide)] for first in firsts]
        return [{name: float(rng.uniform(0.85, 1.15)) for name in turn} for turn in turns]

    def label(self, mosaic: Mosaic) -> str:
        """The class that covers most."""
        shares = mosaic.shares()
        return max(shares, key=lambda name: shares[name])


@dataclass(frozen=True)
class Findings:
    """Every slide is of two kinds of background but for one finding, its label: a tenth to three tenths.

    All slides of a patient have the same finding. At each site a finding has as many patients as any other,
    to within one.
    """

    findings: tuple[str, ...] = FINDINGS
    backgrounds: tuple[str, ...] = BACKGROUNDS

    def __post_init__(self) -> None:
        _check((*self.findings, *self.backgrounds))
        _check(self.findings)
        _check(self.backgrounds, least=2)

    @property
    def classes(self) -> tuple[str, ...]:
        """All that can be on a slide."""
        return (*self.backgrounds, *self.findings)

    def slides(self, rng: np.random.Generator, patients: int, each: int) -> list[dict[str, float]]:
        """What share of its tissue each slide of a site has of which class, patient after patient."""
        order = [self.findings[place] for place in rng.permutation(len(self.findings))]
        found = []
        for patient in (number for number in range(patients) for _ in range(each)):
            first, second = rng.choice(len(self.backgrounds), 2, replace=False)
            share, split = rng.uniform(0.13, 0.27), rng.uniform(0.35, 0.65)
            found.append(
                {
                    self.backgrounds[first]: (1 - share) * split,
                    self.backgrounds[second]: (1 - share) * (1 - split),
                    order[patient % len(order)]: share,
                }
            )
        return found

    def label(self, mosaic: Mosaic) -> str:
        """The one finding."""
        (label,) = set(mosaic.classes) & set(self.findings)
        return label


def _check(classes: tuple[str, ...], *, least: int = 1) -> None:
    unknown = sorted(set(classes) - set(TISSUES))
    if unknown or len(set(classes)) < len(classes) or not 1 <= least <= len(classes):
        reason = f"no tissue is named {', '.join(unknown)}" if unknown else f"{least} classes of {classes}"
        raise UsageError(reason, action=f"Choose enough, each once, of: {', '.join(TISSUES)}")


@dataclass(frozen=True, eq=False)
class TissueSlide:
    """A slide on disk and the truth about it."""

    path: Path
    """The slide file; its name without ``.svs`` is the slide's id."""
    label: str
    patient: str
    site: str
    mosaic: Mosaic


def write_tissue_cohort(
    folder: Path,
    *,
    plan: Mixed | Findings,
    sites: Iterable[int],
    patients_per_site: int,
    seed: int,
    slides_per_patient: int = 1,
    size: tuple[int, int] = (2048, 2048),
    mpp: float = 0.5,
) -> list[TissueSlide]:
    """Write the slides of some sites, and the truth about them; the same arguments give the same bytes.

    `folder` then holds

    - ``site<s>-p<patient>-<n>.svs``,
    - ``annotations/<slide_id>.geojson``: where each class is for certain, as `interiors` says,
    - ``masks/<slide_id>.png``: a pixel per 16 level-0 pixels, the number of the class, 0 on glass,
    - ``classes.csv`` (columns number, name), and
    - ``labels.csv`` (columns slide_id, label, patient, site).

    Parameters
    ----------
    sites
        Numbers of sites. A site's conditions depend on it and on the seed alone: a cohort of sites 0 to 5 and
        one of sites 6 and 7 are strangers to each other, and can be written apart.
    patients_per_site, slides_per_patient
        No patient is seen at two sites.
    size
        (width, height) of level 0; smaller ones may have no room for all classes.
    """
    for name in ("annotations", "masks"):
        make_folder(folder / name)
    slides = []
    for site in sites:
        conditions = site_of(seed, site)
        shares = plan.slides(_lots(seed, site, 1), patients_per_site, slides_per_patient)
        for number, wanted in enumerate(shares):
            patient, slide = divmod(number, slides_per_patient)
            who = _lots(seed, site, 2, patient)
            own, nuclear = vary_site(who, conditions), float(np.exp(who.normal(0, _NUCLEAR)))
            rng = _lots(seed, site, 3, patient, slide)
            mosaic = draw_mosaic(rng, size=size, mpp=mpp, shares=wanted)
            own = vary_site(rng, own, amount=0.5)
            path = folder / f"site{site}-p{patient:02d}-{slide}.svs"
            pixels = paint_mosaic(rng, mosaic, own, nuclear=nuclear)
            write_svs(path, pixels, mpp=mpp, quality=own.quality)
            _write_truth(folder, path.stem, mosaic, plan.classes)
            slides.append(
                TissueSlide(path, plan.label(mosaic), f"site{site}-p{patient:02d}", f"site{site}", mosaic)
            )
    rows = [(one.path.stem, one.label, one.patient, one.site) for one in slides]
    _write_table(folder / "labels.csv", ("slide_id", "label", "patient", "site"), rows)
    _write_table(folder / "classes.csv", ("number", "name"), list(enumerate(plan.classes, 1)))
    return slides


def site_of(seed: int, number: int) -> Site:
    """The conditions of site `number` in all cohorts of this seed."""
    return draw_site(_lots(seed, number, 0))


def _lots(seed: int, *place: int) -> np.random.Generator:
    """A stream of its own for each place."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=place))


def _write_truth(folder: Path, name: str, mosaic: Mosaic, classes: tuple[str, ...]) -> None:
    """The mask, numbered as the cohort's classes are, and the outlines."""
    numbers = np.array([0, *(classes.index(one) + 1 for one in mosaic.classes)], np.uint8)
    write_file(folder / "masks" / f"{name}.png", encode_png(numbers[mosaic.index]))
    colours = {one: TISSUES[one].colour for one in classes}
    write_annotations(folder / "annotations" / f"{name}.geojson", interiors(mosaic), colours=colours)


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())
