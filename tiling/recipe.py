"""`CutRecipe`: everything that decides which tiles come out of a slide, and their pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tiling.codecs import Raw, TileCodec, codec_from_json
from tiling.grid import TileSpec
from tiling.identity import FileIdentity
from tiling.quality import QualityFilter
from tiling.stain import Macenko, StainMethod, method_from_json
from wsi.errors import UsageError
from wsi.slide import Slide
from wsi.tissue import HlsThresholds, SaturationOtsu, TissueMethod

SHARD_BYTES = 48 << 20
"""Pixels in one file: 256 tiles of 256 px. Memory is a few times that, whatever the tile or the slide."""


@dataclass(frozen=True, slots=True)
class CutRecipe:
    """How slides are cut; the same for all of them."""

    spec: TileSpec = field(default_factory=TileSpec)
    """Size, resolution and overlap."""
    tissue: TissueMethod = field(default_factory=HlsThresholds)
    """How tissue is told from glass."""
    min_tissue: float = 0.25
    """Share of a tile that must be tissue."""
    stain: StainMethod | None = field(default_factory=Macenko)
    """How colours are normalised; None leaves pixels alone."""
    quality: QualityFilter = field(default_factory=QualityFilter)
    """Which tiles are dropped once their pixels were seen."""
    pixels: TileCodec | None = field(default_factory=Raw)
    """How pixels are stored; None for places only: they are then read from the slide when wanted. They are
    looked at all the same, so that the same tiles are kept and none fails later."""
    exact: bool = False
    """Decode compressed tiles whole, also where half scale is as good; see `wsi.reader`."""
    tiles_per_shard: int | None = None
    """Tiles in one file: the unit of work and of resumption. None: as many as `SHARD_BYTES` hold."""

    def __post_init__(self) -> None:
        if not 0 < self.min_tissue <= 1:
            raise ValueError(f"min_tissue is {self.min_tissue:g}; it must be above 0 and at most 1")
        if self.tiles_per_shard is not None and self.tiles_per_shard < 1:
            raise ValueError(f"tiles_per_shard is {self.tiles_per_shard}; it must be at least 1")

    @property
    def shard_tiles(self) -> int:
        """Tiles in one file."""
        return self.tiles_per_shard or max(1, SHARD_BYTES // (3 * self.spec.size_px**2))

    def settings(self) -> dict[str, Any]:
        """As JSON; `recipe_from_json` reads it."""
        return {
            "spec": asdict(self.spec),
            "tissue": {"method": type(self.tissue).__name__, **asdict(self.tissue)},
            "min_tissue": self.min_tissue,
            "stain": self.stain.as_json() if self.stain else None,
            "quality": self.quality.as_json(),
            "pixels": self.pixels.as_json() if self.pixels else None,
            "exact": self.exact,
        }

    def as_json(self, slide: Slide, identity: FileIdentity) -> dict[str, Any]:
        """The recipe for one slide, as it is stored and compared."""
        return {
            "step": "tiles",
            "slide": asdict(identity),
            "resolution": asdict(slide.require_resolution()),
            "tiles_per_shard": self.shard_tiles,
            **self.settings(),
        }


def recipe_from_json(content: Mapping[str, Any]) -> CutRecipe:
    """The recipe of stored `CutRecipe.settings`: to cut other slides in the same way.

    Raises
    ------
    UsageError
        This version knows no such method.
    """
    methods = {method.__name__: method for method in (HlsThresholds, SaturationOtsu)}
    try:
        tissue, stain, pixels = dict(content["tissue"]), content["stain"], content["pixels"]
        return CutRecipe(
            spec=TileSpec(**content["spec"]),
            tissue=methods[tissue.pop("method")](**tissue),
            min_tissue=content["min_tissue"],
            stain=method_from_json(stain) if stain else None,
            quality=QualityFilter(**content["quality"]),
            pixels=codec_from_json(pixels) if pixels else None,
            exact=content["exact"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"slides cannot be cut as it says ({error})", action="Use the version of Microtome that wrote it"
        ) from error
