"""`Shelf`: slides kept open for the next tile, a few at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from wsi.slide import Slide

MOST_OPEN = 4
"""Each may hold up to 160 MiB of decoded tiles."""


@dataclass(frozen=True, slots=True)
class SlideFile:
    """A slide and how it is opened."""

    path: Path
    mpp: float | None = None
    trust_objective: bool = False
    stamp: tuple[int, int] = (0, 0)
    """Size and time of the file: another one of that name is opened anew."""

    @classmethod
    def of(cls, path: Path, *, mpp: float | None = None, trust_objective: bool = False) -> SlideFile:
        """The file as it is now."""
        with contextlib.suppress(OSError):  # said on opening it
            about = path.stat()
            return cls(path, mpp, trust_objective, (about.st_size, about.st_mtime_ns))
        return cls(path, mpp, trust_objective)

    def open(self) -> Slide:
        """The slide; its errors are those of `Slide`."""
        return Slide(self.path, mpp=self.mpp, trust_objective=self.trust_objective)


@dataclass(eq=False, slots=True)
class _Held:
    slide: Slide | None = None
    """None until the first reader has opened it."""
    readers: int = 0
    opening: Lock = field(default_factory=Lock)


class Shelf:
    """Open slides. Safe for threads; a slide is closed only when nobody reads from it.

    While one is being opened, which on a slow disk takes seconds, others are lent.
    """

    def __init__(self, most: int = MOST_OPEN) -> None:
        self._most = most
        self._held: dict[SlideFile, _Held] = {}
        self._lock = Lock()

    @contextmanager
    def borrow(self, file: SlideFile) -> Iterator[Slide]:
        """The open slide, for as long as the block lasts.

        Raises
        ------
        SlideError
            It cannot be opened.
        """
        with self._lock:
            held = self._held.pop(file, None) or _Held()
            self._held[file] = held  # the newest
            held.readers += 1
        try:
            with held.opening:
                slide = held.slide = held.slide or file.open()
            yield slide
        finally:
            with self._lock:
                held.readers -= 1
                if not held.readers and held.slide is None:  # it could not be opened
                    del self._held[file]
                self._trim(self._most)

    def close(self) -> None:
        """Close what nobody reads from."""
        with self._lock:
            self._trim(0)

    def __len__(self) -> int:
        return len(self._held)

    def _trim(self, most: int) -> None:
        for file in [file for file, held in self._held.items() if not held.readers]:
            if len(self._held) <= most:
                return
            if slide := self._held.pop(file).slide:
                slide.close()
