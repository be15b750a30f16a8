"""`encode_slide`: a slide's tiles to features, shard by shard, in bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mil.device import Precision, best_batch_size, best_precision, require_precision, suits
from mil.encoder import Encoder
from mil.feed import PIECE_BYTES, Pace, encode_blocks
from tiling.commit import Commit, Draft
from tiling.context import check_context, context_key, context_reader
from tiling.identity import FileIdentity, check_unchanged
from tiling.store import DraftArray, TileStore, make_array
from tiling.tiles import tile_reader
from tiling.versions import versions
from wsi.errors import MicrotomeError
from wsi.stopwatch import Stopwatch

if TYPE_CHECKING:
    import torch

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
        By default that of the features that are there already, or were begun, else `best_precision` of the
        device: what one machine has begun, another one goes on with.
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
    features = begin_features(store, encoder, slide=slide, context_mpp=context_mpp, precision=precision)
    if features is None:
        return store.require(_item(encoder, context_mpp))
    watched = Watched(times or Stopwatch(), progress)
    features.encode(features.missing(), batch_size=batch_size, readers=readers, watched=watched)
    if slide is not None and (context_mpp is not None or not store.has_pixels):
        check_unchanged(slide.path, FileIdentity(**store.tiles.recipe["slide"]))
    return features.publish(batch_size=batch_size)


@dataclass(frozen=True, eq=False)
class FeatureDraft:
    """A slide's features, being made."""

    store: TileStore
    encoder: Encoder
    draft: Draft
    read: ReadTiles
    """Gives the pixels of a range of tiles."""
    precision: Precision

    def create(self) -> None:
        """Make the array, for those who join."""
        self._array()

    def _array(self) -> DraftArray:
        shape, rows = (len(self.store), self.encoder.dim), self.store.shards()[0].stop
        return make_array(self.draft, "", shape=shape, rows_per_file=rows, dtype=np.float16, fill=np.nan)

    def missing(self) -> list[slice]:
        """The shards of tiles that no run has encoded."""
        return [rows for rows in self.store.shards() if _part(rows) not in self.draft.parts]

    def encode(
        self, shards: Sequence[slice], *, batch_size: int | None, readers: int, watched: Watched
    ) -> None:
        """Encode some of `missing`; the rest as in `encode_slide`."""
        size = batch_size or best_batch_size(self.encoder.device)
        pace = Pace(size, readers, max(1, PIECE_BYTES // (3 * self.store.spec.size_px**2)))
        _encode_shards(self, shards, pace=pace, watched=watched)

    def publish(self, *, batch_size: int | None) -> Commit:
        """Commit them, when none is missing."""
        size = batch_size or best_batch_size(self.encoder.device)
        size = min(size, self.encoder.room.most or size)
        record = {"tiles": len(self.store), "batch_size": size, "compiled": self.encoder.compiled}
        return self.draft.publish(record | {"versions": versions("torch", "timm")})


def begin_features(
    store: TileStore,
    encoder: Encoder,
    *,
    slide: Slide | None = None,
    context_mpp: float | None = None,
    precision: Precision | None = None,
    helper: str = "",
) -> FeatureDraft | None:
    """Begin a slide's features, or go on with them; None where they are there. As in `encode_slide`.

    With a `helper`'s name, join in encoding what another process has begun: see `tiling.commit.join`.
    """
    if context_mpp is not None:
        check_context(store, context_mpp)
    item = _item(encoder, context_mpp)
    recipe: dict[str, Any] = {
        "step": "features",
        "inputs": store.inputs("tiles"),
        "encoder": encoder.identity(),
    }
    if context_mpp is not None:
        recipe["context_mpp"] = context_mpp
    precision = require_precision(
        precision
        or _precision_there(store, item)
        or _precision_there(store, _item(encoder, None))
        or _precision_begun(store, item, recipe, encoder.device)
        or best_precision(encoder.device),
        encoder.device,
    )
    recipe["precision"] = precision.value
    draft = store.join(item, recipe, helper=helper) if helper else store.begin(item, recipe)
    if draft is None:
        return None
    # Not sooner: what is encoded already needs no slide again.
    read = tile_reader(store, slide) if context_mpp is None else context_reader(store, slide, mpp=context_mpp)
    return FeatureDraft(store, encoder, draft, read, precision)


def _item(encoder: Encoder, context_mpp: float | None) -> str:
    key = encoder.key if context_mpp is None else context_key(encoder.key, context_mpp)
    return f"features/{key}"


@dataclass(frozen=True, slots=True)
class Watched:
    """Who hears how it goes."""

    times: Stopwatch
    progress: Progress | None


def _encode_shards(made: FeatureDraft, shards: Sequence[slice], *, pace: Pace, watched: Watched) -> None:
    store, draft, encoder = made.store, made.draft, made.encoder
    count, progress, times = len(store), watched.progress, watched.times
    array = made._array()
    done = sum(rows.stop - rows.start for rows in store.shards() if _part(rows) in draft.parts)
    if progress and done:
        progress(done, count)
    blocks = encode_blocks(encoder, shards, made.read, precision=made.precision, pace=pace, times=times)
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


def _precision_begun(
    store: TileStore, item: str, recipe: Mapping[str, Any], device: torch.device
) -> Precision | None:
    """That of features that are being made, perhaps by a machine that has another best one than this."""
    for one in Precision:
        if suits(one, device) and store.is_begun(item, {**recipe, "precision": one.value}):
            return one
    return None


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
