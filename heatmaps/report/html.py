"""Pieces of a page that needs no other file: tables, figures, numbers; and the page around them.

Whatever is text goes through `text`, whatever is an attribute through `attribute`. The page's own policy
(Content-Security-Policy) forbids all that is loaded from anywhere; of scripts it admits one, by its hash, or
none.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from decimal import ROUND_DOWN, Decimal
from html import escape

from heatmaps.report.pictures import as_data
from heatmaps.report.style import STYLE

MISSING = "not known"
"""Stands where there is no number."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Text as HTML; markup stays what it is. Its direction cannot turn that of what stands around it."""
    if isinstance(value, Markup):
        return value
    plain = escape(str(value), quote=True)
    return Markup(plain if plain.isascii() else f"<bdi>{plain}</bdi>")


def attribute(value: object) -> str:
    """Text as the value of an attribute, within double quotes."""
    return escape(str(value), quote=True)


def number(value: float | None) -> Markup:
    """A number as in the JSON."""
    return text(MISSING) if value is None else Markup(json.dumps(value))


def share(value: float | None) -> Markup:
    """A probability, score or share, cut off after four decimals: never more than it is, as the gate has it.

    >>> share(0.57), share(0.99999), share(1.0), share(1e-9)
    ('0.5700', '0.9999', '1.0000', '&lt;0.0001')
    """
    if value is None:
        return text(MISSING)
    if 0 < value < 1e-4:
        return text("<0.0001")
    return Markup(Decimal(repr(float(value))).quantize(Decimal("0.0001"), ROUND_DOWN))


def counted(count: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "slide"), counted(2, "slide")
    ('1 slide', '2 slides')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def section(title: str, *parts: str, css: str = "") -> str:
    """A part of the page with its heading; empty where all parts are."""
    body = "\n".join(part for part in parts if part)
    return f'<section class="{css}">\n<h2>{text(title)}</h2>\n{body}\n</section>' if body else ""


def paragraph(value: object, css: str = "") -> str:
    """A paragraph; nothing for no text."""
    return f'<p class="{css}">{text(value)}</p>' if value else ""


def warning(value: object) -> str:
    """A paragraph that must not be passed over: it says so in words too."""
    return f'<p class="warning"><strong>Note:</strong> {text(value)}</p>'


def facts(rows: Iterable[tuple[object, object]]) -> str:
    """A table of names and values."""
    lines = (f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in rows)
    return '<table class="facts">\n' + "\n".join(lines) + "\n</table>"


def table(
    head: Sequence[object], rows: Iterable[Sequence[object]], *, caption: str, identity: str = ""
) -> str:
    """A table with a head that is printed on every page; the first cell of a row names it."""
    heads = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{text(cell)}</td>" for cell in others)
        lines.append(f'<tr><th scope="row">{text(first)}</th>{cells}</tr>')
    name = f' id="{attribute(identity)}"' if identity else ""
    return (
        f"<table{name}>\n<caption>{text(caption)}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n"
        + "\n".join(lines)
        + "\n</tbody>\n</table>"
    )


def figure(picture: bytes, *, alt: str, caption: object, css: str = "") -> str:
    """A picture within the page, with what it shows in words."""
    return (
        f'<figure class="{css}"><img alt="{attribute(alt)}" src="{as_data(picture)}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def bars(counts: Sequence[int], *, label: str, low: object, high: object) -> str:
    """A histogram, drawn; each bar's title and the label say it in words."""
    width, height, tallest = 10, 70, max([*counts, 1])
    drawn = "".join(
        f'<rect x="{i * width}" y="{height - bar}" width="{width - 1}" height="{bar}">'
        f"<title>{count}</title></rect>"
        for i, count in enumerate(counts)
        if count and (bar := max(1, round(height * count / tallest)))
    )
    full = width * len(counts)
    return (
        f'<figure class="histogram"><svg width="{full}" height="{height}" viewBox="0 0 {full} {height}" '
        f'role="img" aria-label="{attribute(label)}">{drawn}</svg>'
        f'<div class="scale"><span>{text(low)}</span><span>{text(high)}</span></div>'
        f"<figcaption>{text(label)}</figcaption></figure>"
    )


def page(title: str, heading: object, body: Iterable[str], *, script: str = "") -> str:
    """The whole page. `script` is one of ours; without it none can run."""
    allowed = "'none'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        allowed = f"'sha256-{digest}'"
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )
    content = "\n".join(part for part in body if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{text(heading)}</h1>\n{content}\n</main>\n"
        + (f"<script>{script}</script>\n" if script else "")
        + "</body>\n</html>\n"
    )
