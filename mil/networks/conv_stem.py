"""CTransPath's stem: three convolutions in place of a Swin transformer's patch embedding."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ConvStem(nn.Module):
    """Four-fold reduction by two 3 x 3 convolutions of stride 2, then a projection.

    X. Wang et al., "Transformer-based unsupervised contrastive learning for histopathological image
    classification", Medical Image Analysis 81 (2022), 102559, section 3.2, whose stem is that of T. Xiao et
    al., "Early convolutions help transformers see better" (2021). Names of the tensors are those of the
    authors' checkpoint: ``proj.0`` to ``proj.6`` and ``norm``.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: type[nn.Module] | None = None,
        **_: Any,  # timm also names device, layout and strictness of its own embedding
    ) -> None:
        super().__init__()
        assert patch_size == 4, "two convolutions of stride 2"
        assert embed_dim % 8 == 0
        narrow, wide = embed_dim // 8, embed_dim // 4
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid_size = (height // patch_size, width // patch_size)
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, narrow, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(inplace=True),
            nn.Conv2d(narrow, wide, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, embed_dim, kernel_size=1),
        )
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Embed ``(b, 3, s, s)`` to ``(b, s/4, s/4, embed_dim)``, channels last as timm's Swin has them."""
        x = self.proj(x).permute(0, 2, 3, 1)  # (b, s/4, s/4, d)
        normed = self.norm(x)
        assert isinstance(normed, Tensor)
        return normed
