"""The page in a real browser.

Screenshots are kept in the folder that MICROTOME_SCREENSHOTS names, else in the test's own.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heatmaps.viewer.catalogue import Catalogue
from heatmaps.viewer.server import ViewerServer
from tiling.marks import read_marks
from tiling.output import Output
from tiling.store import TileStore

HOSTILE = "<img src=x onerror=document.title='owned'>&\"'"


class Page:
    """The viewer in a browser."""

    def __init__(self, driver: Any, server: ViewerServer, folder: Path) -> None:
        self.driver, self.server, self.folder = driver, server, folder

    def open(self, fragment: str = "", *, slide: str = "plain") -> None:
        number = [entry.slide_id for entry in self.server.service.catalogue.refresh()].index(slide)
        self.driver.get("about:blank")
        self.driver.get(self.server.address + (fragment or f"#slide={slide}"))
        self.until(lambda: self.run("return document.body.dataset.slide") == str(number))
        self.until(self.settled)

    def settled(self) -> bool:
        """The heatmap has been drawn, and the tiles of the slide too."""
        return bool(self.colour(0.5, 0.5, "#over") is not None and self.run(
            "const c = document.querySelector('#stage .openseadragon-canvas canvas');"
            "return c && c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data[3] === 255"
        ))  # fmt: skip

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Callable[[], Any], seconds: float = 60) -> Any:
        stop = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < stop, f"{condition} did not come true; {self.text('#toasts')}"
            time.sleep(0.03)
        return found

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def colour(self, x: float, y: float, canvas: str) -> list[int]:
        """RGBA of a canvas at shares of its width and height."""
        return self.run(
            "const c = document.querySelector(arguments[2]);"
            "return Array.from(c.getContext('2d').getImageData("
            "Math.floor(arguments[0] * c.width), Math.floor(arguments[1] * c.height), 1, 1).data)",
            x, y, canvas,
        )  # fmt: skip

    def pixels(self, canvas: str) -> np.ndarray:
        data = self.run(
            "const c = document.querySelector(arguments[0]);"
            "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "let s = ''; for (let y = 0; y < c.height; y += 4) for (let x = 0; x < c.width; x += 4)"
            "  for (let p = 0; p < 4; p += 1) s += String.fromCharCode(d[4 * (y * c.width + x) + p]);"
            "return btoa(s)",
            canvas,
        )
        return np.frombuffer(base64.b64decode(data), np.uint8).reshape(-1, 4)

    def painted(self) -> int:
        """Sampled pixels of the canvas above the slide that are painted."""
        return int((self.pixels("#over")[:, 3] > 0).sum())

    def slide_to(self, selector: str, value: float) -> None:
        self.run(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('input', {bubbles: true}))", selector, value,
        )  # fmt: skip
        self.redrawn()

    def redrawn(self) -> None:
        """Wait until what was set has been painted: it is at the next frame."""
        self.driver.execute_async_script(
            "const done = arguments[0], next = (n) => n ? requestAnimationFrame(() => next(n - 1)) : done();"
            "next(3)"
        )

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).click()", selector)

    def screenshot(self, name: str) -> None:
        self.driver.save_screenshot(str(self.folder / f"{name}.png"))

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@contextmanager
def viewing(driver: Any, catalogue: Catalogue, folder: Path) -> Iterator[Page]:
    folder = Path(os.environ.get("MICROTOME_SCREENSHOTS", folder))
    folder.mkdir(parents=True, exist_ok=True)
    with ViewerServer(catalogue) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        shown = Page(driver, server, folder)
        try:
            yield shown
            assert shown.complaints() == []  # no error, and nothing that the page's policy had to refuse
        finally:
            driver.get("about:blank")
            server.shutdown()
            thread.join()


@pytest.fixture
def page(driver: Any, catalogue: Catalogue, tmp_path: Path) -> Iterator[Page]:
    with viewing(driver, catalogue, tmp_path) as shown:
        yield shown


def drag(page: Page, start: tuple[int, int], stop: tuple[int, int]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    over = page.driver.find_element("id", "over")
    chain = ActionChains(page.driver, duration=50).move_to_element_with_offset(over, *start).click_and_hold()
    chain.move_to_element_with_offset(over, *stop).release().perform()


def test_the_slide_and_its_heatmap_are_really_drawn(page: Page) -> None:
    page.open()
    stage = page.pixels("#stage .openseadragon-canvas canvas")
    seen = stage[stage[:, 3] == 255][:, :3].astype(int)
    assert len(seen) > 5000
    assert seen.std(axis=0).min() > 10  # a slide, and no grey field
    pink = seen[(seen.max(axis=1) - seen.min(axis=1)) > 25]
    assert len(pink) > 1000
    assert (pink[:, 0] > pink[:, 1]).mean() > 0.95  # H&E: red and blue are above green
    assert page.painted() > 2000
    assert "tumour 0.93" in page.text("#verdict-text")
    assert "review required" in page.text("#verdict-text")
    assert "µm" in page.text("#scale-text")
    assert page.text("#legend-ticks") == "00.250.50.751"
    assert "same number has the same colour" in page.text("#legend-text")
    page.screenshot("slide")


def test_a_tile_has_one_colour_without_any_smoothing(page: Page) -> None:
    page.open()
    page.slide_to("#opacity", 1)
    page.click("#show-outlines")
    page.redrawn()
    colours = np.unique(page.pixels("#over"), axis=0)
    columns = len(np.unique(TileStore(page.server.service.catalogue.output, "plain").origins[:, 0]))
    assert len(colours) <= columns + 1  # scores rise with x: a colour for each column of tiles, and none


def test_the_threshold_hides_and_the_other_controls_recolour(page: Page) -> None:
    page.open()
    before, some = page.painted(), page.pixels("#over")
    page.slide_to("#threshold", 0.5)
    half = page.painted()
    assert 0.2 * before < half < 0.8 * before
    page.slide_to("#threshold", 0)
    assert page.painted() == before
    page.slide_to("#scale-choice", 1)
    assert (page.pixels("#over") != some).any()
    page.slide_to("#scale-choice", 0)
    np.testing.assert_array_equal(page.pixels("#over"), some)
    page.slide_to("#opacity", 0.2)
    assert (page.pixels("#over") != some).any()
    page.click("#heat-on")
    page.redrawn()
    assert page.painted() < before / 2
    page.click("#heat-on")
    page.click("#rank")
    page.until(lambda: "not comparable between slides" in page.text("#legend-text"))
    assert "rank=1" in page.run("return location.hash")
    page.screenshot("rank")


def test_a_number_is_cut_off_and_never_reaches_what_it_is_below(page: Page) -> None:
    page.driver.get(page.server.address)
    numbers = "[0.9996, 0.7998, 0.29, 0.00261, 1, 1609.4]"
    told = page.run(f"return import('/page/elements.js').then((m) => {numbers}.map(m.short))")
    assert told == ["0.999", "0.799", "0.29", "0.00261", "1", "1609"]


def test_a_best_tile_jumps_to_its_place_and_tells_its_numbers(page: Page) -> None:
    page.open()
    page.until(lambda: page.run("return document.querySelectorAll('#best-list img').length") > 3)
    page.until(lambda: page.run("return document.querySelector('#best-list img').naturalWidth") > 0)
    store = TileStore(Output(page.server.service.catalogue.output.root), "plain")
    scores = store.scores("model")[0][:, 1]
    row = int(np.argmax(scores))
    page.click("#best-list button")
    page.until(lambda: page.text("#tile-name") == f"{row} · kept")
    x, y = (store.origins[row] + 64).tolist()

    def is_there() -> bool:
        view = dict(part.split("=") for part in page.run("return location.hash.slice(1)").split("&"))
        return abs(float(view["x"]) - x) < 20 and abs(float(view["y"]) - y) < 20

    page.until(is_there)
    values = page.text("#tile-values")
    for name in ("tumour", "normal", "attention", "uncertainty", "disagreement", "sharpness", "tissue"):
        assert name in values
    page.screenshot("tile")


def test_a_link_restores_the_view(page: Page) -> None:
    link = "#slide=plain&x=800&y=500&zoom=0.8&model=model&channel=uncertainty"
    link += "&opacity=0.35&below=0.4&scale=cividis"
    page.open(link)
    view = dict(part.split("=") for part in page.run("return location.hash.slice(1)").split("&"))
    wanted = dict(part.split("=") for part in link[1:].split("&"))
    for name, value in wanted.items():
        if name in {"x", "y", "zoom"}:
            assert float(view[name]) == pytest.approx(float(value), abs=1.01, rel=0.01)
        else:
            assert view[name] == value
    assert "token" not in page.run("return location.href")
    frame = page.run("return document.querySelector('#channel-choice').selectedOptions[0].textContent")
    assert frame == "uncertainty"


def test_hovering_asks_for_the_tile_under_the_pointer(page: Page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page.open()
    stage = page.driver.find_element("id", "stage")
    ActionChains(page.driver).move_to_element_with_offset(stage, 5, 5).perform()
    page.until(lambda: page.text("#tile-name") != "")
    assert "model" in page.text("#tile-values")


def test_a_drawn_region_is_saved_and_can_be_taken_back(page: Page, tmp_path: Path, results: Path) -> None:
    page.open()
    page.run("document.getElementById('class-name').value = 'tumour'")
    page.click("#draw-box")
    drag(page, (-60, -40), (120, 80))
    page.until(lambda: page.text("#marks-count") == "1")
    path = tmp_path / "feedback" / "plain.geojson"
    marks = read_marks(path, TileStore(Output(results), "plain"))
    assert marks.classes == ("tumour",)
    assert len(marks.rows) > 1
    assert f"{len(marks.rows)} tiles of tumour" in page.text("#marks-adapt")
    page.screenshot("region")
    page.click("#undo")
    page.until(lambda: page.text("#marks-count") == "")
    assert not path.exists()  # a file without marks is none
    assert page.text("#marks-list") == page.text("#marks-adapt") == ""
    assert page.run("return document.getElementById('undo').disabled")
    page.open()  # nor is there one for a page that is loaded anew
    assert page.text("#marks-count") == page.text("#marks-list") == ""


def test_a_polygon_is_drawn_by_clicks(page: Page, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page.open()
    page.run("document.getElementById('class-name').value = 'normal'")
    page.click("#draw-polygon")
    over = page.driver.find_element("id", "over")
    chain = ActionChains(page.driver, duration=50)
    for x, y in ((-100, -80), (100, -80), (60, 90), (-100, -80)):
        chain.move_to_element_with_offset(over, x, y).click().pause(0.1)
    chain.perform()
    page.until(lambda: page.text("#marks-count") == "1")
    (feature,) = json.loads((tmp_path / "feedback" / "plain.geojson").read_bytes())["features"]
    assert len(feature["geometry"]["coordinates"][0]) == 4


def test_agreeing_and_disagreeing_is_saved(page: Page, tmp_path: Path) -> None:
    page.open()
    page.click("#verdict-marks .agree")
    page.until(lambda: "You agree" in page.text("#verdict-marks"))
    page.click("#best-list button")
    page.until(lambda: page.text("#tile-marks") != "")
    page.run(
        "const s = document.querySelector('#tile-marks select'); s.value = '1';"
        "s.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    page.until(lambda: "You disagree, it is normal" in page.text("#tile-marks"))
    names = [
        feature["properties"]["classification"]["name"]
        for feature in json.loads((tmp_path / "feedback" / "plain.geojson").read_bytes())["features"]
    ]
    assert names == ["Agree*", "normal"]
    assert (tmp_path / "feedback" / "labels.csv").read_text().splitlines()[1].startswith("plain,tumour,")
    assert page.text("#marks-adapt") == "For adapt: 1 tile of normal. In labels.csv this slide is tumour."
    page.screenshot("feedback")


def test_a_model_without_a_gate_asks_for_review(
    driver: Any, copied: Catalogue, scoring: Any, tmp_path: Path
) -> None:
    record = {"probabilities": {"normal": 0.9, "tumour": 0.1}, "calibrated": False}
    scoring(TileStore(copied.output, "plain"), "a", record=record)
    with viewing(driver, copied, tmp_path) as page:
        page.open("#slide=plain&model=a")
        assert page.text("#verdict-text .chip") == "review required"
        assert "the model is not calibrated" in page.text("#verdict-text")
        assert "confidence" not in page.text("#verdict-text")
        assert "review" in page.text("#slide-list li[aria-current=true]")


def test_a_hostile_name_is_text(page: Page) -> None:
    page.open(slide="plain")
    shown = page.run("return [...document.querySelectorAll('#slide-list .name')].map(e => e.textContent)")
    assert HOSTILE in shown
    number = page.run(
        "const i = [...document.querySelectorAll('#slide-list li')]"
        ".find(e => e.textContent.includes('<img'));"
        "i.click(); return i.dataset.number"
    )
    page.until(lambda: page.run("return document.body.dataset.slide") == number)
    assert page.text("#slide-name") == HOSTILE
    page.run(
        "document.getElementById('class-name').value = arguments[0]",
        "<img src=y onerror=document.title='owned'>",
    )
    page.click("#draw-box")
    drag(page, (-60, -40), (120, 80))
    page.until(lambda: page.text("#marks-count") == "1")
    page.redrawn()
    assert "owned" not in page.run("return document.title").replace(HOSTILE, "")
    assert (
        page.run(
            "return document.querySelectorAll('aside img[src=x], aside img[src=y], main img[src=x]').length"
        )
        == 0
    )
    page.screenshot("hostile")


def test_keys_go_through_the_slides_and_turn_the_heatmap_off(page: Page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page.open()
    before = page.painted()
    ActionChains(page.driver).send_keys("h").perform()
    page.until(lambda: page.painted() < before / 2)
    ActionChains(page.driver).send_keys("h").send_keys("3").perform()
    page.until(lambda: page.run("return document.getElementById('channel-choice').value") == "2")
    ActionChains(page.driver).send_keys("p").perform()
    page.until(lambda: "broken" in page.text("#toasts"))  # which has nothing to show; it is passed over now
    ActionChains(page.driver).send_keys("p").perform()
    page.until(lambda: page.text("#slide-name") == HOSTILE)
    assert len(page.complaints()) == 1  # that there is nothing to show
    ActionChains(page.driver).send_keys("?").perform()
    assert page.run("return document.getElementById('help').open")
    page.screenshot("keys")
