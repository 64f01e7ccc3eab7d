"""What the meta group knows, as values: nodes, groups, storage groups, and the outcome of a command."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from iotdb_cluster.errors import CallerError

__all__ = [
    "META_GROUP",
    "Address",
    "Change",
    "ChangeKind",
    "Group",
    "Loss",
    "Move",
    "Node",
    "NodeState",
    "Replica",
    "Result",
    "Role",
    "StorageGroup",
    "WantedMove",
]

META_GROUP = 0  # its group id; a data group's is the identifier of its header


class Address(NamedTuple):
    """Where a node is reached, as it hands it out: `host` is a name or a literal address, never a wildcard."""

    host: str
    meta_port: int
    data_port: int
    client_port: int


class NodeState(StrEnum):
    """Where a member stands between joining and leaving."""

    JOINING = "joining"
    NORMAL = "normal"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class Node:
    """A member of the cluster. `incarnation` and `start` are 0 until it has registered; `level` is what it knows.

    `dead`: it will not come back: it is leaving, or the meta group was forced without it, and it is to be removed.
    """

    id: int
    address: Address
    incarnation: int = 0
    start: int = 0
    level: int = 0
    state: NodeState = NodeState.NORMAL
    dead: bool = False

    @property
    def registered(self) -> bool:
        return self.start > 0

    @property
    def stays(self) -> bool:
        """It is on the ring: a member that does not leave."""
        return self.state is not NodeState.LEAVING


class Role(StrEnum):
    """What a replica is to its group. The group is settled when none is `joining` or `leaving`."""

    VOTER = "voter"
    LEARNER = "learner"  # of the meta group alone: it follows, and never votes
    JOINING = "joining"  # is to become a voter; what Raft's configuration calls it is not known
    LEAVING = "leaving"  # is to go; Raft's configuration may still have it as a voter


@dataclass(frozen=True, slots=True)
class Replica:
    """A member of a group's Raft: `id` is its id there and in the durable log, never used again."""

    id: int
    node: int
    role: Role = Role.VOTER

    @property
    def voter(self) -> bool:
        """It may be a voter now, as far as meta has been told."""
        return self.role in (Role.VOTER, Role.LEAVING)


@dataclass(frozen=True, slots=True)
class Group:
    """A Raft group. `generation` grows with each forced reconfiguration.

    `founders`: the replica ids that it began with, which every replica's log names in its first mark. `earlier`:
    targets before the present one, since Raft's configuration was last known: it may still be any of them. After a
    force also those of the generation before, until the survivors are known to be voters: till then one of them alone
    may have what was acknowledged.
    """

    id: int
    generation: int
    replicas: tuple[Replica, ...]
    founders: tuple[int, ...] = ()
    earlier: tuple[tuple[int, ...], ...] = ()

    @property
    def header(self) -> int:
        """The node that heads the group; 0 for the meta group."""
        return self.id

    @property
    def nodes(self) -> tuple[int, ...]:
        return tuple(replica.node for replica in self.replicas)

    @property
    def voters(self) -> tuple[Replica, ...]:
        """Those that may be voters now."""
        return tuple(replica for replica in self.replicas if replica.voter)

    @property
    def target(self) -> tuple[Replica, ...]:
        """Those that are to be its voters."""
        return tuple(replica for replica in self.replicas if replica.role in (Role.VOTER, Role.JOINING))

    @property
    def configurations(self) -> tuple[tuple[int, ...], ...]:
        """What Raft's configuration may be, as replica ids of voters: all authorised by meta and not seen ended."""
        return (*self.earlier, tuple(replica.id for replica in self.target))

    @property
    def settled(self) -> bool:
        """Raft's configuration is the target, and meta has been told so."""
        return not self.earlier and all(replica.role in (Role.VOTER, Role.LEARNER) for replica in self.replicas)

    def unmet_majorities(self, dead: Iterable[int]) -> list[tuple[int, ...]]:
        """The configurations of which these replica ids, and those that were forced out, are a majority."""
        alive = {replica.id for replica in self.replicas} - set(dead)
        return [members for members in self.configurations if len(set(members) - alive) >= len(members) // 2 + 1]

    def replica_of(self, node: int) -> Replica | None:
        """The node's replica of this group."""
        return next((replica for replica in self.replicas if replica.node == node), None)

    def replica(self, replica_id: int) -> Replica | None:
        return next((replica for replica in self.replicas if replica.id == replica_id), None)


@dataclass(frozen=True, slots=True)
class Move:
    """Slots on their way: `id` is the meta index of its beginning, `slots` are (slot, the epoch e+1 set aside)."""

    id: int
    giver: int
    receiver: int
    slots: tuple[tuple[int, int], ...]


class ChangeKind(StrEnum):
    """What was asked for."""

    JOIN = "join"
    LEAVE = "leave"
    REPLACE = "replace"
    REBALANCE = "rebalance"
    REPLICATION = "replication"


class WantedMove(NamedTuple):
    """Slots that a rebalance wants elsewhere."""

    giver: int
    receiver: int
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """The change of membership under way; `id` is the meta index of its beginning.

    `node`: who joins or leaves. `wanted`: the moves of a rebalance. No new step begins while it is paused.
    """

    id: int
    kind: ChangeKind
    node: int = 0
    paused: bool = False
    wanted: tuple[WantedMove, ...] = ()


class Loss(NamedTuple):
    """An accepted loss, decided at meta index `at`.

    With a dead `node`: these groups are gone, and their slots begin anew elsewhere. `node` 0: the group goes on without
    its majority, some points of its slots may be gone.
    """

    at: int
    node: int
    groups: tuple[int, ...]
    slots: int


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
