"""What must hold once the faults are over: leaders that all agree on, and nothing that nobody waits for any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from iotdb_cluster.cluster.node import Node
from iotdb_cluster.simulation.world import Simulation

__all__ = ["check_nothing_is_left", "has_leaders"]

# Of a node that nobody asks anything: bounds that a leak passes within one run, wide enough for what comes and goes.
TASKS_MAX: Final = 30  # of its own
TASKS_PER_PEER_MAX: Final = 20
FILES_MAX: Final = 400
ENDS_PER_PEER_MAX: Final = 20
CURSORS_MAX: Final = 50  # those that a coordinator has lost end by themselves, after minutes


def has_leaders(node: Node, among: Sequence[Node]) -> bool:
    """Whether every group of the node is led, by one of these nodes that knows it too."""
    led = {group for other in among for group, _ in other.leading()}
    replicas = node.replicas()
    return bool(replicas) and all(group.leader_node and group.id in led for group in replicas)


def check_nothing_is_left(simulation: Simulation, name: str, node: Node, nodes: int) -> None:
    """Raises AssertionError naming what is left over on a node that has been at rest for some seconds."""
    bounds: dict[str, tuple[float, float]] = {
        "tasks": (simulation.tasks_of(name), TASKS_MAX + TASKS_PER_PEER_MAX * (nodes - 1)),
        "open files": (simulation.nodes[name].disk.open_files, FILES_MAX),
        "ends of connections": (simulation.network.ends_of(name), ENDS_PER_PEER_MAX * (nodes - 1)),
        "open cursors": (node.figures()["open_cursors"], CURSORS_MAX),
        "open requests": (node.figures()["requests_open"], 0),
    }
    for group in node.replicas():
        bounds[f"proposals of group {group.id}"] = (len(group.proposals), 0)
        bounds[f"reads of group {group.id}"] = (len(group.reads_unsent) + len(group.read_rounds), 0)
        bounds[f"waiters of group {group.id}"] = (len(group.apply_waiting), 0)
    left = {what: f"{count:.0f} (at most {limit})" for what, (count, limit) in bounds.items() if count > limit}
    if left:
        raise AssertionError(f"{name} is at rest and still has {left}")
