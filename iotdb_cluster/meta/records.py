"""What the meta group knows, as values: nodes, groups, storage groups, and the outcome of a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from iotdb_cluster.errors import CallerError

__all__ = ["META_GROUP", "Address", "Group", "Node", "Replica", "Result", "StorageGroup"]

META_GROUP = 0  # its group id; a data group's is the identifier of its header


class Address(NamedTuple):
    """Where a node is reached, as it hands it out: `host` is a name or a literal address, never a wildcard."""

    host: str
    meta_port: int
    data_port: int
    client_port: int


@dataclass(frozen=True, slots=True)
class Node:
    """A member of the cluster. `incarnation` and `start` are 0 until it has registered; `level` is what it knows."""

    id: int
    address: Address
    incarnation: int = 0
    start: int = 0
    level: int = 0

    @property
    def registered(self) -> bool:
        return self.start > 0


@dataclass(frozen=True, slots=True)
class Replica:
    """A member of a group's Raft: `id` is its id there and in the durable log, never used again."""

    id: int
    node: int
    voter: bool = True


@dataclass(frozen=True, slots=True)
class Group:
    """A Raft group. `generation` grows with each forced reconfiguration."""

    id: int
    generation: int
    replicas: tuple[Replica, ...]

    @property
    def header(self) -> int:
        """The node that heads the group; 0 for the meta group."""
        return self.id

    @property
    def nodes(self) -> tuple[int, ...]:
        return tuple(replica.node for replica in self.replicas)

    @property
    def voters(self) -> tuple[Replica, ...]:
        return tuple(replica for replica in self.replicas if replica.voter)

    def replica_of(self, node: int) -> Replica | None:
        """The node's replica of this group."""
        return next((replica for replica in self.replicas if replica.node == node), None)

    def replica(self, replica_id: int) -> Replica | None:
        return next((replica for replica in self.replicas if replica.id == replica_id), None)


@dataclass(frozen=True, slots=True)
class StorageGroup:
    """`id` is the meta index of its creation, `changed` that of the last decision about it.

    `dropping`: its drop has begun, not ended: it takes no more writes, and nothing can be created at, above or below.
    """

    id: int
    path: str
    ttl_ms: int | None = None
    dropping: bool = False
    changed: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a command: an error, or a value for JSON. `duplicate`: the request had been applied before."""

    error: CallerError | None = None
    value: Any = None
    duplicate: bool = False

    def unwrap(self) -> Any:
        """The value; raises the error where there is one."""
        if self.error is not None:
            raise self.error
        return self.value
