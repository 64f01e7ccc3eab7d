"""The ring of nodes: which nodes the data group of each header is meant to have."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from iotdb_cluster.errors import check

__all__ = ["Ring"]


class Ring:
    """Nodes sorted by identifier; the target, while a group's Raft configuration is the truth."""

    __slots__ = ("nodes",)

    def __init__(self, nodes: Iterable[int]) -> None:
        self.nodes: tuple[int, ...] = tuple(sorted(set(nodes)))
        check(all(node > 0 for node in self.nodes), "node identifiers count from 1: %s", self.nodes)

    def members(self, header: int, replication: int) -> tuple[int, ...]:
        """The header and the next `replication - 1` nodes clockwise; all nodes where there are fewer."""
        at = bisect_left(self.nodes, header)
        check(at < len(self.nodes) and self.nodes[at] == header, "node %s is not on the ring %s", header, self.nodes)
        count = min(replication, len(self.nodes))
        return tuple(self.nodes[(at + i) % len(self.nodes)] for i in range(count))

    def groups_of(self, node: int, replication: int) -> tuple[int, ...]:
        """The headers of the groups that the node is meant to be a member of, ascending."""
        return tuple(header for header in self.nodes if node in self.members(header, replication))
