"""How the pixels of one tile become bytes: as they are, Zstandard, or JPEG. Each ends with its CRC-32C.

An encoding is one chunk of a Zarr v3 array, made in whatever thread has the tile: all of these release the
GIL. The checksum is Zarr's own ``crc32c`` codec at the end of the chain, so that any reader finds a flipped
byte before a decoder sees it; it costs 0.02 ms a tile of 256 px.

``Raw`` and ``Zstd`` are read by every Zarr v3 reader. ``Jpeg`` is the ``imagecodecs_jpeg`` codec of the
imagecodecs package: zarr-python opens it where imagecodecs-zarr is installed (Python 3.12 and later) or
Microtome is (`tiling.zarr_jpeg`); tensorstore and zarrs do not know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from wsi.errors import UsageError

_CRC_BYTES = 4


@dataclass(frozen=True, slots=True)
class Raw:
    """Pixels as they are: the cheapest to write and to read, and the largest."""

    def encode(self, tile: NDArray[np.uint8]) -> bytes:
        """One ``(h, w, 3)`` uint8 tile as the bytes of a chunk; they do not share memory with it."""
        return sealed(_pixels(tile).data.cast("B"))

    def decode(self, data: bytes, out: NDArray[np.uint8]) -> None:
        """Fill `out`, ``(h, w, 3)`` uint8, from a chunk; ``ValueError`` where its bytes are not right."""
        _whole(out)
        pixels = opened(data)
        if len(pixels) != out.size:
            raise ValueError(f"it holds {len(pixels)} bytes, not {out.size}")
        out.reshape(-1)[:] = np.frombuffer(pixels, np.uint8)

    def zarr_codecs(self) -> list[dict[str, Any]]:
        """The chain from a chunk's pixels to its bytes, as it stands in ``zarr.json``."""
        return [{"name": "bytes"}, {"name": "crc32c"}]

    def as_json(self) -> dict[str, Any]:
        """For a recipe; `codec_from_json` reads it."""
        return {"method": "Raw"}


@dataclass(frozen=True, slots=True)
class Zstd:
    """Zstandard (RFC 8878): every pixel as it was."""

    level: int = 1
    """1 to 22 as usual; below 0 faster and larger."""

    def __post_init__(self) -> None:
        if not (-131072 <= self.level <= 22 and self.level != 0):
            raise ValueError(f"zstd has no level {self.level}; there are -131072 to -1, and 1 to 22")

    def encode(self, tile: NDArray[np.uint8]) -> bytes:
        """See `Raw.encode`."""
        return sealed(_imagecodecs().zstd_encode(_pixels(tile).data, self.level))

    def decode(self, data: bytes, out: NDArray[np.uint8]) -> None:
        """See `Raw.decode`."""
        _whole(out)
        try:
            pixels = _imagecodecs().zstd_decode(opened(data), out=out.reshape(-1))
        except RuntimeError as error:
            raise ValueError(f"it cannot be decoded: {error}") from error
        if pixels.size != out.size:
            raise ValueError(f"it holds {pixels.size} bytes, not {out.size}")

    def zarr_codecs(self) -> list[dict[str, Any]]:
        """See `Raw.zarr_codecs`."""
        # Zstandard's own checksum would be a second one, over the same bytes.
        configuration = {"level": self.level, "checksum": False}
        return [{"name": "bytes"}, {"name": "zstd", "configuration": configuration}, {"name": "crc32c"}]

    def as_json(self) -> dict[str, Any]:
        """See `Raw.as_json`."""
        return {"method": "Zstd", **asdict(self)}


@dataclass(frozen=True, slots=True)
class Jpeg:
    """JPEG (ITU-T T.81), baseline, 4:2:0 as imagecodecs does it: about a sixth of the size, and lossy."""

    quality: int = 90
    """libjpeg's scale, 1 to 100."""

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ValueError(f"JPEG has no quality {self.quality}; there are 1 to 100")

    def encode(self, tile: NDArray[np.uint8]) -> bytes:
        """See `Raw.encode`."""
        return sealed(_imagecodecs().jpeg8_encode(_pixels(tile), level=self.quality))

    def decode(self, data: bytes, out: NDArray[np.uint8]) -> None:
        """See `Raw.decode`."""
        import simplejpeg  # the pixels that imagecodecs decodes, in a tenth less time

        _whole(out)
        pixels = simplejpeg.decode_jpeg(opened(data), fastdct=False, fastupsample=False, buffer=out)
        if pixels.shape != out.shape:
            raise ValueError(f"it is a JPEG of {pixels.shape[:2]}, not of {out.shape[:2]}")

    def zarr_codecs(self) -> list[dict[str, Any]]:
        """See `Raw.zarr_codecs`."""
        return [
            {"name": "imagecodecs_jpeg", "configuration": {"level": self.quality}},
            {"name": "crc32c"},
        ]

    def as_json(self) -> dict[str, Any]:
        """See `Raw.as_json`."""
        return {"method": "Jpeg", **asdict(self)}


TileCodec = Raw | Zstd | Jpeg
"""What tiles can be stored as."""


def codec_from_json(content: Mapping[str, Any]) -> TileCodec:
    """The codec of a stored `as_json`.

    Raises
    ------
    UsageError
        This version knows no such codec.
    """
    values = dict(content)
    methods: dict[str, type[Raw] | type[Zstd] | type[Jpeg]] = {"Raw": Raw, "Zstd": Zstd, "Jpeg": Jpeg}
    try:
        return methods[values.pop("method")](**values)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"tiles cannot be stored as {dict(content)}", action="Use the version of Microtome that wrote it"
        ) from error


def is_lossy(content: Mapping[str, Any]) -> bool:
    """Whether the codec of a stored `as_json` gives other pixels back than it was given."""
    return isinstance(codec_from_json(content), Jpeg)


def sealed(data: bytes | bytearray | memoryview) -> bytes:
    """`data` and its CRC-32C (RFC 3720), little-endian: Zarr's ``crc32c`` codec."""
    return b"".join((data, _crc(data)))


def opened(data: bytes) -> memoryview:
    """What `sealed` was given; ``ValueError`` where it does not fit its checksum."""
    content = memoryview(data)[:-_CRC_BYTES]
    if len(data) < _CRC_BYTES or _crc(content) != data[-_CRC_BYTES:]:
        raise ValueError("the checksum does not fit")
    return content


def _crc(data: bytes | bytearray | memoryview) -> bytes:
    # As an array, because google_crc32c takes no memoryview.
    return int(google_crc32c.value(np.frombuffer(data, np.uint8))).to_bytes(_CRC_BYTES, "little")


def _imagecodecs() -> Any:
    """The package, without its type hints: they leave out arrays and views, which it takes."""
    import imagecodecs  # here: `Raw` does without it

    return imagecodecs


def _pixels(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The tile in one piece of memory, sure to be one."""
    if tile.dtype != np.uint8 or tile.ndim != 3 or tile.shape[2] != 3:
        raise ValueError(f"a tile is (h, w, 3) uint8, not {tile.shape} {tile.dtype}")
    return np.ascontiguousarray(tile)


def _whole(out: NDArray[np.uint8]) -> None:
    """Decoders write straight into memory."""
    if out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError("tiles are decoded into contiguous uint8 only")
