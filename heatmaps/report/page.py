"""The page of a slide's report. It knows nothing but the report's JSON and the pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from heatmaps.report.feedback import UNREADABLE, verdict_in_words
from heatmaps.report.html import (
    MISSING,
    Markup,
    facts,
    figure,
    number,
    page,
    paragraph,
    section,
    share,
    table,
    text,
    warning,
)
from heatmaps.report.pictures import as_data, colour_bar
from heatmaps.report.run_parts import run_parts, time_parts
from tiling.quality import MEANING, NO_MEANING
from tiling.quality_page import COLOURS, OTHER_COLOUR


@dataclass(frozen=True, eq=False)
class Pictures:
    """Image files of a slide's page."""

    outlined: bytes
    """The slide with the outline of its tissue."""
    tiled: bytes
    """The slide with its tiles."""
    overlays: Sequence[bytes] = ()
    """One for each channel of the JSON's ``heatmap``."""
    tiles: Mapping[int, bytes] = field(default_factory=lambda: MappingProxyType({}))
    """Tiles by row: all that the JSON's ``tiles`` names, or none."""


def slide_page(content: Mapping[str, Any], pictures: Pictures) -> str:
    """The page, as one HTML file."""
    slide = str(content["slide"])
    body = [
        _summary(content),
        *map(warning, content["warnings"]),
        section("Prediction", *_prediction(content)),
        section("Calibration and decision gate", *_gate(content)),
        section("What a person said", *_feedback(content)),
        section("Slide", *_overview(content, pictures)),
        section("Heatmap", *_heatmap(content, pictures)),
        section("Tiles at both ends", *_tiles(content, pictures)),
        section("Quality", *_quality(content)),
        section("What was run", *run_parts(content)),
        section("How the time was spent", *time_parts(content["time"], content["time"]["untold_items"])),
        _about(content),
    ]
    return page(f"Report of {slide}", Markup(f"Slide {text(slide)}"), body)


def _summary(content: Mapping[str, Any]) -> str:
    said, shares, decision = content["prediction"], content["shares"], content["decision"]
    lines = []
    if said:
        best = next(one for one in said["classes"] if one["name"] == said["likeliest"])
        lines.append(
            f'<p class="big">{text(said["likeliest"])}: {share(best["probability"])}{_interval(best)}</p>'
        )
        status = decision["status"] if decision else "review required: the model has no gate"
        lines.append(paragraph(Markup(f"Decision: <strong>{text(status)}</strong>")))
    elif shares:
        first = max(shares["shares"], key=lambda name: (shares["shares"][name], name))
        lines.append(f'<p class="big">{text(first)}: {share(shares["shares"][first])} of the tiles</p>')
        lines.append(paragraph("The model judges tiles: it has no verdict on the slide."))
    else:
        lines.append('<p class="big">No prediction</p>')
        lines.append(paragraph("No model has scored this slide. Run 'microtome predict', then this again."))
    verdicts = content["feedback"]["slide"] if content["feedback"] else ()
    lines += [
        paragraph(Markup(f"A person <strong>{text(verdict_in_words(one))}</strong>")) for one in verdicts
    ]
    kept, dropped = content["quality"]["tiles_kept"], sum(content["quality"]["tiles_dropped"].values())
    lines.append(paragraph(f"{kept} tiles, {dropped} dropped; {content['quality']['tissue_mm2']} mm² tissue"))
    return f'<div class="summary">{"".join(lines)}</div>'


def _interval(one: Mapping[str, Any]) -> str:
    return "" if one["low"] is None else f" (interval {share(one['low'])} to {share(one['high'])})"


def _prediction(content: Mapping[str, Any]) -> Iterator[str]:
    said, shares = content["prediction"], content["shares"]
    if said:
        rows = [
            (
                one["name"],
                share(one["probability"]),
                _or_none(one["low"]),
                _or_none(one["high"]),
                _or_none(one["deviation"]),
            )
            for one in said["classes"]
        ]
        head = ("class", "probability", "interval from", "to", "standard deviation of members")
        kind = "calibrated" if said["calibrated"] else "not calibrated"
        yield table(head, rows, caption=f"Probabilities of the slide's class, {kind}")
        yield paragraph(said["interval_meaning"], "small")
        if said["information_nats"] is not None:
            value = f"{said['information_nats']:.3g}"
            yield paragraph(f"Members disagree by {value} nats of mutual information.", "small")
    if shares:
        parts = [
            (name, share(value), share(shares["expected_shares"].get(name)))
            for name, value in shares["shares"].items()
        ]
        names = ("class", "share of tiles that score highest in it", "mean score")
        yield table(names, parts, caption="Of what the slide is made")
        unsure = share(shares["uncertain_share"])
        yield paragraph(Markup(f"{unsure} of the tiles are below the gate's threshold."), "small")


def _or_none(value: float | None) -> Markup:
    return text("none") if value is None else share(value)


def _gate(content: Mapping[str, Any]) -> Iterator[str]:
    found, decision = content["calibration"], content["decision"]
    if content["model"] is None:
        return
    if found is None:
        trained = content["model"]["trained"]
        reasons = trained["not_calibrated_because"] if trained else ()
        why = f" ({'; '.join(reasons)})" if reasons else ""
        yield paragraph(f"The model is not calibrated{why}. There is no gate: a person has to look.")
        return
    if decision:
        yield facts(
            [
                ("decision", decision["status"]),
                ("confidence", share(decision["confidence"])),
                ("least confidence that is confirmed", number(found["gate_threshold"])),
                ("because", "; ".join(decision["reasons"])),
                ("classes that cannot be ruled out", ", ".join(decision["conformal_set"]) or "none"),
            ]
        )
    alpha = found["conformal_alpha"]
    if alpha is not None:
        yield paragraph(
            f"Classes are ruled out by a conformal rule with alpha {alpha:g}: of slides like those of its "
            f"calibration, at most {alpha:.0%} have a true class that is ruled out. Of other slides it says "
            "nothing.",
            "small",
        )
    temperatures = ", ".join(f"{value:.4g}" for value in found["temperatures"])
    yield paragraph(f"Temperatures of the members: {temperatures}.", "small")


def _feedback(content: Mapping[str, Any]) -> Iterator[str]:
    said = content["feedback"]
    if UNREADABLE in content["warnings"]:
        yield warning(UNREADABLE)
        return
    if said is None:
        yield paragraph("Nobody has marked anything on this slide in 'microtome view'.")
        return
    rows: list[tuple[object, object]] = [("slide", verdict_in_words(one)) for one in said["slide"]]
    tiles = said["tiles"]
    rows += [
        (f"tiles where a person {word}", number(tiles[word]))
        for word in ("agreed", "disagreed")
        if tiles["agreed"] or tiles["disagreed"]
    ]
    rows += [(f"tiles that are {name}", number(count)) for name, count in tiles["disagreed_classes"].items()]
    rows += [(f"regions of {name}", number(count)) for name, count in said["regions"].items()]
    if said["on_other_models"]:
        rows.append(("on results of other models", number(said["on_other_models"])))
    yield facts(rows)
    yield paragraph(
        "Marks of 'microtome view', beside the result as it was shown when they were made. Nothing above "
        "takes account of them.",
        "small",
    )


def _overview(content: Mapping[str, Any], pictures: Pictures) -> Iterator[str]:
    quality, run = content["quality"], content["run"]
    width, height = run["slide_size_px"]
    left = figure(
        pictures.outlined,
        alt="The whole slide with an outline round the tissue",
        caption=f"{width} x {height} px, {run['resolution']['x']:.4g} µm per pixel along x. Outline: tissue, "
        f"{quality['tissue_mm2']} mm².",
    )
    right = figure(
        pictures.tiled, alt="The whole slide with its tiles tinted", caption=Markup(_legend(content))
    )
    yield f'<div class="pair">{left}{right}</div>'


def _legend(content: Mapping[str, Any]) -> str:
    keys = []
    for kind in ("kept", *content["quality"]["tiles_dropped"]):
        red, green, blue = COLOURS.get(kind, OTHER_COLOUR)
        name = kind if kind == "kept" else f"dropped: {kind}"
        keys.append(
            f'<span class="key"><i style="background: rgb({red}, {green}, {blue})"></i>{text(name)}</span>'
        )
    return "Tiles: " + "".join(keys)


def _heatmap(content: Mapping[str, Any], pictures: Pictures) -> Iterator[str]:
    if not content["heatmap"]:
        return
    bar = as_data(colour_bar())
    figures = []
    for channel, picture in zip(content["heatmap"], pictures.overlays, strict=True):
        low, high = number(channel["colours_from"]), number(channel["colours_to"])
        legend = (
            f'<span class="legend"><span>{low}</span>'
            f'<img alt="Colours from {low} to {high}" src="{bar}"><span>{high}</span></span>'
        )
        words = (
            f"<strong>{text(channel['meaning'])}</strong>. On {channel['tiles']} tiles: lowest "
            f"{share(channel['lowest'])}, mean {share(channel['mean'])}, highest {share(channel['highest'])}."
        )
        alt = f"The slide in grey; where tiles lie, the colour of {channel['name']}"
        figures.append(figure(picture, alt=alt, caption=Markup(legend + words)))
    yield f'<div class="pair">{"".join(figures)}</div>'
    yield paragraph(
        "The same number has the same colour on every slide. A tile's score is what the model says of that "
        "tile alone; where tiles overlap, their mean is drawn, and where there are none, nothing. The rank "
        "of attention tells what counted on this slide, whatever it spoke for: it is no evidence.",
        "small",
    )


def _tiles(content: Mapping[str, Any], pictures: Pictures) -> Iterator[str]:
    if not content["tiles"]:
        return
    if content["tiles_not_pictured_because"]:
        yield warning(content["tiles_not_pictured_because"])
    for one in content["tiles"]:
        name = text(one["class"])
        for end in ("highest", "lowest"):
            yield f"<h3>{end.capitalize()} scores of {name}</h3>"
            if pictures.tiles:
                shown = "".join(_tile(tile, one["class"], pictures.tiles) for tile in one[end])
                yield f'<div class="tiles">{shown}</div>'
            else:
                rows = [
                    (tile["row"], tile["x"], tile["y"], *_numbers(tile, one["class"])) for tile in one[end]
                ]
                head = ("tile", "x", "y", "score", "attention", "uncertainty", "tissue")
                yield table(head, rows, caption="Places are level-0 pixels of the top-left corner")
    yield paragraph(
        "Numbers under a tile: its top-left corner in level-0 pixels (x, y), its score, and the uncertainty "
        "of its scores. Pixels are those that were encoded, their stain normalised if that was asked for.",
        "small",
    )


def _tile(tile: Mapping[str, Any], name: str, pictures: Mapping[int, bytes]) -> str:
    score, _, unsure, _ = _numbers(tile, name)
    place = f"{tile['x']}, {tile['y']}"
    words = f"{place}<br>score {score}" + (f"<br>uncertainty {unsure}" if unsure != MISSING else "")
    alt = f"Tile at {place}, score {score} of {name}"
    return figure(
        pictures[tile["row"]], alt=alt.replace("&lt;", "<").replace("&gt;", ">"), caption=Markup(words)
    )


def _numbers(tile: Mapping[str, Any], name: str) -> tuple[Markup, Markup, Markup, Markup]:
    attention = text(MISSING) if tile["attention"] is None else Markup(f"{tile['attention']:.3g}")
    return share(tile["scores"][name]), attention, share(tile["uncertainty"]), share(tile["tissue"])


def _quality(content: Mapping[str, Any]) -> Iterator[str]:
    quality = content["quality"]
    rows: list[tuple[object, object]] = [("tiles kept", number(quality["tiles_kept"]))]
    rows += [(f"tiles dropped: {reason}", number(n)) for reason, n in quality["tiles_dropped"].items()]
    if quality["damaged"]:
        rows.append(("damaged at (x, y)", _places(quality["damaged"])))
    yield facts(rows)
    if quality["percentiles"]:
        names = list(next(iter(quality["percentiles"].values())))
        head = ("measure", *(f"{name.removeprefix('p')}%" for name in names), "meaning")
        measures = [
            (measure, *(number(values[name]) for name in names), MEANING.get(measure, NO_MEANING))
            for measure, values in quality["percentiles"].items()
        ]
        yield table(head, measures, caption="Percentiles over the tiles that were kept")


def _places(places: Iterable[Sequence[int]]) -> str:
    every = [f"{x}, {y}" for x, y in places]
    return "; ".join(every[:10]) + ("; …" if len(every) > 10 else "")


def _about(content: Mapping[str, Any]) -> str:
    return section(
        "About this report",
        paragraph(
            f"Made by Microtome {content['made_by']['microtome']} from the results on disk. It names the "
            "slide by its id alone and holds no other text of the slide's file. Probabilities, scores and "
            "shares are cut off after four decimals; the JSON beside this file has all of them. It is for "
            "research use, and is no medical report.",
            "small",
        ),
    )
