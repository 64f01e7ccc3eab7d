"""The short form of `make catch-up`: a node is down while 50 MiB are written, and catches up by snapshots."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

MIB_WRITTEN = 50


def test_a_node_that_was_down_catches_up_by_snapshots_while_writes_go_on(
    new_cluster: Callable[..., Any], catch_up: ModuleType, load_generator: ModuleType
) -> None:
    with new_cluster(nodes=3, replication=3, **catch_up.keys(MIB_WRITTEN)) as cluster:
        figures = catch_up.run(cluster, load_generator, MIB_WRITTEN, 4.0)
        assert figures["problems"] == 0, figures["examples"]
        assert figures["snapshots"] == 3
        assert not cluster.complaints()
