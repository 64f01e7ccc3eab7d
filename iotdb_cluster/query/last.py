"""LAST: the newest point of each series, as text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iotdb_cluster.columns import Column, DataType, RowBatch
from iotdb_cluster.query.errors import refuse
from iotdb_cluster.query.filters import Filter, Intervals, bounds, is_time_only, times_within
from iotdb_cluster.query.operators import Operator
from iotdb_cluster.query.requests import Last, Point, SeriesInfo, Steps
from iotdb_cluster.schema.javatext import java_text

__all__ = ["LAST_COLUMNS", "LastRows", "last_times"]

SERIES_MAX = 1_000  # series of one request
LAST_COLUMNS = (("timeseries", DataType.TEXT), ("value", DataType.TEXT), ("dataType", DataType.TEXT))


def last_times(node: Filter | None) -> Intervals:
    """The times that a series' newest point may have. Raises CallerError for a condition on values."""
    if not is_time_only(node):
        raise refuse("Only '>' and '>=' are supported in LAST query")
    return bounds(node)


class LastRows(Operator):
    """A row for each (shown name, series) whose newest point lies in the intervals.

    `order`: 0 keeps the order of the series, 1 and -1 sort by time.
    """

    def __init__(self, series: Sequence[tuple[str, SeriesInfo]], intervals: Intervals, order: int) -> None:
        self.types = tuple(kind for _, kind in LAST_COLUMNS)
        self._series, self._intervals, self._order = tuple(series), intervals, order

    def pull(self) -> Steps[RowBatch | None]:
        rows: list[tuple[str, SeriesInfo, Point]] = []
        while self._series and self._intervals and (self._order or not rows):
            series, self._series = self._series[:SERIES_MAX], self._series[SERIES_MAX:]
            rows += yield from self._newest(series)
        if not rows:
            return None
        if self._order:
            rows.sort(key=lambda row: self._order * row[2].time)
        cells = (
            [shown for shown, _, _ in rows],
            [java_text(point.value, one.type) for _, one, point in rows],
            [one.type.name for _, one, _ in rows],
        )
        times = np.array([point.time for _, _, point in rows], np.int64)
        return RowBatch(times, [Column.of(DataType.TEXT, texts) for texts in cells])

    def _newest(self, series: Sequence[tuple[str, SeriesInfo]]) -> Steps[list[tuple[str, SeriesInfo, Point]]]:
        answers: list[Point | None] = yield Last(tuple(one for _, one in series), self._intervals[0][0])
        found = [(shown, one, point) for (shown, one), point in zip(series, answers, strict=True) if point is not None]
        held = times_within(np.array([point.time for _, _, point in found], np.int64), self._intervals)
        return [row for row, there in zip(found, held, strict=True) if there]
