"""A node that was removed and is not told so finds it out."""

from __future__ import annotations

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
from tests.cluster import test_cluster_moves as moves


def test_who_was_removed_and_not_told_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows a leader for ever, as nobody who is no voter any more looks for another."""
    ended: list[Removed] = []
    run = Node.run

    async def noted(self: Node, *args: Any) -> None:
        try:
            await run(self, *args)
        except Removed as error:
            ended.append(error)

    async def silent(self: Conductor, node: int) -> None:
        await self._propose(lambda request: commands.remove_node(request, node))

    monkeypatch.setattr(Node, "run", noted)
    monkeypatch.setattr(Conductor, "_remove", silent)
    with moves.Trial(5, replication=2) as trial:
        trial.propose(lambda request: commands.leave_node(request, 3, 0))
        trial.simulation.run_until(lambda: trial.state().node(3) is None, moves.MOVED_MS)
        trial.simulation.run_until(lambda: bool(ended), 20_000)
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
    meta: Any = SimpleNamespace(state=SimpleNamespace(nodes=nodes))
    calls: Any = SimpleNamespace(node=3, call=call)
    peers: Any = SimpleNamespace(call_stranger=call_stranger)
    settings = Settings(address=SEEDS[2], seeds=SEEDS, directory="/d")
    world: Any = SimpleNamespace(clock=SimpleNamespace(monotonic_ms=lambda: 0.0))
    nothing: Any = None
    return Members(world, settings, meta, calls, peers, nothing, nothing, nothing, nothing)


async def test_seeds_are_asked_where_no_member_is_where_it_was(caplog: pytest.LogCaptureFixture) -> None:
    removed = {"removed": True, "incarnations": [102, 104]}
    assert await member({SEEDS[1]: removed})._was_removed()
    assert not await member({SEEDS[2]: removed})._was_removed()  # that is itself
    assert not await member({SEEDS[1]: {**removed, "removed": False}})._was_removed()
    assert len(caplog.messages) == 1  # where nobody was there at all
    caplog.clear()
    other = member({SEEDS[0]: {"removed": True, "incarnations": [7]}})  # of another cluster that has the same name
    for _ in range(2):
        assert not await other._was_removed()
    (text,) = caplog.messages
    assert "name one of them in seed_nodes" in text
