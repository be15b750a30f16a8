"""The QC page of a slide: one HTML file that needs no network, no script and no other file, and prints."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tiling.quality import MEANING, NO_MEANING

COLOURS = {"kept": (0, 158, 115), "damaged": (213, 94, 0), "sharpness": (230, 159, 0), "pen": (0, 114, 178)}
"""Of tiles on the map, RGB: the palette of M. Okabe and K. Ito, "Color Universal Design" (2008)."""
OTHER_COLOUR = (204, 121, 167)
"""Of tiles that were dropped for any other reason."""
_TINT = {"kept": 0.15}
_STRONG_TINT = 0.75
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 1360px;
       margin: 1.5em auto; padding: 0 1em; }
h1 { font-size: 1.4em; overflow-wrap: anywhere; } h2 { font-size: 1.1em; margin: 1.6em 0 .5em; }
img { max-width: 100%; border: 1px solid #ccc; } .map { max-height: 75vh; }
table { border-collapse: collapse; } td, th { padding: .2em .7em; border-bottom: 1px solid #ddd; }
td { text-align: right; font-variant-numeric: tabular-nums; } th { text-align: left; font-weight: 600; }
td.text { text-align: left; } .warning { border-left: 4px solid #d55e00; padding: .2em .8em; margin: .4em 0; }
.key { display: inline-block; margin-right: 1.4em; }
.key i { display: inline-block; width: .9em; height: .9em; margin-right: .4em; vertical-align: -.1em; }
.histograms { display: flex; flex-wrap: wrap; gap: 1em; }
figure { margin: 0; } figcaption { font-size: .85em; }
svg { display: block; border-bottom: 1px solid #222; } svg rect { fill: #56789a; }
.scale { display: flex; justify-content: space-between; font-size: .8em; color: #555; }
* { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
@media print { body { margin: 0; max-width: none; font-size: 10pt; } .map { max-height: 15cm; }
  h2 { break-after: avoid; } figure, table, img { break-inside: avoid; } }
"""


def tile_map(
    thumbnail: NDArray[np.uint8],
    places: Mapping[str, NDArray[np.int32]],
    *,
    footprint: tuple[float, float],
    scale: tuple[float, float],
) -> NDArray[np.uint8]:
    """The thumbnail, tinted where tiles lie: ``(h, w, 3)`` uint8, a copy.

    Parameters
    ----------
    thumbnail
        ``(h, w, 3)`` uint8 RGB of the whole slide.
    places
        ``(n, 2)`` level-0 (x, y) of tiles, by ``"kept"`` or the reason why they were dropped; later ones lie
        on top.
    footprint
        ``(width, height)`` of a tile in level-0 pixels.
    scale
        Level-0 pixels per pixel of the thumbnail, along x and y.
    """
    height, width = thumbnail.shape[:2]
    kinds = np.zeros((height, width), np.uint8)
    for kind, origins in enumerate(places.values(), 1):
        corners = origins.reshape(-1, 2)
        first = np.floor(corners / scale).astype(np.int64)
        last = np.ceil((corners + footprint) / scale).astype(np.int64)
        for (left, top), (right, bottom) in zip(first.tolist(), last.tolist(), strict=True):
            kinds[top:bottom, left:right] = kind
    picture, values = thumbnail.copy(), np.arange(256, dtype=np.float32)[:, None]
    borders = []
    for kind, name in enumerate(places, 1):
        tint = np.array(COLOURS.get(name, OTHER_COLOUR), np.float32)
        share = np.float32(_TINT.get(name, _STRONG_TINT))
        table = np.rint(share * tint + (1 - share) * values).astype(np.uint8)
        where = (kinds == kind).astype(np.uint8)
        cv2.copyTo(cv2.LUT(thumbnail, table[None]), where, picture)
        borders.append((where, tint))
    for where, tint in borders:  # a border round each field of tiles
        contours, _ = cv2.findContours(where, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(picture, contours, -1, tint.tolist(), 1)
    return picture


def qc_page(summary: Mapping[str, Any], *, overview: bytes | None, contact: bytes | None) -> str:
    """The page of one slide.

    Parameters
    ----------
    summary
        See `tiling.qc.summarise`: every number of the page is one of its, spelt as in JSON.
    overview, contact
        JPEG files: the thumbnail with tiles, and the contact sheet; None leaves them out.
    """
    name = escape(str(summary["slide"]))
    parts = [f"<h1>{name}</h1>", *_remarks(summary), "<h2>Tiles</h2>", _counts(summary)]
    if overview is not None:
        parts += ["<h2>Where they lie</h2>", _legend(summary), _image(overview, "Tiles on the slide", "map")]
    if summary["percentiles"]:
        parts += ["<h2>Measures of the tiles that were kept</h2>", _percentiles(summary["percentiles"])]
        parts.append('<div class="histograms">')
        parts += [_histogram(key, values) for key, values in summary["histograms"].items()]
        parts.append("</div>")
    if contact is not None:
        parts += ["<h2>Contact sheet</h2>", _image(contact, "Tiles, each with its place and figures", "")]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>Quality of {name}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _number(value: float) -> str:
    """A number spelt as in the summary's file."""
    return json.dumps(value)


def _remarks(summary: Mapping[str, Any]) -> Iterable[str]:
    for text in (*summary["warnings"], *summary["notes"]):
        yield f'<p class="warning">{escape(str(text))}</p>'


def _counts(summary: Mapping[str, Any]) -> str:
    tile, places = summary["tile"], summary["damaged"]
    rows = [
        ("side of a tile, pixels", _number(tile["size_px"])),
        ("microns per pixel", _number(tile["mpp"])),
        ("tiles kept", _number(summary["tiles_kept"])),
    ]
    rows += [
        (f"tiles dropped: {reason}", _number(count)) for reason, count in summary["tiles_dropped"].items()
    ]
    if places:
        shown = "; ".join(f"{x}, {y}" for x, y in places[:10]) + ("; …" if len(places) > 10 else "")
        rows.append(("damaged at (x, y)", shown))
    lines = (f"<tr><th>{escape(name)}</th><td>{value}</td></tr>" for name, value in rows)
    return '<table class="counts">\n' + "\n".join(lines) + "\n</table>"


def _legend(summary: Mapping[str, Any]) -> str:
    kinds = ["kept", *summary["tiles_dropped"]]
    keys = []
    for kind in kinds:
        red, green, blue = COLOURS.get(kind, OTHER_COLOUR)
        text = kind if kind == "kept" else f"dropped: {kind}"
        keys.append(
            f'<span class="key"><i style="background: rgb({red}, {green}, {blue})"></i>{escape(text)}</span>'
        )
    keys.append('<span class="key">black line: outline of the tissue</span>')
    return f"<p>{''.join(keys)}</p>"


def _percentiles(percentiles: Mapping[str, Mapping[str, float]]) -> str:
    columns = list(next(iter(percentiles.values())))
    heads = "".join(f"<th>{column.removeprefix('p')} %</th>" for column in columns)
    lines = [f"<tr><th>percentile</th>{heads}<th>meaning</th></tr>"]
    for name, values in percentiles.items():
        cells = "".join(f"<td>{_number(values[column])}</td>" for column in columns)
        meaning = escape(MEANING.get(name, NO_MEANING))
        lines.append(f'<tr><th>{escape(name)}</th>{cells}<td class="text">{meaning}</td></tr>')
    return '<table class="percentiles">\n' + "\n".join(lines) + "\n</table>"


def _histogram(name: str, histogram: Mapping[str, Any]) -> str:
    counts, width, height = histogram["counts"], 8, 70
    tallest = max([*counts, 1])
    bars = "".join(
        f'<rect x="{i * width}" y="{height - bar}" width="{width - 1}" height="{bar}">'
        f"<title>{_number(count)}</title></rect>"
        for i, count in enumerate(counts)
        if count and (bar := max(1, round(height * count / tallest)))
    )
    label = escape(name, quote=True)
    full = width * len(counts)
    ends = f"<span>{_number(histogram['from'])}</span><span>{_number(histogram['to'])}</span>"
    return (
        f'<figure><figcaption>{label}</figcaption><svg width="{full}" height="{height}" '
        f'viewBox="0 0 {full} {height}" role="img" aria-label="{label}">{bars}</svg>'
        f'<div class="scale">{ends}</div></figure>'
    )


def _image(jpeg: bytes, alt: str, css: str) -> str:
    data = base64.b64encode(jpeg).decode()
    return f'<img class="{css}" alt="{escape(alt)}" src="data:image/jpeg;base64,{data}">'
