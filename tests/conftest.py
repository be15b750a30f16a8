"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest

VOID = {"meta", "img", "rect", "br"}
os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Before torch is imported: on tiny networks a second thread only waits for the first, and spins."""
os.environ.setdefault("MICROTOME_WORKERS", "0")
"""Commands of a test work in its own process, where it can look, unless it asks for others."""
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:  # as by nohup, and by shells for what is in the background
        signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real slides and data, or a skip that says how to get it."""
    folder = Path(os.environ.get("MICROTOME_DATA", ROOT.parent / "shared"))
    if not (folder / "slides").is_dir():
        pytest.skip(f"no real slides: set MICROTOME_DATA to a folder that holds slides/ (looked in {folder})")
    return folder


class Page(HTMLParser):
    """Refuses tags that are not closed, and collects tags, attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = text
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.append((self.open[-1], data))
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data

    def within(self, tag: str) -> list[str]:
        """All texts right in such a tag."""
        return [text for found, text in self.texts if found == tag]

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.tags if found == tag]

    def row(self, first: str) -> list[str]:
        """The first row that begins with this cell, without it."""
        return next(row[1:] for row in self.rows if row and row[0] == first)

    @property
    def words(self) -> str:
        """All text that is seen, in one line."""
        shown = (text for tag, text in self.texts if tag not in {"style", "script", "title"})
        return re.sub(r"\s+", " ", " ".join(shown))


@pytest.fixture(scope="session")
def parsed() -> Callable[[str], Page]:
    """Reads a page of HTML, strictly."""
    return Page


class SmallRun(NamedTuple):
    """What `microtome run` needs, as small as it goes."""

    slides: Path
    """Folder of two slides, of eight tiles each."""
    model: Path
    """Folder of a model of two classes that was never trained: here its bytes matter, not what it says."""
    weights: Path
    """Of its encoder."""

    def words(self, out: Path, *more: str) -> list[str]:
        """The command, with results in `out`."""
        words = ["run", str(self.slides), "-m", str(self.model), "--weights", str(self.weights)]
        return [*words, "-o", str(out), "--device", "cpu", *more]


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """Two slides and a model, made in a second: what the tests of faults run again and again."""
    import torch
    from safetensors.torch import save_file

    from mil.checkpoint import describe, save_model
    from mil.encoders import load_encoder, untrained_encoder
    from mil.features import FeatureRecipe
    from mil.heads import build_head
    from tiling.grid import TileSpec
    from tiling.recipe import CutRecipe
    from wsi.synthetic import write_slide

    folder = tmp_path_factory.mktemp("small-run")
    run = SmallRun(folder / "slides", folder / "model", folder / "weights.safetensors")
    run.slides.mkdir()
    for seed in (2, 4):
        write_slide(run.slides / f"s{seed}.svs", seed=seed, lesion=False, size=(512, 384))
    state = untrained_encoder("timm:test_efficientnet", seed=0).module.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, run.weights)
    encoder = load_encoder("timm:test_efficientnet", weights=run.weights)
    settings = CutRecipe(spec=TileSpec(size_px=64, mpp=1.0)).settings()
    features = FeatureRecipe.from_json({**settings, "encoder": encoder.identity()})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = build_head("gated_abmil", dim=features.dim, classes=2, settings={"hidden": 16, "attention": 8})
    save_model(run.model, head, describe(head, name="model", classes=("no", "yes"), features=features))
    return run
