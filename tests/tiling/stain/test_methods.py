"""The laws that hold for every stain method."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tiling.grid import TileSpec, lay_grid
from tiling.stain import (
    METHODS,
    Macenko,
    MacenkoNormalizer,
    Reinhard,
    ReinhardNormalizer,
    StainError,
    StainMethod,
    Unmixer,
    Vahadane,
    VahadaneNormalizer,
    method_from_json,
    normalizer_from_json,
)
from wsi.errors import UsageError
from wsi.pen import PENS
from wsi.slide import Slide
from wsi.tissue import HlsThresholds, find_tissue

MakeTile = Callable[..., NDArray[np.uint8]]
every_method = pytest.mark.parametrize("method", [m() for m in METHODS.values()], ids=list(METHODS))
INKS = {"green": (40, 160, 70), "blue": (20, 40, 180), "red": (220, 15, 25), "black": (25, 22, 28)}


def one_colour(density: tuple[float, float, float], *, noise: float = 0.0) -> NDArray[np.uint8]:
    """One stain in all concentrations, with as much noise as a scanner or JPEG leaves in."""
    rng = np.random.default_rng(0)
    light = 240 * np.exp(-np.outer(rng.uniform(0.3, 1.5, 20_000), density)) - 1
    return np.clip(light + noise * rng.standard_normal(light.shape), 0, 255).round().astype(np.uint8)


@every_method
def test_fitting_does_not_depend_on_the_order_of_pixels_to_the_bit(
    method: StainMethod, stained_tile: MakeTile
) -> None:
    pixels = stained_tile(7).reshape(-1, 3)
    assert (
        method.fit(pixels) == method.fit(np.random.default_rng(0).permutation(pixels)) == method.fit(pixels)
    )


@every_method
def test_a_tile_comes_out_the_same_alone_and_in_a_batch(method: StainMethod, stained_tile: MakeTile) -> None:
    tiles = np.stack([stained_tile(i, size=32) for i in range(6)]).reshape(2, 3, 32, 32, 3)
    fitted = method.fit(stained_tile(0).reshape(-1, 3))
    batch = fitted(tiles)
    assert batch.shape == tiles.shape
    assert batch.dtype == np.uint8
    for i, j in np.ndindex(2, 3):
        assert (batch[i, j] == fitted(tiles[i, j])).all()
        if isinstance(fitted, Unmixer):
            assert (fitted.concentrations(tiles)[i, j] == fitted.concentrations(tiles[i, j])).all()


@every_method
def test_a_slide_aimed_at_itself_keeps_its_colours(method: StainMethod, stained_tile: MakeTile) -> None:
    tile = stained_tile(3)
    fitted = method.aimed_at(tile.reshape(-1, 3)).fit(tile.reshape(-1, 3))
    kept = np.ones(tile.shape[:2], bool)
    if isinstance(fitted, VahadaneNormalizer):  # has no negative stain: colours beyond its two are not kept
        kept = (fitted.concentrations(tile) > 0).all(axis=-1)
    assert kept.mean() > 0.4
    # The unmixing methods take log(I + 1), as published, and do not take the 1 off again.
    assert np.abs(fitted(tile).astype(int) - tile)[kept].max() <= 2


@every_method
def test_a_slide_aimed_at_another_gets_its_colours(method: StainMethod, stained_tile: MakeTile) -> None:
    """Fitted on what it was made into, a method finds the other slide's numbers."""
    other = stained_tile(4, stains=np.array([[0.56, 0.22], [0.72, 0.80], [0.41, 0.56]]))
    aimed = method.aimed_at(other.reshape(-1, 3))
    tile = stained_tile(5)
    found = method.fit(aimed.fit(tile.reshape(-1, 3))(tile).reshape(-1, 3)).as_json()
    wanted = method.fit(other.reshape(-1, 3)).as_json()
    for key in found.keys() & {"stains", "maxima"}:
        assert np.allclose(found[key], wanted[key], atol=0.05), key
    for key in found.keys() & {"mean", "deviation"}:
        assert np.allclose(found[key], wanted[key], atol=0.6), key


@every_method
def test_json_gives_the_same_values_back(method: StainMethod, stained_tile: MakeTile) -> None:
    pixels = stained_tile(1).reshape(-1, 3)
    for one in (method, method.aimed_at(stained_tile(2).reshape(-1, 3))):
        assert method_from_json(json.loads(json.dumps(one.as_json()))) == one
        fitted = one.fit(pixels)
        again = normalizer_from_json(json.loads(json.dumps(fitted.as_json())))
        assert again == fitted
        assert hash(again) == hash(fitted)
        assert pickle.loads(pickle.dumps(fitted)) == fitted


@every_method
def test_a_target_is_part_of_the_recipe(method: StainMethod, stained_tile: MakeTile) -> None:
    aimed = method.aimed_at(stained_tile(2).reshape(-1, 3))
    assert aimed != method
    assert aimed.as_json() != method.as_json()
    tile = stained_tile(1)
    assert (aimed.fit(tile.reshape(-1, 3))(tile) != method.fit(tile.reshape(-1, 3))(tile)).any()


def test_the_default_recipe_is_stored_as_ever() -> None:
    stored = {"method": "Macenko", "light": 240.0, "min_density": 0.15, "percentile": 1.0}
    assert Macenko().as_json() == {**stored, "target": None}
    assert method_from_json(stored) == Macenko()  # an early recipe names no target


@pytest.mark.parametrize(
    "content",
    [
        {"method": "Khan"},
        {},
        {"method": "Macenko", "alpha": 1.0},
        {"method": "Reinhard", "target": {"mean": [1, 2]}},
    ],
)
def test_an_unknown_method_is_refused(content: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="not known"):
        method_from_json(content)
    with pytest.raises(UsageError, match="not known"):
        normalizer_from_json(content)


@every_method
@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((50_000, 3), 255, np.uint8), "stained pixels"),
        (one_colour((0.6, 0.7, 0.4))[:1500], "stained pixels"),
        (np.zeros((0, 3), np.uint8), "stained pixels"),
        (np.full((50_000, 3), 128, np.uint8), "one stain"),
        (np.full((50_000, 3), 0, np.uint8), "one stain"),
        (one_colour((0.6, 0.6, 0.6)), "one stain"),
        (one_colour((0.6, 0.6, 0.6), noise=2), "one stain"),
        (one_colour((0.65, 0.70, 0.29)), "one stain"),
        (one_colour((0.65, 0.70, 0.29), noise=2), "one stain"),
        (one_colour((0.27, 0.57, 0.78), noise=2), "one stain"),
    ],
    ids=["white", "few", "none", "one grey", "black", "greys", "noisy greys", "H", "noisy H", "noisy DAB"],
)
def test_what_shows_no_two_stains_is_refused(
    method: StainMethod, pixels: NDArray[np.uint8], reason: str
) -> None:
    with pytest.raises(StainError, match=reason):
        method.fit(pixels)


@every_method
@pytest.mark.parametrize("ink", INKS.values(), ids=list(INKS))
def test_ink_and_glass_change_nothing(
    method: StainMethod, ink: tuple[int, int, int], stained_tile: MakeTile
) -> None:
    pixels = stained_tile(6).reshape(-1, 3)
    rng = np.random.default_rng(0)
    stroke = np.clip(rng.normal(ink, 4, (len(pixels) // 20, 3)), 0, 255).astype(np.uint8)
    assert method.fit(np.concatenate([stroke, pixels])) == method.fit(pixels)


def test_glass_has_no_part_in_the_stains_or_the_moments(stained_tile: MakeTile) -> None:
    pixels = stained_tile(6).reshape(-1, 3)
    both = np.concatenate([pixels, np.full((5000, 3), 238, np.uint8)])
    assert Macenko().fit(both).stains == Macenko().fit(pixels).stains
    assert Vahadane().fit(both).stains == Vahadane().fit(pixels).stains
    assert Reinhard().fit(both) == Reinhard().fit(pixels)


def test_a_stain_of_a_pens_colour_is_no_ink(stained_tile: MakeTile) -> None:
    """Giemsa is blue all over, and dense DAB ends in black."""
    giemsa = stained_tile(8, stains=np.array([[0.95, 0.45], [0.70, 0.70], [0.08, 0.20]])).reshape(-1, 3)
    giemsa = giemsa[giemsa.max(axis=1) < 200]
    blue = (giemsa[:, 2].astype(int) - giemsa[:, 0] >= PENS[1].chroma) & (giemsa[:, 1] < giemsa[:, 2])
    assert blue.mean() > 0.3
    rng = np.random.default_rng(1)
    amounts = np.stack([rng.uniform(0, 0.6, 40_000), rng.gamma(2, 0.7, 40_000)])
    # DAB with nickel is a grey stain; its counterstain is eosin here.
    dab = 240 * np.exp(-(np.array([[0.15, 0.55], [0.95, 0.58], [0.28, 0.60]]) @ amounts)).T - 1
    grey = np.clip(dab, 0, 255).round().astype(np.uint8)
    assert 0.01 < ((grey.max(axis=1) < 60) & (np.ptp(grey, axis=1) < 24)).mean() < 0.2
    for pixels in (giemsa, grey):
        density = -np.log((pixels.astype(float) + 1) / 240)
        fitted = Macenko().fit(pixels)
        amounts = np.linalg.lstsq(np.array(fitted.stains).T, density.T, rcond=None)[0]
        assert np.allclose(fitted.maxima, np.percentile(amounts, 99, axis=1))


@pytest.mark.parametrize("method", [Macenko(), Vahadane()], ids=["macenko", "vahadane"])
def test_a_pure_stain_is_all_of_one_and_none_of_the_other(
    method: Macenko | Vahadane, stained_tile: MakeTile
) -> None:
    fitted = method.fit(stained_tile(9).reshape(-1, 3))
    for which, stain in enumerate(fitted.stains):
        amounts = np.linspace(0, 1.5, 64)
        density = amounts[:, None] * np.array(stain)
        tile = np.clip(fitted.light * np.exp(-density) - 1, 0, 255).round().astype(np.uint8)[None]
        found = fitted.concentrations(tile)[0]
        assert found.dtype == np.float32
        assert np.abs(found[:, which] - amounts).max() < 0.04  # a grey level of rounding, in the dark
        assert found[:, 1 - which].max() < 0.05
        assert found.min() >= 0


@pytest.fixture(scope="module")
def real_tile(data_dir: Path) -> NDArray[np.uint8]:
    """A piece of a real section of H&E, without ink."""
    with Slide(data_dir / "slides" / "small" / "metaplasia-HE-q4.svs") as slide:
        mask = find_tissue(slide, HlsThresholds())
        mpp = slide.require_resolution().mpp
        grid = lay_grid(slide.size, slide.require_resolution(), TileSpec(size_px=256, mpp=mpp))
        origins = grid.origins()
        share = mask.fraction(origins, width=grid.tile[0], height=grid.tile[1])
        x, y = origins[share.argmax()].tolist()
        return slide.read(x, y, size=(256, 256), mpp=mpp)


def test_equals_torchstain_on_a_real_section(real_tile: NDArray[np.uint8]) -> None:
    theirs = pytest.importorskip("torchstain.numpy.normalizers")
    pixels = real_tile.reshape(-1, 3)
    macenko, _, _ = theirs.NumpyMacenkoNormalizer().normalize(real_tile, stains=False)
    assert np.abs(Macenko().fit(pixels)(real_tile).astype(int) - macenko).max() <= 1
    tissue = Reinhard(min_density=0.0)  # torchstain has no notion of glass
    reinhard = theirs.NumpyReinhardNormalizer()
    reference = np.ascontiguousarray(real_tile[::-1, ::2]) // 2 + 100
    reinhard.fit(reference)
    ours = tissue.aimed_at(reference.reshape(-1, 3)).fit(pixels)(real_tile)
    assert np.abs(ours.astype(int) - reinhard.normalize(real_tile)).max() <= 2


@every_method
def test_haematoxylin_of_a_real_section_absorbs_the_red(
    method: StainMethod, real_tile: NDArray[np.uint8]
) -> None:
    fitted = method.fit(real_tile.reshape(-1, 3))
    if isinstance(fitted, MacenkoNormalizer | VahadaneNormalizer):
        haematoxylin, eosin = fitted.stains
        assert haematoxylin[0] > eosin[0]
        assert haematoxylin[1] < eosin[1]
        # Dark nuclei hold more haematoxylin than the pale rest does.
        amounts, red = fitted.concentrations(real_tile)[..., 0], real_tile[..., 0]
        assert amounts[red < np.percentile(red, 10)].mean() > 2 * amounts[red > np.median(red)].mean()
    else:
        assert isinstance(fitted, ReinhardNormalizer)
        assert fitted.mean[1] > 0 > fitted.mean[2]  # purple
