"""Members of data groups change under load: nothing is lost, whoever crashes at any step, and what goes is deleted."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable
from typing import Any, Self

import pytest

from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.conductor import Conductor
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.node import Node
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.meta import Group as GroupRecord
from iotdb_cluster.meta import MetaState, commands
from iotdb_cluster.raft import ConfChange, ConfChangeSingle, ConfChangeType, ConfState
from iotdb_cluster.requests import RequestId
from iotdb_cluster.simulation import smoke
from iotdb_cluster.simulation.client import SimulatedClient, ask_admin
from iotdb_cluster.simulation.world import Simulation
from iotdb_cluster.world import World

NODES = 4
DEVICES = 3


@pytest.fixture(autouse=True)
def no_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests decide who is to be a member; the plan would bring every group back to the ring."""

    async def idle(_: Conductor) -> None:
        """Nothing."""

    monkeypatch.setattr(Conductor, "_round", idle)


class Trial:
    """Four nodes under load; each acknowledged point is remembered."""

    def __init__(self, seed: int, replication: int = 3, nodes: int = NODES) -> None:
        self.simulation = Simulation(seed, debug=False)
        self.nodes: dict[int, Node] = {}
        self.acknowledged: dict[str, dict[int, float]] = {}
        self.maybe: dict[str, dict[int, float]] = {}
        self.random = random.Random(f"shaping:{seed}")
        self._replication = replication
        self._founders = nodes
        self.numbers = list(range(1, nodes + 1))
        self._stop = False
        for number in self.numbers:
            self.simulation.add_node(smoke._name(number), self._main(number))
        self.world = self.simulation.world("client")
        self.simulation.run(self._serving(), smoke.SERVES_AGAIN_MS)
        self._writers = [self.simulation.spawn(self._write(writer)) for writer in range(3)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.simulation.close()

    def _settings(self, number: int) -> Settings:
        addresses = [
            NodeAddress(smoke._name(i), smoke.META_PORT, smoke.DATA_PORT, smoke.CLIENT_PORT)
            for i in range(1, self._founders + 1)
        ]
        return dataclasses.replace(
            smoke._settings(1),
            address=addresses[number - 1],
            seeds=tuple(addresses),
            nodetool_port=smoke.NODETOOL_PORT + number,
            replication=self._replication,
        )

    def _main(self, number: int) -> Any:
        async def main(world: World) -> None:
            node = self.nodes[number] = Node(world, self._settings(number))
            await node.run()

        return main

    async def _serving(self) -> None:
        for number in self.numbers:
            while True:
                try:
                    port = smoke.NODETOOL_PORT + number
                    health = await ask_admin(self.world, smoke._name(number), port, {"command": "health"})
                    if health.get("serving"):
                        break
                except CallerError:
                    pass
                await asyncio.sleep(0.1)

    async def _write(self, writer: int) -> None:
        """One value after another through any node, until told to stop."""
        count = 0
        while not self._stop:
            count += 1
            device = f"root.shape{count % 2}.d{count % DEVICES}"
            time, value = (count * 3 + writer) * 7, float(count * 3 + writer)
            node = self.random.choice(self.numbers)
            session = SimulatedClient(self.world, smoke._name(node), smoke.CLIENT_PORT)
            try:
                await session.insert(device, "s1", time, value)
                self.acknowledged.setdefault(f"{device}.s1", {})[time] = value
            except CallerError as error:
                if error.code in (Status.TIME_OUT, Status.INTERNAL_SERVER_ERROR):
                    self.maybe.setdefault(f"{device}.s1", {})[time] = value
                await asyncio.sleep(0.1)
            session.drop()
            await asyncio.sleep(self.random.uniform(0.01, 0.05))

    # --- meta ---------------------------------------------------------------------------------------------------------

    def running(self) -> dict[int, Node]:
        return {number: node for number, node in self.nodes.items() if self.simulation.is_running(smoke._name(number))}

    def state(self) -> MetaState:
        """The newest one that any node has."""
        built = [node for node in self.running().values() if node._built]
        return max((node._meta.state for node in built), key=lambda state: state.applied)

    def record(self, number: int) -> GroupRecord:
        record = self.state().group(number)
        assert record is not None
        return record

    def decide(self, command: Callable[[RequestId], bytes]) -> None:
        """Have meta decide, through whichever node runs."""

        async def propose() -> None:
            for _ in range(50):
                for node in self.running().values():
                    if node._built:
                        try:
                            await node._meta.propose(command, Deadline(node._world, 5_000))
                        except CallerError as error:
                            if error.code == Status.START_UP_ERROR:
                                raise
                        else:
                            return
                await asyncio.sleep(0.2)
            raise AssertionError("meta decides nothing")

        self.simulation.run(propose(), 120_000)

    def begin(self) -> None:
        """Some change is under way, so that groups may be shifted."""
        slot = self.state().table.slots_of(1)[0]
        self.decide(lambda request: commands.rebalance(request, [(1, 2, [slot])]))

    def shift(self, number: int, add: int, remove: int) -> None:
        """Group `number` is to have a replica on node `add` in place of the one on node `remove`."""
        leaving = self.record(number).replica_of(remove)
        assert leaving is not None
        self.decide(lambda request: commands.shift_group(request, number, [add], [leaving.id]))

    def lose(self, node: int) -> None:
        """A node does not come back."""
        self.simulation.crash(smoke._name(node))
        del self.nodes[node]
        self.numbers.remove(node)

    def dead(self, number: int) -> list[int]:
        """The replicas of a group on lost nodes."""
        return [replica.id for replica in self.record(number).replicas if replica.node not in self.numbers]

    def force(self, number: int, accept_loss: bool = False) -> None:
        """The rest of a group begins its next generation."""
        generation, dead = self.record(number).generation + 1, self.dead(number)
        self.decide(lambda request: commands.force_group(request, number, generation, dead, accept_loss))

    # --- groups -------------------------------------------------------------------------------------------------------

    def groups(self, number: int) -> dict[int, Group]:
        """The replicas of a group that run, by node."""
        found = {node: one._driver.groups.get(number) for node, one in self.running().items() if one._built}
        return {node: group for node, group in found.items() if group is not None}

    def leader(self, number: int) -> int:
        """The node that leads a group; 0 for none."""
        led = [(group.raw.term, node) for node, group in self.groups(number).items() if group.leads]
        return max(led)[1] if led else 0

    def until(self, condition: Callable[[], bool], limit_ms: float = 60_000) -> None:
        self.simulation.run_until(condition, limit_ms)
        assert condition()

    def crash_and_return(self, node: int, away_ms: float) -> None:
        self.simulation.crash(smoke._name(node), power_cut=bool(self.random.randrange(2)))
        del self.nodes[node]
        self.simulation.run_until(away_ms)
        self.simulation.restart(smoke._name(node))

    def restart_all(self) -> None:
        """Every node loses power at once."""
        for number in self.numbers:
            self.simulation.crash(smoke._name(number))
            del self.nodes[number]
        for number in self.numbers:
            self.simulation.restart(smoke._name(number))
        self.simulation.run(self._serving(), smoke.SERVES_AGAIN_MS)

    def shaped(self, number: int) -> bool:
        """Meta and every member agree on who the members are, and nobody else has a replica."""
        record = self.record(number)
        voters = tuple(sorted(replica.id for replica in record.target))
        groups = self.groups(number)
        return (
            record.settled
            and set(groups) == set(record.nodes)
            and all(group.raw.conf_state == ConfState(voters) for group in groups.values())
        )

    def deleted(self, node: int, replica: int) -> bool:
        """Nothing of a replica is left on a node's disk or in its log."""
        names = self.simulation.nodes[smoke._name(node)].disk.list("/data/data")
        left = [name for name in names if name.split(".")[0].endswith(f"-{replica}")]
        one = self.nodes.get(node)
        return one is not None and one._built and not left and replica not in one._log.replicas()

    def verify(self) -> None:
        """The load ends; every acknowledged point through every node, nothing that nobody wrote, equal replicas."""
        self._stop = True
        self.simulation.run_until(lambda: all(writer.done() for writer in self._writers), 30_000)
        assert sum(map(len, self.acknowledged.values())) > 20
        self.simulation.run(self._serving(), smoke.SERVES_AGAIN_MS)
        self.simulation.run(self._verify(), smoke.SERVES_AGAIN_MS)

    async def _verify(self) -> None:
        for number in self.numbers:
            session = SimulatedClient(self.world, smoke._name(number), smoke.CLIENT_PORT)
            for series, points in sorted(self.acknowledged.items()):
                found = await session.points(series)
                assert {time for time, value in points.items() if found.get(time) != value} == set()
                maybe = self.maybe.get(series, {})
                assert [time for time, value in found.items() if points.get(time, maybe.get(time)) != value] == []
            session.drop()
        answer = await ask_admin(self.world, smoke._name(number), smoke.NODETOOL_PORT + number, {"command": "digest"})
        for group in answer["groups"]:
            assert group["equal"], answer
            assert len(group["digests"]) == len(set(self.record(group["group"]).nodes) & set(self.numbers))


def test_a_replica_of_each_group_moves_its_leader_too() -> None:
    with Trial(1) as trial:
        trial.begin()
        gone = []
        for number, add, remove in ((1, 4, 1), (2, 1, 3), (4, 3, 4)):
            leaving = trial.record(number).replica_of(remove)
            assert leaving is not None
            gone.append((remove, leaving.id))
            trial.shift(number, add, remove)
        trial.until(lambda: all(trial.shaped(number) for number in (1, 2, 3, 4)))
        trial.until(lambda: all(trial.deleted(node, replica) for node, replica in gone))
        assert set(trial.record(1).nodes) == {2, 3, 4}
        trial.restart_all()  # what was learnt on the way survives
        trial.until(lambda: all(trial.shaped(number) for number in (1, 2, 3, 4)))
        assert all(trial.deleted(node, replica) for node, replica in gone)
        trial.verify()


def _learner(trial: Trial, number: int) -> bool:
    return any(group.raw.configuration.learners for group in trial.groups(number).values())


def _joint(trial: Trial, number: int) -> bool:
    return any(group.raw.configuration.joint for group in trial.groups(number).values())


def _agreed(trial: Trial, number: int) -> bool:
    """Raft has the new members, meta does not know it."""
    target = sorted(replica.id for replica in trial.record(number).target)
    leader = trial.groups(number).get(trial.leader(number))
    return leader is not None and leader.raw.conf_state == ConfState(tuple(target))


def _told(trial: Trial, number: int) -> bool:
    return trial.record(number).settled


@pytest.mark.parametrize("number", [0, 1])
def test_a_leader_that_is_removed_without_handing_over_leads_no_longer(number: int) -> None:
    """As one that is elected with its own removal in its log: the others must not wait for it for ever."""
    with Trial(78) as trial:
        node = trial.leader(number)
        group = trial.groups(number)[node]
        removal = ConfChange((ConfChangeSingle(ConfChangeType.REMOVE_NODE, group.replica),))
        trial.nodes[node]._driver.propose_change(group, removal)
        trial.until(lambda: group.replica not in group.raw.configuration.voters, 5_000)
        assert not group.leads
        trial.until(lambda: trial.leader(number) not in (0, node), 10_000)


MOMENTS = {"learner": _learner, "joint": _joint, "agreed": _agreed, "told": _told}


@pytest.mark.parametrize(
    ("victim", "replication"), [("leader", 3), ("joiner", 3), ("leaver", 3), ("all", 3), ("all", 2), ("leader", 2)]
)
def test_a_crash_at_any_step_loses_nothing(victim: str, replication: int) -> None:
    with Trial(len(victim) * 10 + replication, replication) as trial:
        trial.begin()
        gone = []
        for number, reached in enumerate(MOMENTS.values(), 1):
            record = trial.record(number)
            free = [node for node in range(1, NODES + 1) if node not in record.nodes]
            leaving = record.replica_of(trial.leader(number)) or record.replicas[-1]
            gone.append((leaving.node, leaving.id))
            trial.shift(number, free[0], leaving.node)
            trial.until(lambda reached=reached, number=number: reached(trial, number))  # type: ignore[misc]
            if victim == "all":
                trial.restart_all()
            else:
                hit = {"leader": trial.leader(number) or leaving.node, "joiner": free[0], "leaver": leaving.node}
                trial.crash_and_return(hit[victim], trial.random.uniform(100, 5_000))
            trial.until(lambda number=number: trial.shaped(number))  # type: ignore[misc]
        trial.until(lambda: all(trial.deleted(node, replica) for node, replica in gone))
        trial.restart_all()
        assert all(trial.deleted(node, replica) for node, replica in gone)
        trial.verify()


def test_the_only_copy_of_a_group_moves() -> None:
    with Trial(5, replication=1) as trial:
        trial.begin()
        for number, path in ((1, (2, 3, 1)), (3, (4,)), (4, (2,))):
            for add in path:
                (replica,) = trial.record(number).replicas
                trial.shift(number, add, replica.node)
                trial.until(lambda number=number: trial.shaped(number))  # type: ignore[misc]
                at = (replica.node, replica.id)
                trial.until(lambda at=at: trial.deleted(*at))  # type: ignore[misc]
        assert trial.record(1).nodes == (1,)
        trial.restart_all()
        trial.verify()


def test_the_rest_of_a_group_of_which_half_is_dead_begins_anew() -> None:
    with Trial(7, replication=2) as trial:
        trial.simulation.run_until(2_000)
        trial.begin()
        trial.lose(1)
        for number in (1, 4):  # of group 1 the head is dead, of group 4 the other one
            trial.force(number)
            trial.until(lambda number=number: trial.leader(number) != 0)  # type: ignore[misc]
        trial.simulation.run_until(1_000)
        trial.restart_all()
        trial.simulation.run_until(1_000)
        for number, add in ((1, 3), (4, 2)):  # a newcomer learns nothing of the members of the generation before
            trial.decide(lambda request, n=number, a=add: commands.shift_group(request, n, [a], []))  # type: ignore[misc]
            trial.until(lambda number=number: trial.shaped(number))  # type: ignore[misc]
        trial.verify()


def test_a_survivor_that_dies_before_the_rest_has_begun_anew_is_waited_for_by_nobody() -> None:
    with Trial(9, replication=4, nodes=7) as trial:
        trial.simulation.run_until(2_000)
        first, second, third = trial.record(1).nodes[1:]
        trial.lose(first)
        trial.lose(second)
        dead = trial.dead(1)
        trial.lose(third)
        trial.decide(lambda request: commands.force_group(request, 1, 2, dead))
        trial.simulation.run_until(5_000)
        assert not trial.leader(1)
        with pytest.raises(CallerError, match=r"were a majority of .* say --accept-loss"):  # he may have had it alone
            trial.force(1)
        trial.force(1, accept_loss=True)
        trial.until(lambda: trial.leader(1) != 0, 20_000)
        assert {group.generation for group in trial.groups(1).values()} == {3}


@pytest.mark.parametrize("seed", range(3))
def test_the_survivors_choose_one_log_of_several(seed: int) -> None:
    with Trial(20 + seed, replication=4, nodes=5) as trial:
        trial.simulation.run_until(2_000)
        for node in trial.random.sample(trial.record(1).nodes, 2):
            trial.lose(node)
            trial.simulation.run_until(trial.random.uniform(0, 300))
        groups = [number for number in range(1, 6) if len(trial.dead(number)) == 2]
        for number in groups:
            trial.force(number)
        trial.restart_all()
        trial.until(lambda: all(trial.shaped(number) for number in groups))
        trial.verify()


def test_a_survivor_that_has_said_where_its_log_ends_never_takes_part_in_the_old_generation_again() -> None:
    """Also where it restarts at once, and nobody tells it what meta has decided."""
    with Trial(77, replication=2) as trial:
        trial.simulation.run_until(1_000)
        trial.begin()
        trial.lose(2)
        trial.simulation.run_until(1_000)
        replica = trial.record(1).replica_of(1)
        forcing = trial.nodes[1]._replicas._forcing
        assert replica is not None
        assert forcing is not None
        trial.force(1)
        trial.until(lambda: replica.id in forcing._standing)
        trial.simulation.network.partition({smoke._name(1)}, {smoke._name(3), smoke._name(4)})
        trial.crash_and_return(1, 100)
        trial.until(lambda: 1 in trial.groups(1))
        assert trial.groups(1)[1].generation == 2
        trial.simulation.network.heal()
        trial.force(2)
        trial.verify()
