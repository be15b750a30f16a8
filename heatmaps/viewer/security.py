"""Who may ask: this machine's own page, with this run's secret, and nobody else.

A server on the loopback interface is still reached by every page in the user's browser and by every program
of every user of the machine. So each request is held against these rules, before anything is looked up:

- its Host is a name of the loopback interface, or another site's name was made to point here (DNS rebinding);
- where the browser says so, it comes from our own page, not from another site or another port;
- it carries this run's secret: in the address the first time, then in a cookie that no script can read;
- what changes something is a POST from our own Origin, with a second secret that only our page was told.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from threading import Lock

_STYLE_HASH = "sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE="
"""Of the one rule (no outline on touch screens) that OpenSeadragon 6.1.1 adds to the page."""
CONTENT_POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' '{_STYLE_HASH}'; "
    "img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""No inline script or style, nothing from elsewhere, no frames. ``data:`` and ``blob:`` are pictures that
OpenSeadragon makes in the page."""
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    # Pictures of patients do not belong into a browser's cache; and the next run's slide 0 is another one.
    "Cache-Control": "no-store",
}
"""Of every answer."""
LARGEST_BODY = 1 << 20
"""Bytes of a POST: a region of ten thousand corners has a third of it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered."""

    status: int
    """Of HTTP."""
    reason: str
    """One sentence."""


@dataclass(frozen=True, eq=False)
class Door:
    """The secrets of one run, and the check of every request."""

    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    """In the printed address, and then in the cookie."""
    page_token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    """Told to our page, which sends it with what changes something."""
    _tickets: set[str] = field(default_factory=set, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def ticket(self) -> str:
        """A secret for one visit: a browser's command line can be read by all users of the machine."""
        ticket = secrets.token_urlsafe(24)
        with self._lock:
            self._tickets.add(ticket)
        return ticket

    def admits(self, asked: str) -> bool:
        """Whether the token of an address is this run's, or a ticket that nobody used yet."""
        if same(asked, self.token):
            return True
        with self._lock:
            found = next((ticket for ticket in self._tickets if same(asked, ticket)), None)
            if found:
                self._tickets.discard(found)
        return found is not None

    def check(self, method: str, headers: Mapping[str, str], *, port: int) -> Refusal | None:
        """Whether a request may be answered, by its headers alone; None where it may.

        The cookie is checked, not the address: see `admits`.
        """
        return self.check_source(method, headers) or self.check_secrets(method, headers, port=port)

    def check_source(self, method: str, headers: Mapping[str, str]) -> Refusal | None:
        """Whether a request is for this machine, and by a page of ours or by the user himself."""
        host = headers.get("Host", "")
        if not is_loopback(host):
            return Refusal(421, "This server answers to 127.0.0.1 and localhost only")
        origin = headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            return Refusal(403, "Pages of other sites get no answer")
        # An image or a script on a page of another port has no Origin, but says this.
        stranger = headers.get("Sec-Fetch-Site", "none") in {"cross-site", "same-site"}
        if stranger and headers.get("Sec-Fetch-Mode") != "navigate":
            return Refusal(403, "Pages of other sites get no answer")
        if method == "POST" and origin is None:
            return Refusal(403, "A change needs an Origin")
        return None

    def check_secrets(self, method: str, headers: Mapping[str, str], *, port: int) -> Refusal | None:
        """Whether a request knows what only this run's page knows."""
        if not same(_cookie(headers.get("Cookie", ""), cookie_name(port)), self.token):
            return Refusal(403, "Open the address that 'microtome view' printed: it holds this run's secret")
        if method == "POST" and not same(headers.get("X-Microtome-Token", ""), self.page_token):
            return Refusal(403, "A change needs the page's secret. Load the page again")
        return None

    def cookie(self, port: int) -> str:
        """The header that has the browser keep the secret until it is closed, for our own page alone."""
        return f"{cookie_name(port)}={self.token}; Path=/; HttpOnly; SameSite=Strict"


def cookie_name(port: int) -> str:
    """Of its own for each port: cookies do not know of ports, and two viewers may run."""
    return f"microtome-{port}"


def same(one: str, other: str) -> bool:
    """Equality in a time that does not tell how much of it was right."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def is_loopback(host: str) -> bool:
    """Whether a Host header names the loopback interface; the port may be a tunnel's.

    >>> [is_loopback(host) for host in ("localhost:80", "[::1]:80", "127.0.0.1", "127.0.0.1.evil.example")]
    [True, True, True, False]
    """
    name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "")
    if port and not (port.isascii() and port.isdigit()):
        return False
    if name.casefold() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _cookie(header: str, name: str) -> str:
    try:
        jar = SimpleCookie(header)
    except CookieError:
        return ""
    return jar[name].value if name in jar else ""
