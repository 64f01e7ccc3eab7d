"""Connections of a node to its peers: those that lead to no member any more are closed."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from iotdb_cluster.cluster.outbox import Channel
from iotdb_cluster.cluster.peers import SWEEP_MS, NodePeers
from iotdb_cluster.cluster.settings import NodeAddress
from iotdb_cluster.rpc.peer_messages import PeerIdentity
from iotdb_cluster.simulation import Simulation

SWEEP_S = SWEEP_MS / 1000


def address(number: int) -> NodeAddress:
    return NodeAddress(f"node{number}", 9003, 40010, 55560)


def test_connections_to_who_left_or_moved_are_closed_a_while_later() -> None:
    with Simulation(1) as simulation:
        world = simulation.world("client")
        members = {number: address(number) for number in (1, 2, 3)}
        peers = NodePeers(world, PeerIdentity(1, b"", ""), members.get, 1_000)

        def places() -> set[str]:
            return {f"{host}:{port}" for host, port, _ in peers._pool._peers}

        async def main() -> None:
            sweep = asyncio.create_task(peers.sweep_forever(members.values))
            for node in (2, 3):
                peers.send_raft(node, Channel.META, b"x")
                peers.send_raft(node, Channel.DATA_HEARTBEAT, b"x")
            await asyncio.sleep(3 * SWEEP_S)
            every = {"node2:9003", "node2:40011", "node3:9003", "node3:40011"}
            assert places() == every
            await asyncio.sleep(SWEEP_S / 2)
            del members[3]
            members[2] = replace(members[2], data_port=50010)
            assert not peers.send_raft(3, Channel.META, b"x")
            await asyncio.sleep(SWEEP_S)
            assert places() == every  # what was sent last may be on its way still
            await asyncio.sleep(SWEEP_S)
            assert places() == {"node2:9003"}
            assert set(peers._sent) == {("node2", 9003)}
            sweep.cancel()
            await peers.close()

        simulation.run(main(), 60 * SWEEP_MS)
