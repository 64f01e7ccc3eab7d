"""One random sequence of joins and leaves in the simulated world, with crashes at any moment of them.

Three nodes begin; clients write, delete and read a few series all the while. Nodes join, leave alive, die and are
removed dead; meanwhile any node may lose power, one at a time, so that every group keeps a majority. Each change comes
to its end in bounded time. What every client saw is linearizable; in the end slots are even, every group has its
replicas, and they are equal.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from iotdb_cluster.cluster.node import Node
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.cluster.startup import OtherSettings, Refused
from iotdb_cluster.columns import DataType
from iotdb_cluster.errors import CallerError
from iotdb_cluster.limits import KIB, MIB
from iotdb_cluster.schema.inference import InferenceRules
from iotdb_cluster.simulation.aftermath import check_nothing_is_left
from iotdb_cluster.simulation.checker import check_history
from iotdb_cluster.simulation.client import SimulatedClient, ask_admin
from iotdb_cluster.simulation.invariants import Invariants
from iotdb_cluster.simulation.swarm import SwarmFailure, SwarmResult, cheap_passwords
from iotdb_cluster.simulation.workloads import Clients, Workload, registers
from iotdb_cluster.simulation.world import Simulation
from iotdb_cluster.world import World

__all__ = ["Growth", "run_sequence"]

META_PORT, DATA_PORT, CLIENT_PORT, NODETOOL_PORT = 9003, 40010, 55560, 31999
FOUNDERS: Final = 3
NODES_MAX: Final = 6
CLIENTS: Final = 3
FORMED_MS = 60_000
CHANGE_MS = 240_000  # of one change, crashes included
SETTLED_MS = 3_000
LINES_SHOWN = 40


def _nodetool(name: str) -> int:
    """Its port: all listen on loopback, which the simulated nodes share."""
    return NODETOOL_PORT + int(name.removeprefix("node"))


@dataclass
class Growth:
    """The parts of a run; everything is drawn from the seed."""

    seed: int
    said: list[str] = field(default_factory=list)
    running: dict[str, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = self.random = random.Random(f"growth:{self.seed}")
        self.partition_ms = rng.choice((1_000, 60_000))
        self.replication = rng.choice((2, 3, 3, 3))
        self.flush_bytes = rng.choice((1 * KIB, 16 * KIB, 1 * MIB))
        self.changes = rng.randint(2, 4)
        self.crashing = rng.choice((0.0, 0.5, 1.0))  # how eagerly
        self.members = [f"node{number}" for number in range(1, FOUNDERS + 1)]
        self.dead: set[str] = set()  # they do not come back
        self.left: set[str] = set()
        self.crashes = 0
        self.clients = Clients(registers(self.partition_ms), Workload.draw(rng))
        self._tasks: list[asyncio.Task[Any]] = []
        self._stop = self._quiet = False  # no more crashes, no more wishes
        self._made = FOUNDERS

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _settings(self, name: str, joins: bool) -> Settings:
        seeds = [*self.members, name] if joins else [f"node{number}" for number in range(1, FOUNDERS + 1)]
        founders = tuple(NodeAddress(one, META_PORT, DATA_PORT, CLIENT_PORT) for one in seeds)
        settings = Settings(
            NodeAddress(name, META_PORT, DATA_PORT, CLIENT_PORT),
            founders,
            "/data",
            nodetool_port=_nodetool(name),
            log_segment_bytes=256 * KIB,
            log_bytes_max=self.random.choice((512 * KIB, 4 * MIB)),
            memtable_flush_bytes=self.flush_bytes,
            partition_interval_ms=self.partition_ms,
            replication=self.replication,
            disk_free_min_bytes=0,
            inference=InferenceRules(floating=DataType.DOUBLE),
        )
        return replace(settings, joins=joins)

    def _main(self, name: str, joins: bool) -> Callable[[World], Coroutine[Any, Any, None]]:
        settings = self._settings(name, joins)

        async def main(world: World) -> None:
            node = self.running[name] = Node(world, settings)
            try:
                await node.run()
            except (Refused, OtherSettings):  # the latter where it is told to join, and has disks of a removed node
                if name not in self.left:
                    raise

        return main

    @property
    def serving(self) -> list[str]:
        return [name for name in self.members if name not in self.dead]

    def _say(self, simulation: Simulation, text: str) -> None:
        self.said.append(f"{simulation.now_ms:9.0f}  {text}")

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self, *, debug: bool = False) -> SwarmResult:
        """From empty disks to the verdict. Raises SwarmFailure."""
        with cheap_passwords(), Simulation(self.seed, debug=debug, skew_ms=200.0, drift=0.01) as simulation:
            try:
                self._run(simulation)
            except Exception as error:
                raise SwarmFailure(self._tell(simulation, error)) from error
            clients = self.clients
            return SwarmResult(
                self.seed, self._made, simulation.digest(), simulation.events, simulation.now_ms, clients.acknowledged,
                clients.unknown, clients.refused, self.crashes, ("growth",),
            )  # fmt: skip

    def _run(self, simulation: Simulation) -> None:
        for name in self.members:
            simulation.add_node(name, self._main(name, False))
        world = simulation.world("operator")
        simulation.run(self._serving(world, self.members), FORMED_MS)
        invariants = Invariants(simulation, self.running)
        simulation.check_turn = invariants.turn
        for number in range(CLIENTS):
            self._tasks.append(simulation.spawn(self._client(simulation, f"client{number}")))
        nemesis = simulation.spawn(self._crash(simulation))
        for _ in range(self.changes):
            simulation.run(self._change(simulation, world), CHANGE_MS)
        self._stop = True
        simulation.run_until(nemesis.done, CHANGE_MS)
        nemesis.result()
        self._quiet = True
        simulation.run_until(lambda: all(task.done() for task in self._tasks), CHANGE_MS)
        simulation.run(self._serving(world, self.serving), FORMED_MS)
        simulation.run(self._finished(world), CHANGE_MS)
        simulation.run(self._read_all(world), FORMED_MS)
        simulation.run(self._compare(world), FORMED_MS)
        simulation.run_until(SETTLED_MS)
        for name in self.serving:
            check_nothing_is_left(simulation, name, self.running[name], len(self.members))
        for series, history in self.clients.histories.items():
            check_history(series, history)

    async def _client(self, simulation: Simulation, name: str) -> None:
        """Wishes through whatever member serves."""
        rng = random.Random(f"{self.seed}:{name}")
        wishes, weights = list(self.clients.workload.weights), list(self.clients.workload.weights.values())
        own = simulation.world(name)
        while not self._quiet:
            session = SimulatedClient(own, rng.choice(self.serving), CLIENT_PORT, rng.choice((2_000, 8_000)))
            for _ in range(rng.randint(1, 8)):
                (wish,) = rng.choices(wishes, weights)
                if not await self.clients.act(name, rng, session, rng.choice(self.clients.registers), wish):
                    break
                await asyncio.sleep(rng.uniform(0.0, 0.4))
            session.drop()
            await asyncio.sleep(rng.uniform(0.0, 0.4))

    async def _crash(self, simulation: Simulation) -> None:
        """One node at a time loses power and is started again; none while one is dead for good."""
        rng = random.Random(f"crash:{self.seed}")
        while not self._stop:
            await asyncio.sleep(rng.uniform(0.3, 6.0))
            if rng.random() >= self.crashing or self.dead:
                continue
            victim = rng.choice([name for name in simulation.nodes if name not in self.left])
            if not simulation.is_running(victim):
                continue
            self._say(simulation, f"{victim} crashes")
            self.crashes += 1
            simulation.crash(victim, power_cut=rng.random() < 0.7)
            await asyncio.sleep(rng.uniform(0.05, 3.0))
            simulation.restart(victim)

    # --- changes ------------------------------------------------------------------------------------------------------

    async def _change(self, simulation: Simulation, world: World) -> None:
        rng = self.random
        await asyncio.sleep(rng.uniform(0.0, 3.0))
        spare = len(self.members) > max(FOUNDERS, self.replication)
        kinds = [*(["join"] if len(self.members) < NODES_MAX else []), *(["leave"] * spare)]
        if spare and self.replication >= 3:
            kinds.append("dead")
        what = rng.choice(kinds)
        if what == "join":
            await self._join(simulation, world)
            return
        victim = rng.choice(self.members)
        self._say(simulation, f"{victim} is to leave, {what}")
        if what == "dead":
            while self._down(simulation):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            self.dead.add(victim)
            simulation.crash(victim)
        self.left.add(victim)
        await self._leave(world, victim)
        self.members.remove(victim)
        self.dead.discard(victim)
        self._say(simulation, f"{victim} has left")

    def _down(self, simulation: Simulation) -> list[str]:
        return [name for name in self.members if not simulation.is_running(name)]

    async def _join(self, simulation: Simulation, world: World) -> None:
        self._made += 1
        name = f"node{self._made}"
        self._say(simulation, f"{name} joins")
        simulation.add_node(name, self._main(name, True))
        await self._finished(world, name)
        self.members.append(name)
        self._say(simulation, f"{name} has joined")

    async def _leave(self, world: World, victim: str) -> None:
        """Ask through any member until it is said to be done."""
        while True:
            through = self.random.choice([name for name in self.serving if name != victim])
            try:
                answer = await ask_admin(
                    world, through, _nodetool(through), {"command": "remove-node", "target": f"{victim}:{META_PORT}"}
                )
            except CallerError:
                answer = {"error": "no answer"}
            if "change" in answer:
                break
            if "not found" in answer.get("error", ""):  # an attempt whose answer was lost has been carried out
                return
            await asyncio.sleep(0.3)
        await self._finished(world)

    async def _finished(self, world: World, joined: str = "") -> None:
        """Until no change is under way, by what a member says; with `joined` also until that node is one."""
        while True:
            try:
                through = self.random.choice(self.serving)
                answer = await ask_admin(world, through, _nodetool(through), {"command": "migration"})
                there = {text.partition(":")[0] for _, text, *_ in answer.get("nodes", ())}
                if answer.get("change", 0) is None and (not joined or joined in there):
                    return
            except CallerError:
                pass
            await asyncio.sleep(0.3)

    # --- the verdict --------------------------------------------------------------------------------------------------

    async def _serving(self, world: World, names: Sequence[str]) -> None:
        for name in names:
            while True:
                try:
                    health = await ask_admin(world, name, _nodetool(name), {"command": "health"})
                    if health.get("serving"):
                        break
                except CallerError:
                    pass
                await asyncio.sleep(0.1)

    async def _read_all(self, world: World) -> None:
        rng = random.Random(0)
        for name in self.serving:
            session = SimulatedClient(world, name, CLIENT_PORT, 10_000)
            for register in self.clients.registers:
                for wish in ("write", "all", "last", "count"):
                    if not await self.clients.act("reader", rng, session, register, wish):
                        raise AssertionError(f"{register.series}: no {wish} through {name}: {self.clients.refusals}")
            session.drop()

    async def _compare(self, world: World) -> None:
        """Every group has its replicas, and they are equal; slots are even."""
        nodes = len(self.members)
        answer = await ask_admin(world, self.serving[0], _nodetool(self.serving[0]), {"command": "digest"})
        wanted = min(self.replication, nodes)
        wrong = [one["group"] for one in answer["groups"] if not one["equal"] or len(one["digests"]) != wanted]
        if wrong or len(answer["groups"]) != nodes:
            raise AssertionError(f"{nodes} nodes, groups {wrong} are wrong: {answer}")
        host = await ask_admin(world, self.serving[0], _nodetool(self.serving[0]), {"command": "host", "all": True})
        counts = [int(count) for _, count in host["groups"]]
        if sum(counts) != 10_000 or max(counts) - min(counts) > 1:
            raise AssertionError(f"slots are not even: {counts}")

    def _tell(self, simulation: Simulation, error: BaseException) -> str:
        lines = [f"sequence {self.seed}: {type(error).__name__}: {error}"]
        lines += ["what was done:", *self.said, "the last events:", *list(simulation.lines)[-LINES_SHOWN:]]
        return "\n".join([*lines, f"repeat it with: make sim-membership SEED={self.seed}"])


def run_sequence(seed: int, *, debug: bool = False) -> SwarmResult:
    """One sequence, from empty disks to the verdict. Raises SwarmFailure."""
    return Growth(seed).run(debug=debug)
