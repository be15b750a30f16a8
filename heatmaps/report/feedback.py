"""What a person said of a slide in ``microtome view``: counts and names of classes, and none of his words.

Marks lie in ``OUT/feedback/<slide id>.geojson``; `heatmaps.viewer.marks` writes them, and QuPath may have
changed them since. Only what a person may choose from is taken: verdicts, and classes by which tiles and
regions can be learned from. Names of objects, descriptions and whatever else the file holds stay there.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tiling.class_names import fault_of
from tiling.output import Output, check_slide_id
from wsi.annotations import parse_annotations, read_bounded
from wsi.errors import UsageError
from wsi.feature import class_name
from wsi.found import is_as_found

FOLDER, SUFFIX = "feedback", ".geojson"
"""Below the output."""
AGREE, DISAGREE = "agree", "disagree"
UNREADABLE = (
    "The file of what a person marked on this slide cannot be read: it is not in this report. Load it in "
    "'microtome view' to see what is wrong with it."
)
NAMELESS = "another class"
"""In the place of a name that no class can have."""

Said = dict[str, Any]


def read_feedback(output: Output, slide_id: str, *, model: str | None) -> Said | None:
    """What a person said of a slide and of a model's results on it, as JSON; None where nobody did.

    Parameters
    ----------
    output, slide_id
        Whose marks.
    model
        Verdicts on results of other models are counted and no more.

    Raises
    ------
    UsageError
        The file cannot be read.
    """
    path = output.root / FOLDER / f"{check_slide_id(slide_id)}{SUFFIX}"
    if not os.path.lexists(path):
        return None
    try:
        top = json.loads(read_bounded(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError("is no JSON", path=path) from error
    features = top.get("features") if isinstance(top, dict) else top
    if not isinstance(features, list) or not all(isinstance(feature, dict) for feature in features):
        raise UsageError("holds no list of features", path=path)
    verdicts = {id(feature): _verdict(feature) for feature in features}
    about = [verdict for verdict in verdicts.values() if verdict]
    others = [feature for feature in features if not verdicts[id(feature)]]
    regions: Counter[str] = Counter()
    if others:
        found = parse_annotations(json.dumps({**_plain(top), "features": others}).encode(), path=path)
        names = [one.name for one in found if one.object_type == "annotation" and not is_as_found(one)]
        regions.update(_class_of(name) for name in names if name and not name.endswith("*"))
    ours = [verdict for verdict in about if verdict["model"] == model]
    said: Said = {
        "slide": [_of_slide(verdict) for verdict in ours if verdict["about"] == "slide"],
        "tiles": _of_tiles([verdict for verdict in ours if verdict["about"] == "tile"]),
        "regions": dict(sorted(regions.items())),
        "on_other_models": len(about) - len(ours),
    }
    return said if about or regions else None


def find_feedback(output: Output, slide_id: str, *, model: str | None) -> tuple[Said | None, list[str]]:
    """`read_feedback`, or nothing and a warning where the file cannot be read."""
    try:
        return read_feedback(output, slide_id, model=model), []
    except UsageError:
        return None, [UNREADABLE]


def _plain(top: object) -> dict[str, Any]:
    """What stands beside the features, but what no reader needs."""
    return {"type": "FeatureCollection"} | (
        {"bounds_origin": top["bounds_origin"]} if isinstance(top, dict) and "bounds_origin" in top else {}
    )


def _verdict(feature: Mapping[str, Any]) -> dict[str, str | None] | None:
    """Agreement or disagreement with a result; None of regions and of what is not ours."""
    properties = feature.get("properties")
    said = properties.get("metadata") if isinstance(properties, Mapping) else None
    if not isinstance(properties, Mapping) or not isinstance(said, Mapping):
        return None
    about, verdict, shown = said.get("about"), said.get("verdict"), said.get("shown")
    if about not in {"slide", "tile"} or verdict not in {AGREE, DISAGREE} or not isinstance(shown, str):
        return None
    better = said.get("said") if about == "slide" else _classified(properties)
    usable = isinstance(better, str) and better and not better.endswith("*")
    return {
        "about": about,
        "model": str(said.get("model")),
        "verdict": verdict,
        "shown": _class_of(shown),
        "class": _class_of(better) if usable and verdict == DISAGREE else None,
    }


def _classified(properties: Mapping[str, Any]) -> str | None:
    """The class that a tile was given, or has had since in QuPath."""
    try:
        return class_name(properties.get("classification"))
    except ValueError:
        return None


def _class_of(name: object) -> str:
    return name if isinstance(name, str) and not fault_of(name) else NAMELESS


def _of_slide(verdict: Mapping[str, str | None]) -> dict[str, str | None]:
    return {name: verdict[name] for name in ("verdict", "shown", "class")}


def _of_tiles(verdicts: Sequence[Mapping[str, str | None]]) -> dict[str, Any]:
    counts = Counter(verdict["verdict"] for verdict in verdicts)
    classes = Counter(name for verdict in verdicts if (name := verdict["class"]))
    return {
        "agreed": counts[AGREE],
        "disagreed": counts[DISAGREE],
        "disagreed_classes": dict(sorted(classes.items())),
    }


def in_words(said: Said | None) -> str:
    """The same on one line; nothing where nobody said anything.

    >>> tiles = {"agreed": 3, "disagreed": 1, "disagreed_classes": {"stroma": 1}}
    >>> slide = [{"verdict": "disagree", "shown": "tumour", "class": "metastasis"}]
    >>> in_words({"slide": slide, "tiles": tiles, "regions": {"stroma": 2}, "on_other_models": 0})
    'disagreed with tumour: metastasis; tiles: 3 agreed, 1 disagreed; regions: 2 stroma'
    """
    if said is None:
        return ""
    parts = [verdict_in_words(verdict) for verdict in said["slide"]]
    if said["tiles"]["agreed"] or said["tiles"]["disagreed"]:
        parts.append(f"tiles: {said['tiles']['agreed']} agreed, {said['tiles']['disagreed']} disagreed")
    if said["regions"]:
        parts.append("regions: " + ", ".join(f"{count} {name}" for name, count in said["regions"].items()))
    if said["on_other_models"]:
        parts.append(f"{said['on_other_models']} on results of other models")
    return "; ".join(parts)


def verdict_in_words(verdict: Mapping[str, str | None]) -> str:
    """Of a slide.

    >>> verdict_in_words({"verdict": "agree", "shown": "tumour", "class": None})
    'agreed with tumour'
    """
    better = f": {verdict['class']}" if verdict["class"] else ""
    return f"{verdict['verdict']}d with {verdict['shown']}{better}"
