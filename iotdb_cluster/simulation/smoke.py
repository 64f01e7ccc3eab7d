"""Three whole nodes under faults: what was acknowledged is there at the end, on every node, and the replicas are equal.

Safety first: writers insert unique values through random nodes while nodes lose power, connections stall and break, and
links go one way. Then the faults stop, every node is started, and the cluster must serve again within a bounded time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from iotdb_cluster.cluster.node import Node
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import KIB, MIB
from iotdb_cluster.simulation.client import SimulatedClient, ask_admin
from iotdb_cluster.simulation.network import NetworkFaults
from iotdb_cluster.simulation.world import Simulation
from iotdb_cluster.world import World

__all__ = ["SmokeResult", "run_smoke"]

NODES = 3
META_PORT, DATA_PORT, CLIENT_PORT, NODETOOL_PORT = 9003, 40010, 55560, 31999
DEVICES = 4
WRITERS = 3
FAULTS_MS = 20_000
SERVES_AGAIN_MS = 60_000
PARTITION_MS = 1_000
SMALL_LOG_BYTES_MAX = 128 * KIB  # a node that is away for some seconds then needs snapshots


@dataclass(slots=True)
class SmokeResult:
    """What a run did; `digest` is equal for equal seeds."""

    seed: int
    digest: str
    events: int
    virtual_ms: float
    acknowledged: int
    unknown: int
    refused: int
    crashes: int
    snapshots: int = 0  # replicas that were installed from a received snapshot last


@dataclass(slots=True)
class _History:
    acknowledged: dict[str, dict[int, float]] = field(default_factory=dict)
    maybe: dict[str, dict[int, float]] = field(default_factory=dict)
    unknown: int = 0
    refused: int = 0
    stop: bool = False


def _name(number: int) -> str:
    return f"node{number}"


def _settings(number: int, small_logs: bool = False) -> Settings:
    seeds = tuple(NodeAddress(_name(i), META_PORT, DATA_PORT, CLIENT_PORT) for i in range(1, NODES + 1))
    return Settings(
        seeds[number - 1],
        seeds,
        "/data",
        nodetool_port=NODETOOL_PORT + number,
        log_segment_bytes=64 * KIB if small_logs else 256 * KIB,
        log_bytes_max=SMALL_LOG_BYTES_MAX if small_logs else 4 * MIB,
        memtable_flush_bytes=16 * KIB,
        partition_interval_ms=PARTITION_MS,
        write_timeout_ms=5_000,
        read_timeout_ms=5_000,
        disk_free_min_bytes=0,
    )


def _main(number: int, small_logs: bool) -> Callable[[World], Coroutine[Any, Any, None]]:
    async def main(world: World) -> None:
        await Node(world, _settings(number, small_logs)).run()

    return main


async def _write(world: World, rng: random.Random, history: _History, writer: int) -> None:
    """Insert unique values until told to stop; note what became of each."""
    clients = [SimulatedClient(world, _name(i), CLIENT_PORT) for i in range(1, NODES + 1)]
    count = 0
    while not history.stop:
        count += 1
        device = f"root.sim{rng.randrange(DEVICES) % 2}.d{rng.randrange(DEVICES)}"
        time = (count * WRITERS + writer) * 7
        value = float(count * WRITERS + writer)
        series = f"{device}.s1"
        try:
            await rng.choice(clients).insert(device, "s1", time, value)
            history.acknowledged.setdefault(series, {})[time] = value
        except CallerError as error:
            if error.code in (Status.TIME_OUT, Status.INTERNAL_SERVER_ERROR):
                history.unknown += 1
                history.maybe.setdefault(series, {})[time] = value
            else:
                history.refused += 1
            await asyncio.sleep(rng.uniform(0.01, 0.2))
        await asyncio.sleep(rng.uniform(0.0, 0.05))


async def _harm(simulation: Simulation, rng: random.Random, absence_ms: float = 0.0) -> int:
    """Crashes and broken links for a while; how many nodes crashed. One node is away for the first `absence_ms`."""
    crashes = 0
    names = [_name(i) for i in range(1, NODES + 1)]
    back = simulation.now_ms + absence_ms
    end = back + FAULTS_MS
    absent = rng.choice(names) if absence_ms else ""
    if absent:
        simulation.crash(absent)
        crashes += 1
    while simulation.now_ms < end:
        await asyncio.sleep(rng.uniform(0.5, 2.5))
        kind = rng.randrange(5)
        victim = rng.choice(names)
        if kind <= 1 and simulation.is_running(victim):
            simulation.crash(victim, power_cut=bool(rng.randrange(3)))
            crashes += 1
        elif kind == 2:
            simulation.network.block(victim, rng.choice([name for name in names if name != victim]))
        elif kind == 3:
            simulation.network.heal()
        else:
            simulation.network.drop_connections(victim)
        await asyncio.sleep(rng.uniform(0.1, 1.5))
        for name in names:
            away = name == absent and simulation.now_ms < back
            if not away and not simulation.is_running(name) and rng.randrange(3):
                simulation.restart(name)
    return crashes


async def _serving(world: World) -> None:
    """Return when every node serves."""
    for number in range(1, NODES + 1):
        while True:
            try:
                health = await ask_admin(world, _name(number), NODETOOL_PORT + number, {"command": "health"})
                if health.get("serving"):
                    break
            except CallerError:
                pass
            await asyncio.sleep(0.1)


class _Points(Protocol):
    """By series and time: what must be there, and what may be."""

    @property
    def acknowledged(self) -> dict[str, dict[int, float]]: ...

    @property
    def maybe(self) -> dict[str, dict[int, float]]: ...


async def _verify(world: World, history: _Points) -> None:
    """Every acknowledged point through every node; nothing that nobody wrote; equal replicas."""
    for number in range(1, NODES + 1):
        session = SimulatedClient(world, _name(number), CLIENT_PORT)
        for series, points in sorted(history.acknowledged.items()):
            found = await session.points(series)
            lost = {time for time, value in points.items() if found.get(time) != value}
            if lost:
                raise AssertionError(
                    f"{len(lost)} acknowledged points of {series} are lost, seen through node {number}"
                )
            maybe = history.maybe.get(series, {})
            strange = [time for time, value in found.items() if points.get(time, maybe.get(time)) != value]
            if strange:
                raise AssertionError(f"{series} has points at {strange[:5]} that nobody wrote")
        session.drop()
    answer = await ask_admin(world, _name(1), NODETOOL_PORT + 1, {"command": "digest"})
    unequal = [group["group"] for group in answer["groups"] if not group["equal"] or len(group["digests"]) != NODES]
    if unequal:
        raise AssertionError(f"the replicas of groups {unequal} differ: {answer}")


def _snapshots(simulation: Simulation) -> int:
    """How many replicas live in the directory of a received snapshot: its name ends with 20 digits."""
    names = [name for node in simulation.nodes.values() for name in node.disk.list("/data/data")]
    return sum(name[-20:].isdigit() for name in names)


def run_smoke(seed: int, *, faults: bool = True, debug: bool = False, small_logs: bool = False) -> SmokeResult:
    """One seed, from an empty disk to the verdict. Raises what is wrong.

    With `small_logs` a node is away for so long that the others' logs do not hold what it lacks.
    """
    with Simulation(seed, debug=debug, skew_ms=200.0, drift=0.01) as simulation:
        rng = random.Random(f"smoke:{seed}")
        for number in range(1, NODES + 1):
            simulation.add_node(_name(number), _main(number, small_logs))
        world = simulation.world("client")
        simulation.run(_serving(world), SERVES_AGAIN_MS)
        history = _History()
        writers = [
            simulation.spawn(_write(simulation.world(f"writer{i}"), random.Random(f"{seed}:{i}"), history, i))
            for i in range(WRITERS)
        ]
        crashes = 0
        if faults:
            simulation.network.faults = NetworkFaults(stall_rate=0.002, break_rate=0.0005)
            crashes = simulation.run(_harm(simulation, rng, FAULTS_MS if small_logs else 0.0), FAULTS_MS * 4)
            simulation.network.faults = NetworkFaults()
            simulation.network.heal()
            for number in range(1, NODES + 1):
                if not simulation.is_running(_name(number)):
                    simulation.restart(_name(number))
        else:
            simulation.run_until(5_000.0)
        history.stop = True
        simulation.run_until(lambda: all(writer.done() for writer in writers), SERVES_AGAIN_MS)
        simulation.run(_serving(world), SERVES_AGAIN_MS)
        simulation.run(_verify(world, history), SERVES_AGAIN_MS)
        acknowledged = sum(map(len, history.acknowledged.values()))
        return SmokeResult(
            seed, simulation.digest(), simulation.events, simulation.now_ms, acknowledged, history.unknown,
            history.refused, crashes, _snapshots(simulation),
        )  # fmt: skip
