"""What stain normalisation costs: fitting a slide, and normalising its tiles, against other implementations.

    export OPENBLAS_NUM_THREADS=1
    python -m benchmarks.stain               # tiles drawn for the purpose
    python -m benchmarks.stain --slide a.svs

Prints Markdown: CPU milliseconds for a fit on 262,144 pixels (64 tiles of 4096, as cutting does), and
megapixels per CPU-second of tiles of 256 px, on one thread. The best round of each counts, ways taking turns.
"NumPy" is the published method step by step in float64. torchstain fits anew on each tile that it normalises,
so its megapixels are both at once; its fit is the one of the reference.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torchstain.numpy.normalizers import NumpyMacenkoNormalizer, NumpyReinhardNormalizer
from torchstain.numpy.utils.lab2rgb import lab2rgb
from torchstain.numpy.utils.rgb2lab import rgb2lab

from tiling.grid import TileSpec, lay_grid
from tiling.stain import METHODS, ColourTarget, HedJitter, StainTarget
from tiling.stain.macenko import MacenkoNormalizer
from tiling.stain.reinhard import ReinhardNormalizer
from tiling.stain.vahadane import VahadaneNormalizer
from wsi.slide import Slide
from wsi.tissue import HlsThresholds, find_tissue

Bytes = NDArray[np.uint8]
Work = Callable[[], object]

FIT_PIXELS = 262_144
TILES = 32


def drawn_tiles() -> Bytes:
    """(TILES, 256, 256, 3): two stains in blobs, with noise."""
    rng = np.random.default_rng(0)
    stains = np.array([[0.60, 0.15], [0.72, 0.95], [0.35, 0.28]])
    blobs = rng.random((2, TILES, 32, 32)).repeat(8, 2).repeat(8, 3)
    amounts = np.stack([blobs[0] ** 3 * 2.0, 0.2 + blobs[1] * 0.9]) + rng.random((2, TILES, 256, 256)) * 0.05
    light = 240 * np.exp(-np.tensordot(stains, amounts, 1)) + rng.normal(0, 2, (3, TILES, 256, 256)) - 1
    return np.ascontiguousarray(np.moveaxis(np.clip(light, 0, 255), 0, -1).round(), np.uint8)


def slide_tiles(path: Path) -> Bytes:
    """Tiles of 256 px at 0.5 µm, spread over a slide's tissue."""
    with Slide(path) as slide:
        grid = lay_grid(slide.size, slide.require_resolution(), TileSpec(size_px=256, mpp=0.5))
        mask, origins = find_tissue(slide, HlsThresholds()), grid.origins()
        origins = origins[mask.fraction(origins, width=grid.tile[0], height=grid.tile[1]) >= 0.5]
        chosen = origins[np.linspace(0, len(origins) - 1, TILES).round().astype(int)]
        return np.stack([slide.read(x, y, size=(256, 256), mpp=0.5) for x, y in chosen.tolist()])


def numpy_macenko(tile: Bytes, fitted: MacenkoNormalizer) -> Bytes:
    target = StainTarget()
    density = -np.log((tile.reshape(-1, 3).astype(float) + 1) / fitted.light)
    amounts = np.linalg.lstsq(np.array(fitted.stains).T, density.T, rcond=None)[0]
    amounts *= (np.array(target.maxima) / np.array(fitted.maxima))[:, None]
    out = fitted.light * np.exp(-np.array(target.stains).T @ amounts)
    return np.clip(out, 0, 255).T.reshape(tile.shape).astype(np.uint8)


def numpy_vahadane(tile: Bytes, fitted: VahadaneNormalizer) -> Bytes:
    target, stains = StainTarget(), np.array(fitted.stains).T
    density = -np.log((tile.reshape(-1, 3).astype(float) + 1) / fitted.light)
    free = np.linalg.lstsq(stains, density.T, rcond=None)[0]
    single = np.maximum(stains.T @ density.T, 0)
    single = np.where(single >= single.max(axis=0), single, 0)
    amounts = np.where((free >= 0).all(axis=0), free, single)
    amounts *= (np.array(target.maxima) / np.array(fitted.maxima))[:, None]
    out = fitted.light * np.exp(-np.array(target.stains).T @ amounts)
    return np.clip(out, 0, 255).T.reshape(tile.shape).astype(np.uint8)


def numpy_reinhard(tile: Bytes, fitted: ReinhardNormalizer) -> Bytes:
    target = ColourTarget()
    scale, shift = np.array([2.55, 1, 1]), np.array([0.0, 128, 128])
    lab = (rgb2lab(tile / 255) - shift) / scale
    lab = (lab - fitted.mean) / fitted.deviation * target.deviation + target.mean
    return (lab2rgb(lab * scale + shift) * 255).astype(np.uint8)


def best(ways: dict[str, Work], seconds: float) -> dict[str, float]:
    """CPU seconds of the best round of each way."""
    found = dict.fromkeys(ways, np.inf)
    end, rounds = time.monotonic() + seconds, 0
    while rounds < 3 or time.monotonic() < end:
        for name, work in ways.items():
            start = time.process_time()
            work()
            found[name] = min(found[name], time.process_time() - start)
        rounds += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slide", type=Path, help="a slide of H&E (default: tiles drawn for the purpose)")
    parser.add_argument("--seconds", type=float, default=20, help="for each of the two tables' measurements")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    tiles = slide_tiles(options.slide) if options.slide else drawn_tiles()
    flat = tiles.reshape(-1, 3)
    pixels = flat[np.linspace(0, len(flat) - 1, FIT_PIXELS).astype(int)]
    fitted = {name: method().fit(pixels) for name, method in METHODS.items()}
    by_numpy = {"macenko": numpy_macenko, "vahadane": numpy_vahadane, "reinhard": numpy_reinhard}
    theirs = {"macenko": NumpyMacenkoNormalizer(), "reinhard": NumpyReinhardNormalizer()}
    image = pixels.reshape(512, 512, 3)
    for other in theirs.values():
        other.fit(image)
    few = tiles[:2]  # float64 takes its time

    fits: dict[str, Work] = {name: lambda m=method: m().fit(pixels) for name, method in METHODS.items()}
    fits |= {f"{name} torchstain": lambda o=other: o.fit(image) for name, other in theirs.items()}
    fit_cost = best(fits, options.seconds)

    ways: dict[str, Work] = {name: lambda f=f: f(tiles) for name, f in fitted.items()}
    ways |= {f"{n} numpy": lambda n=n: [by_numpy[n](t, fitted[n]) for t in few] for n in METHODS}
    ways["macenko torchstain"] = lambda: [theirs["macenko"].normalize(t, stains=False) for t in few]
    ways["reinhard torchstain"] = lambda: [theirs["reinhard"].normalize(t) for t in few]
    ways["concentrations"] = lambda: fitted["macenko"].concentrations(tiles)
    jitter, rng = HedJitter(), np.random.default_rng(0)
    ways["HED jitter"] = lambda: jitter(tiles, rng)
    cost = best(ways, options.seconds)

    def speed(name: str) -> str:
        count = len(few) if " " in name and name != "HED jitter" else len(tiles)
        return f"{count * 256 * 256 / 1e6 / cost[name]:.0f}" if name in cost else "none"

    print("| method | fit, ms | torchstain's fit, ms | MP/CPU-s | NumPy float64 | torchstain |")
    print("|---|---|---|---|---|---|")
    for name in METHODS:
        other = fit_cost.get(f"{name} torchstain")
        row = [f"{fit_cost[name] * 1e3:.0f}", f"{other * 1e3:.0f}" if other else "none", speed(name)]
        print(f"| {name} | {' | '.join([*row, speed(name + ' numpy'), speed(name + ' torchstain')])} |")
    print(
        f"\nHED jitter {speed('HED jitter')} MP/CPU-s; concentration maps {speed('concentrations')} MP/CPU-s."
    )
    names = ("numpy", "opencv-python-headless", "torchstain")
    print(f"\nPython {platform.python_version()}, " + ", ".join(f"{n} {version(n)}" for n in names))


if __name__ == "__main__":
    main()
