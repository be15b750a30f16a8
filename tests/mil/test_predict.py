"""Laws of prediction: never in training mode, the same twice, and only on input that fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mil import predict
from mil.bags import Bag, PackedBags
from mil.checkpoint import Calibration, Judges, Model, describe
from mil.conformal import ConformalRule
from mil.device import Precision
from mil.encode import encode_slide
from mil.encoder import Encoder
from mil.encoders import untrained_encoder
from mil.ensemble import Ensemble
from mil.features import FeatureRecipe, common_recipe, read_bag
from mil.gate import Gate
from mil.heads import Head, HeadOutput, build_head
from mil.predict import check_features, predict_bag, predict_slide, tissue_shares, verdict
from mil.study import held_out
from tiling.commit import begin
from tiling.reporter import figures
from tiling.store import TileStore, make_array
from wsi.errors import MicrotomeError, RecipeError, UsageError

MakeStore = Callable[..., TileStore]
KEY = "timm-test_vit"


def make_head(dim: int = 64, seed: int = 0) -> Head:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_head("gated_abmil", dim=dim, classes=2, settings={"hidden": 16, "attention": 8})


def make_bag(count: int = 30, dim: int = 64) -> Bag:
    features = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float16)
    return Bag(slide_id="s", features=features, origins=np.zeros((count, 2), np.int32))


@pytest.fixture
def encoded(make_store: MakeStore, tiny_encoder: Encoder) -> TileStore:
    store = make_store()
    encode_slide(store, tiny_encoder, precision=Precision.FP32)
    return store


def make_model(store: TileStore, head: Head, **changes: Any) -> Model:
    model = describe(head, name="demo", classes=("normal", "tumour"), features=FeatureRecipe.of(store, KEY))
    return dataclasses.replace(model, **changes)


def test_a_prediction_has_the_promised_shapes_and_sums() -> None:
    prediction = predict_bag(make_head(), make_bag())
    assert prediction.probabilities.shape == (2,)
    assert prediction.tile_scores.shape == (30, 2)
    assert prediction.attention.shape == (30,)
    assert prediction.probabilities.sum() == pytest.approx(1)
    assert prediction.attention.sum() == pytest.approx(1)
    np.testing.assert_allclose(prediction.tile_scores.sum(axis=1), 1, rtol=1e-5)


def test_a_tiles_score_is_that_of_the_tile_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    head, bag = make_head(), make_bag()
    prediction = predict_bag(head, bag)
    for index in (0, 17, 29):
        alone = Bag(slide_id="s", features=bag.features[index : index + 1], origins=bag.origins[:1])
        np.testing.assert_allclose(
            prediction.tile_scores[index], predict_bag(head, alone).probabilities, rtol=1e-5
        )
    monkeypatch.setattr(predict, "ROWS_PER_SLICE", 7)
    np.testing.assert_allclose(prediction.tile_scores, predict_bag(head, bag).tile_scores, rtol=1e-5)


def test_predicting_is_never_in_training_mode_and_the_same_twice() -> None:
    head, modes = make_head().train(), []
    head.dropout.register_forward_hook(
        lambda module, *_: modes.append((module.training, torch.is_grad_enabled()))
    )
    first, second = predict_bag(head, make_bag()), predict_bag(head, make_bag())
    assert set(modes) == {(False, False)}
    assert head.training  # left as it was
    assert all(module.training for module in head.modules())
    for ours, theirs in zip(dataclasses.astuple(first), dataclasses.astuple(second), strict=True):
        assert ours.tobytes() == theirs.tobytes()


class GivesNaN(Head):
    dim, classes = 64, 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, bags: PackedBags) -> HeadOutput:
        return HeadOutput(torch.full((len(bags), 2), torch.nan), torch.zeros(len(bags.features), 1))


def test_nan_and_another_length_are_refused() -> None:
    with pytest.raises(MicrotomeError, match="gives NaN for slide 's'"):
        predict_bag(GivesNaN(), make_bag())
    with pytest.raises(UsageError, match="features of length 32, the model takes 64"):
        predict_bag(make_head(), make_bag(dim=32))


def test_a_slides_scores_are_those_of_its_bag(encoded: TileStore) -> None:
    head = make_head()
    commit = predict_slide(encoded, make_model(encoded, head), head)
    expected = predict_bag(head, read_bag(encoded, KEY))
    scores, attention = encoded.scores("demo")
    np.testing.assert_array_equal(scores, expected.tile_scores)
    np.testing.assert_array_equal(attention, expected.attention)
    assert list(commit.record["probabilities"]) == ["normal", "tumour"]
    assert list(commit.record["probabilities"].values()) == expected.probabilities.tolist()


def test_predicting_again_gives_the_same_commit_and_elsewhere_the_same_bytes(
    make_store: MakeStore, tiny_encoder: Encoder, encoded: TileStore
) -> None:
    head = make_head()
    model = make_model(encoded, head)
    commit = predict_slide(encoded, model, head)
    assert predict_slide(encoded, model, head) == commit
    other = make_store(folder="other")
    encode_slide(other, tiny_encoder, precision=Precision.FP32)
    assert predict_slide(other, model, head) == commit


def test_another_model_of_the_same_name_is_refused(encoded: TileStore) -> None:
    for_seed = {seed: make_head(seed=seed) for seed in (0, 1)}
    predict_slide(encoded, make_model(encoded, for_seed[0]), for_seed[0])
    with pytest.raises(RecipeError, match="weights_sha256"):
        predict_slide(encoded, make_model(encoded, for_seed[1]), for_seed[1])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"spec": {"size_px": 16, "mpp": 1.0, "overlap_px": 0}}, r"spec.mpp: 1.0, not 0.5"),
        ({"spec": {"size_px": 16, "mpp": 0.5, "overlap_px": 8}}, r"spec.overlap_px: 8, not 0"),
        ({"stain": None}, r"stain.method: none, not Macenko"),
        ({"stain": {"method": "Macenko", "light": 255.0}}, r"stain.light: 255.0, not 240.0"),
    ],
)
def test_a_store_made_otherwise_is_refused_naming_both(
    make_store: MakeStore, tiny_encoder: Encoder, encoded: TileStore, recipe: dict[str, Any], message: str
) -> None:
    other = make_store("slide-2", folder="other", **recipe)
    encode_slide(other, tiny_encoder)
    head = make_head()
    model = make_model(encoded, head)
    with pytest.raises(UsageError, match=message) as caught:
        predict_slide(other, model, head)
    assert "slide 'slide-2'" in str(caught.value)
    assert "model 'demo'" in str(caught.value)
    with pytest.raises(UsageError, match="'slide-2' and 'slide-1' were not made alike"):
        common_recipe([encoded, other], KEY)


def test_a_store_of_another_encoder_is_refused(make_store: MakeStore, encoded: TileStore) -> None:
    model = make_model(encoded, make_head())
    other = make_store("slide-2", folder="other")
    encode_slide(other, untrained_encoder("timm:test_vit", seed=2))
    with pytest.raises(UsageError, match=r"encoder.weights: untrained seed 2, not untrained seed 1"):
        check_features(other, model)
    with pytest.raises(UsageError, match="has no features/timm-test_vit"):
        check_features(make_store("slide-3", folder="other"), model)


def test_precision_may_differ(make_store: MakeStore, tiny_encoder: Encoder, encoded: TileStore) -> None:
    other = make_store("slide-2", folder="other")
    encode_slide(other, tiny_encoder, precision=Precision.BF16)
    check_features(other, make_model(encoded, make_head()))
    assert common_recipe([encoded, other], KEY) == FeatureRecipe.of(encoded, KEY)


def test_no_slides_have_no_recipe() -> None:
    with pytest.raises(UsageError, match="no slides"):
        common_recipe([], KEY)


def make_ensemble(temperatures: tuple[float, ...] = (1.0, 2.0)) -> Ensemble:
    return Ensemble(tuple(make_head(seed=seed) for seed in range(len(temperatures))), temperatures)


def calibrated(store: TileStore, ensemble: Ensemble, *, quantile: float, threshold: float = 0.8) -> Model:
    """A card with a rule that keeps classes of a probability of at least 1 - quantile."""
    calibration = Calibration(ensemble.temperatures, ConformalRule(0.1, (quantile,)), Gate(threshold))
    features = FeatureRecipe.of(store, KEY)
    return describe(
        ensemble, name="demo", classes=("normal", "tumour"), features=features, calibration=calibration
    )


def test_the_record_says_what_the_ensemble_says_and_what_the_gate_makes_of_it(encoded: TileStore) -> None:
    ensemble = make_ensemble()
    expected = predict_bag(ensemble, read_bag(encoded, KEY))
    best = float(expected.probabilities.max())
    model = calibrated(encoded, ensemble, quantile=1 - best, threshold=0.5)
    record = predict_slide(encoded, model, ensemble).record
    assert record["calibrated"] is True
    assert list(record["probabilities"].values()) == expected.probabilities.tolist()
    assert list(record["spread"].values()) == expected.spread.tolist()
    assert record["information"] == expected.information[0]
    assert record["conformal_set"] == [model.classes[int(expected.probabilities.argmax())]]
    assert record["decision"]["status"] == "confirmed"
    assert record["decision"]["confidence"] == best
    assert len(record["decision"]["reasons"]) == 2


@pytest.mark.parametrize(("quantile", "threshold"), [(1.0, 0.5), (0.0, 0.5), (0.5, 0.999)])
def test_an_ambiguous_set_or_little_confidence_asks_for_review(
    encoded: TileStore, quantile: float, threshold: float
) -> None:
    ensemble = make_ensemble()
    model = calibrated(encoded, ensemble, quantile=quantile, threshold=threshold)
    said = verdict(model, predict_bag(ensemble, read_bag(encoded, KEY)))
    assert said["decision"]["status"] == "review required"
    assert said["decision"]["reasons"]


def test_without_calibration_there_is_no_decision(encoded: TileStore) -> None:
    head = make_head()
    record = predict_slide(encoded, make_model(encoded, head), head).record
    assert record["calibrated"] is False
    assert not {"decision", "conformal_set", "spread"} & set(record)


def test_a_slide_that_was_trained_on_is_marked(encoded: TileStore) -> None:
    ensemble = make_ensemble()
    model = calibrated(encoded, ensemble, quantile=0.5)
    assert "trained_on" not in predict_slide(encoded, model, ensemble).record
    learned = dataclasses.replace(model, name="learned", training={"slides": [encoded.slide_id]})
    assert predict_slide(encoded, learned, ensemble).record["trained_on"] is True


def test_another_temperature_is_another_model_s_score(encoded: TileStore) -> None:
    first, second = make_ensemble((1.0, 1.0)), make_ensemble((1.0, 3.0))
    predict_slide(encoded, calibrated(encoded, first, quantile=0.5), first)
    with pytest.raises(RecipeError, match="calibration"):
        predict_slide(encoded, calibrated(encoded, second, quantile=0.5), second)


# Of each tile ----------------------------------------------------------------------------------------------


def test_uncertainty_is_the_entropy_of_the_mean_and_disagreement_what_members_add_to_it() -> None:
    ensemble, bag = make_ensemble((1.0, 0.3, 2.0)), make_bag()
    found = predict_bag(ensemble, bag)
    rows = [
        Bag(slide_id="s", features=bag.features[i : i + 1], origins=bag.origins[:1]) for i in range(len(bag))
    ]
    each = np.stack([predict_bag(ensemble, row).member_probabilities for row in rows], axis=1)  # (M, n, C)
    mean = each.mean(axis=0)
    entropy = -(mean * np.log(mean)).sum(axis=1)
    within = -(each * np.log(each)).sum(axis=2).mean(axis=0)
    assert found.uncertainty.dtype == found.disagreement.dtype == np.float32
    np.testing.assert_allclose(found.uncertainty, entropy / np.log(2), atol=1e-6)
    np.testing.assert_allclose(found.disagreement, (entropy - within) / np.log(2), atol=1e-6)
    assert (found.disagreement > 1e-4).any()
    assert (found.disagreement <= found.uncertainty).all()


class Says(Head):
    """Gives each tile the logits that are its features, and a bag their mean."""

    name, settings, adaptor = "says", {}, None  # type: ignore[assignment]

    def __init__(self, classes: int, *, turned: bool = False) -> None:
        super().__init__()
        self.dim = self.classes = classes
        self.turned = turned
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, bags: PackedBags) -> HeadOutput:
        sums = torch.zeros(len(bags), self.classes).index_add(0, bags.bag_of_row, bags.features)
        logits = sums / torch.tensor(bags.sizes)[:, None]
        return HeadOutput(logits.flip(1) if self.turned else logits, torch.zeros(len(bags.features), 1))


def bag_of(rows: list[list[float]]) -> Bag:
    return Bag(slide_id="s", features=np.array(rows, np.float32), origins=np.zeros((len(rows), 2), np.int32))


def test_uncertainty_is_0_where_sure_and_1_without_an_idea_for_any_number_of_classes() -> None:
    for classes in (2, 3, 7):
        bag = bag_of([[80.0] + [0.0] * (classes - 1), [1.0] * classes])
        found = predict_bag(Says(classes), bag)
        np.testing.assert_allclose(found.uncertainty, [0, 1], atol=1e-6)
        assert found.disagreement.tolist() == [0, 0]


def test_members_that_contradict_each_other_disagree_wholly_and_those_that_doubt_alike_not_at_all() -> None:
    pair = Ensemble((Says(2), Says(2, turned=True)), (1.0, 1.0))
    found = predict_bag(pair, bag_of([[80.0, 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found.uncertainty, [1, 1], atol=1e-6)
    np.testing.assert_allclose(found.disagreement, [1, 0], atol=1e-6)


def test_a_store_gives_the_uncertainty_back_and_none_of_scores_of_before(encoded: TileStore) -> None:
    ensemble = make_ensemble()
    model = make_model(encoded, ensemble.members[0], name="new")
    predict_slide(encoded, model, ensemble)
    expected = predict_bag(ensemble, read_bag(encoded, KEY))
    kept = encoded.uncertainty("new")
    assert kept is not None
    np.testing.assert_array_equal(kept[0], expected.uncertainty)
    np.testing.assert_array_equal(kept[1], expected.disagreement)

    old = {"step": "scores", "inputs": encoded.inputs("tiles"), "model": model.identity() | {"name": "old"}}
    draft = begin(encoded.path("scores/old"), old, work=encoded.output.work)
    for name, values in (("scores", expected.tile_scores), ("attention", expected.attention)):
        make_array(
            draft, name, shape=values.shape, rows_per_file=len(values), dtype=np.float32, fill=np.nan
        ).write_all(values)
    draft.publish({})
    assert encoded.uncertainty("old") is None
    np.testing.assert_array_equal(encoded.scores("old")[0], expected.tile_scores)


def test_a_model_of_tiles_says_what_a_slide_is_made_of_and_gives_no_verdict(encoded: TileStore) -> None:
    head = make_head()
    model = make_model(encoded, head, judges=Judges.TILES)
    commit = predict_slide(encoded, model, head)
    scores, _ = encoded.scores("demo")
    shares = commit.record["shares"]
    assert not {"probabilities", "spread", "decision", "conformal_set"} & set(commit.record)
    assert list(shares) == ["normal", "tumour"]
    assert shares["tumour"] == np.mean(scores[:, 1] > scores[:, 0])
    assert sum(shares.values()) == pytest.approx(1)
    np.testing.assert_allclose(
        list(commit.record["expected_shares"].values()), scores.mean(axis=0), rtol=1e-6
    )
    assert commit.record["uncertain_share"] == np.mean(scores.max(axis=1) < np.float32(0.8))
    assert commit.record["calibrated"] is False
    told = figures(encoded, ("demo", model.weights_sha256))
    assert told["shares"] == shares
    assert "uncertain_share" in told
    assert "prediction" not in told


def test_how_many_tiles_are_uncertain_is_by_the_gates_threshold(encoded: TileStore) -> None:
    ensemble = Ensemble((Says(2),), (1.0,))
    bag = bag_of([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [4.0, 0.0]])  # 0.73, 0.88, 0.95, 0.98
    prediction = predict_bag(ensemble, bag)
    for threshold, share in ((0.5, 0.0), (0.8, 0.25), (0.9, 0.5), (1.0, 1.0)):
        calibration = Calibration((1.0,), ConformalRule(0.1, (0.5,)), Gate(threshold))
        model = make_model(encoded, make_head(), judges=Judges.TILES, calibration=calibration)
        said = tissue_shares(model, prediction)
        assert said["uncertain_share"] == share
        assert said["shares"] == {"normal": 0.25, "tumour": 0.75}
        assert said["calibrated"] is True
    without = tissue_shares(make_model(encoded, make_head(), judges=Judges.TILES), prediction)
    assert without["uncertain_share"] == 0.25


def test_a_model_of_tiles_is_not_held_against_labels_of_slides(encoded: TileStore) -> None:
    model = make_model(encoded, make_head(), judges=Judges.TILES)
    with pytest.raises(UsageError, match="'demo' judges tiles"):
        held_out(encoded.output, Path("labels.csv"), model)
