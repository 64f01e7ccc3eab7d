"""FILL: at one instant, and over the windows of GROUP BY time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iotdb_cluster.columns import BoolArray, Column, DataType, RowBatch, concat_values
from iotdb_cluster.limits import INT64_MAX, INT64_MIN
from iotdb_cluster.query.errors import refuse_statement
from iotdb_cluster.query.filters import parse_literal
from iotdb_cluster.query.operators import Operator
from iotdb_cluster.query.requests import Last, Nearest, Point, SeriesInfo, Steps
from iotdb_cluster.sql.statements import FillMethod, TypeFill

__all__ = ["FillRow", "FillWindows", "check_fills", "fill_of"]


def check_fills(fills: Sequence[TypeFill]) -> None:
    """Raises CallerError where a type cannot be filled so."""
    for fill in fills:
        if fill.method is FillMethod.LINEAR and fill.data_type in (DataType.TEXT, DataType.BOOLEAN):
            raise refuse_statement(f"type {fill.data_type.name} cannot use linear fill function")
        if fill.method is FillMethod.VALUE and fill.value is None:
            raise refuse_statement("fill value cannot be null")


def fill_of(fills: Sequence[TypeFill], kind: DataType, default: FillMethod) -> TypeFill:
    """The fill of a type: its own, else that of ALL, else the default without a range."""
    for wanted in (kind, None):
        for fill in fills:
            if fill.data_type is wanted:
                return fill
    return TypeFill(kind, default)


class FillRow(Operator):
    """One row at `time`: the point that is there, else what each series' fill makes of its neighbours."""

    def __init__(self, series: Sequence[SeriesInfo], time: int, fills: Sequence[TypeFill]) -> None:
        self.types = tuple(one.type for one in series)
        self._series, self._time, self._done = tuple(series), time, not series
        self._fills = [fill_of(fills, one.type, FillMethod.PREVIOUS) for one in series]
        self._constants = [
            parse_constant(fill, one) if fill.method is FillMethod.VALUE else None
            for fill, one in zip(self._fills, self._series, strict=True)
        ]

    def pull(self) -> Steps[RowBatch | None]:
        if self._done:
            return None
        self._done = True
        asked: dict[tuple[int, int], list[int]] = {}
        for at, fill in enumerate(self._fills):
            asked.setdefault(self._range(fill), []).append(at)
        cells: list[bool | int | float | bytes | None] = [None] * len(self._series)
        for (low, high), where in asked.items():
            answers = yield Nearest(tuple(self._series[at] for at in where), self._time, low, high)
            for at, (before, after) in zip(where, answers, strict=True):
                cells[at] = self._cell(at, before, after)
        columns = [Column.of(kind, [cell]) for kind, cell in zip(self.types, cells, strict=True)]
        return RowBatch(np.array([self._time], np.int64), columns)

    def _range(self, fill: TypeFill) -> tuple[int, int]:
        if fill.method is FillMethod.VALUE:
            return self._time, self._time
        low = INT64_MIN if fill.before is None else max(INT64_MIN, self._time - fill.before)
        if fill.method is not FillMethod.LINEAR:
            return low, self._time
        return low, INT64_MAX if fill.after is None else min(INT64_MAX, self._time + fill.after)

    def _cell(self, at: int, before: Point | None, after: Point | None) -> bool | int | float | bytes | None:
        if before is not None and before.time == self._time:
            return _value(before)
        method = self._fills[at].method
        if method is FillMethod.VALUE:
            return self._constants[at]
        if method is not FillMethod.LINEAR:
            return _value(before)
        if before is None or after is None or self.types[at] in (DataType.TEXT, DataType.BOOLEAN):
            return None
        slope = float(after.value - before.value) / float(after.time - before.time)
        step = slope * float(self._time - before.time)
        if self.types[at] in (DataType.INT32, DataType.INT64):
            return int(before.value) + int(step)
        return float(before.value) + step


def _value(point: Point | None) -> bool | int | float | bytes | None:
    return None if point is None else point.value


def parse_constant(fill: TypeFill, series: SeriesInfo) -> bool | int | float | bytes:
    """The constant of a VALUE fill as the series' type; a text keeps its quotes, as in the original."""
    if fill.value is None:
        raise refuse_statement("fill value cannot be null")
    if series.type is DataType.TEXT:
        return fill.value.text.encode()
    return parse_literal(fill.value, series.type, series.path)


class FillWindows(Operator):
    """last_value over windows, with empty windows filled from the one before them, the first from the points before it.

    The source gives the windows' rows, one column for each of `series`. `start` is the first window's first instant.
    A range shorter than the windows fills nothing.
    """

    def __init__(
        self,
        source: Operator,
        series: Sequence[SeriesInfo],
        fills: Sequence[TypeFill],
        start: int,
        interval: int,
        *,
        descending: bool,
    ) -> None:
        self.types = source.types
        self._source, self._series, self._start, self._descending = source, tuple(series), start, descending
        chosen = [fill_of(fills, one.type, FillMethod.PREVIOUSUNTILLAST) for one in series]
        self._filled = [fill.before is None or fill.before >= interval for fill in chosen]
        self._until_last = [fill.method is FillMethod.PREVIOUSUNTILLAST for fill in chosen]
        self._carry: list[Column] | None = None  # for each column one cell: what stands before the next row
        self._last: dict[int, int] = {}

    def pull(self) -> Steps[RowBatch | None]:
        rows = yield from self._source.pull()
        if rows is None:
            return None
        if self._descending:
            rows = RowBatch(rows.times[::-1], [column[::-1] for column in rows.columns])
        if self._carry is None:
            yield from self._prepare()
        if self._descending:
            # Windows come latest first: what stands before these is looked up.
            self._carry = yield from self._before(int(rows.times[0]))
        columns = []
        carry = self._carry or []
        for at, column in enumerate(rows.columns):
            allowed = np.full(len(rows), self._filled[at])
            if at in self._last:
                allowed &= rows.times <= self._last[at]
            columns.append(_fill_forward(column, carry[at], allowed))
            carry[at] = _last_value(column, carry[at])
        out = RowBatch(rows.times, columns)
        if self._descending:
            out = RowBatch(np.ascontiguousarray(rows.times[::-1]), [column[::-1] for column in columns])
        return out

    def _prepare(self) -> Steps[None]:
        self._carry = yield from self._before(self._start)
        asked = [at for at, until in enumerate(self._until_last) if until]
        if asked:
            points = yield Last(tuple(self._series[at] for at in asked), INT64_MIN)
            for at, point in zip(asked, points, strict=True):
                self._last[at] = INT64_MIN if point is None else point.time

    def _before(self, time: int) -> Steps[list[Column]]:
        """The value of each series' newest point before this time."""
        if time == INT64_MIN:
            return [Column.nulls(kind, 1) for kind in self.types]
        answers = yield Nearest(self._series, time - 1, INT64_MIN, time - 1)
        return [
            Column.of(kind, [None if before is None else before.value])
            for kind, (before, _) in zip(self.types, answers, strict=True)
        ]

    def close(self) -> Steps[None]:
        return self._source.close()


def _last_value(column: Column, otherwise: Column) -> Column:
    there = np.flatnonzero(column.mask())
    return column[there[-1:]] if len(there) else otherwise


def _fill_forward(column: Column, before: Column, allowed: BoolArray) -> Column:
    """Nulls where allowed take the nearest value above them, else the one cell of `before`."""
    if column.valid is None:
        return column
    source = np.maximum.accumulate(np.where(column.valid, np.arange(1, len(column) + 1), 0))
    source = np.where(column.valid | allowed, source, np.arange(1, len(column) + 1))
    joined = Column(
        column.type,
        concat_values([before.values, column.values]),
        np.concatenate([before.mask(), column.valid]),
    )
    return joined[source]
