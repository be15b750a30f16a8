"""A trained member, and those that a study which was stopped had already finished.

A study is published whole, at its end. Until then each member that is finished is a part of a draft (see
`tiling.commit`): its weights, and what it said of slides that it did not learn from. Training again with all
that decides a member's bytes as it was takes them from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mil.checkpoint import weights_file, write_weights
from mil.heads import Head
from mil.networks.weights import load_strictly, read_state
from mil.predictions import MemberPredictions, Part
from mil.training.fitting import Epoch
from mil.training.records import MemberHistory
from mil.training.stopping import ValidationFigures
from tiling.commit import Draft
from wsi.durable import write_file


@dataclass(frozen=True, slots=True)
class Trained:
    """One member, and what it says of slides that it did not learn from."""

    head: Head
    """In eval mode, on the device that it was trained on; on the CPU if it was taken from a draft."""
    history: MemberHistory
    """Its epochs."""
    seed: int
    """Of its training."""
    predictions: tuple[MemberPredictions, ...]
    """A part each; parts without slides are missing."""

    def of(self, part: Part) -> MemberPredictions:
        """What it says of one part."""
        return next(entry for entry in self.predictions if entry.part is part)


@dataclass(frozen=True, slots=True)
class Finished:
    """The members of a study that is under way, in its draft."""

    draft: Draft
    """Its recipe holds everything that decides the members' bytes."""
    build: Callable[[], Head]
    """Makes a head of the study's kind; its weights are replaced."""

    def find(self, number: int) -> Trained | None:
        """A member as it was kept; None if it has to be trained."""
        if _part(number) not in self.draft.parts:
            return None
        path = self.draft.folder / weights_file(number)
        head = self.build()
        load_strictly(head, read_state(path), path=path, what=head.name)
        content = json.loads((self.draft.folder / _facts_file(number)).read_bytes())
        return Trained(
            head.eval(),
            MemberHistory(number, tuple(map(_epoch, content["epochs"]))),
            content["seed"],
            tuple(_predictions(number, entry) for entry in content["predictions"]),
        )

    def keep(self, member: Trained) -> None:
        """Make a member durable: from now on `find` has it, in another process too."""
        number = member.history.member
        weights, facts = (self.draft.folder / name for name in (weights_file(number), _facts_file(number)))
        write_weights(weights, member.head)
        write_file(facts, json.dumps(_facts(member)).encode())  # floats are written so that they read alike
        self.draft.finish_part(_part(number), [weights, facts])


def _part(number: int) -> str:
    return f"member/{number}"


def _facts_file(number: int) -> str:
    return f"member-{number}.json"


def _facts(member: Trained) -> dict[str, Any]:
    predictions = [
        {
            "part": entry.part.value,
            "slide_ids": entry.slide_ids,
            "patients": entry.patients,
            "labels": entry.labels.tolist(),
            "logits": entry.logits.tolist(),
        }
        for entry in member.predictions
    ]
    epochs = [asdict(epoch) for epoch in member.history.epochs]
    return {"seed": member.seed, "epochs": epochs, "predictions": predictions}


def _epoch(content: Mapping[str, Any]) -> Epoch:
    figures = content["validation"]
    return Epoch(**{**content, "validation": ValidationFigures(**figures) if figures else None})


def _predictions(number: int, content: Mapping[str, Any]) -> MemberPredictions:
    return MemberPredictions(
        number,
        Part(content["part"]),
        slide_ids=tuple(content["slide_ids"]),
        patients=tuple(content["patients"]),
        labels=np.array(content["labels"], np.int64),
        logits=np.array(content["logits"], np.float64),
    )
