"""Sums that do not depend on how the numbers were grouped, and the rounding at read.

A sum is a double-double: hi + lo, hi the sum rounded to double, lo the rest. The numbers of a segment are split at a
common power of two, so that their leading parts add without any rounding; what is left is split once more, and only
the third rest is added with rounding, some 80 bits below the largest number. So the order of addition does not show.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from iotdb_cluster.columns import Int64Array

__all__ = ["add_sums", "round_values", "segment_sums"]

Float64Array: TypeAlias = npt.NDArray[np.float64]

HUGE = 2.0**900  # above it the splitting constants could overflow
SCALE = 2.0**200


def _two_sum(a: Float64Array, b: Float64Array) -> tuple[Float64Array, Float64Array]:
    high = a + b
    part = high - a
    return high, (a - (high - part)) + (b - part)


def add_sums(
    hi: Float64Array, lo: Float64Array, other_hi: Float64Array, other_lo: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """(hi, lo) of the sums of two double-doubles, cell by cell. Infinities and NaN stay in hi, with lo 0."""
    with np.errstate(all="ignore"):
        high, rest = _two_sum(hi, other_hi)
        low, lower = _two_sum(lo, other_lo)
        rest = rest + low
        total, rest = _two_sum(high, rest)
        rest = rest + lower
        total, rest = _two_sum(total, rest)
        return total, np.where(np.isfinite(total), rest, 0.0)


def _split_sums(
    values: Float64Array, starts: Int64Array, lengths: Int64Array, largest: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Sums of finite segments whose largest magnitude is `largest`, by two exact splits and a rest."""
    room = np.ceil(np.log2(lengths)) + 2
    _, exponent = np.frexp(largest)
    parts: list[Float64Array] = []
    rest = values
    for _ in range(2):
        constant = np.ldexp(1.0, exponent + room.astype(np.int64))
        spread = np.repeat(constant, lengths, axis=-1)
        high = rest + spread
        high -= spread
        parts.append(np.add.reduceat(high, starts, axis=-1))
        rest = np.subtract(rest, high, out=high)
        exponent = exponent + room.astype(np.int64) - 53
    last = np.add.reduceat(rest, starts, axis=-1)
    hi, lo = _two_sum(parts[0], parts[1])
    lo, lower = _two_sum(lo, last)
    hi, lo = _two_sum(hi, lo)
    return _two_sum(hi, lo + lower)


def _near_sums(
    values: Float64Array, starts: Int64Array, lengths: Int64Array, largest: Float64Array, smallest: Float64Array
) -> tuple[Float64Array, Float64Array] | None:
    """As `_split_sums`, by one split for all segments, whose rests add without rounding; None where they may not.

    A rest is below 2^(exponent + room - 53) and a multiple of the last bit of the smallest number.
    """
    room = math.ceil(math.log2(int(lengths.max()))) + 2
    exponent = np.frexp(largest)[1].max(axis=-1, keepdims=True)
    lowest = np.frexp(smallest)[1].min(axis=-1, keepdims=True)
    if not (smallest > 0).all() or (exponent - lowest + 2 * room - 2 > 53).any():
        return None
    constant = np.ldexp(1.0, exponent + room)
    high = values + constant
    high -= constant
    total = np.add.reduceat(high, starts, axis=-1)
    rest = np.subtract(values, high, out=high)
    return _two_sum(total, np.add.reduceat(rest, starts, axis=-1))


def segment_sums(
    values: npt.NDArray[Any],
    starts: Int64Array,
    largest: npt.NDArray[Any],
    smallest: npt.NDArray[np.float64] | None = None,
) -> tuple[Float64Array, Float64Array]:
    """Double-double sums of the segments of `values[..., n]`; they begin at `starts` (ascending from 0), none is empty.

    `largest[..., s]` is the largest magnitude in each segment, NaN or infinite where it has such a value; `smallest`,
    where it is known, the smallest, or 0: numbers of one size are added faster, with the same result. Numbers are
    taken as doubles. Sums of 32-bit integers are exact.
    """
    if values.dtype == np.int32:
        whole = np.add.reduceat(values, starts, axis=-1, dtype=np.int64)
        hi = whole.astype(np.float64)
        return hi, (whole - hi.astype(np.int64)).astype(np.float64)
    numbers: Float64Array = values.astype(np.float64, copy=False)
    lengths = np.diff(starts, append=numbers.shape[-1])
    largest = largest.astype(np.float64, copy=False)
    with np.errstate(all="ignore"):
        finite = np.isfinite(largest)
        if finite.all() and (largest < HUGE).all():
            if smallest is not None:
                sums = _near_sums(numbers, starts, lengths, largest, smallest)
                if sums is not None:
                    return sums
            return _split_sums(numbers, starts, lengths, largest)
        odd = np.add.reduceat(np.where(np.isfinite(numbers), 0.0, numbers), starts, axis=-1)
        clean = np.where(np.isfinite(numbers), numbers, 0.0) / SCALE
        peaks = np.maximum.reduceat(np.abs(clean), starts, axis=-1)
        hi, lo = _split_sums(clean, starts, lengths, peaks)
        plain = finite & (largest < HUGE)
        small = np.where(np.abs(numbers) < HUGE, numbers, 0.0)
        small_hi, small_lo = _split_sums(small, starts, lengths, np.where(plain, largest, 0.0))
        hi = np.where(finite, np.where(largest < HUGE, small_hi, hi * SCALE), odd)
        lo = np.where(finite & np.isfinite(hi), np.where(largest < HUGE, small_lo, lo * SCALE), 0.0)
        return hi, lo


def round_values(values: npt.NDArray[Any], decimals: int) -> npt.NDArray[Any]:
    """FLOAT and DOUBLE as a series of encoding RLE or TS_2DIFF is read: rounded to so many decimals, half up.

    r + round((x - r) * 10^p) / 10^p with r = round(x), FLOAT in 32 bits; NaN, infinities and |x| * 10^p >= 2^63 stay
    as they are. Other types come back unchanged.
    """
    if values.dtype.kind != "f":
        return values
    power = 10.0**decimals
    with np.errstate(all="ignore"):
        whole = _round_half_up(values)
        digits = _round_half_up((values - whole).astype(np.float64) * power)
        rounded = whole + (digits.astype(values.dtype) / values.dtype.type(power)) if decimals else whole
        kept = ~(np.abs(values.astype(np.float64)) * power < 2.0**63)
    result: npt.NDArray[Any] = np.where(kept, values, rounded)
    return result


def _round_half_up(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    floor = np.floor(values)
    result: npt.NDArray[Any] = floor + ((values - floor) >= 0.5)
    return result
