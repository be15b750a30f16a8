"""The viewer's server: HTTP on the loopback interface, around `Service` and `Door`.

Every address that is answered is in `_GET` and `_POST`; numbers in it are looked up in tables. Files of the
page are read when the server starts and served by their names in a dict: no text from an address is ever
opened.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import webbrowser
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import BoundedSemaphore
from typing import Any
from urllib.parse import parse_qs, urlsplit

from heatmaps.viewer.catalogue import Catalogue
from heatmaps.viewer.security import HEADERS, LARGEST_BODY, Door, Refusal
from heatmaps.viewer.service import Service, parse_json
from wsi.errors import MicrotomeError, OutputError, UsageError

ADDRESS = "127.0.0.1"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
_IDLE_S = 60.0
"""A connection that says nothing for so long is closed."""
MOST_CONNECTIONS = 64
"""A browser opens six; each has a thread. Those beyond are turned away."""
_PATIENCE_S = 0.2
"""How long to wait for the question of one that is turned away: unread, it would cost it the answer."""
_log = logging.getLogger(__name__)

Query = dict[str, str]
Answer = tuple[bytes, str, dict[str, str]]
"""Body, content type, and more headers."""


def page_files() -> dict[str, tuple[bytes, str]]:
    """Body and content type of the page's files, by name."""
    folder = files("heatmaps.viewer").joinpath("page")
    found = {}
    for entry in folder.iterdir():
        suffix = os.path.splitext(entry.name)[1]
        if suffix in _TYPES:
            found[entry.name] = entry.read_bytes(), _TYPES[suffix]
    return found


class ViewerServer(ThreadingHTTPServer):
    """Serves one catalogue until it is closed.

    Parameters
    ----------
    catalogue
        The slides.
    port
        Of the loopback interface; 0 for one that is free.

    Raises
    ------
    OutputError
        The port is taken.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = os.name == "posix"

    def __init__(self, catalogue: Catalogue, *, port: int = 0) -> None:
        if not 0 <= port <= 65535:
            raise UsageError(f"--port is {port}", action="Give 0 to 65535")
        self.door, self.service, self.page = Door(), Service(catalogue), page_files()
        self._places = BoundedSemaphore(MOST_CONNECTIONS)
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise OutputError(
                f"port {port} of {ADDRESS} cannot be used ({error.strerror})", action="Give another --port"
            ) from error

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    @property
    def address(self) -> str:
        """What a user opens: with this run's secret."""
        return f"{self.address_of(self.door.token)}"

    def address_of(self, token: str) -> str:
        """The page's address with some token."""
        return f"http://{ADDRESS}:{self.port}/?token={token}"

    def serve(self) -> None:
        """Answer until Ctrl-C, which `open_viewer` takes for a good end."""
        self.serve_forever(poll_interval=0.2)

    def server_close(self) -> None:
        """Stop listening, and close all slides."""
        super().server_close()
        self.service.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, if one is left."""
        if self._places.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:
                self._places.release()
                raise
        else:
            with contextlib.suppress(OSError):
                request.settimeout(_PATIENCE_S)
                with contextlib.suppress(TimeoutError):
                    request.recv(1 << 16)
                request.sendall(_TOO_MANY)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection's questions."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no news; anything else is a bug, and goes to the log."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            _log.debug("a request failed", exc_info=True)


@contextlib.contextmanager
def open_viewer(catalogue: Catalogue, *, port: int, browser: bool) -> Iterator[ViewerServer]:
    """A server that listens, and the page in the user's browser if there is a screen to show it on."""
    with ViewerServer(catalogue, port=port) as server:
        if browser and has_screen():
            webbrowser.open(server.address_of(server.door.ticket()))
        with contextlib.suppress(KeyboardInterrupt):
            yield server


def has_screen() -> bool:
    """Whether a browser would be a window: in a terminal it would take the terminal."""
    if sys.platform in {"darwin", "win32"}:
        return not os.environ.get("SSH_CONNECTION")
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


# Answers -------------------------------------------------------------------------------------------------


def _json(value: Any) -> Answer:
    return json.dumps(value, allow_nan=False).encode("ascii"), "application/json", {}


def _turned_away() -> bytes:
    """The whole answer to a connection too many."""
    body, kind, _ = _json({"error": f"More than {MOST_CONNECTIONS} connections are open. Close some"})
    headers = {**HEADERS, "Content-Type": kind, "Content-Length": len(body), "Connection": "close"}
    lines = ["HTTP/1.1 503 Service Unavailable", *(f"{name}: {text}" for name, text in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


_TOO_MANY = _turned_away()


def _jpeg(body: bytes) -> Answer:
    return body, "image/jpeg", {}


def _packed(body: bytes) -> Answer:
    return body, "application/octet-stream", {"Content-Encoding": "gzip"}


def _number(query: Query, name: str) -> float:
    try:
        value = float(query[name])
    except (KeyError, ValueError) as error:
        raise UsageError(f"{name} has to be a number") from error
    if not abs(value) < 1e9:
        raise UsageError(f"{name} has to be a position on the slide")
    return value


def _best(service: Service, query: Query, *numbers: int) -> Answer:
    count, lowest = int(min(_number(query, "count"), 1000)), query.get("lowest") == "1"
    return _json(service.best(*numbers, count=count, lowest=lowest))


_N = r"(\d{1,9})"
_GET: dict[str, Callable[..., Answer]] = {
    r"/api/slides": lambda s, q: _json(s.slides()),
    rf"/api/slides/{_N}": lambda s, q, n: _json(s.facts(n)),
    rf"/api/slides/{_N}/outlines": lambda s, q, n: _json(s.outlines(n)),
    rf"/api/slides/{_N}/marks": lambda s, q, n: _json(s.marks(n)),
    rf"/api/slides/{_N}/tile": lambda s, q, n: _json(s.tile_at(n, _number(q, "x"), _number(q, "y"))),
    rf"/api/slides/{_N}/tiles/{_N}": lambda s, q, n, row: _json(s.tile_facts(n, row)),
    rf"/api/slides/{_N}/layers/{_N}/{_N}": lambda s, q, n, layer, channel: _packed(
        s.raster(n, layer, channel, ranked=q.get("rank") == "1")
    ),
    rf"/api/slides/{_N}/layers/{_N}/{_N}/best": _best,
    rf"/slides/{_N}/tiles/{_N}/{_N}_{_N}\.jpg": lambda s, q, *at: _jpeg(s.tile(*at)),
    rf"/slides/{_N}/crops/{_N}\.jpg": lambda s, q, n, row: _jpeg(s.crop(n, row)),
}
_POST: dict[str, Callable[..., Answer]] = {
    rf"/api/slides/{_N}/marks": lambda s, asked, n: _json(s.change_marks(n, asked)),
}


class _Handler(BaseHTTPRequestHandler):
    server: ViewerServer
    protocol_version = "HTTP/1.1"  # connections stay open: a view is some fifty tiles
    server_version, sys_version = "Microtome", ""
    timeout = _IDLE_S

    def do_GET(self) -> None:
        """Answer a question."""
        self._answer("GET")

    def do_HEAD(self) -> None:
        """The same without a body."""
        self._answer("GET")

    def do_POST(self) -> None:
        """Change something."""
        self._answer("POST")

    def _answer(self, method: str) -> None:
        door, headers = self.server.door, {name.title(): text for name, text in self.headers.items()}
        if refusal := door.check_source(method, headers):
            self._refuse(refusal)
            return
        try:
            url = urlsplit(self.path)
        except ValueError:  # half an IPv6 address
            self._refuse(Refusal(400, "This is no address"))
            return
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if method == "GET" and url.path == "/" and door.admits(query.get("token", "")):
            self._page("index.html", {"Set-Cookie": door.cookie(self.server.port)})
        elif refusal := door.check_secrets(method, headers, port=self.server.port):
            self._refuse(refusal)
        elif method == "GET" and (url.path == "/" or url.path.startswith("/page/")):
            self._page("index.html" if url.path == "/" else url.path.removeprefix("/page/"), {})
        else:
            self._ask(method, url.path, query)

    def _page(self, name: str, more: dict[str, str]) -> None:
        found = self.server.page.get(name)
        if found is None:
            self._refuse(Refusal(404, "There is nothing here"))
            return
        self._send(200, *found, more)

    def _ask(self, method: str, path: str, query: Query) -> None:
        """Find the question and answer it; errors become one line."""
        if path == "/api/session":  # what our page needs to change something; no other page can read it
            self._send(200, *_json({"token": self.server.door.page_token}))
            return
        routes = _GET if method == "GET" else _POST
        matches = ((re.fullmatch(pattern, path, re.ASCII), answer) for pattern, answer in routes.items())
        found, answer = next((pair for pair in matches if pair[0]), (None, None))
        if found is None or answer is None:
            self._refuse(Refusal(404, "There is nothing here"))
            return
        numbers = [int(group) for group in found.groups()]
        try:
            given: Any = query if method == "GET" else self._body()
            sent = answer(self.server.service, given, *numbers)
        except UsageError as error:
            self._refuse(Refusal(400, _line(error)))
        except MicrotomeError as error:
            self._refuse(Refusal(422, _line(error)))
        except Exception as error:
            _log.exception("the viewer failed at %s", found.re.pattern)
            self._refuse(Refusal(500, f"Unexpected {type(error).__name__}: {error}"))
        else:
            self._send(200, *sent)

    def _body(self) -> Any:
        """The JSON of a POST, of a stated and modest length."""
        length = self.headers.get("Content-Length", "")
        kind = self.headers.get("Content-Type", "").split(";")[0].strip()
        if kind != "application/json" or not (length.isascii() and length.isdigit()):
            raise UsageError("a change is JSON of a stated length")
        if int(length) > LARGEST_BODY:
            raise UsageError(f"a change has {LARGEST_BODY} bytes at most")
        return parse_json(self.rfile.read(int(length)))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What `http.server` refuses by itself, with the headers of every answer, and not its own page."""
        self.close_connection = True
        body, kind, more = _json({"error": message or HTTPStatus(code).phrase})
        self._send(code, body, kind, {**more, "Connection": "close"})

    def _refuse(self, refusal: Refusal) -> None:
        self.close_connection = True  # a body may be left unread
        body, kind, more = _json({"error": refusal.reason})
        if "text/html" in self.headers.get("Accept", ""):
            body, kind = (refusal.reason + "\n").encode(), "text/plain; charset=utf-8"
        self._send(refusal.status, body, kind, {**more, "Connection": "close"})

    def _send(self, status: int, body: bytes, kind: str, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, **(more or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Nothing: the library is silent, and addresses hold the secret."""


def _line(error: MicrotomeError) -> str:
    """What is wrong and what to do, without the path: it is the user's own, and may be long."""
    return ". ".join(part.rstrip(".") for part in (error.reason, error.action) if part) + "."
