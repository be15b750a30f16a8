"""The ``imagecodecs_jpeg`` codec for zarr-python, also where imagecodecs-zarr cannot be had (Python 3.11).

zarr-python finds `ZarrJpeg` by the entry point ``zarr.codecs`` of an installed Microtome, without our help;
`register_jpeg` is for the store, which may run from a checkout that was never installed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Self

import imagecodecs
import numpy as np
from zarr.abc.codec import ArrayBytesCodec, Codec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.registry import register_codec

NAME = "imagecodecs_jpeg"


@dataclass(frozen=True)
class _Jpeg(ArrayBytesCodec):
    """The part of imagecodecs-zarr's codec that Microtome writes: RGB, 4:2:0, a level."""

    is_fixed_size = False
    level: int | None = None
    """Quality, 1 to 100."""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        configuration = data.get("configuration") or {}
        if configuration.keys() - {"level"}:
            raise ValueError(f"{NAME} with {configuration} needs Python 3.12 and imagecodecs-zarr")
        return cls(**configuration)

    def to_dict(self) -> dict[str, Any]:
        return {"name": NAME, "configuration": {"level": self.level}} if self.level else {"name": NAME}

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("a JPEG is as large as it gets")

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        pixels = await asyncio.to_thread(imagecodecs.jpeg8_decode, chunk_data.to_bytes())
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pixels.reshape(chunk_spec.shape))

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        pixels = np.ascontiguousarray(chunk_data.as_numpy_array().reshape(chunk_spec.shape[-3:]))
        data = await asyncio.to_thread(imagecodecs.jpeg8_encode, pixels, level=self.level)
        return chunk_spec.prototype.buffer.from_bytes(data)


def _best() -> type[Codec]:
    """The class in imagecodecs where it is there: were two known by one name, zarr would warn of it."""
    try:
        from imagecodecs.zarr import Jpeg
    except ImportError:
        return _Jpeg
    return Jpeg  # type: ignore[no-any-return]


ZarrJpeg = _best()


def register_jpeg() -> None:
    """Make zarr-python open tiles that are stored as JPEG; calling it twice does no harm."""
    register_codec(NAME, ZarrJpeg)
