"""Encoding and predicting as steps of a pipeline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mil.checkpoint import Model, load_model
from mil.device import Precision
from mil.encode import FeatureDraft, Watched, begin_features, encode_slide
from mil.encoder import Encoder, folder_name
from mil.encoders import check_mpp
from mil.ensemble import Ensemble
from mil.features import feature_items
from mil.predict import predict_slide
from tiling.pipeline import Job, Step

_log = logging.getLogger(__name__)


class Encoding:
    """How tiles are encoded; see `encode_slide`.

    Parameters
    ----------
    name
        What the user calls the encoder.
    load
        Gives the encoder; called once, by processes that encode.
    precision
        None for that of what is there or was begun, else the fastest that the machine has.
    batch_size
        Tiles at once; None for what suits the device.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Encoder],
        *,
        precision: Precision | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.key = folder_name(name)
        self._load = load
        self.precision = precision
        self.batch_size = batch_size

    @classmethod
    def by(cls, encoder: Encoder, *, precision: Precision | None = None) -> Encoding:
        """With an encoder that is there."""
        return cls(encoder.name, lambda: encoder, precision=precision)

    @cached_property
    def encoder(self) -> Encoder:
        """By what."""
        return self._load()


def encode_steps(encoding: Encoding, *, contexts: Sequence[float] = ()) -> list[Step]:
    """Turn a slide's tiles into features, and what lies around them at each of these scales.

    Tiles that were cut without pixels are read from the slide, and context always is.

    Raises
    ------
    UsageError
        A scale is named twice.
    """
    items = feature_items(encoding.key, contexts)
    scales = (None, *sorted(contexts))
    return [_encode_step(encoding, item, mpp) for item, mpp in zip(items, scales, strict=True)]


def _encode_step(encoding: Encoding, item: str, context_mpp: float | None) -> Step:
    warned: list[str] = []  # of the first slide alone: a cohort is cut alike

    def make(job: Job) -> object:
        words = check_mpp(encoding.encoder.row, job.store.spec.mpp)
        if words and not warned and context_mpp is None:  # context is coarser because it was asked to be
            warned.append(words)
            _log.warning("%s: %s", job.store.slide_id, words)
        return encode_slide(
            job.store,
            encoding.encoder,
            slide=job.slide,
            context_mpp=context_mpp,
            precision=encoding.precision,
            batch_size=encoding.batch_size,
            readers=job.threads,
            progress=job.progress,
            times=job.times,
        )

    parts = _FeatureParts(encoding, context_mpp)
    return Step(item, make, parts, wants_gpu=True, prepare=lambda: encoding.encoder)


@dataclass(frozen=True, slots=True)
class _FeatureParts:
    """Features by shards of tiles."""

    encoding: Encoding
    context_mpp: float | None

    def missing(self, job: Job) -> Sequence[int]:
        features = self._begin(job)
        if features is None:
            return ()
        features.create()
        step = job.store.shards()[0].stop
        return [rows.start // step for rows in features.missing()]

    def make(self, job: Job, part: int) -> None:
        key = f"features@{self.context_mpp}"
        if key not in job.kept:
            job.kept[key] = self._begin(job)
        watched = Watched(job.times, job.progress)
        shards = [job.store.shards()[part]]
        job.kept[key].encode(
            shards, batch_size=self.encoding.batch_size, readers=job.threads, watched=watched
        )

    def _begin(self, job: Job) -> FeatureDraft | None:
        return begin_features(
            job.store,
            self.encoding.encoder,
            slide=job.slide,
            context_mpp=self.context_mpp,
            precision=self.encoding.precision,
            helper=job.helper,
        )


def predict_steps(folder: Path) -> list[Step]:
    """Score slides and their tiles with the model in a folder."""
    return [predict_step(*load_model(folder))]


def predict_step(model: Model, ensemble: Ensemble) -> Step:
    """Score a slide and its tiles."""

    def make(job: Job) -> object:
        return predict_slide(job.store, model, ensemble)

    return Step(f"scores/{model.name}", make, reads_slide=False)
