"""Whatever happens to an output: a reader sees whole items, and a run ends in the same bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import wsi.durable
from tiling.commit import Commit, find_damage, read_commit
from tiling.ensure import ensure
from tiling.output import Output, verify_items
from tiling.store import TileStore
from wsi.errors import DamagedError

ITEMS = ("tissue", "tiles", "features/e", "heatmaps/m")
"""Each but the first is computed from the one before it."""


class Killed(BaseException):
    """The process is gone: nothing after this point happened."""


class Dying:
    """Stands for the points of crash: after some of them the next is the last thing that happens."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, label: str) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed(label)


def make(store: TileStore, item: str) -> Commit:
    """Three files in two parts; their bytes follow from the item before."""
    before = ITEMS[ITEMS.index(item) - 1] if item != ITEMS[0] else None
    recipe = {"step": item, "inputs": store.inputs(before) if before else {}}
    draft = store.begin(item, recipe)
    if draft is None:
        return store.require(item)
    for part in ("a", "b"):
        if part not in draft.parts:
            path = draft.folder / "data" / part
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(f"{item} {part} {recipe['inputs']}".encode() * 3)
            draft.finish_part(part, [path])
    (draft.folder / "loose").write_bytes(b"metadata of " + item.encode())
    return draft.publish({"parts": 2})


def tree(root: Path) -> dict[str, bytes]:
    slides = root / "slides"
    return {p.relative_to(slides).as_posix(): p.read_bytes() for p in slides.rglob("*") if p.is_file()}


class AnOutput(RuleBasedStateMachine):
    """Rules are what machines and people do; the invariant is what a reader may rely on."""

    @initialize()
    def prepare(self) -> None:
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # syncing a disk would be most of the time
        self.folder = Path(tempfile.mkdtemp(prefix="machine-", dir=memory))
        self.output = Output(self.folder / "out")
        self.store = TileStore(self.output, "slide")
        whole = Output(self.folder / "whole")
        self.run_all(TileStore(whole, "slide"))
        self.expected = tree(whole.root)

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        for _ in range(len(ITEMS) + 1):  # what is met and damaged is set aside; the next goes on
            with contextlib.suppress(DamagedError):
                self.run_all(self.store)
                break
        assert tree(self.output.root) == self.expected
        assert not any(report.damage or report.stale for report in verify_items(self.output, full=True))
        assert list(self.output.work.iterdir()) == []
        shutil.rmtree(self.folder)

    def run_all(self, store: TileStore) -> None:
        with store.output.lock():
            store.output.clean()
            for item in ITEMS:
                ensure(store, item, lambda item=item: make(store, item))  # type: ignore[misc]

    @rule()
    def run(self) -> None:
        with contextlib.suppress(DamagedError):
            self.run_all(self.store)

    @rule(after=st.integers(0, 60))
    def run_and_be_killed(self, after: int) -> None:
        import tiling.commit

        dying, point = Dying(after), wsi.durable.crash_point
        modules: tuple[Any, ...] = (wsi.durable, tiling.commit)
        for module in modules:
            module.crash_point = dying
        try:
            self.run_all(self.store)
        except (Killed, DamagedError):
            pass
        finally:
            for module in modules:
                module.crash_point = point

    def some_file(self, data: st.DataObject) -> Path | None:
        files = [path for item in self.output.items() for path in item.rglob("*") if path.is_file()]
        return data.draw(st.sampled_from(sorted(files))) if files else None

    @rule(data=st.data())
    def flip(self, data: st.DataObject) -> None:
        """A bit of one file, which `verify` finds in full: a reader need not read all bytes."""
        if path := self.some_file(data):
            content = bytearray(path.read_bytes())
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            path.write_bytes(bytes(content))
            assert self.set_aside_what_is_damaged()

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        if path := self.some_file(data):
            path.unlink()

    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        if path := self.some_file(data):
            os.truncate(path, data.draw(st.integers(0, path.stat().st_size - 1)))

    @rule(data=st.data())
    def delete_a_whole_item(self, data: st.DataObject) -> None:
        if items := list(self.output.items()):
            shutil.rmtree(data.draw(st.sampled_from(items)))

    @rule()
    def verify_and_set_aside(self) -> None:
        self.set_aside_what_is_damaged()

    def set_aside_what_is_damaged(self) -> int:
        if not list(self.output.items()):
            return 0
        damaged = [report.item for report in verify_items(self.output, full=True) if report.damage]
        for item in damaged:
            self.output.set_aside(item)
        return len(damaged)

    @invariant()
    def what_a_reader_opens_is_whole(self) -> None:
        """Or it is refused: `read_commit` gives None, or raises."""
        if not hasattr(self, "folder"):
            return
        for item in self.output.items():
            with contextlib.suppress(DamagedError):
                commit = read_commit(item)
                assert commit is not None
                assert not list(find_damage(item, commit, full=True))


TestAnOutput = AnOutput.TestCase
TestAnOutput.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
