"""The methods of the client service, one function each: a checked request in, the struct that the method returns out.

A function fails with `CallerError`; `METHODS` says how a failing status is put into the method's result, and how the
operation is called in the text of an unexpected failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from iotdb_cluster.columns import DataType
from iotdb_cluster.errors import CallerError, Status, check
from iotdb_cluster.limits import SESSIONS_PER_CONNECTION_MAX
from iotdb_cluster.rpc.cursors import Cursor, Login, fetch_rows
from iotdb_cluster.rpc.handler import (
    ClientHandler,
    Done,
    InsertKind,
    Redirect,
    ResultSet,
    SeriesRequest,
    Session,
    StatementKind,
    TemplateRequest,
    TextRow,
)
from iotdb_cluster.rpc.idl import client
from iotdb_cluster.rpc.replies import EXECUTED, NOT_LOGGED_IN, part_statuses, status, status_of
from iotdb_cluster.rpc.values import Insert
from iotdb_cluster.world import Workers

__all__ = ["IGNORED", "METHODS", "NOT_SUPPORTED", "Caller", "Limits", "Method", "write"]

T = TypeVar("T")
PROTOCOL_V3 = 2
TYPE_NAMES = tuple(kind.name for kind in DataType)  # by number: looking up `name` costs 1 us for each column
TIMED_OUT = "Current query is time out, please check your statement or modify timeout parameter."
PYTHON_FETCH_TIMEOUT_MS = 1_000  # the stock Python client sends it with every fetch, whatever its user asked for


@dataclass(slots=True)
class Limits:
    """What may change while the service runs."""

    connections_max: int
    frame_bytes_max: int


class Caller(Protocol):
    """What a method sees of its connection and of the service."""

    @property
    def handler(self) -> ClientHandler: ...

    @property
    def logins(self) -> dict[int, Login]: ...

    @property
    def address(self) -> str: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def workers(self) -> Workers: ...

    def now_ms(self) -> int: ...
    def next_session_id(self) -> int: ...
    def next_statement_id(self) -> int: ...
    def next_query_id(self) -> int:
        """Of the query that begins now; see `works_on`."""
        ...

    def works_on(self, query_id: int) -> None:
        """The call that is being answered is about this query of the connection: it may be cancelled meanwhile."""
        ...

    async def canonical_zone(self, text: str) -> str:
        """ValueError where there is no such zone."""
        ...


def _login(caller: Caller, session_id: int) -> Login:
    """The session, which must have been opened over this connection: its number alone proves nothing."""
    login = caller.logins.get(session_id)
    if login is None:
        raise CallerError(Status.NOT_LOGIN, NOT_LOGGED_IN)
    return login


def _done() -> Any:
    return status(Status.SUCCESS, EXECUTED)


async def _in_time(timeout_ms: int, call: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            return await call
    except TimeoutError:
        raise CallerError(Status.TIME_OUT, TIMED_OUT) from None


def _timeout_ms(caller: Caller, asked: int | None) -> int:
    return asked if asked is not None and asked > 0 else caller.handler.query_timeout_ms()


# --- sessions ---------------------------------------------------------------------------------------------------------


async def open_session(caller: Caller, req: Any) -> Any:
    idl = client()
    await caller.handler.login(req.username or "", req.password or "")
    if req.client_protocol != PROTOCOL_V3:
        version = caller.handler.properties().version
        raise CallerError(Status.INCOMPATIBLE_VERSION, f"The version is incompatible, please upgrade to {version}")
    try:
        zone = await caller.canonical_zone(req.zoneId)
    except ValueError as error:
        raise CallerError(Status.GENERATE_TIME_ZONE_ERROR, f"Cannot open a session: {error}") from None
    if len(caller.logins) >= SESSIONS_PER_CONNECTION_MAX:
        raise CallerError(
            Status.QUERY_NOT_ALLOWED, f"a connection may have {SESSIONS_PER_CONNECTION_MAX} open sessions"
        )
    session = Session(caller.next_session_id(), req.username, zone, caller.address, caller.now_ms())
    caller.logins[session.id] = Login(session)
    return idl.TSOpenSessionResp(status(Status.SUCCESS, "Login successfully"), PROTOCOL_V3, session.id)


async def close_session(caller: Caller, req: Any) -> Any:
    login = _login(caller, req.sessionId)
    del caller.logins[req.sessionId]
    await login.close()
    await caller.handler.close_session(login.session)
    return status(Status.SUCCESS)


async def get_time_zone(caller: Caller, args: Any) -> Any:
    login = caller.logins.get(args.sessionId)
    zone = "Unknown time zone" if login is None else login.session.zone
    return client().TSGetTimeZoneResp(status(Status.SUCCESS), zone)


async def set_time_zone(caller: Caller, req: Any) -> Any:
    session = _login(caller, req.sessionId).session
    try:
        session.zone = await caller.canonical_zone(req.timeZone)
    except ValueError as error:
        text = f"[SET_TIME_ZONE_ERROR] Exception occurred while setting time zone. {error}"
        raise CallerError(Status.SET_TIME_ZONE_ERROR, text) from None
    return _done()


async def get_properties(caller: Caller, _: Any) -> Any:
    known = caller.handler.properties()
    return client().ServerProperties(
        version=known.version,
        supportedTimeAggregationOperations=list(known.aggregations),
        timestampPrecision=known.timestamp_precision,
        maxConcurrentClientNum=caller.limits.connections_max,
        thriftMaxFrameSize=caller.limits.frame_bytes_max,
        isReadOnly=known.read_only,
    )


async def request_statement_id(caller: Caller, _: Any) -> Any:
    return caller.next_statement_id()


# --- statements -------------------------------------------------------------------------------------------------------


async def _answer_query(
    caller: Caller, login: Login, query_id: int, statement_id: int, result: ResultSet, rows: int
) -> Any:
    """The header and first block of a result; the result set is closed if that fails."""
    idl = client()
    cursor = Cursor(statement_id, result, caller.workers)
    try:
        block, _ = await cursor.next_block(rows)
        login.admit(query_id, cursor)
    except BaseException:
        await cursor.close()
        raise
    header = cursor.header
    answer = idl.TSExecuteStatementResp(
        status=status(Status.SUCCESS),
        queryId=query_id,
        columns=list(header.columns),
        operationType=header.operation,
        ignoreTimeStamp=header.ignore_time,
        dataTypeList=[TYPE_NAMES[kind] for kind in header.types],
        columnNameIndexMap=None if header.name_index is None else dict(header.name_index),
    )
    if header.non_align:
        answer.nonAlignQueryDataSet = block
    else:
        answer.queryDataSet = block
    return answer


def _statement(kind: StatementKind) -> Callable[[Caller, Any], Awaitable[Any]]:
    async def execute(caller: Caller, req: Any) -> Any:
        login = _login(caller, req.sessionId)
        query_id = caller.next_query_id()
        rows, timeout_ms = fetch_rows(req.fetchSize), _timeout_ms(caller, req.timeout)

        async def run() -> Any:
            result = await caller.handler.execute(
                login.session, req.statement, kind, fetch_rows=rows, timeout_ms=timeout_ms, query_id=query_id
            )
            if result is None:
                return client().TSExecuteStatementResp(status=_done(), queryId=query_id)
            if isinstance(result, Done):
                return client().TSExecuteStatementResp(status(Status.SUCCESS, result.message), query_id)
            return await _in_time(timeout_ms, _answer_query(caller, login, query_id, req.statementId, result, rows))

        # What is no query ends in the handler's own time: cancelled half-way nobody would know its outcome.
        return await (_in_time(timeout_ms, run()) if kind == "query" else run())

    return execute


async def raw_query(caller: Caller, req: Any) -> Any:
    login = _login(caller, req.sessionId)
    query_id = caller.next_query_id()
    rows, timeout_ms = fetch_rows(req.fetchSize), caller.handler.query_timeout_ms()

    async def run() -> Any:
        result = await caller.handler.raw_query(
            login.session,
            req.paths,
            req.startTime,
            req.endTime,
            fetch_rows=rows,
            timeout_ms=timeout_ms,
            query_id=query_id,
        )
        return await _answer_query(caller, login, query_id, req.statementId, result, rows)

    return await _in_time(timeout_ms, run())


async def fetch_results(caller: Caller, req: Any) -> Any:
    login = _login(caller, req.sessionId)
    cursor = login.cursors.get(req.queryId)
    if cursor is None:
        raise CallerError(Status.EXECUTE_STATEMENT_ERROR, "Has not executed query")
    caller.works_on(req.queryId)
    timeout_ms = _timeout_ms(caller, None if req.timeout == PYTHON_FETCH_TIMEOUT_MS else req.timeout)
    try:
        block, has_rows = await _in_time(
            timeout_ms,
            cursor.next_block(fetch_rows(req.fetchSize)),
        )
    except CallerError:
        await login.close_query(req.queryId)  # a cursor that failed never goes on with less data
        raise
    if not has_rows:
        await login.close_query(req.queryId)
    answer = client().TSFetchResultsResp(status(Status.SUCCESS), has_rows, not cursor.header.non_align)
    if cursor.header.non_align:
        answer.nonAlignQueryDataSet = block
    else:
        answer.queryDataSet = block
    return answer


async def close_operation(caller: Caller, req: Any) -> Any:
    login = _login(caller, req.sessionId)
    if req.queryId is not None:
        await login.close_query(req.queryId)  # the Go client never names the statement: nothing may stay open for it
    if req.statementId is None:
        raise CallerError(Status.CLOSE_OPERATION_ERROR, "statement id not set by client.")
    if req.queryId is None:
        await login.close_statement(req.statementId)
    return status(Status.SUCCESS)


async def cancel_operation(caller: Caller, req: Any) -> Any:
    """Close a query, like `close_operation`; one that ran when this call came in was ended by the connection."""
    await _login(caller, req.sessionId).close_query(req.queryId)
    return status(Status.SUCCESS)


async def execute_batch(caller: Caller, req: Any) -> Any:
    session = _login(caller, req.sessionId).session
    parts = await caller.handler.execute_batch(session, req.statements)
    check(len(parts) == len(req.statements), "%d outcomes of %d statements", len(parts), len(req.statements))
    if any(part is not None for part in parts):
        return status(Status.MULTIPLE_ERROR, None, part_statuses(parts))
    return status(Status.SUCCESS, "Execute batch statements successfully")


async def fetch_metadata(caller: Caller, req: Any) -> Any:
    session = _login(caller, req.sessionId).session
    answer = client().TSFetchMetadataResp(status(Status.SUCCESS))
    if req.type == "METADATA_IN_JSON":
        answer.metadataInJson = await caller.handler.metadata(session, "METADATA_IN_JSON", "")
    elif req.type == "COLUMN":
        answer.dataType = await caller.handler.metadata(session, "COLUMN", req.columnPath or "")
    elif req.type == "ALL_COLUMNS":
        answer.columnsList = list(await caller.handler.metadata(session, "ALL_COLUMNS", req.columnPath or ""))
    else:
        raise CallerError(Status.METADATA_ERROR, req.type)
    return answer


# --- schema -----------------------------------------------------------------------------------------------------------


async def set_storage_group(caller: Caller, args: Any) -> Any:
    await caller.handler.set_storage_group(_login(caller, args.sessionId).session, args.storageGroup)
    return _done()


async def delete_storage_groups(caller: Caller, args: Any) -> Any:
    await caller.handler.delete_storage_groups(_login(caller, args.sessionId).session, args.storageGroup)
    return _done()


async def delete_timeseries(caller: Caller, args: Any) -> Any:
    await caller.handler.delete_timeseries(_login(caller, args.sessionId).session, args.path)
    return _done()


async def delete_data(caller: Caller, req: Any) -> Any:
    session = _login(caller, req.sessionId).session
    await caller.handler.delete_data(session, req.paths, req.startTime, req.endTime)
    return _done()


async def create_timeseries(caller: Caller, req: Any) -> Any:
    session = _login(caller, req.sessionId).session
    spec = SeriesRequest(
        req.path,
        req.dataType,
        req.encoding,
        req.compressor,
        req.props,
        req.tags,
        req.attributes,
        req.measurementAlias,
    )
    await caller.handler.create_timeseries(session, [spec], multi=False)
    return _done()


def _require_equal(what: str, *lists: Sequence[Any] | None) -> None:
    lengths = [len(values) for values in lists if values is not None]
    if len(set(lengths)) > 1:
        raise CallerError(
            Status.ILLEGAL_PARAMETER, f"the lists of {what} differ in length: {', '.join(map(str, lengths))} entries"
        )


async def create_multi_timeseries(caller: Caller, req: Any) -> Any:
    session = _login(caller, req.sessionId).session
    optional = (req.propsList, req.tagsList, req.attributesList, req.measurementAliasList)
    _require_equal("createMultiTimeseries", req.paths, req.dataTypes, req.encodings, req.compressors, *optional)
    if not req.paths:
        raise CallerError(Status.QUERY_PROCESS_ERROR, "createMultiTimeseries names no series")
    specs = [
        SeriesRequest(
            path,
            req.dataTypes[i],
            req.encodings[i],
            req.compressors[i],
            *(None if values is None else values[i] for values in optional),
        )
        for i, path in enumerate(req.paths)
    ]
    await caller.handler.create_timeseries(session, specs, multi=True)
    return _done()


async def create_template(caller: Caller, req: Any) -> Any:
    session = _login(caller, req.sessionId).session
    lists = (req.schemaNames, req.measurements, req.dataTypes, req.encodings, req.compressors)
    if any(values is None for values in lists):
        raise CallerError(
            Status.UNSUPPORTED_OPERATION, "createSchemaTemplate in the form of 0.13 clients is not supported"
        )
    _require_equal("createSchemaTemplate", *lists)
    await caller.handler.create_template(session, TemplateRequest(req.name, *lists))
    return _done()


async def set_template(caller: Caller, req: Any) -> Any:
    session = _login(caller, req.sessionId).session
    await caller.handler.set_template(session, req.templateName, req.prefixPath)
    return _done()


# --- inserts ----------------------------------------------------------------------------------------------------------


async def insert_string_record(caller: Caller, req: Any) -> Any:
    insert = Insert(req.sessionId, InsertKind.STRING_RECORD, 1)
    _require_equal("a string record", req.measurements, req.values)
    if not req.measurements:
        raise CallerError(Status.QUERY_PROCESS_ERROR, "Measurements are null")
    insert.rows.append(TextRow(req.deviceId, tuple(req.measurements), req.values, req.timestamp))
    insert.row_items.append(0)
    return await write(caller, insert)


async def insert_string_records(caller: Caller, req: Any) -> Any:
    insert = Insert(req.sessionId, InsertKind.STRING_RECORDS, len(req.deviceIds))
    _require_equal("insertStringRecords", req.deviceIds, req.measurementsList, req.valuesList, req.timestamps)
    for i, device in enumerate(req.deviceIds):
        names, values = req.measurementsList[i], req.valuesList[i]
        if len(names) != len(values):
            insert.errors[i] = CallerError(
                Status.ILLEGAL_PARAMETER, f"a record has {len(names)} measurements and {len(values)} values"
            )
            continue
        if not names:
            insert.errors[i] = CallerError(Status.QUERY_PROCESS_ERROR, "Measurements are null")
            continue
        kept = [j for j, value in enumerate(values) if value]
        if kept:
            row = TextRow(device, tuple([names[j] for j in kept]), [values[j] for j in kept], req.timestamps[i])
            insert.rows.append(row)
            insert.row_items.append(i)
    return await write(caller, insert)


async def write(caller: Caller, insert: Insert) -> Any:
    """Hand an insert to the handler; a TSStatus, or a Redirect or None where all of it succeeded plainly."""
    session = _login(caller, insert.session_id).session
    errors, kind = insert.errors, insert.kind
    if -1 in errors:
        raise errors[-1]
    if insert.count == 0 and kind is not InsertKind.RECORDS_OF_ONE_DEVICE:
        raise CallerError(Status.QUERY_PROCESS_ERROR, f"{kind.value} brings nothing to insert")
    redirect: Redirect | None = None
    whole = not errors and not (insert.blocks and insert.rows)  # nothing else decides about the answer
    if insert.blocks:
        try:
            redirect = await caller.handler.insert(session, insert.blocks, kind)
        except CallerError as error:
            if kind in (InsertKind.RECORD, InsertKind.TABLET) or (whole and not error.parts):
                return status_of(error)
            _spread(error, insert.block_items, errors)
    if insert.rows:
        try:
            redirect = await caller.handler.insert_text(session, insert.rows, kind)
        except CallerError as error:
            if whole and not error.parts:
                return status_of(error)
            _spread(error, insert.row_items, errors)
    if not errors:
        return redirect if kind.one_device else None
    if kind in (InsertKind.RECORD, InsertKind.TABLET, InsertKind.STRING_RECORD):
        return status_of(errors[min(errors)])
    if kind is InsertKind.RECORDS_OF_ONE_DEVICE:  # the failures only, as the original does
        return status(Status.MULTIPLE_ERROR, None, part_statuses(errors[i] for i in sorted(errors)))
    return status(Status.MULTIPLE_ERROR, None, part_statuses(errors.get(i) for i in range(insert.count)))


def _spread(error: CallerError, items: Sequence[int], errors: dict[int, CallerError]) -> None:
    """Give each item of the client's call its own failure."""
    if not error.parts:
        errors.update(dict.fromkeys(items, error))
        return
    check(len(error.parts) == len(items), "%d outcomes of %d parts of an insert", len(error.parts), len(items))
    errors.update({item: part for item, part in zip(items, error.parts, strict=True) if part is not None})


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Method:
    """`run` gets the argument `req`, or all arguments where there is no such; `failed` wraps a failing status."""

    run: Callable[[Caller, Any], Awaitable[Any]]
    operation: str
    failed: Callable[[Any], Any] = lambda failure: failure
    is_query: bool = False  # may be cancelled when its client goes away


def _open_failed(failure: Any) -> Any:
    return client().TSOpenSessionResp(failure, PROTOCOL_V3, -1)


def _execute_failed(failure: Any) -> Any:
    return client().TSExecuteStatementResp(status=failure)


def _fetch_failed(failure: Any) -> Any:
    return client().TSFetchResultsResp(failure, False, False)


METHODS: dict[str, Method] = {
    "openSession": Method(open_session, "opening a session", _open_failed),
    "closeSession": Method(close_session, "closing a session"),
    "getTimeZone": Method(get_time_zone, "getting time zone", lambda failure: client().TSGetTimeZoneResp(failure, "")),
    "setTimeZone": Method(set_time_zone, "setting time zone"),
    "getProperties": Method(get_properties, "getting properties"),
    "requestStatementId": Method(request_statement_id, "requesting a statement id"),
    "executeStatement": Method(_statement("any"), 'executing "{}"', _execute_failed),
    "executeQueryStatement": Method(_statement("query"), 'executing executeQueryStatement "{}"', _execute_failed, True),
    "executeUpdateStatement": Method(_statement("update"), "executing update statement", _execute_failed),
    "executeBatchStatement": Method(execute_batch, "executing batch statement"),
    "executeRawDataQuery": Method(raw_query, "executing executeRawDataQuery", _execute_failed, True),
    "fetchResults": Method(fetch_results, "executing fetchResults", _fetch_failed, True),
    "fetchMetadata": Method(
        fetch_metadata, "executing fetchMetadata", lambda failure: client().TSFetchMetadataResp(failure)
    ),
    "closeOperation": Method(close_operation, "executing closeOperation"),
    "cancelOperation": Method(cancel_operation, "executing cancelOperation"),
    "setStorageGroup": Method(set_storage_group, "setting storage group"),
    "deleteStorageGroups": Method(delete_storage_groups, "deleting storage group"),
    "createTimeseries": Method(create_timeseries, "creating timeseries"),
    "createMultiTimeseries": Method(create_multi_timeseries, "creating multi timeseries"),
    "deleteTimeseries": Method(delete_timeseries, "deleting timeseries"),
    "deleteData": Method(delete_data, "deleting data"),
    "createSchemaTemplate": Method(create_template, "creating schema template"),
    "setSchemaTemplate": Method(set_template, "setting schema template"),
    "insertStringRecord": Method(insert_string_record, "inserting a string record"),
    "insertStringRecords": Method(insert_string_records, "inserting string records"),
}

NOT_SUPPORTED: dict[str, Callable[[Any], Any]] = {  # methods of 0.13: how their results carry a status
    **dict.fromkeys(
        (
            "createAlignedTimeseries",
            "insertStringRecordsOfOneDevice",
            "appendSchemaTemplate",
            "pruneSchemaTemplate",
            "unsetSchemaTemplate",
            "dropSchemaTemplate",
        ),
        lambda failure: failure,
    ),
    "executeLastDataQuery": _execute_failed,
    "querySchemaTemplate": lambda failure: client().TSQueryTemplateResp(failure, 0),
}

IGNORED = frozenset(  # these succeed unread, as in the original
    "testInsert" + name
    for name in ("Tablet", "Tablets", "Record", "StringRecord", "Records", "RecordsOfOneDevice", "StringRecords")
)
