"""A client of the simulated cluster: the client protocol over a simulated connection, and nodetool's one line."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any, TypeAlias

from iotdb_cluster.errors import CallerError, OutcomeUnknown, Status
from iotdb_cluster.rpc.checker import decode, encode
from iotdb_cluster.rpc.idl import client
from iotdb_cluster.rpc.wire import BINARY, MessageKind
from iotdb_cluster.world import World

__all__ = ["SimulatedClient", "ask_admin"]

GOOD = (200, 707)
PAGE_ROWS = 100_000
Value: TypeAlias = float | int | bool | bytes
_FORMATS = {"BOOLEAN": "?", "INT32": "i", "INT64": "q", "FLOAT": "f", "DOUBLE": "d"}


def _values(kind: str, data: bytes, bits: bytes, count: int) -> list[Value | None]:
    """A column of a result: values stand only where the bit is set, the first row's bit highest."""
    found: list[Value | None] = []
    at = 0
    for row in range(count):
        if not bits[row // 8] & 0x80 >> row % 8:
            found.append(None)
        elif kind == "TEXT":
            (length,) = struct.unpack_from(">i", data, at)
            found.append(data[at + 4 : at + 4 + length])
            at += 4 + length
        else:
            form = ">" + _FORMATS[kind]
            found.append(struct.unpack_from(form, data, at)[0])
            at += struct.calcsize(form)
    return found


class _Stream(asyncio.Protocol):
    """Collects what comes."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.closed = False
        self._waiter: asyncio.Future[None] | None = None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._wake()

    def connection_lost(self, _error: Exception | None) -> None:
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def until(self, enough: Any) -> None:
        """Wait until `enough(received)`; OutcomeUnknown where the connection ends first."""
        while not enough(self.received):
            if self.closed:
                raise OutcomeUnknown("the connection ended")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter


class SimulatedClient:
    """One session. A failure of the connection is OutcomeUnknown, or NO_CONNECTION where nothing was sent."""

    def __init__(self, world: World, host: str, port: int, timeout_ms: float = 10_000) -> None:
        self._world = world
        self._address = (host, port)
        self._timeout_s = timeout_ms / 1000
        self._stream: _Stream | None = None
        self._session = 0
        self._statement = 0

    async def _connect(self) -> _Stream:
        host, port = self._address
        try:
            _, found = await self._world.network.connect(host, port, _Stream, self._timeout_s * 1000)
        except OSError as error:
            raise CallerError(Status.NO_CONNECTION, str(error)) from None
        if not isinstance(found, _Stream):
            raise TypeError(found)
        structs = client()
        request = structs.TSOpenSessionReq(client_protocol=2, zoneId="UTC", username="root", password="root")
        try:
            opened = await self._exchange(found, "openSession", request)
            if opened.status.code not in GOOD:
                raise CallerError(Status(opened.status.code), opened.status.message or "")
            self._session = opened.sessionId
            self._statement = await self._exchange(found, "requestStatementId", self._session)
            self._stream = found
        finally:
            if self._stream is not found:
                found.transport.close()
        return found

    async def call(self, method: str, **fields: Any) -> Any:
        """A call whose request struct has the session's fields and these; its answer, whatever it says."""
        try:
            async with asyncio.timeout(self._timeout_s):
                stream = self._stream
                if stream is None or stream.closed:
                    stream = await self._connect()
                return await self._exchange(stream, method, self._request(method, fields))
        except TimeoutError:
            self.drop()
            raise OutcomeUnknown(f"no answer to {method}") from None
        except OutcomeUnknown:
            self.drop()
            raise

    def _request(self, method: str, fields: dict[str, Any]) -> Any:
        spec = getattr(client().TSIService, f"{method}_args").thrift_spec
        kind = spec[1][2]
        return kind(sessionId=self._session, **fields)

    async def _exchange(self, stream: _Stream, method: str, request: Any) -> Any:
        service = client().TSIService
        arguments = getattr(service, f"{method}_args")(request)
        payload = BINARY.head(MessageKind.CALL, method, 1) + encode(BINARY, arguments)
        stream.received.clear()
        stream.transport.write(struct.pack(">I", len(payload)) + payload)
        await stream.until(lambda got: len(got) >= 4 and len(got) >= 4 + struct.unpack_from(">I", got)[0])
        frame = bytes(stream.received)
        message = BINARY.message(frame, 4)
        return decode(BINARY, getattr(service, f"{method}_result"), frame, message.body).success

    async def insert(self, device: str, measurement: str, time: int, value: float) -> None:
        """Insert one DOUBLE; raises what the server answered, OutcomeUnknown where it did not."""
        values = struct.pack(">bd", 4, value)
        status = await self.call(
            "insertRecord", deviceId=device, measurements=[measurement], values=values, timestamp=time
        )
        if status.code not in GOOD:
            raise CallerError(Status(status.code), status.message or "")

    async def query(self, statement: str) -> list[tuple[int, tuple[Value | None, ...]]]:
        """Rows of a query: time (0 where it has none) and values. Raises what the server answered, or OutcomeUnknown.

        A result beyond the first page is not fetched.
        """
        answer = await self.call(
            "executeQueryStatement", statement=statement, statementId=self._statement, fetchSize=PAGE_ROWS
        )
        if answer.status.code not in GOOD:
            raise CallerError(Status(answer.status.code), answer.status.message or "")
        block = answer.queryDataSet
        if block is None or not block.valueList:
            return []
        count = len(block.time) // 8
        times = struct.unpack(f">{count}q", block.time)
        columns = [
            _values(kind, values, bits, count)
            for kind, values, bits in zip(answer.dataTypeList, block.valueList, block.bitmapList, strict=True)
        ]
        return list(zip(times, zip(*columns, strict=True), strict=True))

    async def execute(self, statement: str) -> None:
        """A statement without rows; raises what the server answered, OutcomeUnknown where it did not."""
        outcome = await self.call(
            "executeUpdateStatement", statement=statement, statementId=self._statement, fetchSize=PAGE_ROWS
        )
        answer = outcome.status
        if answer.code not in GOOD:
            parts = [
                None if part.code in GOOD else CallerError(Status(part.code), part.message or "")
                for part in answer.subStatus or ()
            ]
            raise CallerError(Status(answer.code), answer.message or "", parts)

    async def points(self, series: str) -> dict[int, float]:
        """All points of a DOUBLE series."""
        device, _, measurement = series.rpartition(".")
        rows = await self.query(f"SELECT {measurement} FROM {device}")
        return {time: value for time, (value,) in rows if isinstance(value, float)}

    def drop(self) -> None:
        """Close the connection; the next call opens another."""
        if self._stream is not None and self._stream.transport is not None:
            self._stream.transport.close()
        self._stream = None


async def ask_admin(world: World, host: str, port: int, request: dict[str, Any]) -> dict[str, Any]:
    """The answer of a node's nodetool port; OutcomeUnknown, or CallerError where nobody listens."""
    try:
        _, stream = await world.network.connect(host, port, _Stream, 5_000)
    except OSError as error:
        raise CallerError(Status.NO_CONNECTION, str(error)) from None
    if not isinstance(stream, _Stream):
        raise TypeError(stream)
    stream.transport.write(json.dumps(request).encode() + b"\n")
    await stream.until(lambda got: got.endswith(b"\n"))
    return dict(json.loads(stream.received))
