"""A page needs nothing but itself, does nothing of its own, and can be read by everybody, on paper too."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from typing import Any
from urllib.parse import unquote

import cv2
import numpy as np
import pytest

from heatmaps.colour import colour
from heatmaps.report.cohort_page import SORT
from heatmaps.report.html import page, text
from heatmaps.report.run import plan_reports
from heatmaps.report.style import STYLE
from tiling.output import Output
from tiling.store import TileStore

HOSTILE = """<img src=x onerror=alert(1)> & "q" 'p' </title></script><script>alert(1)</script> ]]>-->"""
LOADING = {"src", "href", "srcset", "action", "formaction", "data", "poster", "background", "xlink:href"}


def pages_of(output: Output, reported: Any) -> list[str]:
    """All pages of an output: of each slide, and of the cohort."""
    found = [reported(TileStore(output, slide))[1] for slide in output.slide_ids()]
    plan = plan_reports(output.root, given=None)
    return [*found, plan.publish_cohort().read_text()]


def test_nothing_is_loaded_from_anywhere(output: Output, scoring: Any, reported: Any, parsed: Any) -> None:
    for slide in ("one", "two"):
        scoring(TileStore(output, slide))
    for html in pages_of(output, reported):
        found = parsed(html)
        for tag, attributes in found.tags:
            assert tag not in {"link", "iframe", "object", "embed", "base", "form", "audio", "video", "use"}
            assert not any(name.startswith("on") for name in attributes)
            for name in LOADING & attributes.keys():
                value = attributes[name] or ""
                if tag == "a":  # a page of the same output, when it is clicked
                    assert value.startswith("../../slides/")
                else:
                    assert value.startswith(("data:image/jpeg;base64,", "data:image/png;base64,"))
        rest = re.sub(r"base64,[^\"]*", "", html)
        assert not re.search(r"https?:|(?<![.\w:])//|url\(|@import|image-set", rest)


def test_the_policy_admits_the_one_script_of_the_cohort_and_no_other(
    output: Output, reported: Any, parsed: Any
) -> None:
    *slides, cohort = pages_of(output, reported)
    for html in slides:
        found = parsed(html)
        assert "script-src 'none'" in str(found.named("meta")[1]["content"])
        assert not found.named("script")
    found = parsed(cohort)
    policy = str(found.named("meta")[1]["content"])
    digest = base64.b64encode(hashlib.sha256(SORT.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert re.findall(r"<script>(.*?)</script>", cohort, re.DOTALL) == [SORT]


def test_names_stay_text(output: Output, scoring: Any, reported: Any, parsed: Any) -> None:
    def tags(classes: tuple[str, ...]) -> tuple[list[list[str]], list[Any]]:
        each = {"probabilities": dict(zip(classes, (0.3, 0.25, 0.25, 0.2), strict=True)), "calibrated": True}
        decision = {"status": "review required", "confidence": 0.3, "reasons": [f"not {n}" for n in classes]}
        record = each | {"decision": decision, "conformal_set": list(classes)}
        scoring(TileStore(output, "one"), classes=classes, record=record)
        with_overwrite = TileStore(output, "one", overwrite=True)
        plan = plan_reports(output.root, given=None)
        found = [parsed(reported(with_overwrite)[1]), parsed(plan.publish_cohort().read_text())]
        return [[tag for tag, _ in one.tags if tag != "bdi"] for one in found], found

    hostile = (HOSTILE, "&lt;b&gt;", "a\u202eb", "ß 切片 \"'")
    plain, _ = tags(("a", "b", "c", "d"))
    dangerous, found = tags(hostile)
    assert dangerous == plain
    for one, name in itertools.product(found, hostile):
        assert re.sub(r"\s+", " ", name) in one.words
        assert re.sub(r"\s+", " ", f"not {name}") in one.words


def test_the_name_of_a_slide_stays_text(
    tmp_path: Any, slide_files: Any, cutting: Any, reported: Any, parsed: Any
) -> None:
    hostile = """<img src=x onerror=alert(1)> & "q" 'p' <script>"""
    output = Output(tmp_path / "out")
    cutting(output, {hostile: slide_files["one"], "100%#?.x": slide_files["two"]})
    _, html = reported(TileStore(output, hostile))
    found = parsed(html)
    assert ("h1", f"Slide {hostile}") in found.texts
    assert not found.named("script")
    reported(TileStore(output, "100%#?.x"))
    cohort = parsed(plan_reports(output.root, given=None).publish_cohort().read_text())
    links = [str(a["href"]) for a in cohort.named("a")]
    assert len(links) == 2
    assert all(re.fullmatch(r"[\w./%~-]+", link) for link in links)
    for link in links:  # as a browser resolves it from the cohort's page
        assert (output.root / "reports" / "__tiles__" / unquote(link)).resolve().is_file()


def test_text_of_other_scripts_cannot_turn_the_line_around() -> None:
    assert text("a\u202eb") == "<bdi>a\u202eb</bdi>"
    assert text("<b>") == "&lt;b&gt;"
    assert text(text("<b>")) == "&lt;b&gt;"


def test_headings_alternatives_and_tables_tell_a_screen_reader_what_is_what(
    output: Output, scoring: Any, reported: Any, parsed: Any
) -> None:
    scoring(TileStore(output, "one"))
    for html in pages_of(output, reported):
        found = parsed(html)
        levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h[1-6]", tag)]
        assert levels.count(1) == 1
        assert levels[0] == 1
        assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
        assert all(attributes.get("alt") for attributes in found.named("img"))
        assert all(
            attributes.get("role") == "img" and attributes.get("aria-label")
            for attributes in found.named("svg")
        )
        assert all(attributes.get("scope") in {"row", "col"} for attributes in found.named("th"))
        assert found.named("html") == [{"lang": "en"}]
        assert len(found.named("main")) == 1


def luminance(colour: str) -> float:
    """Of WCAG 2.2."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_every_text_colour_can_be_read() -> None:
    """At least 4.5 to 1 on white and on the tint of a warning: level AA."""
    colours = set(re.findall(r"(?<![-\w])color:\s*(#[0-9a-f]+)", STYLE))
    assert colours
    for background in ("#fff", "#fff5ec"):
        for ink in colours:
            assert (luminance(background) + 0.05) / (luminance(ink) + 0.05) >= 4.5, ink


def test_the_page_is_made_for_a4_too() -> None:
    html = page("t", "t", ["<p>x</p>"])
    assert "@page { size: A4" in html
    for rule in ("break-inside: avoid", "break-after: avoid", "display: table-header-group"):
        assert rule in html


def test_pictures_show_the_slide(scored: Any) -> None:
    store, arrays, content = scored.store, scored.scores, scored.content
    jpegs = [
        cv2.imdecode(
            np.frombuffer(base64.b64decode(str(img["src"]).partition(",")[2]), np.uint8), cv2.IMREAD_COLOR
        )
        for img in scored.page.named("img")
        if str(img["src"]).startswith("data:image/jpeg")
    ]
    overlay = jpegs[2]  # behind outline and tiles: the likeliest class
    width, height = store.record["slide_size"]
    assert overlay.shape[1] / overlay.shape[0] == pytest.approx(width / height, rel=0.02)
    scale, tumour = overlay.shape[1] / width, arrays["scores"][:, 1]
    side = store.record["tile_level0"][0]
    for row in (int(tumour.argmax()), int(tumour.argmin())):
        x, y = ((store.origins[row] + side / 2) * scale).round().astype(int)
        if not (0 <= x < overlay.shape[1] and 0 <= y < overlay.shape[0]):
            continue
        expected = colour(tumour[row : row + 1], vmin=0, vmax=1)[0].astype(float) * 0.6
        grey = overlay[y, x, ::-1].astype(float) - expected  # what is left is grey tissue
        assert np.ptp(grey) < 25
    tiles = [tile for end in ("highest", "lowest") for tile in content["tiles"][0][end]]
    for tile, picture in zip(tiles, jpegs[6:], strict=True):
        original = store.read_pixels([tile["row"]])[0]
        assert picture.shape == original.shape
        assert np.abs(picture[..., ::-1].astype(int) - original).mean() < 6
