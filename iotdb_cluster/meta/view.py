"""The meta group's state as plans of membership see it."""

from __future__ import annotations

from collections.abc import Iterable

from iotdb_cluster.errors import check
from iotdb_cluster.meta.cluster import META_VOTERS_MAX
from iotdb_cluster.meta.records import Group, NodeState, Replica, Role
from iotdb_cluster.meta.state import MetaState
from iotdb_cluster.partition.view import ClusterView, GroupView, MemberView, MoveView, ReplicaView

__all__ = ["cluster_view"]


def _group(group: Group) -> GroupView:
    replicas = tuple(
        ReplicaView(replica.id, replica.node, replica.role is not Role.LEAVING, replica.role is Role.VOTER)
        for replica in group.replicas
    )
    return GroupView(group.id, group.generation, replicas, group.earlier)


def _nodes(replicas: Iterable[Replica], role: Role) -> tuple[int, ...]:
    return tuple(sorted(replica.node for replica in replicas if replica.role is role))


def cluster_view(state: MetaState) -> ClusterView:
    """Values only, equal for equal states. The cluster must be founded."""
    meta = state.meta_group
    check(meta is not None, "a plan is asked for before the bootstrap")
    members = meta.replicas if meta is not None else ()
    change = state.change
    return ClusterView(
        nodes=tuple(
            MemberView(node.id, node.state is NodeState.JOINING, node.stays, node.dead) for node in state.nodes
        ),
        replication=state.replication,
        groups=tuple(_group(group) for group in state.groups),
        owners=state.table.owners,
        meta_voters=_nodes(members, Role.VOTER),
        meta_learners=_nodes(members, Role.LEARNER),
        meta_joining=_nodes(members, Role.JOINING),
        meta_voters_max=META_VOTERS_MAX,
        moves=tuple(
            MoveView(move.id, move.giver, move.receiver, tuple(slot for slot, _ in move.slots)) for move in state.moves
        ),
        wanted=() if change is None else tuple((one.giver, one.receiver, one.slots) for one in change.wanted),
        change=0 if change is None else change.id,
        paused=change is not None and change.paused,
    )
