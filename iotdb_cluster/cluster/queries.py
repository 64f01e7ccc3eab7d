"""Queries at the coordinator: planned, driven over the network, and pulled by the client's fetches."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any, TypeVar

import numpy as np

from iotdb_cluster.auth import OPERATION_PRIVILEGES, no_permission
from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.settings import NodeAddress
from iotdb_cluster.cluster.statement_reads import Interrupted, ReadServices, StatementReads
from iotdb_cluster.cluster.tracing import Trace
from iotdb_cluster.columns import Column, Int64Array, RowBatch
from iotdb_cluster.errors import CallerError, Moved, StaleSchema, Status, check
from iotdb_cluster.limits import STATEMENT_SHOWN_CHARS_MAX
from iotdb_cluster.query import Plan, QueryContext, Steps, prepare
from iotdb_cluster.query.requests import (
    Aggregate,
    Last,
    ListQueries,
    MatchSeries,
    Nearest,
    OpenScan,
    Pull,
    Request,
    RunningQuery,
    SeriesInfo,
)
from iotdb_cluster.rpc.handler import MetadataKind, ResultHeader, Session
from iotdb_cluster.schema import PathPattern, Series, split_path
from iotdb_cluster.sql import Select, Statement
from iotdb_cluster.world import World

__all__ = ["Queries", "QueryResult"]

logger = logging.getLogger(__name__)
slow_logger = logging.getLogger("iotdb_cluster.slow_sql")
T = TypeVar("T")

REPLANS_MAX = 5  # a statement that meets moving slots or deletes of series is planned anew so often
HEAVY = (Pull, Aggregate)  # what follows their answers may take long: it goes to a worker thread
ITEMS_INLINE_MAX = 500  # of an answer (series, devices, points): what is made of more goes to a worker too
CHECKED_INLINE_MAX = 500  # series whose privileges are looked up before others may use the loop
STATEMENT_INLINE_CHARS = 4_096  # longer statements are planned on a worker


@dataclass(slots=True)
class _Running:
    """A query in the process list. `scope` bounds what it does at the moment, `result` is its open result set."""

    info: RunningQuery
    killed: bool = False
    scope: asyncio.Timeout | None = None
    result: QueryResult | None = None
    trace: Trace | None = None

    def kill(self) -> None:
        """End it: now, where it is at work, else at its next fetch; what it holds open goes either way."""
        self.killed = True
        if self.scope is not None and not self.scope.expired():
            self.scope.reschedule(asyncio.get_running_loop().time())

    def check(self) -> None:
        if self.killed:
            raise CallerError(Status.QUERY_PROCESS_ERROR, f"query {self.info.id} was killed")


class Queries:
    """Runs statements that have a result set."""

    def __init__(self, world: World, services: ReadServices, version: str) -> None:
        self._world = world
        self._services = services
        self._version = version
        self._running: dict[int, _Running] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self.tracing = False  # TRACING ON, on this node

    # --- the process list ---------------------------------------------------------------------------------------------

    def running(self) -> list[RunningQuery]:
        """Queries that have a result set open, by id."""
        return [entry.info for _, entry in sorted(self._running.items())]

    def kill(self, query_id: int | None) -> int:
        """End a query of this node, or all; how many that were."""
        ended = [entry for number, entry in self._running.items() if query_id is None or number == query_id]
        for entry in ended:
            entry.kill()
            if entry.result is not None and entry.scope is None:  # it rests between two fetches
                task = asyncio.get_running_loop().create_task(entry.result.close())
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
        return len(ended)

    def leader_address(self, group: int) -> NodeAddress | None:
        """The address of the node that leads a data group, where it is another one and known."""
        node = self._services.leaders.guess(group)
        found = self._services.meta.state.node(node)
        if found is None or node == self._services.calls.node:
            return None
        return NodeAddress(*found.address)

    # --- running ------------------------------------------------------------------------------------------------------

    async def execute(
        self,
        session: Session,
        statement: Statement,
        text: str,
        zone: tzinfo,
        fetch_rows: int,
        timeout_ms: int,
        query_id: int,
    ) -> QueryResult:
        """Plan a query and get its first rows: until then it may start anew; the others come with the fetches."""
        shown = text[:STATEMENT_SHOWN_CHARS_MAX]
        entry = _Running(RunningQuery(self._world.clock.wall_ms(), query_id, shown))
        if self.tracing:
            entry.trace = Trace(self._world.clock, query_id, session.user, text)
        self._running[query_id] = entry
        began_ms = self._world.clock.monotonic_ms()
        try:
            result = await self._begin(session, statement, entry, zone, fetch_rows, timeout_ms)
        except BaseException as error:
            self.finished(query_id, f"failed ({error})")
            raise
        else:
            entry.result = result
            if entry.trace is not None:
                entry.trace.planned(len(result.header.columns))
            return result
        finally:
            took_ms = self._world.clock.monotonic_ms() - began_ms
            if took_ms >= self._services.settings.slow_query_threshold_ms:
                slow_logger.warning("%.0f ms until the first rows: %s", took_ms, text)

    async def _begin(
        self,
        session: Session,
        statement: Statement,
        entry: _Running,
        zone: tzinfo,
        fetch_rows: int,
        timeout_ms: int,
    ) -> QueryResult:
        limit_ms = timeout_ms if timeout_ms > 0 else self._services.settings.query_timeout_ms
        context = QueryContext(zone=zone, version=self._version, series_max=self._services.settings.query_series_max)
        deadline = Deadline(self._world, limit_ms)
        try:
            return await self._planned(session, statement, entry, context, fetch_rows, deadline)
        finally:
            deadline.tell_if_slow(f"query {entry.info.id}, until its first rows,")

    async def _planned(
        self,
        session: Session,
        statement: Statement,
        entry: _Running,
        context: QueryContext,
        fetch_rows: int,
        deadline: Deadline,
    ) -> QueryResult:
        """Anew where its data have moved meanwhile."""
        limit_ms = deadline.left_ms
        for attempt in range(REPLANS_MAX):
            reads = StatementReads(self._services, Deadline(self._world, limit_ms, deadline.waits), entry.info.start_ms)
            try:
                runner = _Runner(self._world, reads, entry, session.user, statement, limit_ms)
                await runner.bounded(reads.begin)
                plan = await runner.run(prepare(statement, context))
                first = await runner.run(plan.fetch(fetch_rows))
            except (Moved, StaleSchema, Interrupted) as refusal:
                await reads.close()
                if attempt == REPLANS_MAX - 1 or deadline.passed:
                    if isinstance(refusal, Interrupted):
                        raise
                    raise CallerError(
                        Status.QUERY_PROCESS_ERROR, f"data moves or is being deleted, repeat it: {refusal.message}"
                    ) from None
                await asyncio.sleep(0.02 * (attempt + 1))
                continue
            except BaseException:
                await reads.close()
                raise
            return QueryResult(self, plan, runner, reads, entry, first)
        raise CallerError(Status.QUERY_PROCESS_ERROR, "the query could not be planned")

    def finished(self, query_id: int, how: str = "closed") -> None:
        entry = self._running.pop(query_id, None)
        if entry is not None and entry.trace is not None:
            entry.trace.ended("killed" if entry.killed else how)

    # --- metadata -----------------------------------------------------------------------------------------------------

    async def metadata(self, kind: MetadataKind, column_path: str) -> str | Sequence[str]:
        """The answers of fetchMetadata."""
        settings = self._services.settings
        reads = StatementReads(
            self._services, Deadline(self._world, settings.read_timeout_ms), self._world.clock.wall_ms()
        )
        await reads.begin()
        if kind == "METADATA_IN_JSON":
            return "===  Timeseries Tree  ===\n\n" + json.dumps(_tree(await reads.everything()), indent=2)
        PathPattern.parse(column_path)
        (series,) = await reads.answer(MatchSeries((column_path,)))
        if kind == "ALL_COLUMNS":
            return [one.path for one in series]
        if not series:
            raise CallerError(Status.TIMESERIES_NOT_EXIST, f"Path [{column_path}] does not exist")
        return str(series[0].type.name)


class _Runner:
    """Drives a query's generators: answers their requests, in time, and checks what the user may read."""

    def __init__(
        self, world: World, reads: StatementReads, entry: _Running, user: str, statement: Statement, limit_ms: float
    ) -> None:
        self._world = world
        self._reads = reads
        self._entry = entry
        self._user = user
        self._operation = "LAST" if statement.operation == "LAST" else "QUERY"
        self._limit_ms = limit_ms
        restricted = user != reads.auth.administrator and isinstance(statement, Select)
        # ALIGN BY DEVICE asks for all series of its devices and reads those that it selects.
        self._checks_matched = restricted and isinstance(statement, Select) and not statement.align_by_device
        self._checks_read = restricted
        self._working: asyncio.Future[tuple[bool, Any]] | None = None

    async def run(self, steps: Steps[T]) -> T:
        """The generator's result; 701 where the statement's time is up."""
        self._reads.extend(self._limit_ms)
        try:
            return await self.bounded(lambda: self._run(steps))
        finally:
            await self._rest()
            if self._working is None:
                steps.close()

    async def bounded(self, work: Callable[[], Awaitable[T]]) -> T:
        """`work` within the statement's time (701), until it is killed (411)."""
        try:
            async with asyncio.timeout(self._limit_ms / 1000) as self._entry.scope:
                self._entry.check()
                return await work()
        except TimeoutError:
            self._entry.check()
            raise CallerError(
                Status.TIME_OUT,
                "Current query is time out, please check your statement or modify timeout parameter.",
            ) from None
        finally:
            self._entry.scope = None

    async def _rest(self) -> None:
        """Wait for the worker: it may still run the generator although its caller's time is up."""
        cancelled: asyncio.CancelledError | None = None
        while self._working is not None and not self._working.done():
            try:
                await asyncio.wait([self._working])
            except asyncio.CancelledError as error:
                if cancelled is not None:
                    raise
                cancelled = error
        if self._working is not None and not self._working.cancelled():
            self._working.exception()  # nobody else may look at it any more
        self._working = None
        if cancelled is not None:
            raise cancelled

    async def _run(self, steps: Steps[T]) -> T:
        if len(self._entry.info.statement) <= STATEMENT_INLINE_CHARS:
            ended, found = _step(steps, None)
        else:
            ended, found = await self._on_worker(steps, None)
        while not ended:
            self._entry.check()
            request: Request = found
            if self._checks_read and isinstance(request, OpenScan | Aggregate | Last | Nearest):
                await self._check(request.series)
            began_ms = self._world.clock.monotonic_ms()
            try:
                answer = await self._reads.answer(request)
            except CallerError as error:
                ended, found = _throw(steps, error)
                continue
            if self._entry.trace is not None:
                self._entry.trace.asked(request, answer, self._world.clock.monotonic_ms() - began_ms)
            if self._checks_matched and isinstance(request, MatchSeries):
                for pattern, matched in zip(request.patterns, answer, strict=True):
                    await self._check(matched)
                    if not matched:  # whether a path exists is nobody's affair who may not read it
                        self._check_path(pattern)
            if isinstance(request, ListQueries):
                answer = [query for query in answer if query.id != self._entry.info.id]
            if isinstance(request, HEAVY) or _items(answer) > ITEMS_INLINE_MAX:
                ended, found = await self._on_worker(steps, answer)
            else:
                ended, found = _step(steps, answer)
        result: T = found
        return result

    async def _on_worker(self, steps: Steps[T], answer: Any) -> tuple[bool, Any]:
        self._working = asyncio.ensure_future(self._world.workers.run(_step, steps, answer))
        outcome = await asyncio.shield(self._working)
        self._working = None
        return outcome

    async def _check(self, series: Sequence[SeriesInfo]) -> None:
        for at, one in enumerate(series):
            if at and at % CHECKED_INLINE_MAX == 0:
                await asyncio.sleep(0)
            self._check_path(one.path)

    def _check_path(self, path: str) -> None:
        if not self._reads.auth.allowed(self._user, OPERATION_PRIVILEGES[self._operation], path):
            raise no_permission(self._operation)


def _step(steps: Steps[T], answer: Any) -> tuple[bool, Any]:
    """(True, the result), or (False, the next request)."""
    try:
        return False, steps.send(answer)
    except StopIteration as stop:
        return True, stop.value


def _items(answer: Any) -> int:
    """How many things a list, or a list of lists, holds."""
    if not isinstance(answer, list):
        return 0
    return sum(len(one) if isinstance(one, list) else 1 for one in answer)


def _throw(steps: Steps[T], error: BaseException) -> tuple[bool, Any]:
    try:
        return False, steps.throw(error)
    except StopIteration as stop:
        return True, stop.value


class QueryResult:
    """An open query (`rpc.ResultSet`)."""

    def __init__(
        self,
        queries: Queries,
        plan: Plan,
        runner: _Runner,
        reads: StatementReads,
        entry: _Running,
        first: RowBatch,
    ) -> None:
        self._queries = queries
        self._plan = plan
        self._runner = runner
        self._reads = reads
        self._entry = entry
        self._first = first if len(first) else None
        self._closed = False
        head = plan.header
        ignore = True if head.ignore_time else None
        self._header = ResultHeader(head.columns, head.types, ignore, head.operation, head.name_index, head.non_align)

    @property
    def header(self) -> ResultHeader:
        return self._header

    @property
    def done(self) -> bool:
        return self._closed or (self._plan.ended and self._first is None)

    async def fetch(self, rows: int) -> RowBatch | None:
        """The next rows (first those that `execute` asked for), None at the end; 411 where the query was killed."""
        self._entry.check()
        if self._closed:
            return None
        batch, self._first = self._first, None
        if batch is None:
            batch = await self._next(rows)
        check(len(batch) <= rows, "a block of %d rows for a fetch of %d", len(batch), rows)
        if not len(batch):
            await self.close()
            return None
        if self._entry.trace is not None:
            self._entry.trace.fetched(len(batch))
        return batch

    async def _next(self, rows: int) -> RowBatch:
        try:
            return await self._runner.run(self._plan.fetch(rows))
        except (Moved, StaleSchema) as refusal:
            await self.close()
            raise CallerError(
                Status.QUERY_PROCESS_ERROR, f"the query ended, its data moved: repeat it ({refusal.message})"
            ) from None
        except BaseException:
            await self.close()
            raise

    async def fetch_columns(self, rows: int) -> list[tuple[Int64Array, Column]] | None:
        """The next points of each series, None at the end."""
        batch = await self.fetch(rows)
        if batch is None:
            return None
        return [_present(batch.times, column) for column in batch.columns]

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._queries.finished(self._entry.info.id)
        await self._reads.close()  # all that the plan holds open anywhere


def _present(times: Int64Array, column: Column) -> tuple[Int64Array, Column]:
    if column.valid is None:
        return times, column
    where = np.flatnonzero(column.valid)
    return times[where], Column(column.type, column.values[where])


def _tree(series: Sequence[Series]) -> dict[str, Any]:
    """Nested objects by node; a leaf says what is declared. A series with children shows only these."""
    root: dict[str, Any] = {}
    for one in series:
        at = root
        nodes = split_path(one.path)[1:]
        for node in nodes[:-1]:
            at = at.setdefault(node, {})
            at.pop("DataType", None)
        leaf = {
            "DataType": one.type.name,
            "Encoding": one.encoding.name,
            "Compressor": one.compressor.name,
            "args": "{" + ", ".join(f"{key}={value}" for key, value in one.properties.items()) + "}",
            "StorageGroup": ".".join(nodes[:0]) or "root",
        }
        at.setdefault(nodes[-1], leaf)
    return {"root": root}
