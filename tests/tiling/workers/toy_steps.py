"""Steps without pixels, which can do to their process what a slide can; imported by other processes too."""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from tiling.commit import Draft
from tiling.grid import TileSpec
from tiling.manifest import SlideEntry
from tiling.output import Output
from tiling.pipeline import Job, Step, cut_step, survey_step
from tiling.qc import tile_steps
from tiling.recipe import CutRecipe
from tiling.store import TileStore
from wsi.durable import write_file
from wsi.errors import DeviceLostError, NoTissueError, SlideError, UnfitError, UsageError
from wsi.slide import Slide


@dataclass(frozen=True)
class Toy:
    """Makes an item of some parts; what else it does depends on the slide's name."""

    log: Path
    """A folder where each part that is made leaves a mark, and each attempt."""
    parts: int = 4
    seconds: float = 0.0
    """Of each part."""
    item: str = "tiles"
    wants_gpu: bool = False

    def __call__(self) -> list[Step]:
        """The step."""
        return [self.step()]

    def step(self) -> Step:
        return Step(self.item, self.all, self, wants_gpu=self.wants_gpu)

    def missing(self, job: Job) -> Sequence[int]:
        draft = job.store.begin(self.item, self._recipe(job))
        return () if draft is None else [n for n in range(self.parts) if str(n) not in draft.parts]

    def make(self, job: Job, part: int) -> None:
        self._part(job, job.store.join(self.item, self._recipe(job), helper=job.helper), part)

    def all(self, job: Job) -> object:
        draft = job.store.begin(self.item, self._recipe(job))
        if draft is None:
            return None
        for part in range(self.parts):
            if str(part) not in draft.parts:
                self._part(job, draft, part)
            job.progress(part + 1, self.parts)
        return draft.publish({})

    def _recipe(self, job: Job) -> dict[str, object]:
        return {"step": self.item, "of": job.store.slide_id, "parts": self.parts}

    def _part(self, job: Job, draft: Draft, part: int) -> None:
        self.mark(f"{self.item}:{job.store.slide_id}.{part}")
        misbehave(job.store.slide_id)
        time.sleep(self.seconds)
        path = draft.folder / f"part-{part}"
        write_file(path, f"{job.store.slide_id} {part}\n".encode() * 1000)
        draft.finish_part(str(part), [path])

    def mark(self, what: str) -> None:
        """Leave a mark that no other process overwrites: what, by whose child, and when."""
        (self.log / f"{what}.{os.getppid()}.{time.monotonic_ns()}").touch()


class Keeps(Toy):
    """Begins with a slide once, and keeps what it then knows, as real steps do."""

    def make(self, job: Job, part: int) -> None:
        if "draft" not in job.kept:
            job.kept["draft"] = (
                job.store.slide_id,
                job.store.join(self.item, self._recipe(job), helper=job.helper),
            )
        name, draft = job.kept["draft"]
        self.mark(f"{self.item}:{name}.{part}")
        path = draft.folder / f"part-{part}"
        write_file(path, b"x")
        draft.finish_part(str(part), [path])


class Forks(Toy):
    """Has a process of its own, which holds all that is open and would outlive it."""

    def _part(self, job: Job, draft: Draft, part: int) -> None:
        self.mark(f"{self.item}:{job.store.slide_id}.{part}")
        grandchild = os.fork()
        if grandchild == 0:
            if job.store.slide_id.startswith("leaves"):
                os.setsid()
            time.sleep(60)
            os._exit(0)
        (self.log.parent / "grandchild").write_text(str(grandchild))
        misbehave(job.store.slide_id)
        time.sleep(60)


class LosesItsGpuOnce(Toy):
    """Whose GPU fails one time; in the same process it would never work again."""

    def _part(self, job: Job, draft: Draft, part: int) -> None:
        path = self.log.parent / "lost-by"
        if part == 2 and not path.exists():
            path.write_text(str(os.getpid()))
            raise DeviceLostError("cuda:0 failed (CUDA error: unspecified launch failure)")
        if path.exists() and path.read_text() == str(os.getpid()):
            raise AssertionError("this process has lost its GPU")
        super()._part(job, draft, part)


class HangsAtItsStart(Toy):
    """Of a library that never comes."""

    def __call__(self) -> list[Step]:
        self.mark("start:start")
        time.sleep(60)
        return []


class UnfitWhereTold(Toy):
    """Of machines some of which are not as the others."""

    def __call__(self) -> list[Step]:
        if said := os.environ.get("TOY_UNFIT"):
            raise UnfitError(said)
        return super().__call__()


class UnfitForAWhile(Toy):
    """Of machines that are not ready yet."""

    def __call__(self) -> list[Step]:
        if (self.log.parent / "not-yet").exists():
            raise UnfitError("the folder is not mounted")
        return super().__call__()


class DiesWhereTold(Toy):
    """Of libraries that some machine's processor does not know."""

    def __call__(self) -> list[Step]:
        if os.environ.get("TOY_DIES"):
            os.kill(os.getpid(), signal.SIGILL)
        return super().__call__()


class HasNoMemoryToBegin(Toy):
    """Whose network is too large."""

    def step(self) -> Step:
        return replace(super().step(), prepare=_no_memory)


def _no_memory() -> None:
    raise RuntimeError("CUDA out of memory")


class Unmakable(Toy):
    """Of settings that are wrong."""

    def __call__(self) -> list[Step]:
        raise UsageError("there is no such thing")


class Unpicklable(Toy):
    """Of a module that other processes do not have."""

    def __reduce__(self) -> tuple[object, ...]:
        return (_elsewhere, ())


def _elsewhere() -> None:
    raise ModuleNotFoundError("no module of that name")


class LooksAround(Toy):
    """Tells what its process may do."""

    def _part(self, job: Job, draft: Draft, part: int) -> None:
        import torch

        with multiprocessing.get_context("fork").Pool(1) as pool:
            seen = {"torch": torch.get_num_threads(), "child": pool.apply(_answer)}
        (self.log / "seen.json").write_text(json.dumps(seen))
        super()._part(job, draft, part)


def _answer() -> int:
    return 42


def real_steps() -> list[Step]:
    """Tissue, tiles and features, in shards of four tiles."""
    from mil.device import Precision
    from mil.encoders import untrained_encoder
    from mil.steps import Encoding, encode_steps

    recipe = CutRecipe(TileSpec(64, 1.0), tiles_per_shard=4)
    encoding = Encoding.by(untrained_encoder("timm:test_vit", seed=0), precision=Precision.FP32)
    return [survey_step(recipe.tissue), cut_step(recipe), *encode_steps(encoding)]


def tiles_alone() -> list[Step]:
    """Tissue and tiles."""
    return tile_steps(CutRecipe(TileSpec(64, 1.0)))


def open_slide(file: SlideEntry) -> Slide:
    """The slide."""
    return Slide(file.path)


def misbehave(slide_id: str) -> None:
    """Do what the slide's name says."""
    kind = slide_id.partition("-")[0]
    if kind == "segfault":
        ctypes.string_at(0)
    elif kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "leaves":
        os._exit(3)
    elif kind == "hang":
        time.sleep(3600)
    elif kind == "hog":
        held = [bytearray(os.urandom(1 << 20) * 64) for _ in range(64)]
        time.sleep(3600 * len(held))
    elif kind == "lost":
        raise DeviceLostError("the GPU failed")
    elif kind == "damaged":
        raise SlideError("is damaged", path=slide_id, action="Copy it again")
    elif kind == "bug":
        raise ZeroDivisionError("of course")
    elif kind == "empty":
        raise NoTissueError("no tissue", path=slide_id)
    elif kind == "prints":
        os.write(1, b"a library prints\n")


def does_units(process: psutil.Process) -> bool:
    """Whether it is a worker's process, and not another child of who runs the tests."""
    with contextlib.suppress(psutil.Error):
        return "tiling.workers.child" in " ".join(process.cmdline())
    return False


def attempts(log: Path) -> list[str]:
    """Every part that was begun, once for each time."""
    return sorted(path.name.rsplit(".", 2)[0].partition(":")[2] for path in log.iterdir())


def results(output: Output) -> dict[str, bytes]:
    """Every byte of the slides that have a committed item."""
    root = output.root / "slides"
    files = (path for name in output.slide_ids() for path in sorted((root / name).rglob("*")))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files if path.is_file()}


def parents(log: Path, item: str) -> set[int]:
    """Processes whose children made parts of such items."""
    return {int(p.name.rsplit(".", 2)[1]) for p in log.iterdir() if p.name.startswith(f"{item}:")}


@dataclass(frozen=True)
class TwoToys:
    """An item that wants no GPU, and then one that does."""

    first: Toy
    second: Toy

    def __call__(self) -> list[Step]:
        return [self.first.step(), self.second.step()]


class SeesGpus(Toy):
    """Prepares itself, and tells which GPUs it sees."""

    def step(self) -> Step:
        return replace(super().step(), prepare=lambda: self.mark(f"prepared:{self._seen()}"))

    def _part(self, job: Job, draft: Draft, part: int) -> None:
        self.mark(f"gpus:{self._seen()}")
        super()._part(job, draft, part)

    def _seen(self) -> str:
        return f"{self.item} {os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}"


class WantsWhatIsNotThere(Toy):
    """Has an encoder that cannot be loaded."""

    def step(self) -> Step:
        return replace(super().step(), prepare=_not_there)


class UnfitGpu(Toy):
    """Of GPUs some of which are not as the others."""

    def step(self) -> Step:
        return replace(super().step(), prepare=_unfit_where_told)


def _unfit_where_told() -> None:
    if said := os.environ.get("TOY_UNFIT"):
        raise UnfitError(said)


def _not_there() -> None:
    raise UsageError("there is no encoder 'x'")


def whole(output: Output, slide_id: str, item: str = "tiles") -> bool:
    """Whether the slide's item is committed."""
    return TileStore(output, slide_id).find(item) is not None


def asked(slide: SlideEntry, *, log: Path) -> str:
    """The answer to a question about a slide, unless its name says otherwise."""
    (log / f"{slide.slide_id}.{os.getpid()}").touch()
    misbehave(slide.slide_id)
    return slide.slide_id.upper()
