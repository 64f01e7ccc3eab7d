"""A node that was removed and is not told so finds it out."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from iotdb_cluster.cluster.conductor import Conductor
from iotdb_cluster.cluster.members import Members
from iotdb_cluster.cluster.node import Node
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.cluster.startup import Removed
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.meta import Address, commands
from iotdb_cluster.meta import Node as NodeRecord
from iotdb_cluster.packing import pack
from iotdb_cluster.simulation import smoke
from tests.cluster import test_cluster_moves as moves
from tests.cluster.test_cluster_meta_forcing import Forced


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Removed]:
    """What nodes ended with that are no members any more."""
    ended: list[Removed] = []
    run = Node.run

    async def noted(self: Node, *args: Any) -> None:
        try:
            await run(self, *args)
        except Removed as error:
            ended.append(error)

    monkeypatch.setattr(Node, "run", noted)
    return ended


def test_who_was_removed_and_not_told_asks(monkeypatch: pytest.MonkeyPatch, ended: list[Removed]) -> None:
    """It knows a leader for ever, as nobody who is no voter any more looks for another."""

    async def silent(self: Conductor, node: int) -> None:
        await self._propose(lambda request: commands.remove_node(request, node))

    monkeypatch.setattr(Conductor, "_remove", silent)
    with moves.Trial(5, replication=2) as trial:
        trial.propose(lambda request: commands.leave_node(request, 3, 0))
        trial.simulation.run_until(lambda: trial.state().node(3) is None, moves.MOVED_MS)
        trial.simulation.run_until(lambda: bool(ended), 20_000)
        assert "node 3 was removed" in str(ended[0])


def test_who_was_removed_while_it_was_down_asks_though_it_does_not_know_what_was_committed(
    ended: list[Removed],
) -> None:
    """A young cluster: after a restart the node knows nobody's decisions, and nobody leads it any more."""
    with moves.Trial(5, replication=2) as trial:
        trial.simulation.crash(moves.NAMES[2])
        trial.propose(lambda request: commands.leave_node(request, 3, 1))
        trial.simulation.run_until(lambda: trial.state().node(3) is None, moves.MOVED_MS)
        trial.simulation.restart(moves.NAMES[2])
        trial.simulation.run_until(lambda: bool(ended), 30_000)
        assert "node 3 was removed" in str(ended[0])


SEEDS = tuple(NodeAddress("there", 9003 + 2 * place, 40010 + 2 * place, 55560 + place) for place in range(3))
NOBODY = CallerError(Status.NO_CONNECTION, "connection refused")


def member(answers: dict[NodeAddress, Any]) -> Members:
    """Node 3, which knows nodes 1 and 2 where they are no more; what the seeds of its configuration answer."""

    async def call(*_: Any) -> Any:
        raise NOBODY

    async def call_stranger(address: NodeAddress, *_: Any) -> Any:
        if address not in answers:
            raise NOBODY
        return pack(answers[address])

    nodes = [NodeRecord(number, Address("old", 9003, 40010, 55560), incarnation=100 + number) for number in (1, 2, 3)]
    state = SimpleNamespace(bootstrapped=True, nodes=nodes, node=lambda number: nodes[number - 1])
    meta: Any = SimpleNamespace(state=state)
    calls: Any = SimpleNamespace(node=3, call=call)
    peers: Any = SimpleNamespace(call_stranger=call_stranger)
    settings = Settings(address=SEEDS[2], seeds=SEEDS, directory="/d")
    world: Any = SimpleNamespace(clock=SimpleNamespace(monotonic_ms=lambda: 0.0))
    nothing: Any = None
    return Members(world, settings, meta, calls, peers, {}, nothing, nothing, nothing, nothing)


async def test_seeds_are_asked_where_no_member_is_where_it_was(caplog: pytest.LogCaptureFixture) -> None:
    removed = {"removed": True, "nodes": [[2, 102, 5, *SEEDS[1].dump()]]}
    assert await member({SEEDS[1]: removed})._was_removed()
    assert not await member({SEEDS[2]: removed})._was_removed()  # that is itself
    stays = member({SEEDS[1]: {**removed, "removed": False}})
    assert not await stays._was_removed()
    assert stays._addresses == {2: SEEDS[1]}  # there it is by now
    assert len(caplog.messages) == 1  # where nobody was there at all
    caplog.clear()
    other = member(
        {SEEDS[0]: {"removed": True, "nodes": [[2, 7, 9, *SEEDS[1].dump()]]}}
    )  # of another cluster that has the same name
    for _ in range(2):
        assert not await other._was_removed()
    (text,) = caplog.messages
    assert "name one of them in seed_nodes" in text
    assert other._addresses == {}


class Elsewhere(Forced):
    """Some nodes are started again with other ports than they had; who starts then has these as seeds."""

    def __init__(self, seed: int, replication: int, nodes: int) -> None:
        self.elsewhere: set[int] = set()
        super().__init__(seed, replication, nodes)

    def _settings(self, number: int) -> Settings:
        settings = super()._settings(number)
        seeds = [
            dataclasses.replace(seed, meta_port=seed.meta_port + 50, data_port=seed.data_port + 50)
            if place in self.elsewhere
            else seed
            for place, seed in enumerate(settings.seeds, 1)
        ]
        return dataclasses.replace(settings, address=seeds[number - 1], seeds=tuple(seeds))

    def move(self, number: int) -> None:
        """One at a time: the others learn where it is."""
        self.elsewhere.add(number)
        self.crash_and_return(number, 100)
        self.until(lambda: number in self.nodes and self.nodes[number].serving)


def test_who_was_removed_asks_the_seeds_where_all_members_have_moved() -> None:
    with Elsewhere(6, replication=3, nodes=4) as trial:
        trial._stop = True  # no load
        machine = trial.nodes[4]._meta_machine
        machine.checkpoint_asked = True
        trial.until(lambda: machine.checkpointed > 1)
        trial.lose(4)
        trial.remove(1, 4)
        for number in (1, 2, 3):
            trial.move(number)
        trial.simulation.restart(smoke._name(4))
        trial.until(lambda: trial.told == [4])


def test_who_was_removed_while_it_was_down_asks_though_it_does_not_know_what_is_committed() -> None:
    with Forced(7, replication=3, nodes=4) as trial:
        trial._stop = True  # no load
        trial.lose(4)
        trial.remove(1, 4)
        trial.simulation.network.block(smoke._name(4), smoke._name(1))  # of two seeds it hears nothing at its start
        trial.simulation.network.block(smoke._name(4), smoke._name(2))
        trial.simulation.restart(smoke._name(4))
        trial.until(lambda: trial.told == [4])
