"""One seed of the swarm: clients and a nemesis, then a majority alone, then everyone, and the verdict.

Safety first: while faults strike, and after them, what every client saw of every series must be linearizable, no
group may have two leaders in a term, and in the end the replicas are equal. Then liveness: when the faults stop and a
majority is healed (the last node stays away in one of several manners), writes and reads through each healed node
succeed within a bounded time; and when that node is back, through each node.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from iotdb_cluster.cluster.node import Node
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.columns import DataType
from iotdb_cluster.errors import CallerError
from iotdb_cluster.limits import KIB, MIB
from iotdb_cluster.schema.inference import InferenceRules
from iotdb_cluster.simulation.checker import check_history
from iotdb_cluster.simulation.client import SimulatedClient, ask_admin
from iotdb_cluster.simulation.nemesis import LEFT_OUT, Nemesis, Plan
from iotdb_cluster.simulation.workloads import Clients, Workload, registers
from iotdb_cluster.simulation.world import Simulation
from iotdb_cluster.world import World

__all__ = ["Swarm", "SwarmFailure", "SwarmResult", "run_seed"]

META_PORT, DATA_PORT, CLIENT_PORT, NODETOOL_PORT = 9003, 40010, 55560, 31999
FORMED_MS = 60_000
LIVE_MS = 30_000  # from the end of the faults until writes and reads succeed
SERVES_AGAIN_MS = 60_000
LEADERS_LOOK_TURNS = 25
LINES_SHOWN = 30


class SwarmFailure(AssertionError):
    """A seed fails: why, what the nemesis did, the last events, and the command that repeats it."""


@dataclass(slots=True)
class SwarmResult:
    """What a run did; equal for equal seeds."""

    seed: int
    digest: str
    events: int
    virtual_ms: float
    acknowledged: int
    unknown: int
    refused: int
    crashes: int
    kinds: tuple[str, ...]


@dataclass(slots=True)
class _Shape:
    """The cluster's own parameters, drawn from the seed."""

    nodes: int
    clients: int
    partition_ms: int
    flush_bytes: int
    segment_bytes: int
    log_bytes_max: int
    timeout_ms: int
    patience_ms: float  # of a client
    skew_ms: float

    @classmethod
    def draw(cls, rng: random.Random) -> _Shape:
        timeout = rng.choice((1_000, 2_000, 5_000))
        return cls(
            5 if rng.random() < 0.08 else 3,
            rng.randint(3, 6),
            rng.choice((1_000, 60_000)),
            rng.choice((1 * KIB, 16 * KIB, 1 * MIB)),
            rng.choice((128 * KIB, 256 * KIB, 1 * MIB)),
            rng.choice((512 * KIB, 4 * MIB)),
            timeout,
            timeout * rng.choice((0.4, 1.5, 3.0)),
            rng.choice((0.0, 200.0, 60_000.0)),
        )


@dataclass
class Swarm:
    """The parts of a run."""

    seed: int
    shape: _Shape = field(init=False)
    plan: Plan = field(init=False)
    workload: Workload = field(init=False)

    def __post_init__(self) -> None:
        rng = random.Random(f"swarm:{self.seed}")
        self.shape = _Shape.draw(rng)
        self.plan = Plan.draw(rng)
        self.workload = Workload.draw(rng)
        self.names = [f"node{number}" for number in range(1, self.shape.nodes + 1)]
        self.running: dict[str, Node] = {}
        self.clients = Clients(registers(self.shape.partition_ms), self.workload)
        self.nemesis: Nemesis | None = None
        self._leaders: dict[tuple[int, int], str] = {}
        self._turns = 0

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _settings(self, name: str) -> Settings:
        shape = self.shape
        seeds = tuple(NodeAddress(one, META_PORT, DATA_PORT, CLIENT_PORT) for one in self.names)
        number = self.names.index(name)
        return Settings(
            seeds[number],
            seeds,
            "/data",
            nodetool_port=NODETOOL_PORT + number,
            log_segment_bytes=shape.segment_bytes,
            log_bytes_max=shape.log_bytes_max,
            memtable_flush_bytes=shape.flush_bytes,
            partition_interval_ms=shape.partition_ms,
            write_timeout_ms=shape.timeout_ms,
            read_timeout_ms=shape.timeout_ms,
            disk_free_min_bytes=0,
            inference=InferenceRules(floating=DataType.DOUBLE),
        )

    def _main(self, name: str) -> Callable[[World], Coroutine[Any, Any, None]]:
        async def main(world: World) -> None:
            node = self.running[name] = Node(world, self._settings(name))
            await node.run()

        return main

    def _led(self, name: str) -> float:
        node = self.running.get(name)
        return node.figures().get("groups_led", 0.0) if node is not None else 0.0

    def _look_at_leaders(self, simulation: Simulation) -> None:
        """No term of a group has two leaders."""
        self._turns += 1
        if self._turns % LEADERS_LOOK_TURNS:
            return
        for name, node in self.running.items():
            if not simulation.is_running(name):
                continue
            for group, term in node.leading():
                other = self._leaders.setdefault((group, term), name)
                if other != name:
                    raise AssertionError(f"{other} and {name} both led group {group} in term {term}")

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self, *, faults: bool = True, debug: bool = False) -> SwarmResult:
        """From empty disks to the verdict. Raises SwarmFailure."""
        with Simulation(self.seed, debug=debug, skew_ms=self.shape.skew_ms, drift=0.01) as simulation:
            try:
                self._run(simulation, faults)
            except Exception as error:
                raise SwarmFailure(self._tell(simulation, error)) from error
            clients = self.clients
            return SwarmResult(
                self.seed, simulation.digest(), simulation.events, simulation.now_ms, clients.acknowledged,
                clients.unknown, clients.refused, self.nemesis.crashes if self.nemesis else 0, self.plan.kinds,
            )  # fmt: skip

    def _run(self, simulation: Simulation, faults: bool) -> None:
        rng = random.Random(f"nemesis:{self.seed}")
        for name in self.names:
            simulation.add_node(name, self._main(name))
        world = simulation.world("client")
        simulation.run(self._serving(world), FORMED_MS)
        simulation.check_turn = lambda: self._look_at_leaders(simulation)
        nemesis = self.nemesis = Nemesis(simulation, rng, self.names, self._led, self.plan)
        tasks = []
        for number in range(self.shape.clients):
            name = f"client{number}"
            own = simulation.world(name)
            sessions = [SimulatedClient(own, node, CLIENT_PORT, self.shape.patience_ms) for node in self.names]
            tasks.append(simulation.spawn(self.clients.run(name, random.Random(f"{self.seed}:{name}"), sessions)))
        if faults:
            simulation.run(nemesis.run(), self.plan.faults_ms * 2)
            left_out = rng.choice(self.names)
            nemesis.leave_out(left_out, rng.choice(LEFT_OUT))
            simulation.run(self._lives(world, [name for name in self.names if name != left_out]), LIVE_MS + 1_000)
            simulation.run_until(rng.choice((0.0, 1_000.0, 5_000.0)))
            nemesis.mend()
        else:
            simulation.run_until(5_000.0)
        simulation.run(self._serving(world), SERVES_AGAIN_MS)
        simulation.run(self._lives(world, self.names), LIVE_MS + 1_000)
        self.clients.stop = True
        simulation.run_until(lambda: all(task.done() for task in tasks), SERVES_AGAIN_MS)
        simulation.run(self._read_all(world), SERVES_AGAIN_MS)
        simulation.run(self._compare(world), SERVES_AGAIN_MS)
        for series, history in self.clients.histories.items():
            check_history(series, history)

    async def _serving(self, world: World) -> None:
        """Return when every node serves."""
        for number, name in enumerate(self.names):
            while True:
                try:
                    health = await ask_admin(world, name, NODETOOL_PORT + number, {"command": "health"})
                    if health.get("serving"):
                        break
                except CallerError:
                    pass
                await asyncio.sleep(0.1)

    async def _lives(self, world: World, names: Sequence[str]) -> None:
        """Every series is written and read through each of these nodes, within `LIVE_MS` altogether."""
        rng = random.Random(f"live:{self.seed}")
        began = world.clock.monotonic_ms()
        waiting = ""
        try:
            async with asyncio.timeout(LIVE_MS / 1000):
                for name in names:
                    session = SimulatedClient(world, name, CLIENT_PORT, 10_000)
                    for register in self.clients.registers:
                        for wish in ("write", "all"):
                            waiting = f"{wish} of {register.series} through {name}"
                            while not await self.clients.act("probe", rng, session, register, wish):  # noqa: ASYNC110
                                await asyncio.sleep(0.1)
                    session.drop()
        except TimeoutError:
            passed = world.clock.monotonic_ms() - began
            raise AssertionError(
                f"not live: {waiting} had no success for {passed:.0f} ms ({self.clients.refusals})"
            ) from None

    async def _read_all(self, world: World) -> None:
        rng = random.Random(0)
        for name in self.names:
            session = SimulatedClient(world, name, CLIENT_PORT, 10_000)
            for register in self.clients.registers:
                for wish in ("all", "last", "count"):
                    if not await self.clients.act("reader", rng, session, register, wish):
                        raise AssertionError(
                            f"{register.series} cannot be read through {name}: {self.clients.refusals}"
                        )
            session.drop()

    async def _compare(self, world: World) -> None:
        answer = await ask_admin(world, self.names[0], NODETOOL_PORT, {"command": "digest"})
        unequal = [group["group"] for group in answer["groups"] if not group["equal"] or len(group["digests"]) != 3]
        if unequal:
            raise AssertionError(f"the replicas of groups {unequal} differ: {answer}")

    def _tell(self, simulation: Simulation, error: BaseException) -> str:
        lines = [f"seed {self.seed}: {type(error).__name__}: {error}", f"shape: {self.shape}", f"plan: {self.plan}"]
        lines += ["what went wrong on purpose:", *(self.nemesis.said if self.nemesis else [])]
        lines += ["the last events:", *list(simulation.lines)[-LINES_SHOWN:]]
        return "\n".join([*lines, f"repeat it with: make sim SEED={self.seed}"])


def run_seed(seed: int, *, faults: bool = True, debug: bool = False) -> SwarmResult:
    """One seed, from empty disks to the verdict. Raises SwarmFailure."""
    return Swarm(seed).run(faults=faults, debug=debug)
