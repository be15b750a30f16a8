"""Names that users give to classes: which two are likely to be meant for one, and which cannot be used.

Two people who mark slides write ``Tumor``, ``tumour`` and ``TUMOR``; a program would learn three classes.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable

CHANNELS = ("attention rank", "uncertainty")
"""What heatmaps show beside classes: no class may be called so."""
_LONGEST = 100
"""Bytes: names are parts of file names."""
_LEAST_LETTERS = 5
"""Of words that one letter more or another one makes look alike: ``Tumor``, not ``CIN``."""
_DASHES = frozenset("-\u2010\u2011\u2012\u2013\u2014\u2212")


def fault_of(name: str) -> str:
    """Why a class cannot be called so, such as ``"holds ..."``; nothing where it can."""
    if not name.strip():
        return "is blank"
    if not name.isprintable():
        return "holds characters that cannot be printed on one line"
    if name.casefold() in CHANNELS:
        return "is the name of another channel of heatmaps"
    return f"is longer than {_LONGEST} bytes" if len(name.encode()) > _LONGEST else ""


def look_alikes(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that are likely to be one class, written in two ways; each pair and the list sorted.

    They are equal up to case, blanks, punctuation and accents; or one word of them, of five letters or more,
    has one letter more, less, or another one. Digits and signs tell names apart, and so does a word
    that is the other with an a- before it.

    >>> look_alikes(["Tumor", "Tumour", "Stroma", "stroma ", "Grade 1", "Grade 2", "CD3+", "CD3-"])
    [('Stroma', 'stroma '), ('Tumor', 'Tumour')]
    """
    pairs = itertools.combinations(sorted(set(names)), 2)
    return [(one, other) for one, other in pairs if _key(one) == _key(other) or _nearly(one, other)]


def _key(name: str) -> str:
    """Small letters without accents, digits and signs; of punctuation alone, that."""
    return "".join(_words(name)) or name


def _words(name: str) -> list[str]:
    """The name's words in small letters without accents; between two digits a mark stays, as a dot."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    plain = re.sub(
        r"(?<=[a-z])(?=[A-Z])", " ", plain
    )  # GradeA: two words, of which A is too short to compare
    marked = "".join(_as_mark(plain, place) for place in range(len(plain))).casefold()
    return re.sub(r"(?<=\d) +(?=\d)", ".", marked).split()


def _as_mark(text: str, place: int) -> str:
    """A character: itself, a minus, or a blank for punctuation. ``CD3-`` has a sign, ``T-cell`` has none."""
    character = text[place]
    if character in _DASHES:
        before, after = text[place - 1 : place] or " ", text[place + 1 : place + 2] or " "
        joins = text[:place].strip() and text[place + 1 :].strip() and before.isalnum() == after.isalnum()
        return " " if joins else "-"
    return " " if unicodedata.category(character)[0] in "PZ" else character


def _nearly(one: str, other: str) -> bool:
    """Whether exactly one word differs, by a letter."""
    first, second = _words(one), _words(other)
    if len(first) != len(second):
        return False
    different = [pair for pair in zip(first, second, strict=True) if pair[0] != pair[1]]
    return len(different) == 1 and _one_letter_apart(*different[0])


def _one_letter_apart(one: str, other: str) -> bool:
    """Whether two words differ by one letter; not where they differ in digits or signs too."""
    if _rest(one) != _rest(other):
        return False
    short, long = sorted((_letters(one), _letters(other)), key=len)
    if long == short + "s":
        return len(long) >= _LEAST_LETTERS  # cell, cells
    if len(short) < _LEAST_LETTERS or len(long) - len(short) > 1 or long == "a" + short:
        return False
    same = next(
        (i for i, pair in enumerate(zip(short, long, strict=False)) if len(set(pair)) > 1), len(short)
    )
    return short[same + (len(short) == len(long)) :] == long[same + 1 :]


def _letters(word: str) -> str:
    return "".join(c for c in word if c.isalpha())


def _rest(word: str) -> str:
    return "".join(c for c in word if not c.isalpha())
