"""A fake node behind the client service, and a plain Thrift client that can also send nonsense."""

# ruff: noqa: ARG002

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from thriftpy2.protocol.compact import TCompactProtocol
from thriftpy2.protocol.cybin import TCyBinaryProtocol
from thriftpy2.thrift import TApplicationException
from thriftpy2.transport.memory import TCyMemoryBuffer

from iotdb_cluster.columns import Block, Column, DataType, RowBatch
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.rpc import (
    ClientService,
    InsertKind,
    Redirect,
    ResultHeader,
    SeriesRequest,
    ServerProperties,
    Session,
    TemplateRequest,
    TextRow,
)
from iotdb_cluster.rpc.checker import encode
from iotdb_cluster.rpc.idl import client as idl
from iotdb_cluster.rpc.wire import BINARY, COMPACT, Wire
from iotdb_cluster.world import World, real_world


class FakeResult:
    """Hands out rows that were made before."""

    def __init__(self, header: ResultHeader, rows: RowBatch | None, series: list[Any] | None = None) -> None:
        self.header = header
        self.rows = rows
        self.series = series
        self.done = False
        self.closed = 0
        self.fetches: list[int] = []
        self.fail: Exception | None = None
        self.wait: asyncio.Event | None = None

    async def fetch(self, rows: int) -> RowBatch | None:
        self.fetches.append(rows)
        if self.wait is not None:
            await self.wait.wait()
        if self.fail is not None:
            raise self.fail
        if self.rows is None or len(self.rows) == 0:
            return None
        first, rest = slice(0, rows), slice(rows, None)
        found = RowBatch(self.rows.times[first], [column[first] for column in self.rows.columns])
        self.rows = RowBatch(self.rows.times[rest], [column[rest] for column in self.rows.columns])
        return found

    async def fetch_columns(self, rows: int) -> list[Any] | None:
        self.fetches.append(rows)
        assert self.series is not None
        if not any(len(times) for times, _ in self.series):
            return None
        found = [(times[:rows], column[:rows]) for times, column in self.series]
        self.series = [(times[rows:], column[rows:]) for times, column in self.series]
        return found

    async def close(self) -> None:
        self.closed += 1


def sample(rows: int) -> RowBatch:
    """INT32 with holes and TEXT."""
    times = np.arange(rows, dtype=np.int64)
    numbers = Column(DataType.INT32, np.arange(rows, dtype=np.int32), times % 3 != 1)
    return RowBatch(times, [numbers, Column.of(DataType.TEXT, [f"text {i}" for i in range(rows)])])


SAMPLE_HEADER = ResultHeader(
    ["root.a.x", "root.a.y", "root.a.x"],
    [DataType.INT32, DataType.TEXT, DataType.INT32],
    None,
    "QUERY",
    {"root.a.x": 0, "root.a.y": 1},
)


class FakeHandler:
    """Remembers what it was asked; `fail` makes every call fail, `result` is what queries give."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.closed_sessions: list[Session] = []
        self.fail: Exception | None = None
        self.result: FakeResult | None = None
        self.redirect: Redirect | None = None
        self.wait: asyncio.Event | None = None
        self.cancelled = 0
        self.ended: list[int] = []  # queries that were cancelled by their number
        self.killed: asyncio.Event | None = None

    def query_timeout_ms(self) -> int:
        return 60_000

    def cancel(self, query_id: int) -> None:
        self.ended.append(query_id)
        if self.killed is not None:
            self.killed.set()

    def properties(self) -> ServerProperties:
        return ServerProperties("0.12.6")

    async def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if self.wait is not None:
            try:
                await self.wait.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.killed is not None:
            await self.killed.wait()
            raise CallerError(Status.QUERY_PROCESS_ERROR, "killed")
        if self.fail is not None:
            raise self.fail

    async def login(self, user: str, password: str) -> None:
        if (user, password) != ("root", "root"):
            raise CallerError(Status.WRONG_LOGIN_PASSWORD, "Authentication failed.")

    async def close_session(self, session: Session) -> None:
        self.closed_sessions.append(session)

    async def execute(self, session: Session, statement: str, kind: str, **options: int) -> FakeResult | None:
        await self._note("execute", statement, kind, options)
        if statement.startswith("SELECT"):
            if self.result is None:
                self.result = FakeResult(SAMPLE_HEADER, sample(25))
            return self.result
        if kind == "query":
            raise CallerError(Status.EXECUTE_STATEMENT_ERROR, "Statement is not a query statement.")
        return None

    async def execute_batch(self, session: Session, statements: Sequence[str]) -> list[CallerError | None]:
        await self._note("execute_batch", list(statements))
        return [CallerError(Status.SQL_PARSE_ERROR, "no") if "bad" in text else None for text in statements]

    async def insert(self, session: Session, blocks: Sequence[Block], kind: InsertKind) -> Redirect | None:
        await self._note("insert", list(blocks), kind)
        return self.redirect

    async def insert_text(self, session: Session, rows: Sequence[TextRow], kind: InsertKind) -> Redirect | None:
        await self._note("insert_text", list(rows), kind)
        return self.redirect

    async def raw_query(
        self, session: Session, paths: Sequence[str], start: int, end_exclusive: int, **options: int
    ) -> FakeResult:
        await self._note("raw_query", list(paths), start, end_exclusive)
        return FakeResult(SAMPLE_HEADER, sample(5))

    async def create_timeseries(self, session: Session, specs: Sequence[SeriesRequest], multi: bool) -> None:
        await self._note("create_timeseries", list(specs), multi)

    async def delete_timeseries(self, session: Session, paths: Sequence[str]) -> None:
        await self._note("delete_timeseries", list(paths))

    async def set_storage_group(self, session: Session, path: str) -> None:
        await self._note("set_storage_group", path)

    async def delete_storage_groups(self, session: Session, paths: Sequence[str]) -> None:
        await self._note("delete_storage_groups", list(paths))

    async def delete_data(self, session: Session, paths: Sequence[str], start: int, end: int) -> None:
        await self._note("delete_data", list(paths), start, end)

    async def metadata(self, session: Session, kind: str, column_path: str) -> str | list[str]:
        await self._note("metadata", kind, column_path)
        return ["root.a", "root.b"] if kind == "ALL_COLUMNS" else "text"

    async def create_template(self, session: Session, template: TemplateRequest) -> None:
        await self._note("create_template", template)

    async def set_template(self, session: Session, name: str, path: str) -> None:
        await self._note("set_template", name, path)


def protocol(wire: Wire, memory: Any) -> Any:
    return TCyBinaryProtocol(memory) if wire is BINARY else TCompactProtocol(memory)


def message(wire: Wire, name: str, *args: Any, seqid: int = 7) -> bytes:
    """A call, without its length."""
    arguments = getattr(idl().TSIService, name + "_args")(*args)
    return wire.head(1, name, seqid) + encode(wire, arguments)


class Client:
    """A client that waits for each answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wire: Wire) -> None:
        self.reader = reader
        self.writer = writer
        self.wire = wire
        self.session = 0

    async def send(self, payload: bytes) -> None:
        self.writer.write(struct.pack(">i", len(payload)) + payload)
        await self.writer.drain()

    async def receive(self) -> bytes:
        async with asyncio.timeout(10):
            (length,) = struct.unpack(">i", await self.reader.readexactly(4))
            return await self.reader.readexactly(length)

    async def call(self, name: str, *args: Any) -> Any:
        await self.send(message(self.wire, name, *args))
        return self.unpack(name, await self.receive())

    def unpack(self, name: str, answer: bytes) -> Any:
        head = self.wire.message(answer, 0)
        assert (head.name, head.seqid) == (name, 7)
        body = answer[head.body :]
        if head.kind == 3:
            error = TApplicationException()
            protocol(self.wire, TCyMemoryBuffer(body)).read_struct(error)
            raise error
        result = getattr(idl().TSIService, name + "_result")()
        protocol(self.wire, TCyMemoryBuffer(body)).read_struct(result)
        return result.success

    async def open(self, zone: str = "+08:00", user: str = "root", password: str = "root", version: int = 2) -> Any:
        answer = await self.call("openSession", idl().TSOpenSessionReq(version, zone, user, password))
        self.session = answer.sessionId
        return answer

    async def gone(self) -> bool:
        """Whether the server has ended the connection."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return


class Served:
    """A running service with its fake node."""

    def __init__(self, service: ClientService, handler: FakeHandler, port: int, faults: list[Exception]) -> None:
        self.service = service
        self.handler = handler
        self.port = port
        self.faults = faults
        self.clients: list[Client] = []

    async def connect(self, wire: Wire = BINARY, *, login: bool = True) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port), wire)
        self.clients.append(client)
        if login:
            await client.open()
        return client

    async def settle(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - the service does not tell
                await asyncio.sleep(0.005)


@pytest.fixture
def world() -> World:
    return real_world(1)


@pytest_asyncio.fixture
async def served(world: World) -> AsyncIterator[Served]:
    handler, faults = FakeHandler(), []
    service = ClientService(world, handler, faults.append)  # type: ignore[arg-type]
    running = Served(service, handler, await service.start("127.0.0.1", 0), faults)
    yield running
    for client in running.clients:
        await client.close()
    await service.close()
    world.workers.close()


@pytest.fixture(params=[BINARY, COMPACT], ids=["binary", "compact"])
def wire(request: pytest.FixtureRequest) -> Wire:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def make_message() -> Callable[..., bytes]:
    return message


@pytest.fixture
def make_result() -> Callable[..., FakeResult]:
    return FakeResult


@pytest.fixture
def sample_header() -> ResultHeader:
    return SAMPLE_HEADER


@pytest.fixture
def make_sample() -> Callable[[int], RowBatch]:
    return sample
