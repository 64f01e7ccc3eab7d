"""One end of a simulated connection."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

from iotdb_cluster.errors import check

if TYPE_CHECKING:
    from iotdb_cluster.simulation.network import SimulatedNetwork

__all__ = ["Direction", "SimulatedTransport"]

_HIGH_WATER = 64 * 1024


class Direction:
    """What is on its way from one end to the other: pieces with the time of their arrival; None is the end."""

    __slots__ = ("bytes_held", "last_arrival", "pieces", "stalled_since")

    def __init__(self) -> None:
        self.pieces: deque[tuple[float, bytes | None]] = deque()
        self.bytes_held = 0
        self.last_arrival = 0.0
        self.stalled_since: float | None = None


class SimulatedTransport(asyncio.Transport):
    """What the sender wrote counts as its buffer until the receiver's protocol has taken it."""

    def __init__(
        self,
        network: SimulatedNetwork,
        node: str,
        peer_node: str,
        context: Context,
        outgoing: Direction,
        incoming: Direction,
        here: tuple[str, int],
        there: tuple[str, int],
    ) -> None:
        super().__init__({"peername": there, "sockname": here})
        self._network = network
        self._loop = network.loop
        self.node = node
        self.peer_node = peer_node
        self.context = context
        self.peer: SimulatedTransport | None = None
        self.number = 0
        self.port = 0  # of the end that listened
        self.broken = False
        self._out = outgoing
        self._in = incoming
        self._protocol: asyncio.BaseProtocol | None = None
        self._low, self._high = _HIGH_WATER // 4, _HIGH_WATER
        self._paused_writing = False
        self._reading = True
        self._closing = False
        self._lost = False
        self._ended = False  # nothing more may be written
        self._delivery: asyncio.TimerHandle | None = None

    def begin(self, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """In the context of the node that it belongs to."""
        if self._lost:
            return
        self._protocol = factory()
        self._guard(self._protocol.connection_made, self)
        self._deliver_next()

    # --- asyncio's interface ------------------------------------------------------------------------------------------
    def get_protocol(self) -> asyncio.BaseProtocol:
        check(self._protocol is not None, "connection %d has no protocol yet", self.number)
        return self._protocol  # type: ignore[return-value]

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._deliver_next()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = _HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high}) must be >= low ({low}) must be >= 0")
        self._low, self._high = low, high
        self._consider_pause()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return self._out.bytes_held

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._ended:
            if not self._closing:
                raise RuntimeError("Cannot call write() after write_eof()")
            return
        if not len(data):
            return
        faults = self._network.faults
        rng = self._network.random
        arrival = self._loop.time() + self._network.delay_s(self.node, self.peer_node)
        if faults.stall_rate and rng.random() < faults.stall_rate:
            arrival += rng.uniform(*faults.stall_ms) / 1000
        if faults.break_rate and rng.random() < faults.break_rate:
            reset = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            for end in (self, self.peer):
                if end is not None:
                    self._loop.call_later(self._network.delay_s() * 10, end.break_now, reset, context=end.context)
        self._send(arrival, bytes(data))
        self._consider_pause()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        if not self._ended:
            self._ended = True
            self._send(self._loop.time() + self._network.delay_s(), None)

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self.write_eof()
        if not self._out.bytes_held:
            self._loop.call_soon(self._lose, None, context=self.context)

    def abort(self) -> None:
        self._abort(None)

    # --- from here to there -------------------------------------------------------------------------------------------
    def _send(self, arrival: float, data: bytes | None) -> None:
        out = self._out
        out.last_arrival = max(out.last_arrival, arrival)
        out.pieces.append((out.last_arrival, data))
        if data is not None:
            out.bytes_held += len(data)
        if self.peer is not None:
            self.peer._deliver_next()

    def _consider_pause(self) -> None:
        if self._protocol is None or self._lost:
            return
        if not self._paused_writing and self._out.bytes_held > self._high:
            self._paused_writing = True
            self._guard(self._protocol.pause_writing)
        elif self._paused_writing and self._out.bytes_held <= self._low:
            self._paused_writing = False
            self._guard(self._protocol.resume_writing)

    def _taken(self) -> None:
        """The other end has taken something of what was sent."""
        if self._lost:
            return
        self._consider_pause()
        if self._closing and not self._out.bytes_held:
            self._lose(None)

    # --- arriving here ------------------------------------------------------------------------------------------------
    def unblocked(self) -> None:
        """Some direction of the network is open again: what stalls here is sent once more."""
        if self._in.stalled_since is not None and self._delivery is not None:
            self._delivery.cancel()
            self._delivery = self._loop.call_later(self._network.delay_s(), self._deliver, context=self.context)

    def _deliver_next(self) -> None:
        """Make sure that the next piece is delivered when it arrives."""
        if (
            self._delivery is not None
            or self._lost
            or self._protocol is None
            or not self._in.pieces
            or not self._reading
        ):
            return
        arrival = max(self._in.pieces[0][0], self._loop.time())
        self._delivery = self._loop.call_at(arrival, self._deliver, context=self.context)

    def _deliver(self) -> None:
        self._delivery = None
        incoming = self._in
        if self._lost or not self._reading or not incoming.pieces:
            return
        if self._network.is_blocked(self.peer_node, self.node, self.port):
            self._stall()
            return
        incoming.stalled_since = None
        _, data = incoming.pieces.popleft()
        if data is None:
            self._end_of_stream()
            return
        rng = self._network.random
        if len(data) > 1 and rng.random() < self._network.faults.split_rate:
            cut = rng.randrange(1, len(data))
            incoming.pieces.appendleft((0.0, data[cut:]))
            data = data[:cut]
        incoming.bytes_held -= len(data)
        self._network.trace("network", self.number, self.node, len(data))
        if not self._closing:
            self._receive(data)
        peer = self.peer
        if peer is not None and (peer._paused_writing or peer._closing):
            self._loop.call_soon(peer._taken, context=peer.context)
        self._deliver_next()

    def _receive(self, data: bytes) -> None:
        protocol = self._protocol
        if isinstance(protocol, asyncio.BufferedProtocol):
            view = memoryview(data)
            while len(view) and not self._closing:
                buffer = memoryview(protocol.get_buffer(len(view)))
                length = min(len(buffer), len(view))
                buffer[:length] = view[:length]
                self._guard(protocol.buffer_updated, length)
                view = view[length:]
        elif isinstance(protocol, asyncio.Protocol):
            self._guard(protocol.data_received, data)

    def _stall(self) -> None:
        incoming = self._in
        now = self._loop.time()
        if incoming.stalled_since is None:
            incoming.stalled_since = now
        limit = self._network.faults.stalled_break_ms / 1000
        if now + 1e-6 >= incoming.stalled_since + limit:  # a timer may be early by the clock's resolution
            timed_out = TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            peer = self.peer
            self.break_now(timed_out)
            if peer is not None:
                self._loop.call_soon(peer.break_now, timed_out, context=peer.context)
            return
        self._delivery = self._loop.call_at(incoming.stalled_since + limit, self._deliver, context=self.context)

    def _end_of_stream(self) -> None:
        protocol = self._protocol
        stay = False
        if not self._closing and isinstance(protocol, asyncio.Protocol | asyncio.BufferedProtocol):
            stay = bool(self._guard(protocol.eof_received))
        if not stay:
            self.close()

    # --- the end ------------------------------------------------------------------------------------------------------
    def break_now(self, error: BaseException) -> None:
        """The connection breaks, as this end sees it."""
        if not self._lost:
            self.broken = True
            self._closing = self._ended = True
            self._lose(error)

    def vanish(self) -> None:
        """This end is gone without a word to its protocol: its node is dead."""
        self._lost = self._closing = self._ended = True
        if self._delivery is not None:
            self._delivery.cancel()
        self._network.forget(self)

    def _abort(self, error: BaseException | None) -> None:
        if self._lost:
            return
        self._closing = self._ended = True
        self._out.pieces.clear()
        self._out.bytes_held = 0
        self._loop.call_soon(self._lose, error, context=self.context)
        peer = self.peer
        if peer is not None:
            reset = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            self._loop.call_later(self._network.delay_s(), peer.break_now, reset, context=peer.context)

    def _lose(self, error: BaseException | None) -> None:
        if self._lost:
            return
        self._lost = True
        if self._delivery is not None:
            self._delivery.cancel()
        self._network.forget(self)
        self._network.trace("network", self.number, self.node, "lost", type(error).__name__)
        if self._protocol is not None:
            self._guard(self._protocol.connection_lost, error)

    def _guard(self, call: Callable[..., Any], *args: Any) -> Any:
        """A protocol's mistake ends its connection, and is told to the loop."""
        try:
            return call(*args)
        except Exception as exception:
            self._loop.call_exception_handler(
                {"message": f"{call!r} failed", "exception": exception, "transport": self, "protocol": self._protocol}
            )
            self._abort(exception)
            return None
