"""`encode_slide`: a slide's tiles to features, shard by shard, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from mil.device import Precision, best_precision
from mil.encoder import Encoder
from tiling.commit import Commit
from tiling.store import TileStore, make_array
from tiling.versions import versions
from wsi.errors import MicrotomeError

if TYPE_CHECKING:
    from tiling.blocks import Progress
    from tiling.tiles import ReadTiles

BATCH_SIZE = 32
"""Tiles per step. Larger ones are no faster on a CPU, and need more memory."""


def encode_slide(
    store: TileStore,
    encoder: Encoder,
    *,
    precision: Precision | None = None,
    batch_size: int = BATCH_SIZE,
    read_tiles: ReadTiles | None = None,
    progress: Progress | None = None,
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
    precision
        By default that of the features that are there already, else `best_precision` of the device: what
        one machine has finished, another one need not do again.
    batch_size
        Tiles per step. It may change the last bit of a feature, and is not part of the recipe.
    read_tiles
        Where tiles come from; see `tiling.tiles.tile_reader`. By default from the store.
    progress
        Called as tiles are finished.

    Raises
    ------
    MicrotomeError
        The encoder gave NaN or infinity, or numbers that float16 cannot hold; encoder and tile are named.
    RecipeError, DamagedError, UsageError
        See `TileStore.begin` and `TileStore.read_pixels`.
    """
    item = f"features/{encoder.key}"
    precision = precision or _precision_there(store, item) or best_precision(encoder.device)
    recipe = {
        "step": "features",
        "inputs": store.inputs("tiles"),
        "encoder": encoder.identity(),
        "precision": precision.value,
    }
    draft = store.begin(item, recipe)
    if draft is None:
        return store.require(item)
    shards = store.shards()
    array = make_array(
        draft,
        "",
        shape=(len(store), encoder.dim),
        rows_per_file=shards[0].stop,
        dtype=np.float16,
        fill=np.nan,
    )
    for rows in shards:
        part = f"features/{rows.start}"
        if part not in draft.parts:
            pixels = (read_tiles or store.read_pixels)(rows)
            with np.errstate(over="ignore"):  # becomes infinity, which is refused by name
                features = encode_tiles(encoder, pixels, precision=precision, batch_size=batch_size)
                values = _checked(features.astype(np.float16), rows, store, encoder)
            draft.finish_part(part, [array.write(rows, values)])
        if progress:
            progress(rows.stop, len(store))
    return draft.publish(
        {"tiles": len(store), "batch_size": batch_size, "versions": versions("torch", "timm")}
    )


def _precision_there(store: TileStore, item: str) -> Precision | None:
    commit = store.find(item)
    # Features that were imported from elsewhere state none.
    return Precision(commit.recipe["precision"]) if commit and "precision" in commit.recipe else None


def encode_tiles(
    encoder: Encoder, tiles: NDArray[np.uint8], *, precision: Precision, batch_size: int = BATCH_SIZE
) -> NDArray[np.float32]:
    """Encode ``(k, s, s, 3)`` uint8 RGB tiles to ``(k, dim)`` float32, a batch at a time."""
    batches = [tiles[start : start + batch_size] for start in range(0, len(tiles), batch_size)]
    features = [encoder(torch.from_numpy(batch), precision=precision).cpu().numpy() for batch in batches]
    return np.concatenate(features)


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
