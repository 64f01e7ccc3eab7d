"""The calling side between nodes: one connection a peer and purpose, calls pipelined on it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from iotdb_cluster.errors import CallerError, OutcomeUnknown, Status
from iotdb_cluster.limits import (
    CONNECT_TIMEOUT_MS,
    FRAME_BYTES_MAX,
    PEER_BACKOFF_MS_MAX,
    PEER_CALLS_MAX,
    PEER_CONNECT_MS_MAX,
    PEER_CONNECT_WAIT_MS,
    PEER_OUTPUT_BYTES_MAX,
    PEER_PING_MS,
    PEER_RECONNECT_WAIT_MS,
    PEER_SILENCE_MS_MAX,
)
from iotdb_cluster.rpc.frames import HEAD_BYTES, Frames, ReceiveBudget
from iotdb_cluster.rpc.idl import node
from iotdb_cluster.rpc.peer_messages import PeerIdentity, call_parts, hello_message, raft_parts, read_answer
from iotdb_cluster.rpc.wire import BINARY, Buffer, Malformed, guarded
from iotdb_cluster.world import World

__all__ = ["PeerClient", "PeerPool"]

_log = logging.getLogger(__name__)
Body: TypeAlias = bytes | bytearray | memoryview | Sequence[bytes | bytearray | memoryview]
_FIRST_BACKOFF_MS = 20.0


class _Outgoing(Frames):
    """The stream itself: answers are matched to calls by their number."""

    def __init__(self, name: str, budget: ReceiveBudget, on_end: Callable[[_Outgoing], None]) -> None:
        super().__init__(FRAME_BYTES_MAX, PEER_OUTPUT_BYTES_MAX, budget)
        self.name = name
        self.calls: dict[int, asyncio.Future[memoryview]] = {}
        self.written = False  # since the last look
        self._on_end = on_end
        self._seqid = 0

    def start(self, parts: Callable[[int], Sequence[bytes | bytearray | memoryview]]) -> asyncio.Future[memoryview]:
        """Send a call, written for the number it gets; its answer."""
        self._seqid = self._seqid % 0x7FFFFFFF + 1
        seqid = self._seqid
        future: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda _: self.calls.pop(seqid, None))
        self.calls[seqid] = future
        self.written = True
        self.send(*parts(seqid))
        return future

    def frame_received(self, frame: Buffer) -> None:
        try:
            message = guarded(lambda: BINARY.message(frame, HEAD_BYTES))
            future = self.calls.get(message.seqid)
            if future is None or future.done():
                return  # its caller has given up
            try:
                future.set_result(read_answer(frame, message))
            except CallerError as error:
                future.set_exception(error)
        except Malformed as error:
            self.end(str(error))

    def violated(self, reason: str) -> None:
        _log.warning("connection to peer %s is ended: %s", self.name, reason)

    def ended(self, error: Exception | None) -> None:
        for future in list(self.calls.values()):
            if not future.done():
                future.set_exception(
                    OutcomeUnknown(f"the connection to {self.name} broke before the answer came: {error or 'closed'}")
                )
        self._on_end(self)


class PeerClient:
    """The way to one peer, for one purpose. Connects when there is something to send, again and again.

    The host's name is resolved at each attempt. After a failed attempt further ones wait, 20 ms at first, up to
    `PEER_BACKOFF_MS_MAX`; meanwhile calls fail at once, so that their callers can try another node. A call waits for
    an attempt under way no longer than `PEER_CONNECT_WAIT_MS` from its beginning, and `PEER_RECONNECT_WAIT_MS` where
    the one before failed: a node that is cut off, and refuses nothing, must not eat the callers' time again and again.
    """

    def __init__(
        self,
        world: World,
        host: str,
        port: int,
        identity: PeerIdentity,
        connect_timeout_ms: float = CONNECT_TIMEOUT_MS,
        gone: Callable[[], None] = lambda: None,
    ) -> None:
        """`gone()` is called when a connection broke and the next one is refused: the peer's process has ended."""
        self.connect_timeout_ms = connect_timeout_ms
        self._gone = gone
        self._broke = False  # a connection stood, and no attempt since has ended
        self.host = host
        self.port = port
        self.name = f"{host}:{port} ({identity.purpose})"
        self._world = world
        self._identity = identity
        self._budget = ReceiveBudget()
        self._stream: _Outgoing | None = None
        self._connecting: asyncio.Task[_Outgoing] | None = None
        self._failure = ""
        self._retry_at_ms = 0.0
        self._backoff_ms = 0.0
        self._attempt_ms = 0.0  # when the attempt under way began
        self._watch: asyncio.TimerHandle | None = None
        self._ping: asyncio.Future[memoryview] | None = None
        self._ping_ms = 0.0
        self._progress = 0
        self._closed = False

    @property
    def connected(self) -> bool:
        return self._stream is not None

    @property
    def unused(self) -> bool:
        """Whether no call, and no attempt to connect, is under way."""
        return self._connecting is None and (self._stream is None or not self._stream.calls)

    def identify(self, identity: PeerIdentity) -> None:
        """What later connections say."""
        self._identity = identity

    def send(self, batch: bytes | bytearray | memoryview) -> bool:
        """Send a one-way batch, whole or not at all; False: it was dropped (no connection, or too much unsent)."""
        stream = self._stream
        if stream is None:
            self._connect_if_due()
            return False
        if stream.transport.get_write_buffer_size() > PEER_OUTPUT_BYTES_MAX:
            return False
        stream.written = True
        stream.send(*raft_parts(batch))
        return True

    async def call(self, method: str, body: Body, timeout_ms: float) -> memoryview:
        """The answer's body, a view that stays valid as long as it is kept.

        Raises what the peer answered; CallerError(NO_CONNECTION) where nothing was sent; CallerError(
        WRITE_PROCESS_REJECT) where too much waits already; OutcomeUnknown where the peer may have got the call.
        """
        bodies = (body,) if isinstance(body, bytes | bytearray | memoryview) else body
        sent = False
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                stream = self._stream or await self._connected()
                if len(stream.calls) >= PEER_CALLS_MAX:
                    raise CallerError(Status.WRITE_PROCESS_REJECT, f"{PEER_CALLS_MAX} calls to {self.name} wait")
                if stream.transport.get_write_buffer_size() > PEER_OUTPUT_BYTES_MAX:
                    raise CallerError(Status.WRITE_PROCESS_REJECT, f"{self.name} takes less than is sent to it")
                future = stream.start(lambda seqid: call_parts(method, bodies, seqid))
                sent = True
                return await future
        except TimeoutError:
            if sent:
                raise OutcomeUnknown(f"no answer of {self.name} to {method} within {timeout_ms:.0f} ms") from None
            raise CallerError(
                Status.NO_CONNECTION, f"no connection to {self.name} within {timeout_ms:.0f} ms"
            ) from None

    async def close(self) -> None:
        """End the connection; waiting calls fail with OutcomeUnknown."""
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._stream is not None:
            self._stream.transport.abort()
            self._stream.ended(None)

    # connecting

    def _connect_if_due(self) -> asyncio.Task[_Outgoing] | None:
        """The attempt under way, a new one, or None where it is too early for one."""
        if self._closed:
            return None
        now_ms = self._world.clock.monotonic_ms()
        if self._connecting is None and now_ms >= self._retry_at_ms:
            self._attempt_ms = now_ms
            self._connecting = asyncio.get_running_loop().create_task(self._connect(), name=f"connect {self.name}")
            self._connecting.add_done_callback(self._attempted)
        return self._connecting

    async def _connected(self) -> _Outgoing:
        attempt = self._connect_if_due()
        if attempt is None:
            reason = "the node is stopping" if self._closed else self._failure
            raise CallerError(Status.NO_CONNECTION, f"no connection to {self.name}: {reason}")
        patience_ms = PEER_RECONNECT_WAIT_MS if self._backoff_ms else PEER_CONNECT_WAIT_MS
        left_ms = self._attempt_ms + patience_ms - self._world.clock.monotonic_ms()
        await asyncio.wait([attempt], timeout=max(0.0, left_ms) / 1000)
        if not attempt.done():
            raise CallerError(Status.NO_CONNECTION, f"no connection to {self.name}: {self._failure or 'no answer yet'}")
        if attempt.cancelled() or attempt.exception() is not None or attempt.result().closed:
            raise CallerError(Status.NO_CONNECTION, f"no connection to {self.name}: {self._failure or 'it broke'}")
        return attempt.result()

    async def _connect(self) -> _Outgoing:
        stream = _Outgoing(self.name, self._budget, self._ended)
        await self._world.network.connect(
            self.host, self.port, lambda: stream, min(self.connect_timeout_ms, PEER_CONNECT_MS_MAX)
        )
        greeting = stream.start(lambda seqid: (hello_message(self._identity, seqid),))
        try:
            async with asyncio.timeout(PEER_SILENCE_MS_MAX / 1000):
                await greeting
        except BaseException:
            stream.transport.abort()
            raise
        if stream.closed:
            raise ConnectionError("it broke after the greeting")
        self._stream = stream
        return stream

    def _attempted(self, attempt: asyncio.Task[_Outgoing]) -> None:
        self._connecting = None
        error = None if attempt.cancelled() else attempt.exception()
        if error is None:
            self._backoff_ms = 0.0
            self._failure = ""
            self._broke = False
            if self._stream is not None:
                self._progress = 0
                self._look_later()
            return
        if isinstance(error, OSError | CallerError | TimeoutError):
            self._failure = str(error) or type(error).__name__
        else:
            self._failure = f"{type(error).__name__}: {error}"
            _log.error("unexpected failure while connecting to %s", self.name, exc_info=error)
        if self._broke and isinstance(error, ConnectionRefusedError):
            self._gone()
        self._broke = False
        self._backoff_ms = min(max(2 * self._backoff_ms, _FIRST_BACKOFF_MS), PEER_BACKOFF_MS_MAX)
        pause = self._backoff_ms * (0.5 + self._world.random.random() / 2)
        self._retry_at_ms = self._world.clock.monotonic_ms() + pause

    def _ended(self, stream: _Outgoing) -> None:
        if self._stream is stream:
            self._stream = None
            self._failure = "the connection broke"
            self._broke = True
            self._connect_if_due()  # whether anybody is there still
        if self._watch is not None and self._stream is None:
            self._watch.cancel()
            self._watch = None

    # whether the connection lives

    def _look_later(self) -> None:
        self._watch = asyncio.get_running_loop().call_later(PEER_PING_MS / 1000, self._look)

    def _look(self) -> None:
        """Ask the peer for a sign of life if something was written since; end a connection that gives none in time."""
        stream = self._stream
        if stream is None:
            return
        now = self._world.clock.monotonic_ms()
        unsent = stream.transport.get_write_buffer_size()
        progress = stream.received_bytes + (stream.sent_bytes - unsent if unsent else 0)
        if progress > self._progress:  # a long answer, or a queue that shrinks, stands before the sign of life
            self._ping_ms = now
        self._progress = progress
        if self._ping is not None and not self._ping.done():
            if now - self._ping_ms > PEER_SILENCE_MS_MAX:
                self._ping.cancel()
                stream.end(f"no sign of life for {now - self._ping_ms:.0f} ms")
                return
        elif stream.written:
            self._ping = stream.start(lambda seqid: (hello_message(self._identity, seqid),))
            self._ping.add_done_callback(_seen)
            self._ping_ms = now
            stream.written = False
        self._look_later()


def _seen(ping: asyncio.Future[memoryview]) -> None:
    """What a ping's answer is does not matter."""
    if not ping.cancelled():
        ping.exception()


class PeerPool:
    """The connections of a node to its peers: one for each (host, port, purpose)."""

    def __init__(
        self,
        world: World,
        identity: PeerIdentity,
        connect_timeout_ms: float = CONNECT_TIMEOUT_MS,
        gone: Callable[[str, int], None] = lambda *_: None,
    ) -> None:
        """`gone(host, port)`: see `PeerClient`."""
        self._connect_timeout_ms = connect_timeout_ms
        self._gone = gone
        node()  # its file is read now, not at the first connection
        self._world = world
        self._identity = identity
        self._peers: dict[tuple[str, int, str], PeerClient] = {}

    def connect_within(self, timeout_ms: float) -> None:
        """How long attempts to connect may take from now on."""
        self._connect_timeout_ms = timeout_ms
        for client in self._peers.values():
            client.connect_timeout_ms = timeout_ms

    def identify(self, identity: PeerIdentity) -> None:
        """Who this node is from now on (it got its identifier); a connection that stands keeps what it said."""
        self._identity = identity
        for (_, _, purpose), client in self._peers.items():
            client.identify(replace(identity, purpose=purpose))

    def peer(self, host: str, port: int, purpose: str) -> PeerClient:
        """The client for that peer, made when first asked for."""
        key = (host, port, purpose)
        found = self._peers.get(key)
        if found is None:
            identity = replace(self._identity, purpose=purpose)
            found = self._peers[key] = PeerClient(
                self._world, host, port, identity, self._connect_timeout_ms, partial(self._gone, host, port)
            )
        return found

    def unused(self) -> set[tuple[str, int]]:
        """Each (host, port) that was asked for, and where no call is under way."""
        used = {key[:2] for key, client in self._peers.items() if not client.unused}
        return {key[:2] for key in self._peers} - used

    async def forget(self, host: str, port: int) -> None:
        """Close the connections to a peer that left."""
        for client in [self._peers.pop(key) for key in list(self._peers) if key[:2] == (host, port)]:
            await client.close()

    async def close(self) -> None:
        while self._peers:
            _, client = self._peers.popitem()
            await client.close()
