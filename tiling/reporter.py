"""`Reporter`: results and messages as text, on streams that the caller owns. The library never prints."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

from tiling.blocks import Progress
from tiling.cohort import Outcome, Status
from tiling.commit import Commit
from tiling.output import Output
from tiling.store import TileStore, judges_tiles, scores_by
from wsi.errors import MicrotomeError, OutputError
from wsi.messages import on_a_terminal

if TYPE_CHECKING:
    from tqdm import tqdm

    from tiling.workers.unit import Progressed


@dataclass(frozen=True, slots=True)
class Reporter:
    """Speaks to a person, or with `as_json` to a machine."""

    results: TextIO
    """Where results go: a line each."""
    messages: TextIO
    """Where errors, hints and progress bars go."""
    as_json: bool = False
    """Results as JSON lines; no progress bars."""
    quiet: bool = False
    """No progress bars, and of the slides only those that failed."""

    def result(self, content: Mapping[str, Any]) -> None:
        """Tell a result."""
        if self.as_json:
            line = json.dumps(content, ensure_ascii=False)
        else:
            line = on_a_terminal("  ".join(f"{key}: {_plain(value)}" for key, value in content.items()))
        self._write(line + "\n")

    def facts(self, content: Mapping[str, Any]) -> None:
        """Tell several things of one object: a line each, or one JSON line."""
        if self.as_json:
            self.result(content)
            return
        width = max(len(key) for key in content)
        lines = [on_a_terminal(f"{key:<{width}}  {_plain(value)}") for key, value in content.items()]
        self._write("\n".join(lines) + "\n\n")

    def _write(self, text: str) -> None:
        try:
            self.results.write(text)
            self.results.flush()
        except BrokenPipeError:  # whoever read has gone, and knows it
            raise
        except OSError as error:
            with contextlib.suppress(OSError):  # else Python would try once more at its end, and complain
                self.results.close()
            raise OutputError(
                f"results cannot be written to standard output ({error.strerror or error})",
                action="Free some space where they go, and run the same command again",
            ) from error

    def say(self, text: str) -> None:
        """Tell a message."""
        self.messages.write(text + "\n")
        self.messages.flush()

    def outcome(self, outcome: Outcome, output: Output, *, model: tuple[str, str] | None = None) -> None:
        """Tell how a slide ended, as soon as it did; with what `model` (name, weights) predicts."""
        line: dict[str, Any] = {"slide": outcome.slide_id, "status": outcome.status.value}
        if outcome.reason:
            line["reason"] = outcome.reason
        if outcome.status in {Status.DONE, Status.ALREADY_DONE}:
            line |= figures(TileStore(output, outcome.slide_id), model)
        line["seconds"] = outcome.seconds
        if outcome.status is Status.FAILED and not self.as_json:
            self.say(on_a_terminal(f"ERROR {outcome.reason}"))
        elif self.as_json or not self.quiet:
            self.result(line)

    def failures(self, outcomes: Sequence[Outcome]) -> None:
        """Close a batch with a table of what failed: nobody scrolls back through a thousand lines."""
        failed = [outcome for outcome in outcomes if outcome.status is Status.FAILED]
        if not failed or len(outcomes) == 1 or self.as_json:
            return
        self.say(f"{len(failed)} of {len(outcomes)} slides failed; the others are done:")
        names = [on_a_terminal(outcome.slide_id) for outcome in failed]
        width = max(map(len, names))
        for name, outcome in zip(names, failed, strict=True):
            self.say(f"  {name:<{width}}  {on_a_terminal(outcome.reason)}")

    @contextlib.contextmanager
    def cohort(
        self, count: int, output: Output, *, model: tuple[str, str] | None = None
    ) -> Iterator[CohortWatch]:
        """For a batch of so many slides: a bar of them, or of the only one's tiles, and their outcomes."""
        if self.as_json or self.quiet or not self.messages.isatty():
            yield CohortWatch(self, output, model, None)
            return
        from tqdm import tqdm

        unit, total = ("slide", count) if count > 1 else ("tile", None)
        with tqdm(unit=unit, total=total, leave=False, file=self.messages, smoothing=0.05) as bar:
            yield CohortWatch(self, output, model, bar)

    @contextlib.contextmanager
    def progress(self, name: str, *, unit: str = "tile") -> Iterator[Progress]:
        """A progress bar on a terminal; elsewhere nothing."""
        if self.as_json or self.quiet or not self.messages.isatty():
            yield lambda done, total: None
            return
        from tqdm import tqdm

        with tqdm(desc=name, unit=unit, leave=False, file=self.messages) as bar:
            yield partial(_show, bar)


@dataclass(slots=True)
class CohortWatch:
    """Tells how slides end, below a bar that says how many have, how fast, and how long it will take."""

    reporter: Reporter
    output: Output
    model: tuple[str, str] | None
    """Name and weights of the model whose predictions are told."""
    bar: tqdm[Any] | None
    """None where nobody looks."""
    _at_work: set[str] = field(default_factory=set)

    def ended(self, outcome: Outcome) -> None:
        """A slide has."""
        if self.bar is not None:
            self.bar.clear()
        self.reporter.outcome(outcome, self.output, model=self.model)
        if self.bar is not None and self.bar.unit == "slide":
            self._at_work.discard(outcome.slide_id)
            self.bar.update()

    def progressed(self, event: Progressed) -> None:
        """A slide's tiles have; of many slides, it is told how many are at work."""
        if self.bar is None:
            return
        if self.bar.unit == "tile":
            _show(self.bar, event.done, event.total)
            return
        self._at_work.add(event.unit.slide_id)
        self.bar.set_postfix_str(f"{len(self._at_work)} at work", refresh=False)
        self.bar.refresh()


def _show(bar: tqdm[Any], done: int, total: int) -> None:
    if total != bar.total or done < bar.n:  # the next step of the same slide
        bar.reset(total)
    bar.update(done - bar.n)


def figures(store: TileStore, model: tuple[str, str] | None = None) -> dict[str, Any]:
    """What is worth saying of a finished slide; nothing of what is missing, damaged or out of date."""
    found: dict[str, Any] = {}
    with contextlib.suppress(MicrotomeError):
        found["tissue_mm2"] = store.require("tissue").record["tissue_mm2"]
    with contextlib.suppress(MicrotomeError):
        found["tiles"] = store.require("tiles").record["tiles"]
    if model:
        with contextlib.suppress(MicrotomeError):
            found |= _prediction(scores_by(store, *model))
    return found


def _prediction(scores: Commit) -> dict[str, Any]:
    """What a model says of a slide; by one that judges tiles, of what the slide is made."""
    record = scores.record
    if judges_tiles(scores):
        of_tiles = ("shares", "uncertain_share", "calibrated", "trained_on")
        return {name: record[name] for name in of_tiles if name in record}
    probabilities = record["probabilities"]
    likeliest = max(probabilities, key=lambda name: (probabilities[name], name))
    said = ("probabilities", "calibrated", "trained_on", "spread", "conformal_set")
    found = {"prediction": likeliest} | {name: record[name] for name in said if name in record}
    if decision := record.get("decision"):
        found |= {"decision": decision["status"], "reasons": decision["reasons"]}
    return found


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        if value and all(isinstance(inner, int | float) for inner in value):
            return " x ".join(_plain(inner) for inner in value)
        return ", ".join(_plain(inner) for inner in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not stated" if value is None else str(value)
