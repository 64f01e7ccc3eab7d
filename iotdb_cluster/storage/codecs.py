"""Pages of values to bytes and back.

A page holds the cells that have a value, one after another, of one type. Its codec id and version stand in the page's
directory record, together with the CRC32C of the encoded bytes; the number of cells is known from the statistics.

    PLAIN  numbers: little-endian, as they are; texts: u32 length of each, then all bytes; booleans: packed bits,
           first cell in the highest bit
    LZ4    an LZ4 block of the PLAIN form, its size in front (u32, little-endian)
    PCO    a pcodec stand-alone file (numbers only)
    ZSTD   a zstd frame of the PLAIN form

Of two forms the smaller one is kept, so a page that does not shrink stays PLAIN.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from typing import Any

import lz4.block
import numpy as np
import numpy.typing as npt
import zstandard
from pcodec import ChunkConfig, standalone

from iotdb_cluster.columns import BoolArray, DataType, TextColumn, Values
from iotdb_cluster.errors import CorruptData

__all__ = ["CODEC_VERSION", "Codec", "decode_bits", "decode_values", "encode_bits", "encode_values"]

CODEC_VERSION = 1
PCO_CELLS_MIN = 24  # below that its head outweighs what it saves
LZ4_BYTES_MIN = 64
ZSTD_BYTES_MIN = 4096  # smaller texts go through lz4: making a zstd context costs more than it saves
TEXT_BYTES_MAX = 1 << 31  # of one page, decoded


class Codec(IntEnum):
    PLAIN = 0
    LZ4 = 1
    PCO = 2
    ZSTD = 3


@lru_cache(maxsize=16)
def _config(level: int) -> ChunkConfig:
    return ChunkConfig(compression_level=level)


def _shrink(plain: bytes) -> tuple[Codec, bytes]:
    if len(plain) < LZ4_BYTES_MIN:
        return Codec.PLAIN, plain
    packed: bytes = lz4.block.compress(plain)
    return (Codec.LZ4, packed) if len(packed) < len(plain) else (Codec.PLAIN, plain)


def encode_bits(bits: BoolArray) -> tuple[Codec, bytes]:
    """A validity bitmap or a page of booleans."""
    return _shrink(np.packbits(bits).tobytes())


def decode_bits(codec: int, version: int, data: bytes, count: int) -> BoolArray:
    plain = _plain(codec, version, data, (count + 7) // 8)
    if len(plain) != (count + 7) // 8:
        raise CorruptData(f"a bitmap of {count} bits holds {len(plain)} bytes")
    return np.unpackbits(np.frombuffer(plain, np.uint8), count=count).view(np.bool_)


def _encode_text(texts: TextColumn, level: int) -> tuple[Codec, bytes]:
    plain = texts.lengths.astype("<u4").tobytes() + texts.packed()
    if len(plain) < ZSTD_BYTES_MIN:
        return _shrink(plain)
    packed = zstandard.ZstdCompressor(level=1 if level <= 4 else 6).compress(plain)
    return (Codec.ZSTD, packed) if len(packed) < len(plain) else (Codec.PLAIN, plain)


def encode_values(kind: DataType, values: Values, level: int) -> tuple[Codec, bytes]:
    """`values` are native and contiguous, at least one cell; `level` is pcodec's."""
    if isinstance(values, TextColumn):
        return _encode_text(values, level)
    if kind is DataType.BOOLEAN:
        return encode_bits(values)
    if len(values) >= PCO_CELLS_MIN:
        packed: bytes = standalone.simple_compress(values, _config(level))
        if len(packed) < values.nbytes:
            return Codec.PCO, packed
    return Codec.PLAIN, values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _plain(codec: int, version: int, data: bytes, size: int) -> bytes:
    """The PLAIN form; `size` bounds what LZ4 and zstd may make of damaged bytes."""
    if version != CODEC_VERSION:
        raise CorruptData(f"a page has codec version {version}, this program knows {CODEC_VERSION}")
    try:
        if codec == Codec.LZ4:
            if len(data) < 4 or int.from_bytes(data[:4], "little") > size:
                raise CorruptData(f"an lz4 page says that it holds more than {size} bytes")
            return bytes(lz4.block.decompress(data))
        if codec == Codec.ZSTD:
            return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except (lz4.block.LZ4BlockError, zstandard.ZstdError) as error:
        raise CorruptData(f"a page of {len(data)} bytes cannot be decoded: {error}") from error
    if codec != Codec.PLAIN:
        raise CorruptData(f"a page has codec {codec}, which this program does not know")
    return data


def _decode_text(codec: int, version: int, data: bytes, count: int) -> TextColumn:
    plain = _plain(codec, version, data, TEXT_BYTES_MAX)
    if len(plain) < 4 * count:
        raise CorruptData(f"a page of {count} texts holds {len(plain)} bytes")
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.frombuffer(plain, "<u4", count), out=offsets[1:])
    if int(offsets[-1]) != len(plain) - 4 * count:
        raise CorruptData(f"a page of {count} texts holds {len(plain)} bytes")
    return TextColumn(offsets, memoryview(plain)[4 * count :])


def decode_values(kind: DataType, codec: int, version: int, data: bytes, count: int) -> Values:
    """The inverse of `encode_values`; CorruptData where the bytes do not give exactly `count` cells."""
    if kind is DataType.TEXT:
        return _decode_text(codec, version, data, count)
    if kind is DataType.BOOLEAN:
        return decode_bits(codec, version, data, count)
    dtype = kind.dtype
    if codec == Codec.PCO:
        if version != CODEC_VERSION:
            raise CorruptData(f"a page has codec version {version}, this program knows {CODEC_VERSION}")
        return _decode_pco(dtype, data, count)
    plain = _plain(codec, version, data, count * dtype.itemsize)
    if len(plain) != count * dtype.itemsize:
        raise CorruptData(f"a page of {count} {kind.name} holds {len(plain)} bytes")
    return np.frombuffer(plain, dtype.newbyteorder("<")).astype(dtype, copy=False)


def _decode_pco(dtype: np.dtype[Any], data: bytes, count: int) -> npt.NDArray[Any]:
    values = np.empty(count, dtype)
    try:
        progress = standalone.simple_decompress_into(data, values)
    except (RuntimeError, TypeError) as error:
        raise CorruptData(f"a page of {count} numbers cannot be decoded: {error}") from error
    if progress.n_processed != count or not progress.finished:
        raise CorruptData(f"a page of {count} numbers holds {progress.n_processed} or more")
    return values
