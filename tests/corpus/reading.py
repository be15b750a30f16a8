"""Readers of the library that have no command of their own, as commands; and such as misbehave."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsi.errors import MicrotomeError
from wsi.messages import messages, on_a_terminal


def labels(path: Path) -> dict[str, Any]:
    """A table to train by."""
    from mil.labels import read_labels

    table = read_labels(path)
    rows = [[row.slide_id, row.label, row.patient] for row in table.rows]
    return {"classes": table.classes, "rows": rows}


def regions(path: Path) -> dict[str, Any]:
    """A user's regions."""
    from wsi.annotations import read_annotations

    found = read_annotations(path)
    return {"names": [one.name for one in found], "extents": [one.polygons[0].extent for one in found]}


def features(out: Path) -> dict[str, Any]:
    """The bags of all slides of an output, packed as for a step of training."""
    from mil.bags import pack
    from mil.features import common_recipe, open_bag
    from tiling.output import Output
    from tiling.store import TileStore

    stores = [TileStore(Output(out), slide_id) for slide_id in Output(out).slides_with_tiles()]
    recipe = common_recipe(stores, "enc")
    packed = pack([open_bag(store, "enc").read() for store in stores])
    return {"dim": recipe.dim, "rows": packed.sizes}


def foreign(folder: Path) -> dict[str, Any]:
    """Places and features of other tools' making, as `import` reads them: rows of both by slide."""
    from tiling.interchange import find_foreign, import_coordinates, import_features

    found = {}
    for slide_id, files in find_foreign([folder]).items():
        places = import_coordinates(files.coordinates)
        rows = import_features(files.features).features if files.features else None
        found[slide_id] = [len(places.origins), list(rows.shape) if rows is not None else None]
    return found


def model(folder: Path) -> dict[str, Any]:
    """A trained model."""
    from mil.checkpoint import load_model

    card, ensemble = load_model(folder)
    return {"classes": card.classes, "members": len(ensemble.members)}


def weights(path: Path) -> dict[str, Any]:
    """A checkpoint of somebody else's."""
    from mil.networks.weights import read_state

    return {"tensors": sorted(read_state(path))}


def flips(folder: Path) -> dict[str, Any]:
    """What comes of each slide of a folder, against that which is called sound."""
    from corpus.bits import see, verdict

    paths = sorted(folder.iterdir())
    sound = see(next(path for path in paths if path.name.startswith("sound.")))
    seen = {path.name: see(path) for path in paths}
    return {name: [verdict(one, sound), one.refused] for name, one in seen.items()}


def hang(path: Path) -> None:
    """Wait for ever."""
    os.open(path, os.O_RDONLY)


def crash(path: Path) -> None:
    """End as a decoder does that reads where it must not."""
    os.kill(os.getpid(), signal.SIGSEGV)


def grow(path: Path) -> None:
    """Take more memory than there is."""
    bytearray(1 << 40)


def trust(path: Path) -> None:
    """Run what a pickle says."""
    pickle.loads(path.read_bytes())


READERS = {
    read.__name__: read
    for read in (labels, regions, features, foreign, model, weights, flips, hang, crash, grow, trust)
}


def main(words: Sequence[str]) -> int:
    """``READER PATH``; the exit code. What is no error of ours comes out as it is."""
    try:
        with messages(debug=False):
            sys.stdout.write(json.dumps(READERS[words[0]](Path(words[1]))) + "\n")
    except MicrotomeError as error:
        sys.stderr.write(f"ERROR {on_a_terminal(str(error))}\n")
        return error.exit_code
    return 0
