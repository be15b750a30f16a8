"""Tiles encoded a second, against a plain loop over the same timm network.

    python -m benchmarks.encode [--device cuda] [--threads 2] [--compile] [--quick] [ENCODER ...]

Weights are drawn at random: they do not change the speed. Tiles have the network's input size, so that all
sides do the same work. The plain loop has its tiles ready as floats on the device, for nothing; it sends its
features back a batch at a time, as such loops do. Ours starts from uint8 tiles in memory, in a file of raw
tiles, or in a store, where the features are committed to disk as well. Ways take turns, and the best of
several rounds counts, so that other work on the machine disturbs all of them alike.

"Waits" is the share of the time from a file (or store) in which the device has nothing to do: what is
left when the same network is given tiles that are on the device already, batch after batch.

Needs torch, timm and numpy; the store is left out where zarr is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mil.device import Precision, best_batch_size, best_precision, choose_device
from mil.encoder import Encoder
from mil.encoders import untrained_encoder
from mil.feed import Pace, encode_blocks
from mil.networks.architecture import build
from mil.networks.compiled import compile_encoder

ON_ANY = ("efficientnet_lite0", "resnet50", "vit_small_patch16_224")
ON_A_GPU = ("uni",)
"""ViT-L/16 with 303 million weights: on a CPU it takes a second a tile."""
SHARD_BYTES = 48 << 20
"""As `tiling.recipe` has it, which cannot be imported without the slide readers."""

Way = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and for how long."""

    device: torch.device
    batch_size: int
    readers: int
    tiles: int
    """Encoded by each way in each turn; whole batches."""
    seconds: float
    """For all turns of one encoder; each way has one at least, after a batch to warm up."""
    compile: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("encoders", nargs="*", metavar="ENCODER", help="default: those of the table")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of torch, on a CPU")
    parser.add_argument("--readers", type=int, default=4, help="threads that read tiles")
    parser.add_argument("--batch-size", type=int, help="default 8 on a CPU, 128 on a GPU")
    parser.add_argument("--tiles", type=int, help="default 128 on a CPU, 4,096 on a GPU")
    parser.add_argument("--seconds", type=float, default=60, help="for each encoder")
    parser.add_argument("--compile", action="store_true", help="torch.compile, too; minutes more")
    parser.add_argument("--quick", action="store_true", help="half the tiles, 15 seconds for each encoder")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    on_gpu = device.type == "cuda"
    batch_size = options.batch_size or best_batch_size(device)
    tiles = (options.tiles or (4096 if on_gpu else 128)) // (2 if options.quick else 1)
    plan = Plan(
        device,
        batch_size,
        options.readers,
        -(-tiles // batch_size) * batch_size,
        15 if options.quick else options.seconds,
        options.compile,
    )
    what = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {options.threads} threads"
    print(f"{what}, torch {torch.__version__}, batches of {plan.batch_size}, {plan.tiles} tiles a turn.")
    print(f"Chosen by default here: {best_precision(device).value}\n")
    print("| encoder | way | tiles/s | against plain fp32 | against plain, same precision | waits | turns |")
    print("|---|---|---|---|---|---|---|")
    for name in options.encoders or (ON_ANY + ON_A_GPU if on_gpu else ON_ANY):
        with tempfile.TemporaryDirectory() as folder:
            report(name, measure(ways(name, plan, Path(folder)), plan))


# Ways -----------------------------------------------------------------------------------------------------


def ways(name: str, plan: Plan, folder: Path) -> dict[str, Way]:
    """Each encodes ``plan.tiles`` tiles; the last word of its name is its precision."""
    encoder = untrained_encoder(name, seed=0, device=str(plan.device))
    size = encoder.row.transform.input_size
    tiles = np.random.default_rng(0).integers(0, 256, (plan.tiles, size, size, 3), np.uint8)
    found: dict[str, Way] = {}
    precisions = list(Precision) if plan.device.type == "cuda" else [Precision.FP32, Precision.BF16]
    loop = plain_loop(encoder, plan)
    for precision in precisions:
        found[f"plain timm, {precision.value}"] = lambda p=precision: loop(p)
    for precision in precisions:
        found[f"ours from memory, {precision.value}"] = from_memory(encoder, tiles, precision, plan)
    best = best_precision(plan.device)
    if plan.compile:
        compiled = compile_encoder(encoder)
        found[f"ours from memory, compiled, {best.value}"] = from_memory(compiled, tiles, best, plan)
    found[f"ours on the device already, {best.value}"] = on_device(encoder, tiles, best, plan)
    found[f"ours from a file, {best.value}"] = from_file(encoder, tiles, best, plan, folder)
    if importlib.util.find_spec("zarr"):
        found[f"ours from store to store, {best.value}"] = from_store(encoder, tiles, best, plan, folder)
    return found


def plain_loop(encoder: Encoder, plan: Plan) -> Callable[[Precision], object]:
    """What one writes with timm alone."""
    plain = build(encoder.row).eval().to(plan.device)
    size = encoder.row.transform.input_size
    batch = torch.rand(plan.batch_size, 3, size, size, device=plan.device)

    def loop(precision: Precision) -> object:
        enabled = precision is not Precision.FP32
        with torch.inference_mode(), torch.autocast(plan.device.type, precision.autocast, enabled=enabled):
            return [plain(batch).cpu() for _ in range(plan.tiles // plan.batch_size)]

    return loop


def from_memory(encoder: Encoder, tiles: NDArray[np.uint8], precision: Precision, plan: Plan) -> Way:
    """uint8 tiles in memory to features in memory."""
    return lambda: take(encoder, tiles.__getitem__, tiles.shape[1], precision, plan, readers=1)


def on_device(encoder: Encoder, tiles: NDArray[np.uint8], precision: Precision, plan: Plan) -> Way:
    """Tiles that have come already, and features that are left there: the device alone."""
    batch = torch.from_numpy(tiles[: plan.batch_size]).to(plan.device)

    def encode() -> object:
        count = plan.tiles // plan.batch_size
        features = [encoder(batch, precision=precision) for _ in range(count)]
        return torch.cat(features).cpu()

    return encode


def from_file(
    encoder: Encoder, tiles: NDArray[np.uint8], precision: Precision, plan: Plan, folder: Path
) -> Way:
    """A file of raw tiles (in the page cache, as a store that was just cut is) to features in memory."""
    path = folder / "tiles.raw"
    tiles.tofile(path)
    size, bytes_a_tile = tiles.shape[1], tiles[0].size

    def read(rows: slice) -> NDArray[np.uint8]:
        count = rows.stop - rows.start
        found = np.fromfile(path, np.uint8, count * bytes_a_tile, offset=rows.start * bytes_a_tile)
        return found.reshape(count, size, size, 3)

    return lambda: take(encoder, read, size, precision, plan, readers=plan.readers)


def take(
    encoder: Encoder,
    read: Callable[[slice], NDArray[np.uint8]],
    size: int,
    precision: Precision,
    plan: Plan,
    *,
    readers: int,
) -> object:
    """All blocks, of as many tiles as a store's shards hold."""
    step = max(1, SHARD_BYTES // (3 * size * size))
    blocks = [slice(start, min(start + step, plan.tiles)) for start in range(0, plan.tiles, step)]
    pace = Pace(plan.batch_size, readers, max(1, (8 << 20) // (3 * size * size)))
    return list(encode_blocks(encoder, blocks, read, precision=precision, pace=pace))


def from_store(
    encoder: Encoder, tiles: NDArray[np.uint8], precision: Precision, plan: Plan, folder: Path
) -> Way:
    """All of `encode_slide`: a store's tiles to features that are committed to disk."""
    from mil.encode import encode_slide
    from tiling.codecs import Raw
    from tiling.grid import TileSpec
    from tiling.output import Output
    from tiling.recipe import CutRecipe
    from tiling.shards import array_metadata, shard_path, write_shard
    from tiling.store import TileStore, make_array
    from wsi.durable import make_folder, write_file

    cut = CutRecipe(spec=TileSpec(size_px=tiles.shape[1]))
    step = cut.shard_tiles
    store = TileStore(Output(folder / "out"), "slide")
    with store.output.lock():
        draft = store.begin("tiles", {"step": "tiles", "tiles_per_shard": step, **cut.settings()})
        assert draft is not None
        shape = (plan.tiles, 2)
        origins = make_array(draft, "origins", shape=shape, rows_per_file=shape[0], dtype=np.int32, fill=-1)
        origins.write_all(np.zeros(shape, np.int32))
        pixels = draft.folder / "pixels"
        make_folder(pixels)
        metadata = array_metadata(tiles.shape, shard_tiles=step, codec=Raw(), fill=255)
        write_file(pixels / "zarr.json", metadata)
        for start in range(0, plan.tiles, step):
            chunks = map(Raw().encode, tiles[start : start + step])
            write_shard(shard_path(pixels, start // step), chunks, slots=step)
        draft.publish({"tiles": plan.tiles})

    def encode() -> object:
        shutil.rmtree(store.path(f"features/{encoder.key}"), ignore_errors=True)
        sizes = {"batch_size": plan.batch_size, "readers": plan.readers}
        return encode_slide(store, encoder, precision=precision, **sizes)

    return encode


# Time -----------------------------------------------------------------------------------------------------


def measure(found: dict[str, Way], plan: Plan) -> dict[str, tuple[float, int]]:
    """Tiles a second of each way at its best, and how many turns it had."""
    best = dict.fromkeys(found, float("inf"))
    if plan.device.type == "cuda" or plan.compile:  # the first turn finds kernels and memory
        for encode in found.values():
            encode()
    turns, until = 0, time.perf_counter() + plan.seconds
    while turns == 0 or time.perf_counter() < until:
        for way, encode in found.items():
            best[way] = min(best[way], timed(encode, plan))
        turns += 1
    return {way: (plan.tiles / seconds, turns) for way, seconds in best.items()}


def timed(encode: Way, plan: Plan) -> float:
    if plan.device.type == "cuda":
        torch.cuda.synchronize(plan.device)
    start = time.perf_counter()
    encode()
    if plan.device.type == "cuda":
        torch.cuda.synchronize(plan.device)
    return time.perf_counter() - start


def report(name: str, speeds: dict[str, tuple[float, int]]) -> None:
    """Rows of the table."""
    fastest = next(speed for way, (speed, _) in speeds.items() if "on the device already" in way)
    for way, (speed, turns) in speeds.items():
        plain = speeds["plain timm, fp32"][0]
        same = speeds[f"plain timm, {way.rsplit(' ', 1)[1]}"][0]
        waits = f"{max(0.0, 1 - speed / fastest):.0%}" if "file" in way or "store" in way else ""
        ratios = f"{speed / plain:.2f} | {speed / same:.2f}"
        print(f"| {name} | {way} | {speed:,.1f} | {ratios} | {waits} | {turns} |", flush=True)


if __name__ == "__main__":
    main()
