"""Adaptors: small modules that change the features of a bag before a head sees them. One file each."""

from __future__ import annotations

from mil.adaptors.cbam import CBAM
from mil.adaptors.channel_attention import ChannelAttention
from mil.adaptors.contract import Adaptor
from mil.adaptors.cross_scale import CrossScale
from mil.adaptors.feature_pyramid import FeaturePyramid
from mil.adaptors.principal import Principal
from mil.adaptors.unit_length import UnitLength

__all__ = ["ADAPTORS", "Adaptor"]

_ADAPTORS: tuple[type[Adaptor], ...] = (
    ChannelAttention,
    CBAM,
    FeaturePyramid,
    CrossScale,
    Principal,
    UnitLength,
)

ADAPTORS: dict[str, type[Adaptor]] = {adaptor.name: adaptor for adaptor in _ADAPTORS}
"""Adaptors by name; docs/heads.md says which when."""
