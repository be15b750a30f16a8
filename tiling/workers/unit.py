"""What one process is told to do at a time, and what can become of it. Small values: no pixel is in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiling.cohort import Status, StepTime
from tiling.manifest import SlideEntry
from tiling.output import Output
from tiling.workers.announce import is_on
from wsi.errors import MicrotomeError

if TYPE_CHECKING:
    from tiling.pipeline import Step
    from tiling.workers.worker import Worker
    from wsi.slide import Slide


@dataclass(frozen=True, slots=True)
class Orders:
    """What is to be done to every slide. It is pickled: every process makes its own steps of it."""

    make_steps: Callable[[], Sequence[Step]]
    """A function that processes can import, with its settings; called once in each."""
    open_slide: Callable[[SlideEntry], Slide] | None = None
    """How slide files are opened; None where the steps start from the store."""
    overwrite: bool = False
    """Replace items that another recipe made."""
    threads: int = 1
    """Threads that each process has for its unit."""
    debug: bool = False
    """Tell tracebacks."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is the same for all units of a run."""

    orders: Orders
    root: Path
    """The output folder, as every process sees it."""
    started_in: Path
    """Where the command was started: relative paths count from there, in every process."""
    run: str
    """What names this run, and is in a file of its work folder: that is how a process knows the folder."""
    versions: Mapping[str, str]
    """Of what decides bytes, where the run was started; no process of others takes part."""
    on_gpu: bool | None = None
    """What a process is for, which then prepares that alone: as `Unit.on_gpu`."""

    @property
    def debug(self) -> bool:
        """Whether tracebacks are told."""
        return self.orders.debug

    def hire(self) -> Worker:
        """Who does it, in the process that asks."""
        from tiling.workers.worker import Worker

        return Worker(self)

    def is_over(self) -> bool:
        """Whether the run has ended; an OSError says that it cannot be told."""
        return not is_on(Output(self.root), self.run)


@dataclass(frozen=True, slots=True)
class Unit:
    """The steps of one slide, or one part of one step."""

    slide: SlideEntry
    """Whose; for steps that start from the store, its path is the slide's folder of results."""
    step: int = 0
    """Number of the first step to do; those before are done."""
    part: int | None = None
    """One part of this step, and nothing else; see `tiling.pipeline.Parts`."""
    most_parts: int | None = None
    """A step of which more parts are missing is not done, but divided; None: no step is."""
    on_gpu: bool | None = None
    """Steps that want a GPU, or those that want none; None: all, for nobody has one for himself."""

    @property
    def slide_id(self) -> str:
        """Of its slide."""
        return self.slide.slide_id

    def at(self, step: int, *, part: int | None = None, on_gpu: bool | None = None) -> Unit:
        """Of the same slide, another step or part."""
        return replace(self, step=step, part=part, on_gpu=on_gpu)


# What can become of a unit ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done:
    """All its steps, or its part."""

    spent: tuple[StepTime, ...] = ()


@dataclass(frozen=True, slots=True)
class Divided:
    """A step turned out to be large: its parts are to be made by many, and then the slide goes on there."""

    step: int
    parts: tuple[int, ...]
    spent: tuple[StepTime, ...] = ()


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The next step is for another kind of worker."""

    step: int
    to_gpu: bool
    spent: tuple[StepTime, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """The slide's last word: it failed, or there is nothing on it."""

    status: Status
    reason: str
    exit_code: int = 0
    spent: tuple[StepTime, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """Going on would fail every slide: the output cannot be written, or the settings are wrong."""

    error: MicrotomeError


@dataclass(frozen=True, slots=True)
class Unfit:
    """A machine's processes cannot begin; those of others may."""

    error: MicrotomeError


@dataclass(frozen=True, slots=True)
class Held:
    """A process that the run has lost sight of works on the slide, and did not end when it was waited for."""

    reason: str
    """Which."""


@dataclass(frozen=True, slots=True)
class Died:
    """The process is gone, and with it what was not finished."""

    reason: str
    """How it died: a signal, a limit."""
    by_itself: bool
    """What the slide made it do; False where somebody else may have killed it."""
    hopeless: bool = False
    """It would do so again: it ran into a limit."""
    reached: tuple[int, int] = (-1, 0)
    """The step it was at, and how many tiles it found finished there: whether trying again gets anywhere."""
    by_device: bool = False
    """A GPU failed, and a process that has one is of no use after that."""
    began: bool = True
    """Whether it had begun with the slide; a process that dies before cannot have died of it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """To a question about a slide, which is no unit of a run; see `tiling.workers.ask`."""

    value: Any
    """Whatever it is; a `MicrotomeError` where there is none."""


Result = Answer | Done | Divided | HandedOver | Ended | Refused | Unfit | Held | Died


@dataclass(frozen=True, slots=True)
class Report:
    """A unit that came to an end, and what it cost."""

    unit: Unit
    result: Result
    worker: str = ""
    """Who did it."""
    seconds: float = 0.0
    """By the clock."""
    peak_bytes: int = 0
    """Most memory that its process was seen to hold; 0 where nobody looked."""


@dataclass(frozen=True, slots=True)
class Progressed:
    """Tiles of a unit that are done, of all that there are."""

    unit: Unit
    done: int
    total: int


Event = Report | Progressed
