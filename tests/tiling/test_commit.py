"""Laws of the commit rule: an item is there whole or not at all, and damage never passes for data."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiling.commit import COMMIT_FILE, FileEntry, begin, canonical, find_damage, load_commit, read_commit
from wsi.errors import DamagedError, OutputError

ROOT = Path(__file__).resolve().parents[2]
RECIPE = {"step": "test", "seed": 1}


def make_item(root: Path, name: str = "item", recipe: dict | None = None) -> Path:
    """Publish an item of two parts and a loose file."""
    item = root / "slides" / name
    draft = begin(item, recipe or RECIPE, work=root / ".work")
    for part in ("a", "b"):
        path = draft.folder / "data" / part
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(part.encode() * 1000)
        draft.finish_part(part, [path])
    (draft.folder / "loose").write_bytes(b"metadata")
    draft.publish({"count": 2})
    return item


def tree(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".work" not in path.parts
    }


def test_what_is_published_reads_back(tmp_path: Path) -> None:
    commit = read_commit(make_item(tmp_path))
    assert commit is not None
    assert commit.recipe == RECIPE
    assert commit.record == {"count": 2}
    assert set(commit.files) == {"data/a", "data/b", "loose"}
    assert list((tmp_path / ".work").iterdir()) == []


def test_an_item_that_is_not_there_is_none_and_a_draft_is_invisible(tmp_path: Path) -> None:
    item = tmp_path / "slides" / "item"
    draft = begin(item, RECIPE, work=tmp_path / ".work")
    (draft.folder / "x").write_bytes(b"half")
    assert read_commit(item) is None


def test_equal_recipes_give_equal_bytes_anywhere(tmp_path: Path) -> None:
    make_item(tmp_path / "one")
    make_item(tmp_path / "two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_part_is_kept_and_what_no_journal_vouches_for_is_deleted(tmp_path: Path) -> None:
    item, work = tmp_path / "item", tmp_path / ".work"
    draft = begin(item, RECIPE, work=work)
    (draft.folder / "sure").write_bytes(b"finished")
    draft.finish_part("sure", [draft.folder / "sure"])
    (draft.folder / "unsure").write_bytes(b"being writ")
    again = begin(item, RECIPE, work=work)
    assert set(again.parts) == {"sure"}
    assert not (again.folder / "unsure").exists()


def test_a_finished_part_that_lost_its_bytes_is_made_again(tmp_path: Path) -> None:
    item, work = tmp_path / "item", tmp_path / ".work"
    draft = begin(item, RECIPE, work=work)
    (draft.folder / "sure").write_bytes(b"finished")
    draft.finish_part("sure", [draft.folder / "sure"])
    (draft.folder / "sure").write_bytes(b"")  # a power cut on a disk that lies about syncing
    assert begin(item, RECIPE, work=work).parts == {}


def test_a_torn_journal_line_is_ignored(tmp_path: Path) -> None:
    item, work = tmp_path / "item", tmp_path / ".work"
    draft = begin(item, RECIPE, work=work)
    (draft.folder / "sure").write_bytes(b"finished")
    draft.finish_part("sure", [draft.folder / "sure"])
    with draft.folder.with_name(draft.folder.name + ".journal").open("ab") as stream:
        stream.write(b'{"part": "torn", "fi')
    again = begin(item, RECIPE, work=work)
    assert set(again.parts) == {"sure"}
    (again.folder / "more").write_bytes(b"after the torn line")
    again.finish_part("more", [again.folder / "more"])
    assert set(begin(item, RECIPE, work=work).parts) == {"sure", "more"}


def test_the_draft_of_another_recipe_is_given_up(tmp_path: Path) -> None:
    item, work = tmp_path / "item", tmp_path / ".work"
    old = begin(item, RECIPE, work=work)
    new = begin(item, RECIPE | {"seed": 2}, work=work)
    assert not old.folder.exists()
    assert new.folder.exists()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_flip_and_every_cut_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    item = make_item(tmp_path_factory.mktemp("damage"))
    name = data.draw(st.sampled_from(["data/a", "data/b", "loose", COMMIT_FILE]))
    path = item / name
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[at:]
    path.write_bytes(bytes(content))
    try:
        damage = list(find_damage(item, load_commit(item), full=True))
    except DamagedError:
        return  # commit.json itself
    assert [d.file for d in damage] == [name]


@pytest.mark.parametrize("harm", ["missing", "cut", "added", "no commit"])
def test_a_reader_refuses_a_damaged_item(tmp_path: Path, harm: str) -> None:
    item = make_item(tmp_path)
    if harm == "missing":
        (item / "data" / "a").unlink()
    elif harm == "cut":
        (item / "data" / "a").write_bytes(b"")
    elif harm == "added":
        (item / "data" / "c").write_bytes(b"")
    else:
        (item / COMMIT_FILE).unlink()
    with pytest.raises(DamagedError, match="damaged"):
        read_commit(item)


@pytest.mark.parametrize("spelling", ["indented", "unsorted", "longer", "twice"])
def test_the_same_content_in_another_spelling_is_no_commit(tmp_path: Path, spelling: str) -> None:
    """The checksum is of the bytes as they were written: none of them can change unnoticed."""
    path = make_item(tmp_path) / COMMIT_FILE
    data = path.read_bytes()
    content = json.loads(data)
    head = f' "checksum": "{content["checksum"]}",\n'.encode()
    assert data.startswith(b"{\n" + head)
    others = {
        "indented": json.dumps(content, sort_keys=True, indent=2).encode() + b"\n",
        "unsorted": json.dumps(dict(reversed(content.items())), indent=1).encode() + b"\n",
        "longer": data + b"\n",
        "twice": b"{\n" + head + head + data.removeprefix(b"{\n" + head),
    }
    assert json.loads(others[spelling]) == content
    path.write_bytes(others[spelling])
    with pytest.raises(DamagedError, match="its own checksum"):
        load_commit(path.parent)


@pytest.mark.parametrize("name", ["data", "data/a/b", "no\0name", "gone", "loop"])
def test_what_is_no_file_is_missing(tmp_path: Path, name: str) -> None:
    item = make_item(tmp_path)
    commit = load_commit(item)
    (item / "loop").symlink_to("loop")
    changed = replace(commit, files={**commit.files, "loop": FileEntry(1, ""), name: FileEntry(1, "")})
    assert {damage.file for damage in find_damage(item, changed)} == {"loop", name}


def test_a_file_that_cannot_be_asked_for_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk or a network that fails says nothing of what was committed."""
    item = make_item(tmp_path)
    commit, asked = load_commit(item), os.stat

    def fails(path: str, **more: object) -> os.stat_result:
        if str(path).endswith("loose"):
            raise OSError(errno.EIO, "Input/output error")
        return asked(path, **more)

    monkeypatch.setattr("os.stat", fails)
    with pytest.raises(OSError, match="Input/output"):
        list(find_damage(item, commit))


def test_canonical_json_has_one_spelling_and_no_nan() -> None:
    assert canonical({"b": 1, "a": [1.5]}) == canonical({"a": [1.5], "b": 1})
    with pytest.raises(ValueError, match=r"NaN|nan|compliant"):
        canonical({"a": float("nan")})


SCRIPT = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from tiling.commit import begin, read_commit
    root = Path(sys.argv[1])
    item = root / "slides" / "item"
    if read_commit(item) is None:
        draft = begin(item, {"step": "test", "seed": 1}, work=root / ".work")
        for part in ("a", "b"):
            if part not in draft.parts:
                path = draft.folder / "data" / part
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(part.encode() * 1000)
                draft.finish_part(part, [path])
        (draft.folder / "loose").write_bytes(b"metadata")
        draft.publish({"count": 2})
    """
)
LABELS = ["part-written:1", "part-finished:1", "part-written:2", "part-finished:2", "before-commit:1"]
LABELS += ["before-replace:1", "after-replace:1", "before-publish:1", "after-rename:1", "after-publish:1"]


@pytest.mark.parametrize("label", LABELS)
def test_a_kill_at_any_labelled_point_changes_no_byte(tmp_path: Path, label: str) -> None:
    make_item(tmp_path / "whole")
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", SCRIPT, str(killed)]
    environment = os.environ | {"MICROTOME_CRASH_AT": label}
    first = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    assert first.returncode == -9
    seen = read_commit(killed / "slides" / "item")  # whole or not there; never DamagedError
    assert seen is None or set(seen.files) == {"data/a", "data/b", "loose"}
    subprocess.run(command, cwd=ROOT, check=True)
    assert tree(killed) == tree(tmp_path / "whole")


@pytest.mark.parametrize("label", [*LABELS, "old-away:1"])
def test_a_kill_while_replacing_leaves_the_old_or_the_new_within_reach(tmp_path: Path, label: str) -> None:
    make_item(tmp_path / "whole")
    root = tmp_path / "killed"
    old = RECIPE | {"seed": 0}
    item = make_item(root, recipe=old)
    command = [sys.executable, "-c", SCRIPT.replace("if read_commit(item) is None:", "if True:"), str(root)]
    killed = subprocess.run(command, cwd=ROOT, env=os.environ | {"MICROTOME_CRASH_AT": label}, check=False)
    assert killed.returncode == -9
    seen = read_commit(item)
    if label == "old-away:1":  # between the two renames; the next run publishes what is complete
        assert seen is None
    else:
        assert seen is not None
        assert seen.recipe in (old, RECIPE)
    subprocess.run(command, cwd=ROOT, check=True)
    assert tree(root) == tree(tmp_path / "whole")
    assert not [p for p in (root / ".work").iterdir() if not p.name.startswith("trash-")]


def test_a_full_disk_is_said_with_what_to_do(tmp_path: Path) -> None:
    from wsi.durable import output_errors

    with (
        pytest.raises(OutputError, match=r"cannot be written .*No space.* Free some space") as caught,
        output_errors(tmp_path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.exit_code == 74
