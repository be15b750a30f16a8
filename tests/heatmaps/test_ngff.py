"""Laws of the OME-Zarr: valid by the specification's model, the numbers and places of the heatmap."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr

from heatmaps.levels import level_sizes, shrink
from heatmaps.ngff import write_ngff
from heatmaps.raster import paint
from heatmaps.settings import Ngff
from wsi.errors import OutputError, UsageError


@pytest.fixture(scope="module")
def heatmap(large_scene):
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(18, 34), np.arange(24)), axis=-1).reshape(-1, 2)
    origins = grid * large_scene.tile
    return large_scene.paint(origins.astype(int), rng.random((len(origins), 2)), ("tumour", 'a <&"é> b'))


@pytest.fixture(params=Ngff, ids=lambda version: version.value)
def version(request):
    return request.param


def multiscale(folder, version):
    attributes = dict(zarr.open_group(folder, mode="r").attrs)
    content = attributes if version is Ngff.V04 else attributes["ome"]
    (found,) = content["multiscales"]
    return found, content["omero"]


def levels(folder, version):
    """Each level's array, and where its pixels are along (c, y, x) as (first middle, side)."""
    for dataset in multiscale(folder, version)[0]["datasets"]:
        scale, translation = dataset["coordinateTransformations"]
        assert (scale["type"], translation["type"]) == ("scale", "translation")
        array = zarr.open_array(folder / dataset["path"], mode="r")
        yield np.asarray(array[:]), translation["translation"], scale["scale"]


def test_every_level_holds_the_means_of_the_heatmap(tmp_path, heatmap, version):
    write_ngff(tmp_path / "s.ome.zarr", heatmap, version=version)
    rows, columns = heatmap.shape
    sizes = level_sizes(columns, rows)
    found = list(levels(tmp_path / "s.ome.zarr", version))
    assert len(found) == len(sizes) >= 3
    for (pixels, _, _), size in zip(found, sizes, strict=True):
        assert pixels.dtype == np.float32
        expected = [shrink(heatmap.channel(name), size) for name in heatmap.channels]
        np.testing.assert_array_equal(pixels, expected)


def test_a_tile_lies_where_it_lies_in_every_level(tmp_path, large_scene, version):
    write_ngff(tmp_path / "s.ome.zarr", large_scene.marked(), version=version)
    for pixels, first, side in levels(tmp_path / "s.ome.zarr", version):
        for axis, along in ((1, 1), (2, 0)):
            there = np.nonzero((~np.isnan(pixels)).any(axis=(0, 3 - axis)))[0]
            middle = first[axis] + (there.min() + there.max()) / 2 * side[axis]
            # Of the slide's own pixels the first one's middle is at 0.
            true = (large_scene.mark[along] + large_scene.tile / 2 - 0.5) * large_scene.mpp
            assert abs(middle - true) <= 0.5 * side[axis]


def test_all_levels_span_the_slide_whose_first_pixel_is_at_the_origin(tmp_path, version):
    mpp_x, mpp_y = 0.25, 0.2
    stride = (128 / mpp_x, 128 / mpp_y)
    heatmap = paint(
        [[0, 0]],
        [[1.0]],
        channels=("score",),
        tile=stride,
        stride=stride,
        slide_size=(9999, 7777),
        slide_mpp=(mpp_x + mpp_y) / 2,
    )
    write_ngff(tmp_path / "s.ome.zarr", heatmap, version=version)
    for pixels, first, side in levels(tmp_path / "s.ome.zarr", version):
        assert (first[0], side[0]) == (0, 1)
        for axis, mpp in ((1, mpp_y), (2, mpp_x)):
            assert first[axis] - side[axis] / 2 == pytest.approx(-mpp / 2)
            assert side[axis] * pixels.shape[axis] == pytest.approx(heatmap.mpp * heatmap.shape[axis - 1])


def test_it_is_what_the_specification_says(tmp_path, heatmap, version):
    models = pytest.importorskip(
        "ome_zarr_models", reason="ome-zarr-models is not installed: it says what an OME-Zarr has to hold"
    )
    write_ngff(tmp_path / "s.ome.zarr", heatmap, version=version)
    image = models.open_ome_zarr(zarr.open_group(tmp_path / "s.ome.zarr", mode="r"), version=version.value)
    assert type(image).__name__ == "Image"
    assert image.ome_zarr_version == version.value


def test_channels_have_names_colours_and_a_window(tmp_path, heatmap, version):
    write_ngff(tmp_path / "s.ome.zarr", heatmap, version=version, vmin=-1, vmax=2)
    found, omero = multiscale(tmp_path / "s.ome.zarr", version)
    assert [axis["name"] for axis in found["axes"]] == ["c", "y", "x"]
    assert {axis.get("unit") for axis in found["axes"]} == {None, "micrometer"}
    assert [channel["label"] for channel in omero["channels"]] == list(heatmap.channels)
    assert len({channel["color"] for channel in omero["channels"]}) == 2
    assert [channel["active"] for channel in omero["channels"]] == [True, False]
    for channel in omero["channels"]:
        assert channel["window"] == {"min": -1, "max": 2, "start": -1, "end": 2}


def test_chunks_without_any_score_are_not_written_and_read_as_nan(tmp_path, heatmap, version):
    folder = tmp_path / "s.ome.zarr"
    write_ngff(folder, heatmap, version=version)
    chunks = [path for path in (folder / "0").rglob("*") if path.is_file() and path.name.isdigit()]
    assert 0 < len(chunks) < 2 * 2 * 3  # the left half of the slide has no tiles
    array = zarr.open_array(folder / "0", mode="r")
    assert np.isnan(array.fill_value)
    assert np.isnan(array[:, :, :512]).all()


def test_each_version_is_stored_as_its_readers_can_read_it(tmp_path, heatmap):
    for version in Ngff:
        write_ngff(tmp_path / version.value, heatmap, version=version)
    old = json.loads((tmp_path / "0.4" / "0" / ".zarray").read_text())
    assert old["compressor"]["id"] == "zlib"  # Java reads it without a native library
    assert old["dimension_separator"] == "/"
    assert old["fill_value"] == "NaN"
    new = json.loads((tmp_path / "0.5" / "0" / "zarr.json").read_text())
    assert new["dimension_names"] == ["c", "y", "x"]
    assert json.loads((tmp_path / "0.5" / "zarr.json").read_text())["zarr_format"] == 3


def test_equal_heatmaps_give_equal_bytes_and_others_do_not(tmp_path, heatmap, halved, version):
    texts = []
    for number, scores in enumerate((heatmap, heatmap, halved(heatmap))):
        folder = tmp_path / str(number)
        write_ngff(folder, scores, version=version)
        files = [path for path in folder.rglob("*") if path.is_file()]
        texts.append({path.relative_to(folder): path.read_bytes() for path in files})
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_what_cannot_be_written_is_said(tmp_path, heatmap):
    with pytest.raises(UsageError, match="vmin < vmax"):
        write_ngff(tmp_path / "s.ome.zarr", heatmap, vmin=1, vmax=0)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_ngff(tmp_path / "file" / "s.ome.zarr", heatmap)
