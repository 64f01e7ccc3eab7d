"""Partial states of aggregations: made from points, merged over units, windows and series, finished into columns.

Sums are double-double (hi, lo): the pair's exact value is hi + lo, |lo| <= ulp(hi) / 2. They are rounded once, when
finished, so that an answer does not depend on how the points were grouped.

Values are ordered as Java's Double.compare orders them: NaN above every other number, -0.0 below 0.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from iotdb_cluster.columns import BoolArray, Column, DataType, Int64Array, TextColumn, Values, concat_values
from iotdb_cluster.errors import check
from iotdb_cluster.limits import INT64_MAX, INT64_MIN
from iotdb_cluster.query.requests import Needs

__all__ = [
    "RESULT_TYPES",
    "Gatherer",
    "Partials",
    "concat",
    "empty",
    "finish",
    "merge",
    "needs_of",
    "of_points",
    "reduce_windows",
    "take",
]

Array: TypeAlias = npt.NDArray[Any]
Float64Array: TypeAlias = npt.NDArray[np.float64]

PIECES_MAX = 256  # states of single batches gathered before they are reduced
NUMERIC = ("sum", "avg", "min_value", "max_value", "extreme")
RESULT_TYPES: dict[str, DataType | None] = {
    "count": DataType.INT64,
    "min_time": DataType.INT64,
    "max_time": DataType.INT64,
    "sum": DataType.DOUBLE,
    "avg": DataType.DOUBLE,
    "min_value": None,
    "max_value": None,
    "extreme": None,
    "first_value": None,
    "last_value": None,
}
"""The result type of each aggregation; None: the type of the series."""

_NEEDS = {
    "sum": Needs.SUM,
    "avg": Needs.SUM,
    "min_value": Needs.EXTREMES,
    "max_value": Needs.EXTREMES,
    "extreme": Needs.EXTREMES,
    "first_value": Needs.ENDS,
    "last_value": Needs.ENDS,
}


def needs_of(function: str) -> Needs:
    """Which parts of a partial state the aggregation is finished from."""
    return _NEEDS.get(function, Needs.COUNT)


@dataclass(slots=True)
class Partials:
    """One series over w windows. Where `count` is 0 the other arrays hold anything but first_time > last_time.

    `count`, `first_time`, `last_time`: int64[w]. `sum_hi`, `sum_lo`: float64[w] or None. `low`, `high`: the lowest and
    highest value, `first`, `last`: the values at those times: w cells of `type`, or None where not asked for.
    """

    type: DataType
    count: Int64Array
    first_time: Int64Array
    last_time: Int64Array
    sum_hi: Float64Array | None = None
    sum_lo: Float64Array | None = None
    low: Values | None = None
    high: Values | None = None
    first: Values | None = None
    last: Values | None = None

    def __len__(self) -> int:
        return len(self.count)


def _blank(kind: DataType, count: int) -> Values:
    return TextColumn.full(count, b"") if kind is DataType.TEXT else np.zeros(count, kind.dtype)


def empty(kind: DataType, needs: Needs, windows: int) -> Partials:
    """The state of no points at all."""
    out = Partials(
        kind, np.zeros(windows, np.int64), np.full(windows, INT64_MAX, np.int64), np.full(windows, INT64_MIN, np.int64)
    )
    if needs & Needs.SUM:
        out.sum_hi, out.sum_lo = np.zeros(windows), np.zeros(windows)
    if needs & Needs.EXTREMES:
        out.low, out.high = _blank(kind, windows), _blank(kind, windows)
    if needs & Needs.ENDS:
        out.first, out.last = _blank(kind, windows), _blank(kind, windows)
    return out


# --- double-double ----------------------------------------------------------------------------------------------------
def _add(a_hi: Array, a_lo: Array, b_hi: Array, b_lo: Array) -> tuple[Array, Array]:
    """(hi, lo) of the sums of two arrays of pairs; a sum that is not finite has lo 0."""
    with np.errstate(invalid="ignore", over="ignore"):
        total = a_hi + b_hi
        part = total - a_hi
        error = (a_hi - (total - part)) + (b_hi - part) + (a_lo + b_lo)
        hi = total + error
        lo = error - (hi - total)
    finite = np.isfinite(hi)
    if not finite.all():
        hi = np.where(finite, hi, total)
        lo = np.where(finite, lo, 0.0)
    return hi, lo


def _pairs(values: Array) -> tuple[Float64Array, Float64Array]:
    """The values as (hi, lo), exactly: an int64 may need both."""
    hi = values.astype(np.float64)
    if values.dtype != np.int64:
        return hi, np.zeros(len(hi))
    # The float may be 2**63, which int64 cannot hold: the difference is taken modulo 2**64 and is small.
    whole = np.where(hi >= 9223372036854775808.0, np.int64(INT64_MIN), 0)
    inside = whole == 0
    whole[inside] = hi[inside].astype(np.int64)
    return hi, (values - whole).astype(np.float64)


def _segment_sums(hi: Array, lo: Array, lengths: Array) -> tuple[Array, Array]:
    """(hi, lo) summed over consecutive segments of these lengths (all > 0), by halving: log2(longest) rounds."""
    while len(hi) > len(lengths):
        starts = np.cumsum(lengths) - lengths
        place = np.arange(len(hi)) - np.repeat(starts, lengths)
        left = np.flatnonzero((place & 1) == 0)
        paired = (place[left] + 1) < np.repeat(lengths, (lengths + 1) // 2)
        new_hi, new_lo = hi[left], lo[left]
        with_partner = left[paired]
        new_hi[paired], new_lo[paired] = _add(
            hi[with_partner], lo[with_partner], hi[with_partner + 1], lo[with_partner + 1]
        )
        hi, lo, lengths = new_hi, new_lo, (lengths + 1) // 2
    return hi, lo


# --- the order of values ----------------------------------------------------------------------------------------------
def _keys(values: Values) -> Array:
    """Integers in the order of the numbers; integers are their own."""
    numbers = np.asarray(values)
    if numbers.dtype.kind != "f":
        return numbers
    whole = np.int32 if numbers.dtype.itemsize == 4 else np.int64
    bits: Array = np.where(np.isnan(numbers), numbers.dtype.type(np.nan), numbers).view(whole)
    return np.where(bits < 0, bits ^ np.iinfo(whole).max, bits)


def _values(keys: Array, dtype: np.dtype[Any]) -> Array:
    """The inverse of `_keys`."""
    if dtype.kind != "f":
        return keys
    return np.where(keys < 0, keys ^ np.iinfo(keys.dtype).max, keys).view(dtype)


# --- from points ------------------------------------------------------------------------------------------------------
def of_points(times: Int64Array, column: Column, starts: Int64Array, ends: Int64Array, needs: Needs) -> Partials:
    """The states of w windows (ascending, disjoint, inclusive) over points in ascending order of time."""
    values = column.values
    if column.valid is not None:
        times, values = times[column.valid], values[column.valid]
    out = empty(column.type, needs, len(starts))
    begin = np.searchsorted(times, starts, "left")
    end = np.maximum(np.searchsorted(times, ends, "right"), begin)
    out.count = (end - begin).astype(np.int64)
    full = np.flatnonzero(out.count)
    if not len(full):
        return out
    begin, end, lengths = begin[full], end[full], out.count[full]
    out.first_time[full], out.last_time[full] = times[begin], times[end - 1]
    if needs & Needs.ENDS:
        out.first = _put(out.first, full, values[begin])
        out.last = _put(out.last, full, values[end - 1])
    if needs & (Needs.SUM | Needs.EXTREMES):
        check(not isinstance(values, TextColumn), "sum or extremes of a TEXT column")
        inside = values[np.repeat(begin - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())]
        if needs & Needs.SUM:
            hi, lo = _segment_sums(*_pairs(np.asarray(inside)), lengths)
            out.sum_hi, out.sum_lo = _put(out.sum_hi, full, hi), _put(out.sum_lo, full, lo)
        if needs & Needs.EXTREMES:
            segments = np.cumsum(lengths) - lengths
            keys, dtype = _keys(inside), column.type.dtype
            out.low = _put(out.low, full, _values(np.minimum.reduceat(keys, segments), dtype))
            out.high = _put(out.high, full, _values(np.maximum.reduceat(keys, segments), dtype))
    return out


def _put(target: Any, where: Array, values: Any) -> Any:
    """`target` with `values` at the indices `where`, ascending; a text column is built anew."""
    if not isinstance(target, TextColumn):
        target[where] = values
        return target
    source = np.zeros(len(target), np.int64)
    source[where] = np.arange(1, len(where) + 1)
    return concat_values([TextColumn.full(1, b""), values])[source]


# --- merging ----------------------------------------------------------------------------------------------------------
def _choose(pick: BoolArray, yes: Values, no: Values) -> Values:
    """Cell by cell `yes` where `pick`, else `no`."""
    if isinstance(yes, TextColumn):
        index = np.arange(len(pick))
        return concat_values([yes, no])[np.where(pick, index, index + len(pick))]
    return np.where(pick, np.asarray(yes), np.asarray(no))


def _merge_two(a: Partials, b: Partials) -> Partials:
    has_a, has_b = a.count > 0, b.count > 0
    earlier = has_b & (~has_a | (b.first_time < a.first_time))
    later = has_b & (~has_a | (b.last_time > a.last_time))
    out = Partials(
        a.type,
        a.count + b.count,
        np.where(earlier, b.first_time, a.first_time),
        np.where(later, b.last_time, a.last_time),
    )
    if a.sum_hi is not None and a.sum_lo is not None and b.sum_hi is not None and b.sum_lo is not None:
        out.sum_hi, out.sum_lo = _add(a.sum_hi, a.sum_lo, b.sum_hi, b.sum_lo)
    if a.low is not None and a.high is not None and b.low is not None and b.high is not None:
        out.low = np.where(has_b & (~has_a | (_keys(b.low) < _keys(a.low))), np.asarray(b.low), np.asarray(a.low))
        out.high = np.where(has_b & (~has_a | (_keys(b.high) > _keys(a.high))), np.asarray(b.high), np.asarray(a.high))
    if a.first is not None and a.last is not None and b.first is not None and b.last is not None:
        out.first = _choose(earlier, b.first, a.first)
        out.last = _choose(later, b.last, a.last)
    return out


def merge(parts: Sequence[Partials]) -> Partials:
    """One state of several over the same windows (at least one, of equal type and needs).

    Of points at one time the earlier part's is first and last.
    """
    out = parts[0]
    for part in parts[1:]:
        check(len(part) == len(out), "partial states of %d and %d windows", len(part), len(out))
        out = _merge_two(out, part)
    return out


def take(part: Partials, index: Array | slice) -> Partials:
    """The states of some of the windows."""

    def of(values: Any) -> Any:
        return None if values is None else values[index]

    return Partials(
        part.type,
        part.count[index],
        part.first_time[index],
        part.last_time[index],
        of(part.sum_hi),
        of(part.sum_lo),
        of(part.low),
        of(part.high),
        of(part.first),
        of(part.last),
    )


def concat(parts: Sequence[Partials]) -> Partials:
    """The windows of several states of equal type and needs, one after another (at least one state)."""

    def of(values: Sequence[Any]) -> Any:
        return None if values[0] is None else concat_values(values)

    return Partials(
        parts[0].type,
        *(
            of([getattr(part, name) for part in parts])
            for name in ("count", "first_time", "last_time", "sum_hi", "sum_lo", "low", "high", "first", "last")
        ),
    )


def reduce_windows(part: Partials, owner: Int64Array, windows: int) -> Partials:
    """The states of `windows` windows from those of their pieces: piece i, in order of time, belongs to owner[i].

    `owner` ascends; a window without a piece has no points.
    """
    needs = Needs.COUNT
    needs |= Needs.SUM if part.sum_hi is not None else Needs.COUNT
    needs |= Needs.EXTREMES if part.low is not None else Needs.COUNT
    needs |= Needs.ENDS if part.first is not None else Needs.COUNT
    out = empty(part.type, needs, windows)
    full = np.flatnonzero(part.count)
    part, owner = take(part, full), owner[full]
    if not len(full):
        return out
    begin = np.flatnonzero(np.concatenate(([True], owner[1:] != owner[:-1])))
    lengths = np.diff(np.append(begin, len(owner)))
    where, end = owner[begin], begin + lengths - 1
    out.count[where] = np.add.reduceat(part.count, begin)
    out.first_time[where], out.last_time[where] = part.first_time[begin], part.last_time[end]
    if part.sum_hi is not None and part.sum_lo is not None:
        hi, lo = _segment_sums(part.sum_hi, part.sum_lo, lengths)
        out.sum_hi, out.sum_lo = _put(out.sum_hi, where, hi), _put(out.sum_lo, where, lo)
    if part.low is not None and part.high is not None:
        dtype = part.type.dtype
        out.low = _put(out.low, where, _values(np.minimum.reduceat(_keys(part.low), begin), dtype))
        out.high = _put(out.high, where, _values(np.maximum.reduceat(_keys(part.high), begin), dtype))
    if part.first is not None and part.last is not None:
        out.first, out.last = _put(out.first, where, part.first[begin]), _put(out.last, where, part.last[end])
    return out


# --- batch by batch ---------------------------------------------------------------------------------------------------
class Gatherer:
    """The states of one series over w windows, gathered batch by batch in order of time."""

    def __init__(self, kind: DataType, needs: Needs, windows: int) -> None:
        self._kind, self._needs, self._windows = kind, needs, windows
        self._parts: list[Partials] = []
        self._owners: list[Int64Array] = []

    def add(self, times: Int64Array, column: Column, starts: Int64Array, ends: Int64Array) -> None:
        low = int(np.searchsorted(ends, times[0], "left"))
        high = max(low, int(np.searchsorted(starts, times[-1], "right")))
        part = of_points(times, column, starts[low:high], ends[low:high], self._needs)
        full = np.flatnonzero(part.count)
        if len(full):
            self._parts.append(take(part, full))
            self._owners.append(full + low)
        if len(self._parts) >= PIECES_MAX:
            self._reduce()

    def _reduce(self) -> None:
        joined, owner = concat(self._parts), np.concatenate(self._owners)
        begin = np.flatnonzero(np.concatenate(([True], owner[1:] != owner[:-1])))
        place = np.cumsum(np.concatenate(([0], owner[1:] != owner[:-1])))
        self._parts = [reduce_windows(joined, place, len(begin))]
        self._owners = [owner[begin]]

    def result(self) -> Partials:
        if not self._parts:
            return empty(self._kind, self._needs, self._windows)
        return reduce_windows(concat(self._parts), np.concatenate(self._owners), self._windows)


# --- results ----------------------------------------------------------------------------------------------------------
def finish(function: str, part: Partials) -> Column:
    """The result of an aggregation, one cell a window; without points count is 0, sum 0.0, everything else null."""
    there = part.count > 0
    valid = None if there.all() else there
    if function == "count":
        return Column(DataType.INT64, part.count)
    if function == "min_time":
        return Column(DataType.INT64, part.first_time, valid)
    if function == "max_time":
        return Column(DataType.INT64, part.last_time, valid)
    if function in ("sum", "avg"):
        check(part.sum_hi is not None, "a partial state without a sum")
        total = np.asarray(part.sum_hi)
        if function == "sum":
            return Column(DataType.DOUBLE, np.where(there, total, 0.0))
        with np.errstate(invalid="ignore"):
            return Column(DataType.DOUBLE, total / np.maximum(part.count, 1), valid)
    values = {"min_value": part.low, "max_value": part.high, "first_value": part.first, "last_value": part.last}
    chosen = _extreme(part) if function == "extreme" else values[function]
    check(chosen is not None, "a partial state without what %s needs", function)
    return Column(part.type, chosen if chosen is not None else _blank(part.type, len(part)), valid)


def _extreme(part: Partials) -> Array:
    """The value of the largest magnitude; of two equal magnitudes the positive one."""
    low, high = np.asarray(part.low), np.asarray(part.high)
    if low.dtype.kind == "i":
        # Negated, not absolute: the lowest integer has no positive counterpart.
        return np.where((low < 0) & ((high < 0) | (low < -high)), low, high)
    return np.where(np.abs(low) > np.abs(high), low, high)
