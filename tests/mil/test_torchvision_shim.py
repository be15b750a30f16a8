"""Laws of the shim: it cures one failure, hides no other, and does nothing where nothing is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mil.networks.torchvision_shim import import_timm

ROOT = Path(__file__).resolve().parents[2]

BROKEN = """
import torch
torch.library.register_fake("torchvision::nms")(lambda *_: None)
torch.library.register_fake("torchvision::qnms")(lambda *_: None)
"""
"""What the published build does after its library failed to load."""


def run_with_torchvision(folder: Path, source: str, code: str) -> subprocess.CompletedProcess[str]:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(source)
    path = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}]\n"
    return subprocess.run(
        [sys.executable, "-c", path + code], capture_output=True, text=True, timeout=120, check=False
    )


def test_timm_imports_here() -> None:
    assert import_timm().is_model("resnet50")
    assert import_timm() is sys.modules["timm"]


def test_the_known_failure_is_cured(tmp_path: Path) -> None:
    code = """
from mil.networks.torchvision_shim import ensure_torchvision
assert ensure_torchvision() is not None
import torchvision
"""
    run = run_with_torchvision(tmp_path, BROKEN, code)
    assert run.returncode == 0, run.stderr


def test_a_working_torchvision_is_left_alone(tmp_path: Path) -> None:
    code = """
from mil.networks.torchvision_shim import ensure_torchvision as e
import torch
assert e() is None
assert not hasattr(torch.ops.torchvision, "nms")
"""
    run = run_with_torchvision(tmp_path, "works = True", code)
    assert run.returncode == 0, run.stderr


def test_another_failure_is_not_hidden(tmp_path: Path) -> None:
    code = "from mil.networks.torchvision_shim import ensure_torchvision\nensure_torchvision()"
    run = run_with_torchvision(tmp_path, "raise RuntimeError('something else')", code)
    assert "RuntimeError: something else" in run.stderr


def test_importing_loads_neither_timm_nor_scikit_learn() -> None:
    files = [path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / "mil").rglob("*.py"))]
    modules = [".".join(file.parts).removesuffix(".__init__") for file in files]
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
assert not {{'timm', 'torchvision', 'sklearn'}} & set(sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
