"""`encode_slide`: a slide's tiles to features, shard by shard, in bounded memory."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mil.device import Precision, best_batch_size, best_precision, require_precision
from mil.encoder import Encoder
from mil.feed import PIECE_BYTES, Pace, encode_blocks
from tiling.commit import Commit, Draft
from tiling.context import check_context, context_key, context_reader
from tiling.identity import FileIdentity, check_unchanged
from tiling.store import TileStore, make_array
from tiling.tiles import tile_reader
from tiling.versions import versions
from wsi.errors import MicrotomeError
from wsi.stopwatch import Stopwatch

if TYPE_CHECKING:
    from tiling.blocks import Progress
    from tiling.tiles import ReadTiles
    from wsi.slide import Slide


def encode_slide(  # noqa: PLR0913 - choices that have nothing to do with one another
    store: TileStore,
    encoder: Encoder,
    *,
    slide: Slide | None = None,
    context_mpp: float | None = None,
    precision: Precision | None = None,
    batch_size: int | None = None,
    readers: int = 1,
    progress: Progress | None = None,
    times: Stopwatch | None = None,
) -> Commit:
    """Encode every tile of a slide and commit the features to its store.

    Does nothing where the same encoder already did; goes on where a killed run stopped. The unit of work is
    a shard of tiles, and no batch crosses its edge: the bytes do not tell where a run was interrupted.

    Parameters
    ----------
    store
        Where the tiles are and the features go, as ``features/<encoder.key>``: ``(n, dim)`` float16, filled
        with NaN so that a hole shows. The caller holds the output's lock.
    encoder
        What encodes.
    slide
        The open slide, for tiles that were cut without pixels and for context; else it is not looked at.
    context_mpp
        Encode what lies around each tile at this scale (`tiling.context`), to
        ``features/<encoder.key>@<context_mpp>``. None: the tiles themselves.
    precision
        By default that of the features that are there already, else `best_precision` of the device: what
        one machine has finished, another one need not do again.
    batch_size
        Tiles per step, at most; by default `best_batch_size` of the device. It may change the last bit of a
        feature, and is not part of the recipe.
    readers
        Threads that read ahead while the encoder computes; see `mil.feed`.
    progress
        Called as tiles are finished.
    times
        Told how long each activity takes.

    Raises
    ------
    MicrotomeError
        The encoder gave NaN or infinity, or numbers that float16 cannot hold; encoder and tile are named. Or
        the GPU's memory is too small for a batch.
    RecipeError, DamagedError, SlideError, UsageError
        See `TileStore.begin`, `tile_reader`, `context_reader`, `check_context` and `require_precision`.
    """
    key = encoder.key
    if context_mpp is not None:
        check_context(store, context_mpp)
        key = context_key(key, context_mpp)
    item = f"features/{key}"
    precision = require_precision(
        precision
        or _precision_there(store, item)
        or _precision_there(store, f"features/{encoder.key}")
        or best_precision(encoder.device),
        encoder.device,
    )
    recipe: dict[str, Any] = {
        "step": "features",
        "inputs": store.inputs("tiles"),
        "encoder": encoder.identity(),
        "precision": precision.value,
    }
    if context_mpp is not None:
        recipe["context_mpp"] = context_mpp
    draft = store.begin(item, recipe)
    if draft is None:
        return store.require(item)
    # Not sooner: what is encoded already needs no slide again.
    read = tile_reader(store, slide) if context_mpp is None else context_reader(store, slide, mpp=context_mpp)
    size = batch_size or best_batch_size(encoder.device)
    pace = Pace(size, readers, max(1, PIECE_BYTES // (3 * store.spec.size_px**2)))
    watched = _Watched(times or Stopwatch(), progress)
    _encode_missing(draft, store, encoder, read, precision=precision, pace=pace, watched=watched)
    if slide is not None and (context_mpp is not None or not store.has_pixels):
        check_unchanged(slide.path, FileIdentity(**store.tiles.recipe["slide"]))
    record = {"tiles": len(store), "batch_size": size, "compiled": encoder.compiled}
    return draft.publish(record | {"versions": versions("torch", "timm")})


@dataclass(frozen=True, slots=True)
class _Watched:
    """Who hears how it goes."""

    times: Stopwatch
    progress: Progress | None


def _encode_missing(
    draft: Draft,
    store: TileStore,
    encoder: Encoder,
    read: ReadTiles,
    *,
    precision: Precision,
    pace: Pace,
    watched: _Watched,
) -> None:
    """Every shard that no killed run has finished."""
    shards, count = store.shards(), len(store)
    progress, times = watched.progress, watched.times
    shape = (count, encoder.dim)
    array = make_array(draft, "", shape=shape, rows_per_file=shards[0].stop, dtype=np.float16, fill=np.nan)
    missing = [rows for rows in shards if _part(rows) not in draft.parts]
    done = count - sum(rows.stop - rows.start for rows in missing)
    if progress and done:
        progress(done, count)
    blocks = encode_blocks(encoder, missing, read, precision=precision, pace=pace, times=times)
    with contextlib.closing(blocks):  # on an error and on Ctrl-C too, no thread reads on
        for rows, features in blocks:
            with np.errstate(over="ignore"):  # becomes infinity, which is refused by name
                values = _checked(features.astype(np.float16), rows, store, encoder)
            with times.lap("write"):
                draft.finish_part(_part(rows), [array.write(rows, values)])
            done += len(values)
            if progress:
                progress(done, count)


def _part(rows: slice) -> str:
    return f"features/{rows.start}"


def _precision_there(store: TileStore, item: str) -> Precision | None:
    commit = store.find(item)
    # Features that were imported from elsewhere state none.
    return Precision(commit.recipe["precision"]) if commit and "precision" in commit.recipe else None


def encode_tiles(
    encoder: Encoder, tiles: NDArray[np.uint8], *, precision: Precision, batch_size: int | None = None
) -> NDArray[np.float32]:
    """Encode ``(k, s, s, 3)`` uint8 RGB tiles to ``(k, dim)`` float32, a batch at a time."""
    size = batch_size or best_batch_size(encoder.device)
    pace = Pace(size, readers=0, piece_tiles=size)
    blocks = [slice(0, len(tiles))]
    ((_, features),) = encode_blocks(encoder, blocks, tiles.__getitem__, precision=precision, pace=pace)
    return features


def _checked(
    features: NDArray[np.float16], rows: slice, store: TileStore, encoder: Encoder
) -> NDArray[np.float16]:
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        x, y = store.origins[rows.start + bad[0]].tolist()
        raise MicrotomeError(
            f"{encoder.name} gave NaN, infinite or too large features for the tile at ({x}, {y}) of slide "
            f"{store.slide_id!r}",
            path=store.output.root,
            action="Encode with --precision fp32; if that gives the same, the weights are damaged",
        )
    return features
