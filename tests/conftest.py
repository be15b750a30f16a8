"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real slides and data, or a skip that says how to get it."""
    folder = Path(os.environ.get("MICROTOME_DATA", ROOT.parent / "shared"))
    if not (folder / "slides").is_dir():
        pytest.skip(f"no real slides: set MICROTOME_DATA to a folder that holds slides/ (looked in {folder})")
    return folder
