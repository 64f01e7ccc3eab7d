"""Pages of values to bytes and back.

A page holds the cells that have a value, one after another, of one type. Its codec id and version stand in the page's
directory record, together with the CRC32C of the encoded bytes; the number of cells is known from the statistics.
Numbers are in `number_codecs`, texts in `text_codecs`; booleans and bitmaps are packed bits, the first cell in the
highest bit (PLAIN, LZ4, ZSTD), or RUNS. What does not shrink stays PLAIN.
"""

from __future__ import annotations

import struct

import numpy as np

from iotdb_cluster.columns import BoolArray, DataType, TextColumn, Values
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.storage.byte_codecs import THOROUGH_LEVEL, decode_bytes, encode_bytes
from iotdb_cluster.storage.codec_ids import CODEC_VERSION, Codec, Encoded
from iotdb_cluster.storage.number_codecs import Hints, NumberEncoder, decode_numbers, decode_runs, encode_runs
from iotdb_cluster.storage.text_codecs import decode_texts, encode_texts

__all__ = ["CODEC_VERSION", "Codec", "PageEncoder", "decode_bits", "decode_values", "encode_bits", "encode_values"]

BIT_RUNS_CELLS_MIN = 512
BIT_RUNS_FACTOR, BIT_RUNS_FACTOR_THOROUGH = 32, 4  # runs are tried where they are on average so long


def encode_bits(bits: BoolArray, level: int) -> Encoded:
    """A validity bitmap or a page of booleans."""
    encoded = encode_bytes(np.packbits(bits).tobytes(), level)
    if len(bits) >= BIT_RUNS_CELLS_MIN:
        factor = BIT_RUNS_FACTOR_THOROUGH if level >= THOROUGH_LEVEL else BIT_RUNS_FACTOR
        if factor * (1 + np.count_nonzero(bits[1:] != bits[:-1])) <= len(bits):
            runs = encode_runs(bits, level)
            if len(runs[1]) < len(encoded[1]):
                return runs
    return encoded


def decode_bits(codec: int, version: int, data: bytes, count: int) -> BoolArray:
    if codec == Codec.RUNS and version == CODEC_VERSION:
        try:
            return decode_runs(np.dtype(np.bool_), data, count)
        except struct.error as error:
            raise CorruptData(f"a bitmap of {count} bits cannot be decoded: {error}") from error
    plain = decode_bytes(codec, version, data, (count + 7) // 8)
    if len(plain) != (count + 7) // 8:
        raise CorruptData(f"a bitmap of {count} bits holds {len(plain)} bytes")
    return np.unpackbits(np.frombuffer(plain, np.uint8), count=count).view(np.bool_)


class PageEncoder:
    """Encodes the pages of one column, which share what is found out about it; `level` is pcodec's."""

    def __init__(self, kind: DataType, level: int, hints: Hints | None = None) -> None:
        self._kind = kind
        self._level = level
        self._numbers = NumberEncoder(level, hints)

    def encode(self, values: Values) -> Encoded:
        """`values` are native and contiguous, at least one cell."""
        if isinstance(values, TextColumn):
            return encode_texts(values, self._level)
        if self._kind is DataType.BOOLEAN:
            return encode_bits(values, self._level)
        return self._numbers.encode(values)


def encode_values(kind: DataType, values: Values, level: int) -> Encoded:
    """One page alone."""
    return PageEncoder(kind, level).encode(values)


def decode_values(kind: DataType, codec: int, version: int, data: bytes, count: int) -> Values:
    """The inverse of `PageEncoder.encode`; CorruptData where the bytes do not give exactly `count` cells."""
    if kind is DataType.TEXT:
        return decode_texts(codec, version, data, count)
    if kind is DataType.BOOLEAN:
        return decode_bits(codec, version, data, count)
    return decode_numbers(kind.dtype, codec, version, data, count)
