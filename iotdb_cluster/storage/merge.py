"""Reading several sources of rows as one, page by page, in either direction."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from iotdb_cluster.columns import Int64Array
from iotdb_cluster.limits import PAGE_ROWS
from iotdb_cluster.storage.tables import Table, concat_optional, join, reverse

__all__ = ["MemorySource", "Source", "in_batches", "merged", "pages_of"]

GATHER_PART = 8  # pieces smaller than this part of a batch are gathered rather than handed out


class Source(Protocol):
    """Rows of one write history: page i lies in firsts[i] <= time <= lasts[i]; pages ascend and do not overlap."""

    firsts: Int64Array
    lasts: Int64Array

    def load(self, page: int) -> Table:
        """The rows of a page; the bounds may be wider than they are."""
        ...


class MemorySource:
    """A table that is in memory already."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.firsts = table.times[::PAGE_ROWS]
        self.lasts = table.times[np.minimum(np.arange(1, len(self.firsts) + 1) * PAGE_ROWS, len(table)) - 1]

    def load(self, page: int) -> Table:
        return self.table[page * PAGE_ROWS : (page + 1) * PAGE_ROWS]


class _Cursor:
    """Where a scan stands in one source. Bounds and times are turned (~t) where the scan goes backwards."""

    def __init__(self, rank: int, source: Source, low: int, high: int, ascending: bool) -> None:
        self.rank = rank
        self._source = source
        self._low, self._high, self._ascending = low, high, ascending
        begin = int(np.searchsorted(source.lasts, low, "left"))
        end = int(np.searchsorted(source.firsts, high, "right"))
        self._pages = iter(range(begin, end) if ascending else range(end - 1, begin - 1, -1))
        self._page = -1
        self._table: Table | None = None
        self.first = self.last = 0

    def __lt__(self, other: _Cursor) -> bool:
        return (self.first, self.rank) < (other.first, other.rank)

    def advance(self) -> bool:
        """Go to the next page; False at the end."""
        self._table = None
        self._page = next(self._pages, -1)
        if self._page < 0:
            return False
        first = max(int(self._source.firsts[self._page]), self._low)
        last = min(int(self._source.lasts[self._page]), self._high)
        self.first, self.last = (first, last) if self._ascending else (~last, ~first)
        return True

    def take(self, bound: int) -> Table:
        """The rows up to a bound, which leaves the cursor behind them."""
        table = self._table
        if table is None:
            table = self._source.load(self._page)
            begin = int(np.searchsorted(table.times, self._low, "left"))
            end = int(np.searchsorted(table.times, self._high, "right"))
            if begin > 0 or end < len(table):
                table = table[begin:end]
            if not self._ascending:
                table = reverse(table)
        if bound >= self.last:
            self._table = table[len(table) :]
            return table
        cut = int(np.searchsorted(table.times, bound, "right"))
        self._table = table[cut:]
        self.first = bound + 1
        return table[:cut]


def merged(sources: Sequence[Source], low: int, high: int, ascending: bool = True) -> Iterator[Table]:
    """Non-empty tables in the order of the scan; `sources` from the earliest writes to the latest.

    Going backwards the tables hold ~t for each time t, so they ascend too.
    """
    cursors: list[_Cursor] = []
    for rank, source in enumerate(sources):
        cursor = _Cursor(rank, source, low, high, ascending)
        if cursor.advance():
            cursors.append(cursor)
    cursors.sort()
    while cursors:
        bound = cursors[0].last
        for cursor in cursors:
            if cursor.first > bound:
                break
            bound = min(bound, cursor.last)
        takers = cursors[: bisect_right(cursors, bound, key=lambda cursor: cursor.first)]
        del cursors[: len(takers)]
        pieces = [cursor.take(bound) for cursor in sorted(takers, key=lambda cursor: cursor.rank)]
        for cursor in takers:
            if bound < cursor.last or cursor.advance():
                insort(cursors, cursor)
        pieces = [piece for piece in pieces if len(piece)]
        if pieces:
            yield join(pieces)


def _together(tables: Sequence[Table]) -> Table:
    if len(tables) == 1:
        return tables[0]
    return Table(
        np.concatenate([table.times for table in tables]),
        [
            concat_optional([(len(table), table.columns[at]) for table in tables])
            for at in range(len(tables[0].columns))
        ],
    )


def in_batches(tables: Iterator[Table], rows: int) -> Iterator[Table]:
    """The same rows in tables of at most `rows`."""
    waiting: list[Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += len(table)
        if count < max(1, rows // GATHER_PART):
            continue
        whole = _together(waiting)
        # pages and batches need not be of one size: equal slices, rather than full ones and small rests, need no copy
        size = -(-count // -(-count // rows))
        for start in range(0, count, size):
            yield whole[start : start + size]
        waiting, count = [], 0
    if count:
        yield _together(waiting)


def pages_of(tables: Iterable[Table], rows: int, bytes_max: int) -> Iterator[Table]:
    """The same rows in tables of just `rows`; fewer in the last one, and where they take more than `bytes_max`."""
    waiting: list[Table] = []
    count = size = 0
    for table in tables:
        waiting.append(table)
        count += len(table)
        size += table.nbytes
        if count < rows and size < bytes_max:
            continue
        whole = _together(waiting)
        end = count - count % rows if count >= rows else count
        for start in range(0, end, rows):
            yield whole[start : min(start + rows, end)]
        waiting = [whole[end:]] if end < count else []
        count -= end
        size = sum(table.nbytes for table in waiting)
    if count:
        yield _together(waiting)
