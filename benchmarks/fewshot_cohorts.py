"""The slides that `benchmarks.fewshot` draws: who is learnt from, who is new, and how large all of it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.commands import microtome
from wsi.tissue_cohort import BACKGROUNDS, FINDINGS, Findings, Mixed, write_tissue_cohort
from wsi.tissues import TISSUES

SEED = 31
"""Of the tissue slides; those with findings, and those of the loop, have sites of their own."""
TILE = 112
"""Pixels of 0.5 µm. The encoder sees them at twice that size."""
TILING = ["--mpp", "0.5", "--tile-size", str(TILE), "--stain", "none"]
"""Stains stay as they are: what differs between sites is what has to be adapted to."""
KNOWN_SITES, NEW_SITES = range(6), range(6, 9)
NOVEL = tuple(sorted(TISSUES)[::3])
"""Tissues that no learner sees: every third by name, and so chosen before any result."""
KNOWN = tuple(name for name in TISSUES if name not in NOVEL)
NOVEL_FINDINGS = tuple(sorted(FINDINGS)[::4])
"""Findings of whole slides that no learner sees: every fourth by name."""
KNOWN_FINDINGS = tuple(name for name in FINDINGS if name not in NOVEL_FINDINGS)


@dataclass(frozen=True)
class Scale:
    """How large a run is; the rest is the commands' own defaults."""

    known_sites: int = len(KNOWN_SITES)
    patients: int = 5
    """Of a known site."""
    new_patients: int = 6
    """Of a new site."""
    tile_training: tuple[str, ...] = ("--inner-rate", "0.1")
    """Options of `fewshot train`. On the validation tasks MAML did better with this rate than by default."""
    tile_tasks: tuple[str, ...] = ()
    """Options of `fewshot evaluate`."""
    loop_sites: int = 2
    loop_size: int = 3072
    """Pixels of a side of its slides."""
    draws: int = 2
    """First sets of marks on a slide."""
    rounds: int = 4
    """Of more marks."""
    finding_sites: int = 3
    """Known sites of slides with findings."""
    finding_patients: int = 2
    """Of a finding at a known site."""
    new_finding_patients: int = 3
    """Of a finding at a new site."""
    slide_training: tuple[str, ...] = (
        *("--shots", "3", "--inner-rate", "0.1", "--iterations", "200", "--tasks-per-step", "4"),
        *("--validation-tasks", "30"),
    )
    """Six patients of a finding. Tasks of slides take longer than those of tiles, so steps are fewer."""
    slide_tasks: tuple[str, ...] = ("--shots", "1", "5")
    """Nine patients of a finding."""


FULL = Scale()
_FEW = ("--shots", "1", "5", "--queries", "5")
QUICK = Scale(
    known_sites=2,
    new_patients=2,
    tile_training=(*_FEW, "--iterations", "20", "--validation-tasks", "10"),
    tile_tasks=(*_FEW, "--episodes", "30"),
    loop_sites=1,
    loop_size=2560,
    draws=1,
    rounds=2,
    finding_sites=2,
    finding_patients=1,
    new_finding_patients=1,
    slide_training=(
        *("--shots", "1", "--queries", "1", "--iterations", "4", "--tasks-per-step", "2"),
        *("--validation-tasks", "2"),
    ),
    slide_tasks=("--shots", "1", "--episodes", "10"),
)


def write_tiles(folder: Path, scale: Scale) -> None:
    """``known/`` and ``new/``, cut and encoded in ``results/``: slides of five tissues each."""
    plans = (
        ("known", KNOWN, KNOWN_SITES[: scale.known_sites], scale.patients),
        ("new", NOVEL, NEW_SITES, scale.new_patients),
    )
    for name, classes, sites, patients in plans:
        if not (folder / name / "labels.csv").exists():
            write_tissue_cohort(
                folder / name,
                plan=Mixed(classes),
                sites=sites,
                patients_per_site=patients,
                seed=SEED,
                size=(1536, 1536),
            )
    cut(folder / "results", folder / "known", folder / "new")


def write_findings(folder: Path, scale: Scale) -> None:
    """``known/`` and ``new/``, cut and encoded in ``results/``: small slides with one finding each."""
    plans = (
        ("known", KNOWN_FINDINGS, KNOWN_SITES[: scale.finding_sites], scale.finding_patients),
        ("new", NOVEL_FINDINGS, NEW_SITES, scale.new_finding_patients),
    )
    for name, findings, sites, each in plans:
        if not (folder / name / "labels.csv").exists():
            write_tissue_cohort(
                folder / name,
                plan=Findings(findings, BACKGROUNDS),
                sites=sites,
                patients_per_site=each * len(findings),
                seed=SEED + 1,
                size=(640, 640),
            )
    cut(folder / "results", folder / "known", folder / "new")


def write_loop(folder: Path, scale: Scale) -> list[Path]:
    """For some new sites a folder: two slides of one patient, ``slides/``, cut and encoded in ``results/``.

    Each slide holds all novel tissues.
    """
    folders = []
    for site in NEW_SITES[: scale.loop_sites]:
        at = folder / f"site{site}"
        if not (at / "slides" / "labels.csv").exists():
            write_tissue_cohort(
                at / "slides",
                plan=Mixed(NOVEL, per_slide=len(NOVEL)),
                sites=[site],
                patients_per_site=1,
                slides_per_patient=2,
                seed=SEED + 2,
                size=(scale.loop_size, scale.loop_size),
            )
        cut(at / "results", at / "slides")
        folders.append(at)
    return folders


def cut(results: Path, *slides: Path) -> None:
    """Tiles and features of these slides."""
    microtome("tile", *map(str, slides), "-o", str(results), *TILING, "--quiet")
    microtome("encode", str(results), "--quiet")
