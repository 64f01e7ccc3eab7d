"""The meta group has lost its majority: the operator begins it anew on a survivor, and removes the dead."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.joining import JOIN_CALL
from iotdb_cluster.cluster.meta_forcing import LOOK_MS
from iotdb_cluster.cluster.node import Node
from iotdb_cluster.cluster.startup import Removed
from iotdb_cluster.errors import CallerError
from iotdb_cluster.meta import LEVEL, META_GROUP, commands
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.simulation import smoke
from iotdb_cluster.simulation.client import SimulatedClient, ask_admin
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

    def refused(self, node: int, text: str, group: int = 0) -> None:
        answer = self.ask(node, {"command": "force-group", "group": group} if group else COMMAND)
        assert answer["code"] == 504
        assert text in answer["error"]

    def force(self, node: int, accept_loss: bool = False) -> None:
        answer = self.ask(node, {**COMMAND, "accept_loss": accept_loss})
        assert answer.get("node") == node, answer
        self.settled(node)

    def log_end(self, node: int) -> tuple[int, int]:
        """(last term, last index) of a node's meta log."""
        log = self.groups(META_GROUP)[node].log
        return log.term(log.last_index()), log.last_index()

    def begin_and_crash(self, winner: int, victim: int) -> None:
        """The command is on its way when a node loses power."""

        async def ask() -> None:
            with contextlib.suppress(CallerError):
                await ask_admin(self.world, smoke._name(winner), smoke.NODETOOL_PORT + winner, COMMAND)

        self.simulation.spawn(ask())
        self.simulation.run_until(
            lambda: self.groups(META_GROUP).keys() != {2, 4}, 20_000
        )  # one of them has left the old generation
        self.simulation.run_until(self.random.uniform(0, 60))
        self.crash_and_return(victim, 500)

    def force_groups(self, through: int, lost: list[int]) -> None:
        """Each data group goes on without the lost nodes, which were its majority."""
        self.refused(through, "there is no data group 77", group=77)
        for group in self.state().groups:
            self.refused(through, "would be lost; bring one back, or say --accept-loss", group=group.id)
            forced = self.ask(through, {"command": "force-group", "group": group.id, "accept_loss": True})
            assert sorted(forced["left_out"]) == sorted(lost), forced
            self.refused(through, f"every member of group {group.id} answers: it needs no force", group=group.id)

    def accept(self) -> None:
        """What was acknowledged so far may be lost."""
        for series, points in self.acknowledged.items():
            self.maybe.setdefault(series, {}).update(points)
        self.acknowledged.clear()

    def settled(self, node: int) -> None:
        """Every survivor is a voter again, and meta says so."""

        def there() -> bool:
            groups, one = self.groups(META_GROUP), self.nodes.get(node)
            record = one._meta.state.meta_group if one is not None and one._built else None
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

    def lose_the_other(self) -> None:
        """The second of two nodes."""
        self.simulation.run_until(2_000)
        self.lose(2)
        self.simulation.run_until(2_000)

    def writes_go_on(self) -> None:
        before = sum(map(len, self.acknowledged.values()))
        self.until(lambda: sum(map(len, self.acknowledged.values())) > before + 10)


def test_one_of_two_nodes_dies_for_good() -> None:
    with Forced(1, replication=2, nodes=2) as trial:
        trial.refused(1, "every member of the meta group answers: it needs no force")
        trial.lose_the_other()
        trial.force(1)
        assert trial.record(META_GROUP).generation == 2
        trial.remove(1, 2)
        trial.writes_go_on()
        trial.restart_all()
        assert trial.record(META_GROUP).generation == 2
        trial.writes_go_on()
        trial.verify()


def test_an_operator_who_goes_away_leaves_nothing_half_done() -> None:
    """Whoever asked may be gone at any moment: the command is carried out all the same."""
    with Forced(3, replication=2, nodes=2) as trial:
        trial.lose_the_other()
        connection = trial.world.network.connect(smoke._name(1), smoke.NODETOOL_PORT + 1, asyncio.Protocol, 5_000)
        transport, _ = trial.simulation.run(connection)
        transport.write(json.dumps(COMMAND).encode() + b"\n")
        trial.simulation.run_until(lambda: META_GROUP not in trial.nodes[1]._driver.groups, 60_000)
        transport.abort()
        trial.settled(1)
        assert trial.record(META_GROUP).generation == 2
        trial.remove(1, 2)
        trial.writes_go_on()


def test_who_joins_as_soon_as_the_meta_group_decides_again_is_not_left_out() -> None:
    """Its place among the members is not the dead one's: whoever tells meta of the force must not take it for that."""
    with Forced(4, replication=2, nodes=2) as trial:
        trial.lose_the_other()
        node = trial.nodes[1]
        head = {"address": ["node3", 9003, 40010, 55560], "incarnation": 303, "start": 1, "level": LEVEL, "replaces": 2}
        body = memoryview(pack({**head, "settings": node._settings.agreement()}))

        async def join() -> dict[str, Any]:
            while True:
                with contextlib.suppress(CallerError):
                    answer, _ = unpack(await node._calls.handlers[JOIN_CALL](body, Deadline(trial.world, 5_000)))
                    if "busy" not in answer:
                        return dict(answer)
                await asyncio.sleep(0.01)

        joining = trial.simulation.spawn(join())
        answer = trial.ask(1, COMMAND)
        assert answer.get("node") == 1, answer
        trial.until(lambda: joining.done() and trial.record(META_GROUP).generation == 2)
        newcomer = trial.state().node(joining.result()["node"])
        assert newcomer is not None
        assert not newcomer.dead


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
        trial.force_groups(one, lost)
        for node in lost:
            trial.remove(one, node)
        trial.writes_go_on()
        trial.restart_all()
        trial.writes_go_on()


@pytest.mark.parametrize("seed", range(2))
def test_the_longest_log_begins_anew_whoever_crashes(seed: int) -> None:
    with Forced(10 + seed, replication=2, nodes=4) as trial:
        trial.simulation.run_until(1_000)
        for node in trial.random.sample((1, 3), 2):
            trial.lose(node)
            trial.simulation.run_until(trial.random.uniform(0, 300))
        trial.simulation.run_until(2_000)
        ends = {node: trial.log_end(node) for node in (2, 4)}
        winner = max(ends, key=lambda node: (ends[node], -node))
        if len(set(ends.values())) == 2:
            trial.refused(6 - winner, f"run it on node {winner}")
        trial.begin_and_crash(winner, winner if seed % 2 else 6 - winner)
        trial.until(lambda: trial.groups(META_GROUP).keys() == {2, 4})
        if trial.groups(META_GROUP)[winner].generation == 1:
            trial.force(winner)
        trial.settled(winner)
        for node in (1, 3):
            trial.remove(2, node)
        trial.writes_go_on()
        trial.restart_all()
        trial.verify()


def follow_and_lose(trial: Forced, among: tuple[int, ...]) -> list[int]:
    """The one of these that wins is lost for good before it wrote that down; who has followed it."""
    ends = {node: trial.log_end(node) for node in among}
    winner = max(ends, key=lambda node: (ends[node], -node))
    left = [node for node in among if node != winner]

    async def ask() -> None:
        with contextlib.suppress(CallerError):
            request = {**COMMAND, "accept_loss": True}
            await ask_admin(trial.world, smoke._name(winner), smoke.NODETOOL_PORT + winner, request)

    def followed() -> bool:
        groups = trial.groups(META_GROUP)
        return all(node in groups and groups[node].generation == 2 for node in left)

    trial.simulation.spawn(ask())
    trial.until(followed)
    trial.lose(winner)
    return left


def test_who_has_followed_a_winner_that_is_lost_says_what_to_do_and_begins_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Forced(50, replication=2, nodes=5) as trial:
        trial.simulation.run_until(1_000)
        for node in (1, 3):
            trial.lose(node)
        trial.lose(trial.leader(META_GROUP) or 2)
        trial.simulation.run_until(2_000)
        (left,) = follow_and_lose(trial, tuple(trial.numbers))
        text = "force-meta --accept-loss on this node begins anew"
        assert text not in caplog.text
        trial.simulation.run_until(3 * LOOK_MS)
        assert text in caplog.text
        trial.refused(left, text)
        trial.crash_and_return(left, 500)
        trial.until(lambda: left in trial.groups(META_GROUP))
        trial.force(left, accept_loss=True)
        assert trial.groups(META_GROUP)[left].generation == 3
        assert [node.id for node in trial.state().nodes if not node.dead] == [left]
        caplog.clear()
        trial.simulation.run_until(3 * LOOK_MS)
        assert text not in caplog.text


def test_who_has_followed_begins_nothing_while_those_that_were_to_be_left_out_are_back() -> None:
    with Forced(60, replication=3, nodes=5) as trial:
        trial.simulation.run_until(1_000)
        away = [1, 2, 3]
        for node in away:
            trial.simulation.crash(smoke._name(node))
            del trial.nodes[node]
        trial.simulation.run_until(2_000)
        (left,) = follow_and_lose(trial, (4, 5))
        for node in away:
            trial.simulation.restart(smoke._name(node))
        trial.until(lambda: trial.leader(META_GROUP) in away)
        answer = trial.ask(left, {**COMMAND, "accept_loss": True})
        assert "the nodes [1, 2, 3] answer" in answer["error"], answer
        trial.simulation.run_until(5_000)
        assert trial.leader(META_GROUP) in away
        assert not any(trial.state().left_out(node) for node in away)


@pytest.mark.parametrize("seed", range(2))
def test_two_survivors_are_asked_at_once(seed: int) -> None:
    """At most one of them begins, and never do two meta groups decide side by side."""
    with Forced(20 + seed, replication=3, nodes=5) as trial:
        trial.simulation.run_until(1_000)
        for node in trial.random.sample(trial.numbers, 3):
            trial.lose(node)
        trial.simulation.run_until(2_000)
        request = {**COMMAND, "accept_loss": True}
        answers: dict[int, dict[str, Any]] = {}

        async def ask(node: int) -> None:
            await asyncio.sleep(trial.random.uniform(0, 0.02))
            answers[node] = await ask_admin(trial.world, smoke._name(node), smoke.NODETOOL_PORT + node, request)

        for node in trial.numbers:
            trial.simulation.spawn(ask(node))
        trial.until(lambda: len(answers) == 2)
        begun = [node for node, answer in answers.items() if "error" not in answer]
        assert len(begun) <= 1, answers
        if not begun:
            again = {node: trial.ask(node, request) for node in trial.numbers}
            begun = [node for node, answer in again.items() if "error" not in answer]
            assert len(begun) == 1, (answers, again)
        trial.settled(begun[0])
        assert len({group.generation for group in trial.groups(META_GROUP).values()}) == 1
        assert len([group for group in trial.groups(META_GROUP).values() if group.leads]) == 1


def test_the_only_copy_of_slots_is_lost_and_they_begin_anew() -> None:
    with Forced(30, replication=1, nodes=3) as trial:
        trial.simulation.run_until(2_000)
        owner, _ = trial.state().owner_of_slot(trial.state().slot_map.schema_slot_of("root.shape0"))
        victim = owner.id
        one, other = [node for node in trial.numbers if node != victim]
        trial.lose(victim)
        wish = {"command": "remove-node", "target": str(victim)}
        refusal = trial.ask(one, wish)
        assert f"node {victim} holds the only copy of 333" in refusal["error"]
        assert "are dropped whole (root.shape0" in refusal["error"]
        answer = trial.ask(other, {**wish, "accept_loss": True})
        assert answer["dead"]
        assert "root.shape0" in answer["dropped"]
        trial.until(lambda: trial.state().change is None and not [
            group for group in trial.state().storage_groups(dropping=True) if group.dropping
        ])  # fmt: skip
        trial.accept()
        trial.until(lambda: sum(map(len, trial.acknowledged.values())) > 60)
        session = SimulatedClient(trial.world, smoke._name(one), smoke.CLIENT_PORT)
        trial.simulation.run(session.execute("DELETE FROM root.shape1.*.* WHERE time >= 100000000"), 60_000)
        trial.restart_all()
        trial.verify()
        told = trial.ask(one, {"command": "migration"})
        assert [loss[1:] for loss in told["losses"]] == [[victim, [victim], answer["lost"]]]


def test_an_old_majority_comes_back_and_changes_nothing() -> None:
    """Of data groups: its nodes are members still, among themselves they are a majority of the generation before."""
    with Forced(40, replication=3, nodes=5) as trial:
        trial.simulation.run_until(2_000)
        lost = [1, 2]
        for node in lost:  # else they would know nothing without a majority of the meta group
            machine = trial.nodes[node]._meta_machine
            machine.checkpoint_asked = True
            trial.until(lambda machine=machine: machine.checkpointed > 1)  # type: ignore[misc]
            trial.lose(node)
        one = trial.numbers[0]
        gone = [(r.node, r.id) for number in (1, 5) for r in trial.record(number).replicas if r.node in lost]
        for number in (1, 5):
            answer = trial.ask(one, {"command": "force-group", "group": number, "accept_loss": True})
            assert answer["generation"] == 2, answer
        trial.accept()
        trial.until(lambda: sum(map(len, trial.acknowledged.values())) > 40)
        names = {smoke._name(node) for node in lost}
        trial.simulation.network.partition(names, {smoke._name(node) for node in trial.numbers} | {"client"})
        for node in lost:
            trial.simulation.restart(smoke._name(node))
        trial.until(lambda: set(lost) <= {node for node, group in trial.groups(1).items() if group.leader_node})
        assert {trial.groups(1)[node].generation for node in lost} == {1}  # nobody has told them
        trial.simulation.run_until(2_000)
        trial.simulation.network.heal()
        trial.until(lambda: all(trial.deleted(node, replica) for node, replica in gone))
        trial.numbers = sorted([*trial.numbers, *lost])
        answer = trial.ask(lost[0], {"command": "set-replication", "replication": 3})
        assert answer["change"]
        trial.until(lambda: trial.state().change is None and all(map(trial.shaped, range(1, 6))), 240_000)
        assert {len(trial.record(number).nodes) for number in range(1, 6)} == {3}
        trial.restart_all()
        trial.verify()
