"""The one change of membership that may be under way: what begins, pauses and finishes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import SLOTS
from iotdb_cluster.meta.cluster import Cluster, refused
from iotdb_cluster.meta.fields import Fields, move_of
from iotdb_cluster.meta.records import META_GROUP, Change, ChangeKind, NodeState, WantedMove

__all__ = ["HANDLERS", "UNDER_WAY", "begin_or_alter", "may_begin", "require_change"]

UNDER_WAY = "the previous membership change has not finished"
_TEXTS = {
    ChangeKind.JOIN: "node {} joins",
    ChangeKind.LEAVE: "node {} leaves",
    ChangeKind.REPLACE: "node {} replaces another",
    ChangeKind.REBALANCE: "slots are rebalanced",
    ChangeKind.REPLICATION: "the replication number changes",
}


def may_begin(cluster: Cluster, newcomer: int | None = None) -> None:
    """Raises where a change is under way, or where programs of different levels run (`newcomer`: that of who joins).

    The older may not know what a change of members puts into the logs of groups.
    """
    change = cluster.change
    if change is not None:
        raise refused(
            f"{UNDER_WAY} ({_TEXTS[change.kind].format(change.node)}): try again "
            "when it has; nodetool migration shows how far it is, and a node that it waits for can be removed as dead"
        )
    known = {node.id: node.level for node in cluster.nodes.values() if node.start and not node.dead}
    newest = max([*known.values(), newcomer or 0], default=0)
    older = [identifier for identifier, level in sorted(known.items()) if level < newest]
    if older:
        names = ", ".join(map(str, older))
        raise refused(
            f"the programs of these nodes are older than another one's, which knows level {newest}: {names}; upgrade "
            "them first, then change the members"
        )


def require_change(cluster: Cluster, *, step: bool = False) -> Change:
    """The change under way; raises where there is none, and, for a new `step`, where it is paused."""
    if cluster.change is None:
        raise refused("no membership change is under way")
    if step and cluster.change.paused:
        raise refused("the membership change is paused: resume it first")
    return cluster.change


def begin_or_alter(cluster: Cluster, index: int, kind: ChangeKind, node: int) -> None:
    """Members change: a change of its own, or a part of the one that waits for a dead node.

    What a rebalance wanted was meant for the members as they were: it is wanted no more.
    """
    if cluster.change is None:
        cluster.change = Change(index, kind, node)
    else:
        cluster.change = replace(cluster.change, wanted=())


def _complete(cluster: Cluster) -> bool:
    """Whether each group has the members that the ring says; one that was forced may lack some."""
    ring, groups = cluster.ring, [group for number, group in cluster.groups.items() if number != META_GROUP]
    return all(
        set(group.nodes) == set(ring.members(group.id, cluster.replication))
        for group in groups
        if group.id in ring.nodes
    )


def _set_replication(cluster: Cluster, index: int, fields: Fields) -> Any:
    replication = fields.number("replication")
    if replication < 1:
        raise CallerError(Status.ILLEGAL_PARAMETER, f"a replication number of {replication}: it must be above 0")
    may_begin(cluster)
    if replication == cluster.replication and _complete(cluster):
        return {"change": 0}
    cluster.settings = {**cluster.settings, "replication": replication}
    cluster.change = Change(index, ChangeKind.REPLICATION)
    cluster.changed = index
    return {"change": index}


def _wanted(cluster: Cluster, items: list[Any]) -> tuple[WantedMove, ...]:
    wanted, seen = [], set()
    for item in items:
        giver, receiver, slots = move_of(item)
        if giver == receiver or META_GROUP in (giver, receiver) or not {giver, receiver} <= set(cluster.groups):
            raise CallerError(Status.ILLEGAL_PARAMETER, f"no slots move from group {giver} to group {receiver}")
        for slot in slots:
            if not 0 <= slot < SLOTS or slot in seen or cluster.owners.owner(slot)[0] != giver:
                raise refused(f"slot {slot} is not group {giver}'s to give: plan the rebalance again")
            seen.add(slot)
        if slots:
            wanted.append(WantedMove(giver, receiver, tuple(sorted(slots))))
    return tuple(wanted)


def _rebalance(cluster: Cluster, index: int, fields: Fields) -> Any:
    may_begin(cluster)
    wanted = _wanted(cluster, fields.items("moves"))
    if not wanted:
        return {"change": 0}
    cluster.change = Change(index, ChangeKind.REBALANCE, wanted=wanted)
    cluster.changed = index
    return {"change": index}


def _pause(cluster: Cluster, index: int, paused: bool) -> Any:
    change = require_change(cluster)
    if change.paused is not paused:
        cluster.change = replace(change, paused=paused)
        cluster.changed = index
    return {"change": change.id}


def _finish(cluster: Cluster, index: int, fields: Fields) -> Any:
    number = fields.number("change")
    if cluster.change is None or cluster.change.id > number:
        return
    require_change(cluster, step=True)
    leaving = [node.id for _, node in sorted(cluster.nodes.items()) if not node.stays]
    headless = [
        number for number, node in sorted(cluster.nodes.items()) if number not in cluster.groups and not node.dead
    ]
    unsettled = [group for group, record in sorted(cluster.groups.items()) if not record.settled]
    if leaving or headless or unsettled or cluster.moves or cluster.change.id != number:
        raise refused(
            f"change {number} is not finished: nodes {leaving} are leaving, {headless} head no group, groups "
            f"{unsettled} change their members, {len(cluster.moves)} moves are under way"
        )
    for identifier, node in cluster.nodes.items():
        cluster.nodes[identifier] = replace(node, state=NodeState.NORMAL)
    cluster.change = None
    cluster.changed = index


HANDLERS: dict[str, Callable[[Cluster, int, Fields], Any]] = {
    "set_replication": _set_replication,
    "rebalance": _rebalance,
    "pause_change": lambda cluster, index, _: _pause(cluster, index, True),
    "resume_change": lambda cluster, index, _: _pause(cluster, index, False),
    "finish_change": _finish,
}
