"""Laws of stored pixels: what goes in comes out, zarr agrees, and no flipped byte passes for data."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

from tiling.codecs import Jpeg, Raw, TileCodec, Zstd, codec_from_json, is_lossy, opened, sealed
from tiling.commit import hash_file
from tiling.shards import ShardReader, array_metadata, read_chunks, shard_path, write_shard
from tiling.zarr_jpeg import ZarrJpeg, register_jpeg
from wsi.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
CODECS = (Raw(), Zstd(), Zstd(level=-5), Jpeg(), Jpeg(quality=95))
LOSSLESS = CODECS[:3]
SHARD = 4
SHAPE = (11, 32, 32, 3)  # two full shards and one of three tiles
every_codec = pytest.mark.parametrize("codec", CODECS, ids=repr)


def drawn_tiles(shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    """Smooth colours with some noise: lossless codecs have something to do, JPEG is close."""
    rng = np.random.default_rng(7)
    ramp = np.add.outer(np.arange(shape[1]), np.arange(shape[2]))[None, :, :, None] * 2
    base = rng.integers(60, 150, (shape[0], 1, 1, 3))
    blots = rng.integers(
        0, 40, (shape[0], shape[1] // 3 + 1, shape[2] // 3 + 1, 3)
    )  # colour, which 4:2:0 halves
    blots = blots.repeat(3, axis=1).repeat(3, axis=2)[:, : shape[1], : shape[2]]
    return (base + ramp % 60 + blots + rng.integers(0, 5, shape)).astype(np.uint8)


TILES = drawn_tiles()


def write(folder: Path, codec: TileCodec, tiles: NDArray[np.uint8] = TILES) -> ShardReader:
    """The whole array; `ShardReader` over it."""
    folder.mkdir()
    metadata = array_metadata(tiles.shape, shard_tiles=SHARD, codec=codec, fill=255)
    (folder / "zarr.json").write_bytes(metadata)
    for shard, start in enumerate(range(0, len(tiles), SHARD)):
        chunks = map(codec.encode, tiles[start : start + SHARD])
        write_shard(shard_path(folder, shard), chunks, slots=SHARD)
    return reader(folder, codec, tiles.shape)


def reader(folder: Path, codec: TileCodec, shape: tuple[int, ...] = SHAPE) -> ShardReader:
    return ShardReader(folder, shape=shape, shard_tiles=SHARD, codec=codec)


def by_zarr(folder: Path, codec: TileCodec) -> zarr.Array:
    """The same array, empty, by zarr-python."""
    chain = {"serializer": BytesCodec(), "compressors": [Crc32cCodec()]}
    if isinstance(codec, Zstd):
        chain["compressors"] = [ZstdCodec(level=codec.level, checksum=False), Crc32cCodec()]
    if isinstance(codec, Jpeg):
        chain["serializer"] = ZarrJpeg(level=codec.quality)
    return zarr.create_array(
        folder,
        shape=SHAPE,
        chunks=(1, *SHAPE[1:]),
        shards=(SHARD, *SHAPE[1:]),
        dtype=np.uint8,
        fill_value=255,
        config={"write_empty_chunks": True},
        **chain,
    )


# Codecs -----------------------------------------------------------------------------------------------------


@every_codec
def test_a_tile_comes_back(codec: TileCodec) -> None:
    out = np.empty(SHAPE[1:], np.uint8)
    codec.decode(codec.encode(TILES[0]), out)
    difference = np.abs(out.astype(int) - TILES[0])
    assert difference.max() == 0 if codec in LOSSLESS else 0 < difference.mean() < 12
    assert codec_from_json(json.loads(json.dumps(codec.as_json()))) == codec
    assert is_lossy(codec.as_json()) == bool(difference.any())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.randoms(use_true_random=False))
def test_lossless_is_lossless_for_any_size_and_layout(height: int, width: int, random: object) -> None:
    noise = np.frombuffer(random.randbytes(height * width * 3), np.uint8).reshape(width, height, 3)
    tile = noise.transpose(1, 0, 2)  # not in one piece of memory
    for codec in LOSSLESS:
        out = np.empty(tile.shape, np.uint8)
        codec.decode(codec.encode(tile), out)
        np.testing.assert_array_equal(out, tile)


def test_encoded_tiles_do_not_share_memory_with_the_tile() -> None:
    tile, out = TILES[0].copy(), np.empty(SHAPE[1:], np.uint8)
    data = Raw().encode(tile)
    tile[:] = 0
    Raw().decode(data, out)
    np.testing.assert_array_equal(out, TILES[0])


def test_jpeg_is_what_imagecodecs_writes_and_reads() -> None:
    data, out = Jpeg(quality=90).encode(TILES[1]), np.empty(SHAPE[1:], np.uint8)
    assert bytes(opened(data)) == imagecodecs.jpeg8_encode(TILES[1], level=90)
    Jpeg().decode(data, out)
    np.testing.assert_array_equal(out, imagecodecs.jpeg8_decode(bytes(opened(data))))


def test_better_quality_is_closer_and_larger() -> None:
    sizes, errors = [], []
    for quality in (50, 80, 90, 95):
        out, data = np.empty(SHAPE[1:], np.uint8), Jpeg(quality).encode(TILES[2])
        Jpeg().decode(data, out)
        sizes.append(len(data))
        errors.append(float(np.square(out.astype(int) - TILES[2]).mean()))
    assert sizes == sorted(set(sizes))
    assert errors == sorted(set(errors), reverse=True)


def test_the_checksum_is_that_of_the_specification() -> None:
    assert sealed(b"123456789")[-4:] == (0xE3069283).to_bytes(4, "little")  # RFC 3720's polynomial


@pytest.mark.parametrize("make", [lambda: Zstd(0), lambda: Zstd(23), lambda: Jpeg(0), lambda: Jpeg(101)])
def test_levels_that_do_not_exist_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="there are"):
        make()


@pytest.mark.parametrize(
    "content", [{}, {"method": "Png"}, {"method": "Jpeg", "level": 3}, {"method": "Zstd", "level": 0}]
)
def test_an_unknown_codec_is_refused(content: dict) -> None:
    with pytest.raises(UsageError, match="cannot be stored"):
        codec_from_json(content)


@every_codec
@pytest.mark.parametrize(
    "tile", [TILES[0].astype(np.uint16), TILES[0][..., 0], np.zeros((4, 4, 4), np.uint8)]
)
def test_only_tiles_are_encoded(codec: TileCodec, tile: NDArray) -> None:
    with pytest.raises(ValueError, match="a tile is"):
        codec.encode(tile)


@every_codec
@pytest.mark.parametrize("size", [(16, 16, 3), (64, 64, 3), (32, 16, 3)])
def test_a_tile_of_another_size_is_an_error(codec: TileCodec, size: tuple[int, ...]) -> None:
    data = codec.encode(np.full(size, 9, np.uint8))
    with pytest.raises(ValueError, match=r"."):
        codec.decode(data, np.empty(SHAPE[1:], np.uint8))


@every_codec
@pytest.mark.parametrize("out", [np.empty((32, 64, 3), np.uint8)[:, ::2], np.empty(SHAPE[1:], np.int8)])
def test_only_memory_in_one_piece_is_decoded_into(codec: TileCodec, out: NDArray) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        codec.decode(codec.encode(TILES[0]), out)


@every_codec
def test_bytes_that_are_no_tile_are_an_error_under_a_right_checksum(codec: TileCodec) -> None:
    for junk in (b"", b"junk", codec.encode(TILES[0])[:-40]):
        with pytest.raises(ValueError, match=r"."):
            codec.decode(sealed(junk), np.empty(SHAPE[1:], np.uint8))


# With zarr-python -------------------------------------------------------------------------------------------


@every_codec
def test_zarr_reads_what_we_write(tmp_path: Path, codec: TileCodec) -> None:
    register_jpeg()
    ours = write(tmp_path / "ours", codec)
    array = zarr.open_array(tmp_path / "ours", mode="r")
    np.testing.assert_array_equal(array[:], ours.read(slice(None)))
    np.testing.assert_array_equal(array[6], ours.read([6])[0])


@every_codec
def test_we_read_what_zarr_writes(tmp_path: Path, codec: TileCodec) -> None:
    array = by_zarr(tmp_path / "theirs", codec)
    array[:] = TILES
    np.testing.assert_array_equal(reader(tmp_path / "theirs", codec).read(slice(None)), array[:])


@every_codec
def test_the_metadata_means_what_zarr_would_write(tmp_path: Path, codec: TileCodec) -> None:
    register_jpeg()
    by_zarr(tmp_path / "theirs", codec)
    write(tmp_path / "ours", codec)
    ours, theirs = (zarr.open_array(tmp_path / name, mode="r").metadata for name in ("ours", "theirs"))
    assert ours.to_dict() == theirs.to_dict()


def test_zarr_finds_a_flipped_byte_too(tmp_path: Path) -> None:
    for codec in (Raw(), Jpeg()):
        write(tmp_path / repr(codec), codec)
        path = shard_path(tmp_path / repr(codec), 0)
        flip(path, 100)
        with pytest.raises((ValueError, RuntimeError), match="checksum"):
            zarr.open_array(tmp_path / repr(codec), mode="r")[0]


def test_zarr_finds_the_jpeg_codec_by_its_entry_point(tmp_path: Path) -> None:
    """Plain zarr, in an environment where Microtome is installed, and nothing of ours imported."""
    site = tmp_path / "site"
    (site / "microtome_test-0.dist-info").mkdir(parents=True)
    (site / "microtome_test-0.dist-info" / "METADATA").write_text("Name: microtome-test\nVersion: 0\n")
    (site / "microtome_test-0.dist-info" / "entry_points.txt").write_text(
        "[zarr.codecs]\nimagecodecs_jpeg = tiling.zarr_jpeg:ZarrJpeg\n"
    )
    ours = write(tmp_path / "ours", Jpeg())
    script = textwrap.dedent(
        """
        import hashlib, sys, warnings
        warnings.simplefilter("error")
        sys.path += sys.argv[2:]
        import zarr
        assert "tiling" not in sys.modules
        print(hashlib.sha256(zarr.open_array(sys.argv[1], mode="r")[:].tobytes()).hexdigest())
        """
    )
    words = [sys.executable, "-c", script, str(tmp_path / "ours"), str(site), str(ROOT)]
    found = subprocess.run(words, check=True, capture_output=True, text=True, cwd=tmp_path).stdout.strip()
    assert found == hashlib.sha256(ours.read(slice(None)).tobytes()).hexdigest()


# Shards -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, SHAPE[0] - 1), max_size=30), st.booleans())
def test_any_rows_in_any_order_are_those_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int], threads: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-rows"
    store = reader(folder, Zstd()) if folder.exists() else write(folder, Zstd())
    with ThreadPoolExecutor(3) as pool:
        found = store.read(rows, pool=pool if threads else None)
    np.testing.assert_array_equal(found, TILES[rows] if rows else np.empty((0, *SHAPE[1:]), np.uint8))


@pytest.mark.parametrize(
    "rows", [slice(None), slice(2, 9), slice(None, None, -1), slice(50, 60), np.arange(3, dtype=np.uint16)]
)
def test_rows_are_what_numpy_would_give(tmp_path: Path, rows: slice | NDArray) -> None:
    np.testing.assert_array_equal(write(tmp_path / "a", Raw()).read(rows), TILES[rows])


@pytest.mark.parametrize("rows", [[-1], [11], [0.5], [True], [[1]], np.array(["1"])])
def test_rows_that_do_not_exist_are_refused(tmp_path: Path, rows: list) -> None:
    with pytest.raises(IndexError, match="rows"):
        write(tmp_path / "a", Raw()).read(rows)


def test_the_entry_is_that_of_the_file_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = shard_path(tmp_path, 0)
    entry = write_shard(path, iter([b"first", b"second"]), slots=SHARD)
    assert entry == hash_file(path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_the_same_tiles_give_the_same_bytes_however_they_are_encoded(tmp_path: Path) -> None:
    for codec in CODECS:
        with ThreadPoolExecutor(4) as pool:
            one = write_shard(shard_path(tmp_path, 0), map(codec.encode, TILES[:SHARD]), slots=SHARD)
            two = write_shard(shard_path(tmp_path, 1), pool.map(codec.encode, TILES[:SHARD]), slots=SHARD)
        assert one == two


@every_codec
def test_encoded_tiles_are_moved_as_they_are(tmp_path: Path, codec: TileCodec) -> None:
    write(tmp_path / "a", codec)
    chunks = [
        chunk for shard in range(3) for chunk in read_chunks(shard_path(tmp_path / "a", shard), slots=SHARD)
    ]
    assert chunks == [codec.encode(tile) for tile in TILES]
    flip(shard_path(tmp_path / "a", 1), 5)
    with pytest.raises(ValueError, match="checksum"):
        list(read_chunks(shard_path(tmp_path / "a", 1), slots=SHARD))


def test_an_error_while_writing_leaves_no_file(tmp_path: Path) -> None:
    def chunks() -> object:
        yield b"first"
        raise RuntimeError("the slide cannot be read")

    with pytest.raises(RuntimeError, match="the slide"):
        write_shard(shard_path(tmp_path, 0), chunks(), slots=SHARD)
    with pytest.raises(ValueError, match="5 tiles in a shard of 4"):
        write_shard(shard_path(tmp_path, 0), [b"x"] * 5, slots=SHARD)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_threads_and_pickles_read_the_same(tmp_path: Path) -> None:
    store = write(tmp_path / "a", Jpeg())
    expected = store.read(slice(None))
    copies = [store, pickle.loads(pickle.dumps(store)), reader(tmp_path / "a", Jpeg())]
    orders = [np.random.default_rng(seed).permutation(SHAPE[0]) for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        found = pool.map(lambda pair: copies[pair[0] % 3].read(pair[1]), enumerate(orders))
        for order, tiles in zip(orders, found, strict=True):
            np.testing.assert_array_equal(tiles, expected[order])


def test_no_file_stays_open(tmp_path: Path) -> None:
    open_files = Path("/proc/self/fd")
    if not open_files.is_dir():
        pytest.skip("needs /proc to count open files")
    store = write(tmp_path / "a", Raw())
    before = len(list(open_files.iterdir()))
    store.read(slice(None))
    flip(shard_path(tmp_path / "a", 1), 5)
    with pytest.raises(ValueError, match="checksum"):
        store.read(slice(None))
    chunks = read_chunks(shard_path(tmp_path / "a", 0), slots=SHARD)
    next(chunks)
    chunks.close()
    assert len(list(read_chunks(shard_path(tmp_path / "a", 2), slots=SHARD))) == 3
    assert len(list(open_files.iterdir())) == before


# Damage -----------------------------------------------------------------------------------------------------

SMALL = drawn_tiles((3, 6, 5, 3))


def flip(path: Path, place: int, bits: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= bits
    path.write_bytes(data)


@every_codec
def test_every_flipped_byte_of_a_shard_is_found(tmp_path: Path, codec: TileCodec) -> None:
    write(tmp_path / "a", codec, SMALL)
    path = shard_path(tmp_path / "a", 0)
    whole = path.read_bytes()
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << place % 8
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"shard 0: .*the checksum does not fit"):
            reader(tmp_path / "a", codec, SMALL.shape).read(slice(None))


def test_every_truncation_of_a_shard_is_found(tmp_path: Path) -> None:
    cached = write(tmp_path / "a", Zstd(), SMALL)
    cached.read(slice(None))
    path = shard_path(tmp_path / "a", 0)
    whole = path.read_bytes()
    content = len(whole) - 16 * SHARD - 4
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="shard 0"):
            reader(tmp_path / "a", Zstd(), SMALL.shape).read(slice(None))
        if size < content:  # the index is known: only the tiles have to be there
            with pytest.raises(ValueError, match="the file ends within it"):
                cached.read(slice(None))


def test_damage_is_named_and_spares_the_other_tiles(tmp_path: Path) -> None:
    store = write(tmp_path / "a", Raw())
    flip(shard_path(tmp_path / "a", 1), (32 * 32 * 3 + 4) * 2 + 17)
    with pytest.raises(ValueError, match=r"tile 6 of shard 1: the checksum does not fit"):
        store.read([0, 6])
    sound = [row for row in range(SHAPE[0]) if row != 6]
    np.testing.assert_array_equal(store.read(sound), TILES[sound])


@pytest.mark.parametrize("threads", [False, True])
def test_a_lost_shard_is_an_error(tmp_path: Path, threads: bool) -> None:
    store = write(tmp_path / "a", Raw())
    shard_path(tmp_path / "a", 2).unlink()
    with ThreadPoolExecutor(2) as pool, pytest.raises(FileNotFoundError, match="c/2/0/0/0"):
        store.read(slice(None), pool=pool if threads else None)


def test_a_hole_is_an_error_and_not_background(tmp_path: Path) -> None:
    path = shard_path(tmp_path / "a", 0)
    write_shard(path, map(Raw().encode, TILES[0:2]), slots=SHARD)
    np.testing.assert_array_equal(reader(tmp_path / "a", Raw()).read([0, 1]), TILES[:2])
    with pytest.raises(ValueError, match="tile 2 of shard 0: it is missing"):
        reader(tmp_path / "a", Raw()).read([2])


def test_a_hole_that_zarr_leaves_is_an_error_too(tmp_path: Path) -> None:
    array = by_zarr(tmp_path / "theirs", Raw()).with_config({"write_empty_chunks": False})
    array[:4] = np.concatenate([TILES[:3], np.full_like(TILES[:1], 255)])
    np.testing.assert_array_equal(reader(tmp_path / "theirs", Raw()).read([0, 1, 2]), TILES[:3])
    with pytest.raises(ValueError, match="tile 3 of shard 0: it is missing"):
        reader(tmp_path / "theirs", Raw()).read([3])


def test_an_index_that_points_outside_is_an_error_under_a_right_checksum(tmp_path: Path) -> None:
    codec, path = Raw(), shard_path(tmp_path, 0)
    data = codec.encode(TILES[0])
    write_shard(path, [data] * SHARD, slots=SHARD)
    index = np.frombuffer(path.read_bytes()[-16 * SHARD - 4 : -4], "<u8").copy()
    index[2] = 2**63
    path.write_bytes(data * SHARD + sealed(index.tobytes()))
    with pytest.raises(ValueError, match="outside of the file"):
        reader(tmp_path, codec).read([0])
