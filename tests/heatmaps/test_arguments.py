"""Laws of the options: each sets what it says, the defaults are the library's, and nothing is set in vain."""

from __future__ import annotations

from argparse import ArgumentParser

import pytest

from heatmaps.arguments import add_drawing, drawing
from heatmaps.settings import AS_USUAL, DrawSettings, Format, Ngff, Overlap, Scale
from wsi.errors import UsageError


def said(*words):
    parser = ArgumentParser()
    add_drawing(parser)
    return drawing(parser.parse_args(words))


def test_no_option_gives_what_is_usual():
    assert said() == AS_USUAL == DrawSettings()
    assert AS_USUAL.as_json() == {"formats": ["ome-tiff"], "overlap": "mean", "scale": "value"}


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["--format", "png"], DrawSettings((Format.PNG,))),
        (["--format", "ome-zarr", "--ngff", "0.4"], DrawSettings((Format.OME_ZARR,), Ngff.V04)),
        (["--overlap", "max"], DrawSettings(overlap=Overlap.MAX)),
        (["--scale", "rank"], DrawSettings(scale=Scale.RANK)),
    ],
)
def test_each_option_sets_what_it_says_and_makes_another_recipe(words, settings):
    assert said(*words) == settings
    assert settings.as_json() != AS_USUAL.as_json()


def test_the_order_of_formats_and_saying_one_twice_change_nothing():
    assert said("--format", "png", "ome-tiff", "png") == said("--format", "ome-tiff", "png")


def test_a_version_of_what_is_not_written_is_refused_and_makes_no_other_recipe():
    with pytest.raises(UsageError, match="--ngff is of OME-Zarr alone"):
        said("--ngff", "0.4")
    assert DrawSettings(ngff=Ngff.V04).as_json() == AS_USUAL.as_json()
    with pytest.raises(UsageError, match="no format"):
        DrawSettings(())
