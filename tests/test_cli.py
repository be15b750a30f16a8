"""The command line: help for everything, one clear line for every bad input, exit codes for scripts."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

import cli
from mil.fewshot.adapting import AdaptRecipe
from mil.fewshot.evaluating import FewshotSettings
from mil.fewshot.recipe import MetaRecipe
from mil.training import TrainingRecipe
from tiling.arguments import cut_recipe
from tiling.grid import TileSpec
from tiling.recipe import CutRecipe
from wsi.synthetic import write_slide

ROOT = Path(__file__).resolve().parent.parent


def commands(parser: argparse.ArgumentParser | None = None) -> dict[str, argparse.ArgumentParser]:
    """By name; of a family such as ``fewshot`` its members, by both words."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in (parser or cli.build_parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, one in action.choices.items():
                found |= {f"{name} {word}": member for word, member in commands(one).items()} or {name: one}
    return found


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "good.svs"
    write_slide(path, seed=1, lesion=True, size=(1024, 768), label_image=True)
    return path


# Help -----------------------------------------------------------------------------------------------------


def test_the_commands_are_those_that_were_promised() -> None:
    assert set(commands()) == {
        "info", "tissue", "tile", "encode", "train", "evaluate", "predict", "heatmap", "run", "verify",
        "doctor", "demo", "export", "import", "fewshot train", "fewshot evaluate", "adapt", "view", "report",
    }  # fmt: skip


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help_an_example_and_every_option_a_word(name: str) -> None:
    command = commands()[name]
    assert command.description
    assert re.search(rf"example:\n  microtome {name} \S", command.epilog or "")
    for action in command._actions:
        assert action.help, f"{name} {action.option_strings or action.dest}"


@pytest.mark.parametrize("name", commands())
def test_every_example_can_be_parsed(name: str) -> None:
    example = (commands()[name].epilog or "").split("microtome ", 1)[1]
    function = cli.build_parser().parse_args(example.split()).command.__name__
    assert function.rstrip("_").replace("_", " ") == name


@pytest.mark.parametrize(
    ("command", "option", "default"),
    [
        ("tile", "--mpp", TileSpec().mpp),
        ("tile", "--tile-size", TileSpec().size_px),
        ("tile", "--overlap", TileSpec().overlap_px),
        ("tile", "--min-tissue", CutRecipe().min_tissue),
        ("train", "--epochs", TrainingRecipe().epochs),
        ("train", "--seed", TrainingRecipe().seed),
        ("train", "--head", TrainingRecipe().head),
        ("fewshot train", "--ways", MetaRecipe().ways),
        ("fewshot train", "--shots", " ".join(map(str, MetaRecipe().shots))),
        ("fewshot train", "--queries", MetaRecipe().queries),
        ("fewshot train", "--inner-steps", MetaRecipe().inner_steps),
        ("fewshot train", "--inner-rate", MetaRecipe().inner_rate),
        ("fewshot train", "--iterations", MetaRecipe().iterations),
        ("fewshot train", "--tasks-per-step", MetaRecipe().tasks_per_step),
        ("fewshot train", "--outer-rate", MetaRecipe().outer_rate),
        ("fewshot train", "--alignment", MetaRecipe().alignment),
        ("fewshot train", "--patience", MetaRecipe().patience),
        ("fewshot evaluate", "--episodes", FewshotSettings().episodes),
        ("adapt", "--most", AdaptRecipe().most),
    ],
)
def test_help_states_the_library_s_own_default(command: str, option: str, default: object) -> None:
    action = commands()[command]._option_string_actions[option]
    assert f"(default {default})" in (action.help or "")
    assert action.default is None  # the library's is used, not a second one


def test_help_comes_at_once_and_imports_nothing_heavy() -> None:
    script = (
        "import sys, cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'sklearn', 'zarr', 'cv2', 'tiffslide', 'dask'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "exit codes:" in done.stdout


# Info -----------------------------------------------------------------------------------------------------


def test_info_is_json_for_machines(slide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", slide, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["size"] == [1024, 768]
    assert facts["mpp"] == [0.5, 0.5]
    assert facts["mpp_source"] == "vendor property"
    assert facts["backend"] == "openslide"
    assert {"label", "macro"} <= set(facts["associated_images"])


def test_info_works_without_mpp_and_goes_on_after_a_bad_file(
    tmp_path: Path, slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, broken = tmp_path / "bare.tiff", tmp_path / "broken.svs"
    write_slide(bare, seed=1, lesion=False, size=(512, 512), mpp=None)
    broken.write_text("<html>Please log in</html>")
    code, out, err = run(capsys, "info", bare, broken, slide, "--json")
    assert code == 1
    assert [json.loads(line)["mpp"] for line in out.splitlines()] == [None, [0.5, 0.5]]
    assert err.startswith("ERROR")
    assert "broken.svs" in err


# Bad input ------------------------------------------------------------------------------------------------


def bad_slides(folder: Path, slide: Path) -> dict[str, tuple[Path, str]]:
    """Files that cannot be cut, each with a pattern of what must be said."""
    good = slide.read_bytes()
    (folder / "page.svs").write_text("<!DOCTYPE html><html>Session expired</html>")
    (folder / "text.svs").write_text("slide\n" * 100)
    (folder / "empty.svs").write_bytes(b"")
    (folder / "cut.svs").write_bytes(good[: len(good) // 2])
    write_slide(folder / "bare.tiff", seed=1, lesion=False, size=(512, 512), mpp=None)
    screen = np.zeros((300, 300, 3), np.uint8)
    tifffile.imwrite(
        folder / "absurd.tiff",
        screen,
        tile=(64, 64),
        photometric="rgb",
        resolution=(72, 72),
        resolutionunit="INCH",
    )
    (folder / "folder.svs").mkdir()
    os.mkfifo(folder / "pipe.svs")
    return {
        "missing": (folder / "missing.svs", r"missing\.svs: .*(no such file|not exist|missing)"),
        "page": (folder / "page.svs", r"page\.svs: .*HTML"),
        "text": (folder / "text.svs", r"text\.svs: "),
        "empty": (folder / "empty.svs", r"empty\.svs: .*empty"),
        "cut": (folder / "cut.svs", r"cut\.svs: .*truncated"),
        "bare": (folder / "bare.tiff", r"bare\.tiff: .*no microns per pixel.*--mpp-override"),
        "absurd": (folder / "absurd.tiff", r"absurd\.tiff: .*outside.*--mpp-override"),
        "pipe": (folder / "pipe.svs", r"pipe\.svs: .*not a regular file|pipe\.svs: .*(pipe|FIFO)"),
    }


@pytest.mark.parametrize("name", ["missing", "page", "text", "empty", "cut", "bare", "absurd", "pipe"])
def test_a_bad_slide_gets_one_clear_line_and_the_others_go_on(
    tmp_path: Path, slide: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, pattern = bad_slides(tmp_path, slide)[name]
    code, out, err = run(
        capsys, "tile", bad, slide, "-o", tmp_path / "out", "--mpp", "1", "--tile-size", "64"
    )
    assert code == 1
    assert "Traceback" not in err
    first = next(line for line in err.splitlines() if line.startswith("ERROR"))
    assert re.search(pattern, first, re.IGNORECASE), first
    assert first.rstrip().count(". ") >= 1 or first.endswith("."), f"no action in: {first}"
    assert "1 of 2 slides failed" in err
    assert "good  status: done" in out
    assert not (tmp_path / "out" / "slides" / bad.stem / "store.zarr" / "tiles").exists()


def test_a_slide_without_tissue_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "white.tiff"
    white = np.full((512, 512, 3), 244, np.uint8)
    tifffile.imwrite(
        path, white, tile=(256, 256), photometric="rgb", resolution=(1e4, 1e4), resolutionunit="CENTIMETER"
    )
    code, out, _ = run(capsys, "tile", path, "-o", tmp_path / "out", "--mpp", "2")
    assert code == 0
    assert "status: no tissue" in out
    assert "white.tiff" in out


NARROWER = (["--min-sharpness", "1e9"], ["--min-tissue", "1", "--tile-size", "999"])


@pytest.mark.parametrize("narrower", NARROWER)
def test_tiles_that_are_replaced_by_none_stay_and_that_is_a_failure(
    tmp_path: Path, slide: Path, narrower: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, words = tmp_path / "out", ["--mpp", "1", "--tile-size", "64"]
    assert run(capsys, "tile", slide, "-o", out, *words)[0] == 0
    code, _, err = run(capsys, "tile", slide, "-o", out, *words, *narrower)
    assert (code, "--overwrite" in err) == (2, True)
    code, _, err = run(capsys, "tile", slide, "-o", out, *words, *narrower, "--overwrite")
    assert (code, "'good' has were not replaced" in err) == (2, True), err
    assert run(capsys, "tile", slide, "-o", out, *words)[0] == 0  # as they were
    assert run(capsys, "verify", out)[0] == 0
    code, said, _ = run(capsys, "tile", slide, "-o", tmp_path / "new", *words, *narrower)
    assert (code, "status: no tiles" in said) == (0, True)


def test_a_reference_that_cannot_be_one_is_a_wrong_setting(
    tmp_path: Path, slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    white = tmp_path / "white.tiff"
    blank = np.full((512, 512, 3), 244, np.uint8)
    mpp = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(white, blank, tile=(256, 256), photometric="rgb", **mpp)
    for reference in (tmp_path / "nope.svs", tmp_path, white):
        code, _, err = run(capsys, "tile", slide, "-o", tmp_path / "out", "--stain-reference", reference)
        assert (code, "cannot be the stain's reference" in err) == (2, True), err
        assert not (tmp_path / "out").exists()


def test_what_is_overridden_is_not_the_reference_s_own_resolution(tmp_path: Path, slide: Path) -> None:
    parser = cli.build_parser()
    words = ["tile", str(slide), "-o", "x", "--mpp", "1", "--stain-reference", str(slide)]
    stated, other = (
        cut_recipe(parser.parse_args([*words, *more])) for more in ([], ["--mpp-override", "0.25"])
    )
    assert stated.stain == other.stain != CutRecipe().stain


def test_up_sampling_is_refused_with_the_figure_to_ask_for(
    tmp_path: Path, slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "tile", slide, "-o", tmp_path / "out", "--mpp", "0.25")
    assert code == 1
    assert re.search(r"good\.svs: .*0\.5 µm per pixel, and 0\.25.*--mpp 0\.5", err)


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["--mpp", "0"], "tile mpp is 0"),
        (["--tile-size", "1"], "tile size is 1 px"),
        (["--overlap", "999"], "overlap is 999 px"),
        (["--min-tissue", "0"], "min_tissue is 0"),
        *((["--pixels", wrong], "--pixels is") for wrong in ("", "jpeg:", "jpeg:²", "zstd:3", "png")),
    ],
)
def test_wrong_settings_start_nothing(
    tmp_path: Path, slide: Path, words: list[str], pattern: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "tile", slide, "-o", tmp_path / "out", *words)
    assert code == 2
    assert re.search(f"ERROR .*{pattern}", err)
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_and_two_slides_of_one_name_are_wrong_settings(
    tmp_path: Path, slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    code, _, err = run(capsys, "tile", empty, "-o", tmp_path / "out")
    assert (code, "no slide in this folder" in err) == (2, True)
    other = tmp_path / slide.name
    other.write_bytes(slide.read_bytes())
    code, _, err = run(capsys, "tile", slide, other, "-o", tmp_path / "out")
    assert (code, "would both be slide 'good'" in err) == (2, True)


@pytest.mark.parametrize("kind", ["missing", "a file", "pickle", "cut"])
def test_an_unreadable_model_is_named(
    tmp_path: Path, slide: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    if kind == "a file":
        model.write_bytes(b"PK\x03\x04 not a model")
    elif kind != "missing":
        model.mkdir()
        (model / "model.json").write_text("{" if kind == "cut" else "{}")
        (model / "weights.safetensors").write_bytes(b"\x80\x04\x95 pickled")
    code, _, err = run(capsys, "run", slide, "-m", model, "-o", tmp_path / "out")
    assert code == 2
    assert re.match(r"ERROR .*model.*\. \S", err)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("table", "pattern"),
    [
        ("case,label\na,x\n", "slide_id"),
        ("", "no column slide_id nor label"),
        ("slide_id,label\n", "no slides"),
        ("slide_id,label\na,x\na,y\n", "twice|more than once|lines"),
        ("slide_id,label\na,x\nb,x\n", "one label"),
        ("slide_id,label\na,x\nb,\n", "blank|empty|no label"),
        ("slide_id,label\na,x\nb,y\n", "no features"),
    ],
)
def test_a_wrong_label_table_is_named_before_any_work(
    tmp_path: Path, table: str, pattern: str, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(table)
    code, _, err = run(capsys, "train", tmp_path, "--labels", labels, "-m", tmp_path / "model")
    assert code == 2
    assert re.search(rf"ERROR .*labels\.csv.*({pattern})", err), err
    assert not (tmp_path / "model").exists()


def test_an_impossible_name_costs_that_slide_only(
    tmp_path: Path, slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("fine.svs", "it's <b> & $(so).svs", "two\nlines.svs", os.fsdecode(b"\xff.svs")):
        (folder / name).write_bytes(slide.read_bytes())
    words = ["tile", folder, "-o", tmp_path / "out", "--mpp", "1", "--tile-size", "64"]
    code, _, err = run(capsys, *words)
    assert code == 1
    assert "cannot be a slide id" in err
    assert sorted(p.name for p in (tmp_path / "out" / "slides").iterdir()) == ["fine", "it's <b> & $(so)"]


def test_a_name_cannot_command_the_terminal(
    tmp_path: Path, slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good.svs", "a\x1b[31mred.svs", "b\nERROR forged.svs", "c\x9b.svs"):
        (tmp_path / name).write_bytes(slide.read_bytes()[: None if name == "good.svs" else 1000])
    for words in (["info", tmp_path], ["tile", tmp_path, "-o", tmp_path / "out", "--mpp", "1"]):
        code, out, err = run(capsys, *words)
        assert code == 1
        assert "\\x1b[31mred" in err
        assert not any(line.startswith("ERROR forged") for line in err.splitlines())
        assert all(c.isprintable() or c == "\n" for c in out + err)


def test_a_reader_that_goes_away_is_no_error_of_ours(tmp_path: Path, slide: Path) -> None:
    command = f"'{sys.executable}' -m cli info '{slide}' '{slide}' '{slide}' --json | head -c 1 >/dev/null"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_several_dicom_files_are_not_taken_for_several_slides(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = data_dir / "slides" / "formats" / "dicom"
    code, _, err = run(capsys, "tile", folder, "-o", tmp_path / "out")
    assert (code, "Give one file of each slide" in err) == (2, True)


def test_a_bug_of_ours_is_a_line_and_code_70_and_a_traceback_only_when_asked_for(
    tmp_path: Path, slide: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **keywords: object) -> None:
        raise RuntimeError("who would have thought")

    monkeypatch.setattr("tiling.pipeline.begin_cutting", broken)
    code, _, err = run(capsys, "tile", slide, "-o", tmp_path / "out")
    assert code == 70
    assert "unexpected RuntimeError: who would have thought" in err
    assert "Traceback" not in err
    code, _, err = run(capsys, "tile", slide, "-o", tmp_path / "out", "--debug")
    assert code == 70
    assert "Traceback" in err


def test_an_interruption_is_130_and_keeps_what_is_finished(
    tmp_path: Path, slide: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tiling.pipeline.begin_cutting", interrupted)
    code, _, err = run(capsys, "tile", slide, "-o", tmp_path / "out")
    assert code == 130
    assert "again" in err
    assert (tmp_path / "out" / "slides" / "good" / "tissue" / "commit.json").exists()


# The whole way --------------------------------------------------------------------------------------------


def test_again_skips_and_json_says_so(
    tmp_path: Path, slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tile", slide, "-o", tmp_path / "out", "--mpp", "1", "--tile-size", "64", "--json"]
    first, second = (json.loads(run(capsys, *words)[1]) for _ in range(2))
    assert (first["status"], second["status"]) == ("done", "already done")
    assert first["tiles"] == second["tiles"] > 0
    code, out, _ = run(capsys, *words, "--stain", "none")
    assert code == 2
    assert re.search(r"stain .*not None.*--overwrite", json.loads(out)["reason"])
    code, out, _ = run(capsys, *words, "--stain", "none", "--overwrite")
    assert (code, json.loads(out)["status"]) == (0, "done")


def test_verify_finds_damage_and_the_next_run_mends_it(
    tmp_path: Path, slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["tile", slide, "-o", out, "--mpp", "1", "--tile-size", "64"]
    run(capsys, *words)
    assert run(capsys, "verify", out, "--full")[0] == 0
    shard = out / "slides" / "good" / "store.zarr" / "tiles" / "pixels" / "c" / "0" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-1])
    code, text, _ = run(capsys, "verify", out, "--json")
    assert code == 1
    assert json.loads(text.splitlines()[0])["file"] == "pixels/c/0/0/0/0"
    assert run(capsys, *words)[0] == 0
    assert run(capsys, "verify", out, "--full")[0] == 0


def test_set_aside_takes_what_is_damaged_and_nothing_else(
    tmp_path: Path, slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["tile", slide, "-o", out, "--mpp", "1", "--tile-size", "64"]
    run(capsys, *words)
    store = out / "slides" / "good" / "store.zarr"
    shard = store / "tiles" / "pixels" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[50] ^= 1
    shard.write_bytes(data)
    (store / "zarr.json").unlink()
    for _ in range(2):  # the second time there is nothing more to take: the QC page is only out of date
        assert run(capsys, "verify", out, "--full", "--set-aside")[0] == 1
    assert [p.name for p in (out / "quarantine").iterdir()] == ["good-store.zarr-tiles.1"]
    assert run(capsys, *words)[0] == 0
    assert run(capsys, "verify", out, "--full")[0] == 0


@pytest.mark.parametrize("figure", ["0", "-1", "nan", "400", "0.00001"])
def test_an_absurd_override_is_refused(
    tmp_path: Path, slide: Path, figure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "tissue", slide, "-o", tmp_path / "out", "--mpp-override", figure)
    assert (code, "0.05 to 100 are possible" in err) == (2, True)


def test_doctor_finds_this_machine_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--json", "--encoder", "timm:test_vit", "--speed-test", "1"
    _, out, _ = run(capsys, "doctor", tmp_path, *words)
    findings = {row["name"]: row for row in map(json.loads, out.splitlines())}
    assert findings["locks"]["value"] == findings["renames folders at once"]["value"] == "yes"
    assert findings["openslide-bin"]["advice"] == ""
    assert findings["speed of encoding"]["figures"]["tiles_per_second"] > 0
    assert list(tmp_path.iterdir()) == []
