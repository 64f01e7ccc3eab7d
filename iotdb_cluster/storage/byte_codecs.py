"""Pages of bytes through lz4 and zstd."""

from __future__ import annotations

import lz4.block
import zstandard

from iotdb_cluster.errors import CorruptData
from iotdb_cluster.storage.codec_ids import CODEC_VERSION, Codec, Encoded

__all__ = ["THOROUGH_LEVEL", "decode_bytes", "encode_bytes"]

THOROUGH_LEVEL = 6  # from this (pcodec) level on size counts more than time
LZ4_BYTES_MIN = 64
ZSTD_BYTES_MIN = 4096  # smaller ones go through lz4 at flush
ZSTD_LEVEL = 1
ZSTD_LEVELS_THOROUGH = (1, 9)  # texts of random digits come out smaller at the lower one


def encode_bytes(plain: bytes, level: int) -> Encoded:
    """PLAIN, LZ4 or ZSTD: the smaller one."""
    if len(plain) < LZ4_BYTES_MIN:
        return Codec.PLAIN, plain
    thorough = level >= THOROUGH_LEVEL
    if thorough or len(plain) >= ZSTD_BYTES_MIN:
        levels = ZSTD_LEVELS_THOROUGH if thorough else (ZSTD_LEVEL,)
        packed = min((zstandard.ZstdCompressor(level=one).compress(plain) for one in levels), key=len)
        return (Codec.ZSTD, packed) if len(packed) < len(plain) else (Codec.PLAIN, plain)
    packed = lz4.block.compress(plain)
    return (Codec.LZ4, packed) if len(packed) < len(plain) else (Codec.PLAIN, plain)


def decode_bytes(codec: int, version: int, data: bytes, size: int) -> bytes:
    """At most `size` bytes: it bounds what lz4 and zstd may make of damaged ones. CorruptData."""
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
