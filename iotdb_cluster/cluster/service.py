"""What the client service calls: every request of a client, checked for its privilege and carried out by the node."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from iotdb_cluster.auth import verify_password
from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.changes import Changes
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.privileges import Privileges
from iotdb_cluster.cluster.queries import Queries
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.cluster.specs import series_spec
from iotdb_cluster.cluster.statements import Statements
from iotdb_cluster.cluster.texts import TextConverter, write_texts
from iotdb_cluster.cluster.writes import Failure, Writer
from iotdb_cluster.columns import Block
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.rpc.handler import (
    Done,
    InsertKind,
    MetadataKind,
    Redirect,
    ResultSet,
    SeriesRequest,
    ServerProperties,
    Session,
    StatementKind,
    TemplateRequest,
    TextRow,
)
from iotdb_cluster.schema import SeriesSpec
from iotdb_cluster.world import World

__all__ = ["VERSION", "ClientNode"]

logger = logging.getLogger(__name__)

VERSION = "0.12.5"  # what clients are told: the release whose answers these are


class ClientNode:
    """The handler of the client service (`rpc.ClientHandler`)."""

    def __init__(
        self,
        world: World,
        settings: Settings,
        meta: MetaAccess,
        writer: Writer,
        texts: TextConverter,
        changes: Changes,
        queries: Queries,
        statements: Statements,
        privileges: Privileges,
    ) -> None:
        self._world = world
        self._settings = settings
        self._meta = meta
        self._writer = writer
        self._texts = texts
        self._changes = changes
        self._queries = queries
        self._statements = statements
        self._privileges = privileges

    # --- sessions -----------------------------------------------------------------------------------------------------

    def properties(self) -> ServerProperties:
        return ServerProperties(VERSION, self._settings.timestamp_precision, read_only=self._privileges.read_only)

    def query_timeout_ms(self) -> int:
        return self._settings.query_timeout_ms

    def cancel(self, query_id: int) -> None:
        self._queries.kill(query_id)

    async def login(self, user: str, password: str) -> None:
        await self._meta.barrier(Deadline(self._world, self._settings.read_timeout_ms))
        hashed = self._meta.state.auth.password_of(user)
        if hashed is None or not await self._world.workers.run(verify_password, password, hashed):
            raise CallerError(Status.WRONG_LOGIN_PASSWORD, "Authentication failed.")

    async def close_session(self, session: Session) -> None:
        session.notes.clear()

    async def _admit(self, session: Session, operation: str, *paths: str) -> Deadline:
        """The deadline of a change that the session may make; raises 602, or 411 while the system is read-only."""
        deadline = self._deadline()
        await self._privileges.require(session, operation, *paths, deadline=deadline)
        self._privileges.require_writable()
        return deadline

    def _deadline(self) -> Deadline:
        return Deadline(self._world, self._settings.write_timeout_ms)

    # --- statements ---------------------------------------------------------------------------------------------------

    async def execute(
        self,
        session: Session,
        statement: str,
        kind: StatementKind,
        *,
        fetch_rows: int,
        timeout_ms: int,
        query_id: int,
    ) -> ResultSet | Done | None:
        return await self._statements.execute(session, statement, kind, fetch_rows, timeout_ms, query_id)

    async def execute_batch(self, session: Session, statements: Sequence[str]) -> Sequence[CallerError | None]:
        return await self._statements.batch(session, statements)

    async def raw_query(
        self,
        session: Session,
        paths: Sequence[str],
        start: int,
        end_exclusive: int,
        *,
        fetch_rows: int,
        timeout_ms: int,
        query_id: int,
    ) -> ResultSet:
        return await self._statements.raw_query(session, paths, start, end_exclusive, fetch_rows, timeout_ms, query_id)

    # --- inserts ------------------------------------------------------------------------------------------------------

    async def insert(self, session: Session, blocks: Sequence[Block], kind: InsertKind) -> Redirect | None:
        self._privileges.require_here(session, "INSERT", *dict.fromkeys(block.device for block in blocks))
        self._privileges.require_writable()
        failures = await self._writer.insert(blocks, self._world.clock.wall_ms(), self._deadline())
        if failures:
            raise _told(failures, blocks, kind)
        return self._redirect(blocks) if kind.one_device else None

    async def insert_text(self, session: Session, rows: Sequence[TextRow], kind: InsertKind) -> Redirect | None:
        self._privileges.require_here(session, "INSERT", *dict.fromkeys(row.device for row in rows))
        self._privileges.require_writable()
        errors = await write_texts(self._texts, self._writer, rows, self._world.clock.wall_ms(), self._deadline())
        if any(errors):
            if len(rows) == 1 and kind is InsertKind.STRING_RECORD and errors[0] is not None:
                raise errors[0]
            raise CallerError(Status.MULTIPLE_ERROR, "some rows were not written whole", errors)
        return None

    def _redirect(self, blocks: Sequence[Block]) -> Redirect | None:
        place = self._writer.leader_hint(blocks)
        address = self._queries.leader_address(place.group) if place is not None else None
        return None if address is None else Redirect(address.host, address.client_port)

    # --- schema -------------------------------------------------------------------------------------------------------

    async def create_timeseries(self, session: Session, specs: Sequence[SeriesRequest], multi: bool) -> None:
        deadline = await self._admit(
            session, "CREATE_MULTI_TIMESERIES" if multi else "CREATE_TIMESERIES", *(s.path for s in specs)
        )
        wanted: list[SeriesSpec | CallerError] = []
        for spec in specs:
            try:
                wanted.append(series_spec(spec))
            except CallerError as error:
                wanted.append(error)
        outcomes = await self._changes.create_series(wanted, deadline)
        failed = [outcome for outcome in outcomes if outcome is not None]
        if failed and not multi:
            raise failed[0]
        if failed:
            raise CallerError(Status.MULTIPLE_ERROR, "some timeseries were not created", outcomes)

    async def delete_timeseries(self, session: Session, paths: Sequence[str]) -> None:
        deadline = await self._admit(session, "DELETE_TIMESERIES", *paths)
        outcomes = await self._changes.delete_series(paths, deadline)
        if any(outcomes):
            raise CallerError(Status.MULTIPLE_ERROR, "some paths were not deleted", outcomes)

    async def set_storage_group(self, session: Session, path: str) -> None:
        deadline = await self._admit(session, "SET_STORAGE_GROUP", path)
        await self._changes.set_storage_group(path, deadline)

    async def delete_storage_groups(self, session: Session, paths: Sequence[str]) -> None:
        deadline = await self._admit(session, "DELETE_STORAGE_GROUP", *paths)
        await self._changes.delete_storage_groups(paths, deadline)

    async def delete_data(self, session: Session, paths: Sequence[str], start: int, end: int) -> None:
        deadline = await self._admit(session, "DELETE", *paths)
        for path in paths:
            await self._changes.delete_points(path, start, end, deadline)

    async def metadata(self, session: Session, kind: MetadataKind, column_path: str) -> str | Sequence[str]:
        del session
        return await self._queries.metadata(kind, column_path)

    async def create_template(self, session: Session, template: TemplateRequest) -> None:
        del template
        await self._admit(session, "CREATE_TEMPLATE")
        raise CallerError(Status.UNSUPPORTED_OPERATION, "createSchemaTemplate is not supported")

    async def set_template(self, session: Session, name: str, path: str) -> None:
        del name, path
        await self._admit(session, "SET_SCHEMA_TEMPLATE")
        raise CallerError(Status.UNSUPPORTED_OPERATION, "setSchemaTemplate is not supported")


def _told(failures: Sequence[Failure], blocks: Sequence[Block], kind: InsertKind) -> CallerError:
    """The failures as the call's own error: one for a record, a part a row, or a part a block."""
    if kind is InsertKind.RECORD:
        return failures[0].error
    if kind is InsertKind.TABLET and all(failure.rows is None for failure in failures):
        return failures[0].error
    if kind is InsertKind.TABLETS:
        by_block: list[CallerError | None] = [None] * len(blocks)
        for failure in failures:
            by_block[failure.origin] = by_block[failure.origin] or failure.error
        return CallerError(Status.MULTIPLE_ERROR, "some tablets were not written whole", by_block)
    starts = [0]
    for block in blocks:
        starts.append(starts[-1] + len(block))
    parts: list[CallerError | None] = [None] * starts[-1]
    for failure in failures:
        start = starts[failure.origin]
        rows = range(len(blocks[failure.origin])) if failure.rows is None else failure.rows.tolist()
        for row in rows:
            parts[start + row] = parts[start + row] or failure.error
    return CallerError(Status.MULTIPLE_ERROR, "some rows were not written whole", parts)
