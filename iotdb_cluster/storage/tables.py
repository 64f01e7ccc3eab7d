"""Tables: rows sorted by time, some columns of them, and how several become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iotdb_cluster.columns import BoolArray, Column, DataType, Int64Array, TextColumn, concat_columns, native

__all__ = ["Table", "collapse", "concat_optional", "is_ascending", "join", "live_rows", "reverse"]


@dataclass(slots=True)
class Table:
    """`times: int64[n]` strictly ascending; a column that is None has no cell in any of the rows."""

    times: Int64Array
    columns: list[Column | None]

    def __len__(self) -> int:
        return len(self.times)

    @property
    def nbytes(self) -> int:
        """Bytes of times and values, roughly."""
        return self.times.nbytes + sum(column.values.nbytes for column in self.columns if column is not None)

    def __getitem__(self, index: slice | BoolArray) -> Table:
        return Table(self.times[index], [None if column is None else column[index] for column in self.columns])


def is_ascending(times: Int64Array) -> bool:
    """Strictly."""
    return bool((times[1:] > times[:-1]).all())


def live_rows(table: Table) -> BoolArray | None:
    """bool[n]: the rows with a cell in any column; None if that is all of them."""
    live: BoolArray | None = None
    for column in table.columns:
        if column is not None:
            if column.valid is None:
                return None
            live = column.valid if live is None else live | column.valid
    if live is None:
        return np.zeros(len(table), np.bool_)
    return None if live.all() else live


def collapse(times: Int64Array, columns: list[Column | None]) -> Table:
    """Rows sorted by time, equal times from the earliest write to the latest: of each cell the latest stays."""
    changes = times[1:] != times[:-1]
    if changes.all():
        return Table(times, columns)
    starts = np.flatnonzero(np.concatenate(([True], changes)))
    lasts = np.append(starts[1:], len(times)) - 1
    merged: list[Column | None] = []
    for column in columns:
        if column is None or column.valid is None:
            merged.append(None if column is None else column[lasts])
            continue
        source = np.maximum.reduceat(np.where(column.valid, np.arange(len(times)), -1), starts)
        valid = source >= 0
        merged.append(Column(column.type, column.values[np.maximum(source, 0)], None if valid.all() else valid))
    return Table(times[starts], merged)


def concat_optional(parts: Sequence[tuple[int, Column | None]]) -> Column | None:
    """Columns (or none, for so many rows) one after another."""
    kind = next((column.type for _, column in parts if column is not None), None)
    if kind is None:
        return None
    return concat_columns([Column.nulls(kind, count) if column is None else column for count, column in parts])


def join(tables: Sequence[Table]) -> Table:
    """One table of several with the same columns, the earliest writes first: of each cell the latest stays."""
    if len(tables) == 1:
        return tables[0]
    times = np.concatenate([table.times for table in tables])
    columns = [
        concat_optional([(len(table), table.columns[at]) for table in tables]) for at in range(len(tables[0].columns))
    ]
    if is_ascending(times):
        return Table(times, columns)
    order = np.argsort(times, kind="stable")
    return collapse(times[order], [None if column is None else column[order] for column in columns])


def reverse(table: Table) -> Table:
    """The rows backwards, each time t as ~t: ascending again, so that one merge serves both directions."""
    backwards = slice(None, None, -1)
    return Table(~table.times[backwards], [None if column is None else column[backwards] for column in table.columns])


def finished(kind: DataType, column: Column | None, count: int) -> Column:
    """A column as readers get it: native, contiguous, nulls where there is none."""
    if column is None:
        return Column.nulls(kind, count)
    values = column.values if isinstance(column.values, TextColumn) else native(column.values)
    valid = column.valid
    if valid is not None:
        valid = None if valid.all() else np.ascontiguousarray(valid)
    return Column(column.type, values, valid)
