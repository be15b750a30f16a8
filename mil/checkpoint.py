"""A trained head on disk: weights as safetensors, all else as JSON, in one committed folder.

::

    MODEL/weights.safetensors     tensors, and nothing that could run
    MODEL/model.json              `Model`: what the head is, and which features it understands
    MODEL/commit.json             see `tiling.commit`
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_safetensors

from mil.features import FeatureRecipe
from mil.heads import Head, Settings, build_head
from mil.weights import digest_state, load_strictly, read_state
from tiling.commit import Commit, begin, canonical, find_damage, read_commit
from wsi.durable import write_file
from wsi.errors import DamagedError, RecipeError, UsageError

WEIGHTS_FILE, CARD_FILE = "weights.safetensors", "model.json"
FORMAT = 1
"""Version of model.json; a reader refuses any other."""


@dataclass(frozen=True, slots=True)
class Model:
    """The card of a trained head: everything but its weights, and their hash.

    Raises
    ------
    UsageError
        See `check_model_name`; or there are not at least two classes.
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
    weights_sha256: str
    """`mil.weights.digest_state` of the head."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """How it was trained, as JSON: for the reader, and to tell whether training again would change it."""

    def __post_init__(self) -> None:
        check_model_name(self.name)
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise UsageError(
                f"model {self.name!r} has classes {list(self.classes)}; it needs at least two, all different",
                action="Check the labels",
            )

    def as_json(self) -> dict[str, Any]:
        """What model.json holds."""
        content = asdict(self) | {"format": FORMAT, "features": self.features.as_json()}
        as_read: dict[str, Any] = json.loads(canonical(content))  # tuples are lists there
        return as_read


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
    """
    check_model_name(folder.name)
    if (folder / CARD_FILE).is_file():
        raise _in_the_way(folder, "a model")
    if folder.exists() or folder.is_symlink():
        raise _in_the_way(folder, "something that is not a model")


def describe(
    head: Head,
    *,
    name: str,
    classes: tuple[str, ...],
    features: FeatureRecipe,
    training: Mapping[str, Any] | None = None,
) -> Model:
    """The card of a head."""
    return Model(
        name=name,
        head=head.name,
        settings=head.settings,
        classes=classes,
        features=features,
        weights_sha256=digest_state(head.state_dict()),
        training=training or {},
    )


def save_model(folder: Path, head: Head, model: Model) -> Commit:
    """Publish a head and its card as `folder`; nothing to do where the very same are there.

    The work folder is ``.work`` beside `folder`. One process at a time saves a model of that name.

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
        raise _in_the_way(folder, "another model")
    work = folder.parent / ".work"
    draft = begin(folder, recipe, work=work)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in head.state_dict().items()}
    write_file(draft.folder / WEIGHTS_FILE, to_safetensors(state))
    write_file(draft.folder / CARD_FILE, canonical(model.as_json()))
    commit = draft.publish({})
    with contextlib.suppress(OSError):  # an output has its own use for it
        work.rmdir()
    return commit


def _in_the_way(folder: Path, what: str) -> RecipeError:
    action = "Choose another folder with -m, or delete it"
    return RecipeError(f"{what} is there already", path=folder, action=action)


def load_model(folder: Path) -> tuple[Model, Head]:
    """Read a model back, every byte checked; the head is in eval mode, on the CPU.

    Raises
    ------
    UsageError
        It is missing, damaged, of another version, or not a model; the file is named.
    """
    _check_bytes(folder)
    model = _read_card(folder / CARD_FILE)
    weights = folder / WEIGHTS_FILE
    state = read_state(weights)
    dim = int(model.features.encoder["dim"])
    head = build_head(model.head, dim=dim, classes=len(model.classes), settings=model.settings)
    load_strictly(head, state, path=weights, what=f"{model.head} for {len(model.classes)} classes")
    if digest_state(state) != model.weights_sha256:
        raise _not_a_model(weights, f"does not hold the weights that {CARD_FILE} describes")
    return model, head.eval()


def _check_bytes(folder: Path) -> None:
    if not folder.exists():
        raise UsageError(
            "there is no such model", path=folder, action="Give the folder that 'microtome train' wrote"
        )
    if not folder.is_dir():
        raise _not_a_model(folder, "is a file; a model is a folder")
    try:
        commit = read_commit(folder)
        assert commit is not None  # the folder is there
        for damage in find_damage(folder, commit, full=True):
            raise _not_a_model(folder / damage.file, damage.reason)
        for name in (CARD_FILE, WEIGHTS_FILE):
            if name not in commit.files:
                raise _not_a_model(folder, f"holds no {name}")
    except DamagedError as error:
        raise _not_a_model(folder, error.reason) from error


def _read_card(path: Path) -> Model:
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise _not_a_model(path, f"has version {content['format']}; this program reads version {FORMAT}")
        return Model(
            name=content["name"],
            head=content["head"],
            settings=content["settings"],
            classes=tuple(content["classes"]),
            features=FeatureRecipe.from_json(content["features"]),
            weights_sha256=content["weights_sha256"],
            training=content["training"],
        )
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise _not_a_model(path, f"is unreadable ({type(error).__name__}: {error})") from error


def _not_a_model(path: Path, reason: str) -> UsageError:
    return UsageError(
        reason, path=path, action="Copy the model again, or train it with this version of Microtome"
    )
