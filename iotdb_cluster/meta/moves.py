"""What the commands about moves of slots do. The decision about who owns a slot is meta's alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import SLOTS
from iotdb_cluster.meta.changes import require_change
from iotdb_cluster.meta.cluster import Cluster, refused
from iotdb_cluster.meta.fields import Fields
from iotdb_cluster.meta.records import META_GROUP, Move

__all__ = ["HANDLERS"]


def _begin(cluster: Cluster, index: int, fields: Fields) -> Any:
    giver, receiver, slots = fields.number("giver"), fields.number("receiver"), sorted(set(fields.numbers("slots")))
    require_change(cluster, step=True)
    for number in (giver, receiver):
        group = cluster.groups.get(number)
        if group is None or number == META_GROUP or giver == receiver:
            raise refused(f"no slots move from group {giver} to group {receiver}")
        if not group.settled:
            raise refused(f"group {number} changes its members: no slot of it moves before that is done")
    if not cluster.nodes[receiver].stays:
        raise refused(f"node {receiver} is leaving: its group takes no slots")
    under_way = {slot for move in cluster.moves.values() for slot, _ in move.slots}
    for slot in slots:
        if not 0 <= slot < SLOTS or cluster.owners.owner(slot)[0] != giver or slot in under_way:
            raise refused(f"slot {slot} is not group {giver}'s to give")
    if not slots:
        raise CallerError(Status.ILLEGAL_PARAMETER, "a move of no slots")
    aside = tuple((slot, cluster.owners.owner(slot)[1] + 1) for slot in slots)
    cluster.moves[index] = Move(index, giver, receiver, aside)
    cluster.changed = index
    return {"move": index}


def _end(cluster: Cluster, index: int, fields: Fields) -> Any:
    number, to = fields.number("move"), fields.text("to")
    if to not in ("giver", "receiver"):
        raise CallerError(Status.INTERNAL_SERVER_ERROR, f"a move ends at its giver or receiver, not at {to!r}")
    move = cluster.moves.pop(number, None)
    if move is None:
        return {"over": True}
    for slot, epoch in move.slots:
        if to == "receiver":
            cluster.owners.decide(slot, move.receiver, epoch)
        else:
            cluster.owners.decide(slot, move.giver, epoch + 1)
    cluster.changed = index
    return {"over": False}


HANDLERS: dict[str, Callable[[Cluster, int, Fields], Any]] = {"begin_move": _begin, "end_move": _end}
