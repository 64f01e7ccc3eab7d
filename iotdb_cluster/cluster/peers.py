"""The connections to other nodes, each kind of traffic on its own, and the four ports that serve them."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Iterable

from iotdb_cluster.cluster.calls import Deadline, Handler
from iotdb_cluster.cluster.failures import answer_bytes, failure_bytes, read_answer
from iotdb_cluster.cluster.outbox import Channel
from iotdb_cluster.cluster.settings import NodeAddress
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.rpc.peer_client import PeerClient, PeerPool
from iotdb_cluster.rpc.peer_messages import PeerIdentity
from iotdb_cluster.rpc.peer_server import PeerHandler, PeerServer
from iotdb_cluster.world import World

__all__ = ["NodePeers", "PeerPorts"]

logger = logging.getLogger(__name__)
SWEEP_MS = 60_000  # connections that lead to no member are looked for so often
_TIMEOUT = struct.Struct(">I")  # in front of each call's body: how long the caller waits, in ms
_PORTS: dict[Channel, Callable[[NodeAddress], int]] = {
    Channel.META: lambda address: address.meta_port,
    Channel.META_HEARTBEAT: lambda address: address.meta_port + 1,
    Channel.DATA: lambda address: address.data_port,
    Channel.DATA_HEARTBEAT: lambda address: address.data_port + 1,
    Channel.SNAPSHOT: lambda address: address.data_port,
}
_SERVED = (Channel.META, Channel.META_HEARTBEAT, Channel.DATA, Channel.DATA_HEARTBEAT)


class NodePeers:
    """Sends to nodes by their identifier; addresses come from meta, before that from the seed list."""

    def __init__(
        self,
        world: World,
        identity: PeerIdentity,
        address_of: Callable[[int], NodeAddress | None],
        connect_timeout_ms: float,
    ) -> None:
        self._pool = PeerPool(world, identity, connect_timeout_ms, self._port_gone)
        self._address_of = address_of
        self._sent: dict[tuple[str, int], int] = {}  # who was last sent Raft batches at an address
        self.gone: Callable[[int], None] = lambda _: None  # is called with a node whose process has ended

    def _port_gone(self, host: str, port: int) -> None:
        node = self._sent.pop((host, port), 0)
        if node:
            self.gone(node)

    def identify(self, identity: PeerIdentity) -> None:
        self._pool.identify(identity)

    def connect_within(self, timeout_ms: float) -> None:
        """How long attempts to connect may take from now on."""
        self._pool.connect_within(timeout_ms)

    def _peer(self, address: NodeAddress, channel: Channel) -> PeerClient:
        return self._pool.peer(address.host, _PORTS[channel](address), channel.value)

    def send_raft(self, node: int, channel: Channel, batch: bytes) -> bool:
        """Send a batch; False: it was dropped, which Raft makes good."""
        address = self._address_of(node)
        if address is None:
            return False
        self._sent[address.host, _PORTS[channel](address)] = node
        return self._peer(address, channel).send(batch)

    async def call(self, node: int, channel: Channel, method: str, body: bytes, timeout_ms: float) -> memoryview:
        """As `calls.Peers`."""
        address = self._address_of(node)
        if address is None:
            raise CallerError(Status.NO_CONNECTION, f"the address of node {node} is not known yet")
        return await _call(self._peer(address, channel), method, body, timeout_ms)

    async def call_stranger(self, address: NodeAddress, method: str, body: bytes, timeout_ms: float) -> memoryview:
        """A call to whoever has that meta port, before this node knows who it is itself.

        It has a connection of its own: one keeps the identity that it was opened with.
        """
        return await _call(self._pool.peer(address.host, address.meta_port, "first start"), method, body, timeout_ms)

    async def sweep_forever(self, members: Callable[[], Iterable[NodeAddress]]) -> None:
        """Close, until cancelled, what led to no member at two looks: to who left, moved, or was a stranger.

        Not sooner: what was sent last, that a node is no member any more among it, may be on its way.
        """
        strange: set[tuple[str, int]] = set()
        while True:
            await asyncio.sleep(SWEEP_MS / 1000)
            known = {(address.host, port(address)) for address in members() for port in _PORTS.values()}
            before, strange = strange, self._pool.unused() - known
            for place in sorted(strange & before):
                self._sent.pop(place, None)
                await self._pool.forget(*place)

    async def close(self) -> None:
        await self._pool.close()


async def _call(peer: PeerClient, method: str, body: bytes, timeout_ms: float) -> memoryview:
    head = _TIMEOUT.pack(min(max(1, int(timeout_ms)), 0xFFFFFFFF))
    return read_answer(await peer.call(method, [head, body], max(1.0, timeout_ms)))


class PeerPorts:
    """The four listening ports; every handler is served on the meta and data ports, Raft batches on all."""

    def __init__(
        self,
        world: World,
        handlers: dict[str, Handler],
        on_raft: Callable[[PeerIdentity, memoryview], None],
        admit: Callable[[PeerIdentity], None],
        fault: Callable[[BaseException], None],
    ) -> None:
        self._world = world
        methods: dict[str, PeerHandler] = {name: self._served(name, handlers) for name in handlers}
        self._servers = {
            channel: PeerServer(world, methods if "heartbeat" not in channel.value else {}, on_raft, admit, fault)
            for channel in _SERVED
        }

    def _served(self, name: str, handlers: dict[str, Handler]) -> PeerHandler:
        async def serve(_: PeerIdentity, body: memoryview) -> bytes:
            (timeout_ms,) = _TIMEOUT.unpack_from(body)
            try:
                answer = await handlers[name](body[_TIMEOUT.size :], Deadline(self._world, timeout_ms))
                return answer_bytes(answer)
            except CallerError as error:
                return failure_bytes(error)

        return serve

    async def start(self, host: str, address: NodeAddress) -> None:
        """Listen on all four ports; OSError naming the one that is taken."""
        for channel, server in self._servers.items():
            await server.start(host, _PORTS[channel](address))

    async def close(self) -> None:
        for server in self._servers.values():
            await server.close()
