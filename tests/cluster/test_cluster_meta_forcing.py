"""The meta group has lost its majority: the operator begins it anew on a survivor, and removes the dead."""

from __future__ import annotations

from typing import Any

import pytest

from iotdb_cluster.cluster.node import Node
from iotdb_cluster.cluster.startup import Removed
from iotdb_cluster.errors import CallerError
from iotdb_cluster.meta import META_GROUP, commands
from iotdb_cluster.simulation import smoke
from iotdb_cluster.simulation.client import ask_admin
from iotdb_cluster.world import World
from tests.cluster.test_cluster_shaping import Trial

COMMAND = {"command": "force-meta"}


class Forced(Trial):
    """Nodes may learn that they are no members any more."""

    def __init__(self, seed: int, replication: int, nodes: int) -> None:
        self.told: list[int] = []
        super().__init__(seed, replication, nodes)

    def _main(self, number: int) -> Any:
        async def main(world: World) -> None:
            node = self.nodes[number] = Node(world, self._settings(number))
            try:
                await node.run()
            except Removed:
                self.told.append(number)

        return main

    def ask(self, node: int, request: dict[str, Any]) -> dict[str, Any]:
        port = smoke.NODETOOL_PORT + node
        return self.simulation.run(ask_admin(self.world, smoke._name(node), port, request), 120_000)

    def refused(self, node: int, text: str) -> None:
        answer = self.ask(node, COMMAND)
        assert answer["code"] == 504
        assert text in answer["error"]

    def force(self, node: int, accept_loss: bool = False) -> None:
        answer = self.ask(node, {**COMMAND, "accept_loss": accept_loss})
        assert "error" not in answer, answer
        self.settled(node)

    def settled(self, node: int) -> None:
        """Every survivor is a voter again, and meta says so."""

        def there() -> bool:
            groups, state = self.groups(META_GROUP), self.nodes[node]._meta.state
            record = state.meta_group
            return (
                record is not None
                and set(record.nodes) == set(self.numbers) == set(groups)
                and all(group.generation == record.generation for group in groups.values())
                and all(sorted(group.raw.conf_state.voters) == self.numbers for group in groups.values())
                and record.settled
            )

        self.until(there)

    def remove(self, through: int, node: int) -> None:
        answer = self.ask(through, {"command": "remove-node", "target": str(node)})
        assert answer.get("dead"), answer
        self.until(lambda: self.state().node(node) is None and self.state().change is None, 240_000)

    def writes_go_on(self) -> None:
        before = sum(map(len, self.acknowledged.values()))
        self.until(lambda: sum(map(len, self.acknowledged.values())) > before + 10)


def test_one_of_two_nodes_dies_for_good() -> None:
    with Forced(1, replication=2, nodes=2) as trial:
        trial.refused(1, "every member of the meta group answers: it needs no force")
        trial.simulation.run_until(2_000)
        trial.lose(2)
        trial.simulation.run_until(2_000)
        trial.force(1)
        assert trial.record(META_GROUP).generation == 2
        trial.remove(1, 2)
        trial.writes_go_on()
        trial.restart_all()
        assert trial.record(META_GROUP).generation == 2
        trial.writes_go_on()
        trial.verify()


def test_two_of_three_nodes_die() -> None:
    with Forced(2, replication=3, nodes=3) as trial:
        trial.simulation.run_until(1_000)
        lost = [node for node in (1, 2, 3) if node != trial.leader(META_GROUP)]
        trial.lose(lost[0])
        (one,) = set(trial.numbers) - {lost[1]}
        trial.simulation.run_until(1_000)
        trial.refused(one, "a majority of the meta group is alive: it needs no force")
        trial.lose(lost[1])
        trial.simulation.run_until(1_000)
        trial.refused(one, f"the nodes {sorted(lost)}, which do not answer, were a majority of the members [1, 2, 3]")
        trial.refused(one, "or say --accept-loss")
        trial.force(one, accept_loss=True)
        trial.decide(lambda request: commands.set_ttl(request, "root.shape0", 1_000_000_000_000))
        with pytest.raises(CallerError, match="forced without it"):
            trial.decide(
                lambda request: commands.register_node(
                    request, lost[0], 0, 9, trial.state().nodes[lost[0] - 1].address, 1
                )
            )
        for node in lost:  # they are a majority of the old generation
            trial.simulation.restart(smoke._name(node))
        trial.until(lambda: sorted(trial.told) == sorted(lost))
        trial.settled(one)
        group = trial.state().storage_group_of("root.shape0.d1")
        assert group is not None
        assert group.ttl_ms == 1_000_000_000_000
