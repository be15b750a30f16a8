"""Readers of the library that have no command of their own, as commands: a result in JSON, or one line of error."""

from __future__ import annotations

import json
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


def model(folder: Path) -> dict[str, Any]:
    """A trained model."""
    from mil.checkpoint import load_model

    card, ensemble = load_model(folder)
    return {"classes": card.classes, "members": len(ensemble.members)}


def weights(path: Path) -> dict[str, Any]:
    """A checkpoint of somebody else's."""
    from mil.networks.weights import read_state

    return {"tensors": sorted(read_state(path))}


def main(words: Sequence[str]) -> int:
    """``READER PATH``; the exit code. What is no error of ours comes out as it is."""
    read = {"labels": labels, "regions": regions, "features": features, "model": model, "weights": weights}
    try:
        with messages(debug=False):
            print(json.dumps(read[words[0]](Path(words[1]))))
    except MicrotomeError as error:
        print(f"ERROR {on_a_terminal(str(error))}", file=sys.stderr)
        return error.exit_code
    return 0
