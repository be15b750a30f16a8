"""Annotations in GeoJSON as other programs, accidents and strangers leave them."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corpus.fault import Fault, Outcome, Processed, Reader, Rejected, Warned

SQUARE = [[10, 10], [40, 10], [40, 30], [10, 30], [10, 10]]


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def collection(*features: Any, **more: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features), **more}


def ring(value: Any) -> Any:
    """A ring with this in place of a number."""
    return [[10, 10], [40, value], [40, 30], [10, 10]]


def area(name: str, what: str, content: Any, outcome: str | Outcome) -> Fault:
    """A case of a file of these bytes, or of this JSON; of an outcome that is text, that must be said."""

    def make(folder: Path) -> Path:
        path = folder / "regions.geojson"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    wanted = Rejected(outcome, code=2) if isinstance(outcome, str) else outcome
    return Fault(name, what, make, wanted, Reader.REGIONS)


def odd(name: str, what: str, make: Callable[[Path], object]) -> Fault:
    def made(folder: Path) -> Path:
        make(folder / "regions.geojson")
        return folder / "regions.geojson"

    return Fault(name, what, made, Rejected("cannot be read", code=2), Reader.REGIONS)


def finds(*names: str | None) -> Processed:
    def holds(found: Any) -> None:
        assert found["names"] == list(names)
        assert found["extents"][0] == [10, 10, 40, 30]

    return Processed(holds=holds)


def zipped(**files: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(f"{name}.geojson", data)
    return packed.getvalue()


SOUND = collection(feature(polygon(SQUARE), classification={"name": "Tumor"}))
TEXT = json.dumps(SOUND).encode()
SCRIPT = "</script><img src=x onerror=alert(1)>"
MARKED = feature(polygon(SQUARE), classification={"name": SCRIPT})
POINT = {"type": "Point", "coordinates": [1, 2]}

AREAS = (
    area("gj_sound", "a region as it should be", SOUND, finds("Tumor")),
    area("gj_bom", "a mark in front", b"\xef\xbb\xbf" + TEXT, finds("Tumor")),
    area("gj_gzip", "packed", gzip.compress(TEXT, mtime=0), finds("Tumor")),
    area("gj_zip", "packed otherwise", zipped(a=TEXT), finds("Tumor")),
    area(
        "gj_html",
        "a script as a name: data, and escaped where it is shown",
        collection(MARKED),
        finds(SCRIPT),
    ),
    area(
        "gj_proto",
        "names that mean something to JavaScript",
        collection(feature(polygon(SQUARE), __proto__={"x": 1}), __proto__=1, constructor=2),
        finds(None),
    ),
    area(
        "gj_points",
        "a point among areas",
        collection(feature(polygon(SQUARE)), feature(POINT)),
        Warned("left out, having no area: 1 Point"),
    ),
    area("gj_empty", "an empty file", b"", "is empty"),
    area("gj_cut", "half of a file", TEXT[: len(TEXT) // 2], "is not JSON, or cut off"),
    area("gj_gzip_cut", "half of a packed file", gzip.compress(TEXT, mtime=0)[:-20], "damaged or cut gzip"),
    area("gj_csv", "a table", b"Image,Name\n", "is not JSON"),
    area("gj_utf16", "UTF-16", TEXT.decode().encode("utf-16"), "is not UTF-8"),
    area("gj_number", "a number", 12, "got the type int"),
    area("gj_topology", "another kind of JSON", {"type": "Topology"}, "got keys"),
    area("gj_none", "no region", collection(), "holds no feature"),
    area("gj_only_points", "points alone", feature(POINT), "holds no polygon, only 1 Point"),
    area(
        "gj_circle",
        "a shape that nobody knows",
        feature({"type": "Circle", "coordinates": [1, 2]}),
        "'Circle' is not known",
    ),
    area("gj_nan", "NaN as a coordinate", feature(polygon(ring(float("nan")))), "a coordinate is NaN"),
    area("gj_inf", "infinity", feature(polygon(ring(float("inf")))), "NaN or infinite"),
    area("gj_far", "a place a million metres away", feature(polygon(ring(1e12))), "too large for any slide"),
    area("gj_long_number", "a number of 5,000 digits", b'[{"a": ' + b"9" * 5000 + b"}]", "is not JSON"),
    area("gj_text", "a word as a coordinate", feature(polygon(ring("x"))), "a coordinate is a str"),
    area("gj_deep", "200,000 brackets", b"[" * 200_000, "is nested too deep"),
    area(
        "gj_deep_ring",
        "a ring of 500 levels",
        feature(polygon(json.loads("[" * 500 + "]" * 500))),
        "a point needs two numbers",
    ),
    area(
        "gj_bomb",
        "200 MB packed into 200 KB",
        gzip.compress(bytes(200 << 20), 1, mtime=0),
        "larger than 128 MiB",
    ),
    area("gj_two", "an archive of two files", zipped(a=TEXT, b=TEXT), "2 files"),
    odd("gj_missing", "no file", lambda path: None),
    odd("gj_folder", "a folder", Path.mkdir),
    odd("gj_fifo", "a pipe that nobody writes to", os.mkfifo),
    odd("gj_device", "a device without end", lambda path: path.symlink_to("/dev/zero")),
)
