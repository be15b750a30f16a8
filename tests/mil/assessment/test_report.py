"""From a model's folder to a report: complete, the same twice, and never on slides that were learnt from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mil.assessment import judging
from mil.assessment import report as module
from mil.assessment.judging import Slides
from mil.assessment.report import default_folder, evaluate_model
from mil.assessment.settings import Wanted
from mil.assessment.tables import blocks, summary
from mil.bags import Bag
from mil.checkpoint import Model, load_model
from mil.device import Precision
from mil.encode import encode_slide
from mil.encoder import Encoder
from mil.ensemble import Ensemble
from mil.evaluation.bootstrap import Resampling
from mil.explain import Case
from mil.features import FeatureRecipe, read_bag
from mil.heads.gated_abmil import GatedABMIL
from mil.predict import predict_bag
from mil.predictions import Part, Predictions
from tiling.commit import find_damage, load_commit
from tiling.output import Output
from tiling.store import TileStore
from wsi.errors import RecipeError, UsageError

MakeStudy = Callable[..., Predictions]
MakeModel = Callable[..., Path]
MakeStore = Callable[..., TileStore]
QUICK = Wanted(resampling=Resampling(100), mc_dropout=3)
KEY = "timm-test_vit"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without pictures: drawing takes a second each."""
    monkeypatch.setattr(module, "draw", lambda finding: {"roc.png": b"picture"})


@pytest.fixture
def slides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Output:
    """Any slide asked for, with features in memory."""

    def open_slides(output: Output, slide_ids: Sequence[str], model: Model) -> Slides:
        bags = {}
        for name in slide_ids:
            features = np.random.default_rng(len(name)).normal(size=(9, 64)).astype(np.float32)
            bags[name] = Bag(name, features, np.zeros((9, 2), np.int32))
        return Slides(bags, {name: {"features": name} for name in slide_ids})

    monkeypatch.setattr(module, "open_slides", open_slides)
    return Output(tmp_path / "out")


@pytest.fixture
def trained(make_study: MakeStudy, make_model: MakeModel) -> Path:
    """A model, and what its members said of twelve slides."""
    return make_model(make_study(12))


@pytest.fixture
def fresh(make_store: MakeStore, tiny_encoder: Encoder) -> Output:
    """Four encoded slides on disk that no study knows."""
    for number in range(12, 16):
        store = make_store(f"fresh-{number}", seed=number)
        encode_slide(store, tiny_encoder, precision=Precision.FP32)
    return store.output


def table(folder: Path, text: str, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_text("slide_id,label,patient\n" + text)
    return path


def slides_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "slides.csv").read_text())))


FRESH = "fresh-12,kind 0,p1\nfresh-13,kind 1,p1\nfresh-14,kind 1,p2\nfresh-15,kind 0,p3\n"


def test_a_report_holds_all_files_and_says_what_the_terminal_says(
    make_study: MakeStudy, make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model(make_study(60, external=20))
    found = evaluate_model(model, tmp_path / "report", wanted=QUICK)
    assert found.made
    assert json.loads((found.folder / "metrics.json").read_bytes()) == json.loads(json.dumps(found.content))
    names = {path.name for path in found.folder.iterdir()}
    pictures = {"reliability.png", "roc.png", "confusion.png", "risk-coverage.png"}
    assert names == pictures | {f"external-{name}" for name in pictures} | {
        "metrics.json",
        "slides.csv",
        "commit.json",
    }
    assert set(found.content["cohorts"]) == {"out-of-fold test slides", "external test slides"}
    assert found.content["definitions"]["AUROC"]
    assert len(slides_of(found.folder)) == 80
    assert not list(find_damage(found.folder, load_commit(found.folder), full=True))
    assert not (tmp_path / ".work").exists()


def test_two_reports_have_the_same_bytes_and_a_third_is_not_made(
    make_study: MakeStudy, make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model(make_study(40))
    first = evaluate_model(model, tmp_path / "first", wanted=QUICK)
    second = evaluate_model(model, tmp_path / "second", wanted=QUICK)
    for path in first.folder.iterdir():
        assert path.read_bytes() == (second.folder / path.name).read_bytes(), path.name
    again = evaluate_model(model, tmp_path / "first", wanted=QUICK)
    assert not again.made
    assert again.content == json.loads(json.dumps(first.content))


@pytest.mark.usefixtures("quick")
def test_another_report_is_replaced_only_if_asked_and_anything_else_never(
    make_study: MakeStudy, make_model: MakeModel, tmp_path: Path
) -> None:
    model, folder = make_model(make_study(40)), tmp_path / "report"
    evaluate_model(model, folder, wanted=QUICK)
    other = replace(QUICK, alpha=0.2)
    with pytest.raises(RecipeError, match="made with another settings"):
        evaluate_model(model, folder, wanted=other)
    assert evaluate_model(model, folder, wanted=other, overwrite=True).made
    assert load_commit(folder).recipe["settings"]["alpha"] == 0.2
    (folder / "roc.png").write_bytes(b"damaged")
    assert evaluate_model(model, folder, wanted=other).made
    assert (folder / "roc.png").read_bytes() == b"picture"
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    for place in (precious, precious / "thesis.txt", model):
        with pytest.raises(RecipeError, match="not a report"):
            evaluate_model(model, place, wanted=QUICK, overwrite=True)
    assert (precious / "thesis.txt").read_text() == "years of work"
    assert default_folder(model) == tmp_path.resolve() / "model-evaluation"


@pytest.mark.usefixtures("quick")
def test_another_model_is_compared_on_the_same_slides(
    make_study: MakeStudy, make_model: MakeModel, tmp_path: Path
) -> None:
    study = make_study(60)
    rng = np.random.default_rng(0)
    noisy = tuple(
        replace(m, logits=m.logits + rng.normal(scale=5, size=m.logits.shape)) for m in study.members
    )
    first, second = make_model(study), make_model(replace(study, members=noisy), "noisy", seed=1)
    found = evaluate_model(first, tmp_path / "report", against=second, wanted=QUICK)
    test = found.content["against"]["cohorts"]["out-of-fold test slides"]["delong"]["kind 1"]
    assert test["difference"] < 0
    assert found.content["against"]["model"]["name"] == "noisy"


def test_a_model_without_predictions_is_told_what_it_needs(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="kept no predictions"):
        evaluate_model(make_model(None, members=1), tmp_path / "report", wanted=QUICK)
    with pytest.raises(UsageError, match="no output was given"):
        evaluate_model(
            make_model(None, "other"), tmp_path / "report", labels=tmp_path / "labels.csv", wanted=QUICK
        )


@pytest.mark.usefixtures("quick")
def test_a_new_cohort_on_disk_is_judged_by_the_whole_ensemble(
    make_study: MakeStudy, make_model: MakeModel, fresh: Output, tmp_path: Path
) -> None:
    recipe = FeatureRecipe.of(TileStore(fresh, "fresh-12"), KEY)
    trained, labels = make_model(make_study(12), features=recipe), table(tmp_path, FRESH)
    found = evaluate_model(trained, tmp_path / "report", output=fresh, labels=labels, wanted=QUICK)
    content = found.content["cohorts"]["slides of another cohort"]
    assert content["slides"]["all"] == {"slides": 4, "patients": 3}
    assert content["uncertainty"]["mc_dropout"]["deviation"]["all"]["mean"] > 0
    assert content["uncertainty"]["ensemble"]["mutual_information"]["all"]["slides"] == 4
    model, ensemble = load_model(trained)
    temperatures = [member["temperature"] for member in found.content["calibration"]["members"]]
    calibrated = replace(ensemble, temperatures=tuple(temperatures))
    for row in slides_of(found.folder):
        expected = predict_bag(calibrated, read_bag(TileStore(fresh, row["slide_id"]), KEY)).probabilities
        assert float(row["probability: kind 1"]) == pytest.approx(expected[1], abs=1e-6)
        assert row["patient"] in {"p1", "p2", "p3"}
    assert model.classes == ("kind 0", "kind 1")
    labels = table(tmp_path, FRESH + "nowhere,kind 0,p8\n")
    with pytest.raises(UsageError, match="1 slides have no features by 'timm-test_vit': nowhere"):
        evaluate_model(trained, tmp_path / "other", output=fresh, labels=labels, wanted=QUICK)
    stranger = make_model(make_study(12), "stranger")  # for features of other slides
    with pytest.raises(UsageError, match="does not fit model 'stranger'"):
        evaluate_model(
            stranger, tmp_path / "other", output=fresh, labels=table(tmp_path, FRESH), wanted=QUICK
        )


@pytest.mark.usefixtures("quick")
def test_a_cohort_of_one_class_or_for_testing_alone_is_judged_and_has_no_auroc(
    trained: Path, slides: Output, tmp_path: Path
) -> None:
    one_class = table(tmp_path, "fresh-1,kind 0,p1\nfresh-2,kind 0,p2\n")
    for_testing = tmp_path / "test.csv"
    for_testing.write_text("slide_id,label,split\nfresh-1,kind 0,test\nfresh-2,kind 0,test\n")
    for number, labels in enumerate((one_class, for_testing)):
        folder = tmp_path / f"report-{number}"
        found = evaluate_model(trained, folder, output=slides, labels=labels, wanted=QUICK).content
        cohort = found["cohorts"]["slides of another cohort"]
        assert cohort["slides"]["all"]["slides"] == 2
        assert cohort["figures"]["AUROC"]["value"] is None
        assert summary("it", cohort)["AUROC"].startswith("n/a: only one class (kind 0)")


@pytest.mark.usefixtures("quick")
def test_patients_of_a_model_without_folds_are_refused_by_its_own_table(
    make_model: MakeModel, slides: Output, tmp_path: Path
) -> None:
    """Nothing was held out, so its predictions name none of the patients that it learnt from."""
    learnt = b"slide_id,label,patient\nold-1,kind 0,patient-1\nold-2,kind 1,patient-2\n"
    model = make_model(None, members=1, files={"labels.csv": learnt})
    labels = table(tmp_path, "new-1,kind 0,patient-1\nnew-2,kind 1,patient-9\n")
    with pytest.raises(UsageError, match="patients whose other slides the model learnt from: patient-1"):
        evaluate_model(model, tmp_path / "report", output=slides, labels=labels, wanted=QUICK)


@pytest.mark.usefixtures("quick")
def test_slides_and_patients_that_were_learnt_from_are_refused_by_name(
    trained: Path, slides: Output, tmp_path: Path
) -> None:
    def evaluate(text: str) -> None:
        labels = table(tmp_path, text)
        evaluate_model(trained, tmp_path / "report", output=slides, labels=labels, wanted=QUICK)

    with pytest.raises(UsageError, match="slides that the model learnt from: slide-3"):
        evaluate(FRESH + "slide-3,kind 0,p9\n")
    with pytest.raises(UsageError, match="patients whose other slides the model learnt from: patient-5"):
        evaluate(FRESH.replace("p1", "patient-5"))
    with pytest.raises(UsageError, match="labels that the model does not know: other"):
        evaluate(FRESH.replace("kind 0", "other"))
    assert not (tmp_path / "report").exists()


@pytest.mark.usefixtures("quick")
def test_no_head_is_ever_judged_in_training_mode_and_dropout_alone_is_on_for_its_own_figure(
    trained: Path, slides: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if a model were handed over in training mode."""
    seen: list[tuple[list[type[nn.Module]], bool]] = []
    forward = GatedABMIL.forward

    def watched(head: GatedABMIL, *words: object) -> object:
        on = [type(part) for part in head.modules() if part.training]
        seen.append((on, torch.is_grad_enabled()))
        return forward(head, *words)  # type: ignore[arg-type]

    def in_training_mode(folder: Path) -> object:
        with torch.random.fork_rng():
            model, ensemble = load_model(folder)
        for member in ensemble.members:
            member.train()
        return model, ensemble

    monkeypatch.setattr(GatedABMIL, "forward", watched)
    monkeypatch.setattr(module, "load_model", in_training_mode)
    state = torch.random.get_rng_state()
    for number, labels in enumerate((None, table(tmp_path, FRESH))):
        evaluate_model(trained, tmp_path / f"report-{number}", output=slides, labels=labels, wanted=QUICK)
    assert torch.equal(torch.random.get_rng_state(), state)
    judged = [on for on, gradients in seen if not on and not gradients]
    wavering = [on for on, gradients in seen if on and not gradients]
    assert len(judged) == 4 * 4  # four members, four new slides; held-out ones are not judged again
    assert len(wavering) == 12 * 3 + 4 * 4 * 3
    assert all(issubclass(kind, nn.Dropout) for on in wavering for kind in on)
    assert len(seen) == len(judged) + len(wavering)


@pytest.mark.usefixtures("quick")
def test_dropout_may_be_left_out_and_without_features_it_is_unknown(
    trained: Path, slides: Output, tmp_path: Path
) -> None:
    quiet = evaluate_model(trained, tmp_path / "a", output=slides, wanted=replace(QUICK, mc_dropout=0))
    bare = evaluate_model(trained, tmp_path / "b", wanted=QUICK)
    full = evaluate_model(trained, tmp_path / "c", output=slides, wanted=QUICK)
    key = "out-of-fold test slides"
    found = [one.content["cohorts"][key]["uncertainty"]["mc_dropout"] for one in (quiet, bare, full)]
    assert found[:2] == [None, None]
    assert found[2]["deviation"]["all"]["slides"] == 12
    assert quiet.content["cohorts"][key]["figures"] == full.content["cohorts"][key]["figures"]


@pytest.mark.usefixtures("quick")
def test_features_are_opened_only_where_something_needs_them(
    make_study: MakeStudy, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def open_slides(output: Output, slide_ids: Sequence[str], model: Model) -> Slides:
        opened.append(model.name)
        return Slides({}, {})

    monkeypatch.setattr(module, "open_slides", open_slides)
    monkeypatch.setattr(module, "dropout_deviation", lambda cohort, *_, **__: np.zeros(len(cohort)))
    output, one, two = Output(tmp_path / "out"), make_model(make_study(40)), make_model(make_study(40), "two")
    evaluate_model(one, tmp_path / "a", output=output, against=two, wanted=QUICK)
    assert opened == ["model"]
    evaluate_model(one, tmp_path / "b", output=output, wanted=replace(QUICK, mc_dropout=0))
    assert opened == ["model"]


@pytest.mark.usefixtures("quick")
def test_a_model_without_folds_is_evaluated_on_its_external_slides(
    make_study: MakeStudy, make_model: MakeModel, tmp_path: Path
) -> None:
    study = make_study(40, external=20)
    (entry, *_) = study.of(Part.EXTERNAL)
    alone = replace(study, members=(entry,))
    found = evaluate_model(make_model(alone, members=1), tmp_path / "report", wanted=QUICK).content
    assert list(found["cohorts"]) == ["external test slides"]
    assert found["calibration"]["members"][0]["temperature"] == 1
    assert found["cohorts"]["external test slides"]["uncertainty"]["ensemble"] is None
    assert found["cohorts"]["external test slides"]["gate"]["confirmed"]["count"] == 0
    assert any("no validation slides" in text for text in found["cautions"])


@pytest.mark.usefixtures("quick")
def test_explanations_are_measured_on_the_member_that_was_tested(
    trained: Path, slides: Output, tmp_path: Path
) -> None:
    wanted = replace(QUICK, explain=True, mc_dropout=0)
    found = evaluate_model(trained, tmp_path / "report", output=slides, wanted=wanted)
    told = json.loads((found.folder / "metrics.json").read_bytes())["explanations"]
    assert (found.folder / "explanations.png").read_bytes().startswith(b"\x89PNG")
    assert told["offered"] == 12
    (lines,) = (block for block in blocks(found.content) if "explanations" in block)
    assert "out-of-fold test slides, each explained by the member" in lines["explanations"]
    assert "12 slides" in lines["  area between curves, attention"]
    assert {"attention", "random", "integrated_gradients"} <= set(told["methods"])
    assert told["verdict"]


@pytest.mark.usefixtures("quick")
def test_a_slide_is_explained_by_one_member_that_did_not_learn_from_it(
    trained: Path, slides: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out slides by the one that was tested on them; others, which all judged, by one each in turn."""
    loaded = load_model(trained)
    seen: list[Case] = []
    explain_bags = judging.explain_bags

    def watched(cases: Sequence[Case], **words: Any) -> object:
        seen.extend(cases)
        return explain_bags(cases, **words, methods=["attention"])

    monkeypatch.setattr(judging, "explain_bags", watched)
    monkeypatch.setattr(module, "load_model", lambda folder: loaded)
    wanted = replace(QUICK, explain=True, mc_dropout=0)
    evaluate_model(trained, tmp_path / "a", output=slides, wanted=wanted)
    rows = {row["slide_id"]: row["judged_by"] for row in slides_of(tmp_path / "a")}
    assert len(seen) == 12

    def judges(case: Case) -> list[int]:
        assert isinstance(case.model, Ensemble)
        return [loaded[1].members.index(head) for head in case.model.members]

    for case in seen:
        assert [f"member {number}" for number in judges(case)] == [rows[case.bag.slide_id]]
    seen.clear()
    labels = table(tmp_path, FRESH)
    evaluate_model(trained, tmp_path / "b", output=slides, labels=labels, wanted=wanted)
    assert [judges(case) for case in seen] == [[0], [1], [2], [3]]


def test_members_validation_is_not_evaluated(
    make_study: MakeStudy, make_model: MakeModel, tmp_path: Path
) -> None:
    study = make_study(40)
    only = Predictions(study.classes, study.of(Part.VALIDATION))
    with pytest.raises(UsageError, match="kept no predictions of slides that were held out"):
        evaluate_model(make_model(only), tmp_path / "report", wanted=QUICK)
