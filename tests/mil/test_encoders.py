"""Laws of encoders: the right network with the right weights and input, or a refusal that says why."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from mil import encoders
from mil.device import Precision, best_precision, choose_device
from mil.encoder import Encoder, Interpolation, Transform, require_identity
from mil.encoders import load_encoder, untrained_encoder
from mil.networks.efficientnet_lite import packaged_weights, to_timm_names
from mil.networks.torchvision_shim import import_timm
from mil.networks.weights import read_state
from wsi.errors import UsageError

TINY = "timm:test_vit"


def random_tiles(count: int, size: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, size, size, 3), np.uint8))


@pytest.fixture(scope="module")
def lite0() -> Encoder:
    return load_encoder("efficientnet_lite0")


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    """An independent implementation of EfficientNet-Lite0, with the same weights."""
    package = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="a reference for tests, in the extra dev"
    )
    network = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(packaged_weights()))
    return network.eval()


# The default encoder -------------------------------------------------------------------------------------


def classify(timm_name: str, x: torch.Tensor) -> torch.Tensor:
    """Class logits of a network of timm with the packaged weights, renamed."""
    network = import_timm().create_model(timm_name, pretrained=False).eval()
    network.load_state_dict(to_timm_names(read_state(packaged_weights())))
    with torch.inference_mode():
        return network(x)


@torch.inference_mode()
def test_lite0_equals_an_independent_forward(lite0: Encoder, reference: Any) -> None:
    x = lite0.row.transform(random_tiles(3, 224))
    torch.testing.assert_close(classify("tf_efficientnet_lite0", x), reference(x), atol=1e-4, rtol=0)
    features = reference.extract_features(x).mean(dim=(2, 3))
    torch.testing.assert_close(lite0.module(x), features, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_lite0_without_tensorflows_padding_is_another_network(lite0: Encoder, reference: Any) -> None:
    x = lite0.row.transform(random_tiles(3, 224))
    wrong = classify("efficientnet_lite0", x)  # loads without complaint: the trap
    assert (wrong - reference(x)).abs().amax(dim=1).min() > 0.5


@torch.inference_mode()
def test_lite0_knows_a_flower_with_its_own_transform_only(lite0: Encoder, reference: Any) -> None:
    photo = load_sample_image("flower.jpg")[:, 106:533].copy()
    tile = torch.from_numpy(photo)[None]
    others = dataclasses.replace(lite0.row.transform, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    daisy = 985
    own = reference(lite0.row.transform(tile)).softmax(1)[0]
    assert own.argmax() == daisy
    assert own[daisy] > 1.5 * reference(others(tile)).softmax(1)[0, daisy]


def test_bf16_is_close_to_fp32(lite0: Encoder) -> None:
    tiles = random_tiles(4, 224)
    full, half = lite0(tiles), lite0(tiles, precision=Precision.BF16)
    assert full.dtype == half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(full, half).min() > 0.998
    assert not torch.equal(full, half)


# Rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["efficientnet_lite0", "kaiko-vits16", "resnet50-layer3"])
def test_an_encoder_gives_vectors_of_its_rows_length(name: str) -> None:
    encoder = untrained_encoder(name, seed=0)
    size = encoder.row.transform.input_size
    assert encoder(random_tiles(1, size)).shape == (1, encoder.row.dim)
    assert encoder.row.name == name


def test_any_name_of_timm_is_an_encoder(tiny_encoder: Encoder) -> None:
    assert tiny_encoder.dim == 64
    assert tiny_encoder.row.transform.input_size == 160
    assert tiny_encoder.key == "timm-test_vit"


@pytest.mark.parametrize("name", ["", "UNI", "timm:", "timm:no_such_network", "test_vit"])
def test_unknown_names_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError, match=r"no encoder.*efficientnet_lite0"):
        load_encoder(name)


def test_the_transform_without_resizing_is_the_formula() -> None:
    transform = Transform(32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    tiles = random_tiles(2, 32)
    expected = (tiles.double() / 255 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.6, 0.7])
    x = transform(tiles)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double(), expected.permute(0, 3, 1, 2).double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", list(Interpolation))
@pytest.mark.parametrize("size", [256, 300, 100])
def test_resizing_is_that_of_pillow(kind: Interpolation, size: int) -> None:
    noise = random_tiles(1, size).float()
    smooth = torch.nn.functional.avg_pool2d(noise.permute(0, 3, 1, 2), 3, stride=1, padding=1)
    tile = smooth.permute(0, 2, 3, 1).to(torch.uint8)  # Pillow also clips between its two passes
    ours = Transform(224, mean=(0, 0, 0), std=(1 / 255,) * 3, interpolation=kind)(tile)[0].permute(1, 2, 0)
    theirs = np.asarray(Image.fromarray(tile[0].numpy()).resize((224, 224), Image.Resampling[kind.name]))
    assert np.abs(ours.numpy() - theirs).max() <= 1.5  # grey levels: Pillow rounds twice


def test_the_middle_is_cut_out_of_a_resized_tile() -> None:
    whole = Transform(256, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    cut = dataclasses.replace(whole, input_size=224, resized=256)
    for size in (256, 300):  # at 256 nothing is resampled
        tiles = random_tiles(2, size)
        assert torch.equal(cut(tiles), whole(tiles)[:, :, 16:240, 16:240])
    with pytest.raises(ValueError, match="224 pixels cannot be cut out of 200"):
        dataclasses.replace(whole, input_size=224, resized=200)


# Weights -------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_state() -> dict[str, torch.Tensor]:
    state = untrained_encoder(TINY, seed=3).module.state_dict()
    return {name: tensor.contiguous() for name, tensor in state.items()}


def test_weights_load_from_either_kind_of_file_with_one_identity(tmp_path: Path, tiny_state: Any) -> None:
    save_file(tiny_state, tmp_path / "w.safetensors")
    torch.save(tiny_state, tmp_path / "w.pth")
    wrapped = {f"module.{key}": value for key, value in tiny_state.items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "wrapped.pth")
    with_classifier = tiny_state | {"head.weight": torch.zeros(9, 64), "head.bias": torch.zeros(9)}
    torch.save(with_classifier, tmp_path / "classifier.pth")
    names = ("w.safetensors", "w.pth", "wrapped.pth", "classifier.pth")
    loaded = [load_encoder(TINY, weights=tmp_path / name) for name in names]
    assert len({json.dumps(encoder.identity()) for encoder in loaded}) == 1
    tiles = random_tiles(2, 160)
    assert torch.equal(loaded[0](tiles), untrained_encoder(TINY, seed=3)(tiles))


def test_another_weight_is_another_identity(tmp_path: Path, tiny_state: dict[str, torch.Tensor]) -> None:
    save_file(tiny_state, tmp_path / "a.safetensors")
    tiny_state["cls_token"] = tiny_state["cls_token"] + 1e-6
    save_file(tiny_state, tmp_path / "b.safetensors")
    first, second = (load_encoder(TINY, weights=tmp_path / f"{name}.safetensors") for name in "ab")
    assert first.identity() != second.identity()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("cls_token"), r"1 missing \(cls_token\)"),
        (lambda state: state.update(extra=torch.zeros(1)), r"1 unexpected \(extra\)"),
        (lambda state: state.update(cls_token=torch.zeros(1, 1, 65)), r"1 of another shape \(cls_token\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, tiny_state: dict[str, torch.Tensor], change: Callable[[Any], Any], message: str
) -> None:
    change(tiny_state)
    path = tmp_path / "w.safetensors"
    save_file(tiny_state, path)
    with pytest.raises(UsageError, match=message) as caught:
        load_encoder(TINY, weights=path)
    assert caught.value.path == str(path)


def test_the_weights_of_another_network_are_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"missing .*\.\.\..*unexpected") as caught:
        load_encoder("vit_small_patch16_224", weights=packaged_weights())
    assert len(str(caught.value).splitlines()) == 1


class Evil:
    """Runs code when it is unpickled without care."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("archive", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not(tmp_path: Path, archive: bool) -> None:
    path, canary = tmp_path / "evil.pth", tmp_path / "canary"
    if archive:
        torch.save({"weight": Evil(canary)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Evil(canary)}, protocol=2))
    with pytest.raises(UsageError, match="could run code"):
        load_encoder(TINY, weights=path)
    assert not canary.exists()
    with contextlib.suppress(RuntimeError):  # too late: the code has run
        torch.load(path, weights_only=False)
    assert canary.exists()  # it would have


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"\x80\x02}q\x00.", b"PK\x03\x04 cut zip"])
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_encoder(TINY, weights=path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.action


def test_a_cut_file_is_refused(tmp_path: Path, tiny_state: dict[str, torch.Tensor]) -> None:
    save_file(tiny_state, tmp_path / "w.safetensors")
    torch.save(tiny_state, tmp_path / "w.pth")
    for path in (tmp_path / "w.safetensors", tmp_path / "w.pth"):
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(UsageError, match="is not a"):
            load_encoder(TINY, weights=path)


def test_a_missing_file_and_a_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such weights file"):
        load_encoder(TINY, weights=tmp_path / "none.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(UsageError, match="it holds a list"):
        load_encoder(TINY, weights=tmp_path / "list.pth")


def test_without_a_hub_the_message_says_to_give_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = import_timm()
    create = timm.create_model

    def offline(name: str, *, pretrained: bool, **options: Any) -> Any:
        if pretrained:
            raise OSError("no network")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UsageError, match=r"weights of resnet50 cannot be had.*--weights FILE"):
        load_encoder("resnet50")


# Behaviour -----------------------------------------------------------------------------------------------


def test_random_weights_follow_the_seed_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (untrained_encoder(TINY, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    tiles = random_tiles(2, 160)
    assert torch.equal(first(tiles), again(tiles))
    assert not torch.equal(first(tiles), other(tiles))
    assert first.identity()["weights"] == "untrained seed 1"


def test_loading_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    load_encoder("efficientnet_lite0")
    assert torch.equal(before, torch.get_rng_state())


def test_the_identity_survives_json(lite0: Encoder) -> None:
    identity = lite0.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["weights"].startswith("sha256:")
    assert set(identity) == {
        "name", "architecture", "dim", "input_size", "resized", "mean", "std", "interpolation", "pooling",
        "weights",
    }  # fmt: skip


def test_a_model_of_before_the_architecture_was_recorded_is_refused_before_any_work(lite0: Encoder) -> None:
    identity = lite0.identity()
    require_identity(lite0, identity)
    old = {name: value for name, value in identity.items() if name not in ("architecture", "resized")}
    with pytest.raises(UsageError, match=r"architecture and resized.*encode --overwrite.*train"):
        require_identity(lite0, old)
    with pytest.raises(UsageError, match=r"weights sha256:.*, not sha256:0.*--weights"):
        require_identity(lite0, identity | {"weights": "sha256:0"})


def test_an_encoder_is_in_eval_mode_without_gradients(lite0: Encoder) -> None:
    assert not any(module.training for module in lite0.module.modules())
    assert not any(parameter.requires_grad for parameter in lite0.module.parameters())
    assert not lite0(random_tiles(1, 224)).requires_grad


def test_a_tiles_features_do_not_depend_on_its_batch(lite0: Encoder) -> None:
    tiles = random_tiles(5, 256)
    together, alone = lite0(tiles), torch.cat([lite0(tile[None]) for tile in tiles])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="no device 'toaster' here"):
        choose_device("toaster")
    for name in ("meta", "xla", "vulkan:0"):
        with pytest.raises(UsageError, match=f"no device '{name}' here"):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"avx512_bf16": True}, Precision.BF16),
        ({"amx_bf16": True, "avx512_bf16": False}, Precision.BF16),
        ({"avx2": True}, Precision.FP32),
    ],
)
def test_bf16_only_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: Precision
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert best_precision(torch.device("cpu")) is precision


def test_a_network_that_gives_maps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = import_timm()
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: torch.nn.Conv2d(3, 4, 1))
    with pytest.raises(UsageError, match="not one vector a tile"):
        encoders.find_row(TINY)
