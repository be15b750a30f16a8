"""Encoding and predicting as steps of a pipeline."""

from __future__ import annotations

from mil.checkpoint import Model
from mil.device import Precision
from mil.encode import encode_slide
from mil.encoders import Encoder
from mil.heads import Head
from mil.predict import predict_slide
from tiling.pipeline import Step


def encode_step(encoder: Encoder, *, precision: Precision | None = None) -> Step:
    """Turn a slide's tiles into features."""
    return Step(
        f"features/{encoder.key}",
        lambda job: encode_slide(job.store, encoder, precision=precision, progress=job.progress),
    )


def predict_step(model: Model, head: Head) -> Step:
    """Score a slide and its tiles."""
    return Step(f"scores/{model.name}", lambda job: predict_slide(job.store, model, head))
