"""Steps that make next to nothing: what remains is the cost of having them made, here or elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiling.commit import Draft
from tiling.pipeline import Job, Step
from wsi.durable import write_file


@dataclass(frozen=True)
class Empty:
    """Commits an item of so many files of a few bytes."""

    parts: int

    def __call__(self) -> list[Step]:
        """The step."""
        return [Step("tiles", self.all, self)]

    def missing(self, job: Job) -> Sequence[int]:
        """All that are not there."""
        draft = job.store.begin("tiles", self._recipe())
        return () if draft is None else [n for n in range(self.parts) if str(n) not in draft.parts]

    def make(self, job: Job, part: int) -> None:
        """One file."""
        if "draft" not in job.kept:
            job.kept["draft"] = job.store.join("tiles", self._recipe(), helper=job.helper)
        _make(job.kept["draft"], part)

    def all(self, job: Job) -> None:
        """Those that are missing, and the commit."""
        draft = job.store.begin("tiles", self._recipe())
        if draft is not None:
            for part in range(self.parts):
                if str(part) not in draft.parts:
                    _make(draft, part)
            draft.publish({})

    def _recipe(self) -> dict[str, object]:
        return {"parts": self.parts}


def _make(draft: Draft, part: int) -> None:
    path = draft.folder / f"{part}"
    write_file(path, b"next to nothing")
    draft.finish_part(str(part), [path])
