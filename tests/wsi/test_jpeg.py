"""Laws of one JPEG tile: the right colours at every scale, padding forgiven, damage and tricks named."""

from __future__ import annotations

import io
import struct
from types import ModuleType

import cv2
import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from wsi.jpeg import DamagedStreamError, TileStream, UnusualStreamError

Pixels = NDArray[np.uint8]
SAMPLINGS = ["444", "422", "420", "440"]
HUGE = (65_500, 65_500)


@pytest.fixture(scope="module")
def tile(tissue: Pixels) -> Pixels:
    return np.ascontiguousarray(tissue[200:456, 300:556])


def stream(*, size: tuple[int, int] = (256, 256), tables: bytes = b"", is_rgb: bool = False) -> TileStream:
    return TileStream(size, tables, is_rgb)


def by_pillow(data: bytes) -> Pixels:
    """A stream that says itself what it is, by another decoder's own rules."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def decode(wanted: TileStream, data: bytes, *, reduce: int = 1) -> Pixels:
    """As the reader does: first the header, then the picture."""
    assert wanted.head(data) > 0
    return wanted.decode(data, reduce=reduce)


def psnr(a: Pixels, b: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


# --- colours ---


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("quality", [40, 95])
def test_a_tile_without_any_marker_is_what_its_directory_says(
    forge: ModuleType, tile: Pixels, sampling: str, quality: int
) -> None:
    data = forge.jpeg(tile, sampling=sampling, quality=quality)
    assert (decode(stream(), data) == by_pillow(forge.jfif(data))).all()
    rgb = forge.jpeg(tile, stored="rgb", sampling=sampling, quality=quality)
    assert (decode(stream(is_rgb=True), rgb) == by_pillow(forge.adobe(rgb, 0))).all()


def test_rgb_without_an_adobe_marker_keeps_its_colours(forge: ModuleType, tile: Pixels) -> None:
    """The kind that general decoders take for YCbCr: greens and purples all over."""
    data = forge.jpeg(tile, stored="rgb", sampling="444", quality=95)
    assert psnr(decode(stream(is_rgb=True), data), tile) > 38
    assert psnr(decode(stream(is_rgb=False), data), tile) < 20


@pytest.mark.parametrize("is_rgb", [False, True])
def test_markers_that_agree_change_nothing_and_others_are_declined(
    forge: ModuleType, tile: Pixels, is_rgb: bool
) -> None:
    data = forge.jpeg(tile, stored="rgb" if is_rgb else "ycbcr", sampling="444")
    wanted = stream(is_rgb=is_rgb)
    plain = decode(wanted, data)
    assert (decode(wanted, forge.adobe(data, 0 if is_rgb else 1)) == plain).all()
    with pytest.raises(UnusualStreamError, match="Adobe"):
        wanted.head(forge.adobe(data, 1 if is_rgb else 0))
    if is_rgb:
        with pytest.raises(UnusualStreamError, match="JFIF"):
            wanted.head(forge.jfif(data))
    else:
        assert (decode(wanted, forge.jfif(data)) == plain).all()


@pytest.mark.parametrize("reduce", [1, 2, 4, 8])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_abbreviated_stream_is_the_whole_one(
    forge: ModuleType, tile: Pixels, sampling: str, reduce: int
) -> None:
    data = forge.jpeg(tile, sampling=sampling)
    tables, rest = forge.abbreviate(data)
    assert b"\xff\xdb" not in rest
    found = decode(stream(tables=tables), rest, reduce=reduce)
    assert (found == decode(stream(), data, reduce=reduce)).all()


def test_progressive_streams_are_decoded(forge: ModuleType, tile: Pixels) -> None:
    data = forge.progressive(tile)
    assert (decode(stream(), data) == by_pillow(forge.jfif(data))).all()


# --- scale ---


@pytest.mark.parametrize("size", [(256, 256), (240, 240), (512, 256), (16, 48)])
@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_reduced_tiles_are_near_the_area_average(
    forge: ModuleType, tissue: Pixels, size: tuple[int, int], reduce: int
) -> None:
    image = np.ascontiguousarray(tissue[200 : 200 + size[1], 300 : 300 + size[0]])
    data = forge.jpeg(image)
    small = decode(stream(size=size), data, reduce=reduce)
    assert small.shape == (size[1] // reduce, size[0] // reduce, 3)
    assert small.dtype == np.uint8
    whole = decode(stream(size=size), data)
    average = cv2.resize(whole, small.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert psnr(small, np.asarray(average, np.uint8)) > 36


@pytest.mark.parametrize("reduce", [1, 2, 4, 8])
def test_a_flat_tile_is_flat_at_every_scale(forge: ModuleType, reduce: int) -> None:
    flat = np.full((64, 64, 3), (231, 198, 219), np.uint8)
    found = decode(stream(size=(64, 64)), forge.jpeg(flat, quality=98), reduce=reduce)
    assert np.ptp(found.reshape(-1, 3), axis=0).max() == 0
    assert np.abs(found[0, 0].astype(int) - flat[0, 0]).max() <= 2


# --- padding and damage ---


@pytest.mark.parametrize("reduce", [1, 2])
@pytest.mark.parametrize("count", range(16))
@pytest.mark.parametrize("filling", [b"\0", b"\xff", b"\x5a"])
def test_a_few_bytes_before_the_end_or_no_end_change_no_pixel(
    forge: ModuleType, tile: Pixels, filling: bytes, count: int, reduce: int
) -> None:
    data = forge.jpeg(tile[:64, :64])
    wanted = stream(size=(64, 64))
    plain = decode(wanted, data, reduce=reduce)
    padded = data[:-2] + filling * count
    assert (decode(wanted, padded + b"\xff\xd9", reduce=reduce) == plain).all()
    assert (decode(wanted, data + filling * count, reduce=reduce) == plain).all()
    if filling != b"\x5a":
        assert (decode(wanted, padded, reduce=reduce) == plain).all()


@pytest.mark.parametrize("count", [64, 1000])
def test_many_bytes_that_belong_to_nothing_are_damage(forge: ModuleType, tile: Pixels, count: int) -> None:
    data = forge.jpeg(tile)
    with pytest.raises(DamagedStreamError):
        decode(stream(), data[:-2] + b"\x5a" * count + b"\xff\xd9")


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 1), is_progressive=st.booleans())
def test_lost_picture_data_are_always_noticed(
    forge: ModuleType, tissue: Pixels, share: float, is_progressive: bool
) -> None:
    image = np.ascontiguousarray(tissue[200:264, 300:364])
    data = forge.progressive(image) if is_progressive else forge.jpeg(image)
    wanted = stream(size=(64, 64))
    head = wanted.head(data)
    if is_progressive:  # a later scan that is missing whole is only less detail
        head, last = 0, wanted.head(data)
    else:
        last = len(data) - 3
    cut = head + int(share * (last - head))
    with pytest.raises((UnusualStreamError, DamagedStreamError)):
        decode(wanted, data[:cut])


@pytest.mark.parametrize("start", [0.3, 0.6, 0.9])
def test_zeros_in_the_picture_data_are_noticed(forge: ModuleType, tile: Pixels, start: float) -> None:
    """What a copy over a lost connection leaves: the right length, and zeros from some byte on."""
    data = forge.jpeg(tile)
    kept = int(len(data) * start)
    with pytest.raises(DamagedStreamError):
        decode(stream(), data[:kept] + bytes(len(data) - kept))


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1), change=st.binary(min_size=1, max_size=40))
def test_changed_bytes_give_pixels_or_a_named_error_and_nothing_else(
    forge: ModuleType, tissue: Pixels, at: float, change: bytes
) -> None:
    image = np.ascontiguousarray(tissue[200:264, 300:364])
    data = bytearray(forge.jpeg(image))
    place = int(at * len(data))
    data[place : place + len(change)] = change
    wanted = stream(size=(64, 64))
    try:
        found = decode(wanted, bytes(data))
    except (UnusualStreamError, DamagedStreamError):
        return
    assert found.shape == (64, 64, 3)


# --- what is declined ---


@given(st.binary(max_size=200))
def test_bytes_that_are_no_jpeg_are_declined(data: bytes) -> None:
    for start in (b"", b"\xff\xd8"):
        with pytest.raises(UnusualStreamError):
            stream().head(start + data)


@pytest.mark.parametrize("size", [HUGE, (128, 128), (512, 512), (256, 0), (0, 0), (264, 256), (256, 255)])
def test_another_size_than_the_directory_says_is_declined(
    forge: ModuleType, tile: Pixels, size: tuple[int, int]
) -> None:
    data = forge.with_frame(forge.jpeg(tile), size=size)
    with pytest.raises(UnusualStreamError, match=f"{size[0]} x {size[1]}"):
        stream().head(data)


def test_grey_and_cmyk_and_other_depths_are_declined(forge: ModuleType, tile: Pixels) -> None:
    grey = bytes(imagecodecs.jpeg8_encode(tile[..., 0].copy(), 90))
    file = io.BytesIO()
    Image.fromarray(tile).convert("CMYK").save(file, "JPEG")
    twelve = forge.with_frame(forge.jpeg(tile), at_0=b"\x0c")
    for data in (grey, file.getvalue(), twelve):
        with pytest.raises(UnusualStreamError):
            stream().head(data)


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD])
def test_other_processes_are_declined(forge: ModuleType, tile: Pixels, marker: int) -> None:
    data = forge.jpeg(tile).replace(b"\xff\xc0", bytes((255, marker)), 1)
    with pytest.raises(UnusualStreamError, match="process"):
        stream().head(data)


@pytest.mark.parametrize("factors", [(0x22, 0x21, 0x12), (0x42, 0x11, 0x11), (0x33, 0x11, 0x11)])
def test_sampling_that_the_decoder_does_not_know_is_declined_not_called_damage(
    forge: ModuleType, tile: Pixels, factors: tuple[int, int, int]
) -> None:
    """libjpeg-turbo's own interface knows six samplings; the standard, and the reference, more."""
    changes = {f"at_{7 + 3 * i}": bytes([factor]) for i, factor in enumerate(factors)}
    data = forge.with_frame(forge.jpeg(tile), **changes)
    with pytest.raises(UnusualStreamError):
        decode(stream(), data)


@pytest.mark.parametrize("bare", [0x01, 0xD0, 0xD7, 0xFF, 0x00])
def test_no_frame_can_hide_behind_a_marker_without_a_length(
    forge: ModuleType, tile: Pixels, bare: int
) -> None:
    """Decoders go on right after such a marker: what a walk by lengths jumps over, they obey.

    Here that is a frame of 65,500 x 65,500 pixels, and then a comment that hides the true frame from them.
    """
    data = forge.jpeg(tile)
    segments, rest = forge.split(data)
    frame = next(body for marker, body in segments if marker == 0xC0)
    hidden = forge.join([(0xC2, frame[:1] + struct.pack(">HH", *HUGE) + frame[5:])], b"")[2:]
    true = forge.join([(0xC0, frame)], b"")[2:]
    comment = struct.pack(">BBH", 255, 0xFE, 2 + len(true))
    trick = bytes((255, bare)) + struct.pack(">H", 2 + len(hidden) + len(comment)) + hidden + comment + true
    others = forge.join([s for s in segments if s[0] != 0xC0], rest)
    with pytest.raises(UnusualStreamError):
        stream().head(b"\xff\xd8" + trick + others[2:])


# --- tables ---


def bad_tables(forge: ModuleType, tile: Pixels, kind: str) -> bytes:
    data = forge.jpeg(tile)
    tables = forge.abbreviate(data)[0]
    return {
        "garbage": b"\x13" * 500,
        "no start": tables[2:],
        "no end": tables[:-2],
        "cut off": tables[: len(tables) // 2],
        "a picture": data,
        "a huge picture": forge.with_frame(forge.progressive(tile), size=HUGE),
    }[kind]


@pytest.mark.parametrize("kind", ["garbage", "no start", "no end", "cut off", "a picture", "a huge picture"])
def test_tables_that_are_no_tables_are_declined_before_any_tile_is_decoded(
    forge: ModuleType, tile: Pixels, kind: str
) -> None:
    """A picture in them would be decoded in place of every tile: 24 GB of coefficients at worst."""
    with pytest.raises(UnusualStreamError, match="tables"):
        stream(tables=bad_tables(forge, tile, kind))


@pytest.mark.parametrize(
    ("segment", "is_rgb"),
    [
        ((0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"), True),
        ((0xEE, b"Adobe\0\x64\0\0\0\0\x01"), True),
        ((0xEE, b"Adobe\0\x64\0\0\0\0\0"), False),
    ],
)
def test_tables_whose_markers_contradict_the_directory_are_declined(
    forge: ModuleType, tile: Pixels, segment: tuple[int, bytes], is_rgb: bool
) -> None:
    with pytest.raises(UnusualStreamError):
        stream(tables=forge.join([segment]), is_rgb=is_rgb)
    stream(tables=forge.join([segment]), is_rgb=not is_rgb)
