"""Laws of the pyramids: every reader sees the same levels, places and numbers."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from heatmaps.colour import colour
from heatmaps.levels import level_sizes, shrink
from heatmaps.pyramid import write_colours, write_scores
from heatmaps.raster import Heatmap, paint
from wsi.errors import OutputError

OME = {"ome": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}


@pytest.fixture(scope="module")
def heatmap(scene):
    rng = np.random.default_rng(0)
    origins = np.stack(np.meshgrid(np.arange(17), np.arange(12)), axis=-1).reshape(-1, 2) * scene.tile
    origins = origins[rng.random(len(origins)) < 0.5].astype(int)
    return scene.paint(origins, rng.random((len(origins), 2)), ("tumour", 'a <&"é> b'))


@pytest.fixture(scope="module")
def marked(scene):
    return scene.marked()


def test_every_reader_sees_the_same_pyramid(tmp_path, heatmap, see):
    path = tmp_path / "s.heatmap.ome.tif"
    write_colours(path, heatmap, "tumour")
    seen = see(path)
    rows, columns = heatmap.shape
    sizes = level_sizes(columns, rows)
    assert len(sizes) >= 2
    assert [(level.shape[1], level.shape[0]) for level in seen.levels] == sizes
    assert seen.mpp == pytest.approx((heatmap.mpp, heatmap.mpp), rel=1e-6)
    for level, size in zip(seen.levels, sizes, strict=True):
        expected = colour(shrink(heatmap.channel("tumour"), size), vmin=0, vmax=1)
        np.testing.assert_array_equal(level, expected)


def test_a_tile_lies_where_it_lies_in_every_reader_and_level(tmp_path, scene, marked, see):
    path = tmp_path / "s.heatmap.ome.tif"
    write_colours(path, marked, "mark")
    seen = see(path)
    assert_in_place(scene, [(level != 255).any(axis=2) for level in seen.levels], seen.mpp)


def test_every_reader_of_floats_sees_the_same_numbers(tmp_path, heatmap, see_scores):
    path = tmp_path / "s.scores.ome.tif"
    write_scores(path, heatmap)
    seen = see_scores(path)
    rows, columns = heatmap.shape
    sizes = level_sizes(columns, rows)
    assert seen.mpp == pytest.approx((heatmap.mpp, heatmap.mpp), rel=1e-6)
    assert seen.channels in (None, list(heatmap.channels))
    assert len(seen.levels) == len(sizes)
    for level, size in zip(seen.levels, sizes, strict=True):
        expected = [shrink(heatmap.channel(name), size) for name in heatmap.channels]
        np.testing.assert_array_equal(level, expected)


def test_a_tiles_score_lies_where_it_lies_in_every_reader_of_floats(tmp_path, scene, marked, see_scores):
    path = tmp_path / "s.scores.ome.tif"
    write_scores(path, marked)
    seen = see_scores(path)
    assert_in_place(scene, [~np.isnan(level[0]) for level in seen.levels], seen.mpp)


def assert_in_place(scene, found, mpp):
    """The tile's middle is there to half a pixel, as a viewer has it: downsamples are ratios of sizes."""
    assert len(found) >= 2
    for level in found:
        for axis, along in ((1, 0), (0, 1)):
            there = np.nonzero(level.any(axis=along))[0]
            pixel = mpp[along] * found[0].shape[axis] / level.shape[axis]
            middle = (scene.mark[along] + scene.tile / 2) * scene.mpp
            assert abs((there.min() + there.max() + 1) / 2 * pixel - middle) <= 0.5 * pixel


def test_what_is_no_tile_is_transparent_and_white_where_nobody_knows_transparency(tmp_path, heatmap):
    path = tmp_path / "s.ome.tif"
    write_colours(path, heatmap, "tumour")
    with tifffile.TiffFile(path) as tif:
        assert tif.pages.first.extrasamples == (2,)  # not premultiplied
        for level in tif.series[0].levels:
            pixels = level.asarray()
            gap = np.isnan(shrink(heatmap.channel("tumour"), pixels.shape[1::-1]))
            np.testing.assert_array_equal(pixels[..., 3], np.where(gap, 0, 255))
            assert (pixels[gap] == (255, 255, 255, 0)).all()


def test_scores_are_read_back_as_they_were(tmp_path, heatmap):
    path = tmp_path / "s.scores.ome.tif"
    write_scores(path, heatmap)
    with tifffile.TiffFile(path) as tif:
        (series,) = tif.series
        assert series.axes == "CYX"
        np.testing.assert_array_equal(series.asarray(), np.moveaxis(np.asarray(heatmap.values), 2, 0))
        root = ET.fromstring(tif.ome_metadata)
        names = [channel.get("Name") for channel in root.iterfind(".//ome:Channel", OME)]
        assert tuple(names) == heatmap.channels
        (pixels,) = root.iterfind(".//ome:Pixels", OME)
        assert float(pixels.get("PhysicalSizeX")) == heatmap.mpp
        frame = {pair.get("K"): float(pair.text) for pair in root.iterfind(".//ome:M", OME)}
        assert set(frame.values()) == {heatmap.scale}
        assert set(frame) == {"Level0PixelsPerPixelX", "Level0PixelsPerPixelY"}
        assert tif.pages.first.predictor == 1  # none: Bio-Formats refuses the one for floats
        assert tif.pages.first.tile == (256, 256)
        sizes = level_sizes(*series.shape[:0:-1])
        assert [level.shape for level in series.levels] == [(2, height, width) for width, height in sizes]
        for level, size in zip(series.levels, sizes, strict=True):
            for plane, name in zip(level.asarray(), heatmap.channels, strict=True):
                np.testing.assert_array_equal(plane, shrink(heatmap.channel(name), size))


def test_one_channel_keeps_its_axis(tmp_path, marked):
    write_scores(tmp_path / "s.ome.tif", marked)
    stored = tifffile.imread(tmp_path / "s.ome.tif").reshape(1, *marked.values.shape[:2])
    np.testing.assert_array_equal(stored, np.moveaxis(np.asarray(marked.values), 2, 0))


def test_equal_heatmaps_give_equal_bytes_and_others_do_not(tmp_path, heatmap, halved):
    for write in (write_scores, lambda path, scores: write_colours(path, scores, "tumour")):
        texts = []
        for number, scores in enumerate((heatmap, heatmap, halved(heatmap))):
            path = tmp_path / f"{number}.ome.tif"
            write(path, scores)
            texts.append(path.read_bytes())
        assert texts[0] == texts[1]
        assert texts[0] != texts[2]


def test_the_range_is_stated_in_the_file(tmp_path, heatmap):
    path = tmp_path / "s.ome.tif"
    write_colours(path, heatmap, "tumour", vmin=0.25, vmax=0.75, background=(0, 0, 0))
    with tifffile.TiffFile(path) as tif:
        (image,) = ET.fromstring(tif.ome_metadata).iterfind("ome:Image", OME)
        assert image.get("Name") == "tumour, 0.25 to 0.75, viridis"
        written = tif.pages.first.asarray()
    expected = colour(heatmap.channel("tumour"), vmin=0.25, vmax=0.75, gap=(0, 0, 0))
    np.testing.assert_array_equal(written[..., :3], expected)


def test_a_meaning_is_stated_in_the_file(tmp_path, heatmap):
    write_colours(tmp_path / "s.ome.tif", heatmap, "tumour", meaning="rank within this slide")
    with tifffile.TiffFile(tmp_path / "s.ome.tif") as tif:
        (image,) = ET.fromstring(tif.ome_metadata).iterfind("ome:Image", OME)
    assert image.get("Name") == "tumour, rank within this slide, 0 to 1, viridis"


@pytest.mark.parametrize("write", ["scores", "colours"])
def test_empty_area_costs_nothing_but_its_place_in_the_table(tmp_path, write):
    def written(size):
        heatmap = paint(
            [[0, 0]],
            [[0.5]],
            channels=("mark",),
            tile=(64, 64),
            stride=(64, 64),
            slide_size=size,
            slide_mpp=1,
        )
        path = tmp_path / f"{size[0]}.ome.tif"
        write_scores(path, heatmap) if write == "scores" else write_colours(path, heatmap, "mark")
        return path

    small, large = written((1024, 1024)), written((8192, 8192))  # 512 and 4096 pixels
    entries = [(4096 // 256) ** 2 // 4**level for level in range(5)]
    assert large.stat().st_size < small.stat().st_size + 16 * sum(entries) + 4000
    with tifffile.TiffFile(large) as tif:
        base = tif.pages.first
        pages = [base, *base.pages]
        places = [set(zip(p.dataoffsets, p.databytecounts, strict=True)) for p in pages]
        assert 0 not in {count for page in places for _, count in page}
        shared = set.intersection(*(page for page in places if len(page) > 1))
        assert len(shared) == 1
        for page, found in zip(pages, places, strict=True):
            filled = found - shared
            assert len(filled) == 1, "the tile that holds a score"
            assert page.dataoffsets.count(next(iter(filled))[0]) == 1
        if write == "scores":
            pixels = base.asarray()
            assert np.isnan(pixels).sum() == pixels.size - 32 * 32


def test_a_heatmap_without_any_tile_is_a_file_too(tmp_path, scene, quick_readers):
    heatmap = scene.paint(np.zeros((0, 2)), np.zeros((0, 1)), ("mark",))
    write_scores(tmp_path / "s.ome.tif", heatmap)
    assert np.isnan(tifffile.imread(tmp_path / "s.ome.tif")).all()
    write_colours(tmp_path / "c.ome.tif", heatmap, "mark")
    for see in quick_readers:
        assert all((level == 255).all() for level in see(tmp_path / "c.ome.tif").levels)


@pytest.mark.parametrize("shape", [(1, 2), (1, 300), (513, 3), (256, 256), (257, 257)])
def test_odd_shapes_are_pyramids_too(tmp_path, shape, quick_readers):
    values = np.linspace(0, 1, shape[0] * shape[1], dtype=np.float32).reshape(*shape, 1)
    heatmap = Heatmap(values, ("score",), 8.0, 8.0, 2.0)
    path = tmp_path / "s.ome.tif"
    write_colours(path, heatmap, "score")
    sizes = level_sizes(shape[1], shape[0])
    for see in quick_readers:
        levels = see(path).levels
        assert [(level.shape[1], level.shape[0]) for level in levels] == sizes
        np.testing.assert_array_equal(levels[0], colour(values[:, :, 0], vmin=0, vmax=1))


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_levels_halve_and_end_small(width, height):
    sizes = level_sizes(width, height)
    assert sizes[0] == (width, height)
    assert len(sizes) >= 2
    assert max(sizes[-1]) <= 256
    assert len(sizes) == 2 or max(sizes[-2]) > 256
    for number, size in enumerate(sizes):
        for length, base in zip(size, (width, height), strict=True):
            assert base <= length * 2**number < base + 2**number


def test_shrinking_means_what_is_known_and_nothing_else():
    rng = np.random.default_rng(3)
    scores = rng.random((24, 40), np.float32)
    scores[rng.random(scores.shape) < 0.4] = np.nan
    scores[:8, :8] = np.nan
    small = shrink(scores, (10, 6))
    for row, column in np.ndindex(small.shape):
        block = scores[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        known = block[~np.isnan(block)]
        if known.size:
            assert small[row, column] == pytest.approx(known.mean(), rel=1e-5)
        else:
            assert np.isnan(small[row, column])


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 90), st.integers(2, 90), st.integers(1, 4))
def test_shrinking_keeps_the_mean_where_sizes_do_not_divide(rows, columns, step):
    scores = np.random.default_rng(rows * 100 + columns).random((rows, columns), np.float32)
    small = shrink(scores, (-(-columns // step), -(-rows // step)))
    assert small.mean() == pytest.approx(scores.mean(), rel=1e-4)


def test_what_cannot_be_written_leaves_no_file(tmp_path, heatmap):
    with pytest.raises(ValueError, match="no channel"):
        write_colours(tmp_path / "s.ome.tif", heatmap, "stroma")
    with pytest.raises(ValueError, match="vmin < vmax"):
        write_colours(tmp_path / "s.ome.tif", heatmap, "tumour", vmin=1, vmax=0)
    for write in (write_scores, lambda path, scores: write_colours(path, scores, "tumour")):
        with pytest.raises(OutputError, match="cannot be written"):
            write(tmp_path / "absent" / "s.ome.tif", heatmap)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_midway_keeps_the_old_file(tmp_path, heatmap, monkeypatch):
    path = tmp_path / "s.ome.tif"
    write_scores(path, heatmap)
    old = path.read_bytes()

    def full_disk(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("heatmaps.pyramid.make_levels", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        write_scores(path, heatmap)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.ome.tif"]
