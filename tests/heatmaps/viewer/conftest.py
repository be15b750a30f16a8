"""A folder of results as the commands leave it, and a server for it."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heatmaps.viewer.catalogue import Catalogue, open_output
from heatmaps.viewer.server import ViewerServer
from logged import write_run_log
from tiling.cohort import Outcome, Status
from tiling.cut import cut_slide
from tiling.grid import TileSpec
from tiling.output import Output
from tiling.recipe import CutRecipe
from tiling.store import TileStore, make_array
from tiling.survey import survey_slide
from wsi.slide import Slide
from wsi.synthetic import write_slide
from wsi.tissue import HlsThresholds

CLASSES = ("normal", "tumour")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
DRIVER = shutil.which("chromedriver")
HOSTILE = "<img src=x onerror=document.title='owned'>&\"'"


def cut(folder: Path, name: str, *, seed: int, spec: TileSpec) -> TileStore:
    path = folder / f"{name}.svs"
    write_slide(path, seed=seed, lesion=True, size=(1280, 896))
    store = TileStore(Output(folder / "out"), name)
    with store.output.lock(), Slide(path) as slide:
        survey_slide(slide, store, HlsThresholds())
        cut_slide(slide, store, CutRecipe(spec, stain=None, pixels=None))
    return store


RECORD = {
    "probabilities": {"normal": 0.07, "tumour": 0.93},
    "calibrated": True,
    "decision": {
        "status": "review required",
        "confidence": 0.93,
        "reasons": ["the set holds two classes"],
    },
}


def score(
    store: TileStore, model: str, *, record: dict[str, Any] | None = None, **said: str
) -> dict[str, np.ndarray]:
    """Commit scores as `mil.predict` does: rising to the right, so that a test knows them."""
    x = store.origins[:, 0].astype(np.float32)
    tumour = (0.02 + 0.96 * x / x.max()).astype(np.float32)
    arrays = {
        "scores": np.column_stack([1 - tumour, tumour]),
        "attention": tumour / tumour.sum(),
        "uncertainty": 1 - np.abs(2 * tumour - 1),
        "disagreement": 0.1 * tumour,
    }
    recipe = {
        "step": "scores",
        "inputs": store.inputs("tiles"),
        "model": {"classes": list(CLASSES), "weights_sha256": "0"} | said,
    }
    with store.output.lock():
        draft = store.begin(f"scores/{model}", recipe)
        assert draft is not None
        for key, values in arrays.items():
            make_array(
                draft, key, shape=values.shape, rows_per_file=len(values), dtype=np.float32, fill=np.nan
            ).write_all(values)
        draft.publish(RECORD if record is None else record)
    return arrays


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT with a plain slide, one with a hostile name and tiles that overlap, and one that failed."""
    folder = tmp_path_factory.mktemp("viewed")
    for name, spec in (("plain", TileSpec(64, 1.0)), (HOSTILE, TileSpec(64, 1.0, overlap_px=32))):
        score(cut(folder, name, seed=7, spec=spec), "model")
    output = Output(folder / "out")
    outcomes = [
        Outcome("plain", str(folder / "plain.svs"), Status.DONE),
        Outcome(HOSTILE, str(folder / f"{HOSTILE}.svs"), Status.DONE),
        Outcome("broken", str(folder / "broken.svs"), Status.FAILED, "it is truncated"),
    ]
    write_run_log(output, ["run"], outcomes)
    return output.root


@pytest.fixture
def copied(results: Path, tmp_path: Path) -> Catalogue:
    """The same of a copy that a test may change; the slides are where they were."""
    shutil.copytree(results, tmp_path / "out")
    return open_output(tmp_path / "out", files={}, annotations=None)


@pytest.fixture(scope="session")
def scoring() -> Callable[..., dict[str, np.ndarray]]:
    return score


@pytest.fixture
def catalogue(results: Path, tmp_path: Path) -> Catalogue:
    """Of the results, with marks in a folder of the test's own."""
    opened = open_output(results, files={}, annotations=None)
    opened.marks = tmp_path / "feedback"
    return opened


@contextmanager
def serving(catalogue: Catalogue) -> Iterator[ViewerServer]:
    with ViewerServer(catalogue) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Ask = Callable[..., Reply]


@pytest.fixture
def server(catalogue: Catalogue) -> Iterator[ViewerServer]:
    with serving(catalogue) as running:
        yield running


@pytest.fixture
def ask(server: ViewerServer) -> Ask:
    """Ask as the page does; header by header it can be asked otherwise, None leaves one out."""

    def send(path: str, *, method: str = "GET", body: Any = None, **more: str | None) -> Reply:
        port, door = server.port, server.door
        headers: dict[str, str | None] = {
            "Host": f"127.0.0.1:{port}",
            "Cookie": f"microtome-{port}={door.token}",
        }
        data = None
        if method == "POST":
            headers |= {
                "Origin": f"http://127.0.0.1:{port}",
                "X-Microtome-Token": door.page_token,
                "Content-Type": "application/json",
            }
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers["Content-Length"] = str(len(data))
        headers |= {name.replace("_", "-"): text for name, text in more.items()}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, text in headers.items():
                if text is not None:
                    connection.putheader(name, text)
            connection.endheaders(data)
            answer = connection.getresponse()
            return Reply(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    return send


def numbered(catalogue: Catalogue, name: str) -> int:
    return [entry.slide_id for entry in catalogue.refresh()].index(name)


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    """Headless Chromium, from Debian's packages chromium and chromium-driver."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed (pip install '.[dev]')"
    )
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium: install Debian's packages chromium and chromium-driver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1500,950",
        "--disable-dev-shm-usage",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(service=Service(DRIVER), options=options)
    driver.set_script_timeout(60)
    yield driver
    driver.quit()
