"""Sessions and open queries of one client connection."""

from __future__ import annotations

from typing import Any, TypeVar

from iotdb_cluster.columns import RowBatch
from iotdb_cluster.errors import CallerError, Status, check
from iotdb_cluster.limits import FETCH_ROWS_DEFAULT, FETCH_ROWS_MAX, SESSION_QUERIES_MAX
from iotdb_cluster.rpc.handler import ResultSet, Session
from iotdb_cluster.rpc.idl import client
from iotdb_cluster.rpc.results import Series, is_long, pack_aligned, pack_columns, split_columns, split_rows
from iotdb_cluster.world import Workers

__all__ = ["Cursor", "Login", "fetch_rows"]

T = TypeVar("T")


def fetch_rows(asked: int | None) -> int:
    """Rows of a block: the client's wish, the default where it has none (or one that makes no sense)."""
    return FETCH_ROWS_DEFAULT if asked is None or asked <= 0 else min(asked, FETCH_ROWS_MAX)


class Cursor:
    """An open query and what of its last batch did not fit into a response.

    Its result set is closed as soon as its last row was read, so that what the client still asks costs nothing.
    """

    def __init__(self, statement_id: int, result: ResultSet, workers: Workers) -> None:
        self.statement_id = statement_id
        self._workers = workers
        self.header = result.header
        self._width = self.header.width()
        self._result: ResultSet | None = result
        self._rows: RowBatch | None = None
        self._series: Series | None = None

    async def next_block(self, count: int) -> tuple[Any, bool]:
        """(a TSQueryDataSet or TSQueryNonAlignDataSet, whether it has rows); empty: there are no more."""
        if self.header.non_align:
            return await self._next_columns(count)
        rows = self._rows
        self._rows = None
        while rows is None and self._result is not None:
            rows = await self._result.fetch(count)
            if rows is None or self._result.done:
                await self.close()
            if rows is not None and len(rows) == 0:
                rows = None
        idl = client()
        if rows is None:
            empty = [b""] * self._width
            return idl.TSQueryDataSet(b"", empty, empty), False
        check(
            len(rows.columns) == self._width,
            "a result set gave %d columns, its header has %d",
            len(rows.columns),
            self._width,
        )
        if is_long(rows.columns):
            rows, self._rows = await self._workers.run(split_rows, rows, count)
            packed = await self._workers.run(pack_aligned, rows)
        else:
            rows, self._rows = split_rows(rows, count)
            packed = pack_aligned(rows)
        return idl.TSQueryDataSet(packed.time, packed.values, packed.bitmaps), True

    async def _next_columns(self, count: int) -> tuple[Any, bool]:
        series = self._series
        self._series = None
        while series is None and self._result is not None:
            series = await self._result.fetch_columns(count)
            if series is None or self._result.done:
                await self.close()
            if series is not None and not any(len(times) for times, _ in series):
                series = None
        idl = client()
        if series is None:
            empty = [b""] * self._width
            return idl.TSQueryNonAlignDataSet(empty, empty), False
        check(len(series) == self._width, "a result set gave %d series, its header has %d", len(series), self._width)
        if is_long([column for _, column in series]):
            series, self._series = await self._workers.run(split_columns, series, count)
            packed = await self._workers.run(pack_columns, series)
        else:
            series, self._series = split_columns(series, count)
            packed = pack_columns(series)
        return idl.TSQueryNonAlignDataSet(packed.times, packed.values), True

    async def close(self) -> None:
        """Release the result set; rows that were read already can still be fetched."""
        result, self._result = self._result, None
        if result is not None:
            await result.close()


class Login:
    """One session and its open queries."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.cursors: dict[int, Cursor] = {}

    def admit(self, query_id: int, cursor: Cursor) -> None:
        if len(self.cursors) >= SESSION_QUERIES_MAX:
            raise CallerError(
                Status.QUERY_PROCESS_ERROR,
                f"a session may have {SESSION_QUERIES_MAX} open queries: close result sets that are no longer read",
            )
        self.cursors[query_id] = cursor

    async def close_query(self, query_id: int) -> bool:
        """Whether there was such a query."""
        cursor = self.cursors.pop(query_id, None)
        if cursor is None:
            return False
        await cursor.close()
        return True

    async def close_statement(self, statement_id: int) -> None:
        for query_id in [number for number, cursor in self.cursors.items() if cursor.statement_id == statement_id]:
            await self.close_query(query_id)

    async def close(self) -> None:
        for query_id in list(self.cursors):
            await self.close_query(query_id)
