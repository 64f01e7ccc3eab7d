"""A node that was removed and is not told so finds it out."""

from __future__ import annotations

from typing import Any

import pytest

from iotdb_cluster.cluster.conductor import Conductor
from iotdb_cluster.cluster.node import Node
from iotdb_cluster.cluster.startup import Removed
from iotdb_cluster.meta import commands
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
