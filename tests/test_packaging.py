"""What is shipped: the wheel holds the rooms and nothing else; versions and pins fit together."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        yield archive


def test_the_wheel_holds_our_rooms_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "wsi", "tiling", "mil", "heatmaps", "cli.py",
    }  # fmt: skip
    assert not [name for name in names if "test" in name or name.endswith(".pyc")]
    here = {
        path.relative_to(ROOT).as_posix()
        for room in ("wsi", "tiling", "mil", "heatmaps")
        for path in (ROOT / room).rglob("*.py")
    }
    page = ROOT / "heatmaps" / "viewer" / "page"
    here |= {
        path.relative_to(ROOT).as_posix() for path in page.iterdir()
    }  # with OpenSeadragon and its licence
    assert here <= set(names)
    assert {"index.html", "viewer.js", "viewer.css", "openseadragon.min.js"} <= {
        p.name for p in page.iterdir()
    }
    assert "heatmaps/report/schema.json" in names


def test_the_wheel_names_its_command_and_licence(wheel: zipfile.ZipFile) -> None:
    info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info" in name)
    assert "microtome = cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: <3.14,>=3.11" in metadata
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_within_its_range() -> None:
    from packaging.requirements import Requirement

    pinned = {normal(name): version for name, version in pins().items()}
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, wanted):
        assert normal(requirement.name) in pinned, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pinned[normal(requirement.name)]), str(requirement)


def test_constraints_name_no_local_build_and_no_address() -> None:
    for name, version in pins().items():
        assert re.fullmatch(r"[\w.]+", version), f"{name}=={version}"
