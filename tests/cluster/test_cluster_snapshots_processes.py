"""A killed process whose lack no log holds any more comes back by snapshots, while the others serve."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

INSTALLED = re.compile(r"group-[0-9]+-[0-9]+-[0-9]+\.[0-9]{20}")
AWAY_S_MAX = 60


def installed(directory: Path) -> list[str]:
    """The replicas of a node whose directory is a received snapshot's."""
    return sorted(path.name for path in directory.rglob("group-*") if INSTALLED.fullmatch(path.name))


def test_a_killed_node_catches_up_by_snapshots(
    new_cluster: Callable[..., Any], replay: ModuleType, durability: ModuleType
) -> None:
    with new_cluster(nodes=3, replication=3, log_bytes_max=2_097_152) as cluster:
        trial = durability.Trial(cluster, replay, seed=3)
        trial.begin()
        time.sleep(1)
        killed = time.monotonic()
        cluster.kill(3)
        time.sleep(12)  # for 3 s a member is not away yet, and checkpoints for the log's sake pause for 5 s
        while not installed(cluster.member(3).directory):
            assert time.monotonic() - killed < AWAY_S_MAX, "nobody sends a snapshot"
            cluster.launch(3)
            cluster.wait()
            trial.down.append((3, killed, time.monotonic()))
            time.sleep(3)
            if not installed(cluster.member(3).directory):
                cluster.kill(3)
                time.sleep(6)
        trial.end()
        figures = trial.verify()
        print(figures)
        assert figures["problems"] == 0, "\n".join(figures["examples"])
        cluster.kill(3)
        cluster.launch(3)
        cluster.wait()
        assert trial.verify()["problems"] == 0
