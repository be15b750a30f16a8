"""The README is run: every command in it works as written, in the order in which it stands."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cli
from wsi.synthetic import write_cohort
from wsi.tissue_cohort import Mixed, write_tissue_cohort

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def names(parser: argparse.ArgumentParser) -> list[str]:
    """Of all commands, those of two words by both."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, one in action.choices.items():
                found += [f"{name} {word}" for word in names(one)] or [name]
    return found


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", "").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("microtome ")]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README takes for granted: slides/, new-slides/, labels.csv, slide.svs, ..."""
    folder = tmp_path_factory.mktemp("desk")
    write_cohort(folder / "slides", count=14, seed=5, size=(768, 512))  # five a class to train on
    (folder / "slides" / "labels.csv").rename(folder / "labels.csv")
    cohort = ["slide", *(f"slides/{path.name}" for path in sorted((folder / "slides").glob("*.svs"))[:2])]
    (folder / "cohort.csv").write_text("\n".join(cohort) + "\n")
    (folder / "new-slides").mkdir()
    shutil.copy(folder / "slides" / "synth-000.svs", folder / "new-slides" / "new.svs")
    shutil.copy(folder / "slides" / "synth-000.svs", folder / "slide.svs")
    lay_out_few_shots(folder)
    return folder


def lay_out_few_shots(folder: Path) -> None:
    """marked/, regions/, patients.csv and new-7.geojson: tissues of two sites, the second for testing."""
    plan = Mixed(("lymphoid", "muscle", "tumour"), 3)
    marked = folder / "marked"
    write_tissue_cohort(marked, plan=plan, sites=range(2), patients_per_site=4, seed=1, size=(1024, 1024))
    (marked / "annotations").rename(folder / "regions")
    shutil.rmtree(marked / "masks")
    lines = (marked / "labels.csv").read_text().splitlines()
    split = ["split", *("test" if line.startswith("site1") else "train" for line in lines[1:])]
    table = "\n".join(f"{line},{side}" for line, side in zip(lines, split, strict=True))
    (folder / "patients.csv").write_text(table + "\n")
    (marked / "labels.csv").unlink()
    (marked / "site1-p00-0.svs").rename(marked / "new-7.svs")
    (folder / "regions" / "site1-p00-0.geojson").rename(folder / "new-7.geojson")
    table = (folder / "patients.csv").read_text().splitlines()
    (folder / "patients.csv").write_text("\n".join(t for t in table if "site1-p00" not in t) + "\n")


def test_the_readme_shows_every_command() -> None:
    shown = {" ".join(words[1:3]) for words in commands()} | {words[1] for words in commands()}
    assert set(names(cli.build_parser())) - shown == {"demo"}
    assert "make demo" in README


def test_every_command_runs_as_written(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    for words in commands():
        if words[1] == "view":
            words.append("--help")  # it serves until Ctrl-C; tests/heatmaps/viewer start it
            with pytest.raises(SystemExit):
                cli.build_parser().parse_args(words[1:])
            continue
        code = cli.main(words[1:])
        _, errors = capsys.readouterr()
        assert "ERROR" not in errors, f"{words}: {errors}"
        assert code == 0 or words[1] == "doctor", words  # what doctor finds here is not the README's doing
    assert (desk / "new-results/slides/new/heatmaps/model/heatmap-tumour.ome.tif").is_file()
    assert (desk / "tissues/slides/new-7/heatmaps/adapted/overlay-uncertainty.png").is_file()


def test_the_python_runs_as_written(desk: Path) -> None:
    (code,) = blocks("python")
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=desk, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("(2, 256, 256, 3)")


def test_every_script_and_test_that_is_named_is_there() -> None:
    named = re.findall(r"((?:benchmarks|tests)/\w+\.py)", README)
    named += [f"benchmarks/{name}.py" for name in re.findall(r"-m benchmarks\.(\w+)", README)]
    assert len(named) >= 4
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_make_target_named_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for text in (README, (ROOT / "CONTRIBUTING.md").read_text(), (ROOT / ".ci" / "run").read_text()):
        for target in re.findall(r"make ([a-z]+)\b", text):
            if target not in {"it", "them"}:
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_link_leads_to_a_file(name: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_file_that_the_architecture_names_is_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = re.findall(r"`((?:wsi|tiling|mil|heatmaps)/[\w/]+\.py)`", text)
    assert len(named) >= 10
    assert [name for name in named if not (ROOT / name).exists()] == []
