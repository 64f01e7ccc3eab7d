"""The serving side of a port between nodes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias

from iotdb_cluster.errors import CallerError, InvariantViolation, Status
from iotdb_cluster.limits import FRAME_BYTES_MAX, MIB, PEER_CALLS_MAX, PEER_OUTPUT_BYTES_MAX
from iotdb_cluster.rpc.frames import HEAD_BYTES, Frames, ReceiveBudget
from iotdb_cluster.rpc.idl import node
from iotdb_cluster.rpc.peer_messages import (
    PeerIdentity,
    failure_body,
    read_call,
    read_hello,
    read_raft,
    success_parts,
)
from iotdb_cluster.rpc.wire import BINARY, Buffer, Malformed, Message, guarded
from iotdb_cluster.world import Server, World

__all__ = ["PeerAnswer", "PeerHandler", "PeerServer"]

_log = logging.getLogger(__name__)

PeerAnswer: TypeAlias = bytes | bytearray | memoryview | Sequence[bytes | bytearray | memoryview]
PeerHandler: TypeAlias = Callable[[PeerIdentity, memoryview], Awaitable[PeerAnswer]]
_FRAME_BYTES_BEFORE_HELLO_MAX = MIB // 16


class _PeerConnection(Frames):
    def __init__(self, server: PeerServer) -> None:
        super().__init__(_FRAME_BYTES_BEFORE_HELLO_MAX, PEER_OUTPUT_BYTES_MAX, server.budget)
        self._server = server
        self._identity: PeerIdentity | None = None
        self._calls: set[asyncio.Task[None]] = set()

    def opened(self) -> None:
        self._server.connections[self] = None

    def violated(self, reason: str) -> None:
        _log.warning("connection of peer %s is ended: %s", self._identity, reason)

    def ended(self, error: Exception | None) -> None:  # noqa: ARG002 - why it broke changes nothing
        self._server.connections.pop(self, None)  # calls go on to their end: their effects may be waited for elsewhere

    def frame_received(self, frame: Buffer) -> None:
        try:
            message = guarded(lambda: BINARY.message(frame, HEAD_BYTES))
            if self._identity is None:
                self._greet(message, frame)
            elif message.name == "raft":
                self._server.on_raft(self._identity, read_raft(frame, message.body))
            elif message.name == "call":
                self._start_call(self._identity, message, *read_call(frame, message.body))
            elif message.name == "hello":  # how a client asks whether the connection lives
                self.send(*success_parts(message, ()))
            else:
                raise Malformed(f"unknown method {message.name!r}")
        except Malformed as error:
            self.end(str(error))
        except Exception as error:
            self._server.unexpected(error, "taking a message of a peer")
            self.end(f"{type(error).__name__}: {error}")

    def _greet(self, message: Message, frame: Buffer) -> None:
        if message.name != "hello":
            raise Malformed(f"a connection begins with {message.name!r} instead of hello")
        try:
            identity = read_hello(frame, message.body)
            self._server.admit(identity)
        except CallerError as error:
            self.send(failure_body(message, error))
            return
        self._identity = identity
        self.frame_bytes_max = FRAME_BYTES_MAX
        self.send(*success_parts(message, ()))

    def _start_call(self, identity: PeerIdentity, message: Message, method: str, body: memoryview) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(identity, message, method, body))
        self._calls.add(task)
        self._server.calls.add(task)
        task.add_done_callback(self._finished)
        if len(self._calls) >= PEER_CALLS_MAX:
            self.pause()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        self._server.calls.discard(task)
        if len(self._calls) < PEER_CALLS_MAX:
            self.resume()

    async def _answer(self, identity: PeerIdentity, message: Message, method: str, body: memoryview) -> None:
        try:
            await self.drained()
            handler = self._server.methods.get(method)
            if handler is None:
                raise CallerError(Status.UNSUPPORTED_OPERATION, f"this node has no method {method!r} for its peers")
            answer = await handler(identity, body)
            if isinstance(answer, bytes | bytearray | memoryview):
                answer = (answer,)
            self.send(*success_parts(message, answer))
        except CallerError as error:
            self.send(failure_body(message, error))
        except Exception as error:
            text = self._server.unexpected(error, f"answering {method} of node {identity.node}")
            self.send(failure_body(message, CallerError(Status.INTERNAL_SERVER_ERROR, text)))


class PeerServer:
    """Serves peers on one port.

    `methods[name](identity, body)` answers a call; the body is a view that stays valid as long as it is kept, the
    answer is bytes or several pieces of them. `on_raft(identity, batch)` takes one-way batches in the order they were
    sent; it must not block. `admit(identity)` raises CallerError to refuse a peer: its connection then serves nothing.
    """

    def __init__(
        self,
        world: World,
        methods: Mapping[str, PeerHandler],
        on_raft: Callable[[PeerIdentity, memoryview], None],
        admit: Callable[[PeerIdentity], None],
        on_fault: Callable[[Exception], None],
    ) -> None:
        self.methods = methods
        self.on_raft = on_raft
        self.admit = admit
        self.budget = ReceiveBudget()
        self.connections: dict[_PeerConnection, None] = {}
        self.calls: set[asyncio.Task[None]] = set()
        self._world = world
        self._on_fault = on_fault
        self._server: Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port in fact bound. OSError where that is not possible."""
        node()  # its file is read now, not at the first greeting
        self._server = await self._world.network.listen(host, port, lambda: _PeerConnection(self))
        return self._server.port

    async def close(self) -> None:
        """Stop listening, end every connection, cancel what runs."""
        if self._server is not None:
            await self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.transport.abort()
        calls = list(self.calls)
        for task in calls:
            task.cancel()
        if calls:
            await asyncio.wait(calls)

    def unexpected(self, error: Exception, operation: str) -> str:
        """Log an exception that no caller is to blame for; the text of the answer."""
        _log.error("unexpected failure while %s", operation, exc_info=error)
        if isinstance(error, InvariantViolation):
            self._on_fault(error)
        return f"unexpected failure while {operation}: {type(error).__name__}: {error}"
