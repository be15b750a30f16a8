"""`ask_each`: one question about each of many slides, in a process that may die of it."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from tiling.blocks import Progress
from tiling.manifest import SlideEntry
from tiling.workers.children import cannot_start
from tiling.workers.limits import Limits, fair_share
from tiling.workers.supervisor import Child
from tiling.workers.unit import Answer, Died, Report, Result, Unit
from wsi.errors import MicrotomeError, SlideError, UnexpectedError

T = TypeVar("T")
Question = Callable[[SlideEntry], T]
"""A function that other processes can import, with its settings; its answer is pickled."""
_LOOK_SECONDS = 0.25
_log = logging.getLogger(__name__)


class Ask(Protocol):
    """`ask_each`, or `ask_here`."""

    def __call__(
        self, slides: Sequence[SlideEntry], question: Question[T], *, debug: bool = False
    ) -> Iterator[tuple[SlideEntry, T | MicrotomeError]]:
        """Ask about each slide."""


@dataclass(frozen=True, slots=True)
class Inquiry(Generic[T]):
    """What a process is told first; see `tiling.workers.child`."""

    question: Question[T]
    started_in: Path
    debug: bool = False

    def hire(self) -> _Answers[T]:
        """Who answers."""
        return _Answers(self.question, debug=self.debug)

    def is_over(self) -> bool:
        """Never: it ends with its parent."""
        return False


class _Answers(Generic[T]):
    """Answers in this process."""

    name = f"{os.getpid()}"

    def __init__(self, question: Question[T], *, debug: bool) -> None:
        self._question, self._debug = question, debug

    def do(self, unit: Unit, progress: Progress, *, reached: Callable[[int], None]) -> Result:
        """Answer about the unit's slide."""
        return Answer(_answer(self._question, unit.slide, debug=self._debug))

    def busy_seconds(self) -> float:
        """A question is one call: nobody knows whether it goes on."""
        return 0.0


def ask_each(
    slides: Sequence[SlideEntry], question: Question[T], *, limits: Limits | None = None, debug: bool = False
) -> Iterator[tuple[SlideEntry, T | MicrotomeError]]:
    """Ask about each slide in turn; a slide that crashes its process, or hangs it, is an error as any other.

    Parameters
    ----------
    slides
        Which.
    question
        What is asked.
    limits
        What the process may take; by default as for the only worker of a run.
    debug
        Tell tracebacks.

    Yields
    ------
    Each slide with the answer, or with what kept it from being given.
    """
    allowed = limits or Limits(fair_share(1))
    inquiry = pickle.dumps(Inquiry(question, Path.cwd(), debug))
    child: Child | None = None
    try:
        for slide in slides:
            for attempt in (1, 2):  # what killed it may be what slides before had left, or somebody else
                try:
                    child = Child(inquiry, limits=allowed) if child is None or child.gone else child
                except OSError as error:
                    yield slide, MicrotomeError(cannot_start(error).reason, path=slide.path)
                    break
                result = _result(child, Unit(slide))
                if isinstance(result, Answer):
                    yield slide, result.value
                    break
                if result.hopeless or attempt == 2:
                    yield slide, SlideError(result.reason, path=slide.path, action="Look at this one alone")
                    break
    finally:
        if child:
            child.stop()


def ask_here(
    slides: Sequence[SlideEntry], question: Question[T], *, debug: bool = False
) -> Iterator[tuple[SlideEntry, T | MicrotomeError]]:
    """The same in this process, which a slide may take along."""
    for slide in slides:
        yield slide, _answer(question, slide, debug=debug)


def _answer(question: Question[T], slide: SlideEntry, *, debug: bool) -> T | MicrotomeError:
    try:
        return question(slide)
    except MicrotomeError as error:
        return error
    except Exception as error:  # a bug of ours must not cost the other slides
        if debug:
            _log.exception("%s", slide.slide_id)
        said = f"unexpected {type(error).__name__}: {error}"
        return UnexpectedError(said, path=slide.path, action="Run it with --debug and report it")


def _result(child: Child, unit: Unit) -> Answer | Died:
    child.give(unit)
    while True:
        child.connection.poll(_LOOK_SECONDS)
        for event in child.hear():
            if isinstance(event, Report):
                assert isinstance(event.result, Answer | Died)
                return event.result
        if stopped := child.check():
            assert isinstance(stopped.result, Died)
            return stopped.result
