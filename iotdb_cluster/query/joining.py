"""Joining by time: rows of several sources, each in order, become rows with the columns of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iotdb_cluster.columns import BoolArray, Column, DataType, Int64Array, RowBatch, TextColumn, Values, concat_values

__all__ = ["Source", "drop_empty_rows", "join_rows", "next_rows", "select_rows"]


def select_rows(batch: RowBatch, where: BoolArray | Int64Array | slice) -> RowBatch:
    return RowBatch(batch.times[where], [column[where] for column in batch.columns])


def drop_empty_rows(batch: RowBatch) -> RowBatch:
    """Without the rows that have no value in any column."""
    if not batch.columns or any(column.valid is None for column in batch.columns):
        return batch
    some: BoolArray = np.logical_or.reduce([column.mask() for column in batch.columns])
    return batch if some.all() else select_rows(batch, some)


@dataclass(slots=True)
class Source:
    """A source of a join: which of the join's columns it gives, its rows not yet given, whether it gives no more."""

    columns: tuple[int, ...]
    rows: RowBatch | None = None
    done: bool = False


def _until(times: Int64Array, horizon: int, ascending: bool) -> int:
    """How many of the first rows lie at the horizon or before it in the order of the rows."""
    if ascending:
        return int(np.searchsorted(times, horizon, "right"))
    return len(times) - int(np.searchsorted(times[::-1], horizon, "left"))


def _scatter(kind: DataType, count: int, cells: list[tuple[Int64Array, Column]]) -> Column:
    """A column of `count` cells with these cells at these places, null elsewhere."""
    valid = np.zeros(count, np.bool_)
    if kind is DataType.TEXT:
        parts: list[Values] = [TextColumn.full(1, b"")]
        source, base = np.zeros(count, np.int64), 1
        for places, column in cells:
            there = np.flatnonzero(column.mask())
            source[places[there]] = there + base
            valid[places[there]] = True
            parts.append(column.values)
            base += len(column)
        return Column(kind, concat_values(parts)[source], None if valid.all() else valid)
    values = np.zeros(count, kind.dtype)
    for places, column in cells:
        here = np.asarray(column.values)
        if column.valid is not None:
            places, here = places[column.valid], here[column.valid]
        values[places] = here
        valid[places] = True
    return Column(kind, values, None if valid.all() else valid)


def join_rows(
    parts: Sequence[tuple[tuple[int, ...], RowBatch]], types: Sequence[DataType], ascending: bool
) -> RowBatch:
    """Rows of several sources, each in order, joined by time; a column that a source does not have is null there."""
    if len(parts) == 1 and parts[0][0] == tuple(range(len(types))):
        return parts[0][1]
    if len(parts) == 1:
        times = parts[0][1].times
    else:
        times = np.unique(np.concatenate([rows.times for _, rows in parts]))
        times = times if ascending else np.ascontiguousarray(times[::-1])
    cells: list[list[tuple[Int64Array, Column]]] = [[] for _ in types]
    for columns, rows in parts:
        if len(rows) == len(times):
            places = np.arange(len(times))
        elif ascending:
            places = np.searchsorted(times, rows.times)
        else:
            places = len(times) - 1 - np.searchsorted(times[::-1], rows.times)
        for where, column in zip(columns, rows.columns, strict=True):
            cells[where].append((places, column))
    out = []
    for kind, given in zip(types, cells, strict=True):
        if len(given) == 1 and len(given[0][0]) == len(times):
            out.append(given[0][1])
        elif given:
            out.append(_scatter(kind, len(times), given))
        else:
            out.append(Column.nulls(kind, len(times)))
    return RowBatch(times, out)


def next_rows(sources: Sequence[Source], types: Sequence[DataType], ascending: bool) -> RowBatch | None:
    """The next rows, once every source that is not done has some; None where none has any.

    Given are the rows up to the horizon: the least of the last times of the sources that may still give more.
    """
    lasts = [int(source.rows.times[-1]) for source in sources if source.rows is not None and not source.done]
    horizon = (min(lasts) if ascending else max(lasts)) if lasts else None
    parts = []
    for source in sources:
        rows = source.rows
        if rows is None:
            continue
        count = len(rows) if horizon is None else _until(rows.times, horizon, ascending)
        if count:
            parts.append((source.columns, rows if count == len(rows) else select_rows(rows, slice(0, count))))
        source.rows = None if count == len(rows) else select_rows(rows, slice(count, None))
    return join_rows(parts, types, ascending) if parts else None
