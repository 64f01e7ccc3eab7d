"""Pages of texts to bytes and back; docs/design/chunk-file.md shows the bytes.

PLAIN, LZ4, ZSTD  u32 length of each text, then all bytes
TEXTS             the lengths as a page of numbers, then all bytes, each packed on its own
DICTIONARY        the different texts, and for each cell a number: few texts that come again
"""

from __future__ import annotations

import struct

import numpy as np

from iotdb_cluster.columns import Int64Array, TextColumn
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.storage.byte_codecs import THOROUGH_LEVEL, decode_bytes, encode_bytes
from iotdb_cluster.storage.codec_ids import CODEC_VERSION, Codec, Encoded, pack_nested, take_nested
from iotdb_cluster.storage.number_codecs import NumberEncoder, decode_numbers

__all__ = ["decode_texts", "encode_texts"]

INT32 = np.dtype(np.int32)
PACKED_BYTES_MIN = 4096  # smaller pages stay in the first form
TEXT_BYTES_MAX = 1 << 31  # of one page, decoded
DICTIONARY_CELLS_MIN = 64
DICTIONARY_BYTES_MAX = 8 << 20  # of a page that is looked through for texts that come again: it takes 40 times its size
DICTIONARY_SAMPLE = 256  # cells, evenly taken; more than half of them different: no dictionary
HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def encode_texts(texts: TextColumn, level: int) -> Encoded:
    """At least one text; `level` is pcodec's."""
    data = texts.packed()
    lengths = texts.lengths
    best: Encoded | None = _encode_dictionary(texts, data, level)
    if best is not None and level < THOROUGH_LEVEL:
        return best
    if 4 * len(texts) + len(data) < PACKED_BYTES_MIN:
        plain = encode_bytes(lengths.astype("<u4").tobytes() + data, level)
    else:
        packed = pack_nested(NumberEncoder(level).encode(lengths.astype(np.int32))) + pack_nested(
            encode_bytes(data, level)
        )
        plain = (Codec.TEXTS, packed)
    return plain if best is None or len(plain[1]) <= len(best[1]) else best


def _encode_dictionary(texts: TextColumn, data: bytes, level: int) -> Encoded | None:
    """None where too few texts come again."""
    count = len(texts)
    if count < DICTIONARY_CELLS_MIN or len(data) > DICTIONARY_BYTES_MAX:
        return None
    sample = texts[np.arange(0, count, -(-count // DICTIONARY_SAMPLE))]
    if len(np.unique(_hashes(sample, sample.packed()))) > len(sample) // 2:
        return None
    _, firsts, codes = np.unique(_hashes(texts, data), return_index=True, return_inverse=True)
    if 2 * len(firsts) > count:
        return None
    words = texts[firsts]
    numbers = codes.astype(np.int32)
    # equal hashes are not yet equal texts
    again = words[numbers]
    if again.packed() != data or not np.array_equal(again.lengths, texts.lengths):
        return None
    coded = NumberEncoder(level).encode(numbers)
    inner = encode_bytes(words.lengths.astype("<u4").tobytes() + words.packed(), level)
    packed = struct.pack("<I", len(words)) + pack_nested(inner) + pack_nested(coded)
    return (Codec.DICTIONARY, packed) if len(packed) < 4 * count + len(data) else None


def _hashes(texts: TextColumn, data: bytes) -> Int64Array:
    """uint64[n]: of each text; `data` are their bytes."""
    lengths = texts.lengths
    starts = np.cumsum(lengths) - lengths
    found = lengths.astype(np.uint64) * HASH_FACTOR
    filled = np.flatnonzero(lengths)
    if len(filled):
        powers = np.cumprod(np.full(int(lengths.max()), HASH_FACTOR))
        places = np.arange(len(data)) - np.repeat(starts, lengths)
        weighed = (np.frombuffer(data, np.uint8).astype(np.uint64) + np.uint64(1)) * powers[places]
        found[filled] += np.add.reduceat(weighed, starts[filled])
    return found.view(np.int64)


def _column(lengths: Int64Array, data: bytes, start: int) -> TextColumn:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if int(offsets[-1]) != len(data) - start or (len(lengths) and int(lengths.min()) < 0):
        raise CorruptData(f"a page of {len(lengths)} texts holds {len(data)} bytes")
    return TextColumn(offsets, memoryview(data)[start:])


def _decode_plain(codec: int, version: int, data: bytes, count: int) -> TextColumn:
    plain = decode_bytes(codec, version, data, TEXT_BYTES_MAX)
    if len(plain) < 4 * count:
        raise CorruptData(f"a page of {count} texts holds {len(plain)} bytes")
    return _column(np.frombuffer(plain, "<u4", count).astype(np.int64), plain, 4 * count)


def _decode_packed(data: bytes, count: int) -> TextColumn:
    codec, version, inner, at = take_nested(data, 0)
    lengths = decode_numbers(INT32, codec, version, inner, count).astype(np.int64)
    total = int(lengths.sum())
    codec, version, inner, end = take_nested(data, at)
    if end != len(data) or not 0 <= total <= TEXT_BYTES_MAX:
        raise CorruptData(f"a page of {count} texts does not hold what it says")
    return _column(lengths, decode_bytes(codec, version, inner, total), 0)


def _decode_dictionary(data: bytes, count: int) -> TextColumn:
    if len(data) < 4:
        raise CorruptData(f"a dictionary of {len(data)} bytes")
    size = int.from_bytes(data[:4], "little")
    codec, version, inner, at = take_nested(data, 4)
    words = _decode_plain(codec, version, inner, size)
    codec, version, inner, end = take_nested(data, at)
    numbers = decode_numbers(INT32, codec, version, inner, count)
    if end != len(data) or not size or int(numbers.min()) < 0 or int(numbers.max()) >= size:
        raise CorruptData(f"a page of {count} texts has a dictionary of {size} that does not fit")
    if int(words.lengths[numbers].sum()) > TEXT_BYTES_MAX:
        raise CorruptData(f"a page of {count} texts says that it holds more than {TEXT_BYTES_MAX} bytes")
    return words[numbers]


def decode_texts(codec: int, version: int, data: bytes, count: int) -> TextColumn:
    """Exactly `count` texts; CorruptData where the bytes do not give them."""
    if codec not in (Codec.TEXTS, Codec.DICTIONARY):
        return _decode_plain(codec, version, data, count)
    if version != CODEC_VERSION:
        raise CorruptData(f"a page has codec version {version}, this program knows {CODEC_VERSION}")
    return _decode_packed(data, count) if codec == Codec.TEXTS else _decode_dictionary(data, count)
