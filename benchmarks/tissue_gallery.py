"""Judge the tissue mask on every real section: prints a table, and draws a contact sheet to look at.

    python -m benchmarks.tissue_gallery --slides ../shared/slides --picture docs/tissue.jpg

Green is the outline of the default method, orange that of the saturation Otsu.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.durable import write_file
from wsi.slide import Slide
from wsi.tissue import TISSUE_MPP, HlsThresholds, SaturationOtsu, TissueMask, segment

SECTIONS = (
    "small/*",
    "whole/*",
    "vendor/CMU-1-Small-Region.svs",
    "vendor/TCGA-CR-7395-01A-01-TS1.svs",
    "formats/aperio_jpeg.svs",
)
ASSUMED_MPP = {"TCGA-CR-7395-01A-01-TS1": 0.5}
"""For slides that state no microns per pixel; the others without are about 1."""

LOOKS = {
    "BS21-HE-q4": "holds; the grey dust beside it is left out",
    "BS24-HE-q4": "holds; debris with dark crystals beside the tissue is kept",
    "BS25-CHR-q4": "holds, the black foci too; a blurred grey spot beside the tissue is kept with it",
    "BS27-HE-q4": "holds, black dust left out; wide clefts in the section are kept with it",
    "PDAC-tru-cut-HE3-q4": "holds; some fragments under 100 µm are left out",
    "arachnoid-cyst-HE-q4": "holds on thin membranes; the thinnest threads are left out",
    "challenge1-HE1-q4": "holds, also the fat; a strip of empty fat is left out",
    "challenge1-betacatenin-q4": "tissue holds, the grey part too; of the fat only half",
    "challenge1-calretinin-q4": "grey liver holds; a near-white part (left) and most of the fat are missed",
    "erosion-HE-q4": "holds",
    "helicobacterpylori-HE-q4": "holds",
    "helicobacterpylori-giemsa-q4": "holds; blue haze and paper fibres left out",
    "her2-cish-cish-q4": "holds",
    "kidneyoncocytoma-HE-q4": "holds, the fat too",
    "lung-squamous-cell-carcinoma-HE1-full": "holds",
    "lung-squamous-cell-carcinoma-HE2-q4": "holds",
    "lung-squamous-cell-carcinoma-HE3-full": "holds, the pale part too",
    "lung-squamous-cell-carcinoma-HE4-q4": "holds",
    "metaplasia-HE-q4": "holds; wide clefts in the section are kept with it",
    "metaplasia-trypsin-q4": "holds, the pale centre and the black focus too",
    "CMU-1-Small-Region": "holds, the thin strand too; a keratin-filled cavity is kept with it",
    "TCGA-CR-7395-01A-01-TS1": "holds; padding beside the scanned part left out",
    "aperio_jpeg": "holds, the pale part too",
}
"""What the outlines looked like to the one who set the defaults. Look again when you change them."""


@dataclass(frozen=True)
class Verdict:
    """What both methods make of one section."""

    name: str
    thumbnail: NDArray[np.uint8]
    tissue: TissueMask
    otsu: TissueMask
    finer: float
    """Area in mm² by the default method at half the microns per pixel."""
    copied: float
    """Share that the often-copied HLS range marks, without any other step."""
    milliseconds: float

    @property
    def agreement(self) -> float:
        """Intersection over union of both methods."""
        both = np.count_nonzero(self.tissue.mask & self.otsu.mask)
        return both / max(np.count_nonzero(self.tissue.mask | self.otsu.mask), 1)

    def row(self) -> str:
        """One line of the table."""
        tissue, otsu = self.tissue.mask.mean(), self.otsu.mask.mean()
        return (
            f"| {self.name} | {100 * tissue:.1f} | {100 * otsu:.1f} | {self.agreement:.2f} "
            f"| {100 * (self.finer / self.tissue.area_mm2 - 1):+.1f} | {100 * self.copied:.1f} "
            f"| {self.milliseconds:.0f} | {LOOKS.get(self.name, 'not looked at')} |"
        )


HEADER = (
    "| section | tissue, % | Otsu, % | IoU | area at 4 mpp, % | copied range, % | CPU-ms | look |\n"
    "|---|---|---|---|---|---|---|---|"
)


def judge(path: Path) -> Verdict:
    with Slide(path) as slide:
        stated = slide.resolution
    with Slide(path, mpp=None if stated else ASSUMED_MPP.get(path.stem, 1.0)) as slide:
        thumbnail, fine = slide.thumbnail(TISSUE_MPP), slide.thumbnail(TISSUE_MPP / 2)
        scale_x, scale_y = slide.scale(TISSUE_MPP)
    start = time.process_time()
    mask = segment(thumbnail, mpp=TISSUE_MPP, method=HlsThresholds())
    elapsed = time.process_time() - start
    otsu = segment(thumbnail, mpp=TISSUE_MPP, method=SaturationOtsu())
    finer = segment(fine, mpp=TISSUE_MPP / 2, method=HlsThresholds())
    hls = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2HLS)
    return Verdict(
        name=path.stem,
        thumbnail=thumbnail,
        tissue=TissueMask(mask, scale_x, scale_y, TISSUE_MPP),
        otsu=TissueMask(otsu, scale_x, scale_y, TISSUE_MPP),
        finer=np.count_nonzero(finer) * (TISSUE_MPP / 2) ** 2 / 1e6,
        copied=cv2.inRange(hls, (0, 30, 0), (180, 255, 255)).mean() / 255,
        milliseconds=1000 * elapsed,
    )


def cell(verdict: Verdict, *, edge: int) -> NDArray[np.uint8]:
    """A square of the contact sheet: the section with both outlines, and its name."""
    rows, columns = verdict.thumbnail.shape[:2]
    scale = (edge - 20) / max(rows, columns)
    size = (max(round(columns * scale), 1), max(round(rows * scale), 1))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    plain = np.asarray(cv2.resize(verdict.thumbnail, size, interpolation=way), np.uint8)
    picture = np.full((edge, edge, 3), 120, np.uint8)
    area = picture[20 : 20 + size[1], : size[0]]
    area[:] = verdict.tissue.look(verdict.otsu.look(plain, colour=(255, 140, 0)))
    font = cv2.FONT_HERSHEY_SIMPLEX
    title = f"{verdict.name} {100 * verdict.tissue.mask.mean():.0f}%"
    cv2.putText(picture, title, (3, 14), font, 0.36, (255, 255, 255), 1, cv2.LINE_AA)
    return picture


def contact_sheet(verdicts: list[Verdict], *, columns: int, edge: int) -> NDArray[np.uint8]:
    cells = [cell(verdict, edge=edge) for verdict in verdicts]
    cells += [np.full_like(cells[0], 120)] * (-len(cells) % columns)
    lines = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    return np.vstack(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("MICROTOME_DATA", Path(__file__).resolve().parents[2] / "shared"))
    parser.add_argument("--slides", type=Path, default=data / "slides", help="the folder of real sections")
    parser.add_argument("--picture", type=Path, help="write the contact sheet here (JPEG)")
    parser.add_argument("--quality", type=int, default=78, help="of the JPEG")
    options = parser.parse_args()

    cv2.setNumThreads(1)
    paths = [path for pattern in SECTIONS for path in sorted(options.slides.glob(pattern))]
    if not paths:
        parser.error(f"no sections under {options.slides}: pass --slides or set MICROTOME_DATA")
    print(HEADER)
    verdicts = []
    for path in paths:
        verdicts.append(judge(path))
        print(verdicts[-1].row(), flush=True)
    if options.picture:
        sheet = contact_sheet(verdicts, columns=5, edge=300)
        parameters = [cv2.IMWRITE_JPEG_QUALITY, options.quality]
        _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), parameters)
        write_file(options.picture, jpeg.tobytes())
        print(f"\n{options.picture}: {len(jpeg) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
