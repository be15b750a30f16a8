"""Laws of adapting: marks become a whole model that says what it rests on, and corrections make it better."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mil.bags import each_alone
from mil.checkpoint import Judges, load_model, weights_file
from mil.features import FeatureRecipe, read_bag
from mil.fewshot import adapting, choosing
from mil.fewshot.adapting import Adapted, AdaptRecipe, adapt_to_slides, adapt_to_tiles
from mil.fewshot.recipe import MetaRecipe
from mil.fewshot.sources import labelled_tile_pool, slide_pool
from mil.fewshot.study import Sides, train_meta
from mil.gate import Gate
from mil.labels import LabelTable, read_labels
from mil.predict import predict_bag
from tiling.marks import read_marks
from tiling.output import Output
from tiling.store import TileStore, make_array
from wsi.errors import RecipeError, UsageError

SIDE, COLUMNS, ROWS, DIM, KEY = 64, 12, 8, 6, "enc"
TUMOR, NORMAL, ODD = range(3)
"""Kinds of tissue, in columns 0 to 3, 4 to 7 and 8 to 11; the odd one is tumour that looks otherwise."""
KIND = np.arange(COLUMNS * ROWS) % COLUMNS // 4
CENTRES = np.array([[3, 0, 0, 0, 0, 0], [0, 0, 2, 0, 0, 0], [0, 0, 2, 2.5, 0, 0]], float)
Area = tuple[int, int, int, int]
AREAS: Mapping[str, list[Area]] = {
    "Tumor": [(0, 0, 2, 2), (1, 4, 3, 2)],
    "Normal": [(4, 0, 2, 2), (5, 5, 3, 2)],
}
"""(column, row, columns, rows) of what is marked by class."""


def make_store(
    root: Path, slide_id: str, *, seed: int = 0, weights: str = "sha256:0", encoded: bool = True
) -> TileStore:
    """96 tiles of 64 level-0 px, whose features tell the kind of tissue."""
    store = TileStore(Output(root / "out"), slide_id)
    recipe = {
        "step": "tiles",
        "spec": {"size_px": 32, "mpp": 0.5, "overlap_px": 0},
        "stain": None,
        "tissue": {"method": "Otsu"},
        "min_tissue": 0.25,
        "quality": {},
        "pixels": None,
        "exact": False,
    }
    with store.output.lock():
        draft = store.begin("tiles", recipe)
    assert draft is not None
    origins = np.array([(x, y) for y in range(ROWS) for x in range(COLUMNS)], np.int32) * SIDE
    places = make_array(draft, "origins", shape=origins.shape, rows_per_file=96, dtype=np.int32, fill=-1)
    places.write_all(origins)
    draft.publish(
        {
            "tiles": len(origins),
            "slide_size": [COLUMNS * SIDE, ROWS * SIDE],
            "bounds_origin": [0, 0],
            "tile_level0": [float(SIDE), float(SIDE)],
            "measures": [],
            "reasons": [""],
            "dropped": {},
        }
    )
    if not encoded:
        return store
    values = CENTRES[KIND] + np.random.default_rng(seed).normal(0, 0.6, (96, DIM))
    encoder = {"name": KEY, "dim": DIM, "weights": weights}
    draft = store.begin(f"features/{KEY}", {"inputs": store.inputs("tiles"), "encoder": encoder})
    assert draft is not None
    array = make_array(draft, "", shape=values.shape, rows_per_file=96, dtype=np.float16, fill=np.nan)
    array.write_all(values.astype(np.float16))
    draft.publish({})
    return store


def annotate(path: Path, areas: Mapping[str, list[Area]] = AREAS) -> Path:
    features: list[dict[str, Any]] = []
    for name, blocks in areas.items():
        for column, row, wide, high in blocks:
            left, top, right, bottom = (SIDE * v for v in (column, row, column + wide, row + high))
            ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
            said = {"objectType": "annotation", "classification": {"name": name}}
            geometry = {"type": "Polygon", "coordinates": [ring]}
            features.append({"type": "Feature", "geometry": geometry, "properties": said})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


RECIPE = MetaRecipe(
    kinds=("maml", "proto_maml"),
    settings={"hidden": 8},
    ways=2,
    shots=(2,),
    queries=2,
    iterations=6,
    tasks_per_step=2,
    inner_rate=0.3,
    look_every=6,
    validation_tasks=2,
)


def write_table(path: Path, rows: str) -> LabelTable:
    path.write_text("slide_id,label,patient\n" + rows)
    return read_labels(path, to_train=False)


@pytest.fixture(scope="module")
def metas(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Learners of tiles and learners of slides, from slides of two kinds by four patients each."""
    root = tmp_path_factory.mktemp("metas")
    names = [f"base-{number}" for number in range(8)]
    stores = {name: make_store(root, name, seed=10 + number) for number, name in enumerate(names)}
    rows = "".join(f"{name},{'xy'[number % 2]},p{number}\n" for number, name in enumerate(names))
    table = write_table(root / "labels.csv", rows)
    found = {}
    for what, make in (("tiles", labelled_tile_pool), ("slides", slide_pool)):
        pool, features = make(stores, table, encoder=KEY)
        apart = pool.patient_ids[:4]
        sides = Sides(pool.only(patients=pool.patient_ids[4:]), pool.only(patients=apart), ())
        recipe = RECIPE
        if what == "slides":
            recipe = replace(RECIPE, head="gated_abmil", settings={"hidden": 8, "attention": 4}, shots=(1,))
            recipe = replace(recipe, queries=1)
        found[what] = root / what
        with pytest.MonkeyPatch.context() as patch:  # what is tried at most is taken again for each mark
            patch.setattr("mil.fewshot.training._STEPS_TRIED", (1, 2))
            train_meta(sides, features, folder=found[what], recipe=recipe)
    return found


Adapt = Callable[..., Adapted]


@pytest.fixture
def adapt(tmp_path: Path, metas: Mapping[str, Path]) -> Adapt:
    """Adapt to what is marked on the slide of this test."""
    stores: dict[str, TileStore] = {}

    def run(
        areas: Mapping[str, list[Area]] = AREAS,
        *others: Mapping[str, list[Area]],
        meta: str = "tiles",
        name: str = "adapted",
        overwrite: bool = False,
        **recipe: Any,
    ) -> Adapted:
        marked = []
        for number, one in enumerate((areas, *others)):
            slide_id = f"slide-{number}"
            if slide_id not in stores:
                stores[slide_id] = make_store(tmp_path, slide_id, seed=number)
            store = stores[slide_id]
            marked.append((store, read_marks(annotate(tmp_path / f"{slide_id}.geojson", one), store)))
        folder = tmp_path / "out" / "models" / name
        return adapt_to_tiles(
            marked, meta=metas[meta], folder=folder, recipe=AdaptRecipe(**recipe), overwrite=overwrite
        )

    return run


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def says(root: Path, slide_id: str = "slide-0", name: str = "adapted") -> NDArray[np.int64]:
    """Which class each tile scores highest in."""
    model, ensemble = load_model(root / "out" / "models" / name)
    bag = read_bag(TileStore(Output(root / "out"), slide_id), KEY)
    scores = predict_bag(ensemble, bag).tile_scores
    return np.array([model.classes[label] == "Tumor" for label in scores.argmax(axis=1)], np.int64)


# What comes of marks -------------------------------------------------------------------------------------


def test_a_few_marks_become_a_model_that_says_what_it_rests_on(adapt: Adapt, tmp_path: Path) -> None:
    adapted = adapt()
    model, ensemble = load_model(tmp_path / "out" / "models" / "adapted")
    assert adapted.made
    assert model == adapted.model
    assert (model.name, model.classes, model.judges) == ("adapted", ("Normal", "Tumor"), Judges.TILES)
    assert model.training["class_counts"] == {"Normal": 10, "Tumor": 10}
    assert model.training["slides"] == ["slide-0"]
    assert model.training["learner"] == adapted.choice.picked.method.name
    assert model.training["why"] == adapted.choice.why
    assert model.training["adapted_from"]["name"] == "tiles"
    assert len(ensemble.members) == len(adapted.choice.folds) == 4  # regions
    assert model.calibration is not None
    assert set(model.calibration.temperatures) == {adapted.choice.picked.temperature}
    tumour = (KIND == TUMOR).astype(int)
    usual = KIND != ODD
    assert (says(tmp_path)[usual] == tumour[usual]).mean() > 0.9


def test_what_was_marked_and_tried_stands_beside_the_model(adapt: Adapt, tmp_path: Path) -> None:
    choice = adapt().choice
    folder = tmp_path / "out" / "models" / "adapted"
    support = read_table(folder / "support.csv")
    assert len(support) == 20
    for row in support:
        column = int(row["x"]) // SIDE
        assert row["label"] == ("Tumor" if column < 4 else "Normal")
        chances = [float(row[f"probability: {name}"]) for name in ("Normal", "Tumor")]
        assert abs(sum(chances) - 1) < 1e-9
        assert row["fold_says"] == ("Normal", "Tumor")[int(np.argmax(chances))]
    told = read_table(folder / "choice.csv")
    assert [row["learner"] for row in told] == ["prototypes", "logistic", "maml", "proto_maml"]
    assert [row["learner"] for row in told if row["picked"] == "1"] == [choice.picked.method.name]
    assert all(float(row["balanced_accuracy"]) <= choice.picked.balanced_accuracy for row in told)


def test_each_member_has_not_learnt_from_the_tiles_that_it_judged(adapt: Adapt, tmp_path: Path) -> None:
    choice = adapt().choice
    _, ensemble = load_model(tmp_path / "out" / "models" / "adapted")
    bag = read_bag(TileStore(Output(tmp_path / "out"), "slide-0"), KEY)
    support = read_table(tmp_path / "out" / "models" / "adapted" / "support.csv")
    rows = np.array([int(row["y"]) // SIDE * COLUMNS + int(row["x"]) // SIDE for row in support])
    for member, (_, judged) in zip(ensemble.members, choice.folds, strict=True):
        features = torch.from_numpy(bag.features[rows[judged]].astype(np.float32))
        with torch.no_grad():
            said = member(each_alone(features)).logits
        np.testing.assert_allclose(choice.picked.logits[judged], said, rtol=1e-3, atol=1e-3)


def test_correcting_what_is_wrong_makes_it_better_where_nobody_marked(adapt: Adapt, tmp_path: Path) -> None:
    truth = (KIND != NORMAL).astype(int)
    adapt()
    before = says(tmp_path)
    wrong = np.flatnonzero(before != truth)
    assert (KIND[wrong] == ODD).all()  # nobody has told it yet
    assert len(wrong) > 16
    corrected = {**AREAS, "Tumor": [*AREAS["Tumor"], (8, 0, 2, 2), (9, 5, 2, 2)]}
    adapt(corrected, overwrite=True)
    unmarked = np.ones((ROWS, COLUMNS), bool)
    for blocks in corrected.values():
        for column, row, wide, high in blocks:
            unmarked[row : row + high, column : column + wide] = False
    kept = unmarked.ravel()
    accuracy = [float((said == truth)[kept].mean()) for said in (before, says(tmp_path))]
    assert accuracy[1] > accuracy[0] + 0.15
    assert accuracy[1] > 0.9


def test_marks_on_two_slides_count_together(adapt: Adapt, tmp_path: Path) -> None:
    second = {"Tumor": [(0, 6, 2, 1)], "Other": [(8, 0, 2, 2), (8, 4, 1, 2)]}
    model = adapt(AREAS, second).model
    assert model.classes == ("Normal", "Other", "Tumor")
    assert model.training["class_counts"] == {"Normal": 10, "Other": 6, "Tumor": 12}
    assert model.training["slides"] == ["slide-0", "slide-1"]
    assert set(model.training["annotations"]) == {"slide-0", "slide-1"}


def test_of_more_tiles_than_are_wanted_each_region_of_each_slide_gives_as_many(
    adapt: Adapt, tmp_path: Path
) -> None:
    many = {"Tumor": [(0, 0, 4, 4), (0, 5, 2, 1)], "Normal": [(4, 0, 4, 2), (4, 6, 4, 2)]}
    adapt(many, {"Tumor": [(0, 0, 4, 2)]}, most=6)
    rows = read_table(tmp_path / "out" / "models" / "adapted" / "support.csv")
    counts = [
        sum(
            row["label"] == "Tumor" and row["slide_id"] == slide and low <= int(row["y"]) < high
            for row in rows
        )
        for slide, low, high in (("slide-0", 0, 300), ("slide-0", 300, 999), ("slide-1", 0, 999))
    ]
    assert counts == [2, 2, 2]
    assert sum(row["label"] == "Normal" for row in rows) == 6


def test_the_same_marks_give_the_same_bytes_and_no_generator_is_touched(adapt: Adapt, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    first = adapt()
    folder = tmp_path / "out" / "models" / "adapted"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = adapt()
    assert (first.made, again.made) == (True, False)
    assert again.model == first.model
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert adapt(name="other").model.members == first.model.members
    assert torch.equal(state, torch.get_rng_state())


def test_no_meta_is_changed_by_being_used(adapt: Adapt, metas: Mapping[str, Path]) -> None:
    before = {path.name: path.read_bytes() for path in metas["tiles"].iterdir()}
    adapt(learner="maml")
    adapt(learner="proto_maml", name="other")
    assert {path.name: path.read_bytes() for path in metas["tiles"].iterdir()} == before


# Again ---------------------------------------------------------------------------------------------------

MORE = {**AREAS, "Normal": [(4, 0, 3, 3), (5, 5, 3, 2)]}


def test_another_model_is_replaced_only_with_overwrite_and_nothing_of_it_stays(
    adapt: Adapt, tmp_path: Path
) -> None:
    first = adapt().model
    folder = tmp_path / "out" / "models" / "adapted"
    with pytest.raises(RecipeError, match="made of other marks") as refused:
        adapt(MORE)
    assert "--overwrite" in str(refused.value)
    assert "--name" in str(refused.value)
    assert load_model(folder)[0] == first
    three = {"Normal": [(4, 0, 2, 1), (4, 4, 2, 1)], "Tumor": [(0, 0, 2, 1)]}
    assert len(adapt(three, overwrite=True).choice.folds) == 6
    assert (folder / weights_file(5)).is_file()
    adapt(MORE, overwrite=True)
    assert not (folder / weights_file(4)).exists()
    model, _ = load_model(folder)
    assert model.training["class_counts"]["Normal"] == 15
    assert adapt(MORE, gate=Gate(0.9), overwrite=True).made


@pytest.mark.parametrize("point", ["before-commit", "before-publish", "old-away", "after-rename"])
def test_a_model_is_there_whole_or_not_at_all_whenever_the_power_goes(
    adapt: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    first = adapt().model
    folder = tmp_path / "out" / "models" / "adapted"

    class PowerError(Exception):
        """The power is gone."""

    def crash(name: str) -> None:
        if name == point:
            raise PowerError

    with monkeypatch.context() as patch:
        patch.setattr("tiling.commit.crash_point", crash)
        with pytest.raises(PowerError):
            adapt(MORE, overwrite=True)
    if folder.exists():
        model, _ = load_model(folder)
        assert (model == first) is (point != "after-rename")
    else:
        assert point == "old-away"
    found = adapt(MORE, overwrite=True)
    assert load_model(folder)[0] == found.model
    assert found.model.training["class_counts"]["Normal"] == 15


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_damaged_or_no_model_is_not_overwritten(
    adapt: Adapt, tmp_path: Path, overwrite: bool
) -> None:
    adapt()
    path = tmp_path / "out" / "models" / "adapted" / weights_file(0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(RecipeError, match=r"damaged: member-0\.safetensors has other bytes") as refused:
        adapt(overwrite=overwrite)
    assert "microtome verify --full --set-aside" in str(refused.value)
    (tmp_path / "out" / "models" / "mine").mkdir()
    with pytest.raises(RecipeError, match="not a model is there"):
        adapt(name="mine", overwrite=overwrite)
    (tmp_path / "out" / "models" / "file").write_text("x")
    with pytest.raises(RecipeError, match="not a model"):
        adapt(name="file", overwrite=overwrite)


# Bad input -----------------------------------------------------------------------------------------------


def test_one_class_is_no_task(adapt: Adapt) -> None:
    with pytest.raises(UsageError, match="one class is marked, 'Tumor'"):
        adapt({"Tumor": AREAS["Tumor"]})


def test_a_class_of_one_tile_is_too_few(adapt: Adapt) -> None:
    with pytest.raises(UsageError, match="'Normal' has 1, 2 are needed"):
        adapt({"Tumor": AREAS["Tumor"], "Normal": [(5, 5, 1, 1)]})


def test_few_tiles_are_warned_of(adapt: Adapt, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        adapt({"Tumor": AREAS["Tumor"], "Normal": [(5, 5, 2, 1)]})
    assert "class 'Normal' has 2 tiles; 5 or more are advised" in caplog.text


def test_classes_named_differently_in_two_files_are_refused(adapt: Adapt) -> None:
    with pytest.raises(UsageError, match="likely to be one, named in two ways"):
        adapt(AREAS, {"Tumour": [(0, 0, 2, 2)], "Normal": [(4, 0, 2, 2)]})


def test_slides_of_the_training_are_warned_of(
    metas: Mapping[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(tmp_path, "base-3")
    marks = read_marks(annotate(tmp_path / "a.geojson"), store)
    with caplog.at_level(logging.WARNING):
        adapt_to_tiles(
            [(store, marks)], meta=metas["tiles"], folder=tmp_path / "m", recipe=AdaptRecipe(learner="maml")
        )
    assert "META 'tiles' was trained with 1 of these slides, such as 'base-3'" in caplog.text


def test_learners_of_slides_do_not_learn_tiles(adapt: Adapt) -> None:
    with pytest.raises(UsageError, match="was trained to judge slides, not tiles") as refused:
        adapt(meta="slides")
    assert "Give --labels, or another META" in str(refused.value)


def test_an_unknown_learner_is_named_with_those_that_there_are(adapt: Adapt) -> None:
    with pytest.raises(UsageError, match="no learner 'anil' in this META") as refused:
        adapt(learner="anil")
    assert "prototypes, logistic, maml, proto_maml" in str(refused.value)


@pytest.mark.parametrize("name", ["a b", "__x", "x.json"])
def test_a_name_that_cannot_be_a_model_s_is_refused_first(
    adapt: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(adapting, "choose", None)  # nothing is tried
    with pytest.raises(UsageError, match="cannot be a model's name"):
        adapt(name=name)


def test_other_features_are_refused(tmp_path: Path, metas: Mapping[str, Path]) -> None:
    for what, store in (
        ("does not fit META 'tiles': encoder.weights", make_store(tmp_path, "a", weights="sha256:1")),
        ("no features/enc", make_store(tmp_path, "b", encoded=False)),
    ):
        marks = read_marks(annotate(tmp_path / "a.geojson"), store)
        with pytest.raises(UsageError, match=what) as refused:
            adapt_to_tiles([(store, marks)], meta=metas["tiles"], folder=tmp_path / "m", recipe=AdaptRecipe())
        assert refused.value.action
    assert not (tmp_path / "m").exists()


def test_settings_that_are_none_are_refused() -> None:
    with pytest.raises(UsageError, match="1 tiles of a class"):
        AdaptRecipe(most=1)
    with pytest.raises(UsageError, match="seed -1"):
        AdaptRecipe(seed=-1)


# Slides --------------------------------------------------------------------------------------------------

TABLE = "s0,Tumor,p0\ns1,Tumor,p1\ns2,Tumor,p1\ns3,Normal,p2\ns4,Normal,p3\ns5,Normal,p3\n"


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, TileStore]:
    root = tmp_path_factory.mktemp("slides")
    return {f"s{number}": make_store(root, f"s{number}", seed=number) for number in range(7)}


def test_a_few_labelled_slides_become_a_model_and_patients_are_kept_whole(
    slides: Mapping[str, TileStore], metas: Mapping[str, Path], tmp_path: Path
) -> None:
    table = write_table(tmp_path / "labels.csv", TABLE)
    found = adapt_to_slides(
        slides, table, meta=metas["slides"], folder=tmp_path / "few", recipe=AdaptRecipe(learner="maml")
    )
    model, ensemble = load_model(tmp_path / "few")
    assert (model.judges, model.head, model.classes) == (Judges.SLIDES, "gated_abmil", ("Normal", "Tumor"))
    assert len(ensemble.members) == 4  # patients
    assert found.choice.folds.of_bag.tolist() == [2, 3, 3, 0, 1, 1]
    assert "maml was asked for" in found.choice.why
    rows = read_table(tmp_path / "few" / "support.csv")
    assert [(row["slide_id"], row["x"], row["label"]) for row in rows] == [
        (f"s{number}", "", "Tumor" if number < 3 else "Normal") for number in range(6)
    ]
    predicted = predict_bag(ensemble, read_bag(slides["s6"], KEY))
    assert abs(predicted.probabilities.sum() - 1) < 1e-9


def test_of_large_slides_some_tiles_are_learnt_from(
    slides: Mapping[str, TileStore],
    metas: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapting, "MOST_OF_SLIDE", 5)
    table = write_table(tmp_path / "labels.csv", TABLE)
    sizes: list[tuple[int, ...]] = []
    plainly = choosing.choose

    def choose(methods, support, groups, *, wanted):  # type: ignore[no-untyped-def]
        sizes.append(support.bags.sizes)
        return plainly(methods, support, groups, wanted=wanted)

    monkeypatch.setattr(adapting, "choose", choose)
    adapt_to_slides(slides, table, meta=metas["slides"], folder=tmp_path / "few", recipe=AdaptRecipe())
    assert sizes == [(5,) * 6]


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (TABLE.replace("s5,Normal,p3\n", "").replace("s4,Normal,p3\n", ""), "'Normal' has fewer than two"),
        (TABLE + "s9,Normal,p9\n", "names 1 slide with no tiles"),
    ],
)
def test_tables_that_nothing_can_be_learnt_from_are_refused(
    slides: Mapping[str, TileStore], metas: Mapping[str, Path], tmp_path: Path, rows: str, what: str
) -> None:
    table = write_table(tmp_path / "labels.csv", rows)
    with pytest.raises(UsageError, match=what):
        adapt_to_slides(slides, table, meta=metas["slides"], folder=tmp_path / "few", recipe=AdaptRecipe())


def test_learners_of_tiles_do_not_learn_slides(
    slides: Mapping[str, TileStore], metas: Mapping[str, Path], tmp_path: Path
) -> None:
    table = write_table(tmp_path / "labels.csv", TABLE)
    with pytest.raises(UsageError, match="was trained to judge tiles, not slides") as refused:
        adapt_to_slides(slides, table, meta=metas["tiles"], folder=tmp_path / "few", recipe=AdaptRecipe())
    assert "Give --annotations" in str(refused.value)


def test_the_features_of_meta_are_those_of_the_slides(slides: Mapping[str, TileStore]) -> None:
    """What these tests rest on: slides that were made alike."""
    assert FeatureRecipe.of(slides["s0"], KEY).dim == DIM
