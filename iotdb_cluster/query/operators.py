"""Operators on row batches: each pulls from the one below it and gives at most some thousand rows at a time.

An operator's `pull` gives a batch of at least one row, or None at the end; `close` gives back what it holds open and
may be called at any time, more than once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iotdb_cluster.columns import Column, DataType, RowBatch
from iotdb_cluster.limits import SCAN_BATCH_ROWS
from iotdb_cluster.query.filters import Filter, evaluate
from iotdb_cluster.query.joining import Source, drop_empty_rows, next_rows, select_rows
from iotdb_cluster.query.requests import CloseScan, OpenScan, Pull, SeriesInfo, Steps

__all__ = [
    "Chain",
    "Limit",
    "LimitEach",
    "Memory",
    "Operator",
    "Pick",
    "Scan",
    "Union",
    "Where",
    "WithoutNull",
    "batch_rows_for",
    "drop_empty_rows",
    "select_rows",
]

CELLS_MAX = 1_000_000  # cells of one batch: a wide query gets fewer rows at once
BATCH_ROWS_MIN = 64


def batch_rows_for(series: Sequence[SeriesInfo], wanted: int = SCAN_BATCH_ROWS) -> int:
    """Rows of one batch of each stream, so that what is held of all streams stays bounded."""
    groups = len({one.storage_group_id for one in series}) or 1
    rows = min(SCAN_BATCH_ROWS // groups, CELLS_MAX // (len(series) or 1))
    return max(1, min(max(rows, BATCH_ROWS_MIN), wanted))


class Operator:
    """`types` are those of the columns that it gives."""

    types: tuple[DataType, ...]

    def pull(self) -> Steps[RowBatch | None]:
        raise NotImplementedError

    def close(self) -> Steps[None]:
        yield from ()


class Memory(Operator):
    """Rows that are there already."""

    def __init__(self, types: Sequence[DataType], rows: RowBatch | None) -> None:
        self.types = tuple(types)
        self._rows = rows

    def pull(self) -> Steps[RowBatch | None]:
        rows, self._rows = self._rows, None
        yield from ()
        return rows if rows is not None and len(rows) else None


# --- joining rows of several sources by time --------------------------------------------------------------------------
class _Join(Operator):
    """Gives the rows up to the horizon: the least of the last times of the sources that may still give more."""

    def __init__(self, types: Sequence[DataType], ascending: bool) -> None:
        self.types = tuple(types)
        self._ascending = ascending
        self._sources: list[Source] = []

    def _refill(self) -> Steps[None]:
        raise NotImplementedError

    def pull(self) -> Steps[RowBatch | None]:
        while True:
            yield from self._refill()
            rows = next_rows(self._sources, self.types, self._ascending)
            if rows is None:
                return None
            rows = drop_empty_rows(rows)
            if len(rows):
                return rows


class Scan(_Join):
    """The points of some distinct series in an interval of time, joined by time; opened at the first pull."""

    def __init__(self, series: Sequence[SeriesInfo], low: int, high: int, ascending: bool, batch_rows: int) -> None:
        super().__init__([one.type for one in series], ascending)
        self._request = OpenScan(tuple(series), low, high, ascending, batch_rows)
        self._opened = False
        self._streams: list[int] = []

    def _refill(self) -> Steps[None]:
        if not self._opened:
            self._opened = True
            if self._request.series and self._request.low <= self._request.high:
                streams = yield self._request
                self._streams = [stream.id for stream in streams]
                self._sources = [Source(tuple(stream.columns)) for stream in streams]
        hungry = [at for at, source in enumerate(self._sources) if source.rows is None and not source.done]
        if not hungry:
            return
        batches = yield Pull(tuple(self._streams[at] for at in hungry))
        for at, rows in zip(hungry, batches, strict=True):
            self._sources[at].rows, self._sources[at].done = rows, rows is None

    def close(self) -> Steps[None]:
        streams, self._streams, self._sources, self._opened = self._streams, [], [], True
        if streams:
            yield CloseScan(tuple(streams))


class Union(_Join):
    """The rows of several operators, joined by time; their columns stand side by side."""

    def __init__(self, operators: Sequence[Operator], ascending: bool) -> None:
        super().__init__([kind for operator in operators for kind in operator.types], ascending)
        self._operators = tuple(operators)
        base = 0
        for operator in operators:
            self._sources.append(Source(tuple(range(base, base + len(operator.types)))))
            base += len(operator.types)

    def _refill(self) -> Steps[None]:
        for source, operator in zip(self._sources, self._operators, strict=True):
            if source.rows is None and not source.done:
                source.rows = yield from operator.pull()
                source.done = source.rows is None

    def close(self) -> Steps[None]:
        for source, operator in zip(self._sources, self._operators, strict=True):
            source.done = True
            yield from operator.close()


class Chain(Operator):
    """One operator after another; all have the same columns."""

    def __init__(self, types: Sequence[DataType], operators: Sequence[Operator]) -> None:
        self.types = tuple(types)
        self._operators = list(reversed(operators))

    def pull(self) -> Steps[RowBatch | None]:
        while self._operators:
            rows = yield from self._operators[-1].pull()
            if rows is not None:
                return rows
            yield from self._operators.pop().close()
        return None

    def close(self) -> Steps[None]:
        while self._operators:
            yield from self._operators.pop().close()


# --- rows of one source -----------------------------------------------------------------------------------------------
class Where(Operator):
    """The rows in which a condition holds and one of the first `keep` columns, which alone it gives, has a value."""

    def __init__(self, source: Operator, series: Sequence[SeriesInfo], node: Filter, keep: int) -> None:
        self.types = source.types[:keep]
        self._source, self._series, self._node, self._keep = source, tuple(series), node, keep

    def pull(self) -> Steps[RowBatch | None]:
        while True:
            rows = yield from self._source.pull()
            if rows is None:
                return None
            held = evaluate(self._node, rows.times, dict(zip(self._series, rows.columns, strict=True)))
            rows = RowBatch(rows.times, rows.columns[: self._keep])
            rows = drop_empty_rows(rows if held.all() else select_rows(rows, held))
            if len(rows):
                return rows

    def close(self) -> Steps[None]:
        return self._source.close()


class WithoutNull(Operator):
    """Without the rows that have a null in any, or in all, of the columns from `first` on."""

    def __init__(self, source: Operator, mode: str, first: int = 0) -> None:
        self.types = source.types
        self._source, self._first = source, first
        self._combine = np.logical_and if mode == "any" else np.logical_or

    def pull(self) -> Steps[RowBatch | None]:
        while True:
            rows = yield from self._source.pull()
            if rows is None or len(rows.columns) == self._first:
                return rows
            held = self._combine.reduce([column.mask() for column in rows.columns[self._first :]])
            rows = rows if held.all() else select_rows(rows, held)
            if len(rows):
                return rows

    def close(self) -> Steps[None]:
        return self._source.close()


class Limit(Operator):
    """Skips `offset` rows and gives at most `limit` (None: all); closes its source as soon as it needs no more."""

    def __init__(self, source: Operator, limit: int | None, offset: int) -> None:
        self.types = source.types
        self._source, self._left, self._skip = source, limit, offset

    def pull(self) -> Steps[RowBatch | None]:
        while self._left != 0:
            rows = yield from self._source.pull()
            if rows is None:
                break
            if self._skip >= len(rows):
                self._skip -= len(rows)
                continue
            stop = len(rows) if self._left is None else min(len(rows), self._skip + self._left)
            rows = rows if (self._skip, stop) == (0, len(rows)) else select_rows(rows, slice(self._skip, stop))
            self._skip = 0
            if self._left is not None:
                self._left -= len(rows)
            return rows
        yield from self._source.close()
        return None

    def close(self) -> Steps[None]:
        return self._source.close()


class LimitEach(Operator):
    """LIMIT and OFFSET of DISABLE ALIGN: they count the values of each column on its own."""

    def __init__(self, source: Operator, limit: int | None, offset: int) -> None:
        self.types = source.types
        self._source, self._limit, self._offset = source, limit, offset
        self._seen = [0] * len(source.types)

    def pull(self) -> Steps[RowBatch | None]:
        end = None if self._limit is None else self._offset + self._limit
        while end is None or any(seen < end for seen in self._seen):
            rows = yield from self._source.pull()
            if rows is None:
                break
            columns = []
            for at, column in enumerate(rows.columns):
                there = column.mask()
                number = self._seen[at] + np.cumsum(there)  # of each value in its column, from 1
                self._seen[at] = int(number[-1])
                kept = there & (number > self._offset)
                columns.append(Column(column.type, column.values, kept if end is None else kept & (number <= end)))
            rows = drop_empty_rows(RowBatch(rows.times, columns))
            if len(rows):
                return rows
        yield from self._source.close()
        return None

    def close(self) -> Steps[None]:
        return self._source.close()


class Pick(Operator):
    """Some of the columns, in any order."""

    def __init__(self, source: Operator, columns: Sequence[int]) -> None:
        self.types = tuple(source.types[at] for at in columns)
        self._source, self._columns = source, tuple(columns)

    def pull(self) -> Steps[RowBatch | None]:
        rows = yield from self._source.pull()
        return None if rows is None else RowBatch(rows.times, [rows.columns[at] for at in self._columns])

    def close(self) -> Steps[None]:
        return self._source.close()
