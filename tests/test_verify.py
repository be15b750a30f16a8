"""`verify --full` finds every flipped byte and every other harm to what was committed, wherever it is."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import cli
from mil.checkpoint import load_model, save_model
from tiling.commit import COMMIT_FILE, canonical, find_damage, load_commit
from tiling.output import Output, verify_items
from wsi.errors import DamagedError

FLIPS = 1000
BY_COMMAND = 12
"""How many of them are looked for by the command, in the whole output; the others by the item alone."""


@dataclass(frozen=True)
class Finished:
    """A complete run: tissue, tiles, quality, features, scores, heatmaps of all formats, reports, a model."""

    output: Output
    items: list[Path]

    def files(self, item: Path) -> list[Path]:
        return sorted(path for path in item.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def finished(small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = tmp_path_factory.mktemp("verify") / "out"
    assert cli.main(small_run.words(out, "--quiet")) == 0
    formats = ["--format", "ome-tiff", "ome-zarr", "png", "--overwrite", "--quiet"]
    assert cli.main(["heatmap", str(out), "-m", str(small_run.model), *formats]) == 0
    assert cli.main(["report", str(out), "--quiet"]) == 0
    model, ensemble = load_model(small_run.model)
    save_model(out / "models" / "adapted", ensemble, model)
    output = Output(out)
    return Finished(output, [report.item for report in verify_items(output, full=True)])


def found(item: Path, *, full: bool) -> list[str]:
    """Files of an item with which something is wrong, as `verify` finds them."""
    try:
        return [damage.file for damage in find_damage(item, load_commit(item), full=full)]
    except DamagedError:
        return [COMMIT_FILE]


def command(out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, str]]]:
    capsys.readouterr()
    code = cli.main(["verify", str(out), "--full", "--json"])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()][:-1]


def test_a_whole_output_has_items_of_every_kind_and_nothing_wrong(finished: Finished) -> None:
    assert len(finished.items) == 2 * 7 + 1, finished.items
    assert all(found(item, full=True) == [] for item in finished.items)
    suffixes = {path.suffix for item in finished.items for path in finished.files(item)}
    assert {".tif", ".png", ".jpg", ".json", ".geojson", ".html", ".safetensors"} <= suffixes, suffixes


def test_every_one_of_a_thousand_flipped_bytes_is_found(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    """An item first, so that none is too small to be hit; then a byte of all its bytes."""
    rng = random.Random(7)
    hit = set()
    for number in range(FLIPS):
        item = rng.choice(finished.items)
        files = finished.files(item)
        (path,) = rng.choices(files, [file.stat().st_size for file in files])
        at, bit = rng.randrange(path.stat().st_size), 1 << rng.randrange(8)
        name = path.relative_to(item).as_posix()
        with flipped(path, at, bit):
            assert found(item, full=True) == [name], (item, name, at, bit)
            if number % (FLIPS // BY_COMMAND) == 0:
                code, lines = command(finished.output.root, capsys)
                assert code == 1
                assert {"item": str(item), "file": name} in [
                    {key: line[key] for key in ("item", "file")} for line in lines
                ]
        hit.add(path)
    assert {path for path in hit if path.name == COMMIT_FILE}
    assert command(finished.output.root, capsys) == (0, [])  # each was put back


class flipped:  # noqa: N801 - reads as what it does
    """A file with one bit flipped, for a while."""

    def __init__(self, path: Path, at: int, bit: int) -> None:
        self.path, self.at, self.bit = path, at, bit

    def _flip(self) -> None:
        with self.path.open("r+b") as stream:
            stream.seek(self.at)
            byte = stream.read(1)[0]
            stream.seek(self.at)
            stream.write(bytes([byte ^ self.bit]))

    def __enter__(self) -> None:
        self._flip()

    def __exit__(self, *error: object) -> None:
        self._flip()


def every_file(finished: Finished) -> Iterator[tuple[Path, Path]]:
    for item in finished.items:
        for path in finished.files(item):
            yield item, path


def test_every_cut_is_found_even_without_reading_any_byte(finished: Finished) -> None:
    """To nothing, to a half, and by the last byte; each file of each item."""
    cuts = 0
    for item, path in every_file(finished):
        data = path.read_bytes()
        for length in {0, len(data) // 2, max(0, len(data) - 1)} - {len(data)}:
            path.write_bytes(data[:length])
            assert found(item, full=False) == [path.relative_to(item).as_posix()], (path, length)
            cuts += 1
        path.write_bytes(data)
    assert cuts > 250


def test_every_file_that_is_gone_renamed_or_added_is_found(finished: Finished) -> None:
    for item, path in every_file(finished):
        name, elsewhere = path.relative_to(item).as_posix(), path.with_name(f"other-{path.name}")
        path.rename(elsewhere)
        now = found(item, full=False)
        assert now == [name, elsewhere.relative_to(item).as_posix()] or now == [COMMIT_FILE], path
        elsewhere.rename(finished.output.root / "away")
        assert found(item, full=False) == [name], path
        (finished.output.root / "away").rename(path)
    for item in finished.items:
        (item / "more").write_bytes(b"")
        assert found(item, full=False) == ["more"]
        (item / "more").unlink()


def test_files_that_changed_places_are_found_by_their_bytes(finished: Finished) -> None:
    """Of one size, so that only the hashes tell: in one item, and between the items of two slides."""
    swaps = 0
    pairs = []
    everything = list(every_file(finished))
    for index, (item, path) in enumerate(everything):
        for other_item, other in everything[index + 1 :]:
            same_size = path.stat().st_size == other.stat().st_size
            if same_size and (item == other_item or path.name == other.name):
                pairs.append((item, path, other_item, other))
    for item, path, other_item, other in pairs:
        one, two = path.read_bytes(), other.read_bytes()
        if one == two:
            continue
        path.write_bytes(two)
        other.write_bytes(one)
        names = {path.relative_to(item).as_posix(), other.relative_to(other_item).as_posix()}
        now = {*found(item, full=True), *found(other_item, full=True)}
        # The commit.json of another item is whole in itself: the files that it speaks of are not there.
        assert now if path.name == COMMIT_FILE else names <= now, (path, other)
        swaps += 1
        path.write_bytes(one)
        other.write_bytes(two)
    assert swaps >= 5


def test_a_commit_that_says_what_it_likes_is_not_believed(finished: Finished) -> None:
    """Written anew with another record and no checksum of its own, or with the old one."""
    for item in finished.items:
        path = item / COMMIT_FILE
        data = path.read_bytes()
        content = json.loads(data)
        unsealed = {key: content[key] for key in content if key != "checksum"}
        for changed in (content | {"record": {"mine": 1}}, unsealed):
            path.write_bytes(canonical(changed))
            assert found(item, full=False) == [COMMIT_FILE]
        path.write_bytes(data)


def test_harm_to_the_groups_on_the_way_is_told(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    """Zarr's own files between the items: nothing is lost with them, but other readers find nothing."""
    group = finished.output.slide_folder("s2") / "store.zarr" / "zarr.json"
    with flipped(group, 5, 1):
        code, lines = command(finished.output.root, capsys)
    assert code == 1
    assert {line["file"] for line in lines} == {"s2/store.zarr/zarr.json"}
    assert {line["damage"] for line in lines} == {"is missing or not as written"}
