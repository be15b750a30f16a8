"""Arrays as image files, in memory: `wsi.durable` writes them."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.errors import OutputError


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode an (h, w, 3) RGB or (h, w) grey uint8 image; `OutputError` if the encoder refuses it."""
    return _encode(".png", image)


def encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    """The same as JPEG, at OpenCV's own quality."""
    return _encode(".jpg", image)


def _encode(suffix: str, image: NDArray[np.uint8]) -> bytes:
    refusal = OutputError(
        f"an image of {image.shape} cannot be made a {suffix[1:].upper()}",
        action="This is a bug unless the image is empty or larger than the format allows",
    )
    try:
        ordered = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        done, data = cv2.imencode(suffix, ordered)
    except cv2.error as error:
        raise refusal from error
    if not done:
        raise refusal
    return data.tobytes()
