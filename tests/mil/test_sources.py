"""Laws of finding features: a pattern says which slides, a slide is found once, and nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mil.training.sources import find_stores
from tiling.output import Output
from tiling.store import TileStore
from wsi.durable import make_folder
from wsi.errors import UsageError

MakeStore = Callable[..., TileStore]


@pytest.fixture
def outputs(tmp_path: Path, make_store: MakeStore) -> Path:
    """Two outputs; features are empty folders, for only their places matter here."""
    for folder, slide in (("one", "a"), ("one", "b[1]"), ("two", "c")):
        store = make_store(slide, folder=folder)
        make_folder(store.path("features/uni"))
    (tmp_path / "one" / "slides" / ".DS_Store").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "slides"),
    [
        ("one", "ab"),
        ("one/", "ab"),
        ("*", "abc"),
        ("one/slides/*", "ab"),
        ("*/slides/a", "a"),
        ("one/slides/a/store.zarr", "a"),
        ("*/slides/*/store.zarr", "abc"),
        ("*/slides/*/store.zarr/features/uni", "abc"),
        ("**/features/*", "abc"),
        ("**/store.zarr", "abc"),
        ("one/slides/b[[]1]", "b"),
    ],
)
def test_a_pattern_names_outputs_slides_stores_or_features(outputs: Path, pattern: str, slides: str) -> None:
    found = find_stores(None, [str(outputs / pattern)], encoder="uni")
    assert "".join(name[0] for name in sorted(found)) == slides
    for name, store in found.items():
        assert store.slide_id == name
        assert store.path("tiles").is_dir()


def test_patterns_add_to_an_output_and_a_slide_may_be_matched_twice(outputs: Path) -> None:
    patterns = [str(outputs / "two"), str(outputs / "*" / "slides" / "[ac]")]
    assert sorted(find_stores(outputs / "one", patterns, encoder="uni")) == ["a", "b[1]", "c"]
    link = outputs / "link"
    link.symlink_to(outputs / "one")
    assert sorted(find_stores(outputs / "one", [str(link)], encoder="uni")) == ["a", "b[1]"]


def test_a_slide_in_two_outputs_is_refused_by_name(outputs: Path, make_store: MakeStore) -> None:
    make_store("a", folder="two")
    with pytest.raises(UsageError, match=r"slide 'a' is in two outputs, .*one and .*two"):
        find_stores(outputs / "one", [str(outputs / "two")], encoder="uni")


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("three/*", "matches nothing"),
        ("one/slides", r"matches no slide of an output, but .*slides"),
        ("one/slides/*/store.zarr/tiles", "matches no slide of an output"),
    ],
)
def test_a_pattern_without_slides_is_refused(outputs: Path, pattern: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        find_stores(outputs / "one", [str(outputs / pattern)], encoder="uni")


def test_features_by_another_encoder_are_named(outputs: Path) -> None:
    with pytest.raises(UsageError, match=r"matches features by 'uni', and not by 'virchow'.*--encoder"):
        find_stores(None, [str(outputs / "**" / "features" / "*")], encoder="virchow")


def test_an_output_without_slides_has_none(tmp_path: Path) -> None:
    assert find_stores(tmp_path, (), encoder="uni") == {}
    assert list(Output(tmp_path).items()) == []
