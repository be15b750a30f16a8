"""Laws of META folders: what was trained is read back to the bit, and what is damaged is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mil.bags import Bag, each_alone
from mil.checkpoint import Judges, describe, load_model, save_model
from mil.features import FeatureRecipe
from mil.fewshot.meta import Learners, Meta, curves_to_csv, load_learner, load_meta, on_device
from mil.fewshot.methods import Support
from mil.fewshot.pool import Pool, pool_of
from mil.fewshot.recipe import KINDS, MetaRecipe
from mil.fewshot.study import Sides, train_meta
from mil.fewshot.training import front_of
from mil.heads import build_head
from mil.networks.weights import digest_state
from tiling.grid import TileSpec
from wsi.errors import UsageError

DIM = 4
FEATURES = FeatureRecipe(
    encoder={"name": "timm:test_vit", "dim": DIM, "weights": "untrained seed 1"},
    spec=TileSpec(size_px=128, mpp=0.5),
    stain=None,
    tissue={"method": "Otsu"},
    min_tissue=0.25,
    quality={},
    pixels=None,
    exact=False,
)
RECIPE = MetaRecipe(
    kinds=("reptile", "scratch", "proto_maml"),
    settings={"hidden": 5},
    ways=3,
    shots=(1,),
    queries=2,
    iterations=3,
    tasks_per_step=2,
    learn_rates=True,
    look_every=2,
    validation_tasks=2,
)


def make_pool(classes: list[str]) -> Pool:
    rng = np.random.default_rng(len(classes))
    return pool_of(
        [
            Bag(
                f"p{patient}-{label}-{number}",
                (rng.normal(size=(1, DIM)) + label).astype(np.float32),
                np.zeros((1, 2), np.int32),
                label,
                f"p{patient}",
            )
            for patient in range(3)
            for label in range(len(classes))
            for number in range(2)
        ],
        classes=classes,
    )


SIDES = Sides(make_pool(["a", "b", "c", "d"]), make_pool(["e", "f", "g"]), ("e", "f", "g"), ("h",))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Meta]:
    folder = tmp_path_factory.mktemp("learners") / "meta"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mil.fewshot.training._TUNED", ((2, 0.1),))
        return folder, train_meta(SIDES, FEATURES, folder=folder, recipe=RECIPE)


@pytest.fixture
def meta(trained: tuple[Path, Meta], tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(trained[0], tmp_path / "meta"))


def test_a_card_is_read_back_as_it_was_written(trained: tuple[Path, Meta]) -> None:
    folder, made = trained
    found, _ = load_meta(folder)
    assert found == made
    assert found.as_json() == json.loads((folder / "meta.json").read_bytes())
    assert (found.judges, found.base_classes) == (Judges.TILES, ("a", "b", "c", "d"))
    assert found.validation_classes == ("e", "f", "g")
    assert found.training["novel_classes"] == ["h"]
    assert found.patients == ("p0", "p1", "p2")
    assert found.recipe == RECIPE


def test_all_that_adapts_is_read_back_to_the_bit(trained: tuple[Path, Meta]) -> None:
    folder, made = trained
    state = torch.get_rng_state()
    _, learners = load_meta(folder)
    assert torch.equal(state, torch.get_rng_state())
    names = [method.name for method in learners.methods]
    assert names == ["prototypes", "logistic", *(name for name in KINDS if name in RECIPE.kinds)]
    assert torch.equal(learners.centre, torch.from_numpy(SIDES.base.mean()))
    front = front_of(SIDES.base, RECIPE.components)
    for method in learners.stepping:
        again = load_learner(folder, method.name, recipe=RECIPE, front=front)
        assert method.front
        assert digest_state(method.front.state_dict()) == digest_state(front.state_dict())
        assert again.method.steps == method.steps == made.training["steps"][method.name]
        assert again.accuracy == made.training["validation_accuracy"][method.name]
        assert (method.last_layer, method.last_only) == (
            again.method.last_layer,
            KINDS[method.name].last_only,
        )
        assert not method.head.training


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_every_way_of_one_meta_learns_any_number_of_classes(trained: tuple[Path, Meta], classes: int) -> None:
    _, learners = load_meta(trained[0])
    rng = np.random.default_rng(classes)
    features = torch.from_numpy(rng.normal(size=(3 * classes, DIM)).astype(np.float32))
    support = Support(each_alone(features), torch.arange(classes).repeat(3), classes)
    before = [{n: v.clone() for n, v in one.head.state_dict().items()} for one in learners.stepping]
    for method in learners.methods:
        (logits,) = method.judge([support], [support.bags])
        assert logits.shape == (3 * classes, classes)
        with torch.no_grad():
            said = method.fit(support)(support.bags).logits
        torch.testing.assert_close(said, logits, rtol=1e-4, atol=1e-5)
    for one, state in zip(learners.stepping, before, strict=True):
        assert all(torch.equal(state[name], value) for name, value in one.head.state_dict().items())


def test_curves_are_told_look_by_look(trained: tuple[Path, Meta]) -> None:
    folder, _ = trained
    lines = (folder / "curves.csv").read_text().splitlines()
    assert lines[0] == "learner,step,loss,accuracy,best"
    assert [line.split(",")[:2] for line in lines[1:]] == [
        [name, step] for name in ("reptile", "proto_maml") for step in ("2", "3")
    ]
    front = front_of(SIDES.base, RECIPE.components)
    names = [name for name in KINDS if name in RECIPE.kinds]
    learners = [load_learner(folder, name, recipe=RECIPE, front=front) for name in names]
    assert curves_to_csv(learners) == (folder / "curves.csv").read_bytes()


FILES = [
    "meta.json",
    "statistics.safetensors",
    "reptile.safetensors",
    "reptile.json",
    "curves.csv",
    "environment.json",
    "commit.json",
]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_refused_and_the_file_named(meta: Path, name: str) -> None:
    path = meta / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UsageError) as refused:
        load_meta(meta)
    assert name in str(refused.value)
    assert "Copy the folder again" in str(refused.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(meta: Path, name: str) -> None:
    (meta / name).unlink()
    with pytest.raises(UsageError) as refused:
        load_meta(meta)
    assert "microtome fewshot train" in str(refused.value)
    assert str(meta) in str(refused.value)


def test_a_model_is_no_meta_and_a_meta_no_model(meta: Path, tmp_path: Path) -> None:
    head = build_head("mean", dim=DIM, classes=2, settings={"hidden": 3})
    model = tmp_path / "model"
    save_model(model, head, describe(head, name="model", classes=("x", "y"), features=FEATURES))
    with pytest.raises(UsageError, match="is a trained model, not meta-trained learners"):
        load_meta(model)
    with pytest.raises(UsageError, match=r"model\.json"):
        load_model(meta)


def test_what_is_no_meta_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        load_meta(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        load_meta(tmp_path / "file")
    with pytest.raises(UsageError, match="holds no meta-trained learners"):
        load_meta(tmp_path)


def test_a_card_of_another_version_is_refused(trained: tuple[Path, Meta], tmp_path: Path) -> None:
    from mil.fewshot.meta import _read_card

    content = json.loads((trained[0] / "meta.json").read_bytes())
    path = tmp_path / "meta.json"
    for change, what in (
        ({"format": 99}, "another version than 1"),
        ({"judges": "cells"}, "unreadable"),
        ({"recipe": {}}, "unreadable"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(UsageError, match=what) as refused:
            _read_card(path)
        assert str(path) in str(refused.value)


def test_moved_learners_say_the_same(trained: tuple[Path, Meta], monkeypatch: pytest.MonkeyPatch) -> None:
    """All tensors go along; `meta`, a device without numbers, shows which are left behind."""
    _, learners = load_meta(trained[0])
    same = on_device(learners, torch.device("cpu"))
    assert [one.name for one in same.methods] == [one.name for one in learners.methods]
    moved: Learners = on_device(learners, torch.device("meta"))
    for one in moved.stepping:
        assert one.front
        tensors = [*one.parameters.values(), *one.log_rates.values(), *one.front.buffers()]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.centre.device.type == "meta"
    assert isinstance(moved.stepping[0].head, nn.Module)


def test_a_recipe_may_name_learners_in_any_order(trained: tuple[Path, Meta], tmp_path: Path) -> None:
    folder, made = trained
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mil.fewshot.training._TUNED", ((2, 0.1),))
        other = train_meta(
            SIDES,
            FEATURES,
            folder=tmp_path / "meta",
            recipe=replace(RECIPE, kinds=tuple(reversed(RECIPE.kinds))),
        )
    assert other.learners == made.learners
    assert (tmp_path / "meta" / "curves.csv").read_bytes() == (folder / "curves.csv").read_bytes()
