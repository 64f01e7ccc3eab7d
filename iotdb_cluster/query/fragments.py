"""The parts of a query that run where the points are: on the units of one storage group in one data group.

Everything here is plain computation over `ReadInterface`s and may run on a worker thread. Values of FLOAT and DOUBLE
are rounded as their series says, except by `last`; points that the TTL hides are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from iotdb_cluster.columns import Column, DataType, Int64Array, RowBatch, TextColumn
from iotdb_cluster.limits import INT64_MAX, INT64_MIN, SCAN_BATCH_BYTES
from iotdb_cluster.query import partials
from iotdb_cluster.query.joining import Source, next_rows, select_rows
from iotdb_cluster.query.partials import Partials
from iotdb_cluster.query.requests import Needs, Point, SeriesInfo
from iotdb_cluster.storage import ReadInterface, Statistics, round_values

__all__ = ["Unit", "aggregate", "last", "nearest", "scan"]


DEVICE_ROWS_MIN = 256  # rows of one device that are read ahead at least, where a batch has so many


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit's points; they lie within [low, high], which spares asking it for others."""

    reader: ReadInterface
    low: int = INT64_MIN
    high: int = INT64_MAX


def _rounded(series: SeriesInfo, column: Column) -> Column:
    if series.decimals is None or series.type not in (DataType.FLOAT, DataType.DOUBLE):
        return column
    return Column(column.type, round_values(np.asarray(column.values), series.decimals), column.valid)


# --- rows -------------------------------------------------------------------------------------------------------------
def scan(
    units: Sequence[Unit], series: Sequence[SeriesInfo], low: int, high: int, ascending: bool, batch_rows: int
) -> Iterator[RowBatch]:
    """The rows of distinct series with low <= time <= high, joined by time: one column for each series.

    `units` have disjoint times and come in ascending order. Batches are not empty and have at most `batch_rows` rows.
    SystemFault where a unit is damaged.
    """
    for unit in units if ascending else reversed(units):
        begin, end = max(low, unit.low), min(high, unit.high)
        if begin <= end:
            yield from _scan_unit(unit.reader, series, begin, end, ascending, batch_rows)


def _scan_unit(
    reader: ReadInterface, series: Sequence[SeriesInfo], low: int, high: int, ascending: bool, batch_rows: int
) -> Iterator[RowBatch]:
    types = [one.type for one in series]
    devices: dict[tuple[str, int], list[int]] = {}
    for at, one in enumerate(series):
        devices.setdefault((one.device, one.visible_from), []).append(at)
    sources, readers = [], []
    # Devices often share their times: a row of the result then takes one row of each.
    rows_each = max(min(batch_rows, DEVICE_ROWS_MIN), batch_rows // (len(devices) or 1))
    for (device, visible), where in devices.items():
        if max(low, visible) <= high:
            wanted = [(series[at].measurement, series[at].type) for at in where]
            sources.append(Source(tuple(where)))
            readers.append(reader.read_device(device, wanted, max(low, visible), high, ascending, rows_each))
    while True:
        for source, batches in zip(sources, readers, strict=True):
            if source.rows is None and not source.done:
                source.rows = next(batches, None)
                source.done = source.rows is None
        rows = next_rows(sources, types, ascending)
        if rows is None:
            return
        rows = RowBatch(rows.times, [_rounded(one, column) for one, column in zip(series, rows.columns, strict=True)])
        yield from _cut(rows, batch_rows)


def _cut(rows: RowBatch, batch_rows: int) -> Iterator[RowBatch]:
    """In pieces of at most so many rows, and of about `SCAN_BATCH_BYTES` where there are more than one."""
    if rows.nbytes > SCAN_BATCH_BYTES:
        sizes = np.full(len(rows), 8 * (1 + len(rows.columns)), np.int64)
        for column in rows.columns:
            if isinstance(column.values, TextColumn):
                sizes += column.values.lengths
        batches = np.cumsum(sizes) // SCAN_BATCH_BYTES
        cuts = [0, *(np.flatnonzero(np.diff(batches)) + 1).tolist(), len(rows)]
    else:
        cuts = [0, len(rows)]
    for low, high in pairwise(cuts):
        for at in range(low, high, batch_rows):
            stop = min(high, at + batch_rows)
            yield rows if stop - at == len(rows) else select_rows(rows, slice(at, stop))


# --- aggregations -----------------------------------------------------------------------------------------------------
def aggregate(
    units: Sequence[Unit], series: Sequence[SeriesInfo], needs: Sequence[Needs], starts: Int64Array, ends: Int64Array
) -> list[Partials]:
    """The partial state of each series over w windows (ascending, disjoint, inclusive), merged over the units."""
    out = []
    for one, need in zip(series, needs, strict=True):
        # Windows that the TTL hides hold nothing; of the first visible one the rest is asked for.
        hidden = int(np.searchsorted(ends, one.visible_from, "left"))
        parts = [partials.empty(one.type, need, len(starts))]
        for unit in units:
            begin = max(hidden, int(np.searchsorted(ends, unit.low, "left")))
            stop = int(np.searchsorted(starts, unit.high, "right"))
            if begin < stop:
                visible = np.maximum(starts[begin:stop], one.visible_from)
                part = _unit_states(unit.reader, one, need, visible, ends[begin:stop])
                parts.append(_padded(part, need, begin, len(starts)))
        out.append(partials.merge(parts[1:] or parts))
    return out


def _unit_states(reader: ReadInterface, one: SeriesInfo, need: Needs, starts: Int64Array, ends: Int64Array) -> Partials:
    if need & Needs.SUM and one.type is DataType.BOOLEAN:
        # Storage keeps no sums of truth values.
        gathered = partials.Gatherer(one.type, need, len(starts))
        for times, values in reader.read(one.device, one.measurement, one.type, int(starts[0]), int(ends[-1])):
            gathered.add(times, Column(one.type, values), starts, ends)
        return gathered.result()
    found = reader.window_statistics(
        one.device,
        one.measurement,
        one.type,
        starts,
        ends,
        one.decimals,
        values=need != Needs.COUNT,
        sums=bool(need & Needs.SUM),
    )
    return _from_statistics(one.type, need, found)


def _from_statistics(kind: DataType, need: Needs, found: Statistics) -> Partials:
    there = found.count > 0
    out = Partials(
        kind,
        found.count,
        np.where(there, found.first_times, INT64_MAX),
        np.where(there, found.last_times, INT64_MIN),
    )
    if need & Needs.SUM and found.sum_hi is not None and found.sum_lo is not None:
        out.sum_hi, out.sum_lo = np.where(there, found.sum_hi, 0.0), np.where(there, found.sum_lo, 0.0)
    if need & Needs.EXTREMES:
        out.low, out.high = found.min_values, found.max_values
    if need & Needs.ENDS:
        out.first, out.last = found.first_values, found.last_values
    return out


def _padded(part: Partials, need: Needs, begin: int, windows: int) -> Partials:
    """The state over all windows of one over those from `begin` on."""
    behind = windows - begin - len(part)
    if not begin and not behind:
        return part
    return partials.concat([partials.empty(part.type, need, begin), part, partials.empty(part.type, need, behind)])


# --- single points ----------------------------------------------------------------------------------------------------
def last(units: Sequence[Unit], series: Sequence[SeriesInfo], low: int) -> list[Point | None]:
    """The newest visible point of each series at or after `low`, exact."""
    out: list[Point | None] = []
    for one in series:
        lowest = max(low, one.visible_from)
        found = None
        for unit in reversed(units):
            if unit.high >= lowest:
                found = unit.reader.last(one.device, one.measurement, one.type, lowest)
                if found is not None:
                    break
        out.append(None if found is None else Point(*found))
    return out


def nearest(
    units: Sequence[Unit], series: Sequence[SeriesInfo], time: int, low: int, high: int
) -> list[tuple[Point | None, Point | None]]:
    """For each series the newest point in [low, time] and the oldest in [time, high]."""
    out: list[tuple[Point | None, Point | None]] = []
    for one in series:
        lowest = max(low, one.visible_from)
        previous = following = None
        for unit in reversed(units):
            if unit.low <= time and unit.high >= lowest and lowest <= time:
                previous, _ = unit.reader.nearest(one.device, one.measurement, one.type, time, lowest, time)
                if previous is not None:
                    break
        begin = max(time, lowest)
        for unit in units:
            if unit.high >= begin and unit.low <= high and begin <= high:
                _, following = unit.reader.nearest(one.device, one.measurement, one.type, begin, begin, high)
                if following is not None:
                    break
        out.append((_point(one, previous), _point(one, following)))
    return out


def _point(one: SeriesInfo, found: tuple[int, object] | None) -> Point | None:
    if found is None:
        return None
    time, value = found
    return Point(time, _rounded(one, Column.of(one.type, [value])).tolist()[0])
