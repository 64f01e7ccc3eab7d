"""The windows of GROUP BY time: where each begins and ends, and the time of its row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Protocol, TypeAlias

import numpy as np

from iotdb_cluster.columns import Int64Array
from iotdb_cluster.limits import INT64_MAX, INT64_MIN
from iotdb_cluster.query.errors import refuse
from iotdb_cluster.sql.statements import GroupByTime

__all__ = ["FixedWindows", "MonthWindows", "WholeWindow", "Windows", "add_months", "windows_of"]

Bounds: TypeAlias = tuple[Int64Array, Int64Array, Int64Array]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Windows(Protocol):
    """Windows in ascending order, disjoint."""

    def __len__(self) -> int: ...

    def slice(self, low: int, high: int) -> Bounds:
        """(starts, ends inclusive, times of the rows), int64, of the windows low <= k < high."""
        ...


class WholeWindow:
    """All of time as one window; its row has time 0."""

    def __len__(self) -> int:
        return 1

    def slice(self, low: int, high: int) -> Bounds:
        pick = slice(low, high)
        return np.array([INT64_MIN])[pick], np.array([INT64_MAX])[pick], np.zeros(1, np.int64)[pick]


def _row_times(starts: Int64Array, ends: Int64Array, left_open: bool) -> Int64Array:
    """[a, b) shows its left edge; (a, b], computed one later, its right edge, which is its last instant."""
    return ends if left_open else starts


class FixedWindows:
    """[start + k step, start + k step + interval) for every such start below `end`, clipped there."""

    def __init__(self, start: int, end: int, interval: int, step: int, left_open: bool) -> None:
        self._start, self._end, self._interval, self._step = start, end, interval, step
        self._left_open = left_open
        self._count = max(0, -((start - end) // step))

    def __len__(self) -> int:
        # The language bounds a length by what a machine word holds; nobody reads that many rows.
        return min(self._count, INT64_MAX)

    def slice(self, low: int, high: int) -> Bounds:
        count = max(0, min(high, self._count) - low)
        starts = np.int64(self._start + low * self._step) + np.arange(count, dtype=np.int64) * np.int64(self._step)
        # Modulo 2**64, because end - start need not fit in 63 bits.
        room = np.uint64(self._end % (1 << 64)) - starts.astype(np.uint64)
        length = np.minimum(room, np.uint64(self._interval)) - np.uint64(1)
        ends = (starts.astype(np.uint64) + length).astype(np.int64)
        return starts, ends, _row_times(starts, ends, self._left_open)


def add_months(time: int, months: int, zone: tzinfo) -> int:
    """The same wall-clock time (in ms) some months later, the day clamped to the month's length.

    Raises CallerError beyond the years 1 to 9999.
    """
    if not months:
        return time
    try:
        local = (_EPOCH + timedelta(milliseconds=time)).astimezone(zone)
        month = local.month - 1 + months
        year, month = local.year + month // 12, month % 12 + 1
        following = datetime(year + month // 12, month % 12 + 1, 1)
        days = (following - datetime(year, month, 1)).days
        moved = local.replace(year=year, month=month, day=min(local.day, days), fold=0)
        return (moved.astimezone(UTC) - _EPOCH) // timedelta(milliseconds=1)
    except (OverflowError, ValueError):
        raise refuse(f"Time {time} plus {months} months is beyond the calendar") from None


class MonthWindows:
    """As `FixedWindows`, where interval or step count calendar months, each from `start` on."""

    def __init__(self, start: int, end: int, interval: tuple[int, int], step: tuple[int, int], left_open: bool,
                 zone: tzinfo) -> None:  # fmt: skip
        self._start, self._end, self._interval, self._step = start, end, interval, step
        self._left_open, self._zone = left_open, zone
        low, high = 0, 1
        while self._begin(high) < end:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._begin(middle) < end else (low, middle)
        self._count = high

    def _begin(self, k: int) -> int:
        months, fixed = self._step
        return add_months(self._start, k * months, self._zone) + k * fixed

    def _stop(self, k: int) -> int:
        months, fixed = self._interval
        if self._step[0]:
            return add_months(self._start, k * self._step[0] + months, self._zone) + k * self._step[1] + fixed
        return add_months(self._begin(k), months, self._zone) + fixed

    def __len__(self) -> int:
        return self._count

    def slice(self, low: int, high: int) -> Bounds:
        which = range(low, min(high, self._count))
        starts = np.array([self._begin(k) for k in which], np.int64)
        ends = np.array([min(self._stop(k), self._end) - 1 for k in which], np.int64)
        # A clamped day (31 January, 28 February) may make one window reach into the next: it ends before it.
        ends[:-1] = np.minimum(ends[:-1], starts[1:] - 1)
        return starts, ends, _row_times(starts, ends, self._left_open)


def windows_of(group_by: GroupByTime, zone: tzinfo) -> Windows:
    """Raises CallerError for an empty interval."""
    shift = 1 if group_by.left_open else 0
    start, end = group_by.start + shift, group_by.end + shift
    interval, step = group_by.interval, group_by.step
    if interval.total <= 0 or step.total <= 0:
        raise refuse("The second parameter time interval should be a positive integer.")
    if interval.months or step.months:
        return MonthWindows(
            start, end, (interval.months, interval.fixed), (step.months, step.fixed), group_by.left_open, zone
        )
    return FixedWindows(start, end, interval.fixed, step.fixed, group_by.left_open)
