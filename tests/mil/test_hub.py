"""Laws of fetching weights: what the hub gives is what a file gives, and what it refuses is explained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors
from safetensors.torch import save_file

from mil.encoders import ENCODERS, load_encoder
from mil.networks.architecture import build
from wsi.errors import UsageError

Hub = Callable[..., list[tuple[str, str]]]
NAME = "kaiko-vits16"
HUB = "1aurent/vit_small_patch16_224.kaiko_ai_towards_large_pathology_fms"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Puts a hub in place of the real one; gives what it was asked for."""

    def place(
        answer: Callable[[str], str], *, cached: Callable[[str], object] = lambda _: None
    ) -> list[tuple[str, str]]:
        asked: list[tuple[str, str]] = []

        def download(repository: str, name: str) -> str:
            asked.append((repository, name))
            return answer(name)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, name: cached(name))
        return asked

    return place


def refusing(kind: type[Exception]) -> Callable[[str], str]:
    """A hub that raises; its errors want a response of the network to be made, which is not looked at."""

    def answer(_: str) -> str:
        raise kind.__new__(kind)

    return answer


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hub") / "model.safetensors"
    save_file(dict(build(ENCODERS[NAME], seed=1).state_dict()), path)
    return path


def test_what_the_hub_gives_is_what_the_file_gives(hub: Hub, weights: Path) -> None:
    asked = hub(lambda name: str(weights))
    fetched = load_encoder(NAME)
    assert asked == [(HUB, "model.safetensors")]
    assert fetched.identity() == load_encoder(NAME, weights=weights).identity()


def test_the_kind_of_file_that_cannot_run_code_is_asked_for_first(hub: Hub, weights: Path) -> None:
    def pickles_only(name: str) -> str:
        if name != "pytorch_model.bin":
            raise errors.EntryNotFoundError(name)
        return str(weights)

    asked = hub(pickles_only)
    load_encoder(NAME)
    assert [name for _, name in asked] == ["model.safetensors", "pytorch_model.bin"]
    hub(refusing(errors.EntryNotFoundError))
    with pytest.raises(UsageError, match=r"has none of the files model.safetensors, pytorch_model.bin"):
        load_encoder(NAME)


def test_what_was_fetched_once_needs_no_network(hub: Hub, weights: Path) -> None:
    # That it is known not to exist is an object of the client's own, and no path.
    asked = hub(
        refusing(errors.LocalEntryNotFoundError),
        cached=lambda name: str(weights) if name == "pytorch_model.bin" else object(),
    )
    load_encoder(NAME)
    assert asked == []


@pytest.mark.parametrize("name", [name for name, row in ENCODERS.items() if row.source and row.source.gated])
def test_a_gated_encoder_says_what_to_accept_where_and_which_token_to_set(name: str, hub: Hub) -> None:
    hub(refusing(errors.GatedRepoError))
    source = ENCODERS[name].source
    assert source is not None
    with pytest.raises(UsageError) as caught:
        load_encoder(name)
    assert caught.value.reason.startswith(f"the weights of {name} are given out on conditions (")
    assert caught.value.action is not None
    for part in (f"Accept them at https://huggingface.co/{source.hub},", "HF_TOKEN", "--weights FILE"):
        assert part in caught.value.action


@pytest.mark.parametrize(
    "kind", [errors.LocalEntryNotFoundError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled, ValueError]
)
def test_without_the_hub_the_message_says_to_give_a_file_and_where_it_is(
    kind: type[Exception], hub: Hub
) -> None:
    hub(refusing(kind))
    with pytest.raises(
        UsageError, match=rf"weights of uni2-h cannot be had from the hub \({kind.__name__}\)"
    ) as caught:
        load_encoder("uni2-h")
    assert caught.value.action is not None
    assert "--weights FILE" in caught.value.action
    assert "https://huggingface.co/MahmoodLab/UNI2-h (CC BY-NC-ND 4.0" in caught.value.action
    assert "conditions have to be accepted there first" in caught.value.action


def test_weights_that_are_not_on_the_hub_are_asked_for_as_a_file(hub: Hub) -> None:
    asked = hub(refusing(AssertionError))
    with pytest.raises(UsageError, match=r"not on the hub .*github.com/Xiyue-Wang/TransPath.*--weights FILE"):
        load_encoder("ctranspath")
    assert asked == []
