"""The walls: what may import what, what importing may do, and who may write."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("wsi", "tiling", "mil", "heatmaps")
MAY_IMPORT = {
    "wsi": {"wsi"},
    "tiling": {"wsi", "tiling"},
    "mil": {"wsi", "tiling", "mil"},
    "heatmaps": {"wsi", "tiling", "heatmaps"},
    "cli": {"wsi", "tiling", "mil", "heatmaps"},
}
NEVER = {
    "wsi": {"torch", "timm", "torchvision", "dask", "zarr", "sklearn"},
    "tiling": {"torch", "timm", "torchvision", "sklearn"},
    "mil": {"cv2", "openslide", "tiffslide", "tifffile"},
    "heatmaps": {"torch", "timm", "torchvision", "sklearn"},
    "cli": set(),
}


def sources() -> list[Path]:
    return [ROOT / "cli.py", *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Top-level names of every import, also of those inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room, names = room_of(path), set(imported(path))
    assert names & {*ROOMS, "cli"} <= MAY_IMPORT[room]
    assert not names & NEVER[room]


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_junk_drawers_and_no_endless_files(path: Path) -> None:
    assert path.stem not in {"utils", "util", "common", "helpers", "helper", "base", "misc"}
    assert path.read_text().count("\n") <= 450


IMPORTS = textwrap.dedent(
    """
    import logging, os, socket, sys, warnings
    def refuse(*arguments, **keywords):
        raise AssertionError("importing opened a socket")
    socket.socket.connect = refuse
    socket.create_connection = refuse
    sys.argv = ["somebody-else", "--their-flag"]
    import cv2  # adds to LD_LIBRARY_PATH on import: its doing, not ours
    before = (dict(os.environ), logging.getLogger().level, list(warnings.filters), os.getcwd(), sys.argv[:])
    import importlib
    for name in sys.argv_names:
        importlib.import_module(name)
    after = (dict(os.environ), logging.getLogger().level, list(warnings.filters), os.getcwd(), sys.argv[:])
    assert before[0] == after[0], "the environment changed"
    assert before[1] == after[1], "the root logger's level changed"
    assert before[3:] == after[3:]
    from PIL import Image
    assert Image.MAX_IMAGE_PIXELS == 89478485
    if "{room}" in ("wsi", "tiling", "heatmaps"):
        assert "torch" not in sys.modules, "torch was imported"
    """
)


@pytest.mark.parametrize("room", [*ROOMS, "cli"])
def test_importing_does_nothing(room: str) -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sources()
        if room_of(path) == room
    ]
    script = IMPORTS.replace("sys.argv_names", repr(modules)).replace("{room}", room)
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


WRITES = {"imwrite", "save", "savez", "to_csv", "tofile", "write_text", "write_bytes", "dump"}
WRITERS = {"wsi/durable.py", "tiling/output.py", "tiling/commit.py"}
"""The modules that make writes durable; and the lock file and the journal, which are appended and synced."""


def writes(path: Path) -> Iterator[str]:
    """Calls that write a file, but for those to the temporary name that `replacing` publishes."""
    tree = ast.parse(path.read_text())
    durable = {
        id(inner)
        for block in ast.walk(tree)
        if isinstance(block, ast.With) and "replacing(" in ast.unparse(block.items[0].context_expr)
        for inner in ast.walk(block)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or id(node) in durable:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in WRITES:
            yield f"line {node.lineno}: {name}"
        modes = [*node.args[:2], *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        constants = [mode.value for mode in modes if isinstance(mode, ast.Constant)]
        if name == "open" and any(re.fullmatch(r"[wax]b?\+?|r\+b?", str(mode)) for mode in constants):
            yield f"line {node.lineno}: open for writing"


@pytest.mark.parametrize("name", [p.relative_to(ROOT).as_posix() for p in sources()])
def test_only_the_durable_modules_write(name: str) -> None:
    assert not list(writes(ROOT / name)) or name in WRITERS
