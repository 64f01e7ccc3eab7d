"""Who is in the cluster, its groups, who owns which slot, and the change under way: the part of the state that
membership changes.

`Cluster` is the values and their bytes; what the commands do to it is in `members`, `groups`, `moves` and `changes`,
each a table of handlers. A handler that raises has changed nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from iotdb_cluster.errors import CallerError, Status, check
from iotdb_cluster.meta.records import (
    META_GROUP,
    Address,
    Change,
    ChangeKind,
    Group,
    Loss,
    Move,
    Node,
    NodeState,
    Replica,
    Role,
    WantedMove,
)
from iotdb_cluster.partition import PartitionTable, Ring, SlotMap, SlotStrategy

__all__ = ["META_VOTERS_MAX", "Cluster", "refused"]

META_VOTERS_MAX = 7  # further members of the meta group are learners: larger quorums only slow every decision


def refused(message: str) -> CallerError:
    """The cluster says no; the message says why, and what to do."""
    return CallerError(Status.START_UP_ERROR, message)


@dataclass
class Cluster:
    """Nodes, groups (the meta group is group 0), owners of slots, moves, the change under way.

    Identifiers of nodes, which are their replica ids in the meta group, and replica ids of data groups are numbers of
    one space, used once: nodes count up from 1, data replicas from `first_replica`. A node that would be numbered
    there (clusters of the first release, where it is the number after the founders) takes the next replica id.
    """

    level: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    nodes: dict[int, Node] = field(default_factory=dict)
    groups: dict[int, Group] = field(default_factory=dict)
    first_replica: int = 1
    next_replica: int = 1
    highest_node: int = 0
    table: PartitionTable | None = None
    moves: dict[int, Move] = field(default_factory=dict)
    change: Change | None = None
    slot_map: SlotMap = field(default_factory=SlotMap)
    losses: tuple[Loss, ...] = ()  # that operators accepted, the latest last
    changed: int = 0  # the log index of the last decision about all this

    @property
    def replication(self) -> int:
        return int(self.settings["replication"])

    @property
    def ring(self) -> Ring:
        """Those that stay and live."""
        return Ring(number for number, node in self.nodes.items() if node.stays and not node.dead)

    @property
    def owners(self) -> PartitionTable:
        check(self.table is not None, "the partition table is read before the bootstrap")
        return self.table  # type: ignore[return-value]

    def node_at(self, address: Address) -> Node | None:
        """The member that is reached there; another may be in the place of a dead one."""
        living = (node for _, node in sorted(self.nodes.items()) if not node.dead)
        return next((node for node in living if node.address[:2] == address[:2]), None)

    def take_replica(self) -> int:
        """A replica id that no other has or had."""
        self.next_replica += 1
        return self.next_replica - 1

    def take_node(self) -> int:
        """An identifier that no other node has or had."""
        number = self.highest_node + 1
        self.highest_node = number if number < self.first_replica else self.take_replica()
        return self.highest_node

    def removed_node(self, identifier: int) -> bool:
        return 0 < identifier <= self.highest_node and identifier not in self.nodes

    def left_out(self, identifier: int) -> bool:
        """Whether a member is dead and in the meta group no more: it can take no part in anything."""
        node = self.nodes.get(identifier)
        return node is not None and node.dead and self.groups[META_GROUP].replica_of(identifier) is None

    def removed_replica(self, replica: int) -> bool:
        used = replica <= self.highest_node if replica < self.first_replica else replica < self.next_replica
        return replica > 0 and used and all(group.replica(replica) is None for group in self.groups.values())

    def moving(self, group: int) -> bool:
        """Whether the group gives or receives slots at present."""
        return any(group in (move.giver, move.receiver) for move in self.moves.values())

    def map_slots(self) -> None:
        """Where storage groups lie, from what was fixed at the founding."""
        strategy = SlotStrategy(self.settings.get("slot_strategy", SlotStrategy.HASH))
        self.slot_map = SlotMap(strategy, len(self.groups[META_GROUP].founders))

    # --- snapshots ----------------------------------------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """For JSON; equal for equal states."""
        change = self.change
        return {
            "level": self.level,
            "settings": self.settings,
            "nodes": [
                [node.id, list(node.address), node.incarnation, node.start, node.level, node.state, node.dead]
                for _, node in sorted(self.nodes.items())
            ],
            "groups": [
                [
                    group.id,
                    group.generation,
                    [[item.id, item.node, item.role] for item in group.replicas],
                    list(group.founders),
                    group.earlier,
                ]
                for _, group in sorted(self.groups.items())
            ],
            "first_replica": self.first_replica,
            "next_replica": self.next_replica,
            "highest_node": self.highest_node,
            "table": None if self.table is None else self.table.dump(),
            "moves": [[move.id, move.giver, move.receiver, move.slots] for _, move in sorted(self.moves.items())],
            "change": None if change is None else [change.id, change.kind, change.node, change.paused, change.wanted],
            "losses": [[loss.at, loss.node, list(loss.groups), loss.slots] for loss in self.losses],
            "members_changed": self.changed,
        }

    @classmethod
    def load(cls, head: Mapping[str, Any], version: int) -> Cluster:
        """The inverse of `dump`, from a snapshot of this version, or of version 1, where no membership ever changed."""
        cluster = cls(head["level"], head["settings"])
        for identifier, address, incarnation, start, level, *later in head["nodes"]:
            state, dead = later or (NodeState.NORMAL, False)
            cluster.nodes[identifier] = Node(
                identifier, Address(*address), incarnation, start, level, NodeState(state), dead
            )
        for number, generation, replicas, *later in head["groups"]:
            if version == 1:
                replicas = [[item, node, Role.VOTER if voter else Role.LEARNER] for item, node, voter in replicas]
            made = tuple(Replica(item, node, Role(role)) for item, node, role in replicas)
            founders, earlier = later or ([item.id for item in made], ())
            cluster.groups[number] = Group(number, generation, made, tuple(founders), tuple(map(tuple, earlier)))
        highest = max(cluster.nodes, default=0)
        cluster.highest_node = head.get("highest_node", highest)
        cluster.first_replica = head.get("first_replica", highest + 1)
        cluster.next_replica = head["next_replica"]
        cluster.table = None if head["table"] is None else PartitionTable.load(head["table"])
        for move, giver, receiver, slots in head.get("moves", ()):
            cluster.moves[move] = Move(move, giver, receiver, tuple((slot, epoch) for slot, epoch in slots))
        if head.get("change") is not None:
            number, kind, node, paused, wanted = head["change"]
            moves = tuple(WantedMove(giver, receiver, tuple(slots)) for giver, receiver, slots in wanted)
            cluster.change = Change(number, ChangeKind(kind), node, paused, moves)
        cluster.losses = tuple(Loss(at, node, tuple(gone), slots) for at, node, gone, slots in head.get("losses", ()))
        if cluster.table is not None:
            cluster.map_slots()
        cluster.changed = head["members_changed"]
        return cluster
