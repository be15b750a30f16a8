"""Regions: set operations on the tissue's grid, masks of every kind of PNG, and files found by name."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from wsi import regions
from wsi.annotations import Annotation, Origin
from wsi.errors import ResolutionError, UsageError
from wsi.polygons import Polygon
from wsi.regions import MaskImage, RegionFiles, Regions, read_mask, read_regions, regions_mask, restrict
from wsi.slide import Slide
from wsi.synthetic import write_slide
from wsi.tissue import TissueMask, find_tissue

SIZE = (1280, 960)
GRID = (30, 40)
TISSUE = arrays(np.bool_, GRID)
BOX = st.tuples(st.integers(-200, 1400), st.integers(-200, 1100), st.integers(1, 900), st.integers(1, 700))
BOXES = st.lists(BOX, min_size=1, max_size=4)


def tissue(mask):
    return TissueMask(mask=mask, scale_x=32.0, scale_y=32.0, mpp=8.0)


def ring(box):
    x, y, width, height = box
    right, bottom = x + width, y + height
    return np.array([[x, y], [right, y], [right, bottom], [x, bottom], [x, y]], np.float64)


def drawn(*boxes, name=None):
    area = tuple(Annotation((Polygon(ring(box)),), name) for box in boxes)
    return Regions("r.geojson", "0" * 64, area)


def covered(*boxes):
    """The reference: every centre against every box."""
    y, x = (np.indices(GRID) + 0.5) * 32
    found = [(x >= a) & (x < a + w) & (y >= b) & (y < b + h) for a, b, w, h in boxes]
    return np.logical_or.reduce(found)


def write_geojson(path, *features):
    members = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring(box).tolist()]},
            "properties": {"objectType": "annotation", "classification": name},
        }
        for box, name in features
    ]
    data = json.dumps({"type": "FeatureCollection", "features": members}).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


# Sets ----------------------------------------------------------------------------------------------------


@given(TISSUE, BOXES, BOXES)
def test_tissue_stays_where_it_is_included_and_not_excluded(mask, inside, outside):
    before = mask.copy()
    found = restrict(tissue(mask), include=[drawn(*inside)], exclude=[drawn(*outside)])
    assert (found.mask == mask & covered(*inside) & ~covered(*outside)).all()
    assert (mask == before).all()
    assert (found.scale_x, found.scale_y, found.mpp) == (32, 32, 8)


@given(TISSUE, BOXES)
def test_files_are_a_union_as_their_polygons_are(mask, boxes):
    together, apart = [drawn(*boxes)], [drawn(box) for box in reversed(boxes)]
    for side in ("include", "exclude"):
        one, other = (restrict(tissue(mask), **{side: files}).mask for files in (together, apart))
        assert (one == other).all()


@given(TISSUE, BOXES)
def test_included_and_excluded_part_the_tissue(mask, boxes):
    inside = restrict(tissue(mask), include=[drawn(*boxes)]).mask
    outside = restrict(tissue(mask), exclude=[drawn(*boxes)]).mask
    assert (inside ^ outside == mask).all()
    assert not (inside & outside).any()


def test_without_regions_nothing_changes_and_without_centres_nothing_stays():
    mask = tissue(np.eye(*GRID, dtype=bool))
    assert (restrict(mask).mask == mask.mask).all()
    assert restrict(mask).mask is not mask.mask
    assert not restrict(mask, include=[drawn((17, 17, 10, 10))]).mask.any()  # between two centres


def test_regions_alone_lie_on_the_grid_of_the_tissue(tmp_path):
    made = write_slide(tmp_path / "slide.svs", seed=5, lesion=False, size=(1000, 700), mpp=0.47)
    include, exclude = drawn((100, 100, 500, 400)), drawn((300, 0, 100, 700))
    with Slide(made.path) as slide:
        found = find_tissue(slide)
        alone = regions_mask(slide, [include], exclude=[exclude])
        for name in ("scale_x", "scale_y", "mpp"):
            assert getattr(alone, name) == getattr(found, name)
        assert alone.mask.shape == found.mask.shape
        both = restrict(found, include=[include], exclude=[exclude])
        assert (both.mask == alone.mask & found.mask).all()
        assert regions_mask(slide, [include], mpp=4.0).area_mm2 == pytest.approx(
            500 * 400 * 0.47**2 / 1e6, rel=0.05
        )
        with pytest.raises(UsageError, match="--include"):
            regions_mask(slide, [])


def test_regions_need_a_resolution(tmp_path):
    made = write_slide(tmp_path / "slide.tif", seed=5, lesion=False, size=(512, 512), mpp=None)
    with Slide(made.path) as slide, pytest.raises(ResolutionError):
        regions_mask(slide, [drawn((0, 0, 9, 9))])


# GeoJSON -------------------------------------------------------------------------------------------------


def test_classes_are_chosen_by_name_and_enter_the_recipe(tmp_path):
    tumour, benign, other = (0, 0, 300, 300), (640, 0, 320, 320), (0, 640, 100, 100)
    path = write_geojson(
        tmp_path / "s.geojson", (tumour, "Tumor"), (benign, "Benign"), (other, None), (other, "Tumor: Other")
    )
    for names, boxes in {
        (): (tumour, benign, other),
        ("Tumor",): (tumour,),
        (" Tumor", "Benign"): (tumour, benign),
        ("Tumor", "not on this slide"): (tumour,),
        ("Tumor: Other",): (other,),
    }.items():
        found = read_regions(path, slide_size=SIZE, names=names)
        assert (found.fill(shape=GRID, scale_x=32, scale_y=32) == covered(*boxes)).all()
        assert found.as_json() == {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "kind": "geojson",
            "names": sorted(name.strip() for name in names),
            "bounds_origin": [0, 0],
        }
        assert json.loads(json.dumps(found.as_json())) == found.as_json()
    with pytest.raises(UsageError, match=r"classified as Stroma; there are \(no class\) \(1\), Benign \(1\)"):
        read_regions(path, slide_size=SIZE, names=["Stroma"])
    with pytest.raises(ValueError, match="sequence of names"):
        read_regions(path, slide_size=SIZE, names="Tumor")


@pytest.mark.parametrize("path", ["s.geojson", "s.geojson.gz", "s.json", "s.anything"])
def test_the_bounds_move_the_regions(tmp_path, path):
    path = write_geojson(tmp_path / path, ((0, 0, 320, 320), None))
    found = read_regions(path, slide_size=SIZE, bounds_origin=(640, 320))
    assert (found.fill(shape=GRID, scale_x=32, scale_y=32) == covered((640, 320, 320, 320))).all()
    assert found.as_json()["bounds_origin"] == [640, 320]


def test_regions_partly_off_the_slide_are_clipped_and_wholly_off_it_refused(tmp_path):
    beyond, across = (5000, 100, 300, 300), (1200, 900, 300, 300)
    path = write_geojson(tmp_path / "s.geojson", (beyond, "Tumor"), (across, "Tumor"), (beyond, "Far"))
    found = read_regions(path, slide_size=SIZE)
    assert (found.fill(shape=GRID, scale_x=32, scale_y=32) == covered(across)).all()
    with pytest.raises(UsageError, match="lie off the slide") as caught:
        read_regions(path, slide_size=SIZE, names=["Far"])
    assert caught.value.path == str(path)
    for figure in ("(1)", "x 5000 to 5300", "y 100 to 400", "x 0 to 1280", "y 0 to 960"):
        assert figure in caught.value.reason
    with pytest.raises(UsageError, match="lie off the slide"):
        read_regions(path, slide_size=SIZE, bounds_origin=(-9000, 0))


# PNG -----------------------------------------------------------------------------------------------------


def encoded(image):
    done, data = cv2.imencode(".png", image)
    assert done
    return data.tobytes()


def palette(inside, *, clear=None):
    """0 and 1 as black and red; the numbers of a palette say nothing, its colours count."""
    image = Image.fromarray(inside.astype(np.uint8), "L").convert("P")
    image.putdata(inside.astype(np.uint8).ravel().tolist())
    image.putpalette([0, 0, 0, 255, 0, 0] if clear is None else [0, 255, 0, 255, 0, 0])
    stream = io.BytesIO()
    image.save(stream, "PNG", **({} if clear is None else {"transparency": bytes([clear, 255])}))
    return stream.getvalue()


def one_bit(inside):
    stream = io.BytesIO()
    Image.fromarray(inside).save(stream, "PNG")
    return stream.getvalue()


def stacked(inside, *values):
    return np.stack([inside * np.uint8(value) for value in values], axis=-1)


KINDS = {
    "grey": lambda inside: encoded(inside * np.uint8(1)),
    "white": lambda inside: encoded(inside * np.uint8(255)),
    "16 bits": lambda inside: encoded(inside * np.uint16(256)),  # the low byte is 0
    "16 bits, faint": lambda inside: encoded(inside * np.uint16(1)),
    "1 bit": one_bit,
    "blue": lambda inside: encoded(stacked(inside, 9, 0, 0)),
    "red": lambda inside: encoded(stacked(inside, 0, 0, 9)),
    "palette": palette,
    "palette, clear": lambda inside: palette(inside, clear=0),
    "opaque": lambda inside: encoded(
        np.dstack([stacked(inside, 0, 5, 0), np.full(inside.shape, 255, np.uint8)])
    ),
    "clear": lambda inside: encoded(
        np.dstack([np.full((*inside.shape, 3), 255, np.uint8), inside * np.uint8(1)])
    ),
    "16 bits, clear": lambda inside: encoded(
        np.dstack([np.full((*inside.shape, 3), 7, np.uint16), inside * np.uint16(1)])
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_png_says_the_same(tmp_path, kind):
    inside = np.random.default_rng(3).random((48, 64)) < 0.4
    (tmp_path / "m.png").write_bytes(KINDS[kind](inside))
    found = read_mask(tmp_path / "m.png", SIZE)
    assert (found.mask == inside).all()
    assert found.mask.dtype == np.bool_


@given(arrays(np.bool_, st.tuples(st.integers(1, 70), st.integers(1, 90))))
def test_a_mask_of_any_size_is_looked_up_under_each_centre(mask):
    found = MaskImage(mask, SIZE).fill(shape=(31, 41), scale_x=32, scale_y=32)
    for row, column in np.ndindex(31, 41):
        x, y = column * 32 + 16, row * 32 + 16
        under = (
            x < SIZE[0] and y < SIZE[1] and mask[y * mask.shape[0] // SIZE[1], x * mask.shape[1] // SIZE[0]]
        )
        assert found[row, column] == under


def test_a_mask_restricts_as_polygons_do(tmp_path):
    (tmp_path / "m.png").write_bytes(encoded(covered((320, 320, 320, 320)) * np.uint8(255)))
    found = read_regions(tmp_path / "m.png", slide_size=SIZE, bounds_origin=(64, 64))
    whole = tissue(np.ones(GRID, bool))
    assert (restrict(whole, include=[found]).mask == covered((320, 320, 320, 320))).all()
    assert (restrict(whole, exclude=[found, drawn((0, 0, 64, 64))]).mask).sum() == 1200 - 100 - 4
    assert found.as_json() == {
        "sha256": hashlib.sha256((tmp_path / "m.png").read_bytes()).hexdigest(),
        "kind": "png",
        "names": [],
    }
    with pytest.raises(UsageError, match="no classes such as Tumor"):
        read_regions(tmp_path / "m.png", slide_size=SIZE, names=["Tumor"])


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((480, 640), True), ((479, 640), True), ((481, 640), True), ((477, 640), False), ((480, 480), False)],
)
def test_the_aspect_is_the_slides_within_a_pixel(tmp_path, shape, fits):
    (tmp_path / "m.png").write_bytes(encoded(np.ones(shape, np.uint8)))
    if fits:
        assert read_mask(tmp_path / "m.png", SIZE).mask.shape == shape
        return
    with pytest.raises(UsageError, match=f"has {shape[1]} x {shape[0]} px.*1280 x 960"):
        read_mask(tmp_path / "m.png", SIZE)


def png_header(width, height, *, depth=8, colour=0):
    content = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + content + zlib.crc32(content).to_bytes(4, "big")


SOUND = encoded(np.random.default_rng(0).integers(1, 255, (48, 64), dtype=np.uint8))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is not a PNG"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "is not a PNG"),
        (SOUND[:20], "is not a PNG, or damaged"),
        (SOUND[:1000], "is a damaged or cut PNG"),
        (SOUND[:1500] + bytes([SOUND[1500] ^ 4]) + SOUND[1501:], "is a damaged or cut PNG"),
        (png_header(20_000, 15_000), "at most 200 million pixels"),
        (png_header(16_000, 12_000, depth=16, colour=6), "1464 MiB decoded"),
        (png_header(64, 48), "is a damaged or cut PNG"),
        (png_header(64, 48, colour=9), "is not a PNG, or damaged"),
        (encoded(np.zeros((48, 64), np.uint8)), "is black or clear all over"),
    ],
)
def test_masks_that_cannot_be_used_are_refused_by_name(tmp_path, capfd, data, reason):
    (tmp_path / "m.png").write_bytes(data)
    with pytest.raises(UsageError, match=reason) as caught:
        read_mask(tmp_path / "m.png", SIZE)
    assert caught.value.path == str(tmp_path / "m.png")
    assert caught.value.action
    assert capfd.readouterr() == ("", "")  # the library is silent


def test_a_mask_with_too_many_bytes_is_refused(tmp_path, monkeypatch):
    (tmp_path / "m.png").write_bytes(SOUND)
    monkeypatch.setattr(regions, "LARGEST_MASK", 48 * 64 - 1)
    with pytest.raises(UsageError, match="has 64 x 48 px"):
        read_mask(tmp_path / "m.png", SIZE)


# Files ---------------------------------------------------------------------------------------------------


def test_a_slides_file_is_found_by_its_name(tmp_path):
    for name in ("a.geojson", "b.geojson.gz", "c.json", "d.png", "a.b.json", "notes.txt"):
        (tmp_path / name).touch()
    files = RegionFiles(tmp_path)
    found = {slide: files.find(slide) for slide in ("a", "b", "c", "d", "a.b", "e", "notes")}
    assert {slide: path and path.name for slide, path in found.items()} == {
        "a": "a.geojson", "b": "b.geojson.gz", "c": "c.json", "d": "d.png", "a.b": "a.b.json",
        "e": None, "notes": None,
    }  # fmt: skip
    files.check(["a", "e"])
    with pytest.raises(UsageError, match=r"any of the slides.*A1.geojson"):
        files.check(["e", "f"])


def test_two_files_for_one_slide_are_refused(tmp_path):
    (tmp_path / "a.geojson").touch()
    (tmp_path / "a.png").touch()
    with pytest.raises(UsageError, match=r"several region files for the slide a: a\.geojson, a\.png"):
        RegionFiles(tmp_path).find("a")


def test_a_file_is_for_one_slide(tmp_path):
    (tmp_path / "any.geojson").touch()
    files = RegionFiles(tmp_path / "any.geojson")
    assert files.find("a") == tmp_path / "any.geojson"
    files.check(["a"])
    with pytest.raises(UsageError, match="one region file for 2 slides"):
        files.check(["a", "b"])
    with pytest.raises(UsageError, match="does not exist"):
        RegionFiles(tmp_path / "missing")


def test_values_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        drawn((0, 0, 1, 1)).sha256 = ""


def test_where_files_count_from_is_said_once_for_all_of_them(tmp_path):
    assert RegionFiles(tmp_path).origin is Origin.BOUNDS
    assert Origin.BOUNDS.of((120, 40)) == (120, 40)
    assert Origin.SLIDE.of((120, 40)) == (0, 0)
