"""What storing tiles costs, and reading them at random: our shards against zarr, zarrs, tensorstore and HDF5.

    pip install zarrs tensorstore h5py  # each of them may be missing: its rows are left out
    python -m benchmarks.storage        # tiles of a slide drawn for the purpose
    python -m benchmarks.storage --slides a.svs b.svs --seconds 90

Prints Markdown. Tiles are of 256 px at 0.5 µm, normalised as `microtome tile` does it; a random batch is 64
tiles out of all. Ways take turns, and the best round of each counts, so that other work on the machine
disturbs all of them alike. Files stay in the page cache: what is compared is work, not disks. Our writing
includes checksums, the SHA-256 of the file and its sync; that of the others is what they do by themselves.
All lossless ways are checked to give the same pixels back.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

from tiling.codecs import Jpeg, Raw, TileCodec, Zstd
from tiling.cut import select_tiles
from tiling.grid import TileSpec, lay_grid
from tiling.recipe import CutRecipe
from tiling.shards import ShardReader, array_metadata, shard_path, write_shard
from tiling.stain import Macenko
from tiling.versions import versions
from tiling.zarr_jpeg import ZarrJpeg, register_jpeg
from wsi.slide import Slide
from wsi.synthetic import write_huge_slide
from wsi.tissue import find_tissue

SPEC = TileSpec(size_px=256, mpp=0.5)
SHARD = 256
"""Tiles: 48 MiB of pixels."""
BATCH = 64
MOST_TILES = 768
LEAST_ROUNDS = 3

Bytes = NDArray[np.uint8]
Read = Callable[[NDArray[np.intp]], Bytes]


@dataclass(frozen=True)
class Way:
    """A store: how it is written into a folder, and how it is opened to read rows."""

    name: str
    write: Callable[[Path, Bytes], None]
    open: Callable[[Path, tuple[int, ...]], Read]
    lossless: bool = True


@dataclass
class Cost:
    """The least seconds for a tile in any round."""

    write_cpu: float = np.inf
    write_wall: float = np.inf
    read_cpu: float = np.inf
    read_wall: float = np.inf
    size: int = 0


# The ways ---------------------------------------------------------------------------------------------------


def our_way(codec: TileCodec, *, threads: int = 1) -> Way:
    """Encoding in `threads` threads, the file written as tiles come."""

    def write(folder: Path, tiles: Bytes) -> None:
        metadata = array_metadata(tiles.shape, shard_tiles=SHARD, codec=codec, fill=255)
        (folder / "zarr.json").write_bytes(metadata)
        with ThreadPoolExecutor(threads) as pool:
            encode = map if threads == 1 else pool.map
            for shard, start in enumerate(range(0, len(tiles), SHARD)):
                chunks = encode(codec.encode, tiles[start : start + SHARD])
                write_shard(shard_path(folder, shard), chunks, slots=SHARD)

    def open_(folder: Path, shape: tuple[int, ...]) -> Read:
        reader = ShardReader(folder, shape=shape, shard_tiles=SHARD, codec=codec)
        pool = ThreadPoolExecutor(threads) if threads > 1 else None
        return lambda rows: reader.read(rows, pool=pool)

    name = f"Microtome `{codec}`" + (f", {threads} threads" if threads > 1 else "")
    return Way(name, write, open_, lossless=not isinstance(codec, Jpeg))


def zarr_way(name: str, pipeline: str, *, serializer: Any, compressors: list[Any], lossless: bool) -> Way:
    """zarr-python's interface, with its own codec pipeline or another; written a shard at a time."""

    def create(folder: Path, shape: tuple[int, ...]) -> zarr.Array[Any]:
        return zarr.create_array(
            folder,
            shape=shape,
            chunks=(1, *shape[1:]),
            shards=(SHARD, *shape[1:]),
            dtype=np.uint8,
            fill_value=255,
            serializer=serializer,
            compressors=compressors,
            overwrite=True,
        )

    def write(folder: Path, tiles: Bytes) -> None:
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            array = create(folder, tiles.shape)
            for start in range(0, len(tiles), SHARD):
                array[start : start + SHARD] = tiles[start : start + SHARD]

    def open_(folder: Path, _shape: tuple[int, ...]) -> Read:
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            array = zarr.open_array(folder, mode="r")

        def read(rows: NDArray[np.intp]) -> Bytes:
            with zarr.config.set({"codec_pipeline.path": pipeline}):
                # Tile by tile: `array.oindex[rows]` takes twenty times as long on shards.
                return np.stack([np.asarray(array[row]) for row in rows.tolist()])

        return read

    return Way(name, write, open_, lossless)


def tensorstore_way(name: str, codec: TileCodec) -> Way:
    def opened(folder: Path, shape: tuple[int, ...] | None) -> Any:
        import tensorstore

        spec: dict[str, Any] = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}}
        if shape:
            content = json.loads(array_metadata(shape, shard_tiles=SHARD, codec=codec, fill=255))
            content.pop("storage_transformers")
            spec |= {"metadata": content, "create": True, "delete_existing": True}
        return tensorstore.open(spec).result()

    def write(folder: Path, tiles: Bytes) -> None:
        array = opened(folder, tiles.shape)
        for start in range(0, len(tiles), SHARD):
            stop = min(start + SHARD, len(tiles))
            array[start:stop].write(tiles[start:stop]).result()

    def open_(folder: Path, _shape: tuple[int, ...]) -> Read:
        array = opened(folder, None)
        return lambda rows: np.asarray(array[rows].read().result())

    return Way(name, write, open_)


def hdf5_way(name: str, **filters: Any) -> Way:
    """The layout that CLAM writes images in: a tile a chunk. Read in the fastest way that h5py has."""

    def write(folder: Path, tiles: Bytes) -> None:
        import h5py

        with h5py.File(folder / "tiles.h5", "w") as file:
            data = file.create_dataset("imgs", tiles.shape, np.uint8, chunks=(1, *tiles.shape[1:]), **filters)
            for row, tile in enumerate(tiles):
                data[row] = tile

    def open_(folder: Path, shape: tuple[int, ...]) -> Read:
        import h5py

        data = h5py.File(folder / "tiles.h5", "r")["imgs"]

        def read(rows: NDArray[np.intp]) -> Bytes:
            out = np.empty((len(rows), *shape[1:]), np.uint8)
            for place in np.argsort(rows):
                data.read_direct(out, np.s_[rows[place]], np.s_[place])
            return out

        return read

    return Way(name, write, open_)


def all_ways() -> list[Way]:
    """Each of the peers that is installed; the others are named."""
    own, rust = "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline"
    raw = {"serializer": BytesCodec(), "compressors": [Crc32cCodec()], "lossless": True}
    zstd = raw | {"compressors": [ZstdCodec(level=1), Crc32cCodec()]}
    jpeg = {"serializer": ZarrJpeg(level=90), "compressors": [Crc32cCodec()], "lossless": False}
    ways = [our_way(codec) for codec in (Raw(), Zstd(1), Jpeg(80), Jpeg(90), Jpeg(95))]
    ways += [our_way(codec, threads=2) for codec in (Raw(), Zstd(1), Jpeg(90))]
    ways += [
        zarr_way(f"zarr-python, shards, {name}", own, **chain)
        for name, chain in (("raw", raw), ("zstd 1", zstd), ("JPEG 90", jpeg))
    ]
    if installed("zarrs"):
        ways += [
            zarr_way(f"zarrs, shards, {name}", rust, **chain)
            for name, chain in (("raw", raw), ("zstd 1", zstd))
        ]
    if installed("tensorstore"):
        ways += [tensorstore_way("tensorstore, shards, raw", Raw())]
        ways += [tensorstore_way("tensorstore, shards, zstd 1", Zstd(1))]
    if installed("h5py"):
        ways += [
            hdf5_way("h5py, chunk a tile, none"),
            hdf5_way("h5py, chunk a tile, gzip 4", compression="gzip"),
        ]
    return ways


def installed(name: str) -> bool:
    found = importlib.util.find_spec(name) is not None
    if not found:
        print(f"{name} is not installed: left out")
    return found


# Measuring --------------------------------------------------------------------------------------------------


def take_turns(ways: list[Way], tiles: Bytes, root: Path, *, seconds: float) -> dict[str, Cost]:
    """The least that each way cost in any round; every second round goes backwards."""
    end, rounds = time.monotonic() + seconds, 0
    costs = {way.name: Cost() for way in ways}
    order = np.random.default_rng(0).permutation(len(tiles))
    batches = np.array_split(order, max(1, len(order) // BATCH))
    while rounds < LEAST_ROUNDS or time.monotonic() < end:
        for way in ways if rounds % 2 == 0 else reversed(ways):
            once(way, tiles, batches, root, costs[way.name])
        rounds += 1
    print(f"{rounds} rounds\n")
    return costs


def once(way: Way, tiles: Bytes, batches: list[NDArray[np.intp]], root: Path, cost: Cost) -> None:
    folder = root / "store"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    cpu, wall = timed(lambda: way.write(folder, tiles), units=len(tiles))
    cost.write_cpu, cost.write_wall = min(cost.write_cpu, cpu), min(cost.write_wall, wall)
    cost.size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    read = way.open(folder, tiles.shape)
    if way.lossless:
        np.testing.assert_array_equal(read(batches[0]), tiles[batches[0]], err_msg=way.name)
    cpu, wall = timed(lambda: [read(rows) for rows in batches], units=len(tiles))
    cost.read_cpu, cost.read_wall = min(cost.read_cpu, cpu), min(cost.read_wall, wall)


def timed(work: Callable[[], object], units: int) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return (time.process_time() - cpu) / units, (time.perf_counter() - wall) / units


def fidelity(tiles: Bytes) -> list[tuple[int, float, int, float, float]]:
    """Of JPEG: quality, mean and largest error in grey levels, peak signal to noise in dB, size."""
    found = []
    out = np.empty_like(tiles[0])
    for quality in (80, 90, 95):
        codec, total, squares, most, size = Jpeg(quality), 0, 0, 0, 0
        for tile in tiles:
            data = codec.encode(tile)
            codec.decode(data, out)
            error = np.abs(out.astype(np.int32) - tile)
            total, squares = total + int(error.sum()), squares + int(np.square(error).sum())
            most, size = max(most, int(error.max())), size + len(data)
        noise = 10 * np.log10(255**2 * tiles.size / squares)
        found.append((quality, total / tiles.size, most, noise, size / tiles.nbytes))
    return found


def tissue_tiles(path: Path) -> Bytes:
    """Tiles with tissue, spread over the slide, normalised as `cut_slide` does it."""
    size = (SPEC.size_px, SPEC.size_px)
    with Slide(path) as slide:
        resolution = slide.require_resolution()
        grid = lay_grid(slide.size, resolution, SPEC)
        origins, _ = select_tiles(grid, find_tissue(slide), min_tissue=CutRecipe().min_tissue)
        some = origins[np.linspace(0, len(origins) - 1, min(MOST_TILES, len(origins))).astype(int)]
        tiles = [slide.read(x, y, size=size, mpp=SPEC.mpp) for x, y in some.tolist()]
    normalizer = Macenko().fit(np.concatenate([tile[::8, ::8].reshape(-1, 3) for tile in tiles]))
    print(f"\n### {path.name}: {len(tiles)} tiles, {len(tiles) * 3 * SPEC.size_px**2 / 1e6:.0f} MB\n")
    return np.stack([normalizer(tile) for tile in tiles])


# Printing ---------------------------------------------------------------------------------------------------


def print_costs(costs: dict[str, Cost], tiles: Bytes) -> None:
    megabytes = tiles[0].nbytes / 1e6
    print("| store | CPU ms to write a tile | MB written per CPU-s | per s | size ", end="")
    print("| tiles read at random per CPU-s | per s |\n|---|---|---|---|---|---|---|")
    for name, cost in costs.items():
        print(
            f"| {name} | {1e3 * cost.write_cpu:.2f} | {megabytes / cost.write_cpu:,.0f} "
            f"| {megabytes / cost.write_wall:,.0f} | {cost.size / tiles.nbytes:.2f} "
            f"| {1 / cost.read_cpu:,.0f} | {1 / cost.read_wall:,.0f} |"
        )


def print_fidelity(tiles: Bytes) -> None:
    print("\n| JPEG quality | mean error | largest | PSNR, dB | size |\n|---|---|---|---|---|")
    for quality, mean, most, noise, size in fidelity(tiles):
        print(f"| {quality} | {mean:.2f} | {most} | {noise:.1f} | {size:.3f} |")


def print_machine() -> None:
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    print(
        f"{model or platform.processor()}, {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} at the start"
    )
    packages = versions("imagecodecs", "simplejpeg", "google-crc32c", "zarrs", "tensorstore", "h5py")
    found = [f"{name} {number}" for name, number in packages.items() if number != "not installed"]
    print(", ".join([f"Python {platform.python_version()}", *found]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--slides", type=Path, nargs="+", metavar="PATH", help="default: one is drawn")
    parser.add_argument("--seconds", type=float, default=60, help="to spend on each slide (default 60)")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    register_jpeg()
    print_machine()
    ways = all_ways()
    with tempfile.TemporaryDirectory() as folder:
        slides = options.slides
        if not slides:
            drawn = Path(folder) / "synthetic.svs"
            slides = [write_huge_slide(drawn, size=(40_000, 30_000), tissue_px=12_288)]
        for path in slides:
            tiles = tissue_tiles(path)
            costs = take_turns(ways, tiles, Path(folder), seconds=options.seconds)
            print_costs(costs, tiles)
            print_fidelity(tiles)


if __name__ == "__main__":
    main()
