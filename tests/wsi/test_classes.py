"""Laws of class names: one form, which QuPath holds, and one colour."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi.classes import colour_of, colours_of, held, tidy

NAMES = st.text(st.sampled_from("ab :\n\t\r é肿"), max_size=12) | st.text()


@given(NAMES)
def test_a_tidy_name_stays_as_it_is_and_is_held(name: str) -> None:
    once = tidy(name)
    assert tidy(once) == once
    if once:
        assert held(once) == once
        assert not set(once) & set("\n\r")
        assert all(part.strip() == part != "" for part in once.split(": "))
        assert ":" not in "".join(once.split(": "))


@given(NAMES)
def test_a_name_is_held_only_as_it_is(name: str) -> None:
    if tidy(name) == name != "":
        assert held(name) == name
    else:
        with pytest.raises(ValueError, match="cannot hold"):
            held(name)


@given(NAMES)
def test_every_name_has_a_colour_that_follows_from_it(name: str) -> None:
    assert colour_of(name) == colour_of(name)
    assert all(0 <= part <= 255 for part in colour_of(name))


def test_classes_of_qupath_have_its_colours_wherever_they_are_written() -> None:
    assert colours_of(["gland", "Tumor", "necrosis"])[1:] == [(200, 0, 0), (50, 50, 50)]
    assert colour_of("Stroma") == (150, 200, 150)
    assert colour_of("Ignore*") == (180, 180, 180)


def test_colours_of_a_model_follow_from_the_place_and_not_from_the_others() -> None:
    assert colours_of(["gland", "crypt"])[1] == colours_of(["vessel", "duct"])[1]
    assert len(set(colours_of([f"class {i}" for i in range(7)]))) == 7
