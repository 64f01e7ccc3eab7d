"""The client service: connections of stock clients, one call after another on each, answered by a `ClientHandler`."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from iotdb_cluster.errors import CallerError, InvariantViolation, Status
from iotdb_cluster.limits import (
    CALL_BYTES_MAX,
    CLIENT_OUTPUT_BYTES_MAX,
    CLIENT_STALL_MS_MAX,
    CONNECTIONS_MAX,
    DECODE_INLINE_BYTES_MAX,
    FRAME_BYTES_BEFORE_LOGIN_MAX,
    FRAME_BYTES_MAX,
    MIB,
    PIPELINED_CALLS_MAX,
)
from iotdb_cluster.rpc.calls import IGNORED, METHODS, NOT_SUPPORTED, Limits, Method, write
from iotdb_cluster.rpc.checker import decode
from iotdb_cluster.rpc.cursors import Login
from iotdb_cluster.rpc.frames import HEAD_BYTES, Frames, ReceiveBudget
from iotdb_cluster.rpc.handler import ClientHandler, InsertKind, Redirect
from iotdb_cluster.rpc.idl import client
from iotdb_cluster.rpc.inserts import HOT_CALLS, InsertDecoder
from iotdb_cluster.rpc.replies import (
    INTERNAL_ERROR,
    NOT_LOGGED_IN,
    PROTOCOL_ERROR,
    UNKNOWN_METHOD,
    exception_reply,
    is_wide,
    reply,
    status,
    status_of,
    status_reply,
)
from iotdb_cluster.rpc.wire import Buffer, Malformed, Message, MessageKind, Wire, guarded, wire_of
from iotdb_cluster.rpc.zones import canonical_zone, is_offset
from iotdb_cluster.world import Server, World

__all__ = ["ClientService"]

_log = logging.getLogger(__name__)
CANCEL_BYTES_MAX = 256  # a longer frame is no cancelOperation


class _Connection(Frames):
    """One client: frames queue here, a task answers them in order. It is the `Caller` that the methods see."""

    def __init__(self, service: ClientService) -> None:
        super().__init__(FRAME_BYTES_BEFORE_LOGIN_MAX, CLIENT_OUTPUT_BYTES_MAX, service.budget)
        self._service = service
        self.handler = service.handler
        self.workers = service.world.workers
        self.logins: dict[int, Login] = {}
        self.address = ""
        self._waiting: deque[Buffer] = deque()
        self._waiting_bytes = 0
        self._arrived: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._in_query = False
        self._query_id = 0  # that the call works on that is being answered, or 0

    # Caller

    @property
    def limits(self) -> Limits:
        return self._service.limits

    def now_ms(self) -> int:
        return self._service.world.clock.wall_ms()

    def next_session_id(self) -> int:
        return self._service.next_id("session")

    def next_statement_id(self) -> int:
        return self._service.next_id("statement")

    def next_query_id(self) -> int:
        self._query_id = self._service.next_query_id()
        return self._query_id

    def works_on(self, query_id: int) -> None:
        self._query_id = query_id

    async def canonical_zone(self, text: str) -> str:
        return await self._service.canonical_zone(text)

    # Frames

    def opened(self) -> None:
        peer = self.transport.get_extra_info("peername")
        self.address = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else str(peer or "")
        if not self._service.admit(self):
            self.end(f"{self.limits.connections_max} clients are connected")
            return
        self._task = asyncio.get_running_loop().create_task(self._answer_all(), name=f"client {self.address}")

    def violated(self, reason: str) -> None:
        _log.info("connection of client %s is ended: %s", self.address, reason)

    def frame_received(self, frame: Buffer) -> None:
        if self._query_id and len(frame) <= CANCEL_BYTES_MAX:
            self._cancel_by(frame)
        self._waiting.append(frame)
        self._waiting_bytes += len(frame)
        if len(self._waiting) >= PIPELINED_CALLS_MAX or self._waiting_bytes >= MIB:
            self.pause()
        self._wake()

    def ended(self, error: Exception | None) -> None:  # noqa: ARG002 - why it broke changes nothing
        self._waiting.clear()
        self._wake()
        if self._task is not None and self._in_query:
            self._task.cancel()  # nobody reads the answer; writes go on to their end
        elif self._query_id:
            self.handler.cancel(self._query_id)

    def _cancel_by(self, frame: Buffer) -> None:
        """A cancelOperation takes effect at once; its own answer comes in its turn, behind that of the query.

        A client that waits for a query's first rows does not know its number yet: 0 means the one that runs.
        """
        try:
            wire = wire_of(frame, HEAD_BYTES)
            message = guarded(lambda: wire.message(frame, HEAD_BYTES))
            if message.name != "cancelOperation":
                return
            asked = decode(wire, client().TSIService.cancelOperation_args, frame, message.body).req
        except Malformed:
            return  # it will be refused in its turn
        if asked.sessionId in self.logins and asked.queryId in (0, self._query_id):
            self.handler.cancel(self._query_id)

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    async def _answer_all(self) -> None:
        try:
            while not self.closed:
                if not self._waiting:
                    self._arrived = asyncio.get_running_loop().create_future()
                    await self._arrived
                    continue
                frame = self._waiting.popleft()
                self._waiting_bytes -= len(frame)
                if not self._waiting:
                    self.resume()
                answer = await self._service.answer(self, frame)
                del frame
                if answer is None:
                    break
                self.send(answer)
                if self.stalled:
                    await self._drain()
        except Malformed as error:
            self.end(str(error))
        except Exception as error:
            self._service.unexpected(error, "answering a client")
        finally:
            await self._service.gone(self)

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(CLIENT_STALL_MS_MAX / 1000):
                await self.drained()
        except TimeoutError:
            self.end(f"it took nothing for {CLIENT_STALL_MS_MAX} ms")

    async def run(self, method: Method, arguments: Any) -> Any:
        """A method; while it is a query, the end of the connection ends it."""
        self._in_query, self._query_id = method.is_query, 0
        try:
            return await method.run(self, arguments)
        finally:
            self._in_query, self._query_id = False, 0

    async def stop(self) -> None:
        """End the connection and wait for what it was doing to be cancelled."""
        if not self.closed:
            self.transport.abort()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


class ClientService:
    """Serves stock clients on one port.

    `on_fault` is called with an `InvariantViolation` that a call met: the node is to stop. The call itself, like one
    that met any other unexpected exception, is answered with code 500.
    """

    def __init__(
        self,
        world: World,
        handler: ClientHandler,
        on_fault: Callable[[Exception], None],
        connections_max: int = CONNECTIONS_MAX,
        frame_bytes_max: int = FRAME_BYTES_MAX,
        first_query_id: int = 0,
    ) -> None:
        self.limits = Limits(connections_max, frame_bytes_max)
        self._first_query_id = first_query_id
        self.world = world
        self.handler = handler
        self.budget = ReceiveBudget()
        self._on_fault = on_fault
        self._connections: dict[_Connection, None] = {}
        self._decoder = InsertDecoder()
        self._ids: dict[str, int] = {}
        self._zones: dict[str, str] = {}
        self._server: Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port in fact bound. OSError where that is not possible."""
        client()
        self._server = await self.world.network.listen(host, port, lambda: _Connection(self))
        return self._server.port

    async def close(self) -> None:
        """Stop listening, end every connection, cancel what runs, release every session."""
        if self._server is not None:
            await self._server.close()
            self._server = None
        for connection in list(self._connections):
            await connection.stop()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    # what a connection asks

    def admit(self, connection: _Connection) -> bool:
        if len(self._connections) >= self.limits.connections_max:
            return False
        self._connections[connection] = None
        return True

    async def gone(self, connection: _Connection) -> None:
        """Release what a connection held."""
        self._connections.pop(connection, None)
        if not connection.closed:
            connection.transport.close()
        for session_id in list(connection.logins):
            login = connection.logins.pop(session_id)
            try:
                await login.close()
                await self.handler.close_session(login.session)
            except Exception as error:
                self.unexpected(error, "releasing a session")

    def next_id(self, what: str) -> int:
        """Counts from 1, for each kind of number on its own."""
        self._ids[what] = self._ids.get(what, 0) + 1
        return self._ids[what]

    def next_query_id(self) -> int:
        """Unique in the cluster while the node runs."""
        return self._first_query_id + self.next_id("query")

    async def canonical_zone(self, text: str) -> str:
        if is_offset(text):
            return canonical_zone(text)
        known = self._zones.get(text)
        if known is None:  # a region's first use reads a file
            known = self._zones[text] = await self.world.workers.run(canonical_zone, text)
        return known

    async def answer(self, connection: _Connection, frame: Buffer) -> bytes | None:
        """The answer to a frame; Malformed where it is no message at all."""
        wire = wire_of(frame, HEAD_BYTES)
        message = guarded(lambda: wire.message(frame, HEAD_BYTES))
        if message.kind not in (MessageKind.CALL, MessageKind.ONEWAY):
            raise Malformed(f"message of kind {message.kind} from a client")
        try:
            if message.name in HOT_CALLS:
                return await self._insert(connection, wire, message, frame)
            method = METHODS.get(message.name)
            if method is not None:
                return await self._call(connection, method, wire, message, frame)
            if message.name in IGNORED:
                return status_reply(wire, message)
            if message.name in NOT_SUPPORTED:
                text = f"{message.name} is not supported: it came with release 0.13"
                failure = status(Status.UNSUPPORTED_OPERATION, text)
                return reply(wire, message, NOT_SUPPORTED[message.name](failure))
            return exception_reply(wire, message, UNKNOWN_METHOD, f"Invalid method name: '{message.name}'")
        except Malformed as error:
            return exception_reply(wire, message, PROTOCOL_ERROR, f"{message.name}: {error}")

    async def _decode(self, frame: Buffer, read: Callable[[], Any]) -> Any:
        if len(frame) > DECODE_INLINE_BYTES_MAX:
            return await self.world.workers.run(read)
        return read()

    async def _call(
        self, connection: _Connection, method: Method, wire: Wire, message: Message, frame: Buffer
    ) -> bytes:
        if len(frame) > CALL_BYTES_MAX:
            raise Malformed(f"a call that is no insert of {len(frame)} bytes, at most {CALL_BYTES_MAX} are taken")
        declared = getattr(client().TSIService, message.name + "_args")
        arguments = await self._decode(frame, lambda: decode(wire, declared, frame, message.body))
        request = getattr(arguments, "req", arguments)
        try:
            answer = await connection.run(method, request)
            if answer is None or isinstance(answer, Redirect):  # an insert of texts that succeeded
                return status_reply(wire, message, answer)
        except CallerError as error:
            answer = method.failed(status_of(error))
        except Exception as error:
            operation = method.operation.format(getattr(request, "statement", ""))
            text = self.unexpected(error, operation)
            if message.name in ("getProperties", "requestStatementId"):
                return exception_reply(wire, message, INTERNAL_ERROR, text)
            answer = method.failed(status(Status.INTERNAL_SERVER_ERROR, text))
        if message.name == "openSession" and connection.logins:
            connection.frame_bytes_max = self.limits.frame_bytes_max
        if is_wide(answer):
            return await self.world.workers.run(reply, wire, message, answer)
        return reply(wire, message, answer)

    async def _insert(self, connection: _Connection, wire: Wire, message: Message, frame: Buffer) -> bytes:
        if not connection.logins:  # before anything is decoded, and remembered, for nobody
            return reply(wire, message, status(Status.NOT_LOGIN, NOT_LOGGED_IN))
        insert = await self._decode(frame, lambda: self._decoder.decode(wire, message.name, frame, message.body))
        try:
            answer = await write(connection, insert)
        except CallerError as error:
            answer = status_of(error)
        except Exception as error:
            operation = _OPERATIONS[insert.kind]
            answer = status(Status.INTERNAL_SERVER_ERROR, self.unexpected(error, operation))
        if answer is None or isinstance(answer, Redirect):
            with_part = insert.kind is InsertKind.RECORDS_OF_ONE_DEVICE
            return status_reply(wire, message, answer, with_part=with_part)
        return reply(wire, message, answer)

    def unexpected(self, error: Exception, operation: str) -> str:
        """Log an exception that no caller is to blame for; the text of the answer."""
        _log.error("unexpected failure while %s", operation, exc_info=error)
        if isinstance(error, InvariantViolation):
            self._on_fault(error)
        return f"[INTERNAL_SERVER_ERROR] Exception occurred while {operation}. {type(error).__name__}: {error}"


_OPERATIONS = {
    InsertKind.RECORD: "inserting a record",
    InsertKind.RECORDS: "inserting records",
    InsertKind.RECORDS_OF_ONE_DEVICE: "inserting records of one device",
    InsertKind.TABLET: "inserting tablet",
    InsertKind.TABLETS: "inserting tablets",
}
