"""Aggregations over windows: pushed down where the condition is on time only, else computed here from the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iotdb_cluster.columns import Column, DataType, Int64Array, RowBatch
from iotdb_cluster.query import partials
from iotdb_cluster.query.filters import Filter, bounds, cut_windows, is_time_only
from iotdb_cluster.query.operators import Operator, batch_rows_for
from iotdb_cluster.query.partials import Gatherer, Partials
from iotdb_cluster.query.requests import Aggregate, Needs, SeriesInfo, Steps
from iotdb_cluster.query.scans import rows_of
from iotdb_cluster.query.windows import Windows

__all__ = ["AggregateRows", "Output", "aggregate"]

STATES_MAX = 100_000  # states (series times windows) of one request
WINDOWS_MAX = 10_000  # windows of one request


@dataclass(frozen=True, slots=True)
class Output:
    """One result column: the aggregation of one series, or of several as if they were one (GROUP BY LEVEL).

    `equal_weight`: avg of several series is the mean of their averages, as GROUP BY time with LEVEL answers it.
    """

    function: str
    series: tuple[SeriesInfo, ...]
    type: DataType
    equal_weight: bool = False


def aggregate(
    series: Sequence[SeriesInfo],
    needs: Sequence[Needs],
    starts: Int64Array,
    ends: Int64Array,
    node: Filter | None,
    opened: list[Operator],
) -> Steps[list[Partials]]:
    """The states of each series over w windows (ascending, disjoint, inclusive), of points that pass the condition.

    `opened` holds the scan while it is read: where that fails, or is given up, the caller is to close it.
    """
    lows, highs, owner = cut_windows(starts, ends, bounds(node))
    if not len(owner) or not series:
        return [partials.empty(one.type, need, len(starts)) for one, need in zip(series, needs, strict=True)]
    if is_time_only(node):
        pieces = yield Aggregate(tuple(series), tuple(needs), lows, highs)
        if len(owner) == len(starts) and bool((owner == np.arange(len(starts))).all()):
            return list(pieces)
        return [partials.reduce_windows(piece, owner, len(starts)) for piece in pieces]
    gathered = [Gatherer(one.type, need, len(starts)) for one, need in zip(series, needs, strict=True)]
    source = rows_of(series, node, batch_rows_for(series), within=(int(lows[0]), int(highs[-1])))
    opened.append(source)
    while (rows := (yield from source.pull())) is not None:
        for one, column in zip(gathered, rows.columns, strict=True):
            one.add(rows.times, column, starts, ends)
    yield from source.close()
    opened.remove(source)
    return [one.result() for one in gathered]


class AggregateRows(Operator):
    """A row for each window low <= k < high, in descending order if asked for; nothing is read before it is pulled."""

    def __init__(
        self,
        outputs: Sequence[Output],
        windows: Windows,
        node: Filter | None,
        *,
        descending: bool = False,
        low: int = 0,
        high: int | None = None,
        batch_rows: int = WINDOWS_MAX,
    ) -> None:
        self.types = tuple(output.type for output in outputs)
        self._outputs, self._windows, self._node = tuple(outputs), windows, node
        self._descending = descending
        self._opened: list[Operator] = []
        total = len(windows)
        low, high = min(low, total), total if high is None else min(high, total)
        # In ascending numbers: rows [low, high) of the descending result are windows [total - high, total - low).
        self._low, self._high = (total - high, total - low) if descending else (low, high)
        self._needs: dict[SeriesInfo, Needs] = {}
        for output in outputs:
            for one in output.series:
                self._needs[one] = self._needs.get(one, Needs.COUNT) | partials.needs_of(output.function)
        self._batch = max(1, min(WINDOWS_MAX, batch_rows, STATES_MAX // (len(self._needs) or 1)))

    def pull(self) -> Steps[RowBatch | None]:
        if self._low >= self._high or not self._outputs:
            return None
        if self._descending:
            low, high = max(self._low, self._high - self._batch), self._high
            self._high = low
        else:
            low, high = self._low, min(self._high, self._low + self._batch)
            self._low = high
        starts, ends, times = self._windows.slice(low, high)
        series = list(self._needs)
        states = yield from aggregate(series, list(self._needs.values()), starts, ends, self._node, self._opened)
        known = dict(zip(series, states, strict=True))
        columns = [self._finish(output, [known[one] for one in output.series]) for output in self._outputs]
        rows = RowBatch(times, columns)
        if self._descending:
            rows = RowBatch(np.ascontiguousarray(times[::-1]), [column[::-1] for column in columns])
        return rows

    def close(self) -> Steps[None]:
        self._high = self._low
        while self._opened:
            yield from self._opened.pop().close()

    @staticmethod
    def _finish(output: Output, states: list[Partials]) -> Column:
        if not (output.equal_weight and output.function == "avg"):
            return partials.finish(output.function, partials.merge(_only(output.function, states)))
        columns = [partials.finish("avg", state) for state in states]
        there = np.array([column.mask() for column in columns])
        total = np.array([np.where(column.mask(), np.asarray(column.values), 0.0) for column in columns])
        count = there.sum(axis=0)
        with np.errstate(invalid="ignore", over="ignore"):
            return Column(DataType.DOUBLE, total.sum(axis=0) / np.maximum(count, 1), count > 0)


def _only(function: str, states: list[Partials]) -> list[Partials]:
    """Without the parts that this aggregation does not look at, so that series of several types can be merged."""
    if len(states) == 1 or partials.needs_of(function) & (Needs.ENDS | Needs.EXTREMES):
        return states
    return [
        Partials(state.type, state.count, state.first_time, state.last_time, state.sum_hi, state.sum_lo)
        for state in states
    ]
