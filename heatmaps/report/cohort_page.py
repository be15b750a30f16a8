"""The page of a cohort's report. It knows nothing but the report's JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from heatmaps.report.feedback import in_words
from heatmaps.report.html import (
    Markup,
    attribute,
    bars,
    counted,
    facts,
    number,
    page,
    paragraph,
    section,
    share,
    table,
    text,
    warning,
)
from heatmaps.report.make import PAGE
from heatmaps.report.run_parts import model_rows, seconds, time_parts

MOST_COLUMNS = 4
"""Classes whose scores are columns: more would not go on a sheet of A4, and none of them is then."""
_NAME = ' class="name"'  # may be long, and is broken anywhere
SORT = """
'use strict';
for (const table of document.querySelectorAll('table#slides')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => {
      const up = head.getAttribute('aria-sort') !== 'ascending';
      const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent;
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)], order = x - y;
        return x === '' || y === '' || Number.isNaN(order)
          ? x.localeCompare(y, 'en', { numeric: true }) : order;
      };
      const rows = [...body.rows].sort((a, b) => (up ? 1 : -1) * compare(a, b));
      heads.forEach((other) => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      body.append(...rows);
    });
  });
}
"""
"""Makes the heads of the table of slides sort it. Without it the table stands as it was written."""


def cohort_page(content: Mapping[str, Any], *, item: str) -> str:
    """The page, as one HTML file; it links to the pages of slides of the same output.

    `item` is the last part of their items' names.
    """
    model = content["model"]
    title = f"Report of {counted(content['counts']['slides'], 'slide')}" + (
        f", model {model['name']}" if model else ""
    )
    body = [
        _summary(content),
        *map(warning, content["warnings"]),
        section("Slides", *_slides(content, item)),
        section("Distribution of scores", *_distributions(content)),
        section("Who has to be looked at", *_review(content)),
        section("Failures, and slides without tiles", *_others(content)),
        section("Warnings", *_warnings(content)),
        section("Model", facts(model_rows(model))) if model else "",
        section("Software", *_software(content)),
        section("How the time was spent", *time_parts(content["time"], _untold(content["time"]))),
        _about(content),
    ]
    return page(title, title, body, script=SORT)


def _summary(content: Mapping[str, Any]) -> str:
    counts = content["counts"]
    lines = [f'<p class="big">{counted(counts["slides"], "slide")}</p>']
    for name, words in (("by_status", "Status"), ("by_prediction", "Likeliest"), ("by_decision", "Decision")):
        if counts[name]:
            lines.append(paragraph(f"{words}: {', '.join(f'{n} {key}' for key, n in counts[name].items())}"))
    if counts["by_feedback"]:
        said = ", ".join(f"{n} {key}" for key, n in counts["by_feedback"].items())
        lines.append(paragraph(f"A person said of slides: {said}"))
    lines.append(paragraph(f"{counts['with_warnings']} with warnings"))
    return f'<div class="summary">{"".join(lines)}</div>'


def _slides(content: Mapping[str, Any], item: str) -> Iterator[str]:
    classes = content["model"]["classes"] if content["model"] else []
    more = ""
    if len(classes) > MOST_COLUMNS:
        more = f" Scores of the {len(classes)} classes are in the JSON beside this file."
        classes = []
    marked = any(row["feedback"] for row in content["slides"])
    first = ["slide", "status", "likeliest", "confidence", "decision", *(["a person"] if marked else [])]
    names = (*first, *classes, "tiles", "warnings", "seconds")
    heads = "".join(
        f'<th scope="col"{_NAME if name in {"likeliest", *classes} else ""}>{text(name)}</th>'
        for name in names
    )
    lines = [_line(row, classes, item, marked=marked) for row in content["slides"]]
    words = "Failures and slides for review come first, the least sure ahead. Click a head to sort by it."
    words += more
    yield (
        f'<div class="wide"><table id="slides">\n<caption>{words}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table></div>"
    )


def _line(row: Mapping[str, Any], classes: list[str], item: str, *, marked: bool) -> str:
    name: str = text(row["slide"])
    if row["has_report"]:
        place = "/".join(quote(part, safe="") for part in ("slides", row["slide"], "reports", item, PAGE))
        name = f'<a href="../../{attribute(place)}">{name}</a>'
    cells = [
        _cell(row["status"]),
        _cell(row["prediction"], _NAME),
        _share(row["confidence"]),
        _cell(row["decision"]),
        *([_cell(in_words(row["feedback"]), ' class="words"')] if marked else []),
        *(_share(row["scores"].get(one)) for one in classes),
        _cell(row["tiles"]),
        _cell(len(row["warnings"])),
        _cell(None if row["seconds"] is None else seconds(row["seconds"])),
    ]
    return f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>'


def _cell(value: object, more: str = "") -> str:
    return f"<td{more}>{'' if value is None else text(value)}</td>"


def _share(value: float | None) -> str:
    """Sorts by the number itself, not by its four decimals."""
    return "<td></td>" if value is None else f'<td data-key="{value:.12f}">{share(value)}</td>'


def _distributions(content: Mapping[str, Any]) -> Iterator[str]:
    drawn = [
        bars(
            one["counts"],
            label=f"{one['class']}: scores of {one['slides']} slides, tallest bar {max(one['counts'])}",
            low=number(one["from"]),
            high=number(one["to"]),
        )
        for one in content["distributions"]
    ]
    if drawn:
        yield f'<div class="histograms">{"".join(drawn)}</div>'
        judges = content["model"]["judges"]
        what = "shares of tiles that score highest in the class" if judges == "tiles" else "probabilities"
        yield paragraph(
            f"Numbers of slides by their {what}, in {len(content['distributions'][0]['counts'])} "
            "equal steps.",
            "small",
        )


def _review(content: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (row["slide"], row["prediction"], share(row["confidence"]), "; ".join(row["reasons"]))
        for row in content["slides"]
        if row["decision"] == "review required"
    ]
    if rows:
        yield table(
            ("slide", "likeliest", "confidence", "because"), rows, caption=counted(len(rows), "slide")
        )
    elif content["counts"]["by_decision"]:
        yield paragraph("No slide: the gate confirmed all that were predicted.")


def _others(content: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (row["slide"], row["status"], row["message"])
        for row in content["slides"]
        if row["message"] or not row["has_report"]
    ]
    if rows:
        words = "As the last run said that worked on them; names of files are left out"
        yield table(("slide", "status", "message"), rows, caption=words)


def _warnings(content: Mapping[str, Any]) -> Iterator[str]:
    those: dict[str, list[str]] = {}
    for row in content["slides"]:
        for words in row["warnings"]:
            those.setdefault(words, []).append(row["slide"])
    rows = [(words, counted(len(names), "slide"), ", ".join(sorted(names))) for words, names in those.items()]
    if rows:
        yield table(("warning", "of", "slides"), rows, caption="Each is in the slides' own reports too")


def _software(content: Mapping[str, Any]) -> Iterator[str]:
    rows = [(one["package"], one["version"], number(one["slides"])) for one in content["software"]]
    if rows:
        yield table(("package", "version", "slides"), rows, caption="What the results were made by")


def _untold(time: Mapping[str, Any]) -> list[str]:
    return [f"{one['item']} (of {counted(one['slides'], 'slide')})" for one in time["untold_items"]]


def _about(content: Mapping[str, Any]) -> str:
    words = (
        f"Made by Microtome {content['made_by']['microtome']} from the reports of the slides and the logs of "
        "the runs. It names slides by their ids alone. It is for research use, and is no medical report."
    )
    return section("About this report", paragraph(Markup(text(words)), "small"))
