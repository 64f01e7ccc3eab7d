"""The cluster as plans see it: values only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from iotdb_cluster.partition.ring import Ring

__all__ = ["ClusterView", "GroupView", "MemberView", "MoveView", "ReplicaView", "Slots"]

Slots = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MemberView:
    """A node: `stays` is false while it leaves; `dead`: it will not answer any more: it leaves, or is to be removed."""

    id: int
    joining: bool = False
    stays: bool = True
    dead: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A member of a group: `wanted` in its target; `settled`: Raft's configuration is known to say the same."""

    id: int
    node: int
    wanted: bool = True
    settled: bool = True


@dataclass(frozen=True, slots=True)
class GroupView:
    """A data group; `id` is its header's identifier. `earlier`: targets that Raft's configuration may still be."""

    id: int
    generation: int
    replicas: tuple[ReplicaView, ...]
    earlier: tuple[tuple[int, ...], ...] = ()

    @property
    def settled(self) -> bool:
        return not self.earlier and all(replica.settled for replica in self.replicas)

    @property
    def configurations(self) -> tuple[tuple[int, ...], ...]:
        """What Raft's configuration may be, as replica ids of voters."""
        return (*self.earlier, tuple(replica.id for replica in self.replicas if replica.wanted))


@dataclass(frozen=True, slots=True)
class MoveView:
    """Slots on their way."""

    id: int
    giver: int
    receiver: int
    slots: Slots


@dataclass(frozen=True)
class ClusterView:
    """Nodes and groups by id; `owners[slot]` is a group's id; `meta_*` are nodes (those joining may be in
    its Raft configuration, or not yet); `change` is 0 where there is none.

    `wanted`: the moves of a rebalance, as (giver, receiver, slots).
    """

    nodes: tuple[MemberView, ...]
    replication: int
    groups: tuple[GroupView, ...]
    owners: Slots
    meta_voters: tuple[int, ...]
    meta_learners: tuple[int, ...] = ()
    meta_joining: tuple[int, ...] = ()
    meta_voters_max: int = 7
    moves: tuple[MoveView, ...] = ()
    wanted: tuple[tuple[int, int, Slots], ...] = ()
    change: int = 0
    paused: bool = False

    @cached_property
    def members(self) -> dict[int, MemberView]:
        return {node.id: node for node in self.nodes}

    @cached_property
    def by_id(self) -> dict[int, GroupView]:
        return {group.id: group for group in self.groups}

    @cached_property
    def staying(self) -> tuple[int, ...]:
        """The ring: identifiers of those that stay and live, ascending. Who is dead gets nothing any more."""
        return tuple(sorted(node.id for node in self.nodes if node.stays and not node.dead))

    @cached_property
    def ring(self) -> Ring:
        return Ring(self.staying)

    @cached_property
    def meta_members(self) -> frozenset[int]:
        """Nodes that are, or may be, in the meta group."""
        return frozenset((*self.meta_voters, *self.meta_learners, *self.meta_joining))

    def with_meta(self, node: int, *, voter: bool | None) -> ClusterView:
        """As if the meta group had the node as voter or learner, or not at all (None)."""
        voters, learners = set(self.meta_voters) - {node}, set(self.meta_learners) - {node}
        if voter is not None:
            (voters if voter else learners).add(node)
        joining = tuple(one for one in self.meta_joining if one != node)
        return replace(
            self, meta_voters=tuple(sorted(voters)), meta_learners=tuple(sorted(learners)), meta_joining=joining
        )

    @cached_property
    def dead(self) -> frozenset[int]:
        return frozenset(node.id for node in self.nodes if node.dead)

    @property
    def membership_changes(self) -> bool:
        """Whether a node joins or leaves: then slots are made even, at other times they lie where they lie."""
        return any(node.joining or not node.stays for node in self.nodes)

    @cached_property
    def moving(self) -> frozenset[int]:
        """Groups that give or receive slots at present."""
        return frozenset(group for move in self.moves for group in (move.giver, move.receiver))

    def serves(self, group: GroupView) -> bool:
        """Whether a majority of each configuration that it may have is not dead."""
        dead = {replica.id for replica in group.replicas if replica.node in self.dead}
        return all(2 * len(dead & set(members)) < len(members) for members in group.configurations)

    # --- what would be ------------------------------------------------------------------------------------------------

    def with_joining(self, node: int) -> ClusterView:
        """As if this node had just been admitted."""
        return replace(self, nodes=(*self.nodes, MemberView(node, joining=True)), change=self.change or 1)

    def with_leaving(self, node: int, *, dead: bool = False) -> ClusterView:
        """As if this member had just been told to leave."""
        nodes = tuple(replace(one, stays=False, dead=dead) if one.id == node else one for one in self.nodes)
        return replace(self, nodes=nodes, change=self.change or 1)

    def with_replication(self, replication: int) -> ClusterView:
        return replace(self, replication=replication, change=self.change or 1)

    def with_wanted(self, wanted: Iterable[tuple[int, int, Slots]]) -> ClusterView:
        return replace(self, wanted=tuple(wanted), change=self.change or 1)
