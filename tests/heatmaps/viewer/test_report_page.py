"""A cohort's report in a real browser, opened as a user does: from the disk."""

from __future__ import annotations

import sys
from typing import Any

import pytest

import cli
from heatmaps.viewer.catalogue import Catalogue
from tiling.store import TileStore

HOSTILE = "<img src=x onerror=document.title='owned'>&\"'"


def test_a_click_on_a_head_sorts_the_slides(
    driver: Any, copied: Catalogue, scoring: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copied.output.root
    for name, tumour in (("plain", 0.09), (HOSTILE, 0.75)):
        record = {"probabilities": {"normal": 1 - tumour, "tumour": tumour}, "calibrated": False}
        scoring(TileStore(copied.output, name), "second", record=record)
    tiles = {name: len(TileStore(copied.output, name)) for name in ("plain", HOSTILE)}
    assert tiles["plain"] < tiles[HOSTILE]
    assert str(tiles["plain"]) > str(tiles[HOSTILE])  # so that an order by text is another one
    words = ["report", str(root), "-m", "second", "--quiet"]
    monkeypatch.setattr(sys, "argv", ["microtome", *words])
    cli.main(words)
    driver.get((root / "reports" / "second" / "cohort.html").as_uri())

    def column(place: int) -> list[str]:
        return driver.execute_script(
            "return [...document.querySelectorAll('table#slides tbody tr')]"
            ".map((row) => row.cells[arguments[0]].textContent)",
            place,
        )

    heads = driver.execute_script(
        "return [...document.querySelectorAll('table#slides thead th')].map((head) => head.textContent)"
    )
    assert sorted(column(0)) == sorted([*tiles, "broken"])

    def click(head: str) -> list[str]:
        driver.find_elements("css selector", "table#slides thead th button")[heads.index(head)].click()
        return [name for name in column(0) if name != "broken"]

    for head in ("tumour", "tiles"):
        assert click(head) == ["plain", HOSTILE]
        assert click(head) == [HOSTILE, "plain"]
    assert click("slide") == [HOSTILE, "plain"]
    assert click("slide") == ["plain", HOSTILE]
    sorted_by = driver.find_elements("css selector", "table#slides th[aria-sort]")
    assert [head.get_attribute("aria-sort") for head in sorted_by] == ["descending"]
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    driver.get("about:blank")
