"""Nodes join, leave and die under load on real processes: what the release asks for, as `membership.py` does it."""

from types import ModuleType
from typing import Any

import pytest

STALL_S_MAX = 15.0  # a machine of others' tests says little about speed: `make soak-membership` has the bound


@pytest.mark.parametrize("cluster", [pytest.param({"nodes": 3, "replication": 3}, id="3-replicas")], indirect=True)
def test_the_script_of_joins_and_leaves(
    cluster: Any, replay: ModuleType, durability: ModuleType, membership: ModuleType
) -> None:
    soak = membership.Soak(cluster, replay, durability, seed=1)
    soak.begin()
    soak.script()
    soak.end()
    figures = soak.verify(STALL_S_MAX)
    print(figures)
    assert figures["problems"] == 0, "\n".join(figures["examples"])
    assert figures["points"] > 1_000
