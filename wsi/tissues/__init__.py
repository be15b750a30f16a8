"""Kinds of tissue by formula, told apart by their texture as in histology.

Each is painted on a patch as two layers of stain, at half resolution, and crowds of nuclei. What tells them
apart is mostly form: the same eosin may be a bundle of muscle, a nerve or scar, and the same blue a lymph
node or a carcinoma. Many resemble each other on purpose (stroma, fibrosis, muscle and nerve; oedema and
mucin; lymphoid tissue, lymphoma and tumour; inflammation and granulation; sarcoma and muscle; glands, adenoma
and adenocarcinoma): few examples under another stain do not tell them apart for sure.
"""

from __future__ import annotations

from dataclasses import dataclass

from wsi.tissues.cellular import (
    blood,
    granulation,
    inflammation,
    lymphoid,
    lymphoma,
    mucin,
    necrosis,
    sarcoma,
    tumour,
)
from wsi.tissues.connective import adipose, cartilage, fibrosis, muscle, nerve, oedema, stroma
from wsi.tissues.epithelial import adenocarcinoma, adenoma, follicles, glands, liver, squamous
from wsi.tissues.patch import Painter


@dataclass(frozen=True)
class Tissue:
    """A kind of tissue."""

    paint: Painter
    colour: tuple[int, int, int]
    """Of its outline in QuPath."""


TISSUES = {
    "stroma": Tissue(stroma, (150, 200, 150)),
    "adipose": Tissue(adipose, (240, 228, 66)),
    "muscle": Tissue(muscle, (213, 94, 0)),
    "fibrosis": Tissue(fibrosis, (170, 120, 90)),
    "oedema": Tissue(oedema, (200, 170, 220)),
    "nerve": Tissue(nerve, (204, 121, 167)),
    "cartilage": Tissue(cartilage, (86, 180, 233)),
    "blood": Tissue(blood, (128, 0, 0)),
    "lymphoid": Tissue(lymphoid, (0, 114, 178)),
    "inflammation": Tissue(inflammation, (160, 90, 160)),
    "granulation": Tissue(granulation, (255, 150, 150)),
    "lymphoma": Tissue(lymphoma, (70, 60, 170)),
    "sarcoma": Tissue(sarcoma, (150, 30, 90)),
    "tumour": Tissue(tumour, (200, 0, 0)),
    "adenocarcinoma": Tissue(adenocarcinoma, (230, 80, 120)),
    "glands": Tissue(glands, (0, 158, 115)),
    "adenoma": Tissue(adenoma, (0, 110, 110)),
    "follicles": Tissue(follicles, (120, 180, 0)),
    "squamous": Tissue(squamous, (230, 159, 0)),
    "liver": Tissue(liver, (140, 100, 60)),
    "mucin": Tissue(mucin, (90, 90, 180)),
    "necrosis": Tissue(necrosis, (50, 50, 50)),
}
"""All kinds by name. The order is that of lists and masks, unless another one is given."""
