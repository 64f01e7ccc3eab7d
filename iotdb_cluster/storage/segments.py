"""Statistics of runs of cells: of the blocks of a column when it is written, of windows when it is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from iotdb_cluster.columns import DataType, Int64Array
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.storage import chunk_layout as layout
from iotdb_cluster.storage.codec_ids import pack_nested, take_nested
from iotdb_cluster.storage.codecs import decode_values, encode_values
from iotdb_cluster.storage.sums import segment_sums

__all__ = [
    "BLOCK",
    "block_statistics",
    "from_bits",
    "largest_of",
    "pack_blocks",
    "segment_bounds",
    "smallest_of",
    "to_bits",
    "unpack_blocks",
]

PACKED_BLOCKS_MIN = 24  # fewer statistics blocks stand as they are

Array = npt.NDArray[Any]

# One statistics block. Values stand as their bits, widened to 64 with zeros; numbers a type has not are 0.
BLOCK = np.dtype(
    [
        ("count", "<u4"),
        ("first_time", "<i8"),
        ("last_time", "<i8"),
        ("first", "<u8"),
        ("last", "<u8"),
        ("min", "<u8"),
        ("max", "<u8"),
        ("sum_hi", "<f8"),
        ("sum_lo", "<f8"),
    ]
)


def to_bits(values: Array) -> Array:
    """uint64: the bits of native values of any fixed width."""
    return values.view(np.dtype(f"u{values.dtype.itemsize}")).astype(np.uint64)


def from_bits(kind: DataType, bits: Array) -> Array:
    """The inverse of `to_bits`."""
    dtype = kind.dtype
    return np.ascontiguousarray(bits).astype(np.dtype(f"u{dtype.itemsize}")).view(dtype)


def segment_bounds(values: Array, starts: Int64Array) -> tuple[Array, Array]:
    """(least, greatest) of each segment of numbers `values[..., n]`, in the order of Java's Double.compare."""
    if values.dtype.kind != "f":
        return np.minimum.reduceat(values, starts, axis=-1), np.maximum.reduceat(values, starts, axis=-1)
    with np.errstate(invalid="ignore"):
        greatest = np.maximum.reduceat(values, starts, axis=-1)
        if np.isnan(greatest).any():
            least = np.fmin.reduceat(values, starts, axis=-1)
        else:
            least = np.minimum.reduceat(values, starts, axis=-1)
    if (least == 0).any() or (greatest == 0).any():
        zero, negative = values == 0, np.signbit(values)
        has_negative = np.logical_or.reduceat(zero & negative, starts, axis=-1)
        has_positive = np.logical_or.reduceat(zero & ~negative, starts, axis=-1)
        one = values.dtype.type
        least = np.where(least == 0, np.where(has_negative, one(-0.0), one(0.0)), least)
        greatest = np.where(greatest == 0, np.where(has_positive, one(0.0), one(-0.0)), greatest)
    return least, greatest


def largest_of(least: Array, greatest: Array) -> npt.NDArray[np.float64]:
    """The largest magnitude, as double, between two bounds; NaN where one is."""
    return np.maximum(np.abs(least.astype(np.float64)), np.abs(greatest.astype(np.float64)))


def smallest_of(least: Array, greatest: Array) -> npt.NDArray[np.float64]:
    """A magnitude, as double, that no number between two bounds is below: 0 where they have different signs."""
    low, high = least.astype(np.float64), greatest.astype(np.float64)
    magnitude: npt.NDArray[np.float64] = np.maximum(np.maximum(low, -high), 0.0)
    return magnitude


def block_statistics(kind: DataType, values: Array | None, times: Int64Array, starts: Int64Array) -> Array:
    """BLOCK[m, s] for the segments of `values[m, n]` (native; None for TEXT: m is then 1) at `times[n]`.

    `starts` is int64[s], ascending, the first 0; no segment is empty.
    """
    ends = np.append(starts[1:], len(times)) - 1
    rows = 1 if values is None else len(values)
    blocks = np.zeros((rows, len(starts)), BLOCK)
    blocks["count"] = ends + 1 - starts
    blocks["first_time"] = times[starts]
    blocks["last_time"] = times[ends]
    if values is None:
        return blocks
    blocks["first"] = to_bits(values[:, starts])
    blocks["last"] = to_bits(values[:, ends])
    if kind.is_numeric:
        least, greatest = segment_bounds(values, starts)
        blocks["min"] = to_bits(least)
        blocks["max"] = to_bits(greatest)
        sizes = largest_of(least, greatest), smallest_of(least, greatest)
        blocks["sum_hi"], blocks["sum_lo"] = segment_sums(values, starts, *sizes)
    return blocks


def _fields(kind: DataType) -> list[tuple[str, DataType]]:
    """Which fields of a BLOCK a type has, and as what they are packed; times apart."""
    fields = [("count", DataType.INT32)]
    if kind is not DataType.TEXT:
        fields += [("first", kind), ("last", kind)]
    if kind.is_numeric:
        fields += [("min", kind), ("max", kind), ("sum_hi", DataType.DOUBLE), ("sum_lo", DataType.DOUBLE)]
    return fields


def pack_blocks(kind: DataType, blocks: Array, first_times: Int64Array, last_times: Int64Array, level: int) -> bytes:
    """BLOCK[b] to bytes; the times are those of all rows in each block, which a full column has too."""
    if len(blocks) < PACKED_BLOCKS_MIN:
        return layout.DESCRIPTION.pack(layout.BLOCKS_PLAIN, 1) + blocks.tobytes()
    own = not (np.array_equal(blocks["first_time"], first_times) and np.array_equal(blocks["last_time"], last_times))
    parts = [layout.DESCRIPTION.pack(layout.BLOCKS_PACKED, own)]
    fields = _fields(kind) + ([("first_time", DataType.INT64), ("last_time", DataType.INT64)] if own else [])
    for name, form in fields:
        values = blocks[name]
        if form is kind and name in ("first", "last", "min", "max"):
            values = from_bits(kind, values)
        parts.append(pack_nested(encode_values(form, np.ascontiguousarray(values, form.dtype), level)))
    return b"".join(parts)


def unpack_blocks(kind: DataType, data: bytes, first_times: Int64Array, last_times: Int64Array) -> Array:
    """The inverse of `pack_blocks`; CorruptData where the bytes do not give as many blocks as there are times."""
    if len(data) < layout.DESCRIPTION.size:
        raise CorruptData(f"a column's description of {len(data)} bytes")
    form, own = layout.DESCRIPTION.unpack_from(data)
    count, at = len(first_times), layout.DESCRIPTION.size
    if form == layout.BLOCKS_PLAIN:
        if len(data) - at != BLOCK.itemsize * count:
            raise CorruptData(f"a column's description of {len(data)} bytes has not {count} statistics blocks")
        return np.frombuffer(data, BLOCK, count, at)
    if form != layout.BLOCKS_PACKED:
        raise CorruptData(f"a column's description has the form {form}, which this program does not know")
    blocks = np.zeros(count, BLOCK)
    blocks["first_time"], blocks["last_time"] = first_times, last_times
    fields = _fields(kind) + ([("first_time", DataType.INT64), ("last_time", DataType.INT64)] if own else [])
    for name, packed in fields:
        codec, version, inner, at = take_nested(data, at)
        values: Any = decode_values(packed, codec, version, inner, count)
        blocks[name] = to_bits(values) if packed is kind and name in ("first", "last", "min", "max") else values
    if at != len(data):
        raise CorruptData(f"a column's description has {len(data) - at} bytes too many")
    return blocks
