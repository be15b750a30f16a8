"""The output folder: one writer, ids that stay inside, and verify."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tiling.commit import alone, begin
from tiling.output import GROUP, ZARR_FOLDER, Output, check_slide_id, verify_items
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


def test_an_item_is_known_by_its_place_wherever_one_is_found(tmp_path: Path) -> None:
    """One look at one path says what a walk over the whole output would."""
    output = Output(tmp_path)
    for name in ("a/tissue", "a/qc", "b/heatmaps/m", "b/reports/m"):
        publish(output, name)
    for inside in ("tiles", "features/e", "scores/m"):
        publish(output, f"a/{ZARR_FOLDER}/{inside}")
    (tmp_path / "slides" / "a" / ZARR_FOLDER / "features" / "e" / "c").mkdir()
    (tmp_path / "models" / "m").mkdir(parents=True)
    walked = set(output.items())
    assert len(walked) == 7
    everything = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert {path for path in everything if output.is_item(path)} == walked
    assert not output.is_item(tmp_path / "slides" / "a" / "heatmaps" / "gone")
    assert not output.is_item(tmp_path.parent)


def test_what_another_process_has_set_aside_is_gone_and_no_error(tmp_path: Path) -> None:
    output = Output(tmp_path)
    item = publish(output, "a/tissue")
    output.set_aside(item)
    output.set_aside(item)
    assert [path.name for path in (tmp_path / "quarantine").iterdir()] == ["a-tissue.1"]


def test_a_damaged_item_set_aside_twice_is_kept_twice(tmp_path: Path) -> None:
    output = Output(tmp_path)
    first = output.set_aside(publish(output, "a/tissue"))
    second = output.set_aside(publish(output, "a/tissue"))
    assert first != second
    assert first.is_dir()
    assert second.is_dir()
    assert list(output.items()) == []


# Two runs on one output -----------------------------------------------------------------------------------

RUNS = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from tiling.commit import begin, read_commit
    from tiling.output import Output
    from wsi.errors import OutputBusyError
    output, mine, refused, slowest = Output(Path(sys.argv[1])), sys.argv[2], 0, 0.0
    for number in range(50):
        while True:
            start = time.monotonic()
            try:
                with output.lock():
                    for name in (f"{mine}-{number}/tissue", f"shared-{number}/tissue"):
                        item = output.root / "slides" / name
                        if read_commit(item) is None:
                            draft = begin(item, {"place": name}, work=output.work)
                            (draft.folder / "data").write_bytes(name.encode() * 100)
                            draft.publish({})
                break
            except OutputBusyError:
                refused, slowest = refused + 1, max(slowest, time.monotonic() - start)
                time.sleep(0.002)
    print(refused, slowest)
    """
)


def test_of_two_runs_on_one_output_one_is_refused_at_once_and_fifty_times_nothing_is_lost(
    tmp_path: Path,
) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RUNS, str(tmp_path), name], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for name in ("one", "two")
    ]
    found = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(int(refused) for refused, _ in found) > 0
    assert max(float(slowest) for _, slowest in found) < 1
    reports = list(verify_items(Output(tmp_path), full=True))
    assert len(reports) == 150
    assert not any(report.damage or report.stale for report in reports)
    assert list(Output(tmp_path).work.iterdir()) == []


def test_the_holder_is_named_by_process_host_and_command(tmp_path: Path) -> None:
    with Output(tmp_path).lock():
        said = (tmp_path / ".lock").read_text()
        named = re.escape(f"another run is writing here (process {os.getpid()} on {socket.gethostname()}: ")
        with pytest.raises(OutputBusyError, match=named), Output(tmp_path).lock():
            pass
    assert said.endswith(" ".join(Path(word).name for word in sys.argv[:2]))


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EIO])
def test_a_file_system_without_locks_is_said_and_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(OutputError, match=r"does not lock files .* two runs would mix.*local disk") as caught,
        Output(tmp_path).lock(),
    ):
        pytest.fail("it was begun")
    assert caught.value.exit_code == 74
    with (
        pytest.raises(OutputError, match="cannot be written"),
        alone(tmp_path / "m", work=tmp_path / ".work"),
    ):
        pytest.fail("it was begun")
