"""What a slide's report says, as JSON: every number of its page is one of these; see ``schema.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from heatmaps.report.chosen import Chosen
from heatmaps.report.feedback import Said
from heatmaps.report.pictures import MOST_CHANNELS, Channel, channels_of
from heatmaps.report.privacy import safe_text
from heatmaps.report.provenance import items_of, provenance
from heatmaps.report.shown import ScoredTiles, choose_tiles, read_scored
from heatmaps.report.verdict import calibration_of, decision_of, prediction_of, shares_of
from tiling.commit import Commit
from tiling.qc import SlideQuality, summarise
from tiling.store import TileStore, judges_tiles, scores_by
from tiling.versions import versions

FORMAT, VERSION = "microtome-report", 1
"""Of the JSON; a reader refuses a later version."""


@dataclass(frozen=True, eq=False)
class Findings:
    """What a slide's store holds for its report. Made by `find`."""

    items: Mapping[str, Commit]
    """All that the report rests on, by name."""
    scores: Commit | None
    """The model's scores; None where nothing was predicted."""
    tiles: ScoredTiles | None
    """The same, tile by tile."""
    order: tuple[str, ...]
    """The classes, the likeliest first."""

    @property
    def channels(self) -> list[Channel]:
        """What is drawn over the slide."""
        if self.tiles is None or self.scores is None:
            return []
        return channels_of(self.tiles, list(self.order), of_tiles=judges_tiles(self.scores))


def find(store: TileStore, chosen: Chosen | None) -> Findings:
    """Read what there is of a slide.

    Raises
    ------
    UsageError, RecipeError, DamagedError
        It was not cut; or what there is does not fit together, or was damaged. Scores that are not there at
        all are no error.
    """
    if chosen is None or store.find(f"scores/{chosen.name}") is None:
        return Findings(items_of(store, None), None, None, ())
    scores = scores_by(store, chosen.name, chosen.weights_sha256)
    classes = list(scores.recipe["model"]["classes"])
    weight = scores.record.get("probabilities") or scores.record.get("expected_shares") or {}
    order = sorted(classes, key=lambda name: (-weight.get(name, 0.0), classes.index(name)))
    items = items_of(store, f"scores/{chosen.name}")
    return Findings(items, scores, read_scored(store, chosen.name), tuple(order))


def slide_content(
    store: TileStore,
    findings: Findings,
    quality: SlideQuality,
    *,
    chosen: Chosen | None,
    time: Mapping[str, Any],
    feedback: tuple[Said | None, list[str]],
    pictures: str | None,
) -> dict[str, Any]:
    """All that a slide's report says.

    Parameters
    ----------
    store, findings, quality
        The slide.
    chosen
        The model that was asked for.
    time
        See `heatmaps.report.spent.RunLogs.time_of`.
    feedback
        See `heatmaps.report.feedback.find_feedback`.
    pictures
        Why there are no pictures of tiles; None where there are.
    """
    scores = findings.scores
    summary = summarise(quality)
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "kind": "slide",
        "slide": store.slide_id,
        "status": "predicted" if scores else "tiles only",
        "made_by": {"microtome": versions()["microtome"]},
        "model": _model(scores, chosen) if scores and chosen else None,
        "prediction": prediction_of(scores) if scores else None,
        "shares": shares_of(scores) if scores else None,
        "calibration": calibration_of(scores) if scores else None,
        "decision": decision_of(scores) if scores else None,
        "feedback": feedback[0],
        "heatmap": [channel.as_json() for channel in findings.channels],
        "tiles": choose_tiles(findings.tiles, findings.order) if findings.tiles else [],
        "tiles_not_pictured_because": pictures,
        "quality": {
            "tissue_mm2": findings.items["tissue"].record["tissue_mm2"],
            "tissue_share": findings.items["tissue"].record.get("tissue_share"),
            "tiles_kept": summary["tiles_kept"],
            "tiles_dropped": summary["tiles_dropped"],
            "damaged": summary["damaged"],
            "percentiles": summary["percentiles"],
            "histograms": summary["histograms"],
        },
        "run": provenance(findings.items),
        "time": {**time, "untold_items": _untold(findings, time)},
    }
    said = [store.slide_id, *findings.order]
    warnings = [*_warnings(findings, summary, content), *feedback[1]]
    content["warnings"] = [safe_text(text, allowed=said) for text in warnings]
    return content


def _untold(findings: Findings, time: Mapping[str, Any]) -> list[str]:
    """Items whose making no log tells the time of."""
    told = {step["step"] for step in time["steps"]}
    return [name for name in findings.items if name not in told]


def _model(scores: Commit, chosen: Chosen) -> dict[str, Any]:
    said = scores.recipe["model"]
    settings = said.get("settings") or {}
    return {
        "name": chosen.name,
        "weights_sha256": said["weights_sha256"],
        "head": said.get("head"),
        "adaptor": said.get("adaptor"),
        "settings": {str(n): v for n, v in settings.items() if isinstance(v, int | float | bool)},
        "classes": list(said["classes"]),
        "judges": "tiles" if judges_tiles(scores) else "slides",
        "trained": dict(chosen.trained) if chosen.trained else None,
    }


def _warnings(findings: Findings, summary: Mapping[str, Any], content: Mapping[str, Any]) -> list[str]:
    """What a reader should know before believing a number."""
    found = [str(text) for text in findings.items["tissue"].record.get("warnings", ())]
    found += [str(text) for text in (*summary["warnings"], *summary["notes"])]
    said = content["prediction"] or content["shares"]
    if said is None:
        return found
    if said["trained_on"]:
        found.append("The model learned from a slide of this name: what it says of it is no test of it.")
    if not said["calibrated"]:
        found.append(
            "The model is not calibrated: a probability of 0.8 need not be right in 8 of 10 cases, and there "
            "is no gate. A person has to look."
        )
    if content["prediction"] and content["prediction"]["members"] in (None, 1):
        found.append("The model has one member, or its scores keep none: nothing tells how sure it is.")
    if len(findings.order) > MOST_CHANNELS:
        found.append(f"Of {len(findings.order)} classes the {MOST_CHANNELS} likeliest are drawn.")
    return found


def schema_text() -> str:
    """The JSON Schema of both reports, of slides and of cohorts."""
    return files("heatmaps.report").joinpath("schema.json").read_text(encoding="utf-8")


def classes_of(content: Mapping[str, Any]) -> Sequence[str]:
    """Names of the model's classes, in its order; none where there is no model."""
    return content["model"]["classes"] if content["model"] else ()
