"""Messages without what they must not carry: a report names a slide by its id, and tells nothing else of it.

Errors and warnings name files, and may quote what stands in them. Neither leaves the output: paths become
``[file]``, quoted text ``[text]``, but for words of ours and what the caller allows.
"""

from __future__ import annotations

import re
from collections.abc import Collection

FILE, TEXT = "[file]", "[text]"
_BEFORE = r"(?:(?<=^)|(?<=[\s('\"=:\[]))"
_PATH = re.compile(rf"{_BEFORE}(?:file://|[A-Za-z]:[\\/]|\\\\|~?/|\.\.?[\\/])[^\s'\"<>|;,()\]]+")
_FILE = re.compile(r"[^\s'\"/\\:]+\.(?:svs|tiff?|ndpi|scn|mrxs|vms|vmu|bif|czi|dcm|svslide|isyntax)\b", re.I)
_QUOTED = re.compile(rf"{_BEFORE}(['\"])(.*?)\1(?=[\s.,;:)\]!?]|$)")
_UNEXPECTED = re.compile(r"unexpected (\w+): .*", re.DOTALL)


def safe_text(text: str, *, places: Collection[str] = (), allowed: Collection[str] = ()) -> str:
    """The text without places and without what it quotes.

    Parameters
    ----------
    text
        A message of ours.
    places
        Paths that it may name, also such with spaces: no pattern would find their ends.
    allowed
        What may be quoted: the slide's id, names of classes and models.

    >>> words = "/data/Jane Doe/1.svs: states 'Doe, Jane'. Run 'microtome tile' again"
    >>> safe_text(words, places=["/data/Jane Doe/1.svs"])
    "[file]: states [text]. Run 'microtome tile' again"
    """
    for place in sorted({place for place in places if len(place) > 1}, key=len, reverse=True):
        text = text.replace(place, FILE)
    text = _UNEXPECTED.sub(r"unexpected \1. Run it with --debug and report it", text)
    text = _QUOTED.sub(lambda found: found[0] if _is_ours(found[2], allowed) else TEXT, text)
    text = _PATH.sub(FILE, text)
    return _FILE.sub(lambda found: found[0] if found[0] in allowed else FILE, text)


def _is_ours(quoted: str, allowed: Collection[str]) -> bool:
    return quoted in allowed or quoted == FILE or re.fullmatch(r"microtome( [a-z-]+)*", quoted) is not None
