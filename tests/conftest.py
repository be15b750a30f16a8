"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"meta", "img", "rect", "br"}
os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Before torch is imported: on tiny networks a second thread only waits for the first, and spins."""
os.environ.setdefault("MICROTOME_WORKERS", "0")
"""Commands of a test work in its own process, where it can look, unless it asks for others."""
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real slides and data, or a skip that says how to get it."""
    folder = Path(os.environ.get("MICROTOME_DATA", ROOT.parent / "shared"))
    if not (folder / "slides").is_dir():
        pytest.skip(f"no real slides: set MICROTOME_DATA to a folder that holds slides/ (looked in {folder})")
    return folder


class Page(HTMLParser):
    """Refuses tags that are not closed, and collects tags, attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = text
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.append((self.open[-1], data))
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data

    def within(self, tag: str) -> list[str]:
        """All texts right in such a tag."""
        return [text for found, text in self.texts if found == tag]

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.tags if found == tag]

    def row(self, first: str) -> list[str]:
        """The first row that begins with this cell, without it."""
        return next(row[1:] for row in self.rows if row and row[0] == first)

    @property
    def words(self) -> str:
        """All text that is seen, in one line."""
        shown = (text for tag, text in self.texts if tag not in {"style", "script", "title"})
        return re.sub(r"\s+", " ", " ".join(shown))


@pytest.fixture(scope="session")
def parsed() -> Callable[[str], Page]:
    """Reads a page of HTML, strictly."""
    return Page
