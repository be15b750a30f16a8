"""The parts of a page that say what was run, by which versions, and how long it took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from heatmaps.report.html import Markup, facts, number, paragraph, share, table, text

ACTIVITIES = (
    "read", "decode", "read and decode", "resample", "quality", "stain", "compress", "wait for tiles",
    "encode", "write",
)  # fmt: skip
"""In the order in which they come; any other is listed behind them."""
TOGETHER = "read and decode"
"""Of libraries that do both in one call."""
UNMEASURED, OTHER = "not measured", "other"


def run_parts(content: Mapping[str, Any]) -> Iterator[str]:
    """Settings, model and items of a slide."""
    run, tile = content["run"], content["run"]["tile"]
    rows: list[tuple[object, object]] = [
        ("slide file, sampled SHA-256", _code(run["slide_file"]["sample_sha256"])),
        ("its size, bytes", number(run["slide_file"]["size_bytes"])),
        ("read by", run["backend"]),
        ("resolution", f"{run['resolution']['x']:.6g} x {run['resolution']['y']:.6g} µm per pixel"),
        ("stated by", run["resolution"]["source"]),
        ("tiles", f"{tile['size_px']} px at {tile['mpp']:g} µm per pixel, {tile['overlap_px']} px overlap"),
        ("decoding", "whole tiles only" if run["exact"] else "at half scale where that is as good"),
        ("where", "in regions that were selected" if run["selected_regions"] else "on all tissue"),
        ("tissue by", settings(run["tissue"])),
        ("least tissue of a tile", "not stated" if run["min_tissue"] is None else share(run["min_tissue"])),
        ("stain", settings(run["stain"]) if run["stain"] else "as scanned"),
    ]
    if run["stain"]:
        rows.append(("stain was fitted", "yes" if run["stain_fitted"] else "no: colours are as scanned"))
    for one in run["encoders"]:
        more = {"precision": one["precision"], "context_mpp": one["context_mpp"]}
        said = settings(one["settings"] | {n: v for n, v in more.items() if v is not None})
        rows.append((f"encoder of {one['item']}", said))
    yield facts(rows)
    if content["model"]:
        yield "<h3>Model</h3>"
        yield facts(model_rows(content["model"]))
    yield table(
        ("item", "SHA-256 of its commit"),
        [(one["item"], _code(one["sha256"])) for one in run["items"]],
        caption="Results that this report rests on; 'microtome verify --full' checks them",
    )
    yield versions_table(run["items"])


def model_rows(model: Mapping[str, Any]) -> Iterator[tuple[object, object]]:
    """What is known of a model."""
    yield "name", model["name"]
    yield "weights, SHA-256", _code(model["weights_sha256"])
    yield "head", settings({"name": model["head"]} | model["settings"])
    if model["adaptor"]:
        yield "adaptor", model["adaptor"]
    yield "judges", model["judges"]
    yield "classes", ", ".join(model["classes"])
    trained = model["trained"]
    if trained is None:
        yield "training", "the model's folder was not at hand: give it with -m"
        return
    yield "members", number(trained["members"])
    for name in ("folds", "slides", "patients"):
        if trained[name] is not None:
            yield f"training: {name}", number(trained[name])
    if trained["class_counts"]:
        yield "training: slides of each class", settings(trained["class_counts"])
    for one in trained["held_out"]:
        yield (
            f"figures on {one['slides'] or 'some'} {one['on']}",
            Markup(f"AUROC {share(one['auroc'])}, balanced accuracy {share(one['balanced_accuracy'])}"),
        )


def versions_table(items: list[Mapping[str, Any]]) -> str:
    """Packages and the versions that were used, with the items of each."""
    used: dict[tuple[str, str], list[str]] = {}
    for one in items:
        for package, version in one["versions"].items():
            used.setdefault((package, version), []).append(one["item"])
    rows = [(package, version, ", ".join(names)) for (package, version), names in sorted(used.items())]
    return table(("package", "version", "used for"), rows, caption="Software") if rows else ""


def time_parts(time: Mapping[str, Any], untold: Sequence[str]) -> Iterator[str]:
    """Steps with their activities, and what no step tells, up to the whole; `untold` has no time at all."""
    named = {name for step in time["steps"] for name in step["activities"]}
    columns = [name for name in ACTIVITIES if name in named] + sorted(named - {*ACTIVITIES})
    if time["steps"] or time["untold_runs"]:
        head = ("step", "seconds", *columns, UNMEASURED)
        words = "Seconds by the clock, as the logs of the runs have them, and of which activities"
        yield table(head, _time_rows(time, columns), caption=words)
        yield paragraph(_time_words(time, columns), "small")
    else:
        yield paragraph("No log of the runs that made these results tells the time of their steps.")
    if untold and time["steps"]:
        yield paragraph(f"No log tells how long these took: {', '.join(untold)}.", "small")


def _time_rows(time: Mapping[str, Any], columns: Sequence[str]) -> Iterator[tuple[object, ...]]:
    blank = [""] * len(columns)
    for step in time["steps"]:
        each = (seconds(step["activities"][n]) if n in step["activities"] else "" for n in columns)
        yield step["step"], seconds(step["seconds"]), *each, seconds(step["unmeasured_seconds"])
    if time["steps"]:
        other = seconds(time["other_seconds"])
        yield OTHER, other, *blank, other
    for run in time["untold_runs"]:
        yield (
            f"'{run['run']}', whose log tells no steps",
            seconds(run["seconds"]),
            *blank,
            seconds(run["seconds"]),
        )
    yield "all of it", seconds(time["total_seconds"]), *blank, ""


def _time_words(time: Mapping[str, Any], columns: Sequence[str]) -> str:
    words = []
    if time["steps"]:
        words.append(
            "Activities are seconds of all threads together: those of a step may add up to more than it "
            f"took, and '{UNMEASURED}' is then the least it can be. '{OTHER.capitalize()}' is what these "
            "runs took beside the steps: opening the slide, checking what was there, and steps that were "
            "made again since."
        )
    if TOGETHER in columns:
        words.append(
            f"'{TOGETHER}' is one column: OpenSlide has one call for both, and no clock can part them."
        )
    whole = [step["step"] for step in time["steps"] if not step["activities"]]
    if whole:
        words.append(f"Nobody timed the activities of: {', '.join(whole)}.")
    return " ".join(words)


def seconds(value: float) -> Markup:
    """Seconds, to a tenth from ten on."""
    return text(f"{value:.1f}" if value >= 10 else f"{value:.3f}")


def settings(values: Mapping[str, Any] | None) -> str:
    """Settings in one line."""
    return ", ".join(f"{name} {_plain(value)}" for name, value in (values or {}).items() if value is not None)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _code(value: object) -> Markup:
    return Markup(f"<code>{text(value)}</code>")
