"""`Slide`: one file, read by position and microns per pixel."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi.backends import Backend, OpenSlideBackend, TiffSlideBackend
from wsi.errors import ResolutionError, SlideError
from wsi.geometry import Level, Resolution, check_override
from wsi.preflight import FileFacts, check_file
from wsi.reader import Damage, Reader, find_runs
from wsi.resolution import find_resolution, objective_power, resolution_of_power
from wsi.stopwatch import Stopwatch
from wsi.tiff import TILED_AGAIN

UPSAMPLING_TOLERANCE = 0.05
"""A slide of 0.502 µm serves a request for 0.5; one of 0.6 µm does not: detail cannot be invented."""

_OVERLOOKED = 1.5  # times a reader's finest level: a picture so much larger is one that it did not see

_log = logging.getLogger(__name__)


class Slide:
    """A whole slide, opened for reading.

    Parameters
    ----------
    path
        The slide file; for MIRAX the ``.mrxs``, for DICOM any file of the series.
    mpp
        Microns per level-0 pixel to use instead of what the file states.
    trust_objective
        Where the file states no microns per pixel, take the nominal figure of its objective power.

    Raises
    ------
    SlideError
        The file is missing, damaged or of an unknown format.
    UsageError
        `mpp` is outside `wsi.geometry.OVERRIDE_RANGE`.

    Examples
    --------
    ::

        with Slide("slide.svs") as slide:
            tile = slide.read(10_000, 8_000, size=(256, 256), mpp=0.5)  # (256, 256, 3) uint8
    """

    def __init__(self, path: str | Path, *, mpp: float | None = None, trust_objective: bool = False) -> None:
        self.path = Path(path)
        if mpp is not None:
            check_override(mpp)
        self._options: dict[str, Any] = {"mpp": mpp, "trust_objective": trust_objective}
        self._open()

    def _open(self) -> None:
        facts = check_file(self.path)
        self._backend = _open_backend(self.path, facts)
        self.times = Stopwatch()
        is_tiff = facts.container == "tiff"
        self._reader = Reader(self.path, self._backend, is_tiff=is_tiff, times=self.times)
        self.resolution: Resolution | None = None
        self.resolution_fault = "the file states no microns per pixel"
        try:
            self.resolution = self._find_resolution(facts)
        except ValueError as error:
            self.resolution_fault = str(error)
        if self.resolution and self.resolution.anisotropy > 0.01:
            x, y = self.resolution.x, self.resolution.y
            _log.warning("%s: mpp differs between x (%g) and y (%g)", self.path, x, y)

    def _find_resolution(self, facts: FileFacts) -> Resolution | None:
        """The override, what the file states, or what its objective has by convention; in this order."""
        if (mpp := self._options["mpp"]) is not None:
            return Resolution(mpp, mpp, source="override")
        power = objective_power(self.properties) if self._options["trust_objective"] else None
        try:
            found = find_resolution(self.properties, description=facts.description)
        except ValueError:
            if power is None:
                raise
            found = None
        return found or (resolution_of_power(power) if power else None)

    # What the slide is -----------------------------------------------------------------------------------

    @property
    def size(self) -> tuple[int, int]:
        """``(width, height)`` in level-0 pixels."""
        return self.levels[0].width, self.levels[0].height

    @property
    def levels(self) -> tuple[Level, ...]:
        """The pyramid, finest first."""
        return self._backend.levels

    @property
    def backend(self) -> str:
        """Which library reads this slide."""
        return self._backend.name

    @property
    def properties(self) -> Mapping[str, str]:
        """The file's own metadata."""
        return self._backend.properties

    @property
    def associated(self) -> tuple[str, ...]:
        """Names of the label, macro and thumbnail images in the file."""
        return self._backend.associated

    @property
    def bounds_origin(self) -> tuple[int, int]:
        """Top-left corner of the scanned area, level-0: where QuPath puts its (0, 0)."""
        x, y = (self.properties.get(f"openslide.bounds-{axis}", "0") for axis in "xy")
        return int(x), int(y)

    def require_resolution(self) -> Resolution:
        """The resolution, or `ResolutionError` with what to pass."""
        if self.resolution is not None:
            return self.resolution
        action = "Pass them with --mpp-override"
        if power := objective_power(self.properties):
            nominal = resolution_of_power(power).mpp
            action += f"; its objective power {power:g} suggests about {nominal:g} (--trust-objective)"
        raise ResolutionError(
            f"{self.resolution_fault}, so nothing can be read at a known scale",
            path=self.path,
            action=action,
        )

    # Pixels ----------------------------------------------------------------------------------------------

    def read(
        self, x: float, y: float, *, size: tuple[int, int], mpp: float, exact: bool = False
    ) -> NDArray[np.uint8]:
        """Read pixels at a physical scale, each the mean of what lies under it.

        Parameters
        ----------
        x, y
            Top-left corner, level-0 pixels. The region may overhang the slide: white comes back there.
        size
            ``(width, height)`` of the result in pixels.
        mpp
            Microns per pixel of the result.
        exact
            Decode compressed tiles whole, also where half scale is as good.

        Returns
        -------
        ``(height, width, 3)`` uint8 RGB.

        Raises
        ------
        ResolutionError
            The slide states no resolution, or is coarser than `mpp`.
        SlideError
            The pixels cannot be decoded.

        Notes
        -----
        Pixels come from the coarsest level that is at least as fine as asked, area-averaged: never
        interpolated from fewer pixels, beyond `UPSAMPLING_TOLERANCE`. `wsi.reader` says when JPEG tiles are
        decoded at half scale instead.
        """
        return self._reader.read(x, y, size, self.scale(mpp), exact=exact)

    def read_tiles(
        self,
        origins: ArrayLike,
        *,
        size: tuple[int, int],
        mpp: float,
        exact: bool = False,
        threads: int = 1,
    ) -> NDArray[np.uint8]:
        """Read many tiles of one size: the same pixels as `read` gives for each, sooner.

        Parameters
        ----------
        origins
            ``(n, 2)`` level-0 (x, y) of the top-left corners; neighbours should follow one another.
        size, mpp, exact
            See `read`.
        threads
            Readers at work at a time; their number does not change a byte.

        Returns
        -------
        ``(n, height, width, 3)`` uint8 RGB.

        Raises
        ------
        ResolutionError, SlideError
            See `read`.
        """
        places = [(int(x), int(y)) for x, y in np.asarray(origins).reshape(-1, 2).tolist()]
        tiles = np.empty((len(places), size[1], size[0], 3), np.uint8)
        scale = self.scale(mpp)

        def read_run(run: slice) -> None:
            self._reader.read_run(places[run], size, scale, tiles[run], exact=exact)

        runs = find_runs(places, width=size[0] * scale[0])
        with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:
            list(pool.map(read_run, runs) if pool else map(read_run, runs))
        return tiles

    def thumbnail(self, mpp: float, *, damage: Damage | None = None) -> NDArray[np.uint8]:
        """The whole slide at `mpp`: ``(height, width, 3)`` uint8, corner on corner, overhang white.

        The size is the slide's, rounded up; memory is that of the result and of one block. Spots that cannot
        be decoded on any level are white, and `damage` is told of each; without it they raise `SlideError`.
        """
        scale_x, scale_y = self.scale(mpp)
        size = math.ceil(self.size[0] / scale_x), math.ceil(self.size[1] / scale_y)
        return self._reader.preview(size, (scale_x, scale_y), damage)

    def scale(self, mpp: float) -> tuple[float, float]:
        """Level-0 pixels per pixel at `mpp`, along x and y; `ResolutionError` where that up-samples."""
        resolution = self.require_resolution()
        scale_x, scale_y = mpp / resolution.x, mpp / resolution.y
        if min(scale_x, scale_y) < 1 - UPSAMPLING_TOLERANCE:
            raise ResolutionError(
                f"the scan has {resolution.mpp:.4g} µm per pixel, and {mpp:g} were asked for: "
                "that would invent detail",
                path=self.path,
                action=f"Ask for --mpp {math.ceil(resolution.mpp * 100) / 100:g} or more",
            )
        return scale_x, scale_y

    # The resource ----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Release the file."""
        self._reader.close()
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # The recipe, not the handle: a worker opens the file for itself.
        return {"path": self.path, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self._options = state["path"], state["options"]
        self._open()

    def __repr__(self) -> str:
        mpp = f"{self.resolution.mpp:.4g} µm/px" if self.resolution else "no mpp"
        return f"<Slide {self.path.name!r} {self.size[0]} x {self.size[1]}, {mpp}, {self.backend}>"


def _whole(backend: Backend, path: Path, facts: FileFacts) -> Backend:
    """The reader, unless it takes a smaller picture for the slide: the scale would be that of another level.

    OpenSlide passes over what follows a first directory and is not marked as its level. Where tiles overlap
    the slide is a little smaller than the picture that holds them.
    """
    level, stored = backend.levels[0], facts.largest
    if level.width * _OVERLOOKED < stored[0] and level.height * _OVERLOOKED < stored[1]:
        backend.close()
        raise SlideError(
            f"{backend.name} takes a level of {level.width} x {level.height} pixels for the slide, "
            f"which has {stored[0]} x {stored[1]}",
            path=path,
            action=TILED_AGAIN,
        )
    return backend


def _open_backend(path: Path, facts: FileFacts) -> Backend:
    """The first reader that opens the file.

    OpenSlide sees only the base of a pyramid kept in SubIFDs (OME-TIFF), so tiffslide goes first there.
    """
    order: list[type[OpenSlideBackend] | type[TiffSlideBackend]] = [OpenSlideBackend, TiffSlideBackend]
    if facts.container != "tiff":
        order = [OpenSlideBackend]
    elif facts.subifds:
        order.reverse()
    reasons, actions = [], []
    for backend in order:
        try:
            return _whole(backend(path), path, facts)
        except SlideError as error:
            reasons.append(error.reason)
            actions += [error.action] if error.action else []
    usual = "Check that it is a slide in a format that OpenSlide or tiffslide reads, and re-copy it"
    raise SlideError("; ".join(reasons), path=path, action=actions[0] if actions else usual)
