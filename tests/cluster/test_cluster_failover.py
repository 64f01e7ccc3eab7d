"""Writes go on when the leader of their group is killed: the short form of `failover.py`."""

import asyncio
from types import ModuleType
from typing import Any


def test_writes_of_a_group_go_on_when_its_leader_is_killed(
    cluster: Any, failover: ModuleType, load_generator: ModuleType
) -> None:
    figures = asyncio.run(failover.run(cluster, load_generator, trials=2, pause_s=0, seed=1))
    assert figures["problems"] == 0, "\n".join(figures["examples"])
    assert figures["failovers"] >= 2
    assert figures["resumed_s"]["max"] < failover.WINDOW_S
