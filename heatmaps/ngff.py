"""Heatmaps as OME-Zarr: NGFF 0.5 in Zarr v3, or 0.4 in Zarr v2 for programs that read no other, as QuPath.

Sources: the NGFF specification (ngff.openmicroscopy.org, 0.4 and 0.5), sections "multiscales" and "omero".

Physical coordinates are microns on the slide, and the middle of the slide's first pixel is their origin: that
is where an OME-Zarr of the slide itself has it, so both lie on one another in one viewer. The middle of a
coarser pixel lies further in, hence the translation that every level has beside its scale.

Chunks without any score are not written; they read as NaN. Zarr v2 is compressed with zlib, which Java reads
by itself; others need a native library.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import zarr
from numcodecs import Zlib
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore

from heatmaps.colour import check_range
from heatmaps.levels import Levels, level_sizes, make_levels
from heatmaps.raster import Heatmap
from heatmaps.settings import Ngff
from wsi.durable import output_errors

_CHUNK = 512
_HUES = ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7")
"""Told apart by colour-blind eyes: Okabe and Ito, "Color Universal Design" (2008). One channel after the
other, and again from the first; a viewer adds them up, so only the first channel is shown at first."""


def write_ngff(
    folder: Path, heatmap: Heatmap, *, version: Ngff = Ngff.V05, vmin: float = 0.0, vmax: float = 1.0
) -> None:
    """Write all channels as float32, NaN where no tile lies, axes (c, y, x), a pyramid in `folder`.

    Nothing here is durable until the item that `folder` is in is committed.

    Parameters
    ----------
    folder
        Made here; by custom its name ends in ``.ome.zarr``.
    version
        Of the specification.
    vmin, vmax
        The window in which viewers show every channel at first.

    Raises
    ------
    UsageError
        Not `vmin` < `vmax`.
    OutputError
        It cannot be written.
    """
    with ngff_folder(folder, heatmap, version=version, vmin=vmin, vmax=vmax) as take:
        for name in heatmap.channels:
            take(make_levels(heatmap.channel(name)))


@contextlib.contextmanager
def ngff_folder(
    folder: Path, heatmap: Heatmap, *, version: Ngff = Ngff.V05, vmin: float = 0.0, vmax: float = 1.0
) -> Iterator[Callable[[Levels], None]]:
    """The same for who has the levels: gives what takes those of each channel, in the heatmap's order."""
    check_range(vmin=vmin, vmax=vmax)
    rows, columns = heatmap.shape
    sizes = level_sizes(columns, rows)
    multiscales = [
        {
            "name": "Microtome scores",
            "axes": _axes(),
            "datasets": _datasets(heatmap, sizes),
            "type": "mean",
        }
    ]
    omero = _omero(heatmap.channels, vmin=vmin, vmax=vmax)
    of_old = {
        "multiscales": [m | {"version": "0.4"} for m in multiscales],
        "omero": omero | {"version": "0.4"},
    }
    of_new = {"ome": {"version": "0.5", "multiscales": multiscales, "omero": omero}}
    with output_errors(folder):
        group = zarr.create_group(
            LocalStore(folder),
            zarr_format=2 if version is Ngff.V04 else 3,
            attributes=of_old if version is Ngff.V04 else of_new,
        )
        arrays = [
            _make_level(group, str(level), (len(heatmap.channels), height, width), version)
            for level, (width, height) in enumerate(sizes)
        ]
        taken = itertools.count()

        def take(levels: Levels) -> None:
            number = next(taken)
            for array, plane in zip(arrays, levels, strict=True):
                array[number] = plane

        yield take


def _make_level(group: zarr.Group, name: str, shape: tuple[int, int, int], version: Ngff) -> zarr.Array[Any]:
    chunks = (1, min(_CHUNK, shape[1]), min(_CHUNK, shape[2]))
    settings: dict[str, Any] = {
        "name": name,
        "shape": shape,
        "chunks": chunks,
        "dtype": "<f4",
        "fill_value": float("nan"),
        "config": {"write_empty_chunks": False},
    }
    if version is Ngff.V04:
        separator: dict[str, Any] = {"name": "v2", "separator": "/"}
        return group.create_array(
            **settings, compressors=Zlib(level=6), filters=None, chunk_key_encoding=separator
        )
    return group.create_array(
        **settings, compressors=ZstdCodec(level=3, checksum=True), dimension_names=("c", "y", "x")
    )


def _axes() -> list[dict[str, str]]:
    space = {"type": "space", "unit": "micrometer"}
    return [{"name": "c", "type": "channel"}, {"name": "y"} | space, {"name": "x"} | space]


def _datasets(heatmap: Heatmap, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Where each level's pixels are.

    All levels span the same, so a pixel is as many times as wide as there are fewer, and not just twice.
    """
    rows, columns = heatmap.shape
    datasets = []
    for level, (width, height) in enumerate(sizes):
        side_y, side_x = heatmap.mpp * rows / height, heatmap.mpp * columns / width
        # Of the slide's own pixels, which are square in microns only where `scale` is `scale_y`.
        of_slide_y, of_slide_x = heatmap.mpp / heatmap.scale_y, heatmap.mpp / heatmap.scale
        middle = [0.0, (side_y - of_slide_y) / 2, (side_x - of_slide_x) / 2]
        transformations = [
            {"type": "scale", "scale": [1.0, side_y, side_x]},
            {"type": "translation", "translation": middle},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": transformations})
    return datasets


def _omero(channels: Sequence[str], *, vmin: float, vmax: float) -> dict[str, Any]:
    """How viewers show the channels at first."""
    window = {"min": vmin, "max": vmax, "start": vmin, "end": vmax}
    shown = [
        {
            "label": name,
            "color": _HUES[number % len(_HUES)],
            "active": number == 0,
            "coefficient": 1,
            "family": "linear",
            "inverted": False,
            "window": window,
        }
        for number, name in enumerate(channels)
    ]
    return {"id": 1, "name": "Microtome scores", "channels": shown, "rdefs": {"model": "color"}}
