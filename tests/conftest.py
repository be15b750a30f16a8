"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiling.workers.arguments import WORKERS_VARIABLE

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _no_processes_unless_asked() -> Iterator[None]:
    """Commands of a test work in its own process, where it can look: else each would start others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(WORKERS_VARIABLE, "0")
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real slides and data, or a skip that says how to get it."""
    folder = Path(os.environ.get("MICROTOME_DATA", ROOT.parent / "shared"))
    if not (folder / "slides").is_dir():
        pytest.skip(f"no real slides: set MICROTOME_DATA to a folder that holds slides/ (looked in {folder})")
    return folder
