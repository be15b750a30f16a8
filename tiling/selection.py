"""`Selection`: where on a slide a user wants tiles, besides where the tissue is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from wsi.errors import UsageError
from wsi.regions import RegionFiles, Regions, read_regions, regions_mask, restrict
from wsi.slide import Slide
from wsi.tissue import TissueMask


@dataclass(frozen=True, eq=False)
class Selection:
    """A slide's included and excluded regions; with none of them, all of its tissue."""

    include: tuple[Regions, ...] = ()
    """Tiles lie in these, if there are any."""
    exclude: tuple[Regions, ...] = ()
    """And not in these."""
    is_tissue: bool = False
    """The included regions are the tissue: none is sought in them."""

    def as_json(self) -> dict[str, Any]:
        """All that decides which pixels are selected, for a recipe; nothing where all are."""
        if not self.include and not self.exclude:
            return {}
        return {
            "regions": {
                "include": [regions.as_json() for regions in self.include],
                "exclude": [regions.as_json() for regions in self.exclude],
                "is_tissue": self.is_tissue,
            }
        }

    def within(self, slide: Slide, tissue: TissueMask) -> TissueMask:
        """What is selected of the tissue."""
        if self.is_tissue:
            return regions_mask(slide, self.include, exclude=self.exclude, mpp=tissue.mpp)
        return restrict(tissue, include=self.include, exclude=self.exclude)


ALL_TISSUE = Selection()


@dataclass(frozen=True, slots=True)
class SelectionFiles:
    """The files that the selections of many slides are read from."""

    include: RegionFiles | None = None
    exclude: RegionFiles | None = None
    names: Sequence[str] = ()
    """Of the included regions only those of these classes; all if empty."""
    is_tissue: bool = False
    """See `Selection`."""

    def check(self, slide_ids: Collection[str]) -> None:
        """Raise `UsageError` before any work, where the files cannot be those of these slides."""
        for files in (self.include, self.exclude):
            if files:
                files.check(slide_ids)

    def read(self, slide: Slide, slide_id: str) -> Selection:
        """The selection of one slide. Without an excluding file for it, nothing is excluded.

        Raises
        ------
        UsageError
            A file cannot be read, or lies off the slide; or none says what is included.
        """
        include = self._read(self.include, slide, slide_id, self.names)
        if self.include and not include:
            raise UsageError(
                f"holds no regions for the slide {slide_id!r}",
                path=self.include.source,
                action=f"Add {slide_id}.geojson or {slide_id}.png there, or leave the slide out",
            )
        return Selection(
            include, self._read(self.exclude, slide, slide_id, ()), self.is_tissue and bool(include)
        )

    def _read(
        self, files: RegionFiles | None, slide: Slide, slide_id: str, names: Sequence[str]
    ) -> tuple[Regions, ...]:
        path = files.find(slide_id) if files else None
        if files is None or path is None:
            return ()
        origin = files.origin.of(slide.bounds_origin)
        return (read_regions(path, slide_size=slide.size, bounds_origin=origin, names=names),)


EVERYWHERE = SelectionFiles()
"""All tissue of every slide."""
