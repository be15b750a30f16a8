"""Regions that a program found, told from a user's word once they come back from QuPath.

A user opens a heatmap's regions, draws annotations of his own, corrects some of the regions, and exports
everything. What nobody touched is no word of his: learning from it would teach a model its own mistakes. So
the id of a found region follows from all that a user can change: its class, its name and its outline, of
which the points count, and not their order, which QuPath may change. An object that still fits its id is as
it was made.
"""

from __future__ import annotations

import dataclasses
import json
import uuid

import numpy as np

from wsi.annotations import Annotation

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "microtome:found region")


def as_found(annotation: Annotation) -> Annotation:
    """The annotation with the id that tells it from others."""
    return dataclasses.replace(annotation, identity=_identity(annotation))


def is_as_found(annotation: Annotation) -> bool:
    """Whether a program made the annotation, and nobody has touched it since."""
    if annotation.identity is None or annotation.object_type != "annotation":
        return False
    return annotation.identity.lower() == _identity(annotation)


def _identity(annotation: Annotation) -> str:
    rings = [ring for polygon in annotation.polygons for ring in (polygon.shell, *polygon.holes)]
    # As hundredths of a pixel: QuPath writes no more, and an origin that is added leaves a trace of rounding.
    points = np.unique(np.rint(np.concatenate(rings) * 100).astype(np.int64), axis=0)
    return str(uuid.uuid5(_NAMESPACE, json.dumps([annotation.name, annotation.label, points.tolist()])))
