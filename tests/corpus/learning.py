"""Features, models and weights that are damaged, made by others, or made to do harm."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_safetensors

from corpus.fault import Fault, Outcome, Processed, Reader, Rejected
from corpus.models import card, republish, small_head
from corpus.stores import IDENTITY, KEY, add_features, make_store
from mil.checkpoint import describe, save_model
from tiling.commit import begin

# Features --------------------------------------------------------------------------------------------------

Tamper = Callable[[Path], object]
SHARD = Path("c", "1", "0")
"""The second file of rows."""


def bags(second: dict[str, Any], *, after: Tamper = lambda item: None) -> Callable[[Path], Path]:
    """An output of two slides, the second of which has features that were made so; `after` spoils them."""

    def make(folder: Path) -> Path:
        add_features(make_store(folder, "sound"))
        store = make_store(folder, "odd", seed=1)
        add_features(store, **second)
        after(store.path(f"features/{KEY}"))
        return folder / "out"

    return make


def metadata(**change: Any) -> Tamper:
    """Other words in the array's description; it is committed as if it had been written so."""

    def tamper(folder: Path) -> None:
        path = folder / "zarr.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return tamper


def spoil_shard(change: Callable[[bytes], bytes]) -> Tamper:
    def after(item: Path) -> None:
        path = item / SHARD
        path.write_bytes(change(path.read_bytes()))

    return after


def flipped(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


def narrow(folder: Path) -> None:
    """Rows of five numbers, where the recipe says six."""
    import shutil

    import zarr

    rows = np.ones((11, 5), np.float16)
    shutil.rmtree(folder / "c")
    (folder / "zarr.json").unlink()
    zarr.create_array(folder, data=rows, chunks=(4, 5), overwrite=False)


def of_features(
    name: str,
    what: str,
    says: str | Outcome,
    second: dict[str, Any],
    after: Tamper = lambda item: None,
    code: int = 2,
) -> Fault:
    outcome = Rejected(says, code=code) if isinstance(says, str) else says
    return Fault(name, what, bags(second, after=after), outcome, Reader.FEATURES)


def both(found: Any) -> None:
    assert found == {"dim": 6, "rows": [11, 11]}


HUGE = 9_000_000_000_000_000
FEATURES = (
    of_features("feat_sound", "features as they should be", Processed(holds=both), {}),
    of_features("feat_nan", "NaN in a row", "NaN or infinite features in 1 of 11", {"bad": (9, np.nan)}),
    of_features("feat_inf", "infinity in a row", "NaN or infinite features in 1 of 11", {"bad": (9, np.inf)}),
    of_features(
        "feat_const",
        "rows of zeros: a lost file",
        "features that are all zero in 4 of 11",
        {"zeros": slice(4, 8)},
    ),
    of_features("feat_fewer", "fewer rows than tiles", "11 tiles and 8 rows", {"count": 8}),
    of_features("feat_empty", "no row at all", "11 tiles and 0 rows", {"tamper": metadata(shape=[0, 6])}),
    of_features(
        "feat_wrong_dim",
        "rows of another length than the encoder's",
        "have features of length 5 and 6",
        {"tamper": narrow},
    ),
    of_features(
        "feat_other_weights",
        "features by other weights",
        "slides 'sound' and 'odd' were not made alike",
        {"encoder": IDENTITY | {"weights": "sha256:1"}},
    ),
    of_features(
        "feat_other_dim",
        "features by an encoder of another size",
        r"encoder.dim: .*, not",
        {"encoder": IDENTITY | {"dim": 7}},
    ),
    of_features(
        "feat_hole",
        "a file of rows that is gone",
        "c/1/0 is missing",
        {},
        lambda item: (item / SHARD).unlink(),
        1,
    ),
    of_features(
        "commit_deep",
        "a commit of 200,000 brackets",
        "commit.json is unreadable",
        {},
        lambda item: (item / "commit.json").write_bytes(b"[" * 200_000),
        1,
    ),
    of_features(
        "commit_list",
        "a commit that is a list",
        "commit.json is unreadable",
        {},
        lambda item: (item / "commit.json").write_text("[]"),
        1,
    ),
    of_features(
        "feat_zero_byte",
        "one of 0 bytes",
        r"c/1/0 has 0 bytes, \d+ were committed",
        {},
        spoil_shard(lambda data: b""),
        1,
    ),
    of_features(
        "feat_cut",
        "one that is cut",
        r"c/1/0 has \d+ bytes, \d+ were committed",
        {},
        spoil_shard(lambda data: data[:-5]),
        1,
    ),
    of_features("feat_flip", "one with a flipped bit", "rows cannot be read", {}, spoil_shard(flipped), 1),
    of_features(
        "zarr_huge_shape",
        "an array of 9,000,000,000,000,000 rows",
        f"11 tiles and {HUGE} rows",
        {"tamper": metadata(shape=[HUGE, 6])},
    ),
    of_features(
        "zarr_huge_chunk",
        "rows in files of petabytes",
        "rows cannot be read: cannot reshape",
        {"tamper": metadata(chunk_grid={"name": "regular", "configuration": {"chunk_shape": [HUGE, 6]}})},
        code=1,
    ),
    of_features(
        "zarr_object_dtype",
        "an array of objects",
        "rows cannot be read: No Zarr data type found that matches 'object'",
        {"tamper": metadata(data_type="object")},
        code=1,
    ),
    of_features(
        "zarr_unknown_codec",
        "a codec that nobody knows",
        "rows cannot be read: Unknown codec: 'evil'",
        {"tamper": metadata(codecs=[{"name": "evil"}])},
        code=1,
    ),
    of_features(
        "zarr_no_json",
        "a description that is none",
        "committed output is damaged: rows cannot be read",
        {"tamper": lambda f: (f / "zarr.json").write_text("{")},
        code=1,
    ),
)


# Models ----------------------------------------------------------------------------------------------------


def saved(folder: Path) -> Path:
    head = small_head()
    save_model(folder / "model", head, card(head))
    return folder / "model"


def of_model(name: str, what: str, outcome: str | Outcome, change: Callable[[Path], Path | None]) -> Fault:
    """A case of a sound model that `change` spoils; it gives another folder or None for the same."""

    def make(folder: Path) -> Path:
        model = saved(folder)
        return change(model) or model

    wanted = Rejected(outcome, code=2) if isinstance(outcome, str) else outcome
    return Fault(name, what, make, wanted, Reader.MODEL)


def in_card(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Path]:
    return lambda model: republish(model, change)


def in_file(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        path = model / name
        path.write_bytes(change(path.read_bytes()))

    return spoil


def card_of(data: bytes) -> Callable[[Path], Path]:
    """A model whose card is these bytes, committed as if it were sound."""

    def make(model: Path) -> Path:
        draft = begin(model.parent / "changed", {"step": "model"}, work=model.parent / ".work")
        (draft.folder / "model.json").write_bytes(data)
        draft.publish({})
        return draft.item

    return make


class Evil:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned ../pwned",)


def pickled_weights(model: Path) -> Path:
    return republish(model, lambda _: None, weights=pickle.dumps(Evil()))


def without_numbers(model: Path) -> Path:
    """Weights that are NaN, and a card that knows them."""
    head = small_head()
    with torch.no_grad():
        next(head.parameters()).fill_(float("nan"))
    save_model(
        model.parent / "nan",
        head,
        describe(head, name="nan", classes=("a", "b"), features=card(head).features),
    )
    return model.parent / "nan"


def a_pipe(model: Path) -> None:
    (model / "model.json").unlink()
    os.mkfifo(model / "model.json")


def two_classes(found: Any) -> None:
    assert found == {"classes": ["normal", "tumour"], "members": 1}


WEIGHTS_FILE = "member-0.safetensors"
MODELS = (
    of_model("ckpt_sound", "a model as it should be", Processed(holds=two_classes), lambda model: None),
    of_model("ckpt_missing", "no model", "no such model", lambda model: model.parent / "gone"),
    of_model("ckpt_file", "a file", "is a file; a model is a folder", lambda model: model / WEIGHTS_FILE),
    of_model("ckpt_foreign", "a folder of something else", "no commit.json", lambda model: model.parent),
    of_model(
        "ckpt_cut",
        "weights that are cut",
        r"safetensors has \d+ bytes, \d+ were committed",
        in_file(WEIGHTS_FILE, lambda data: data[:-9]),
    ),
    of_model(
        "ckpt_empty",
        "weights of 0 bytes",
        r"safetensors has 0 bytes, \d+ were committed",
        in_file(WEIGHTS_FILE, lambda data: b""),
    ),
    of_model(
        "ckpt_flip",
        "weights with a flipped bit",
        "has other bytes than were committed",
        in_file(WEIGHTS_FILE, flipped),
    ),
    of_model(
        "ckpt_card_cut",
        "a card that is cut",
        r"model.json has 99 bytes, \d+ were committed",
        in_file("model.json", lambda data: data[:99]),
    ),
    of_model(
        "ckpt_no_card", "no card", "model.json is missing", lambda model: (model / "model.json").unlink()
    ),
    of_model("ckpt_pipe", "a card that is a pipe", "model.json is missing", a_pipe),
    of_model(
        "ckpt_version",
        "a later version",
        "version 9; this program reads",
        in_card(lambda c: c.update(format=9)),
    ),
    of_model(
        "ckpt_classes",
        "other classes than the weights have",
        "for 3 classes: 2 of another shape",
        in_card(lambda c: c.update(classes=["a", "b", "c"])),
    ),
    of_model(
        "ckpt_shape",
        "another size",
        "for 2 classes: 5 of another shape",
        in_card(lambda c: c["settings"].update(hidden=7)),
    ),
    of_model(
        "ckpt_bomb",
        "a card that asks for terabytes",
        "hidden is 274877906944",
        in_card(lambda c: c["settings"].update(hidden=2**38)),
    ),
    of_model(
        "ckpt_head",
        "a head that nobody knows",
        "no head 'wizard'",
        in_card(lambda c: c.update(head="wizard")),
    ),
    of_model(
        "ckpt_name",
        "a path as a name",
        "cannot be a model's name",
        in_card(lambda c: c.update(name="../evil")),
    ),
    of_model("ckpt_deep", "a card of 200,000 brackets", "is unreadable", card_of(b"[" * 200_000)),
    of_model("ckpt_no_json", "a card that is no JSON", "is unreadable", card_of(b"<html>")),
    of_model("ckpt_list", "a card that is a list", "is unreadable", card_of(b"[]")),
    of_model("ckpt_nan", "weights that are no numbers", "NaN or infinite", without_numbers),
    of_model(
        "ckpt_pickle_inside",
        "a pickle that runs a command, as weights",
        "not a whole safetensors file",
        pickled_weights,
    ),
)


# Weights of others -----------------------------------------------------------------------------------------


def weights(
    name: str, what: str, file: str, content: bytes | Callable[[Path], object], says: str | Outcome
) -> Fault:
    def make(folder: Path) -> Path:
        path = folder / file
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
        return path

    outcome = Rejected(says, code=2) if isinstance(says, str) else says
    return Fault(name, what, make, outcome, Reader.WEIGHTS)


def named(found: Any) -> None:
    assert found == {"tensors": ["w"]}


TENSORS = {"w": torch.ones(2, 3)}
SAFE = to_safetensors(TENSORS)
WEIGHTS = (
    weights("w_safetensors", "safetensors as they should be", "w.safetensors", SAFE, Processed(holds=named)),
    weights(
        "w_pth",
        "tensors of torch.save",
        "w.pth",
        lambda path: torch.save(TENSORS, path),
        Processed(holds=named),
    ),
    weights(
        "ckpt_pickle_plain",
        "a pickle that runs a command",
        "w.pth",
        pickle.dumps(Evil()),
        "is refused: .*run code",
    ),
    weights(
        "ckpt_pickle_zip",
        "the same within torch's own file",
        "w.pth",
        lambda path: torch.save({"w": Evil()}, path),
        "is refused: .*run code",
    ),
    weights(
        "ckpt_pickle_bin",
        "the same, of another name",
        "pytorch_model.bin",
        pickle.dumps({"state_dict": Evil()}),
        "is refused: .*run code",
    ),
    weights(
        "ckpt_pickle_safe",
        "the same, called safetensors",
        "w.safetensors",
        pickle.dumps(Evil()),
        "not a whole safetensors file",
    ),
    weights(
        "w_numbers",
        "no tensors",
        "w.pth",
        lambda path: torch.save({"epoch": 3}, path),
        "is not a set of named tensors",
    ),
    weights("w_empty", "0 bytes", "w.safetensors", b"", "not a whole safetensors file"),
    weights("w_empty_pth", "0 bytes", "w.pth", b"", "is not a checkpoint .EOFError"),
    weights("w_html", "a login page", "w.pth", b"<html>Please log in", "is refused: .*run code"),
    weights(
        "w_html_safe",
        "a login page",
        "w.safetensors",
        b"<!DOCTYPE html><html>Please log in",
        "not a whole safetensors file",
    ),
    weights(
        "w_cut", "half of the file", "w.safetensors", SAFE[: len(SAFE) - 8], "not a whole safetensors file"
    ),
    weights(
        "w_header",
        "a header of an exabyte",
        "w.safetensors",
        struct.pack("<Q", 2**60) + SAFE[8:],
        "not a whole safetensors file",
    ),
    weights(
        "w_bomb",
        "tensors of an exabyte in a small file",
        "w.safetensors",
        SAFE.replace(b"[0,24]", b"[0,99]"),
        "not a whole safetensors file",
    ),
    weights(
        "w_lfs",
        "what git leaves in place of a large file",
        "w.safetensors",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "not a whole safetensors file",
    ),
    weights("w_fifo", "a pipe that nobody writes to", "w.pth", os.mkfifo, "no such weights file"),
    weights("w_missing", "no file", "w.pth", lambda path: None, "no such weights file"),
)
