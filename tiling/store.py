"""`TileStore`: one slide's tiles, and everything computed from them, in one Zarr v3 group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from tiling.codecs import codec_from_json
from tiling.commit import Commit, Draft, begin, canonical, damaged, is_begun, join, read_commit
from tiling.differences import difference
from tiling.grid import TileSpec
from tiling.output import GROUP, ZARR_FOLDER, Output, item_path
from tiling.rows import RowReader, open_rows
from tiling.shards import ShardReader
from wsi.durable import make_folder, output_errors, write_file
from wsi.errors import RecipeError, UsageError

ALL = slice(None)
Rows = slice | Sequence[int] | NDArray[np.integer[Any]]
_STEPS = {
    "tissue": "tissue",
    "tiles": "tile",
    "qc": "tile",
    "features": "encode",
    "scores": "predict",
    "heatmaps": "heatmap",
    "reports": "report",
}
"""Which command makes an item."""


class TileStore:
    """One slide's results in an output folder. Reads committed items only.

    Items, by name: ``"tiles"``, ``"features/<encoder>"``, ``"scores/<model>"`` (in the Zarr group),
    ``"tissue"``, ``"qc"``, ``"heatmaps/<model>"``, ``"reports/<model>"`` (files beside it).

    Parameters
    ----------
    output
        The output folder. Writing needs its lock, reading does not.
    slide_id
        Name of the slide; see `tiling.manifest`.
    overwrite
        Replace items that another recipe made, once the new ones are complete.
    run
        What names this run, where several processes share the parts of an item; see `tiling.commit.begin`.

    Raises
    ------
    UsageError
        The id cannot be a folder name.
    """

    def __init__(
        self, output: Output, slide_id: str, *, overwrite: bool = False, run: str | None = None
    ) -> None:
        self.output = output
        self.folder = output.slide_folder(slide_id)
        self.slide_id = self.folder.name
        self.overwrite = overwrite
        self.run = run

    def __repr__(self) -> str:
        return f"<TileStore {self.slide_id!r} in {str(self.output.root)!r}>"

    # Items -----------------------------------------------------------------------------------------------

    def path(self, item: str) -> Path:
        """Folder of an item, whether it is there or not."""
        return item_path(self.folder, item)

    def find(self, item: str) -> Commit | None:
        """The item's commit, or None; `DamagedError` where its files are not as committed."""
        return read_commit(self.path(item))

    def require(self, item: str) -> Commit:
        """The item's commit, sure to have been computed from what is there now.

        Raises
        ------
        UsageError
            It is not there; the message says which step makes it.
        RecipeError
            It, or what it was computed from, was computed from something that has been replaced since.
        DamagedError
            See `find`.
        """
        commit = self.find(item)
        if commit is None:
            step = _STEPS.get(item.split("/")[0], "run")
            raise UsageError(
                f"slide {self.slide_id!r} has no {item} in this output",
                path=self.output.root,
                action=f"Run 'microtome {step}' first",
            )
        for name, digest in commit.recipe.get("inputs", {}).items():
            if self.require(name).digest != digest:
                raise RecipeError(
                    f"{item} of slide {self.slide_id!r} was computed from other {name} than are there now",
                    path=self.output.root,
                    action=f"Run 'microtome {_STEPS.get(item.split('/')[0], 'run')}' again with --overwrite",
                )
        return commit

    def inputs(self, *items: str) -> dict[str, str]:
        """Digests of the items that another one is computed from, for its recipe."""
        return {item: self.require(item).digest for item in items}

    def begin(self, item: str, recipe: Mapping[str, Any]) -> Draft | None:
        """Start or go on making an item; None where this recipe already made it.

        Raises
        ------
        RecipeError
            Another recipe made what is there, and `overwrite` is off.
        DamagedError
            What is there is damaged; see `tiling.ensure`.
        """
        path = self.path(item)
        self._make_groups(path.parent)
        commit = self.find(item)
        if commit is not None and commit.recipe == recipe:
            return None
        if commit is not None and not self.overwrite:
            raise RecipeError(
                f"{item} of slide {self.slide_id!r} was made with {difference(commit.recipe, recipe)}",
                path=self.output.root,
                action="Use the same settings, another -o, or --overwrite to replace it",
            )
        return begin(path, recipe, work=self.output.work, run=self.run)

    def is_begun(self, item: str, recipe: Mapping[str, Any]) -> bool:
        """Whether it is being made by this recipe, by whomever, or was when its process died."""
        return is_begun(self.path(item), recipe, work=self.output.work)

    def join(self, item: str, recipe: Mapping[str, Any], *, helper: str) -> Draft:
        """Help to make an item that another process of this run has begun; see `tiling.commit.join`."""
        return join(self.path(item), recipe, work=self.output.work, helper=helper, run=self.run)

    def _make_groups(self, folder: Path) -> None:
        """Zarr group metadata on the way down to an item, each written whole; mended where it is broken."""
        make_folder(folder)
        make_folder(self.output.work)
        root = self.folder / ZARR_FOLDER
        while folder.is_relative_to(root):
            group = folder / "zarr.json"
            if not (group.is_file() and group.read_bytes() == GROUP):
                write_file(group, GROUP, work=self.output.work)
            folder = folder.parent

    # Tiles -----------------------------------------------------------------------------------------------

    @property
    def tiles(self) -> Commit:
        """Commit of the tiles: recipe and record; `UsageError` where there are none of this version."""
        commit = self.require("tiles")
        if "pixels" not in commit.recipe:
            raise UsageError(
                f"the tiles of slide {self.slide_id!r} were stored by an earlier version in another way",
                path=self.output.root,
                action="Run 'microtome tile' again with --overwrite",
            )
        return commit

    @property
    def record(self) -> Mapping[str, Any]:
        """What was found when the slide was cut: size, stain, counts, versions."""
        return self.tiles.record

    @property
    def spec(self) -> TileSpec:
        """Size, resolution and overlap of the tiles."""
        return TileSpec(**self.tiles.recipe["spec"])

    @property
    def origins(self) -> NDArray[np.int32]:
        """``(n, 2)`` level-0 (x, y) of each tile's top-left corner, in raster order."""
        return np.asarray(self._read("tiles", "origins"), np.int32)

    @property
    def tissue(self) -> NDArray[np.float32]:
        """``(n,)`` share of each tile that is tissue."""
        return np.asarray(self._read("tiles", "tissue"), np.float32)

    @property
    def quality(self) -> NDArray[np.float32] | None:
        """``(n, measures)`` as `record["measures"]` names them; None for tiles of another tool's files."""
        if not self.record["measures"]:
            return None
        return np.asarray(self._read("tiles", "quality"), np.float32)

    def dropped(self) -> tuple[NDArray[np.int32], list[str]]:
        """``(m, 2)`` level-0 (x, y) of the places on tissue that hold no tile, and why each does not."""
        record = self.record
        if not record["dropped"]:
            return np.empty((0, 2), np.int32), []
        reasons = self._read("tiles", "dropped_reasons").tolist()
        origins = np.asarray(self._read("tiles", "dropped_origins"), np.int32)
        return origins, [record["reasons"][reason] for reason in reasons]

    def __len__(self) -> int:
        return int(self.record["tiles"])

    def shards(self) -> list[slice]:
        """Row ranges of the shards: the unit in which tiles are cut, encoded and resumed."""
        tiles = self.tiles
        step, count = int(tiles.recipe["tiles_per_shard"]), int(tiles.record["tiles"])
        return [slice(i, min(i + step, count)) for i in range(0, count, step)]

    @property
    def has_pixels(self) -> bool:
        """Whether the tiles' pixels are stored; else `tiling.tiles` reads them from the slide."""
        return self.tiles.recipe["pixels"] is not None

    def read_pixels(self, rows: Rows, *, pool: Executor | None = None) -> NDArray[np.uint8]:
        """``(k, size, size, 3)`` uint8 RGB of some tiles, normalised as the recipe says.

        Parameters
        ----------
        rows
            A range of tiles, or their numbers in any order.
        pool
            Threads to share the work.

        Raises
        ------
        UsageError
            The tiles were cut without pixels.
        DamagedError
            A shard is gone or cut, or its checksum does not fit.
        """
        reader = self.open_pixels()
        try:
            return reader.read(rows, pool=pool)
        except (ValueError, OSError) as error:
            raise damaged(self.path("tiles"), f"pixels cannot be read: {error}") from error

    def open_pixels(self) -> ShardReader:
        """A reader for many small reads: the item is checked now, and not at every read.

        Raises
        ------
        UsageError, DamagedError
            See `read_pixels`.
        """
        tiles = self.tiles
        if tiles.recipe["pixels"] is None:
            raise UsageError(
                f"the tiles of slide {self.slide_id!r} were cut without pixels",
                path=self.output.root,
                action="Read them from the slide, or cut it with pixels",
            )
        size = int(tiles.recipe["spec"]["size_px"])
        return ShardReader(
            self.path("tiles") / "pixels",
            shape=(int(tiles.record["tiles"]), size, size, 3),
            shard_tiles=int(tiles.recipe["tiles_per_shard"]),
            codec=codec_from_json(tiles.recipe["pixels"]),
        )

    def lazy_pixels(self) -> Any:
        """All tiles as a dask array, a chunk per shard, read through `read_pixels`."""
        import dask.array as da  # here: only who asks for it pays for the import

        size = self.spec.size_px
        blocks = [
            da.from_delayed(
                dask_delayed(self.read_pixels)(rows), (rows.stop - rows.start, size, size, 3), np.uint8
            )
            for rows in self.shards()
        ]
        return da.concatenate(blocks)

    # What was computed from them -------------------------------------------------------------------------

    def features(self, encoder: str) -> NDArray[np.float16]:
        """``(n, d)`` float16, one row a tile, by the encoder of that key."""
        return self.open_features(encoder).read()

    def open_features(self, encoder: str) -> RowReader:
        """A reader of some rows at a time: the item is checked now, and not at every read."""
        self.require(f"features/{encoder}")
        return open_rows(self.path(f"features/{encoder}"))

    def scores(self, model: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """``(n, classes)`` tile scores and ``(n,)`` attention, by the model of that key."""
        item = f"scores/{model}"
        return (
            np.asarray(self._read(item, "scores"), np.float32),
            np.asarray(self._read(item, "attention"), np.float32),
        )

    def uncertainty(self, model: str) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """``(n,)`` uncertainty and ``(n,)`` disagreement of each tile, both from 0 to 1; see `mil.predict`.

        None for scores of before there was any, which stay as they are.
        """
        item = f"scores/{model}"
        if "uncertainty/zarr.json" not in self.require(item).files:
            return None
        return (
            np.asarray(self._read(item, "uncertainty"), np.float32),
            np.asarray(self._read(item, "disagreement"), np.float32),
        )

    def _read(self, item: str, name: str = "", rows: slice = ALL) -> NDArray[Any]:
        """Rows of an array. `require` has a look at every file first: no hole can be read as zeros."""
        self.require(item)
        folder = self.path(item)
        try:
            array = zarr.open_array(LocalStore(folder / name, read_only=True), mode="r")
            return np.asarray(array[rows])
        except (ValueError, OSError, RuntimeError) as error:  # a bad checksum may come as any of these
            raise damaged(folder, f"{name or 'rows'} cannot be read: {error}") from error


def scores_by(store: TileStore, model: str, weights_sha256: str | None) -> Commit:
    """The commit of a model's scores, sure to be by these weights if they are given.

    Raises
    ------
    UsageError, RecipeError, DamagedError
        See `TileStore.require`; and `RecipeError` where another model of that name made them.
    """
    commit = store.require(f"scores/{model}")
    if weights_sha256 and commit.recipe["model"]["weights_sha256"] != weights_sha256:
        raise RecipeError(
            f"the scores of slide {store.slide_id!r} are by another model of the name {model!r}",
            path=store.output.root,
            action="Run 'microtome predict' with this model and --overwrite",
        )
    return commit


def scored_models(store: TileStore) -> list[str]:
    """Models whose scores a slide has, whole or damaged, sorted."""
    folder = store.path("scores")
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def judges_tiles(scores: Commit) -> bool:
    """Whether scores are by a model that judges tiles, and so has no verdict on the slide."""
    return bool(scores.recipe["model"].get("judges") == "tiles")


def dask_delayed(function: Any) -> Any:
    """`dask.delayed` without hashing the arguments: the name need not be reproducible."""
    import dask

    return dask.delayed(function, pure=False)


@dataclass(frozen=True, slots=True)
class DraftArray:
    """An array of an item that is being made; its first axis is tiles, in files of `rows_per_file`."""

    draft: Draft
    name: str
    rows_per_file: int
    array: zarr.Array[Any]

    def write(self, rows: slice, values: NDArray[Any]) -> Path:
        """Write one file's rows, once; returns the file, for `Draft.finish_part`."""
        if rows.start % self.rows_per_file or rows.stop != min(
            rows.start + self.rows_per_file, self.array.shape[0]
        ):
            raise ValueError(f"rows {rows.start} to {rows.stop} are not one file's")
        with output_errors(self.draft.item):
            self.array[rows] = values
        zeros = ["0"] * (self.array.ndim - 1)
        return self.draft.folder.joinpath(self.name, "c", str(rows.start // self.rows_per_file), *zeros)

    def write_all(self, values: NDArray[Any]) -> None:
        """Write all rows of a small array."""
        with output_errors(self.draft.item):
            self.array[:] = values


def make_array(
    draft: Draft,
    name: str,
    *,
    shape: tuple[int, ...],
    rows_per_file: int,
    dtype: type[np.generic],
    fill: float,
) -> DraftArray:
    """Create one array of an item; with an empty name the item itself is the array.

    Who joined a draft opens what its owner has created.

    `fill` must be a value that real data do not have, such as NaN: a hole then shows. Chunks carry checksums.
    Half floats hardly shrink: unpacking them would be most of reading them. Pixels: see `tiling.shards`.
    """
    with output_errors(draft.item):
        if draft.helper:
            opened = zarr.open_array(store=LocalStore(draft.folder), path=name, mode="r+")
            return DraftArray(draft, name, rows_per_file, opened)
        array = zarr.create_array(
            store=LocalStore(draft.folder),  # as text, zarr may take a path for an address
            name=name or None,
            shape=shape,
            chunks=(rows_per_file, *shape[1:]),
            dtype=dtype,
            fill_value=fill,
            compressors=Crc32cCodec() if dtype is np.float16 else ZstdCodec(level=1, checksum=True),
            config={"write_empty_chunks": True},  # a missing file is then always damage
        )
    return DraftArray(draft, name, rows_per_file, array)


def write_group(draft: Draft, *, attributes: Mapping[str, Any]) -> None:
    """Make the item a Zarr group; `attributes` tell any Zarr reader what it holds."""
    content = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
    write_file(draft.folder / "zarr.json", canonical(content))
