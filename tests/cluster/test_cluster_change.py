"""Whole changes of membership under load: nodes join, leave and die, whoever crashes meanwhile, and nothing is lost."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from iotdb_cluster.cluster.node import Node
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.cluster.startup import Removed
from iotdb_cluster.errors import CallerError
from iotdb_cluster.limits import SLOTS
from iotdb_cluster.meta import Role
from iotdb_cluster.raft import ConfState
from iotdb_cluster.simulation import smoke
from iotdb_cluster.simulation.client import ask_admin
from iotdb_cluster.world import World
from tests.cluster.test_cluster_shaping import Trial as Shapes

FOUNDERS = 3


class Trial(Shapes):
    """Three nodes under load, to which others come, and from which they go."""

    def __init__(self, seed: int, replication: int = 3) -> None:
        self.ended: dict[int, str] = {}
        super().__init__(seed, replication, FOUNDERS)

    def _settings(self, number: int) -> Settings:
        address = NodeAddress(smoke._name(number), smoke.META_PORT, smoke.DATA_PORT, smoke.CLIENT_PORT)
        return dataclasses.replace(
            super()._settings(1),
            address=address,
            nodetool_port=smoke.NODETOOL_PORT + number,
            joins=number > FOUNDERS,
        )

    def _main(self, number: int) -> Any:
        async def main(world: World) -> None:
            node = self.nodes[number] = Node(world, self._settings(number))
            try:
                await node.run()
            except Removed as error:
                self.ended[number] = str(error)

        return main

    def join(self, number: int) -> None:
        """Begin to join; see `finished`."""
        self.simulation.add_node(smoke._name(number), self._main(number))
        self.until(lambda: number in self.nodes and self.nodes[number]._built)
        self.numbers.append(number)

    def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        """A nodetool command, through any node that answers."""

        async def ask() -> dict[str, Any]:
            for number in self.numbers:
                try:
                    port = smoke.NODETOOL_PORT + number
                    return await ask_admin(self.world, smoke._name(number), port, {"command": command, **fields})
                except CallerError:
                    continue
            raise AssertionError(f"nobody does {command}")

        return self.simulation.run(ask(), 60_000)

    def leave(self, number: int) -> None:
        self.ask("remove-node", target=f"{smoke._name(number)}:{smoke.META_PORT}")
        self.numbers.remove(number)

    def finished(self) -> bool:
        """No change is under way, and every group is what meta says, the meta group too."""
        state = self.state()
        if state.change is not None or not all(self.shaped(group.id) for group in state.groups):
            return False
        record = state.meta_group
        assert record is not None
        voters = tuple(sorted(one.id for one in record.replicas if one.role is Role.VOTER))
        return all(group.raw.conf_state == ConfState(voters) for group in self.groups(0).values())

    def check(self) -> None:
        state = self.state()
        assert [node.id for node in state.nodes] == [group.id for group in state.groups]
        counts = state.table.counts()
        assert max(counts.values()) - min(counts.values()) <= 1
        assert sum(counts.values()) == SLOTS
        self.verify()


def test_nodes_join_leave_and_die() -> None:
    with Trial(1) as trial:
        for number in (4, 5):
            trial.join(number)
            trial.until(trial.finished, 300_000)
        trial.leave(1)
        trial.until(trial.finished, 300_000)
        trial.until(lambda: 1 in trial.ended)
        trial.lose(2)
        trial.simulation.run_until(5_000)
        trial.ask("remove-node", target=f"node2:{smoke.META_PORT}")
        trial.until(trial.finished, 300_000)
        trial.check()
        assert [node.id for node in trial.state().nodes] == [3, 4, 5]


def _harmed(trial: Trial, crashes: int) -> None:
    """Let the change under way come to its end, while nodes lose power or stop, one after another."""
    for _ in range(crashes):
        trial.simulation.run_until(trial.random.uniform(200, 6_000))
        victims = [number for number in trial.numbers if trial.simulation.is_running(smoke._name(number))]
        trial.crash_and_return(trial.random.choice(victims), trial.random.uniform(100, 4_000))
    trial.until(trial.finished, 600_000)


@pytest.mark.parametrize(("seed", "replication"), [(11, 3), (12, 2), (13, 1)])
def test_changes_come_to_their_end_whoever_crashes(seed: int, replication: int) -> None:
    with Trial(seed, replication) as trial:
        trial.join(4)
        _harmed(trial, 4)
        trial.leave(trial.random.choice([1, 2, 3]))
        _harmed(trial, 4)
        trial.check()
