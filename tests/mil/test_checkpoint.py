"""Laws of checkpoints: what is saved comes back, and nothing else does."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as to_safetensors

from corpus.models import CLASSES, FEATURES, card, republish, small_head
from mil.card import read_name
from mil.checkpoint import (
    Calibration,
    Judges,
    Model,
    check_model_folder,
    check_model_name,
    describe,
    load_model,
    save_model,
)
from mil.conformal import ConformalRule
from mil.ensemble import Ensemble
from mil.gate import Gate
from tiling.commit import begin, canonical
from wsi.errors import OutputError, RecipeError, UsageError


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    head = small_head()
    save_model(tmp_path / "demo", head, card(head))
    return tmp_path / "demo"


def test_what_is_saved_comes_back(saved: Path) -> None:
    model, ensemble = load_model(saved)
    assert model == card(small_head())
    (head,) = ensemble.members
    assert ensemble.temperatures == (1.0,)
    for name, tensor in small_head().state_dict().items():
        assert torch.equal(tensor, head.state_dict()[name])
    assert not head.training
    assert head.settings == {"hidden": 6, "attention": 4, "dropout": 0.25}


def test_its_name_and_hash_are_read_without_its_weights_and_its_bytes_are_checked_all_the_same(
    saved: Path, tmp_path: Path
) -> None:
    ensemble = Ensemble((small_head(), small_head(seed=1)), (1.0, 1.0))
    several = describe(ensemble, name="several", classes=CLASSES, features=FEATURES)
    save_model(tmp_path / "several", ensemble, several)
    for folder in (saved, tmp_path / "several"):
        model, _ = load_model(folder)
        known = read_name(folder)
        assert (known.name, known.weights_sha256) == (model.name, model.weights_sha256)
    weights = saved / "member-0.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    for wrong in (saved, tmp_path / "absent", tmp_path):
        with pytest.raises(UsageError):
            read_name(wrong)


def test_the_same_model_is_the_same_bytes_and_saving_it_again_does_nothing(saved: Path) -> None:
    head = small_head()
    other = saved.parent / "elsewhere" / "demo"
    first = save_model(saved, head, card(head))
    assert save_model(other, head, card(head)) == first
    for name in ("member-0.safetensors", "model.json", "commit.json"):
        assert (other / name).read_bytes() == (saved / name).read_bytes()
    assert sorted(path.name for path in saved.iterdir()) == [
        "commit.json",
        "member-0.safetensors",
        "model.json",
    ]
    assert not (saved.parent / ".work").exists()


def test_another_model_in_the_way_is_kept(saved: Path) -> None:
    head = small_head(seed=1)
    with pytest.raises(RecipeError, match="another model is there already"):
        save_model(saved, head, card(head))
    (saved / "model.json").unlink()
    with pytest.raises(RecipeError, match="not a sound model"):
        save_model(saved, head, card(head))
    assert load_model_fails(saved)


def test_overwriting_replaces_a_model_whole_and_nothing_that_is_none(saved: Path) -> None:
    head = small_head(seed=1)
    kept = save_model(saved, small_head(), card(small_head()), files={"extra.csv": b"a"}, overwrite=True)
    assert "extra.csv" not in kept.files  # the very same model: nothing was done
    save_model(saved, head, card(head), overwrite=True)
    assert load_model(saved)[0] == card(head)
    assert not (saved.parent / ".work").exists()
    other = begin(saved.parent / "tiles", {"step": "tiles"}, work=saved.parent / ".work")
    (other.folder / "kept").write_bytes(b"kept")
    other.publish({})
    for folder, name in ((other.item, "kept"), (saved, "model.json")):
        if folder is saved:
            (saved / "member-0.safetensors").unlink()  # damaged: not known to be a model
        with pytest.raises(RecipeError, match="something that is not"):
            save_model(folder, head, card(head, name=folder.name), overwrite=True)
        assert (folder / name).is_file()


@pytest.mark.parametrize("name", ["demo", "Modell-2.1", "_x", "жираф", "zarr", "a.json.b", "m" * 80])
def test_a_usable_name_is_given_back(name: str) -> None:
    assert check_model_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".work", "a b", "a/b", "m" * 81, "zarr.json", "Zarr.JSON", "my.json", "__m"]
)
def test_a_name_that_would_break_the_output_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a model's name"):
        check_model_name(name)
    with pytest.raises(UsageError, match="cannot be a model's name"):
        card(small_head(), name=name)


def test_a_folder_is_checked_before_any_work(saved: Path) -> None:
    check_model_folder(saved.parent / "another")
    with pytest.raises(UsageError, match="cannot be a model's name"):
        check_model_folder(saved.parent / "zarr.json")
    with pytest.raises(RecipeError, match=r"a model is there already\. Choose another folder with -m"):
        check_model_folder(saved)
    for name in ("file", "folder", "link"):
        path = saved.parent / name
        {"file": path.touch, "folder": path.mkdir, "link": lambda p=path: p.symlink_to("gone")}[name]()
        with pytest.raises(RecipeError, match="something that is not a model is there already"):
            check_model_folder(path)


def test_a_place_where_nothing_can_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    check_model_folder(tmp_path / "not" / "yet" / "model")
    with pytest.raises(OutputError, match="file is a file"):
        check_model_folder(tmp_path / "file" / "model")
    monkeypatch.setattr("mil.checkpoint.os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(OutputError, match="is read-only"):
        check_model_folder(tmp_path / "not" / "yet" / "model")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


def test_loading_a_model_leaves_the_generator_alone(saved: Path) -> None:
    before = torch.get_rng_state()
    load_model(saved)
    assert torch.equal(torch.get_rng_state(), before)


def load_model_fails(folder: Path) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_model(folder)
    assert caught.value.path
    assert caught.value.action
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


def test_a_missing_model_a_file_and_a_foreign_folder_are_refused(tmp_path: Path) -> None:
    assert "no such model" in load_model_fails(tmp_path / "none").reason
    torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pth")
    assert "is a file" in load_model_fails(tmp_path / "model.pth").reason
    (tmp_path / "folder").mkdir()
    assert "no commit.json" in load_model_fails(tmp_path / "folder").reason


@pytest.mark.parametrize("name", ["commit.json", "model.json", "member-0.safetensors"])
@pytest.mark.parametrize(
    "change", [lambda data: data[:-2], lambda data: b"", lambda data: data[:99] + b"?" + data[100:]]
)
def test_damage_is_refused(saved: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    (saved / name).write_bytes(change((saved / name).read_bytes()))
    assert str(saved) in load_model_fails(saved).path  # type: ignore[operator]


@pytest.mark.parametrize("name", ["commit.json", "model.json", "member-0.safetensors"])
def test_a_missing_file_is_refused(saved: Path, name: str) -> None:
    (saved / name).unlink()
    assert name in str(load_model_fails(saved))


def test_another_version_is_refused(saved: Path) -> None:
    error = load_model_fails(republish(saved, lambda content: content.update(format=3)))
    assert "version 3; this program reads versions up to 2" in error.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.update(classes=["a", "b", "c"]), r"another shape \(W.bias, W.weight\)"),
        (lambda c: c.update(classes=["a"]), "at least two"),
        (lambda c: c.update(classes=["a", "a"]), "at least two"),
        (lambda c: c.update(name="../evil"), "cannot be a model's name"),
        (lambda c: c.update(head="wizard"), "no head 'wizard'"),
        (lambda c: c.update(settings={"depth": 3}), "does not take these settings"),
        (lambda c: c["settings"].update(hidden=7), "another shape"),
        (lambda c: c["features"]["encoder"].update(dim=9), "another shape"),
        (lambda c: c.pop("encoder", c.pop("features")), "unreadable"),
        (lambda c: c.update(members=["0" * 64]), "does not hold the weights"),
        (lambda c: c.update(members=[]), "has 0 members"),
        (lambda c: c.update(members=["0" * 64] * 2), r"holds no member-1\.safetensors"),
        (lambda c: c.update(adaptor="spectacles"), "no adaptor 'spectacles'"),
        (lambda c: c.update(calibration={"temperatures": [1.0]}), "unreadable"),
        (lambda c: c.update(judges="patients"), "unreadable"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(
    saved: Path, change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        load_model(republish(saved, change))


def test_weights_of_another_kind_are_refused(saved: Path) -> None:
    pickled = saved.parent / "w.pth"
    torch.save(small_head().state_dict(), pickled)
    error = load_model_fails(republish(saved, lambda _: None, weights=pickled.read_bytes()))
    assert "not a whole safetensors file" in error.reason


def test_swapped_weights_of_the_same_shape_are_refused(saved: Path) -> None:
    error = load_model_fails(
        republish(saved, lambda _: None, weights=to_safetensors(dict(small_head(seed=9).state_dict())))
    )
    assert "does not hold the weights that model.json describes" in error.reason


def test_what_a_model_judges_comes_back_and_tells_its_scores_from_those_of_slides(tmp_path: Path) -> None:
    head = small_head()
    model = card(head, judges=Judges.TILES)
    save_model(tmp_path / "tiles", head, model)
    assert load_model(tmp_path / "tiles")[0] == model
    assert model.identity() == card(head).identity() | {"judges": "tiles"}


def test_a_card_of_before_there_was_a_choice_judges_slides_and_its_scores_keep_their_recipe(
    saved: Path,
) -> None:
    assert "judges" not in json.loads((saved / "model.json").read_bytes())
    model, _ = load_model(saved)
    assert model.judges is Judges.SLIDES
    assert set(model.identity()) == {
        "name", "head", "settings", "adaptor", "classes", "calibration", "weights_sha256",
    }  # fmt: skip


# Ensembles -------------------------------------------------------------------------------------------------

CALIBRATION = Calibration((0.5, 1.0, 2.5), ConformalRule(0.1, (float("inf"),)), Gate(0.75))


def trio() -> tuple[Ensemble, Model]:
    ensemble = Ensemble(tuple(small_head(seed) for seed in range(3)), CALIBRATION.temperatures)
    return ensemble, describe(
        ensemble, name="trio", classes=CLASSES, features=FEATURES, calibration=CALIBRATION
    )


def test_an_ensemble_comes_back_with_its_calibration(tmp_path: Path) -> None:
    ensemble, model = trio()
    save_model(tmp_path / "trio", ensemble, model, files={"notes.csv": b"a,b\n"})
    back, again = load_model(tmp_path / "trio")
    assert back == model
    assert back.calibration == CALIBRATION
    assert again.temperatures == (0.5, 1.0, 2.5)
    for one, other in zip(ensemble.members, again.members, strict=True):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert (tmp_path / "trio" / "notes.csv").read_bytes() == b"a,b\n"


def test_the_weights_hash_names_all_members_in_their_order() -> None:
    _, model = trio()
    hashes = {model.weights_sha256}
    hashes.add(dataclasses.replace(model, members=model.members[::-1]).weights_sha256)
    hashes.add(dataclasses.replace(model, members=(model.members[0],) * 3).weights_sha256)
    assert len(hashes) == 3
    alone = dataclasses.replace(model, members=model.members[:1], calibration=None)
    assert alone.weights_sha256 == model.members[0]


def test_swapped_members_are_refused(tmp_path: Path) -> None:
    ensemble, model = trio()
    swapped = Ensemble(ensemble.members[::-1], ensemble.temperatures)
    save_model(tmp_path / "trio", swapped, model)
    error = load_model_fails(tmp_path / "trio")
    assert "member-0.safetensors" in str(error)
    assert "does not hold the weights that model.json describes" in error.reason


def test_another_calibration_is_another_model(tmp_path: Path) -> None:
    ensemble, model = trio()
    save_model(tmp_path / "trio", ensemble, model)
    other = dataclasses.replace(model, calibration=dataclasses.replace(CALIBRATION, gate=Gate(0.9)))
    assert other.identity() != model.identity()
    with pytest.raises(RecipeError, match="another model is there already"):
        save_model(tmp_path / "trio", ensemble, other)


def test_a_model_of_the_first_version_is_an_ensemble_of_one(saved: Path) -> None:
    """As version 1 wrote it: one head in weights.safetensors, its hash in the card, nothing calibrated."""
    content = json.loads((saved / "model.json").read_bytes())
    (digest,) = content.pop("members")
    for new in ("adaptor", "calibration"):
        assert content.pop(new) is None
    content["features"].pop("contexts")
    draft = begin(saved.parent / "old", {"step": "model"}, work=saved.parent / ".work")
    old = content | {"format": 1, "weights_sha256": digest}
    (draft.folder / "model.json").write_bytes(canonical(old))
    data = (saved / "member-0.safetensors").read_bytes()
    (draft.folder / "weights.safetensors").write_bytes(data)
    draft.publish({})
    model, ensemble = load_model(draft.item)
    assert model == card(small_head())
    assert model.weights_sha256 == digest
    assert torch.equal(ensemble.members[0].state_dict()["W.weight"], small_head().state_dict()["W.weight"])
