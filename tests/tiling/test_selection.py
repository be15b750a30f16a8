"""Laws of selections: files of regions count from where the user says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiling.selection import SelectionFiles
from wsi.annotations import Origin
from wsi.regions import RegionFiles
from wsi.slide import Slide
from wsi.synthetic import write_slide

BOX = [[100, 50], [200, 50], [200, 150], [100, 150], [100, 50]]


@pytest.mark.parametrize(("origin", "corner"), [(Origin.BOUNDS, (220, 90)), (Origin.SLIDE, (100, 50))])
@pytest.mark.parametrize("which", ["include", "exclude"])
def test_regions_move_by_the_bounds_of_a_slide_that_qupath_crops(
    tmp_path: Path, origin: Origin, corner: tuple[int, int], which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slide, "bounds_origin", (120, 40))
    write_slide(tmp_path / "s.svs", seed=1, lesion=False, size=(512, 512))
    geometry = {"type": "Polygon", "coordinates": [BOX]}
    feature = {"type": "Feature", "geometry": geometry, "properties": {}}
    (tmp_path / "s.geojson").write_text(json.dumps(feature))
    files = SelectionFiles(**{which: RegionFiles(tmp_path / "s.geojson", origin)})
    with Slide(tmp_path / "s.svs") as slide:
        (regions,) = getattr(files.read(slide, "s"), which)
    (area,) = regions.area
    assert area.polygons[0].extent[:2] == corner
    assert tuple(regions.as_json()["bounds_origin"]) == origin.of((120, 40))
