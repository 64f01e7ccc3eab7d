"""No acknowledged point is lost, whichever nodes are killed and when: the short form of `durability.py`."""

import time
from types import ModuleType
from typing import Any

import pytest


def verified(trial: Any) -> dict[str, Any]:
    trial.end()
    figures = trial.verify()
    print(figures)
    assert figures["problems"] == 0, "\n".join(figures["examples"])
    assert figures["points"] > 1000
    return figures


@pytest.mark.parametrize("cluster", [pytest.param({"nodes": 3, "replication": 3}, id="3-replicas")], indirect=True)
def test_each_node_is_killed_in_turn_then_all_at_once(cluster: Any, replay: ModuleType, durability: ModuleType) -> None:
    trial = durability.Trial(cluster, replay, seed=1)
    trial.begin()
    time.sleep(0.5)
    for node in (1, 2, 3):
        before = sum(len(writer.calls) for writer in trial.writers if writer.node != node)
        trial.kill_and_restart(node, pause_s=1.5)
        after = sum(len(writer.calls) for writer in trial.writers if writer.node != node)
        assert after > before, "the others take writes meanwhile"
        time.sleep(0.3)
    trial.kill_during_flush(2)
    trial.kill_and_restart(3, 1, 2, pause_s=0)
    time.sleep(0.5)
    figures = verified(trial)
    assert figures["longest_wait_s"] < durability.WAIT_S_MAX


@pytest.mark.parametrize(
    "cluster",
    [
        pytest.param({"nodes": 3, "replication": 1}, id="1-replica"),
        pytest.param({"nodes": 3, "replication": 2}, id="2-replicas"),
    ],
    indirect=True,
)
def test_fewer_replicas_survive_a_restart_of_all(cluster: Any, replay: ModuleType, durability: ModuleType) -> None:
    trial = durability.Trial(cluster, replay, seed=2)
    trial.begin()
    time.sleep(1)
    trial.kill_and_restart(2, 3, 1, pause_s=0)
    time.sleep(0.5)
    trial.stop_and_start()
    time.sleep(0.5)
    verified(trial)
