"""A trained model on disk: weights as safetensors, all else as text, in one committed folder.

::

    MODEL/model.json              `Model`: what the heads are, which features they understand, how they were
                                  trained, and how sure they may be
    MODEL/member-0.safetensors    tensors of the first member, and nothing that could run; and so on
    MODEL/...                     what a study leaves beside them; see `mil.study`
    MODEL/commit.json             see `tiling.commit`

Models of the first version hold one head, in ``weights.safetensors``, and are read as an ensemble of one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save as to_safetensors

from mil.card import CARD_FILE, check_bytes, join_digests, not_a_model
from mil.conformal import ConformalRule
from mil.ensemble import Ensemble, as_ensemble
from mil.features import FeatureRecipe
from mil.gate import Gate
from mil.heads import Head, Settings, build_head
from mil.networks.weights import digest_state, load_strictly, read_state
from tiling.commit import Commit, begin, canonical, read_commit
from wsi.durable import write_file
from wsi.errors import DamagedError, OutputError, RecipeError, UsageError

FORMAT = 2
"""Version of model.json."""
_OLD_FORMAT, _OLD_WEIGHTS = 1, "weights.safetensors"
_NO_FILES: Mapping[str, bytes] = MappingProxyType({})


class Judges(Enum):
    """What a model says something of; the values are in cards, and `tiling.store.judges_tiles` knows them."""

    SLIDES = "slides"
    """A slide has one class. Tiles are scored as slides of one tile."""
    TILES = "tiles"
    """A tile has one class: a slide holds many, so there is no verdict on it."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How sure a model may be: fitted on slides that the members did not learn from."""

    temperatures: tuple[float, ...]
    """One a member."""
    conformal: ConformalRule
    """Which classes cannot be ruled out, by the ensemble's probabilities."""
    gate: Gate
    """Which slides a person has to look at."""

    def as_json(self) -> dict[str, Any]:
        """For the card."""
        return {
            "temperatures": list(self.temperatures),
            "conformal": self.conformal.as_json(),
            "gate_threshold": self.gate.threshold,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Calibration:
        """What `as_json` gave."""
        return cls(
            tuple(float(value) for value in content["temperatures"]),
            ConformalRule.from_json(content["conformal"]),
            Gate(float(content["gate_threshold"])),
        )


@dataclass(frozen=True, slots=True)
class Model:
    """The card of a trained model: everything but its weights, and their hashes.

    Raises
    ------
    UsageError
        See `check_model_name`; or there are not at least two classes; or not one temperature a member.
    """

    name: str
    """What its scores and heatmaps are filed under."""
    head: str
    """A name of `HEADS`."""
    settings: Settings
    """The head's hyper-parameters."""
    classes: tuple[str, ...]
    """In the order of the head's outputs."""
    features: FeatureRecipe
    """The features that it was trained on, and the only ones it is used on."""
    members: tuple[str, ...]
    """`mil.networks.weights.digest_state` of each member."""
    adaptor: str | None = None
    """A name of `mil.adaptors.ADAPTORS`: what features pass through before the head; or nothing."""
    calibration: Calibration | None = None
    """How sure it may be; None where nothing was held out to find that out."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """How it was trained, as JSON: for the reader, and to tell whether training again would change it."""
    judges: Judges = Judges.SLIDES
    """What it says something of: slides, as all models did at first, or tiles."""

    def __post_init__(self) -> None:
        check_model_name(self.name)
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise UsageError(
                f"model {self.name!r} has classes {list(self.classes)}; it needs at least two, all different",
                action="Check the labels",
            )
        temperatures = len(self.calibration.temperatures) if self.calibration else len(self.members)
        if not self.members or temperatures != len(self.members):
            raise UsageError(
                f"model {self.name!r} has {len(self.members)} members and {temperatures} temperatures",
                action="Train it again",
            )

    @property
    def weights_sha256(self) -> str:
        """Names the weights of all members; of one alone its own hash."""
        return join_digests(self.members)

    def as_json(self) -> dict[str, Any]:
        """What model.json holds."""
        content = asdict(self) | {
            "format": FORMAT,
            "features": self.features.as_json(),
            "calibration": self.calibration.as_json() if self.calibration else None,
            "judges": self.judges.value,
        }
        if self.judges is Judges.SLIDES:
            del content["judges"]  # cards and scores of before there was a choice stay what they are
        as_read: dict[str, Any] = json.loads(canonical(content))  # tuples are lists there
        return as_read

    def identity(self) -> dict[str, Any]:
        """All that decides what it says of given features: part of the recipe of its scores."""
        kept = ("name", "head", "settings", "adaptor", "classes", "calibration")
        content = self.as_json()
        said = {key: content[key] for key in kept} | {"weights_sha256": self.weights_sha256}
        return said | {"judges": content["judges"]} if "judges" in content else said


def check_model_name(name: str) -> str:
    """The name, if results can be filed under it.

    Raises
    ------
    UsageError
        It cannot be a folder's, or Zarr would take the folder ``scores/<name>`` for its own.
    """
    if not re.fullmatch(r"\w[\w.\-]*", name) or len(name.encode()) > 80:
        raise UsageError(
            f"{name!r} cannot be a model's name: letters, digits, _ . and - only, 80 bytes at most",
            action="Choose another name",
        )
    if name.startswith("__") or name.casefold().endswith(".json"):
        raise UsageError(
            f"{name!r} cannot be a model's name: names that end in .json or begin with __ have a meaning "
            "in the output",
            action="Choose another name",
        )
    return name


def check_model_folder(folder: Path) -> None:
    """Find out before any work whether a model can be saved as `folder`.

    Raises
    ------
    UsageError
        See `check_model_name`.
    RecipeError
        Something is there.
    OutputError
        Nothing can be written where it would be.
    """
    check_model_name(folder.name)
    if (folder / CARD_FILE).is_file():
        raise _in_the_way(folder, "a model")
    if folder.exists() or folder.is_symlink():
        raise _in_the_way(folder, "something that is not a model")
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(
            f"cannot be written: {above} is {'read-only' if above.is_dir() else 'a file'}",
            path=folder,
            action="Choose another folder with -m",
        )


def describe(
    head: Head | Ensemble,
    *,
    name: str,
    classes: tuple[str, ...],
    features: FeatureRecipe,
    calibration: Calibration | None = None,
    training: Mapping[str, Any] | None = None,
    judges: Judges = Judges.SLIDES,
) -> Model:
    """The card of a head, or of an ensemble whose members are alike."""
    members = as_ensemble(head).members
    return Model(
        name=name,
        head=members[0].name,
        settings=members[0].settings,
        adaptor=members[0].adaptor,
        classes=classes,
        features=features,
        members=tuple(digest_state(member.state_dict()) for member in members),
        calibration=calibration,
        training=training or {},
        judges=judges,
    )


def save_model(
    folder: Path,
    head: Head | Ensemble,
    model: Model,
    *,
    files: Mapping[str, bytes] = _NO_FILES,
    overwrite: bool = False,
) -> Commit:
    """Publish members and their card as `folder`; nothing to do where the very same are there.

    The work folder is ``.work`` beside `folder`. One process at a time saves a model of that name.

    Parameters
    ----------
    folder
        Where it goes.
    head, model
        The weights, and what `describe` says of them.
    files
        What else belongs to it, by name: what the same card and weights give again.
    overwrite
        Replace another model that is there, once this one is complete; what is no model stays in the way.

    Raises
    ------
    RecipeError
        Another model, or something else, is there.
    OutputError
        See `wsi.errors`.
    """
    recipe = {"step": "model", "model": model.as_json()}
    try:
        commit = read_commit(folder)
    except DamagedError as error:
        raise _in_the_way(folder, "something that is not a sound model") from error
    if commit is not None:
        if commit.recipe == recipe:
            return commit
        if commit.recipe.get("step") != "model":
            raise _in_the_way(folder, "something that is not a model")
        if not overwrite:
            raise _in_the_way(folder, "another model")
    work = folder.parent / ".work"
    draft = begin(folder, recipe, work=work)
    for number, member in enumerate(as_ensemble(head).members):
        write_weights(draft.folder / weights_file(number), member)
    for name, data in files.items():
        write_file(draft.folder / name, data)
    write_file(draft.folder / CARD_FILE, canonical(model.as_json()))
    commit = draft.publish({})
    with contextlib.suppress(OSError):  # an output has its own use for it
        work.rmdir()
    return commit


def weights_file(member: int) -> str:
    """Where a member's weights are."""
    return f"member-{member}.safetensors"


def write_weights(path: Path, head: Head) -> None:
    """Write a member's tensors as safetensors, whole or not at all."""
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in head.state_dict().items()}
    write_file(path, to_safetensors(state))


def _in_the_way(folder: Path, what: str) -> RecipeError:
    action = "Choose another folder with -m, or delete it"
    return RecipeError(f"{what} is there already", path=folder, action=action)


def load_model(folder: Path) -> tuple[Model, Ensemble]:
    """Read a model back, every byte checked; its members are in eval mode, on the CPU.

    Raises
    ------
    UsageError
        It is missing, damaged, of another version, or not a model; the file is named.
    """
    commit = check_bytes(folder)
    model, names = _read_card(folder / CARD_FILE)
    for name in names:
        if name not in commit.files:
            raise not_a_model(folder, f"holds no {name}")
    members = tuple(
        _load_member(model, folder / name, digest) for name, digest in zip(names, model.members, strict=True)
    )
    temperatures = model.calibration.temperatures if model.calibration else (1.0,) * len(members)
    return model, Ensemble(members, temperatures)


def _load_member(model: Model, path: Path, digest: str) -> Head:
    state = read_state(path)
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, and replaced
        try:
            head = build_head(
                model.head,
                dim=int(model.features.encoder["dim"]) * (1 + len(model.features.contexts)),
                classes=len(model.classes),
                settings=model.settings,
                adaptor=model.adaptor,
            )
        except UsageError as error:
            raise _named(error, path.parent / CARD_FILE) from error
    load_strictly(head, state, path=path, what=f"{model.head} for {len(model.classes)} classes")
    if digest_state(state) != digest:
        raise not_a_model(path, f"does not hold the weights that {CARD_FILE} describes")
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise not_a_model(path, f"holds NaN or infinite numbers ({name}): every score would be none")
    return head.eval()


def _read_card(path: Path) -> tuple[Model, list[str]]:
    """The card, and the files of its members."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] == _OLD_FORMAT:
            content |= {"members": [content["weights_sha256"]]}
        elif content["format"] != FORMAT:
            raise not_a_model(
                path, f"has version {content['format']}; this program reads versions up to {FORMAT}"
            )
        calibration = content.get("calibration")
        model = Model(
            name=content["name"],
            head=content["head"],
            settings=content["settings"],
            adaptor=content.get("adaptor"),
            classes=tuple(content["classes"]),
            features=FeatureRecipe.from_json(content["features"]),
            members=tuple(content["members"]),
            calibration=Calibration.from_json(calibration) if calibration else None,
            training=content["training"],
            judges=Judges(content.get("judges", Judges.SLIDES.value)),
        )
    except UsageError as error:
        raise _named(error, path) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise not_a_model(path, f"is unreadable ({type(error).__name__}: {error})") from error
    old = content["format"] == _OLD_FORMAT
    return model, [_OLD_WEIGHTS] if old else [weights_file(i) for i in range(len(model.members))]


def _named(error: UsageError, path: Path) -> UsageError:
    """The error, which names the card that is at fault."""
    return error if error.path else UsageError(error.reason, path=path, action=error.action)
