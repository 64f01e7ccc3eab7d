"""One seed of the swarm: clients and a nemesis, then a majority alone, then everyone, and the verdict.

Safety first: while faults strike, and after them, what every client saw of every series must be linearizable, no
group may have two leaders in a term, and in the end the replicas are equal. Then liveness: when the faults stop and a
majority is healed (the last node stays away in one of several manners), writes and reads through each healed node
succeed within a bounded time; and when that node is back, through each node.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from iotdb_cluster.auth import passwords
from iotdb_cluster.cluster.node import Node
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.columns import DataType
from iotdb_cluster.errors import CallerError
from iotdb_cluster.rpc.peer_messages import PeerIdentity
from iotdb_cluster.schema.inference import InferenceRules
from iotdb_cluster.simulation.aftermath import check_nothing_is_left, has_leaders
from iotdb_cluster.simulation.checker import check_history
from iotdb_cluster.simulation.client import SimulatedClient, ask_admin
from iotdb_cluster.simulation.invariants import Invariants
from iotdb_cluster.simulation.nemesis import Nemesis
from iotdb_cluster.simulation.plan import LEFT_OUT, Plan, Shape
from iotdb_cluster.simulation.workloads import Clients, Register, Workload, registers
from iotdb_cluster.simulation.world import Simulation, SimulationTimeout
from iotdb_cluster.world import World

__all__ = ["Swarm", "SwarmFailure", "SwarmResult", "run_seed"]

META_PORT, DATA_PORT, CLIENT_PORT, NODETOOL_PORT = 9003, 40010, 55560, 31999
FORMED_MS = 60_000
LASTS_MS = 60_000  # a run, at least
SPREAD = 1.5  # the clients' operations are spread over so much of the time of the faults, if those let them
LIVE_MS = 30_000  # from the end of the faults until writes and reads succeed
SERVES_AGAIN_MS = 60_000
ELECTIONS_MAX = 10  # election time-outs until a healed majority has leaders
STARTED_MS = 1_000  # a node that starts reads its log first
SETTLED_MS = 3_000  # until what clients left behind is gone
LINES_SHOWN = 30
PORTS = {
    "meta": (META_PORT,), "meta heartbeats": (META_PORT + 1,),
    "data": (DATA_PORT, DATA_PORT + 1), "data heartbeats": (DATA_PORT + 1,), "data log": (DATA_PORT,),
}  # fmt: skip


class SwarmFailure(AssertionError):
    """A seed fails: why, what the nemesis did, the last events, and the command that repeats it."""


@dataclass(slots=True)
class SwarmResult:
    """What a run did; equal for equal seeds."""

    seed: int
    nodes: int
    digest: str
    events: int
    virtual_ms: float
    acknowledged: int
    unknown: int
    refused: int
    crashes: int
    kinds: tuple[str, ...]


class _Node(Node):
    """A node to which batches of Raft messages come late, out of order, or twice, as over connections that break."""

    def __init__(self, world: World, settings: Settings, plan: Callable[[], tuple[float, float]]) -> None:
        super().__init__(world, settings)
        self._loop = asyncio.get_running_loop()
        self._plan = plan

    def receive_raft(self, identity: PeerIdentity, batch: memoryview) -> None:
        rate, late_ms = self._plan()
        rng = self._world.random
        if rate and rng.random() < rate:
            copy = memoryview(bytes(batch))
            self._loop.call_later(rng.uniform(0.0, late_ms) / 1000, super().receive_raft, identity, copy)
            if rng.random() < 0.5:
                return
        super().receive_raft(identity, batch)


@contextmanager
def cheap_passwords() -> Iterator[None]:
    """Logins cost some 20 ms on purpose; a run has hundreds, of which nothing depends on that."""
    cost, passwords.COST = passwords.COST, 2
    try:
        yield
    finally:
        passwords.COST = cost


@dataclass
class Swarm:
    """The parts of a run."""

    seed: int
    shape: Shape = field(init=False)
    plan: Plan = field(init=False)
    workload: Workload = field(init=False)

    def __post_init__(self) -> None:
        rng = random.Random(f"swarm:{self.seed}")
        self.shape = Shape.draw(rng)
        self.plan = Plan.draw(rng)
        self.workload = Workload.draw(rng)
        self.names = [f"node{number}" for number in range(1, self.shape.nodes + 1)]
        self.running: dict[str, Node] = {}
        self.clients = Clients(registers(self.shape.partition_ms), self.workload)
        self.nemesis: Nemesis | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.faulty = False  # while the nemesis is at work

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
        def plan() -> tuple[float, float]:
            return (self.plan.late_rate if self.faulty else 0.0), self.plan.late_ms

        async def main(world: World) -> None:
            node = self.running[name] = _Node(world, self._settings(name), plan)
            await node.run()

        return main

    def _chase(self, simulation: Simulation, victim: str, lasting_ms: float) -> None:
        """Readers pinned to a node, writers at the others, on what the node leads if it is known."""
        node = self.running[victim]
        led = {group for group, _ in node.leading()}
        registers = [one for one in self.clients.registers if self._group_of(node, one) in led]
        rng = random.Random(f"chase:{self.seed}:{simulation.now_ms}")
        worlds = iter([simulation.world(f"chaser{number}") for number in range(2)])
        patience_ms = rng.choice((300.0, 1_500.0, 5_000.0))
        here = next(worlds)
        there = next(worlds)
        end = simulation.now_ms + lasting_ms
        self._tasks.append(simulation.spawn(self.clients.chase(
            rng,
            lambda: SimulatedClient(here, victim, CLIENT_PORT, patience_ms),
            lambda: [SimulatedClient(there, name, CLIENT_PORT, 2_000) for name in self.names if name != victim],
            rng.sample(registers or self.clients.registers, 1),
            lambda: simulation.now_ms >= end or self.clients.hurry,
        )))  # fmt: skip

    def _group_of(self, node: Node, register: Register) -> int:
        """The group that the register's first cell belongs to."""
        meta = next((group.machine for group in node.replicas() if group.id == 0), None)
        state = getattr(getattr(meta, "inner", meta), "state", None)
        if state is None or not state.bootstrapped:
            return -1
        slot = state.slot_map.slot_of(register.group, register.times[0] // self.shape.partition_ms)
        return int(state.owner_of_slot(slot)[0].id)

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self, *, faults: bool = True, debug: bool = False) -> SwarmResult:
        """From empty disks to the verdict. Raises SwarmFailure."""
        with (
            cheap_passwords(),
            Simulation(self.seed, debug=debug, skew_ms=self.shape.skew_ms, drift=0.01) as simulation,
        ):
            try:
                self._run(simulation, faults)
            except Exception as error:
                raise SwarmFailure(self._tell(simulation, error)) from error
            clients = self.clients
            return SwarmResult(
                self.seed, self.shape.nodes, simulation.digest(), simulation.events, simulation.now_ms,
                clients.acknowledged, clients.unknown, clients.refused,
                self.nemesis.crashes if self.nemesis else 0, self.plan.kinds,
            )  # fmt: skip

    def _run(self, simulation: Simulation, faults: bool) -> None:
        rng = random.Random(f"nemesis:{self.seed}")
        for name in self.names:
            simulation.add_node(name, self._main(name))
        world = simulation.world("client")
        simulation.run(self._serving(world, self.names), FORMED_MS)
        invariants = Invariants(simulation, self.running)
        simulation.check_turn = invariants.turn
        nemesis = self.nemesis = Nemesis(
            simulation, rng, self.names, self.running, self.plan,
            lambda victim, lasting_ms: self._chase(simulation, victim, lasting_ms), PORTS,
        )  # fmt: skip
        between_ms = self.shape.clients * self.plan.faults_ms * SPREAD / self.shape.operations
        for number in range(self.shape.clients):
            name = f"client{number}"
            own = simulation.world(name)
            sessions = [SimulatedClient(own, node, CLIENT_PORT, self.shape.patience_ms) for node in self.names]
            client = self.clients.run(
                name, random.Random(f"{self.seed}:{name}"), sessions, between_ms, self.shape.operations
            )
            self._tasks.append(simulation.spawn(client))
        serving = self.names
        if faults:
            self.faulty = True
            simulation.run(nemesis.run(), self.plan.faults_ms * 2)
            self.faulty = False
            left_out, manner = rng.choice(self.names), rng.choice(LEFT_OUT)
            if nemesis.damaged:  # it may refuse to serve, and is not mended: what it had is on the others
                left_out, manner = nemesis.damaged, "down"
            nemesis.leave_out(left_out, manner)
            simulation.spawn(nemesis.supervise())
            healed = [name for name in self.names if name != left_out]
            self._leaders_within(simulation, healed)
            simulation.run(self._lives(world, healed), LIVE_MS + 1_000)
            simulation.run_until(rng.choice((0.0, 1_000.0, 5_000.0, 15_000.0)))
            if nemesis.damaged:
                serving = healed
            else:
                nemesis.mend()
        else:
            simulation.run_until(self.plan.faults_ms)
        simulation.run(self._serving(world, serving), SERVES_AGAIN_MS)
        simulation.run(self._lives(world, serving), LIVE_MS + 1_000)
        simulation.run_until(max(0.0, LASTS_MS - simulation.now_ms))
        self.clients.hurry = True
        simulation.run_until(lambda: all(task.done() for task in self._tasks), SERVES_AGAIN_MS)
        simulation.run(self._read_all(world, serving), SERVES_AGAIN_MS)
        simulation.run(self._compare(world, serving), SERVES_AGAIN_MS)
        simulation.run_until(SETTLED_MS)
        for name in serving:
            check_nothing_is_left(simulation, name, self.running[name], len(self.names))
        for series, history in self.clients.histories.items():
            check_history(series, history)

    def _leaders_within(self, simulation: Simulation, names: Sequence[str]) -> None:
        """Each group of the healed nodes has a leader among them, which all of them know, soon."""
        limit_ms = ELECTIONS_MAX * self._settings(names[0]).election_timeout_ms + STARTED_MS

        def led() -> bool:
            return all(has_leaders(self.running[name], [self.running[other] for other in names]) for name in names)

        try:
            simulation.run_until(led, limit_ms)
        except SimulationTimeout:
            raise AssertionError(f"no leaders {limit_ms:.0f} ms after a majority was healed") from None

    async def _serving(self, world: World, names: Sequence[str]) -> None:
        """Return when all of these nodes serve."""
        for name in names:
            number = self.names.index(name)
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

    async def _read_all(self, world: World, names: Sequence[str]) -> None:
        rng = random.Random(0)
        for name in names:
            session = SimulatedClient(world, name, CLIENT_PORT, 10_000)
            for register in self.clients.registers:
                for wish in ("all", "last", "count"):
                    if not await self.clients.act("reader", rng, session, register, wish):
                        raise AssertionError(
                            f"{register.series} cannot be read through {name}: {self.clients.refusals}"
                        )
            session.drop()

    async def _compare(self, world: World, names: Sequence[str]) -> None:
        """The replicas of every group have the same content at the same index, those of a node that is gone aside."""
        number = self.names.index(names[0])
        answer = await ask_admin(world, names[0], NODETOOL_PORT + number, {"command": "digest"})
        least = 3 - (len(self.names) - len(names))
        unequal = [group["group"] for group in answer["groups"] if not group["equal"] or len(group["digests"]) < least]
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
