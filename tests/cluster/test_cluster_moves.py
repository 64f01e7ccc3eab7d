"""Slots move between groups while clients write and read; whole nodes in the simulation."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest

from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.node import Node
from iotdb_cluster.errors import CallerError
from iotdb_cluster.meta import commands
from iotdb_cluster.simulation import smoke
from iotdb_cluster.simulation.client import SimulatedClient, ask_admin
from iotdb_cluster.simulation.world import Simulation
from iotdb_cluster.world import World

NAMES = [smoke._name(number) for number in range(1, smoke.NODES + 1)]
MOVED_MS = 60_000


class Trial:
    """Three nodes; writers and readers, each acknowledged point remembered."""

    def __init__(self, seed: int, replication: int = 3) -> None:
        self.simulation = Simulation(seed, debug=False)
        self.nodes: dict[int, Node] = {}
        self.history = smoke._History()
        self.random = random.Random(f"moves:{seed}")
        self.replication = replication
        self.time = 0
        self.stop = False
        self.refused: list[CallerError] = []
        self.reads = 0
        for number in range(1, smoke.NODES + 1):
            self.simulation.add_node(smoke._name(number), self._main(number))
        self.world = self.simulation.world("client")
        self.simulation.run(smoke._serving(self.world), smoke.SERVES_AGAIN_MS)

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self.simulation.close()

    def _main(self, number: int) -> Any:
        async def main(world: World) -> None:
            settings = dataclasses.replace(smoke._settings(number), replication=self.replication)
            node = self.nodes[number] = Node(world, settings)
            await node.run()

        return main

    # --- clients ------------------------------------------------------------------------------------------------------

    async def write(self, count: int, node: int, partitions: int = 3) -> None:
        session = SimulatedClient(self.world, smoke._name(node), smoke.CLIENT_PORT, 30_000)
        for _ in range(count):
            self.time += 1
            device = f"root.move{self.time % 3}.d"
            at = (self.time * 7) % (partitions * smoke.PARTITION_MS)
            await self._insert(session, f"{device}.s1", at, float(self.time))
        session.drop()

    async def _insert(self, session: SimulatedClient, series: str, at: int, value: float) -> None:
        device, _, name = series.rpartition(".")
        try:
            await session.insert(device, name, at, value)
        except CallerError as error:
            self.refused.append(error)
            self.history.maybe.setdefault(series, {})[at] = value
        else:
            self.history.maybe.get(series, {}).pop(at, None)
            self.history.acknowledged.setdefault(series, {})[at] = value

    async def load(self, node: int) -> None:
        """One client that writes a point and reads what it knows to be there, until told to stop."""
        session = SimulatedClient(self.world, smoke._name(node), smoke.CLIENT_PORT, 30_000)
        series = f"root.load{node}.d.s1"
        device, _, name = series.rpartition(".")
        mine = self.history.acknowledged.setdefault(series, {})
        at = 0
        while not self.stop:
            at += 1
            await self._insert(session, series, (at * 37) % 3_000, float(at))
            floor = dict(mine)
            try:
                found = await session.points(series)
            except CallerError as error:
                self.refused.append(error)
                continue
            self.reads += 1
            for time, value in floor.items():
                known = self.history.maybe.get(series, {}).get(time)
                assert found.get(time) in (value, known), (series, time, value, found.get(time))
            if len(mine) % 7 == 0:
                rows = await session.query(f"SELECT count({name}) FROM {device}")
                assert rows[0][1][0] >= len(floor), (rows, len(floor))
            await asyncio.sleep(0.01)
        session.drop()

    # --- moves --------------------------------------------------------------------------------------------------------

    def leader(self, group: int) -> int:
        return next(
            (
                number
                for number, node in self.nodes.items()
                if self.is_up(number) and (group,) in [(led,) for led, _ in node.leading()]
            ),
            0,
        )

    def is_up(self, number: int) -> bool:
        return self.simulation.is_running(smoke._name(number))

    def state(self) -> Any:
        """Meta's state where it is newest."""
        nodes = [node for number, node in self.nodes.items() if self.is_up(number) and node._built]
        return max(nodes, key=lambda node: node._meta.index)._meta.state

    def propose(self, command: Callable[[Any], bytes]) -> Any:
        async def asked() -> Any:
            last: CallerError | None = None
            for _ in range(200):
                for number, node in self.nodes.items():
                    if self.is_up(number) and node._built:
                        try:
                            return await node._meta.propose(command, Deadline(node._world, 5_000))
                        except CallerError as error:
                            last = error
                await asyncio.sleep(0.05)
            raise last or AssertionError("no node runs")

        return self.simulation.run(asked(), MOVED_MS)

    def held(self, group: int) -> list[int]:
        """Slots of a group that hold anything."""
        leader = self.leader(group)
        return sorted(self.nodes[leader]._machines[group].data.slots_held())

    def begin(self, giver: int, receiver: int, slots: list[int]) -> int:
        if self.state().change is None:
            self.propose(lambda request: commands.rebalance(request, [(giver, receiver, slots)]))
        value = self.propose(lambda request: commands.begin_move(request, giver, receiver, slots))
        return int(value["move"])

    def until_over(self, move: int) -> None:
        self.simulation.run_until(lambda: self.state().move(move) is None, MOVED_MS)
        assert self.state().move(move) is None

    def settled(self) -> bool:
        """Every group's log says what meta has decided, on every node."""
        state = self.state()
        for number in self.nodes:
            if not self.is_up(number):
                return False
            for group, machine in self.nodes[number]._machines.items():
                data = machine.data
                if data.imports() or data.moves_away() or data.stages() or data.store.corrupt:
                    return False
                for slot in state.table.slots_of(group):
                    if data.slot_epoch(slot) != state.table.owner(slot)[1]:
                        return False
        return True

    def verify(self) -> None:
        self.simulation.run(smoke._serving(self.world), smoke.SERVES_AGAIN_MS)
        self.simulation.run_until(self.settled, MOVED_MS)
        assert self.settled()
        self.simulation.run(self._verify(), smoke.SERVES_AGAIN_MS)

    async def _verify(self) -> None:
        for number in self.nodes:
            session = SimulatedClient(self.world, smoke._name(number), smoke.CLIENT_PORT, 30_000)
            for series, points in sorted(self.history.acknowledged.items()):
                found, maybe = await session.points(series), self.history.maybe.get(series, {})
                lost = {at: value for at, value in points.items() if found.get(at) not in (value, maybe.get(at))}
                assert not lost, (number, series, lost)
                strange = {at for at, value in found.items() if value not in (points.get(at), maybe.get(at))}
                assert not strange, (number, series, strange)
            session.drop()
        answer = await ask_admin(self.world, NAMES[0], smoke.NODETOOL_PORT + 1, {"command": "digest"})
        for group in answer["groups"]:
            assert group["equal"], answer
            assert len(group["digests"]) == self.replication


@pytest.mark.parametrize("replication", [1, 3])
def test_slots_move_with_all_that_is_in_them(replication: int) -> None:
    with Trial(1, replication) as trial:
        trial.simulation.run(trial.write(200, 1), 60_000)
        for giver in (1, 2, 3):
            receiver = giver % 3 + 1
            held = trial.held(giver)
            if not held:
                continue
            empty = [slot for slot in trial.state().table.slots_of(giver) if slot not in held][:500]
            for slots in (held, empty):
                move = trial.begin(giver, receiver, slots)
                trial.until_over(move)
                assert all(trial.state().table.owner(slot)[0] == receiver for slot in slots)
            trial.simulation.run(trial.write(50, 2), 60_000)
        assert not trial.refused
        trial.verify()
