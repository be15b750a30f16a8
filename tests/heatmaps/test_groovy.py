"""Laws of the script: whatever names are, they are text in it, and nothing else."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatmaps.groovy import Opening, literal, script

OPENING = Opening(
    slide_id="S1",
    slide_size=(3000, 2000),
    bounds_origin=(0, 0),
    slide_bounds=(0, 0),
    tiles="tiles.geojson",
    regions="regions.geojson",
    measurements=("Tile score: normal", "Tile score: tumour", "Attention"),
    shown=1,
    classes={"normal": (0, 114, 178), "tumour": (200, 0, 0)},
)
HOSTILE = [
    "it's",
    "'; new File('/etc/passwd').text //",
    '"${System.exit(1)}"',
    "$x ${x} $/x/$",
    "two\nlines\r\n",
    "\\u0027 + System.exit(1) + \\u0027",
    "\\",
    "\\\\u0041",
    "*/ /* //",
    "'''",
    "@shown@ @classes@",
    "é µ 肿瘤 🔬 \u2028 \x00 \x7f",
    "\ud800",
    "",
]
TEXT = (
    st.text(st.characters(codec=None))
    | st.text(st.sampled_from("'\\u0027$\n{}@\"/*"))
    | st.sampled_from(HOSTILE)
)
ESCAPED = {"\\": "\\", "'": "'", "n": "\n", "r": "\r", "t": "\t"}


def read_literal(written: str) -> str:
    """What Groovy makes of it (its language specification, "Strings"), or an error."""
    units: list[int] = []
    place = 0
    while True:
        assert written[place] == "'"
        place += 1
        while written[place] != "'":
            character = written[place]
            assert " " <= character <= "~"
            if character != "\\":
                units.append(ord(character))
                place += 1
            elif written[place + 1] == "u":
                assert re.fullmatch("[0-9a-f]{4}", written[place + 2 : place + 6])
                units.append(int(written[place + 2 : place + 6], 16))
                place += 6
            else:
                units.append(ord(ESCAPED[written[place + 1]]))
                place += 2
        place += 1
        if place == len(written):
            break
        assert written[place : place + 3] == " + "
        place += 3
    return b"".join(unit.to_bytes(2, "little") for unit in units).decode("utf-16-le", "surrogatepass")


@given(TEXT)
def test_a_literal_stands_for_its_text(text: str) -> None:
    assert read_literal(literal(text)) == text


@given(TEXT)
def test_no_reading_of_escapes_before_quotes_ends_a_literal(text: str) -> None:
    """Groovy before 3 replaces them first, and counts the backslashes before one in its own way."""
    written = literal(text)
    for match in re.finditer(r"\\u([0-9a-f]{4})", written):
        assert not " " <= chr(int(match[1], 16)) <= "~"
        assert chr(int(match[1], 16)) not in "\n\r"
    assert "\\\\u" not in written


@given(TEXT, TEXT, TEXT)
def test_names_change_nothing_of_the_script_but_its_literals(slide: str, first: str, second: str) -> None:
    opening = dataclasses.replace(
        OPENING,
        slide_id=slide,
        measurements=(f"Tile score: {first}", f"Tile score: {second}", "Attention"),
        classes={first: (1, 2, 3), second: (4, 5, 6)} if first != second else {first: (1, 2, 3)},
    )
    written = script(opening)
    written.encode("ascii")
    plain = dataclasses.replace(
        opening,
        slide_id="S1",
        measurements=OPENING.measurements,
        classes=dict(zip(("normal", "tumour"), opening.classes.values(), strict=False)),
    )
    assert without_literals(written) == without_literals(script(plain))


def without_literals(text: str) -> str:
    whole = r"'(?:[^'\\\n]|\\.)*'"
    return re.sub(rf"{whole}(?: \+ {whole})*", "''", text)


def test_the_script_says_what_it_opens_and_shows() -> None:
    written = script(dataclasses.replace(OPENING, vmin=0.25, vmax=0.75))
    for line in (
        "int shown = 1",
        "double lowest = 0.25",
        "double highest = 0.75",
        "String colourMap = 'Viridis'",
        "String slide = 'S1'",
        "String tilesFile = 'tiles.geojson'",
        "String regionsFile = 'regions.geojson'",
        "    'Tile score: tumour',  // 1",
        "    ('tumour'): [200, 0, 0],",
    ):
        assert line in written.splitlines()
    assert "@" not in written
    assert max(map(len, written.splitlines())) <= 120


@pytest.mark.parametrize(
    ("bounds", "counted", "refused_if"),
    [
        ((0, 0), (0, 0), ("false", "false")),
        ((120, 40), (120, 40), ("true", "false")),  # of an image that is not cropped
        ((120, 40), (0, 0), ("false", "true")),  # of one that is
    ],
)
def test_an_image_that_is_opened_otherwise_than_the_files_count_is_refused(
    bounds: tuple[int, int], counted: tuple[int, int], refused_if: tuple[str, str]
) -> None:
    written = script(dataclasses.replace(OPENING, slide_bounds=bounds, bounds_origin=counted))
    assert "server.getWidth() == 3000 && server.getHeight() == 2000" in written
    assert f"if ({refused_if[0]} && whole)" in written
    assert f"if ({refused_if[1]} && !whole)" in written


@pytest.mark.parametrize(
    "wrong",
    [{"vmin": 1.0}, {"vmax": float("nan")}, {"shown": 3}, {"shown": -1}, {"classes": {}}],
)
def test_openings_guard_their_invariants(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - which of them, the case says
        dataclasses.replace(OPENING, **wrong)  # type: ignore[arg-type]
