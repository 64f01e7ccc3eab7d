"""A node's port is its own, also when the system gave it to a connection while the node was down."""

from __future__ import annotations

import asyncio
import errno
import socket
from types import ModuleType

import pytest

from iotdb_cluster.world import real_world


async def test_a_port_that_a_connection_of_ours_was_given_can_be_listened_on() -> None:
    world = real_world(1)
    try:
        there = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
        target = there.sockets[0].getsockname()[1]
        stranger, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, "127.0.0.1", target)
        ours, _ = await world.network.connect("127.0.0.1", target, asyncio.Protocol, 1_000)
        with pytest.raises(OSError) as caught:
            await world.network.listen("", stranger.get_extra_info("sockname")[1], asyncio.Protocol)
        assert caught.value.errno == errno.EADDRINUSE
        server = await world.network.listen("", ours.get_extra_info("sockname")[1], asyncio.Protocol)
        await server.close()
        for transport in (stranger, ours):
            transport.abort()
        there.close()
    finally:
        world.workers.close()


def test_the_ports_of_a_test_cluster_are_given_to_no_connection_and_can_be_listened_on(processes: ModuleType) -> None:
    offset = processes.free_offset()
    for port in (40_010 + offset, 40_029 + offset, 31_999 + offset):
        with socket.socket() as connection, pytest.raises(OSError, match="in use"):
            connection.bind(("127.0.0.1", port))  # as the system does when it draws a port
        socket.create_server(("127.0.0.1", port)).close()
