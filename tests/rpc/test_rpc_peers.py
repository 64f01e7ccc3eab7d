"""Calls and one-way batches between nodes, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.errors import (
    CallerError,
    InvariantViolation,
    Moved,
    NotLeader,
    OutcomeUnknown,
    StaleSchema,
    Status,
)
from iotdb_cluster.rpc import PeerClient, PeerIdentity, PeerPool, PeerServer
from iotdb_cluster.rpc import peer_messages as messages
from iotdb_cluster.rpc.idl import node
from iotdb_cluster.rpc.wire import BINARY, Malformed
from iotdb_cluster.world import World
from tests.cluster.shell import run_virtual, world_of

# ruff: noqa: ARG002

ME = PeerIdentity(3, b"\x01\xff", "data", "cluster", 9)


class Node:
    """A server whose methods do what the tests ask for."""

    def __init__(self, world: World) -> None:
        self.batches: list[tuple[PeerIdentity, bytes]] = []
        self.faults: list[Exception] = []
        self.refuse: CallerError | None = None
        self.fail: Exception | None = None
        self.running = 0
        self.gate = asyncio.Event()
        methods: dict[str, Any] = {"echo": self.echo, "wait": self.wait, "fail": self.raise_it, "who": self.who}
        self.server = PeerServer(world, methods, self.take, self.admit, self.faults.append)

    def admit(self, identity: PeerIdentity) -> None:
        if self.refuse is not None:
            raise self.refuse

    def take(self, identity: PeerIdentity, batch: memoryview) -> None:
        self.batches.append((identity, bytes(batch)))

    async def echo(self, identity: PeerIdentity, body: memoryview) -> list[bytes | memoryview]:
        return [b"<", body, b">"]

    async def who(self, identity: PeerIdentity, body: memoryview) -> bytes:
        return repr(identity).encode()

    async def wait(self, identity: PeerIdentity, body: memoryview) -> memoryview:
        self.running += 1
        await self.gate.wait()
        return body

    async def raise_it(self, identity: PeerIdentity, body: memoryview) -> bytes:
        assert self.fail is not None
        raise self.fail


@pytest_asyncio.fixture
async def peer(world: World) -> AsyncIterator[tuple[Node, PeerClient]]:
    there = Node(world)
    port = await there.server.start("127.0.0.1", 0)
    pool = PeerPool(world, ME)
    yield there, pool.peer("127.0.0.1", port, "data")
    await pool.close()
    await there.server.close()
    world.workers.close()


Pair = tuple[Node, PeerClient]


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nothing else tells
            await asyncio.sleep(0.002)


async def test_calls_are_answered_in_any_order(peer: Pair) -> None:
    there, client = peer
    assert bytes(await client.call("echo", b"hello", 5000)) == b"<hello>"
    assert bytes(await client.call("echo", [b"he", b"", b"llo"], 5000)) == b"<hello>"
    assert bytes(await client.call("who", b"", 5000)) == repr(ME).encode()
    slow = asyncio.create_task(client.call("wait", b"slow", 5000))
    await until(lambda: there.running == 1)
    many = await asyncio.gather(*(client.call("echo", str(i).encode(), 5000) for i in range(200)))
    assert [bytes(answer) for answer in many] == [f"<{i}>".encode() for i in range(200)]
    assert not slow.done()
    there.gate.set()
    assert bytes(await slow) == b"slow"


async def test_large_bodies(peer: Pair) -> None:
    _, client = peer
    body = bytes(range(256)) * 40_000
    assert await client.call("echo", body, 10_000) == b"<" + body + b">"


async def test_batches_keep_their_order(peer: Pair) -> None:
    there, client = peer
    assert not client.send(b"dropped: there is no connection yet")
    await until(lambda: client.connected)
    for i in range(500):
        assert client.send(b"%d" % i)
    await until(lambda: len(there.batches) == 500)
    assert there.batches == [(ME, b"%d" % i) for i in range(500)]


@pytest.mark.parametrize(
    "error",
    [
        CallerError(Status.METADATA_ERROR, "wrong ä"),
        NotLeader(7, "ask 7"),
        Moved("gone"),
        StaleSchema("old"),
        OutcomeUnknown("maybe"),
        CallerError(Status.MULTIPLE_ERROR, "", [None, Moved("gone"), None, NotLeader(2, "x")]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_failures_arrive_as_what_they_are(peer: Pair, error: CallerError) -> None:
    there, client = peer
    there.fail = error
    with pytest.raises(CallerError) as caught:
        await client.call("fail", b"", 5000)
    found = caught.value
    assert type(found) is type(error)
    assert (found.code, found.message) == (error.code, error.message)
    assert [repr(part) for part in found.parts] == [repr(part) for part in error.parts]
    if isinstance(error, NotLeader):
        assert isinstance(found, NotLeader)
        assert found.leader == 7


async def test_our_bugs_there(peer: Pair, caplog: pytest.LogCaptureFixture) -> None:
    there, client = peer
    with caplog.at_level(logging.ERROR):
        there.fail = InvariantViolation("1 is 2")
        with pytest.raises(CallerError, match="1 is 2"):
            await client.call("fail", b"", 5000)
        assert there.faults == [there.fail]
        there.fail = KeyError("x")
        with pytest.raises(CallerError, match="KeyError"):
            await client.call("fail", b"", 5000)
    assert len(there.faults) == 1
    with pytest.raises(CallerError, match="no method 'dance'"):
        await client.call("dance", b"", 5000)


async def test_deadlines(peer: Pair) -> None:
    there, client = peer
    await client.call("echo", b"", 5000)  # connected: what the deadline meets is the wait alone
    with pytest.raises(OutcomeUnknown, match="within 30 ms"):
        await client.call("wait", b"", 30)
    there.gate.set()
    assert bytes(await client.call("echo", b"x", 5000)) == b"<x>"  # the late answer is nobody's


async def test_nobody_there(peer: Pair) -> None:
    there, client = peer
    await there.server.close()
    for _ in range(2):  # tried, then too early to try again
        with pytest.raises(CallerError) as caught:
            await client.call("echo", b"", 5000)
        assert caught.value.code is Status.NO_CONNECTION
        assert not isinstance(caught.value, OutcomeUnknown)


async def test_names_that_do_not_resolve(world: World) -> None:
    client = PeerClient(world, "no-such-host.invalid", 1, ME)
    with pytest.raises(CallerError) as caught:
        await client.call("echo", b"", 5000)
    assert caught.value.code is Status.NO_CONNECTION
    await client.close()
    with pytest.raises(CallerError, match="stopping"):
        await client.call("echo", b"", 5000)
    world.workers.close()


async def test_connecting_again(peer: Pair) -> None:
    there, client = peer
    running = asyncio.create_task(client.call("wait", b"", 5000))
    await until(lambda: there.running == 1)
    for connection in list(there.server.connections):
        connection.transport.abort()
    with pytest.raises(OutcomeUnknown, match="broke"):
        await running
    assert not client.connected
    assert bytes(await client.call("echo", b"again", 5000)) == b"<again>"


async def test_whose_process_has_ended_is_told(world: World) -> None:
    """Once, where a connection stood and the next is refused: not of who was never there, nor of one that is back."""
    there, gone = Node(world), []
    port = await there.server.start("127.0.0.1", 0)
    pool = PeerPool(world, ME, gone=lambda *address: gone.append(address))
    client = pool.peer("127.0.0.1", port, "data")
    await client.call("echo", b"", 5000)
    before = list(there.server.connections)
    for connection in before:
        connection.transport.abort()
    # By itself: it looks whether the peer is there still.
    await until(lambda: client.connected and any(one not in before for one in there.server.connections))
    assert not gone
    await there.server.close()
    await until(lambda: gone)
    for _ in range(3):
        with pytest.raises(CallerError):
            await client.call("echo", b"", 5000)
        await asyncio.sleep(0.03)
    assert gone == [("127.0.0.1", port)]
    await pool.close()
    world.workers.close()


class Nowhere:
    """A network that neither answers nor refuses: what is sent to a node that is cut off."""

    def __init__(self) -> None:
        self.attempts_ms: list[float] = []

    async def listen(self, host: str, port: int, factory: Any) -> Any:
        raise NotImplementedError

    async def connect(self, host: str, port: int, factory: Any, timeout_ms: float) -> Any:
        self.attempts_ms.append(timeout_ms)
        await asyncio.sleep(timeout_ms / 1000)
        raise OSError(errno.ETIMEDOUT, "no answer")


def test_a_node_that_cannot_be_reached_costs_little_time_again_and_again() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        network = Nowhere()
        client = PeerClient(replace(world_of(1), network=network), "far", 1, ME)  # type: ignore[arg-type]

        async def waited_s() -> float:
            began = loop.time()
            with pytest.raises(CallerError) as caught:
                await client.call("echo", b"", 20_000)
            assert caught.value.code == Status.NO_CONNECTION
            return loop.time() - began

        assert await waited_s() <= 1.01
        assert await waited_s() <= 0.01  # the same attempt goes on
        await asyncio.sleep(2)
        for _ in range(20):
            assert await waited_s() <= 0.06
            await asyncio.sleep(0.3)
        assert max(network.attempts_ms) <= 2_000
        assert len(network.attempts_ms) >= 3
        await client.close()

    run_virtual(main)


async def test_being_refused(peer: Pair) -> None:
    there, client = peer
    there.refuse = CallerError(Status.ILLEGAL_PARAMETER, "another cluster")
    with pytest.raises(CallerError, match="another cluster") as caught:
        await client.call("echo", b"", 5000)
    assert caught.value.code is Status.NO_CONNECTION
    there.refuse = None
    await asyncio.sleep(0.05)
    assert bytes(await client.call("echo", b"", 5000)) == b"<>"


async def test_another_version(peer: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    _, client = peer
    theirs = messages.hello_message(ME, 1).replace(struct.pack(">bhi", 8, 1, 1), struct.pack(">bhi", 8, 1, 2))
    with pytest.raises(CallerError, match="version 2"):
        messages.read_hello(theirs, BINARY.message(theirs, 0).body)
    monkeypatch.setattr(messages, "VERSION", 2)
    assert not client.connected


async def test_bounds_of_what_waits(peer: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    there, client = peer
    monkeypatch.setattr("iotdb_cluster.rpc.peer_client.PEER_CALLS_MAX", 3)
    waiting = [asyncio.create_task(client.call("wait", b"", 5000)) for _ in range(3)]
    await until(lambda: there.running == 3)
    with pytest.raises(CallerError) as caught:
        await client.call("echo", b"", 5000)
    assert caught.value.code is Status.WRITE_PROCESS_REJECT
    there.gate.set()
    await asyncio.gather(*waiting)
    monkeypatch.setattr("iotdb_cluster.rpc.peer_client.PEER_OUTPUT_BYTES_MAX", -1)
    assert not client.send(b"x")
    with pytest.raises(CallerError) as caught:
        await client.call("echo", b"", 5000)
    assert caught.value.code is Status.WRITE_PROCESS_REJECT


async def test_a_peer_that_falls_silent_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iotdb_cluster.rpc.peer_client.PEER_PING_MS", 10)
    monkeypatch.setattr("iotdb_cluster.rpc.peer_client.PEER_SILENCE_MS_MAX", 60)
    quiet = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not quiet.is_set():
                (length,) = struct.unpack(">i", await reader.readexactly(4))
                head = BINARY.message(await reader.readexactly(length), 0)
                answer = b"".join(map(bytes, messages.success_parts(head, ())))
                writer.write(struct.pack(">i", len(answer)) + answer)
            await reader.read()
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = PeerClient(world, "127.0.0.1", server.sockets[0].getsockname()[1], ME)
    await client.call("any", b"", 5000)
    await asyncio.sleep(0.1)
    assert client.connected
    quiet.set()
    client.send(b"x")
    client.send(b"y")
    await until(lambda: not client.connected)
    server.close()
    await client.close()
    world.workers.close()


@pytest.mark.parametrize(
    "junk",
    [
        b"\x80\x01\x00\x04\x00\x00\x00\x04raft\x00\x00\x00\x00\x00",
        b"\x80\x01\x00\x01\x00\x00\x00\x05hello\x00\x00\x00\x00\x0c\x00\x01\x00\x00",
        b"\x82\x21\x00\x05hello\x00",
        b"",
        b"\x00" * 50,
    ],
)
async def test_what_is_no_peer(peer: Pair, junk: bytes) -> None:
    there, client = peer
    assert bytes(await client.call("echo", b"x", 5000)) == b"<x>"
    host, port = client.host, client.port
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(struct.pack(">i", len(junk)) + junk)
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
    assert bytes(await client.call("echo", b"x", 5000)) == b"<x>"
    assert there.batches == []


async def test_a_long_frame_before_the_greeting(peer: Pair) -> None:
    _, client = peer
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(struct.pack(">i", 1 << 20))
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


async def test_pool(world: World) -> None:
    pool = PeerPool(world, ME)
    one, other = pool.peer("a", 1, "x"), pool.peer("a", 1, "y")
    assert pool.peer("a", 1, "x") is one
    assert other is not one
    pool.identify(PeerIdentity(4, b"", ""))
    assert (one._identity.node, one._identity.purpose) == (4, "x")
    await pool.forget("a", 1)
    assert pool.peer("a", 1, "x") is not one
    await pool.close()
    world.workers.close()


async def test_a_place_is_unused_when_no_call_to_it_is_under_way(world: World) -> None:
    there, pool = Node(world), PeerPool(world, ME)
    port = await there.server.start("127.0.0.1", 0)
    one, other = pool.peer("127.0.0.1", port, "x"), pool.peer("127.0.0.1", port, "y")
    assert bytes(await one.call("echo", b"", 5_000)) == b"<>"
    assert pool.unused() == {("127.0.0.1", port)}
    running = asyncio.create_task(other.call("wait", b"", 5_000))
    await asyncio.sleep(0)
    assert pool.unused() == set()  # it connects
    await until(lambda: there.running == 1)
    assert pool.unused() == set()
    there.gate.set()
    await running
    assert pool.unused() == {("127.0.0.1", port)}
    await pool.forget("127.0.0.1", port)
    assert pool.unused() == set()
    assert not one.connected
    assert not other.connected
    await there.server.close()
    world.workers.close()


async def test_closing_cancels_calls(peer: Pair) -> None:
    there, client = peer
    running = asyncio.create_task(client.call("wait", b"", 5000))
    await until(lambda: there.running == 1)
    await there.server.close()
    with pytest.raises(OutcomeUnknown):
        await running
    assert there.server.calls == set()


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=80))
def test_garbage_between_nodes(data: bytes) -> None:
    head = BINARY.head(2, "call", 1)
    for read in (messages.read_raft, messages.read_call, messages.read_hello):
        try:
            read(data, 0)
        except (Malformed, CallerError):
            continue
    try:
        messages.read_answer(head + data, BINARY.message(head, 0))
    except (Malformed, CallerError):
        return


def test_the_bytes_are_those_of_the_idl() -> None:
    """What is written by hand is what thriftpy2 reads."""
    from iotdb_cluster.rpc.checker import decode

    service = node().NodeService
    frame = b"".join(map(bytes, messages.raft_parts(b"batch")))
    assert decode(BINARY, service.raft_args, frame, BINARY.message(frame, 0).body).batch == b"batch"
    frame = b"".join(map(bytes, messages.call_parts("m", [b"bo", b"dy"], 5)))
    call = decode(BINARY, service.call_args, frame, BINARY.message(frame, 0).body)
    assert (call.method, call.body, BINARY.message(frame, 0).seqid) == ("m", b"body", 5)
    head = BINARY.message(BINARY.head(1, "call", 5), 0)
    frame = b"".join(map(bytes, messages.success_parts(head, [b"x"])))
    answer = decode(BINARY, service.call_result, frame, BINARY.message(frame, 0).body).success
    assert (answer.code, answer.body) == (200, b"x")
