"""Laws of the viewer's server: who gets an answer, to what, and that it is true."""

from __future__ import annotations

import gzip
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

import cli
import heatmaps.viewer.arguments as viewing
from heatmaps.colour import colour_table
from heatmaps.numbers import ranks
from heatmaps.raster import paint
from heatmaps.viewer.catalogue import Catalogue
from heatmaps.viewer.deepzoom import TILE_PX
from heatmaps.viewer.marks import Place
from heatmaps.viewer.security import HEADERS, LARGEST_BODY
from heatmaps.viewer.server import ViewerServer, page_files
from heatmaps.viewer.service import Service
from tiling.output import Output
from tiling.store import TileStore
from wsi.slide import Slide

Ask = Any
HOSTILE = "<img src=x onerror=document.title='owned'>&\"'"
ROOT = Path(__file__).resolve().parents[3]


def number(catalogue: Catalogue, name: str) -> int:
    return [entry.slide_id for entry in catalogue.refresh()].index(name)


def region(**more: Any) -> dict[str, Any]:
    return {"do": "region", "class": "tumour", "points": [[400, 300], [700, 300], [700, 600]]} | more


# Who gets an answer --------------------------------------------------------------------------------------


def test_it_listens_on_the_loopback_interface_alone(server: ViewerServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{server.port}/?token={server.door.token}"


def test_the_printed_address_gives_the_cookie_that_all_else_needs(server: ViewerServer, ask: Ask) -> None:
    first = ask(f"/?token={server.door.token}", Cookie=None)
    assert first.status == 200
    cookie = first.headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert ask("/api/slides", Cookie=cookie.split(";")[0]).status == 200
    assert server.door.token not in first.body.decode()


@pytest.mark.parametrize(
    "path", ["/", "/api/slides", "/page/viewer.js", "/slides/0/tiles/9/0_0.jpg", "/api/session"]
)
@pytest.mark.parametrize("cookie", [None, "", "microtome-1=x", "microtome-{port}=", "microtome-{port}=wrong"])
def test_without_the_secret_nothing_is_answered(
    server: ViewerServer, ask: Ask, path: str, cookie: str | None
) -> None:
    reply = ask(path, Cookie=cookie and cookie.format(port=server.port))
    assert reply.status == 403
    assert ask(f"{path}?token=wrong", Cookie=None).status == 403


def test_a_ticket_opens_once(server: ViewerServer, ask: Ask) -> None:
    ticket = server.door.ticket()
    assert [ask(f"/?token={ticket}", Cookie=None).status for _ in range(2)] == [200, 403]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "192.168.0.1",
        "",
        None,
        "127.0.0.1:x",
        "0.0.0.0",
    ],
)
def test_another_host_is_refused_even_with_the_secret(ask: Ask, host: str | None) -> None:
    assert ask("/api/slides", Host=host).status in {400, 421}


@pytest.mark.parametrize("host", ["localhost:8765", "127.0.0.1:9999", "[::1]:80", "LOCALHOST"])
def test_a_tunnel_may_have_any_port(ask: Ask, host: str) -> None:
    assert ask("/api/slides", Host=host).status == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1"]
)
def test_a_page_of_another_origin_gets_no_answer(server: ViewerServer, ask: Ask, origin: str) -> None:
    origin = origin.format(port=server.port)
    assert ask("/api/slides", Origin=origin).status == 403
    assert ask("/api/slides/0/marks", method="POST", body={"do": "undo"}, Origin=origin).status == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_cannot_embed_anything(ask: Ask, site: str) -> None:
    assert ask("/slides/1/tiles/9/0_0.jpg", Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors").status == 403
    assert ask("/", Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate").status == 200


@pytest.mark.parametrize("left_out", ["Origin", "X-Microtome-Token", "Content-Type", "Cookie"])
def test_a_change_needs_all_of_its_proofs(
    ask: Ask, catalogue: Catalogue, tmp_path: Path, left_out: str
) -> None:
    path = f"/api/slides/{number(catalogue, 'plain')}/marks"
    assert ask(path, method="POST", body=region(), **{left_out: None}).status in {400, 403}
    assert ask(path, method="POST", body=region(), X_Microtome_Token="wrong").status == 403
    assert not (tmp_path / "feedback").exists()
    assert ask(path, method="POST", body=region()).status == 200


def test_asking_changes_nothing_and_no_other_method_is_known(
    ask: Ask, catalogue: Catalogue, tmp_path: Path
) -> None:
    slide = number(catalogue, "plain")
    for path in ("", "/marks", "/outlines", "/tiles/0"):
        assert ask(f"/api/slides/{slide}{path}").status == 200
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
        assert ask(f"/api/slides/{slide}/marks", method=method).status == 501
    assert ask("/api/slides", method="POST", body={}).status == 404
    assert not (tmp_path / "feedback").exists()


@pytest.mark.parametrize("path", ["/", "/api/slides", "/page/viewer.css", "/nothing"])
def test_every_answer_has_the_headers_that_keep_a_browser_strict(ask: Ask, path: str) -> None:
    headers = ask(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/page/../server.py",
        "/page/..%2fserver.py",
        "/page/%2e%2e/server.py",
        "/page//etc/passwd",
        "/page/",
        "/page",
        "/page/openseadragon.LICENSE.txt",
        "/page/viewer.js/",
        "/page/viewer.js%00",
        "/page/__init__.py",
        "/slides/plain/tiles/0/0_0.jpg",
        "/slides/../0/tiles/0/0_0.jpg",
        "/slides/0/tiles/0/0_0.png",
        "/slides/0/tiles/-1/0_0.jpg",
        "/slides/0/tiles/0/0_0.jpg/../../x",
        "/slides/%D9%A3/tiles/0/0_0.jpg",
        "/api/slides/plain",
        "/api/slides/0/layers/model/0",
        "/api/slides/1e3",
        "/api/slides/0/",
        "//evil.example/",
        "/slides/99999999999/tiles/0/0_0.jpg",
        "/api/slides/..%2f..%2fout",
        "/%2fetc/passwd",
        "/\\..\\..\\etc",
        "http://[/",
        "http://evil.example/nothing",
    ],
)
def test_no_text_of_an_address_leads_anywhere(ask: Ask, path: str) -> None:
    reply = ask(path)
    assert reply.status in {400, 404}
    assert b"root:" not in reply.body


@pytest.mark.parametrize(
    "path",
    [
        "/api/slides/99",
        "/slides/99/tiles/0/0_0.jpg",
        "/api/slides/{n}/layers/9/0",
        "/api/slides/{n}/layers/0/99",
        "/api/slides/{n}/tiles/9999999",
        "/slides/{n}/crops/9999999.jpg",
        "/slides/{n}/tiles/40/0_0.jpg",
        "/slides/{n}/tiles/5/99_0.jpg",
        "/api/slides/{n}/tile?x=nan&y=0",
        "/api/slides/{n}/tile?x=1e300&y=0",
        "/api/slides/{n}/tile",
        "/api/slides/{n}/layers/0/0/best?count=nan",
    ],
)
def test_what_is_not_there_is_said_in_one_line(ask: Ask, catalogue: Catalogue, path: str) -> None:
    reply = ask(path.format(n=number(catalogue, "plain")))
    assert reply.status == 400
    assert "\n" not in reply.json["error"]


def test_a_body_is_of_a_modest_size_and_json(ask: Ask, catalogue: Catalogue) -> None:
    path = f"/api/slides/{number(catalogue, 'plain')}/marks"
    assert ask(path, method="POST", body=b"x" * 100, Content_Length=str(LARGEST_BODY + 1)).status == 400
    assert ask(path, method="POST", body=b"{}", Content_Length="-1").status == 400
    for body in (
        b"",
        b"[]",
        b"{",
        b'{"do": "burn"}',
        b"[" * 50_000,
        b'{"do": 1}',
        b'{"do": "tile", "row": true}',
    ):
        assert ask(path, method="POST", body=body).status == 400, body[:20]


# What is answered ----------------------------------------------------------------------------------------


def test_the_table_says_what_the_commits_say(ask: Ask) -> None:
    told = ask("/api/slides").json
    by_id = {slide["slide_id"]: slide for slide in told["slides"]}
    assert by_id["plain"]["status"] == "scored"
    opinion = by_id["plain"]["opinions"][0]
    assert (opinion["result"], opinion["score"], opinion["confidence"]) == ("tumour", 0.93, 0.93)
    assert opinion["decision"] == "review required"
    assert (by_id["broken"]["status"], by_id["broken"]["reason"]) == ("failed", "it is truncated")
    assert HOSTILE in by_id
    assert bytes.fromhex(told["scales"]["viridis"]) == colour_table().tobytes()


def test_every_tile_is_what_the_slide_gives_there(ask: Ask, catalogue: Catalogue, results: Path) -> None:
    slide_number = number(catalogue, "plain")
    picture = ask(f"/api/slides/{slide_number}").json["picture"]
    (width, height), finest = picture["size"], picture["finest"]
    assert (width, height) == (1280, 896)
    tiles = 0
    with Slide(results.parent / "plain.svs") as slide:
        for level in range(finest + 1):
            step = 1 << (finest - level)
            size = -(-width // step), -(-height // step)
            for row in range(-(-size[1] // TILE_PX)):
                for column in range(-(-size[0] // TILE_PX)):
                    reply = ask(f"/slides/{slide_number}/tiles/{level}/{column}_{row}.jpg")
                    assert reply.headers["Content-Type"] == "image/jpeg"
                    got = simplejpeg.decode_jpeg(reply.body).astype(float)
                    left, top = column * TILE_PX, row * TILE_PX
                    wanted_size = min(TILE_PX, size[0] - left), min(TILE_PX, size[1] - top)
                    assert got.shape == (*wanted_size[::-1], 3)
                    wanted = slide.read(left * step, top * step, size=wanted_size, mpp=0.5 * step)
                    far = 6 if min(size) >= 16 else 15  # of a few pixels, JPEG leaves little
                    assert np.abs(got - wanted).mean() < far, (level, column, row)
                    assert np.abs(got.mean(axis=(0, 1)) - wanted.mean(axis=(0, 1))).max() < far
                    tiles += 1
    assert tiles > 10


def unpack(body: bytes) -> tuple[dict[str, Any], np.ndarray]:
    packed = gzip.decompress(body)
    (length,) = struct.unpack_from("<I", packed)
    head = json.loads(packed[4 : 4 + length])
    assert (4 + length) % 4 == 0
    return head, np.frombuffer(packed[4 + length :], "<f4").reshape(head["rows"], head["columns"])


@pytest.mark.parametrize("name", ["plain", HOSTILE])
def test_a_channel_is_the_painted_heatmap(ask: Ask, catalogue: Catalogue, results: Path, name: str) -> None:
    slide = number(catalogue, name)
    head, plane = unpack(ask(f"/api/slides/{slide}/layers/0/1").body)
    store = TileStore(Output(results), name)
    record = store.record
    heatmap = paint(
        store.origins,
        store.scores("model")[0][:, 1:],
        channels=("tumour",),
        tile=tuple(record["tile_level0"]),
        stride=tuple(record["stride_level0"]),
        slide_size=tuple(record["slide_size"]),
        slide_mpp=0.5,
    )
    wanted = heatmap.channel("tumour")
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * s / z).astype(int), m - 1)
        for n, m, s, z in zip(
            wanted.shape, plane.shape, (heatmap.scale_y, heatmap.scale), head["scale"][::-1], strict=True
        )
    )
    np.testing.assert_array_equal(plane[rows[:, None], columns], wanted)
    assert plane.size < wanted.size / 100  # one pixel for each tile
    assert np.isnan(plane).any()


def test_ranks_are_painted_only_where_they_are_asked_for(
    ask: Ask, catalogue: Catalogue, results: Path
) -> None:
    slide, scores = number(catalogue, "plain"), TileStore(Output(results), "plain").scores("model")[0][:, 1]
    for query, values in (("", scores), ("?rank=0", scores), ("?rank=1", ranks(scores))):
        plane = unpack(ask(f"/api/slides/{slide}/layers/0/1{query}").body)[1]
        np.testing.assert_array_equal(np.unique(plane[~np.isnan(plane)]), np.unique(values))


def test_hovering_tells_all_numbers_of_the_tile_there(ask: Ask, catalogue: Catalogue, results: Path) -> None:
    slide, store = number(catalogue, "plain"), TileStore(Output(results), "plain")
    x, y = (store.origins[5] + 64).tolist()
    told = ask(f"/api/slides/{slide}/tile?x={x}&y={y}").json
    assert told["row"] == 5
    values = {name: value for layer in told["layers"] for name, value in layer["values"]}
    scores, attention = store.scores("model")
    assert values["tumour"] == pytest.approx(float(scores[5, 1]), abs=1e-7)
    assert values["attention"] == pytest.approx(float(attention[5]), abs=1e-9)
    assert {"uncertainty", "disagreement", "attention rank", "tissue", "sharpness", "dark"} <= set(values)
    assert ask(f"/api/slides/{slide}/tile?x=1&y=1").json == {}


@pytest.mark.parametrize("name", ["plain", HOSTILE])
def test_the_best_tiles_are_the_highest_and_apart(
    ask: Ask, catalogue: Catalogue, results: Path, name: str
) -> None:
    slide, store = number(catalogue, name), TileStore(Output(results), name)
    values = store.scores("model")[0][:, 1]
    best = ask(f"/api/slides/{slide}/layers/0/1/best?count=6").json["tiles"]
    assert best[0]["value"] == pytest.approx(float(values.max()))
    assert [tile["value"] for tile in best] == sorted((tile["value"] for tile in best), reverse=True)
    boxes = [tile["box"] for tile in best]
    for i, one in enumerate(boxes):
        assert all(abs(one[0] - o[0]) >= 127 or abs(one[1] - o[1]) >= 127 for o in boxes[:i])
    lowest = ask(f"/api/slides/{slide}/layers/0/1/best?count=1&lowest=1").json["tiles"][0]
    assert lowest["value"] == pytest.approx(float(values.min()))
    crop = simplejpeg.decode_jpeg(ask(f"/slides/{slide}/crops/{best[0]['row']}.jpg").body)
    with Slide(results.parent / f"{name}.svs") as opened:
        x, y, width, height = boxes[0]
        wanted = opened.read(x, y, size=crop.shape[1::-1], mpp=0.5 * width / crop.shape[1])
    assert np.abs(crop.astype(float) - wanted).mean() < 4
    assert width == height


def test_without_the_file_an_overview_is_shown_and_said(
    ask: Ask, catalogue: Catalogue, results: Path
) -> None:
    catalogue.files = {"plain": results.parent / "gone.svs"}
    slide = number(catalogue, "plain")
    facts = ask(f"/api/slides/{slide}").json
    assert "Only an overview" in facts["notice"]
    assert facts["slideSize"] == [1280, 896]
    size, scale = facts["picture"]["size"], facts["picture"]["scale"]
    assert size[0] * scale[0] == pytest.approx(1280, abs=scale[0])
    assert ask(f"/slides/{slide}/tiles/{facts['picture']['finest']}/0_0.jpg").status == 200


def test_another_file_of_the_name_is_not_taken_for_the_slide(
    ask: Ask, catalogue: Catalogue, results: Path
) -> None:
    catalogue.files = {"plain": results.parent / f"{HOSTILE}.svs"}
    Path(catalogue.files["plain"]).touch()
    other = results.parent / "other.svs"
    data = bytearray((results.parent / "plain.svs").read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    catalogue.files = {"plain": other}
    assert "not the file" in ask(f"/api/slides/{number(catalogue, 'plain')}").json["notice"]


# The command ---------------------------------------------------------------------------------------------


def test_the_page_names_only_files_that_are_served_and_no_inline_code() -> None:
    page = page_files()
    html = page["index.html"][0].decode()
    named = re.findall(r'(?:src|href)="/page/([^"]+)"', html)
    assert set(named) <= set(page)
    assert "openseadragon.min.js" in page
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|javascript:", html)
    for name, (body, _) in page.items():
        if name.endswith(".js") and name != "openseadragon.min.js":
            text = body.decode()
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|https?://", text
            )
            imports = re.findall(r'from "\./([^"]+)"', text)
            assert set(imports) <= set(page), name


def test_openseadragon_is_vendored_with_its_version_and_licence() -> None:
    folder = ROOT / "heatmaps/viewer/page"
    assert (folder / "openseadragon.min.js").read_text()[:40].startswith("//! openseadragon 6.1.1")
    assert "Redistributions in binary form" in (folder / "openseadragon.LICENSE.txt").read_text()


def test_ctrl_c_ends_the_command_at_once_and_well(results: Path) -> None:
    # A shell has what it runs in the background ignore Ctrl-C, and its children take that over.
    heed = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = f"import signal, sys, cli; {heed}; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "view", str(results), "--no-browser", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        port = int(told["address"].split(":")[2].split("/")[0])
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                process.send_signal(signal.SIGINT)
                started = time.monotonic()
                _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert errors == ""
    assert time.monotonic() - started < 10
    assert told["slides"] == 3


@pytest.mark.parametrize("method", ["DELETE", "<script>", "TRACE"])
def test_what_is_refused_unread_has_the_headers_of_every_answer(ask: Ask, method: str) -> None:
    refused = ask("/", method=method)
    assert refused.status == 501
    assert refused.json["error"]
    assert HEADERS.items() <= refused.headers.items()


@pytest.mark.parametrize(("words", "left"), [([], 110), (["--qupath-origin", "slide"], 10)])
def test_annotations_lie_where_qupath_counted_from(
    catalogue: Catalogue, results: Path, tmp_path: Path, words: list[str], left: int
) -> None:
    ring = [[10, 20], [60, 20], [60, 80], [10, 20]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    (tmp_path / "plain.geojson").write_text(json.dumps(feature))
    parser = cli.build_parser()
    asked = parser.parse_args(["view", str(results), "--annotations", str(tmp_path), *words])
    exhibit = Service(viewing.catalogue(asked)).exhibit(number(catalogue, "plain"))
    exhibit.__dict__["place"] = Place("plain", (1280, 896), (100.0, 50.0))
    (drawn,) = [one for one in exhibit.outlines() if one["kind"] == "annotation"]
    assert drawn["rings"][0][0][0] == left


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing-here.svs"], "nothing-here.svs"),
        (["{out}", "{out}"], "looked at alone"),
        (["{out}", "-o", "x"], "for slides without results"),
        (["{slide}", "--slides", "{slide}"], "--slides"),
        (["{out}", "--port", "99999"], "--port is 99999"),
        (["{out}", "--annotations", "gone.geojson"], "gone.geojson"),
        (["{out}", "--annotations", "{slide}"], "one region file for 3 slides"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    results: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"out": str(results), "slide": str(results.parent / "plain.svs")}
    code = cli.main(["view", *(word.format(**places) for word in words), "--no-browser"])
    errors = capsys.readouterr().err
    assert code == (1 if "nothing-here.svs" in words else 2)
    assert errors.startswith("ERROR ")
    assert errors.count("\n") == 1
    assert said in errors


def test_a_port_that_is_taken_is_one_line(
    results: Path, server: ViewerServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["view", str(results), "--no-browser", "--port", str(server.port)]) == 74
    assert "Give another --port" in capsys.readouterr().err
