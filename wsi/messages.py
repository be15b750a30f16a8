"""`messages`: what is logged and warned, as lines for a person, for as long as a command runs."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

OURS = frozenset({"wsi", "tiling", "mil", "heatmaps"})
"""Whose warnings a user hears; what matters of the libraries', we raise."""


def printable(text: str) -> str:
    """The text as any stream takes it: file names need not be UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def on_a_terminal(text: str) -> str:
    """The text on one line, and nothing in it that a terminal takes for a command: file names may hold such.

    >>> on_a_terminal(chr(27) + "[31m.svs") == chr(92) + "x1b[31m.svs"
    True
    """
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in printable(text))
    return "".join(escaped)


@contextlib.contextmanager
def messages(*, debug: bool) -> Iterator[None]:
    """Our warnings on standard error, those of the libraries only with `debug`; undone at the end."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    handler.setLevel(logging.DEBUG if debug else logging.WARNING)
    if not debug:
        handler.addFilter(lambda record: record.name.split(".")[0] in OURS)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            yield
    finally:
        root.removeHandler(handler)
