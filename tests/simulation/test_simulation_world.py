"""Virtual time, the network and whole nodes: everything is a function of the seed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from iotdb_cluster.simulation import (
    DeadSimulation,
    NodeFailed,
    PowerCut,
    Simulation,
    SimulationTimeout,
    VirtualLoop,
)
from iotdb_cluster.world import World

PORT = 4000


class Echo(asyncio.Protocol):
    """Sends back what it gets, until the end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]


class Collector(asyncio.Protocol):
    """Keeps what it gets, and how it was told of the end."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.lost: list[BaseException | None] = []
        self.calls: list[str] = []
        self.changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.changed.set()

    def connection_lost(self, error: BaseException | None) -> None:
        self.lost.append(error)
        self.changed.set()

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")


async def serve(world: World, factory: Callable[[], asyncio.BaseProtocol] = Echo) -> None:
    await world.network.listen("0.0.0.0", PORT, factory)
    await asyncio.Event().wait()


async def connect(world: World, host: str, timeout_ms: float = 1_000) -> tuple[Any, Collector]:
    transport, protocol = await world.network.connect(host, PORT, Collector, timeout_ms)
    assert isinstance(protocol, Collector)
    return transport, protocol


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("debug", [False, True])
def test_virtual_time(debug: bool) -> None:
    loop = VirtualLoop()
    loop.set_debug(debug)

    async def main() -> list[int]:
        assert await asyncio.to_thread(lambda: 5) == 5
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1_000):
                await asyncio.Event().wait()
        return list(await asyncio.gather(*(asyncio.sleep(3_600, number) for number in range(3))))

    assert loop.run_until_complete(main()) == [0, 1, 2]
    assert 4_600 <= loop.time() < 4_601
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def test_a_dead_simulation_is_told() -> None:
    loop = VirtualLoop()

    async def wait() -> None:
        await asyncio.Event().wait()

    task = loop.create_task(wait())
    with pytest.raises(DeadSimulation):
        loop.run_until_complete(task)
    task.cancel()
    loop.run_until_complete(asyncio.wait({task}))
    loop.close()


# --- network ----------------------------------------------------------------------------------------------------------


def test_streams_keep_their_order_whatever_happens_on_the_way() -> None:
    for seed in range(10):
        with Simulation(seed, debug=True) as simulation:
            simulation.network.faults.stall_rate = 0.1
            simulation.network.faults.split_rate = 0.5
            simulation.add_node("a", serve)
            client = simulation.world("client")
            data = client.random.randbytes(200_000)

            async def talk(client: World = client, data: bytes = data) -> bytes:
                await asyncio.sleep(0.1)
                transport, protocol = await connect(client, "a")
                at = 0
                while at < len(data):
                    size = client.random.randint(1, 5_000)
                    transport.write(data[at : at + size])
                    at += size
                    await asyncio.sleep(client.random.choice((0, 0.001)))
                while len(protocol.data) < len(data):
                    protocol.changed.clear()
                    await protocol.changed.wait()
                transport.close()
                await asyncio.sleep(1)
                assert protocol.lost == [None]
                return bytes(protocol.data)

            assert simulation.run(talk()) == data
            assert simulation.network.open_ends == 0


def test_back_pressure() -> None:
    class Slow(Collector):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            transport.pause_reading()  # type: ignore[attr-defined]
            asyncio.get_running_loop().call_later(5, transport.resume_reading)  # type: ignore[attr-defined]

    with Simulation(1) as simulation:
        simulation.add_node("a", lambda world: serve(world, Slow))
        client = simulation.world("client")

        async def talk() -> None:
            await asyncio.sleep(0.1)
            transport, protocol = await connect(client, "a")
            transport.set_write_buffer_limits(high=10_000)
            for _ in range(100):
                transport.write(b"x" * 1_000)
            assert protocol.calls == ["pause"]
            await asyncio.sleep(4)
            assert transport.get_write_buffer_size() == 100_000
            await asyncio.sleep(4)
            assert protocol.calls == ["pause", "resume"]
            assert transport.get_write_buffer_size() == 0

        simulation.run(talk())


def test_refused_timed_out_and_address_in_use() -> None:
    with Simulation(2) as simulation:
        simulation.add_node("a", serve)
        client = simulation.world("client")

        async def talk() -> None:
            await asyncio.sleep(0.1)
            with pytest.raises(ConnectionRefusedError):
                await client.network.connect("a", PORT + 1, Collector, 1_000)
            with pytest.raises(ConnectionRefusedError):
                await client.network.connect("nobody", PORT, Collector, 1_000)
            simulation.network.block("a", "client")
            before = simulation.now_ms
            with pytest.raises(OSError, match="no answer"):
                await connect(client, "a")
            assert 1_000 <= simulation.now_ms - before < 1_300
            simulation.network.heal()
            (await connect(client, "a"))[0].close()
            (await connect(client, "127.0.0.1"))[0].close()
            server = await client.network.listen("", 0, Echo)
            with pytest.raises(OSError):
                await client.network.listen("", server.port, Echo)
            await server.close()
            await (await client.network.listen("", server.port, Echo)).close()

        simulation.run(talk())


def test_some_ports_are_blocked_and_blocks_are_counted() -> None:
    with Simulation(3) as simulation:
        simulation.add_node("a", serve)
        client = simulation.world("client")
        network = simulation.network

        async def echoed() -> bytes:
            transport, protocol = await connect(client, "a")
            transport.write(b"hello")
            await asyncio.sleep(3)
            transport.close()
            return bytes(protocol.data)

        async def talk() -> None:
            await asyncio.sleep(0.1)
            network.block("a", "client", [PORT + 1])
            assert await echoed() == b"hello"
            transport, protocol = await connect(client, "a")
            network.block("a", "client", [PORT])
            network.block("a", "client", [PORT])
            network.unblock("a", "client", [PORT])
            transport.write(b"hello")
            await asyncio.sleep(3)
            assert not protocol.data
            network.unblock("a", "client", [PORT])
            network.unblock("a", "client", [PORT])  # means nothing
            await asyncio.sleep(1)
            assert protocol.data == b"hello"
            network.slow_link("client", "a", (4_000.0, 5_000.0))
            assert await echoed() == b""
            network.heal()
            assert await echoed() == b"hello"

        simulation.run(talk())


def test_a_slow_disk_is_slow_in_every_life_until_it_is_not() -> None:
    took: list[float] = []

    async def main(world: World) -> None:
        before = world.clock.monotonic_ms()
        await world.workers.run(int)
        took.append(world.clock.monotonic_ms() - before)
        await asyncio.sleep(3_600)

    with Simulation(4) as simulation:
        simulation.add_node("a", main)
        simulation.set_pace("a", (500.0, 900.0))
        simulation.run_until(2_000.0)
        for pace in ((500.0, 900.0), None):
            simulation.set_pace("a", pace)
            simulation.crash("a")
            simulation.restart("a")
            simulation.run_until(2_000.0)
    assert [one > 500.0 for one in took] == [True, True, False]


def test_a_one_way_partition_stalls_and_heals_or_breaks() -> None:
    with Simulation(3) as simulation:
        simulation.add_node("a", serve)
        client = simulation.world("client")

        async def talk() -> None:
            await asyncio.sleep(0.1)
            transport, protocol = await connect(client, "a")
            simulation.network.block("a", "client")
            transport.write(b"hello")
            await asyncio.sleep(5)
            assert not protocol.data
            simulation.network.unblock("a", "client")
            await asyncio.sleep(0.5)
            assert protocol.data == b"hello"
            simulation.network.partition(["a"], ["client"])
            transport.write(b"again")
            await asyncio.sleep(40)
            assert isinstance(protocol.lost[0], TimeoutError)
            simulation.network.heal()

        simulation.run(talk())


def test_breaking_connections_tells_both_ends() -> None:
    ends: list[Collector] = []

    def factory() -> Collector:
        ends.append(Collector())
        return ends[-1]

    with Simulation(4) as simulation:
        simulation.add_node("a", lambda world: serve(world, factory))
        client = simulation.world("client")

        async def talk() -> None:
            await asyncio.sleep(0.1)
            _, protocol = await connect(client, "a")
            await asyncio.sleep(0.1)
            simulation.network.drop_connections("a")
            await asyncio.sleep(0)  # as asyncio does, it tells them at the loop's next turn
            assert isinstance(protocol.lost[0], ConnectionResetError)
            assert isinstance(ends[0].lost[0], ConnectionResetError)
            transport, protocol = await connect(client, "a")
            await asyncio.sleep(0.1)
            transport.abort()
            await asyncio.sleep(0.1)
            assert protocol.lost == [None]
            assert isinstance(ends[1].lost[0], ConnectionResetError)

        simulation.run(talk())


def test_streams_api_and_a_protocols_mistake() -> None:
    class Wrong(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            raise ValueError(data)

    async def lines(world: World) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                writer.write(line.upper())
                await writer.drain()
            writer.close()

        loop = asyncio.get_running_loop()

        def factory() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), answer, loop=loop)

        await world.network.listen("", PORT, factory)
        await world.network.listen("", PORT + 1, Wrong)
        await asyncio.Event().wait()

    with Simulation(5) as simulation:
        simulation.expected = lambda name, error: isinstance(error, ValueError)  # noqa: ARG005
        simulation.add_node("a", lines)
        client = simulation.world("client")

        async def talk() -> None:
            await asyncio.sleep(0.1)
            transport, protocol = await connect(client, "a")
            transport.write(b"one\ntwo\n")
            transport.write_eof()
            await asyncio.sleep(1)
            assert protocol.data == b"ONE\nTWO\n"
            assert protocol.lost == [None]
            transport, wrong = await client.network.connect("a", PORT + 1, Collector, 100)
            transport.write(b"x")  # type: ignore[attr-defined]
            await asyncio.sleep(1)
            assert isinstance(wrong.lost[0], ConnectionResetError)  # type: ignore[attr-defined]

        simulation.run(talk())


# --- nodes ------------------------------------------------------------------------------------------------------------


async def counter(world: World) -> None:
    """A node that counts on its disk, and does what it may not be able to do on its way out."""
    world.files.make_directories("/data")
    world.files.sync_directory("/")
    file = world.files.open("/data/count", create=True)
    world.files.sync_directory("/data")
    count = int(file.read(0, 20) or b"0")
    asyncio.ensure_future(serve(world))  # noqa: RUF006
    try:
        while True:
            count += 1
            file.write(0, b"%020d" % count)
            await world.workers.run(file.sync)
            await asyncio.sleep(world.random.uniform(0.001, 0.01))
    finally:
        file.write(0, b"-" * 20)


def read_count(simulation: Simulation, name: str) -> int:
    disk = simulation.nodes[name].disk
    return int(disk.open("/data/count").read(0, 20) or b"0") if disk.exists("/data/count") else 0


def test_crash_and_restart() -> None:
    for seed in range(10):
        with Simulation(seed, debug=True) as simulation:
            simulation.add_node("a", counter)
            highest = 0
            for _ in range(5):
                simulation.run_until(100)
                simulation.crash("a")
                assert not simulation.is_running("a")
                simulation.run_until(10)
                assert read_count(simulation, "a") >= highest + 5
                highest = read_count(simulation, "a")
                simulation.restart("a")
            goal = highest + 50
            simulation.run_until(lambda goal=goal, simulation=simulation: read_count(simulation, "a") > goal)


def test_power_cut_at_a_call_crashes_the_node() -> None:
    with Simulation(6) as simulation:
        disk = simulation.add_node("a", counter)
        disk.cut_at = disk.calls + 40
        simulation.run_until(lambda: not simulation.is_running("a"))
        simulation.run_until(1_000)
        with pytest.raises(PowerCut):
            disk.list("/")
        simulation.restart("a")
        assert read_count(simulation, "a") > 3
        assert simulation.is_running("a")
        simulation.crash("a", power_cut=False)


def test_others_learn_of_a_crash_and_nothing_of_the_old_life_goes_on() -> None:
    said: list[str] = []

    async def talker(world: World) -> None:
        life = world.random.random()

        def tick() -> None:
            said.append(f"{life}")
            asyncio.get_running_loop().call_later(0.01, tick)

        tick()
        await serve(world)

    with Simulation(7) as simulation:
        simulation.add_node("a", talker)
        client = simulation.world("client")

        async def talk() -> None:
            await asyncio.sleep(0.1)
            _, protocol = await connect(client, "a")
            simulation.crash("a")
            await asyncio.sleep(0.01)
            before = len(said)
            await asyncio.sleep(4)
            assert len(said) == before
            assert isinstance(protocol.lost[0], ConnectionResetError)
            simulation.restart("a")
            await asyncio.sleep(1)
            assert len(set(said[before:])) == 1
            assert said[0] not in said[before:]

        simulation.run(talk())


def test_failures_of_nodes_are_told() -> None:
    async def broken(world: World) -> None:  # noqa: ARG001
        await asyncio.sleep(1)
        raise ValueError("no")

    async def careless(world: World) -> None:  # noqa: ARG001
        asyncio.get_running_loop().call_later(1, lambda: 1 // 0)
        await asyncio.Event().wait()

    for main in (broken, careless):
        with Simulation(8) as simulation:
            simulation.add_node("a", main)
            with pytest.raises(NodeFailed, match="seed 8"):
                simulation.run_until(2_000)
    with Simulation(8) as simulation:
        simulation.expected = lambda name, error: name == "a" and isinstance(error, ValueError)
        simulation.add_node("a", broken)
        simulation.run_until(2_000)
        assert not simulation.is_running("a")
        with pytest.raises(SimulationTimeout):
            simulation.run_until(lambda: False, 1_000)


def test_invariants_at_every_turn() -> None:
    def broken() -> None:
        assert simulation.now_ms < 50, "too late"

    with Simulation(9) as simulation:
        simulation.add_node("a", counter)
        simulation.check_turn = broken
        with pytest.raises(AssertionError, match="too late"):
            simulation.run_until(1_000)


def test_clocks_differ_and_jump() -> None:
    with Simulation(10, skew_ms=500, drift=0.01) as simulation:
        clocks = []
        for name in "abc":
            simulation.add_node(name, serve)
            clocks.append(simulation.nodes[name].clock)
        simulation.run_until(100_000)
        times = [clock.wall_ms() for clock in clocks]
        assert len(set(times)) == 3
        assert max(times) - min(times) < 1_000 + 2 * 1_000
        before = clocks[0].monotonic_ms()
        clocks[0].jump(-10_000)
        assert clocks[0].wall_ms() == times[0] - 10_000
        assert clocks[0].monotonic_ms() == before


def test_equal_seeds_give_equal_runs() -> None:
    def run(seed: int) -> tuple[str, int]:
        with Simulation(seed) as simulation:
            for name in "abc":
                simulation.add_node(name, counter)
            client = simulation.world("client")

            async def talk() -> None:
                for _ in range(20):
                    transport, protocol = await connect(client, client.random.choice("abc"))
                    transport.write(b"x" * 100)
                    protocol.changed.clear()
                    await protocol.changed.wait()
                    transport.close()

            simulation.run_until(50)
            simulation.spawn(talk())
            simulation.run_until(500)
            simulation.crash("b")
            simulation.run_until(500)
            simulation.restart("b")
            simulation.run_until(500)
            return simulation.digest(), simulation.events

    assert run(11) == run(11)
    assert run(11) != run(12)
    assert run(11)[1] > 500


def test_a_paused_node_stands_still_and_goes_on() -> None:
    with Simulation(1) as simulation:
        beats: list[float] = []

        async def beat(world: World) -> None:
            await serve_once(world)
            while True:
                beats.append(world.clock.monotonic_ms())
                await asyncio.sleep(0.01)

        async def serve_once(world: World) -> None:
            await world.network.listen("0.0.0.0", PORT, Echo)

        async def talk(world: World) -> bytes:
            transport, protocol = await connect(world, "a")
            transport.write(b"hello")
            await protocol.changed.wait()
            return bytes(protocol.data)

        simulation.add_node("a", beat)
        simulation.run_until(100.0)
        before = len(beats)
        assert before > 5
        simulation.pause("a")
        answer = simulation.spawn(talk(simulation.world("client")))
        simulation.run_until(500.0)
        assert len(beats) == before
        assert not answer.done()
        simulation.resume("a")
        simulation.run_until(100.0)
        assert len(beats) > before + 5
        assert answer.result() == b"hello"[: len(answer.result())] != b""
        simulation.pause("a")
        simulation.run_until(50.0)
        simulation.crash("a")
        simulation.run_until(50.0)
        simulation.restart("a")
        simulation.run_until(50.0)
        assert simulation.is_running("a")
