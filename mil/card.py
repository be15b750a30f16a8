"""What a saved model is called, and whose weights it has: read without torch, and without the tensors.

Drawing what a model has said needs no more of it; torch alone takes a quarter of a gigabyte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiling.commit import Commit, find_damage, read_commit
from wsi.errors import DamagedError, UsageError

CARD_FILE = "model.json"


@dataclass(frozen=True, slots=True)
class Named:
    """What scores are known by."""

    name: str
    """What they are filed under."""
    weights_sha256: str
    """`join_digests` of the members."""


def read_name(folder: Path) -> Named:
    """The name of a model and its weights' hash, every byte of the model checked.

    Raises
    ------
    UsageError
        It is missing, damaged, or not a model; the file is named.
    """
    check_bytes(folder)
    path = folder / CARD_FILE
    try:
        content = json.loads(path.read_bytes())
        members = content["members"] if "members" in content else [content["weights_sha256"]]
        return Named(str(content["name"]), join_digests(members))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise not_a_model(path, f"is unreadable ({type(error).__name__}: {error})") from error


def join_digests(members: Sequence[str]) -> str:
    """One name for the weights of all members; of one alone its own hash."""
    return members[0] if len(members) == 1 else hashlib.sha256("\n".join(members).encode()).hexdigest()


def check_bytes(folder: Path) -> Commit:
    """The commit of a model's folder, every byte checked against it; errors of `read_name`."""
    if not folder.exists():
        raise UsageError(
            "there is no such model", path=folder, action="Give the folder that 'microtome train' wrote"
        )
    if not folder.is_dir():
        raise not_a_model(folder, "is a file; a model is a folder")
    try:
        commit = read_commit(folder)
        assert commit is not None  # the folder is there
        for damage in find_damage(folder, commit, full=True):
            raise not_a_model(folder / damage.file, damage.reason)
        if CARD_FILE not in commit.files:
            raise not_a_model(folder, f"holds no {CARD_FILE}")
    except DamagedError as error:
        raise not_a_model(folder, error.reason) from error
    return commit


def not_a_model(path: Path, reason: str) -> UsageError:
    """The error for a folder that is no model, or one that something happened to."""
    return UsageError(
        reason, path=path, action="Copy the model again, or train it with this version of Microtome"
    )
