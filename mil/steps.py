"""Encoding and predicting as steps of a pipeline."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mil.checkpoint import Model
from mil.device import Precision
from mil.encode import encode_slide
from mil.encoder import Encoder
from mil.heads import Head
from mil.predict import predict_slide
from tiling.pipeline import Job, Step
from tiling.tiles import tile_reader


def encode_step(encoder: Encoder, *, precision: Precision | None = None, workers: int = 1) -> Step:
    """Turn a slide's tiles into features; those that were cut without pixels are read from the slide."""

    def make(job: Job) -> object:
        def read_tiles(rows: slice) -> NDArray[np.uint8]:
            # Not before it is needed: what is encoded already needs no slide again.
            return tile_reader(job.store, job.slide, threads=workers)(rows)

        return encode_slide(
            job.store, encoder, precision=precision, read_tiles=read_tiles, progress=job.progress
        )

    return Step(f"features/{encoder.key}", make)


def predict_step(model: Model, head: Head) -> Step:
    """Score a slide and its tiles."""
    return Step(f"scores/{model.name}", lambda job: predict_slide(job.store, model, head))
