"""Laws of a study: what would be refused in the end is refused before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mil import study
from mil.checkpoint import load_model
from mil.device import Precision
from mil.encode import encode_slide
from mil.encoder import Encoder
from mil.study import train_model
from mil.training import TrainingRecipe
from tiling.store import TileStore
from wsi.errors import RecipeError, UsageError

MakeStore = Callable[..., TileStore]
RECIPE = TrainingRecipe(settings={"hidden": 8, "attention": 4}, epochs=2)


@pytest.fixture
def train(tmp_path: Path, make_store: MakeStore, tiny_encoder: Encoder) -> Callable[[Path], Any]:
    """Train on three encoded slides, into a folder."""
    stores = [make_store(f"s{index}", seed=index) for index in range(3)]
    for store in stores:
        encode_slide(store, tiny_encoder, precision=Precision.FP32)
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label\ns0,normal\ns1,tumour\ns2,normal\n")

    def run(folder: Path) -> Any:
        return train_model(stores[0].output, labels, encoder="timm:test_vit", recipe=RECIPE, folder=folder)

    return run


@pytest.fixture
def no_fit(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, training is a failure of the test."""

    def forbidden(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("it was trained")

    return lambda: monkeypatch.setattr(study, "fit", forbidden)


def test_a_model_is_published_with_how_it_was_trained(train: Callable[[Path], Any], tmp_path: Path) -> None:
    model = train(tmp_path / "model")
    assert model == load_model(tmp_path / "model")[0]
    assert model.name == "model"
    assert model.classes == ("normal", "tumour")
    assert model.training["slides"] == ["s0", "s1", "s2"]
    assert model.training["tiles"] == 33


def test_a_folder_that_cannot_be_a_model_s_is_refused_before_training(
    train: Callable[[Path], Any], no_fit: Callable[[], None], tmp_path: Path
) -> None:
    train(tmp_path / "model")
    before = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    no_fit()
    with pytest.raises(RecipeError, match="a model is there already"):
        train(tmp_path / "model")
    assert {path: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    with pytest.raises(UsageError, match=r"'zarr\.json' cannot be a model's name"):
        train(tmp_path / "zarr.json")
    assert not (tmp_path / "zarr.json").exists()


def test_slides_that_were_not_made_alike_are_refused_before_training(
    train: Callable[[Path], Any],
    no_fit: Callable[[], None],
    tmp_path: Path,
    make_store: MakeStore,
    tiny_encoder: Encoder,
) -> None:
    odd = make_store("odd", stain=None)
    encode_slide(odd, tiny_encoder, precision=Precision.FP32)
    with (tmp_path / "labels.csv").open("a") as table:
        table.write("odd,tumour\n")
    no_fit()
    with pytest.raises(UsageError, match="'odd' and 's0' were not made alike"):
        train(tmp_path / "model")
