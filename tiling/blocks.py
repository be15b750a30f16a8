"""Blocks of tiles: read, judged, normalised and stored in threads, each a part of the item.

A block is as many places as a shard holds; what is dropped of them leaves its shard shorter, and `repack`
closes the gaps when all blocks are there. So a block depends on nothing but its places: blocks can be made in
any order, and a killed run makes those again that it had not finished.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tiling.commit import Draft, FileEntry, remove
from tiling.quality import MEASURES, measure
from tiling.recipe import CutRecipe
from tiling.shards import read_chunks, shard_path, write_shard
from tiling.tiles import TileCutter
from wsi.durable import crash_point, make_folder, output_errors, write_file
from wsi.errors import SlideError
from wsi.reader import find_runs

REASONS = ("", "damaged", "sharpness", "pen")
"""Why a tile was dropped, by the number that is stored; the first are kept."""
MOST_DAMAGED = 0.05
"""Share of a slide's tiles that may be damaged; beyond it the slide fails."""
RUN_BYTES = 4 << 20
"""Pixels of neighbouring tiles that one thread cuts at a time."""
AHEAD = 16
"""Runs that may be finished before they are written."""
WORKING_BYTES = 256 << 20
"""Decoded pixels of the slide that all threads together may hold for their tiles."""

Progress = Callable[[int, int], None]
"""Called with (tiles done, tiles in all)."""

FOUND = "found"
"""Folder of a draft, until all blocks are there: the slide's stain, and what each block's tiles are like."""
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found out about every place."""

    reasons: NDArray[np.uint8]
    """``(n,)``: index into `REASONS`."""
    quality: NDArray[np.float32]
    """``(n, len(MEASURES))``; NaN for damaged tiles."""

    @property
    def kept(self) -> NDArray[np.bool_]:
        """``(n,)``: which tiles were not dropped."""
        return np.asarray(self.reasons == 0, np.bool_)


@dataclass(frozen=True, slots=True)
class _CutTile:
    chunk: bytes | None
    """Its encoded pixels, if it is kept and pixels are stored."""
    reason: int
    quality: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BlockCutter:
    """Cuts blocks of one slide into a draft."""

    draft: Draft
    cutter: TileCutter
    recipe: CutRecipe
    origins: NDArray[np.int32]
    """``(n, 2)`` level-0 (x, y) of every place."""
    workers: int
    """Threads at work; they do not change a byte."""

    def cut(self, progress: Progress | None) -> Findings:
        """Cut what is not there yet; the findings of all.

        Raises
        ------
        SlideError
            More than `MOST_DAMAGED` of the tiles cannot be decoded.
        """
        blocks, missing = self._blocks(), self.missing()
        done = len(self.origins) - sum(block.stop - block.start for block in missing)
        damaged = sum(_damaged(np.load(self._found(block))) for block in blocks if block not in missing)
        self._check_damage(damaged, done)  # here too: a run that gave up has left its blocks
        self.cut_blocks(missing, progress, done=done, damaged=damaged)
        return self._findings(blocks)

    def missing(self) -> list[slice]:
        """The blocks of places that no run has cut."""
        return [block for block in self._blocks() if _part(block) not in self.draft.parts]

    def cut_blocks(
        self, blocks: Sequence[slice], progress: Progress | None, *, done: int = 0, damaged: int = 0
    ) -> None:
        """Cut some of `missing`. So many tiles are `done`, and so many of these damaged; else as `cut`."""
        runs = {block.start: self._runs(block) for block in blocks}
        every = (run for block in blocks for run in runs[block.start])
        threads = self._threads()
        with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:
            # Enough to keep the threads busy while a finished shard is forced to the disk.
            cut_runs = (
                in_order(pool, self._cut_run, every, ahead=max(2 * threads, AHEAD))
                if pool
                else map(self._cut_run, every)  # one thread is this one
            )
            for block in blocks:
                table = self._finish(block, islice(cut_runs, len(runs[block.start])), done, progress)
                done, damaged = done + len(table), damaged + _damaged(table)
                self._check_damage(damaged, done)

    def _blocks(self) -> list[slice]:
        count, step = len(self.origins), self.recipe.shard_tiles
        return [slice(i, min(i + step, count)) for i in range(0, count, step)]

    def _threads(self) -> int:
        """As many as were asked for, or as few as keep the memory bounded where tiles are huge."""
        spec, scale = self.recipe.spec, self.cutter.slide.scale(self.recipe.spec.mpp)
        source = 4 * spec.size_px**2 * scale[0] * scale[1]
        return max(1, min(self.workers, int(WORKING_BYTES / source)))

    def _runs(self, block: slice) -> list[slice]:
        """Neighbours that are cut together."""
        size = self.recipe.spec.size_px
        width = size * self.cutter.slide.scale(self.recipe.spec.mpp)[0]
        places = [(x, y) for x, y in self.origins[block].tolist()]
        runs = find_runs(places, width=width, most=max(1, RUN_BYTES // (3 * size * size)))
        return [slice(block.start + run.start, block.start + run.stop) for run in runs]

    def _cut_run(self, run: slice) -> list[_CutTile]:
        """In a thread: neighbours from the slide to chunks."""
        scanned = self._scan(self.origins[run])
        mpp, nothing = self.recipe.spec.mpp, np.full(len(MEASURES), np.nan, np.float32)
        times = self.cutter.slide.times
        with times.lap("quality"):
            quality = [nothing if tile is None else measure(tile, mpp=mpp) for tile in scanned]
        verdicts = self.recipe.quality.reasons(np.stack(quality))
        cut = []
        for tile, values, verdict in zip(scanned, quality, verdicts, strict=True):
            reason = REASONS.index("damaged" if tile is None else verdict or "")
            chunk = None
            if tile is not None and reason == 0 and self.recipe.pixels is not None:
                normalized = self.cutter.normalized(tile)
                with times.lap("compress"):
                    chunk = self.recipe.pixels.encode(normalized)
            cut.append(_CutTile(chunk, reason, values))
        return cut

    def _scan(self, origins: NDArray[np.int32]) -> list[NDArray[np.uint8] | None]:
        """The tiles; None for one that cannot be decoded, whatever its neighbours are."""
        try:
            return list(self.cutter.scanned(origins))
        except SlideError:
            if len(origins) == 1:
                return [None]
            return [tile for origin in origins for tile in self._scan(origin[None])]

    def _finish(
        self, block: slice, runs: Iterable[list[_CutTile]], done: int, progress: Progress | None
    ) -> NDArray[np.float32]:
        """Write a block's shard as its tiles come, and the table of what was found, which is returned."""
        cut: list[tuple[int, NDArray[np.float32]]] = []
        start, waited = time.perf_counter(), 0.0

        def chunks() -> Iterator[bytes]:
            nonlocal waited
            asked = time.perf_counter()
            for run in runs:
                waited += time.perf_counter() - asked
                for tile in run:
                    cut.append((tile.reason, tile.quality))
                    if tile.chunk is not None:
                        yield tile.chunk
                if progress:
                    progress(done + len(cut), len(self.origins))
                asked = time.perf_counter()
            waited += time.perf_counter() - asked

        entries: dict[Path, FileEntry] = {}
        step = self.recipe.shard_tiles
        if self.recipe.pixels is not None:
            path = shard_path(self.draft.folder / "pixels", block.start // step)
            entries[path] = write_shard(path, chunks(), slots=step)
        else:
            deque(chunks(), maxlen=0)
        found = self._found(block)
        table = np.array([(reason, *values) for reason, values in cut], np.float32)
        make_folder(found.parent)
        write_file(found, _as_npy(table))
        self.draft.finish_part(_part(block), [*entries, found], known=entries)
        self.cutter.slide.times.add("write", time.perf_counter() - start - waited)
        return table

    def _found(self, block: slice) -> Path:
        return self.draft.folder / FOUND / f"{block.start}.npy"

    def _check_damage(self, damaged: int, done: int) -> None:
        """Give up a slide that is damaged all over, before the rest of it is read."""
        if damaged > max(1, MOST_DAMAGED * len(self.origins)):
            raise SlideError(
                f"{damaged:,} of {done:,} tiles cannot be decoded, of {len(self.origins):,} in all: "
                f"more than {MOST_DAMAGED:.0%}",
                path=self.cutter.slide.path,
                action="Copy or download it again",
            )

    def _findings(self, blocks: Sequence[slice]) -> Findings:
        table = np.concatenate([np.load(self._found(block)) for block in blocks])
        return Findings(table[:, 0].astype(np.uint8), np.ascontiguousarray(table[:, 1:]))


def repack(draft: Draft, kept: NDArray[np.bool_], recipe: CutRecipe) -> None:
    """Close the gaps that dropped tiles left: every shard but the last is then full.

    Encoded tiles are moved as they are. Blocks are vouched for until the last of them was packed: where the
    disk is full, none is cut again. A run that is killed after that cuts them again.
    """
    if recipe.pixels is None or kept.all():
        remove(draft.folder / FOUND)
        return
    step, pixels, packed = recipe.shard_tiles, draft.folder / "pixels", draft.folder / "packed"
    chunks = (
        chunk
        for shard in range(-(-len(kept) // step))
        for chunk in read_chunks(shard_path(pixels, shard), slots=step)
    )
    entries = {}
    for shard in range(-(-int(kept.sum()) // step)):
        entry = write_shard(shard_path(packed, shard), islice(chunks, step), slots=step)
        entries[shard_path(pixels, shard).relative_to(draft.folder).as_posix()] = entry
    crash_point("packed")
    remove(draft.folder / FOUND)
    remove(pixels / "c")
    with output_errors(draft.item):
        (packed / "c").rename(pixels / "c")
    remove(packed)
    draft.parts = {"packed": entries}


def in_order(
    pool: ThreadPoolExecutor,
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    ahead: int,
) -> Iterator[_Result]:
    """Results in the order of the items, no more than `ahead` of them waiting to be taken."""
    waiting: deque[Future[_Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # whoever takes has given up: what has not begun need not begin
        for future in waiting:
            future.cancel()


def _damaged(table: NDArray[np.float32]) -> int:
    return int(np.count_nonzero(table[:, 0] == REASONS.index("damaged")))


def _part(block: slice) -> str:
    return f"block/{block.start}"


def _as_npy(table: NDArray[np.float32]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, table, allow_pickle=False)
    return stream.getvalue()
