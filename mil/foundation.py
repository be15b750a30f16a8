"""Rows of the pathology encoders whose weights are public: values as their authors give them.

A value is here because its authors' model card or program has it, or two independent loaders agree on it
(Mahmood Lab's TRIDENT, kaiko's eva, LazySlide, KatherLab's STAMP, Owkin's plism-benchmark); ``facts`` names
what was read where they disagree or a trap lies. Only values were taken over. docs/encoders.md says what was
verified and what could not be.
"""

from __future__ import annotations

from typing import Any

from mil.encoder import EncoderRow, Interpolation, Pooling, Positions, Source, Transform, Triple
from mil.networks.foreign_names import dinov2_names, swin_names, transformers_names

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)

_BIOPTIMUS = Transform(224, mean=(0.707223, 0.578729, 0.703617), std=(0.211883, 0.230117, 0.177517))
_HIBOU = Transform(224, mean=(0.7068, 0.5755, 0.7220), std=(0.1950, 0.2316, 0.1816))
# Of the release notes; the copies on the hub declare ImageNet's, which the weights were not trained with.
_LUNIT = Transform(224, mean=(0.70322989, 0.53606487, 0.66096631), std=(0.21716536, 0.26081574, 0.20723464))
_IMAGENET_BICUBIC = Transform(224, mean=IMAGENET_MEAN, std=IMAGENET_STD)
_IMAGENET_BILINEAR = Transform(
    224, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation=Interpolation.BILINEAR
)
_KAIKO = Transform(224, mean=HALF, std=HALF, interpolation=Interpolation.BILINEAR)

_SWIGLU: dict[str, Any] = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
_SEVERAL = (0.25, 1.0, 2.0)
"""Trained at these microns per pixel too, beside 0.5."""

_CC_NC = "CC BY-NC-ND 4.0 (no commercial use)"
_OWKIN = "Owkin's non-commercial licence"
_KAIKO_LICENCE = "Kaiko's non-commercial public licence"
_LUNIT_LICENCE = "Lunit's public licence (research only)"

_UNI_PAPER = "R. J. Chen et al., Nature Medicine 30 (2024), doi 10.1038/s41591-024-02857-3"
_GITHUB_KAIKO = "https://github.com/kaiko-ai/towards_large_pathology_fms/releases/tag/0.0.1"
_GITHUB_LUNIT = "https://github.com/lunit-io/benchmark-ssl-pathology/releases/tag/pretrained-weights"


def _kaiko(name: str, architecture: str, dim: int, **more: Any) -> EncoderRow:
    """One of five networks that differ in nothing but the architecture."""
    port = more.pop("port", architecture)
    return EncoderRow(
        name=name,
        timm_name=architecture,
        dim=dim,
        transform=_KAIKO,
        pooling=Pooling.CLASS,
        licence=_KAIKO_LICENCE,
        mpp=0.5,
        other_mpp=_SEVERAL,
        rename=dinov2_names,
        unused=("mask_token",),
        source=Source(
            "kaiko.ai, N. Aben et al., arXiv 2404.15217",
            hub=f"1aurent/{port}.kaiko_ai_towards_large_pathology_fms",
            page=_GITHUB_KAIKO,
            facts="hubconf.py of the authors' repository; the hub has a third party's copy",
        ),
        **more,
    )


def _lunit(name: str, architecture: str) -> EncoderRow:
    return EncoderRow(
        name=name,
        timm_name=architecture,
        dim=384,
        transform=_LUNIT,
        pooling=Pooling.CLASS,
        licence=_LUNIT_LICENCE,
        mpp=0.5,
        other_mpp=(0.25,),
        source=Source(
            "M. Kang et al., CVPR 2023, arXiv 2212.04690",
            hub=f"1aurent/{architecture}.lunit_dino",
            page=_GITHUB_LUNIT,
            facts="mean and std of the release notes (also in eva and plism-benchmark)",
        ),
    )


def _bioptimus(name: str, hub: str, licence: str, *, gated: bool, paper: str) -> EncoderRow:
    return EncoderRow(
        name=name,
        timm_name="vit_giant_patch14_reg4_dinov2",  # SwiGLU, four registers, no position for the class token
        settings={"img_size": 224},
        dim=1536,
        transform=_BIOPTIMUS,
        pooling=Pooling.CLASS,
        licence=licence,
        mpp=0.5,
        rename=dinov2_names,
        unused=("mask_token",),
        source=Source(paper, hub=hub, gated=gated),
    )


FOUNDATION: tuple[EncoderRow, ...] = (
    EncoderRow(
        name="uni",
        timm_name="vit_large_patch16_224",
        settings={"init_values": 1e-5},
        dim=1024,
        transform=_IMAGENET_BILINEAR,
        pooling=Pooling.CLASS,
        licence=_CC_NC,
        mpp=0.5,
        source=Source(_UNI_PAPER, hub="MahmoodLab/UNI", gated=True),
    ),
    EncoderRow(
        name="uni2-h",
        timm_name="vit_giant_patch14_224",  # the authors' name for it is ViT-H: every number is overridden
        settings={
            "embed_dim": 1536,
            "depth": 24,
            "num_heads": 24,
            "mlp_ratio": 2.66667 * 2,
            "init_values": 1e-5,
            "reg_tokens": 8,
            "no_embed_class": True,
            **_SWIGLU,
        },
        dim=1536,
        transform=_IMAGENET_BILINEAR,
        pooling=Pooling.CLASS,
        licence=_CC_NC,
        mpp=0.5,
        source=Source(_UNI_PAPER, hub="MahmoodLab/UNI2-h", gated=True),
    ),
    EncoderRow(
        name="virchow",
        timm_name="vit_huge_patch14_224",
        settings={"mlp_ratio": 5.3375, "init_values": 1e-5, **_SWIGLU},
        dim=2560,
        transform=_IMAGENET_BICUBIC,
        pooling=Pooling.CLASS_AND_MEAN,
        licence="Apache-2.0, on conditions",
        mpp=0.5,
        source=Source(
            "E. Vorontsov et al., Nature Medicine 30 (2024), doi 10.1038/s41591-024-03141-0",
            hub="paige-ai/Virchow",
            gated=True,
        ),
    ),
    EncoderRow(
        name="virchow2",
        timm_name="vit_huge_patch14_224",
        # Registers after the class token; the positions cover all of them (261 = 1 + 4 + 256).
        settings={"mlp_ratio": 5.3375, "init_values": 1e-5, "reg_tokens": 4, **_SWIGLU},
        dim=2560,
        transform=_IMAGENET_BICUBIC,
        pooling=Pooling.CLASS_AND_MEAN,
        licence=_CC_NC,
        mpp=0.5,
        other_mpp=_SEVERAL,
        source=Source("E. Zimmermann et al., arXiv 2408.00738", hub="paige-ai/Virchow2", gated=True),
    ),
    EncoderRow(
        name="phikon",
        timm_name="vit_base_patch16_224",
        settings={"norm_eps": 1e-12},  # transformers' for a ViT; iBOT trained it with 1e-6
        dim=768,
        transform=_IMAGENET_BILINEAR,
        pooling=Pooling.CLASS,
        licence=_OWKIN,
        mpp=0.5,
        rename=transformers_names,
        unused=("mask_token", "pooler."),
        positions=Positions.PLAIN,
        source=Source("A. Filiot et al., medRxiv 2023.07.21.23292757", hub="owkin/phikon"),
    ),
    EncoderRow(
        name="phikon-v2",
        timm_name="vit_large_patch14_dinov2",
        settings={"patch_size": 16, "img_size": 224},
        dim=1024,
        transform=_IMAGENET_BICUBIC,
        pooling=Pooling.CLASS,
        licence=_OWKIN,
        mpp=0.5,
        rename=transformers_names,
        unused=("mask_token",),
        positions=Positions.PLAIN,
        source=Source(
            "A. Filiot et al., arXiv 2409.09173",
            hub="owkin/phikon-v2",
            facts="ViT-L/16 by its card; bicubic as transformers' DINOv2 processor, TRIDENT has bilinear",
        ),
    ),
    _bioptimus(
        "h-optimus-0",
        "bioptimus/H-optimus-0",
        "Apache-2.0",
        gated=True,  # by others' lists: with an account, at once
        paper="C. Saillard et al., github.com/bioptimus/releases, models/h-optimus/v0 (2024)",
    ),
    _bioptimus(
        "h-optimus-1", "bioptimus/H-optimus-1", _CC_NC, gated=True, paper="Bioptimus, model card (2025)"
    ),
    EncoderRow(
        name="h0-mini",
        timm_name="vit_base_patch14_reg4_dinov2",
        settings={"img_size": 224, "mlp_ratio": 2.66667 * 2, **_SWIGLU},
        dim=1536,
        transform=_BIOPTIMUS,
        pooling=Pooling.CLASS_AND_MEAN,
        licence=_CC_NC,
        mpp=0.5,
        rename=dinov2_names,
        unused=("mask_token",),
        source=Source(
            "A. Filiot et al., arXiv 2501.16239",
            hub="bioptimus/H0-mini",
            gated=True,
            facts="class token and mean of patches as LazySlide; the class token alone (768) is in use too",
        ),
    ),
    EncoderRow(
        name="prov-gigapath",
        timm_name="vit_giant_patch14_dinov2",
        settings={"patch_size": 16, "img_size": 224, "mlp_ratio": 5.33334},
        dim=1536,
        # Tiles of 256 pixels at 0.5 microns, of which the network sees the middle 224.
        transform=Transform(224, mean=IMAGENET_MEAN, std=IMAGENET_STD, resized=256),
        pooling=Pooling.CLASS,
        licence="Apache-2.0, on conditions (research only)",
        mpp=0.5,
        source=Source(
            "H. Xu et al., Nature (2024), doi 10.1038/s41586-024-07441-w",
            hub="prov-gigapath/prov-gigapath",
            gated=True,
            facts="README of the authors' repository; the hub's own configuration does not crop",
        ),
    ),
    EncoderRow(
        name="hibou-b",
        timm_name="vit_base_patch14_reg4_dinov2",
        settings={"img_size": 224, "mlp_ratio": 2.66667 * 2, **_SWIGLU},
        dim=768,
        transform=_HIBOU,
        pooling=Pooling.CLASS,
        licence="Apache-2.0",
        mpp=0.5,
        rename=transformers_names,
        unused=("mask_token",),
        source=Source(
            "D. Nechaev et al., arXiv 2406.05074",
            hub="histai/hibou-b",
            gated=True,
            facts="hibou/models and example.ipynb of the authors' repository",
        ),
    ),
    EncoderRow(
        name="hibou-l",
        timm_name="vit_large_patch14_reg4_dinov2",
        # DINOv2 rounds two thirds of 4 x 1024 up to a multiple of 8: 2736, and two halves of it are packed.
        settings={"img_size": 224, "mlp_ratio": 2 * 2736 / 1024, **_SWIGLU},
        dim=1024,
        transform=_HIBOU,
        pooling=Pooling.CLASS,
        licence="Apache-2.0",
        mpp=0.5,
        rename=transformers_names,
        unused=("mask_token",),
        source=Source("D. Nechaev et al., arXiv 2406.05074", hub="histai/hibou-L", gated=True),
    ),
    _kaiko("kaiko-vits16", "vit_small_patch16_224", 384),
    _kaiko("kaiko-vits8", "vit_small_patch8_224", 384),
    _kaiko("kaiko-vitb16", "vit_base_patch16_224", 768),
    _kaiko("kaiko-vitb8", "vit_base_patch8_224", 768),
    # timm builds it for 518 pixels; the authors feed 224, with positions resampled as timm does.
    _kaiko(
        "kaiko-vitl14",
        "vit_large_patch14_reg4_dinov2",
        1024,
        settings={"img_size": 224},
        positions=Positions.ANTIALIASED,
        port="vit_large_patch14_reg4_224",
    ),
    EncoderRow(
        name="midnight-12k",
        timm_name="vit_giant_patch14_dinov2",  # no registers
        settings={"img_size": 224},
        dim=3072,
        transform=_KAIKO,
        pooling=Pooling.CLASS_AND_MEAN,
        licence="MIT",
        mpp=0.5,
        other_mpp=_SEVERAL,
        rename=transformers_names,
        unused=("mask_token",),
        # 1.14 billion parameters are those of a network for 518 pixels: transformers resamples at each pass.
        positions=Positions.PLAIN,
        source=Source(
            "M. Karasikov et al., MICCAI 2025, arXiv 2504.05186",
            hub="kaiko-ai/midnight",
            facts="README of the authors' repository (class token and mean for classification)",
        ),
    ),
    _lunit("lunit-vits16", "vit_small_patch16_224"),
    _lunit("lunit-vits8", "vit_small_patch8_224"),
    EncoderRow(
        name="ctranspath",
        timm_name="swin_tiny_patch4_window7_224",
        settings={"embed_layer": "ConvStem"},
        dim=768,
        transform=_IMAGENET_BILINEAR,
        pooling=Pooling.AVERAGE,
        licence="GPL-3.0, academic use",
        mpp=1.0,
        rename=swin_names,
        source=Source(
            "X. Wang et al., Medical Image Analysis 81 (2022), doi 10.1016/j.media.2022.102559",
            page="https://github.com/Xiyue-Wang/TransPath",
            facts="README and ctran.py of the authors' repository (1.0 microns per pixel first); "
            "CHIEF_CTransPath.pth, which is on the hub, holds the weights of CHIEF, another training",
        ),
    ),
)
"""In the order of docs/encoders.md."""
