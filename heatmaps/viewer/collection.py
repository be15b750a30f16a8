"""A FeatureCollection as a file: read leniently, and changed by one process at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tiling.commit import alone
from wsi.annotations import read_bounded
from wsi.errors import OutputBusyError, OutputError, UsageError

_PATIENCE_S = 10.0
"""How long to wait for another viewer that writes the same file."""


def read_collection(path: Path) -> dict[str, Any]:
    """The file as JSON, empty where there is none. QuPath writes a collection too."""
    if not path.exists():
        return {}
    try:
        top = json.loads(read_bounded(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise _unreadable(path, str(error)) from error
    if isinstance(top, list):
        top = {"type": "FeatureCollection", "features": top}
    if not isinstance(top, dict) or top.get("type") != "FeatureCollection":
        raise _unreadable(path, "no FeatureCollection")
    return top


def features_of(top: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """Its features; `UsageError` where they are none."""
    features = top.get("features", [])
    if not isinstance(features, list) or not all(isinstance(feature, dict) for feature in features):
        raise _unreadable(path, "its features are no list of objects")
    return features


def said_of(feature: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a feature's metadata says; in other programs' files it may be anything."""
    properties = feature.get("properties")
    said = properties.get("metadata") if isinstance(properties, dict) else None
    return said if isinstance(said, dict) else {}


def _unreadable(path: Path, reason: str) -> UsageError:
    return UsageError(
        f"cannot be read as marks ({reason}), so nothing was changed",
        path=path,
        action="Mend it, or move it away: a new one is begun",
    )


@contextmanager
def alone_patiently(path: Path, work: Path) -> Iterator[None]:
    """`tiling.commit.alone`, waiting for a while where another process is at it."""
    until = time.monotonic() + _PATIENCE_S
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(alone(path, work=work))
                break
            except (OutputBusyError, OutputError) as error:
                # The other one removes the work folder when it is done, perhaps just before we lock in it.
                busy = isinstance(error, OutputBusyError) or isinstance(error.__cause__, FileNotFoundError)
                if not busy or time.monotonic() > until:
                    raise
                time.sleep(0.02)
        yield
