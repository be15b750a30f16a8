"""Stores to other tools' files: what `tiling.interchange` writes, and the one file that needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mil.encoder import folder_name
from tiling.interchange import export_clam, export_trident
from tiling.interchange.hdf5 import refuse_another
from tiling.output import Output
from tiling.store import TileStore
from wsi.durable import make_folder, replacing
from wsi.errors import UsageError

TENSORS = "pt_files"

Exporter = Callable[..., list[Path]]
"""Writes one slide: (store, folder, encoder=, overwrite=) to the files."""


def export_clam_with_tensor(
    store: TileStore, folder: Path, *, encoder: str | None = None, overwrite: bool = False, **more: Any
) -> list[Path]:
    """`export_clam`, and ``pt_files/<slide>.pt`` where an encoder is named: CLAM trains on these.

    Raises
    ------
    UsageError
        See `export_clam`.
    """
    paths = export_clam(store, folder, encoder=encoder, overwrite=overwrite, **more)
    return [*paths, export_tensor(store, folder, encoder=encoder, overwrite=overwrite)] if encoder else paths


def export_tensor(store: TileStore, folder: Path, *, encoder: str, overwrite: bool = False) -> Path:
    """Write ``pt_files/<slide>.pt``: the features as ``(n, d)`` float32 tensor, for ``torch.load``.

    Raises
    ------
    UsageError
        There are no such features, or another file is there.
    """
    import torch

    features = torch.from_numpy(store.features(encoder).astype(np.float32))
    path = folder / TENSORS / f"{store.slide_id}.pt"
    make_folder(path.parent)
    with replacing(path) as temporary:
        with temporary.open("wb") as stream:  # given a name, torch would write that into the file
            torch.save(features, stream)
        refuse_another(path, temporary, overwrite=overwrite)
    return path


EXPORTERS: Mapping[str, Exporter] = {"clam": export_clam_with_tensor, "trident": export_trident}
"""Formats by name."""


def export_output(
    output: Output, form: str, folder: Path, *, encoder: str | None = None, overwrite: bool = False
) -> list[Path]:
    """Export every slide of an output that has tiles.

    Parameters
    ----------
    output
        Where the stores are.
    form
        A name of `EXPORTERS`.
    folder
        Where the files go, in that tool's layout.
    encoder
        Name of the features to write with the coordinates; None for coordinates alone.
    overwrite
        Replace other files that are there.

    Returns
    -------
    The files, slide after slide.

    Raises
    ------
    UsageError
        No such format, no tiles, a slide without these features, or other files that are there.
    RecipeError, DamagedError, OutputError
        See `TileStore.require` and `wsi.durable`.
    """
    if form not in EXPORTERS:
        raise UsageError(f"there is no format {form!r}", action=f"Use one of {', '.join(sorted(EXPORTERS))}")
    slides = output.slides_with_tiles()
    if not slides:
        raise UsageError("holds no tiles", path=output.root, action="Run 'microtome tile' first")
    key = folder_name(encoder) if encoder else None
    stores = [TileStore(output, slide_id) for slide_id in slides]
    for store in stores:  # before anything is written
        store.require(f"features/{key}" if key else "tiles")
    return [
        path for store in stores for path in EXPORTERS[form](store, folder, encoder=key, overwrite=overwrite)
    ]
