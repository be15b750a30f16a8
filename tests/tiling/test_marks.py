"""Laws of marks: a tile has the class that the user gave its centre, and what contradicts that is named."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import itertools
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiling.class_names import CHANNELS, fault_of, look_alikes
from tiling.marks import Marks, check_names, read_marks, require_classes
from tiling.output import Output
from tiling.store import TileStore, make_array
from wsi.annotations import Annotation, Origin
from wsi.errors import UsageError
from wsi.found import as_found
from wsi.geojson import write_annotations
from wsi.polygons import Polygon

SIDE = 64
COLUMNS, ROWS = 12, 8
SIZE = (COLUMNS * SIDE, ROWS * SIDE)
NO_TISSUE, PEN, BLURRED = (11, 7), (10, 7), (9, 7)
"""Places of the grid, (column, row), that hold no tile."""


def make_store(
    root: Path, slide_id: str = "s1", *, bounds: tuple[float, float] = (0, 0), stride: int = SIDE
) -> TileStore:
    """Tiles of 64 level-0 px on all of the slide but three places in its corner."""
    store = TileStore(Output(root / "out"), slide_id)
    recipe = {"step": "tiles", "spec": {"size_px": 32, "mpp": 0.5, "overlap_px": 0}, "pixels": None}
    with store.output.lock():
        draft = store.begin("tiles", recipe)
    assert draft is not None
    places = list(itertools.product(range(ROWS), range(COLUMNS)))
    kept = [(x * stride, y * stride) for y, x in places if (x, y) not in {NO_TISSUE, PEN, BLURRED}]
    dropped = [(x * stride, y * stride) for x, y in (PEN, BLURRED)]
    arrays = {"origins": kept, "dropped_origins": dropped, "dropped_reasons": [3, 2]}
    for name, content in arrays.items():
        values = np.array(content, np.int32)
        make_array(
            draft, name, shape=values.shape, rows_per_file=len(values), dtype=np.int32, fill=-1
        ).write_all(values)
    draft.publish(
        {
            "tiles": len(kept),
            "slide_size": list(SIZE),
            "bounds_origin": list(bounds),
            "tile_level0": [float(SIDE), float(SIDE)],
            "stride_level0": [float(stride)] * 2,
            "measures": [],
            "reasons": ["", "damaged", "sharpness", "pen"],
            "dropped": {"pen": 1, "sharpness": 1},
        }
    )
    return store


@pytest.fixture
def store(tmp_path: Path) -> TileStore:
    return make_store(tmp_path)


def box(left: float, top: float, right: float, bottom: float) -> list[list[list[float]]]:
    return [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]]


def feature(class_name: str | None, rings: list[list[list[float]]], **properties: Any) -> dict[str, Any]:
    classed = {"classification": {"name": class_name, "color": [1, 2, 3]}} if class_name else {}
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {"objectType": "annotation"} | classed | properties,
    }


def written(folder: Path, *features: dict[str, Any], name: str = "s1.geojson") -> Path:
    path = folder / name
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def tile(column: int, row: int, wide: int = 1, high: int = 1) -> list[list[list[float]]]:
    """The outline of a block of tiles."""
    return box(column * SIDE, row * SIDE, (column + wide) * SIDE, (row + high) * SIDE)


def row_of(column: int, row: int) -> int:
    return row * COLUMNS + column


TUMOR, STROMA = feature("Tumor", tile(0, 0, 3, 2)), feature("Stroma", tile(6, 2, 2, 2))


def refused(path: Path, store: TileStore, match: str, **words: Any) -> UsageError:
    with pytest.raises(UsageError, match=match) as caught:
        read_marks(path, store, **words)
    assert caught.value.action
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


# What is marked --------------------------------------------------------------------------------------------


def test_tiles_have_the_class_of_the_annotation_that_they_lie_in(tmp_path: Path, store: TileStore) -> None:
    path = written(tmp_path, TUMOR, STROMA)
    marks = read_marks(path, store)
    assert marks.slide_id == "s1"
    assert marks.classes == ("Stroma", "Tumor")
    tumor = [row_of(x, y) for y in (0, 1) for x in (0, 1, 2)]
    stroma = [row_of(x, y) for y in (2, 3) for x in (6, 7)]
    assert marks.rows.tolist() == tumor + stroma
    assert marks.labels.tolist() == [1] * 6 + [0] * 4
    assert marks.regions.tolist() == [0] * 6 + [1] * 4
    assert {values.dtype for values in (marks.rows, marks.labels, marks.regions)} == {np.dtype(np.int64)}
    assert marks.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert marks.tile_um == 16


def test_a_tile_is_marked_where_its_centre_is_and_not_where_its_edge_is(
    tmp_path: Path, store: TileStore
) -> None:
    """A circle: every centre by its distance."""
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    ring = np.stack([300 + 150 * np.cos(angle), 250 + 150 * np.sin(angle)], axis=1).tolist()
    marks = read_marks(written(tmp_path, feature("Tumor", [[*ring, ring[0]]])), store)
    centres = store.origins + SIDE / 2
    assert marks.rows.tolist() == np.flatnonzero(np.hypot(*(centres - (300, 250)).T) < 150).tolist()


def test_a_hole_is_not_marked(tmp_path: Path, store: TileStore) -> None:
    ring = feature("Tumor", [*tile(0, 0, 3, 3), *tile(1, 1)])
    assert row_of(1, 1) not in read_marks(written(tmp_path, ring), store).rows
    assert len(read_marks(written(tmp_path, ring), store).rows) == 8


def test_a_scribble_smaller_than_a_tile_marks_the_tile_that_holds_its_middle(
    tmp_path: Path, store: TileStore
) -> None:
    path = written(tmp_path, feature("Tumor", box(2, 3, 9, 8)), feature("Stroma", box(120, 60, 140, 66)))
    marks = read_marks(path, store)
    assert marks.rows.tolist() == [row_of(0, 0), row_of(2, 0)]  # 130 of 128 to 192; 63 of 0 to 64
    assert marks.labels.tolist() == [1, 0]
    thin = feature("Tumor", box(0, 1, 300, 2))  # over five tiles, and over no centre
    assert read_marks(written(tmp_path, thin), store).rows.tolist() == [row_of(2, 0)]


def test_of_tiles_that_overlap_a_scribble_marks_the_nearest(tmp_path: Path) -> None:
    store = make_store(tmp_path, stride=32)
    marks = read_marks(written(tmp_path, feature("Tumor", box(67, 67, 69, 69))), store)
    assert store.origins[marks.rows].tolist() == [[32, 32]]  # its centre is (64, 64)


def test_coordinates_count_from_the_bounds_as_in_qupath(tmp_path: Path) -> None:
    store = make_store(tmp_path, bounds=(128, 64))
    path = written(tmp_path, feature("Tumor", tile(0, 0)))
    assert read_marks(path, store).rows.tolist() == [row_of(2, 1)]
    content = json.loads(path.read_text()) | {"bounds_origin": [0, 0]}
    path.write_text(json.dumps(content))
    assert read_marks(path, store).rows.tolist() == [row_of(0, 0)]


def test_annotations_of_one_class_may_overlap_and_a_tile_counts_once(
    tmp_path: Path, store: TileStore
) -> None:
    again = feature("Tumor", tile(1, 0, 4, 1))
    marks = read_marks(written(tmp_path, feature("Tumor", tile(0, 0, 3, 1)), again), store)
    assert marks.rows.tolist() == [0, 1, 2, 3, 4]
    assert marks.regions.tolist() == [0, 0, 0, 1, 1]


def test_names_are_renamed_and_brought_to_one_form_before_anything_else(
    tmp_path: Path, store: TileStore
) -> None:
    path = written(
        tmp_path,
        feature("Tumour", tile(0, 0)),
        feature("Tumor", tile(1, 0)),
        feature("Region*", tile(2, 0)),
        feature("Ne\u0301crose ", tile(3, 0)),
    )
    marks = read_marks(path, store, rename={"Tumour": "Tumor", "Region*": "Stroma"})
    assert marks.classes == ("N\u00e9crose", "Stroma", "Tumor")
    assert marks.labels.tolist() == [2, 2, 1, 0]


def test_what_is_no_users_word_is_passed_over_with_a_warning(
    tmp_path: Path, store: TileStore, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(
        tmp_path,
        feature(None, tile(0, 0, 12, 8)),
        feature("Ignore*", tile(5, 5)),
        feature("Stroma", tile(0, 0), objectType="tile"),
        TUMOR,
    )
    with caplog.at_level(logging.WARNING):
        marks = read_marks(path, store)
    assert marks.classes == ("Tumor",)
    assert marks.regions.tolist() == [3] * 6  # as `read_annotations` counts
    assert "1 of class Ignore*, 1 of type tile, 1 without a class" in caplog.text
    assert str(path) in caplog.text


def test_gzip_is_read_too(tmp_path: Path, store: TileStore) -> None:
    plain = written(tmp_path, TUMOR)
    packed = tmp_path / "s1.geojson.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert (read_marks(packed, store).rows == read_marks(plain, store).rows).all()


# What is refused -------------------------------------------------------------------------------------------


def test_no_class_at_all_is_refused(tmp_path: Path, store: TileStore) -> None:
    path = written(tmp_path, feature(None, tile(0, 0)), feature("Tumor", tile(1, 0), objectType="detection"))
    error = refused(path, store, "holds no annotation with a class")
    assert "1 of type detection, 1 without a class" in error.reason
    assert error.path == str(path)
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    refused(tmp_path / "mask.png", store, "is a PNG")


@pytest.mark.parametrize("name", ["Uncertainty", "attention rank", "a\x07b", "x" * 101])
def test_a_class_that_cannot_be_called_so_is_refused(tmp_path: Path, store: TileStore, name: str) -> None:
    path = written(tmp_path, TUMOR, feature(name, tile(5, 5), name="here"))
    assert "annotation 2 ('here', class " in refused(path, store, "the class (is|holds)").reason
    assert len(read_marks(path, store, rename={name: "Other"}).classes) == 2
    refused(written(tmp_path, TUMOR), store, "is blank", rename={"Tumor": " "})


def test_annotations_off_the_slide_are_named(tmp_path: Path, store: TileStore) -> None:
    off = feature("Stroma", box(5000, 100, 5100, 200), name="second look")
    error = refused(written(tmp_path, TUMOR, off), store, "1 of 2 annotations lie off the slide")
    assert "annotation 2 ('second look', class 'Stroma', x 5000 to 5100, y 100 to 200)" in error.reason
    assert "x 0 to 768, y 0 to 512" in error.reason
    assert "full resolution" in (error.action or "")
    assert "bounds" in (error.action or "")
    every = [feature("Tumor", box(5000 + i, 0, 5010 + i, 9)) for i in range(7)]
    assert "; and 2 more" in refused(written(tmp_path, *every), store, "7 of 7 annotations").reason


def test_an_annotation_that_reaches_off_the_slide_is_none_that_lies_off_it(
    tmp_path: Path, store: TileStore
) -> None:
    assert len(read_marks(written(tmp_path, feature("Tumor", box(-500, -500, 64, 64))), store).rows) == 1


def test_of_an_image_that_is_not_cropped_coordinates_count_from_the_slide(tmp_path: Path) -> None:
    store = make_store(tmp_path, bounds=(128, 64))
    path = written(tmp_path, feature("Tumor", tile(2, 1)))
    assert read_marks(path, store, origin=Origin.SLIDE).rows.tolist() == [row_of(2, 1)]
    assert read_marks(path, store).rows.tolist() == [row_of(4, 2)]


def test_regions_of_a_heatmap_count_once_somebody_has_changed_them(
    store: TileStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    area = Polygon(np.array(tile(0, 0, 2, 2)[0], np.float64))
    found = [as_found(Annotation((area,), "Tumor", label="Tumor 1"))]
    moved = as_found(Annotation((area.shifted(4 * SIDE, 0),), "Tumor", label="Tumor 2"))
    corrected = dataclasses.replace(moved, name="Stroma")
    drawn = Annotation((area.shifted(0, 4 * SIDE),), "Tumor")
    path = tmp_path / "s1.geojson"
    write_annotations(path, [*found, corrected, drawn])
    with caplog.at_level(logging.WARNING):
        marks = read_marks(path, store)
    assert "1 of a heatmap, as it was drawn" in caplog.text
    assert marks.classes == ("Stroma", "Tumor")
    of_class = {name: marks.rows[marks.labels == i].tolist() for i, name in enumerate(marks.classes)}
    assert of_class == {
        "Stroma": [row_of(x, y) for y in (0, 1) for x in (4, 5)],
        "Tumor": [row_of(x, y) for y in (4, 5) for x in (0, 1)],
    }
    write_annotations(path, found)
    refused(path, store, "no annotation with a class.*1 of a heatmap")


def test_messages_say_how_qupath_counts_where_there_are_bounds(tmp_path: Path) -> None:
    store = make_store(tmp_path, bounds=(128, 64))
    error = refused(written(tmp_path, feature("Tumor", box(5000, 0, 5100, 100))), store, "off the slide")
    assert "x 5128 to 5228" in error.reason
    assert "QuPath shows 128 and 64 less" in error.reason


@pytest.mark.parametrize("small", [False, True])
def test_annotations_without_tiles_are_named_and_why_there_are_none(
    tmp_path: Path, store: TileStore, small: bool
) -> None:
    def at(place: tuple[int, int]) -> list[list[list[float]]]:
        x, y = place[0] * SIDE, place[1] * SIDE
        return box(x + 2, y + 2, x + 9, y + 9) if small else tile(*place)

    places = (NO_TISSUE, PEN, BLURRED)
    path = written(tmp_path, TUMOR, *(feature("Stroma", at(place)) for place in places))
    error = refused(path, store, "3 of its annotations lie where slide 's1' has no tile")
    first, second, third = error.reason.split("; ")
    assert "annotation 2 (class 'Stroma'" in first
    assert "no tissue was found there" in first
    assert "tiles there were dropped (1 for pen)" in second
    assert "tiles there were dropped (1 for sharpness)" in third
    assert "--min-sharpness" in (error.action or "")
    glass = refused(written(tmp_path, TUMOR, feature("Stroma", at(NO_TISSUE))), store, "no tissue")
    assert "--min-sharpness" not in (glass.action or "")


def test_contradictory_labels_are_named_with_both_annotations_and_where(
    tmp_path: Path, store: TileStore
) -> None:
    path = written(tmp_path, TUMOR, STROMA, feature("Stroma", tile(2, 1, 3, 3), name="late"))
    error = refused(path, store, "1 tile marked as two classes")
    assert (
        "1 in annotation 1 (class 'Tumor', x 0 to 192, y 0 to 128) and annotation 3 ('late', " in error.reason
    )
    assert "at x 128 to 192, y 64 to 128" in error.reason
    assert "erase the overlap in QuPath" in (error.action or "")
    wide = refused(written(tmp_path, TUMOR, feature("Stroma", tile(1, 0, 1, 2))), store, "2 tiles marked")
    assert "2 in annotation 1" in wide.reason


def test_a_scribble_in_a_tile_of_another_class_is_a_contradiction(tmp_path: Path, store: TileStore) -> None:
    refused(written(tmp_path, TUMOR, feature("Stroma", box(2, 2, 9, 9))), store, "1 tile marked as two")


def marked(path: str, store: TileStore, counts: dict[str, int]) -> Marks:
    classes = tuple(sorted(counts))
    labels = np.repeat(np.arange(len(classes)), [counts[name] for name in classes])
    rows = np.arange(len(labels))
    return Marks(store.slide_id, Path(path), "0" * 64, classes, rows, labels, labels * 0, 16.0)


def test_one_class_over_all_files_is_refused(store: TileStore) -> None:
    with pytest.raises(UsageError, match=r"one class is marked, 'Tumor' in a.geojson; b.geojson"):
        require_classes([marked("a.geojson", store, {"Tumor": 9}), marked("b.geojson", store, {"Tumor": 3})])
    with pytest.raises(UsageError, match=r"a.geojson: one class is marked, 'Tumor'; a model tells two"):
        require_classes([marked("a.geojson", store, {"Tumor": 9})])
    with pytest.raises(UsageError, match="no class is marked"):
        require_classes([])


def test_too_few_tiles_of_a_class_are_refused_saying_how_large_a_tile_is(store: TileStore) -> None:
    files = [
        marked("a.geojson", store, {"Tumor": 9, "Stroma": 1}),
        marked("b.geojson", store, {"Stroma": 2, "Fat": 1}),
    ]
    assert require_classes(files, least_tiles=1) == ("Fat", "Stroma", "Tumor")
    with pytest.raises(UsageError, match=r"'Fat' has 1, 2 are needed \(one is 16 x 16 µm"):
        require_classes(files)
    with pytest.raises(UsageError, match=r"'Fat' has 1; 'Stroma' has 3, 5 are needed"):
        require_classes(files, least_tiles=5)


def test_classes_named_differently_in_two_files_are_refused_with_a_way_out(store: TileStore) -> None:
    files = [
        marked("a.geojson", store, {"Tumor": 9, "Stroma": 2}),
        marked("b.geojson", store, {"Tumour": 2, "Stroma": 2}),
    ]
    with pytest.raises(UsageError, match="named in two ways") as caught:
        check_names(files)
    assert "'Tumor' (in a.geojson) and 'Tumour' (in b.geojson)" in caught.value.reason
    assert "--rename 'Tumour=Tumor'" in (caught.value.action or "")
    check_names([files[0], marked("c.geojson", store, {"Tumor": 1, "Fat": 2})])


def test_classes_named_differently_in_one_file_are_refused_before_they_contradict(
    tmp_path: Path, store: TileStore
) -> None:
    path = written(tmp_path, TUMOR, TUMOR, feature("tumor", tile(0, 0, 3, 2)))
    error = refused(path, store, "named in two ways")
    assert str(path) in error.reason
    assert "--rename 'tumor=Tumor'" in (error.action or "")
    assert read_marks(path, store, rename={"tumor": "Tumor"}).classes == ("Tumor",)


# Names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Tumor", "tumor"),
        ("Tumor", "Tumour"),
        ("Tumor edge", "Tumour edge"),
        ("Immune cells", "Immune-cells"),
        ("Immune cells", "immunecells"),
        ("Immune cells", "Immune  cell"),
        ("Tumor: Positive", "Tumor (positive)"),
        ("Nécrose", "Necrose"),
        ("Lymphocyte", "Lymphocytes"),
        ("Hemorrhage", "Haemorrhage"),
        ("Leukocyte", "Leucocyte"),
        ("Grade 1", "grade_1"),
        ("Stroma", "Strama"),
        ("CK5/6", "CK 5-6"),
    ],
)
def test_names_that_are_likely_to_be_one_are_found(one: str, other: str) -> None:
    assert look_alikes([one, "something else", other]) == [(min(one, other), max(one, other))]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Grade 1", "Grade 2"),
        ("G3", "G4"),
        ("Gleason3", "Gleason4"),
        ("Gleason 3+4", "Gleason 4+3"),
        ("Gleason 3+4", "Gleason 34"),
        ("Grade 1.1", "Grade 11"),
        ("Grade I", "Grade II"),
        ("GradeA", "GradeB"),
        ("Region A", "Region B"),
        ("CD3+", "CD3-"),
        ("CD3+", "CD3"),
        ("CD3+CD8-", "CD3+CD8+"),
        ("CD3-CD8+", "CD3+CD8+"),
        ("Marker+", "Marker-"),
        ("Positive", "Negative"),
        ("Tumor", "Non-tumor"),
        ("Tumor", "No tumor"),
        ("Typical", "Atypical"),
        ("Normal", "Abnormal"),
        ("Endothelium", "Epithelium"),
        ("Vein", "Vain"),
        ("DCIS", "LCIS"),
        ("Tumor", "Stroma"),
    ],
)
def test_names_that_differ_by_a_digit_a_sign_or_a_negation_are_two(one: str, other: str) -> None:
    assert look_alikes([one, other]) == []


def test_a_name_is_no_look_alike_of_itself_and_names_of_marks_alone_are_told_apart() -> None:
    assert look_alikes(["Tumor", "Tumor"]) == []
    assert look_alikes(["?", "!"]) == []


def test_usable_names_have_no_fault() -> None:
    assert [fault_of(name) for name in ("Tumor", "Tumor: Positive", "жираф")] == ["", "", ""]
    assert all(fault_of(name.upper()) for name in (*CHANNELS, "  ", "a\nb"))
