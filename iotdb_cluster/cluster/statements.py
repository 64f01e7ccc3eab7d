"""SQL at the coordinator: parsed, checked for privileges, and handed to what carries it out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import tzinfo
from typing import Any

from iotdb_cluster.cluster.accounts import Accounts
from iotdb_cluster.cluster.administration import Administration
from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.changes import Changes
from iotdb_cluster.cluster.everywhere import Everywhere
from iotdb_cluster.cluster.lists import list_result
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.privileges import Privileges
from iotdb_cluster.cluster.queries import Queries
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.cluster.specs import statement_spec
from iotdb_cluster.cluster.texts import TextConverter, write_texts
from iotdb_cluster.cluster.writes import Writer
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import INT64_MAX, INT64_MIN, STATEMENT_CACHE_CHARS_MAX
from iotdb_cluster.partition import partition_bounds
from iotdb_cluster.query import is_planned
from iotdb_cluster.rpc.handler import Done, ResultSet, Session, StatementKind, TextRow
from iotdb_cluster.rpc.zones import zone_info
from iotdb_cluster.schema import Alter
from iotdb_cluster.sql import (
    TIME,
    AlterAddAttributes,
    AlterAddTags,
    AlterChange,
    AlterDrop,
    AlterRename,
    AlterSet,
    AlterTimeseries,
    AlterUpsert,
    And,
    ClearCache,
    CompareOp,
    Comparison,
    CreateTimeseries,
    Delete,
    DeletePartition,
    DeleteStorageGroups,
    DeleteTimeseries,
    Flush,
    Insert,
    Literal,
    LiteralKind,
    Merge,
    ParseContext,
    RawItem,
    Select,
    SelectItem,
    SetStorageGroup,
    SetTtl,
    Statement,
    UnsetTtl,
    Unsupported,
    parse,
)
from iotdb_cluster.world import World

__all__ = ["Statements"]


BATCH_ROWS_MAX = 1_000  # INSERTs of a batch that are written in one call
PARSE_INLINE_CHARS = STATEMENT_CACHE_CHARS_MAX  # longer texts, which no cache remembers, are parsed on a worker


class Statements:
    """Carries out statements."""

    def __init__(
        self,
        world: World,
        settings: Settings,
        meta: MetaAccess,
        writer: Writer,
        texts: TextConverter,
        changes: Changes,
        queries: Queries,
        everywhere: Everywhere,
        privileges: Privileges,
        accounts: Accounts,
        administration: Administration,
    ) -> None:
        self._world = world
        self._settings = settings
        self._meta = meta
        self._writer = writer
        self._texts = texts
        self._changes = changes
        self._queries = queries
        self._everywhere = everywhere
        self._privileges = privileges
        self._handlers: dict[type[Statement], Callable[[Any, Deadline], Awaitable[Done | None]]] = {
            Insert: self._insert,
            Delete: self._delete,
            DeletePartition: self._delete_partitions,
            SetStorageGroup: self._set_storage_group,
            DeleteStorageGroups: self._delete_storage_groups,
            CreateTimeseries: self._create_timeseries,
            DeleteTimeseries: self._delete_timeseries,
            AlterTimeseries: self._alter_timeseries,
            SetTtl: self._set_ttl,
            UnsetTtl: self._unset_ttl,
            Flush: self._flush_statement,
            Merge: self._merge,
            ClearCache: self._clear_cache,
            **accounts.handlers,
            **administration.handlers,
        }

    # --- entry points -------------------------------------------------------------------------------------------------

    async def execute(
        self, session: Session, text: str, kind: StatementKind, fetch_rows: int, timeout_ms: int, query_id: int
    ) -> ResultSet | Done | None:
        """Run one statement of the kind that the call wants."""
        zone = zone_info(session.zone)
        statement = await self._parse(text, zone)
        if kind == "query" and not statement.is_query:
            raise CallerError(Status.EXECUTE_STATEMENT_ERROR, "Statement is not a query statement.")
        if kind == "update" and statement.is_query:
            raise CallerError(Status.EXECUTE_STATEMENT_ERROR, "Statement is a query statement.")
        if statement.is_query:
            return await self._query(session, statement, text, zone, fetch_rows, timeout_ms, query_id)
        return await self._update(session, statement)

    async def _parse(self, text: str, zone: tzinfo) -> Statement:
        context = ParseContext(zone, self._world.clock.wall_ms(), self._settings.timestamp_precision)
        if len(text) <= PARSE_INLINE_CHARS:
            return parse(text, context)
        return await self._world.workers.run(parse, text, context)

    async def batch(self, session: Session, texts: Sequence[str]) -> list[CallerError | None]:
        """Run each statement that is no query, in order; INSERTs that follow each other are written together."""
        outcomes: list[CallerError | None] = [None] * len(texts)
        zone = zone_info(session.zone)
        inserts: dict[int, Insert] = {}
        for place, text in enumerate(texts):
            try:
                statement = await self._parse(text, zone)
                if statement.is_query:
                    raise CallerError(
                        Status.QUERY_NOT_ALLOWED,
                        f"The query statement is not allowed in batch: Query statement not allowed in batch: [{text}]",
                    )
                if isinstance(statement, Insert):
                    await self._privileges.require_statement(session, statement, self._deadline())
                    inserts[place] = statement
                    continue
                await self._write_together(inserts, outcomes)
                await self._update(session, statement)
            except CallerError as error:
                outcomes[place] = next((part for part in error.parts if part is not None), error)
        await self._write_together(inserts, outcomes)
        return outcomes

    async def _write_together(self, inserts: dict[int, Insert], outcomes: list[CallerError | None]) -> None:
        """Write what a batch has gathered, and forget it."""
        places = list(inserts)
        for begin in range(0, len(places), BATCH_ROWS_MAX):
            part = places[begin : begin + BATCH_ROWS_MAX]
            errors: list[CallerError | None]
            try:
                errors = await self._write([inserts[place] for place in part], self._deadline())
            except CallerError as error:
                errors = [error] * len(part)
            for place, outcome in zip(part, errors, strict=True):
                outcomes[place] = outcome
        inserts.clear()

    async def _write(self, statements: Sequence[Insert], deadline: Deadline) -> list[CallerError | None]:
        rows = [TextRow(one.device, one.measurements, list(one.values), one.time) for one in statements]
        return await write_texts(self._texts, self._writer, rows, self._world.clock.wall_ms(), deadline)

    async def raw_query(
        self,
        session: Session,
        paths: Sequence[str],
        start: int,
        end_exclusive: int,
        fetch_rows: int,
        timeout_ms: int,
        query_id: int,
    ) -> ResultSet:
        """SELECT of full paths with start <= time < end."""
        zone = zone_info(session.zone)
        low = Comparison(TIME, CompareOp.GE, Literal(LiteralKind.INT, str(start)))
        high = Comparison(TIME, CompareOp.LT, Literal(LiteralKind.INT, str(end_exclusive)))
        items = tuple(SelectItem(RawItem(path.partition(".")[2])) for path in paths)
        statement = Select(items=items, from_=("root",), where=And((low, high)))
        text = f"raw query of {len(paths)} paths from {start} to {end_exclusive}"
        return await self._queries.execute(session, statement, text, zone, fetch_rows, timeout_ms, query_id)

    # --- queries ------------------------------------------------------------------------------------------------------

    async def _query(
        self,
        session: Session,
        statement: Statement,
        text: str,
        zone: tzinfo,
        fetch_rows: int,
        timeout_ms: int,
        query_id: int,
    ) -> ResultSet:
        if isinstance(statement, Unsupported):
            raise CallerError(statement.code, statement.message)
        if is_planned(statement):
            return await self._queries.execute(session, statement, text, zone, fetch_rows, timeout_ms, query_id)
        await self._meta.barrier(self._deadline())
        return list_result(self._meta.state.auth, session.user, statement)

    # --- updates ------------------------------------------------------------------------------------------------------

    def _deadline(self) -> Deadline:
        return Deadline(self._world, self._settings.write_timeout_ms)

    async def _update(self, session: Session, statement: Statement) -> Done | None:
        """Every statement without a result set comes by here: none is carried out that the session may not ask for."""
        deadline = self._deadline()
        await self._privileges.require_statement(session, statement, deadline)
        if isinstance(statement, Unsupported):
            raise CallerError(statement.code, statement.message)
        return await self._handlers[type(statement)](statement, deadline)

    async def _insert(self, statement: Insert, deadline: Deadline) -> None:
        (error,) = await self._write([statement], deadline)
        if error is not None:
            raise error

    async def _delete(self, statement: Delete, deadline: Deadline) -> None:
        for path in statement.paths:
            await self._changes.delete_points(path, statement.start, statement.end, deadline)

    async def _delete_partitions(self, statement: DeletePartition, deadline: Deadline) -> None:
        """The points of whole time partitions."""
        interval = self._settings.partition_interval_ms
        for partition in statement.partitions:
            low, high = partition_bounds(partition, interval)
            low, high = max(low, INT64_MIN), min(high, INT64_MAX)
            await self._changes.delete_points(statement.path, low, high, deadline)

    async def _set_storage_group(self, statement: SetStorageGroup, deadline: Deadline) -> None:
        await self._changes.set_storage_group(statement.path, deadline)

    async def _delete_storage_groups(self, statement: DeleteStorageGroups, deadline: Deadline) -> None:
        await self._changes.delete_storage_groups(statement.paths, deadline)

    async def _create_timeseries(self, statement: CreateTimeseries, deadline: Deadline) -> None:
        (error,) = await self._changes.create_series([statement_spec(statement)], deadline)
        if error is not None:
            raise error

    async def _delete_timeseries(self, statement: DeleteTimeseries, deadline: Deadline) -> None:
        outcomes = await self._changes.delete_series(statement.paths, deadline)
        if any(outcomes):
            raise CallerError(Status.MULTIPLE_ERROR, "some paths were not deleted", outcomes)

    async def _alter_timeseries(self, statement: AlterTimeseries, deadline: Deadline) -> None:
        await self._changes.alter(statement.path, _alteration(statement.change), deadline)

    async def _set_ttl(self, statement: SetTtl, deadline: Deadline) -> None:
        await self._changes.set_ttl(statement.path, min(statement.ttl, INT64_MAX), deadline)

    async def _unset_ttl(self, statement: UnsetTtl, deadline: Deadline) -> None:
        await self._changes.set_ttl(statement.path, None, deadline)

    # --- utilities ----------------------------------------------------------------------------------------------------

    async def _flush_statement(self, statement: Flush, deadline: Deadline) -> None:
        await self._everywhere.flush(statement.paths, deadline)

    async def _merge(self, statement: Merge, deadline: Deadline) -> None:
        await self._everywhere.merge(statement.full, deadline)

    async def _clear_cache(self, _: ClearCache, deadline: Deadline) -> None:
        await self._everywhere.clear_caches(deadline)


def _alteration(change: AlterChange) -> Alter:
    match change:
        case AlterRename(before, after):
            return Alter.rename(before, after)
        case AlterSet(pairs):
            return Alter.set(dict(pairs))
        case AlterDrop(keys):
            return Alter.drop(*keys)
        case AlterAddTags(pairs):
            return Alter.add_tags(dict(pairs))
        case AlterAddAttributes(pairs):
            return Alter.add_attributes(dict(pairs))
        case AlterUpsert(alias, tags, attributes):
            return Alter.upsert(alias, dict(tags), dict(attributes))
