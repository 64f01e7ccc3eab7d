"""Stream connections in memory: ordered within a connection, delayed, stalled, cut.

Like TCP: what is lost on the way is a stall (it is sent again) or a broken connection, never a hole in the stream. Two
connections are independent of each other, so that what travels on one may overtake what travels on another. A blocked
direction stalls what is sent that way and lets no new connection through; one that has stalled for long breaks.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Callable, Iterable
from contextvars import Context, copy_context
from dataclasses import dataclass
from itertools import count
from typing import Any

from iotdb_cluster.errors import check
from iotdb_cluster.simulation.loop import VirtualLoop
from iotdb_cluster.simulation.transport import Direction, SimulatedTransport

__all__ = ["NetworkFaults", "NodeNetwork", "SimulatedNetwork"]

_WILDCARDS = ("", "0.0.0.0", "::")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(slots=True)
class NetworkFaults:
    """Rates are chances a piece of data; durations are virtual milliseconds, drawn evenly from (low, high)."""

    delay_ms: tuple[float, float] = (0.1, 2.0)
    stall_rate: float = 0.0  # a lost packet that is sent again
    stall_ms: tuple[float, float] = (200.0, 1000.0)
    break_rate: float = 0.0  # both ends learn of it, at different times
    split_rate: float = 0.1  # arrives in two parts
    stalled_break_ms: float = 30_000.0  # a connection that could not deliver for so long breaks


@dataclass(slots=True)
class _Listener:
    node: str
    host: str
    port: int
    factory: Callable[[], asyncio.BaseProtocol]
    context: Context
    network: SimulatedNetwork

    async def close(self) -> None:
        self.network.remove(self)

    def hears(self, host: str, port: int) -> bool:
        if port != self.port:
            return False
        if host in (self.node, self.host):
            return True
        return host in _LOOPBACK and (self.host in _WILDCARDS or self.host in _LOOPBACK)


class SimulatedNetwork:
    """The network between all nodes. A node is reached at its name, at the host it listens on, and at loopback."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, trace: Callable[..., None]) -> None:
        self.loop = loop
        self.random = rng
        self.trace = trace
        self.faults = NetworkFaults()
        self._listeners: list[_Listener] = []
        self._blocked: dict[tuple[str, str], dict[frozenset[int], int]] = {}  # which ports, how often; empty: all
        self._slow: dict[tuple[str, str], tuple[float, float]] = {}
        self._transports: dict[SimulatedTransport, None] = {}  # open ends, in the order of their making
        self._ports = count(50_000)
        self._connections = 0

    def of(self, node: str) -> NodeNetwork:
        return NodeNetwork(self, node)

    # --- faults -------------------------------------------------------------------------------------------------------
    def block(self, source: str, target: str, ports: Iterable[int] = ()) -> None:
        """Nothing gets from `source` to `target` any more; the other way stays open.

        With `ports` that holds for connections to these ports only, whichever end made them. Blocks are counted.
        """
        self.trace("network", "block", source, target, *ports)
        which = frozenset(ports)
        blocks = self._blocked.setdefault((source, target), {})
        blocks[which] = blocks.get(which, 0) + 1

    def unblock(self, source: str, target: str, ports: Iterable[int] = ()) -> None:
        """Take one such block back; nothing happens where there is none."""
        self.trace("network", "unblock", source, target, *ports)
        which = frozenset(ports)
        blocks = self._blocked.get((source, target), {})
        left = blocks.pop(which, 0) - 1
        if left > 0:
            blocks[which] = left
        self._wake()

    def partition(self, *groups: Iterable[str]) -> None:
        """Block both ways between nodes of different groups."""
        sides = [list(group) for group in groups]
        for mine in sides:
            for other in sides:
                if mine is not other:
                    for source in mine:
                        for target in other:
                            self.block(source, target)

    def heal(self) -> None:
        """Block nothing any more, and slow nothing down."""
        self.trace("network", "heal")
        self._blocked.clear()
        self._slow.clear()
        self._wake()

    def is_blocked(self, source: str, target: str, port: int) -> bool:
        blocks = self._blocked.get((source, target))
        return blocks is not None and any(not ports or port in ports for ports in blocks)

    def slow_link(self, source: str, target: str, delay_ms: tuple[float, float] | None) -> None:
        """What goes from `source` to `target` takes so much longer; None: no longer."""
        self.trace("network", "slow link", source, target, delay_ms)
        if delay_ms is None:
            self._slow.pop((source, target), None)
        else:
            self._slow[source, target] = delay_ms

    def drop_connections(self, node: str) -> None:
        """Break every connection of a node; both ends learn of it, each as part of its own node."""
        self.trace("network", "drop", node)
        for transport in list(self._transports):
            if transport.node == node or transport.peer_node == node:
                reset = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                self.loop.call_soon(transport.break_now, reset, context=transport.context)

    def kill(self, node: str) -> None:
        """The node is dead: its ends are gone without a word, the others learn of it soon or late."""
        self.trace("network", "kill", node)
        self._listeners = [listener for listener in self._listeners if listener.node != node]
        late_ms = self.random.choice((5.0, 3_000.0))
        for transport in list(self._transports):
            if transport.node == node:
                transport.vanish()
            elif transport.peer_node == node:
                delay = self.random.uniform(0.0, late_ms) / 1000
                reset = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                self.loop.call_later(delay, transport.break_now, reset, context=transport.context)

    def _wake(self) -> None:
        for transport in list(self._transports):
            transport.unblocked()

    # --- connections --------------------------------------------------------------------------------------------------
    def remove(self, listener: _Listener) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)

    def forget(self, transport: SimulatedTransport) -> None:
        self._transports.pop(transport, None)

    def ends_of(self, node: str) -> int:
        """Ends of connections that a node has open."""
        return sum(transport.node == node for transport in self._transports)

    @property
    def open_ends(self) -> int:
        """Ends of connections that are not closed."""
        return len(self._transports)

    def listen(self, node: str, host: str, port: int, factory: Callable[[], asyncio.BaseProtocol]) -> _Listener:
        if port == 0:
            port = next(self._ports)
        for other in self._listeners:
            if other.port == port and (other.node == node or (host == other.host and host not in _WILDCARDS)):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), f"{host}:{port}")
        listener = _Listener(node, host, port, factory, copy_context(), self)
        self._listeners.append(listener)
        self.trace("network", "listen", node, host, port)
        return listener

    def delay_s(self, source: str = "", target: str = "") -> float:
        low, high = self.faults.delay_ms
        delay = low + (high - low) * self.random.random()
        if self._slow and (more := self._slow.get((source, target))) is not None:
            delay += self.random.uniform(*more)
        return delay / 1000

    async def connect(
        self, node: str, host: str, port: int, factory: Callable[[], asyncio.BaseProtocol], timeout_ms: float
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        deadline = self.loop.time() + timeout_ms / 1000
        await asyncio.sleep(self.delay_s())
        while True:
            listener = self._listener(node, host, port)
            if listener is None or not (
                self.is_blocked(node, listener.node, port) or self.is_blocked(listener.node, node, port)
            ):
                break
            left = deadline - self.loop.time()
            if left <= 0:
                self.trace("network", "connect", node, host, port, "times out")
                raise OSError(errno.ETIMEDOUT, f"no answer from {host}:{port} within {timeout_ms:.0f} ms")
            await asyncio.sleep(min(left, 0.2))
        if listener is None:
            self.trace("network", "connect", node, host, port, "refused")
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED), f"{host}:{port}")
        mine = self._join(node, host, port, factory, listener)
        await asyncio.sleep(self.delay_s())
        if mine.is_closing() and mine.broken:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return mine, mine.get_protocol()

    def _listener(self, node: str, host: str, port: int) -> _Listener | None:
        found = [listener for listener in self._listeners if listener.hears(host, port)]
        # Several nodes may listen on one port of loopback addresses: a node then means itself.
        found.sort(key=lambda listener: listener.node != node)
        return found[0] if found else None

    def _join(
        self, node: str, host: str, port: int, factory: Callable[[], asyncio.BaseProtocol], listener: _Listener
    ) -> SimulatedTransport:
        self._connections += 1
        here, there = (node, next(self._ports)), (host, port)
        forth, back = Direction(), Direction()
        mine = SimulatedTransport(self, node, listener.node, copy_context(), forth, back, here, there)
        theirs = SimulatedTransport(self, listener.node, node, listener.context.copy(), back, forth, there, here)
        mine.number = theirs.number = self._connections
        mine.port = theirs.port = port
        mine.peer, theirs.peer = theirs, mine
        self._transports[mine] = None
        self._transports[theirs] = None
        self.trace("network", "connected", node, listener.node, port)
        mine.begin(factory)
        self.loop.call_soon(theirs.begin, listener.factory, context=theirs.context)
        return mine


class NodeNetwork:
    """The network as one node sees it; implements `world.Network`."""

    def __init__(self, network: SimulatedNetwork, node: str) -> None:
        self._network = network
        self._node = node

    async def listen(self, host: str, port: int, factory: Callable[[], asyncio.BaseProtocol]) -> Any:
        return self._network.listen(self._node, host, port, factory)

    async def connect(
        self, host: str, port: int, factory: Callable[[], asyncio.BaseProtocol], timeout_ms: float
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        check(timeout_ms >= 0, "a time-out of %s ms", timeout_ms)
        return await self._network.connect(self._node, host, port, factory, timeout_ms)
