"""Statistics of runs of cells: of the blocks of a column when it is written, of windows when it is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from iotdb_cluster.columns import DataType, Int64Array
from iotdb_cluster.storage.sums import segment_sums

__all__ = ["BLOCK", "block_statistics", "from_bits", "largest_of", "segment_bounds", "to_bits"]

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
        blocks["sum_hi"], blocks["sum_lo"] = segment_sums(values, starts, largest_of(least, greatest))
    return blocks
