"""The output folder: one writer, ids that stay inside, and verify."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tiling.commit import begin
from tiling.output import GROUP, Output, check_slide_id, verify_items
from wsi.errors import OutputBusyError, OutputError, UsageError

ROOT = Path(__file__).resolve().parents[2]


def publish(output: Output, place: str) -> Path:
    item = output.root / "slides" / place
    draft = begin(item, {"place": place}, work=output.work)
    (draft.folder / "data").write_bytes(b"x" * 100)
    draft.publish({})
    return item


def test_a_second_run_is_refused_at_once_and_told_who_holds_it(tmp_path: Path) -> None:
    holder = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from tiling.output import Output
        with Output(Path(sys.argv[1])).lock():
            print("held", flush=True)
            time.sleep(60)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(OutputBusyError, match=f"process {process.pid} on .*Wait for it") as caught,
            Output(tmp_path).lock(),
        ):
            pass
        assert caught.value.exit_code == 75
        process.kill()
        process.wait()
        with Output(tmp_path).lock():  # the lock died with its process
            pass
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_an_output_that_cannot_be_written_is_found_before_any_work(tmp_path: Path) -> None:
    """As an ordinary user: the superuser may write anywhere."""
    folder = tmp_path / "readonly"
    folder.mkdir()
    folder.chmod(0o555)
    tmp_path.chmod(0o755)
    script = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from tiling.output import Output
        from wsi.errors import OutputError
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        try:
            with Output(Path(sys.argv[1]) / "out").lock():
                pass
        except OutputError as error:
            print(error)
            sys.exit(error.exit_code)
        """
    )
    for parent in folder.parents:  # the test folder must be reachable for nobody
        if parent.stat().st_uid == os.getuid() and parent.stat().st_mode & 0o777 == 0o700:
            parent.chmod(0o711)
    result = subprocess.run(
        [sys.executable, "-c", script, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 74, result.stderr
    assert "cannot be written" in result.stdout
    assert OutputError.exit_code == 74


@pytest.mark.parametrize(
    "name", ["slide 7", "-rf", "Slide_7.b", "ÄÖ", "x" * 150, "a[1]+b", "h#1&2", "it's", "😐", "<img>", "$(x)"]
)
def test_usual_names_are_slide_ids(name: str) -> None:
    assert check_slide_id(name) == name


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", ".hid", "é" * 76, "a\nb", "a\0b", " a", "a ", "a\\b"]
)
def test_names_that_leave_the_folder_or_hide_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a slide id"):
        check_slide_id(name)


def test_verify_sees_every_item_and_every_kind_of_damage(tmp_path: Path) -> None:
    output = Output(tmp_path)
    group = tmp_path / "slides" / "a" / "store.zarr" / "zarr.json"
    group.parent.mkdir(parents=True)
    group.write_bytes(GROUP)
    items = [publish(output, place) for place in ("a/store.zarr/tiles", "a/tissue", "b/heatmaps/m")]
    assert [report.item for report in verify_items(output)] == items
    assert not any(report.damage or report.stale for report in verify_items(output, full=True))
    (items[0] / "data").write_bytes(b"y" * 100)  # same size
    (items[1] / "data").write_bytes(b"x")
    (items[2] / "commit.json").unlink()
    assert [bool(report.damage) for report in verify_items(output)] == [False, True, True]
    assert [bool(report.damage) for report in verify_items(output, full=True)] == [True, True, True]


def test_verify_sees_models_too_and_sets_them_aside(tmp_path: Path) -> None:
    output = Output(tmp_path)
    slide, model = publish(output, "a/tissue"), publish(output, "../models/adapted").resolve()
    assert [report.item for report in verify_items(output, full=True)] == [slide, model]
    (model / "data").write_bytes(b"y" * 100)  # same size
    assert [bool(report.damage) for report in verify_items(output, full=True)] == [False, True]
    assert output.set_aside(model).name == "models-adapted.1"
    assert list(output.items()) == [slide]


def test_what_other_programs_leave_behind_hides_nothing_and_is_left_alone(tmp_path: Path) -> None:
    output = Output(tmp_path)
    item = publish(output, "a/tissue")
    for stray in ("Thumbs.db", "a/notes.txt", "a/heatmaps", "b"):
        (tmp_path / "slides" / stray).mkdir() if "." not in stray else (tmp_path / "slides" / stray).touch()
    assert [(report.item, report.damage) for report in verify_items(output, full=True)] == [(item, ())]
    assert list(output.items()) == [item]
    assert output.is_item(item)
    assert not output.is_item(tmp_path / "slides" / "a")


def test_nothing_to_verify_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no results"):
        list(verify_items(Output(tmp_path / "nowhere")))


def test_a_damaged_item_set_aside_twice_is_kept_twice(tmp_path: Path) -> None:
    output = Output(tmp_path)
    first = output.set_aside(publish(output, "a/tissue"))
    second = output.set_aside(publish(output, "a/tissue"))
    assert first != second
    assert first.is_dir()
    assert second.is_dir()
    assert list(output.items()) == []
