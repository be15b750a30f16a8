"""META, the folder of meta-trained learners: weights as safetensors, all else as text, committed as one item.

::

    META/meta.json                     `Meta`: what the learners are, on which features, whom they have seen
    META/statistics.safetensors        mean and axes of the base features: `Principal`
    META/<learner>.safetensors         a head's tensors, and the logarithms of its inner rates
    META/<learner>.json                how it adapts, and its learning curve
    META/curves.csv, environment.json  for the reader
    META/commit.json                   see `tiling.commit`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from mil.adaptors.principal import Principal
from mil.checkpoint import Judges
from mil.features import FeatureRecipe
from mil.fewshot.learners import LastLayer
from mil.fewshot.methods import Logistic, Method, Prototypes, Stepping
from mil.fewshot.recipe import KINDS, MetaRecipe
from mil.fewshot.training import Look, TrainedLearner
from mil.heads import build_head
from mil.networks.weights import load_strictly, read_state
from mil.training.records import table_bytes
from tiling.commit import Draft, canonical, find_damage, read_commit
from wsi.durable import write_file
from wsi.errors import DamagedError, UsageError

CARD_FILE, STATISTICS_FILE = "meta.json", "statistics.safetensors"
FORMAT = 1
"""Version of meta.json."""
_HEAD, _RATE = "head.", "log_rate."  # what names of tensors begin with


@dataclass(frozen=True, slots=True)
class Meta:
    """The card of a META folder: everything but weights."""

    name: str
    """The folder's."""
    judges: Judges
    """Whether the bags of its tasks were tiles or slides."""
    features: FeatureRecipe
    """What it was trained on, and the only features that it is used on."""
    recipe: MetaRecipe
    """How it was trained."""
    base_classes: tuple[str, ...]
    """Classes that were learnt from."""
    validation_classes: tuple[str, ...]
    """Classes that decided when to stop; empty where patients of the base classes did."""
    patients: tuple[str, ...]
    """Everybody who was learnt from or decided when to stop."""
    slides: tuple[str, ...]
    """Their slides."""
    learners: Mapping[str, str]
    """SHA-256 of each learner's tensors, by its name."""
    training: Mapping[str, Any]
    """Counts, options and the like: for the reader."""

    def as_json(self) -> dict[str, Any]:
        """What meta.json holds."""
        content = asdict(self) | {
            "format": FORMAT,
            "judges": self.judges.value,
            "features": self.features.as_json(),
            "recipe": self.recipe.as_json(),
        }
        as_read: dict[str, Any] = json.loads(canonical(content))  # tuples are lists there
        return as_read


@dataclass(frozen=True, slots=True)
class Learners:
    """What a META folder holds besides its card: every way to learn that it knows, ready to use."""

    centre: Tensor
    """``(D,)``: the base features' mean."""
    stepping: tuple[Stepping, ...]
    """In the order of `KINDS`."""

    @property
    def methods(self) -> tuple[Method, ...]:
        """Prototypes first, the simplest, then logistic regression, then the learners."""
        return Prototypes(self.centre), Logistic(self.centre), *self.stepping


# Writing -------------------------------------------------------------------------------------------------


def keep_learner(draft: Draft, learner: TrainedLearner) -> None:
    """Make a learner durable in the draft of its META folder; see `Draft.finish_part`."""
    method = learner.method
    weights, facts = (draft.folder / f"{method.name}{suffix}" for suffix in (".safetensors", ".json"))
    tensors = {_HEAD + name: value for name, value in method.head.state_dict().items()}
    tensors |= {_RATE + name: value for name, value in method.log_rates.items()}
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_file(weights, to_safetensors(plain))
    content = {
        "classes": method.head.classes,
        "steps": method.steps,
        "last_layer": method.last_layer.value,
        "last_only": method.last_only,
        "validation_accuracy": learner.accuracy,
        "looks": [asdict(look) for look in learner.looks],
    }
    write_file(facts, canonical(content))
    draft.finish_part(method.name, [weights, facts])


def write_statistics(draft: Draft, front: Principal) -> None:
    """Write what all learners see features through into the draft."""
    write_file(draft.folder / STATISTICS_FILE, to_safetensors(dict(front.state_dict())))


# Reading -------------------------------------------------------------------------------------------------


def load_learner(folder: Path, name: str, *, recipe: MetaRecipe, front: Principal) -> TrainedLearner:
    """Read a learner back, on the CPU.

    Parameters
    ----------
    folder, name
        META, or its draft, and the learner.
    recipe
        How it was trained.
    front
        What it sees features through.

    Raises
    ------
    UsageError
        A file is missing, damaged, or does not hold what the recipe says.
    """
    try:
        facts = json.loads((folder / f"{name}.json").read_bytes())
        looks = tuple(Look(**look) for look in facts["looks"])
        last_layer = LastLayer(facts["last_layer"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_a_meta(folder / f"{name}.json", f"is unreadable ({type(error).__name__})") from error
    path = folder / f"{name}.safetensors"
    state = read_state(path)
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, and replaced
        head = build_head(recipe.head, dim=front.width, classes=facts["classes"], settings=recipe.settings)
    load_strictly(head, _of(state, _HEAD), path=path, what=f"{recipe.head} for {facts['classes']} classes")
    rates = _of(state, _RATE)
    if rates.keys() != {parameter for parameter, _ in head.named_parameters()}:
        raise _not_a_meta(path, "does not hold a rate for every parameter")
    method = Stepping(name, head.eval(), rates, facts["steps"], last_layer, facts["last_only"], front)
    return TrainedLearner(method, looks, facts["validation_accuracy"])


def load_meta(folder: Path) -> tuple[Meta, Learners]:
    """Read a META folder, every byte checked.

    Raises
    ------
    UsageError
        It is missing, damaged, of another version, or no META folder; the file is named.
    """
    _check_bytes(folder)
    meta = _read_card(folder / CARD_FILE)
    with torch.random.fork_rng(devices=[]):  # its first axes are random, and replaced
        front = Principal(meta.features.dim, components=meta.recipe.components)
    path = folder / STATISTICS_FILE
    load_strictly(front, read_state(path), path=path, what="statistics of these features")
    stepping = [load_learner(folder, name, recipe=meta.recipe, front=front).method for name in meta.learners]
    order = list(KINDS)  # the recipe was checked: it names no others
    stepping.sort(key=lambda method: order.index(method.name))
    return meta, Learners(front.mean, tuple(stepping))


def _check_bytes(folder: Path) -> None:
    action = "Give the folder that 'microtome fewshot train' wrote"
    if not folder.is_dir():
        what = "is a file; META is a folder" if folder.exists() else "there is no such folder"
        raise UsageError(what, path=folder, action=action)
    if not (folder / CARD_FILE).is_file():
        is_model = (folder / "model.json").is_file()
        raise UsageError(
            "is a trained model, not meta-trained learners" if is_model else "holds no meta-trained learners",
            path=folder,
            action=action,
        )
    try:
        commit = read_commit(folder)
        assert commit is not None  # the folder is there
        for damage in find_damage(folder, commit, full=True):
            raise _not_a_meta(folder / damage.file, damage.reason)
    except DamagedError as error:
        raise _not_a_meta(folder, error.reason) from error


def _read_card(path: Path) -> Meta:
    try:
        content = json.loads(path.read_bytes())
        if content.pop("format") != FORMAT:
            raise _not_a_meta(path, f"has another version than {FORMAT}")
        names = ("base_classes", "validation_classes", "patients", "slides")
        return Meta(
            **content
            | {name: tuple(content[name]) for name in names}
            | {
                "judges": Judges(content["judges"]),
                "features": FeatureRecipe.from_json(content["features"]),
                "recipe": MetaRecipe.from_json(content["recipe"]),
            }
        )
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _not_a_meta(path, f"is unreadable ({type(error).__name__}: {error})") from error


def _of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _not_a_meta(path: Path, reason: str) -> UsageError:
    return UsageError(reason, path=path, action="Copy the folder again, or run 'microtome fewshot train'")


def curves_to_csv(learners: Sequence[TrainedLearner]) -> bytes:
    """A line a look: learner, step, loss, accuracy on the validation tasks, whether it was the best yet."""
    rows = [
        (learner.method.name, look.step, repr(look.loss), repr(look.accuracy), int(look.best))
        for learner in learners
        for look in learner.looks
    ]
    return table_bytes(("learner", "step", "loss", "accuracy", "best"), rows)


def on_device(learners: Learners, device: torch.device) -> Learners:
    """The same learners with all their tensors on a device."""
    stepping = tuple(
        replace(
            method,
            head=method.head.to(device),
            front=method.front.to(device) if method.front else None,
            log_rates={name: value.to(device) for name, value in method.log_rates.items()},
        )
        for method in learners.stepping
    )
    return Learners(learners.centre.to(device), stepping)
